"""MUSIC-AVQA: reading questions, words and answers, the blind prior, accuracy by type, the ST-AVQA head."""

import json
from dataclasses import replace

import pytest
import torch
from dataset_files import counts, official, touch, write_files

from avfewshot.data.check import check_dataset
from avfewshot.data.load import load_dataset
from avfewshot.data.music_avqa import (
    BlindPrior,
    Question,
    WordList,
    answer_list,
    contradictions,
    load_music_avqa,
    read_questions,
)
from avfewshot.errors import DataError, UsageError
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.supervised.avqa import STAVQA, QuestionTask, accuracy_by_type
from avfewshot.supervised.base import spread_over

COUNT = ("Audio-Visual", "Counting", "How many sounding <Object> in the video？")
EXIST = ("Audio", "Counting", "Are there <Object> and <Object> sound? ")


def row(number, video, kind, values, answer, **changes):
    entry = {"video_id": video, "question_id": number, "type": json.dumps(kind[:2]), "question_content": kind[2]}
    return entry | {"templ_values": json.dumps(values), "question_deleted": 0, "anser": answer} | changes


TRAIN = [
    row(0, "00000001", COUNT, ["acoustic_guitar"], "two"),
    row(1, "00000001", EXIST, ["cello", "drum"], "yes"),
    row(2, "va00000002", COUNT, ["drum"], "two"),
    row(3, "va00000002", COUNT, ["cello"], "one"),
    row(4, "00000003", COUNT, ["cello"], "ten", question_deleted=1),
]
VAL = [row(5, "00000001", COUNT, ["drum"], "one"), row(5, "00000001", COUNT, ["drum"], "two")]
TEST = [row(6, "00000009", EXIST, ["drum", "cello"], "no"), row(7, "00000009", COUNT, ["cello"], "two")]


def write_lists(root, **lists):
    return write_files(root, {f"data/json/avqa-{split}.json": json.dumps(rows) for split, rows in lists.items()})


@pytest.fixture
def root(tmp_path):
    write_lists(tmp_path, train=TRAIN, val=VAL, test=TEST)
    touch(tmp_path, ["videos/real/00000001.mp4", "videos/va00000002.mp4"])
    return tmp_path


def test_templates_are_filled_videos_found_anywhere_and_questions_without_one_left_out(root):
    dataset = load_music_avqa(root)
    guitar, both = dataset.questions["train"][:2]
    assert guitar.words == ("How", "many", "sounding", "acoustic_guitar", "in", "the", "video")
    assert both.text == "Are there cello and drum sound?"
    assert (guitar.key, guitar.answer, guitar.split) == ("Audio-Visual Counting", "two", "train")
    assert [question.id for question in dataset.questions["train"]] == [0, 1, 2, 3]  # 4 is deleted
    assert dataset.videos["00000001"] == root / "videos/real/00000001.mp4"
    assert (len(dataset.usable("train")), dataset.usable("test")) == (4, [])
    found = dict.fromkeys(("missing-media", "contradicting-answers", "shared-videos", "unknown-answers"), 1)
    assert counts(dataset.report) == found
    assert dataset.report.find("contradicting-answers").examples == ("00000001 How many sounding drum in the video?",)


def test_the_updated_lists_come_first_unless_the_original_ones_are_asked_for(root):
    write_files(
        root, {f"data/json_update/avqa-{split}.json": json.dumps(TRAIN[:1]) for split in ("train", "val", "test")}
    )
    assert len(load_music_avqa(root).questions["train"]) == 1
    assert len(load_music_avqa(root, "original").questions["train"]) == 4
    with pytest.raises(UsageError, match="Valid: update, original"):
        load_music_avqa(root, "v2")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"templ_values": "__import__('os').abort()"}, "entry 0 is not a question"),
        ({"templ_values": "[]"}, "1 placeholders and 0 values"),
        ({"type": '["Audio"]'}, "not enough values"),
        ({"video_id": "../../etc/passwd"}, "not a plain name"),
        ({"anser": None}, "texts are needed"),
        ({"question_id": float("inf")}, "cannot convert float infinity"),
    ],
)
def test_a_faulty_entry_is_named(root, change, reason):
    write_lists(root, val=[VAL[0] | change])
    with pytest.raises(DataError, match=reason):
        load_music_avqa(root)


def test_a_byte_order_mark_is_no_part_of_a_list_and_missing_ones_are_named(root):
    expected = load_music_avqa(root).questions["val"]
    write_files(root, {"data/json/avqa-val.json": "\ufeff" + json.dumps(VAL, indent=1).replace("\n", "\r\n")})
    assert load_music_avqa(root).questions["val"] == expected
    with pytest.raises(DataError, match=r"No annotation files of MUSIC-AVQA .*looked for avqa-train\.json"):
        load_music_avqa(write_files(root / "empty" / "deep", {}))


def test_words_are_padded_and_a_typed_question_finds_them(root):
    train = load_music_avqa(root).questions["train"]
    words = WordList.of(train)
    ids, unknown = words.encode(train[0].words)
    assert (len(ids), ids[7:], unknown) == (14, [0] * 7, [])
    assert words.parse("how many sounding acoustic guitar in the video？ ") == (ids, [])
    assert words.parse("How many sounding tubas in the video")[1] == ["tubas"]
    with pytest.raises(UsageError, match="No word of the question"):
        words.parse("Qui?")
    assert answer_list(train) == ["two", "yes", "one"]


def test_blind_prior_and_accuracy_by_type(root):
    questions = load_music_avqa(root).questions
    prior = BlindPrior(questions["train"])
    answers = [prior.answer(question) for question in questions["test"]]
    assert answers == ["yes", "two"]
    assert prior.answer(Question(0, "x", ("Audio", "Counting"), "Never asked?", (), "no")) == "two"
    assert accuracy_by_type(questions["test"], answers) == {
        "all": 50.0, "Audio": 0.0, "Audio Counting": 0.0, "Audio-Visual": 100.0, "Audio-Visual Counting": 100.0
    }  # fmt: skip


def test_data_check_counts_questions_and_names_videos(root):
    asked = [row(8, "00000001", EXIST, ["drum", "cello"], answer) for answer in ("no", "yes")]
    write_lists(root, test=[*TEST, asked[0]], val=[*VAL, asked[1] | {"question_id": 9}])
    result = check_dataset(load_dataset("avqa", root))
    numbers = {split: (row["listed"], row["found"]) for split, row in result.splits.items()}
    assert numbers == {"train": (4, 4), "val": (3, 3), "test": (3, 1)}
    assert {sample.id for sample in result.dataset.missing()} == {"00000009"}
    assert [row["name"] for row in result.classes] == ["two", "yes", "one", "no"]
    found = {(finding.code, finding.examples) for finding in result.report.findings}
    assert ("shared-questions", ("00000001 Are there drum and cello sound?",)) in found
    assert ("shared-videos", ("00000001",)) in found
    assert ("unknown-answers", ("no",)) in found
    touch(root / "elsewhere", ["00000009.mp4"])
    (root / "videos/real/00000001.mp4").unlink()
    (root / "videos/va00000002.mp4").unlink()
    assert len(load_dataset("avqa", root / "data", media=[root / "elsewhere"]).available()) == 2
    assert not check_dataset(load_dataset("avqa", root / "data")).usable


def test_of_a_minute_every_sixth_second_is_taken_and_of_short_clips_all():
    seconds = torch.arange(61)
    frames = seconds[:, None, None, None].expand(-1, 3, 2, 2).byte()
    clip = Clip("x", 61.0, 0, frames, seconds.float().repeat_interleave(SAMPLE_RATE))
    for length, places in ((60, list(range(0, 60, 6))), (13, [0, 1, 2, 3, 5, 6, 7, 9, 10, 11]), (4, [0, 1, 2, 3])):
        part = replace(clip, frames=frames[:length], waveform=clip.waveform[: length * SAMPLE_RATE])
        taken = spread_over(part, QuestionTask.seconds)
        assert taken.frames[:, 0, 0, 0].tolist() == places
        assert taken.audio_segments[:, 0].tolist() == places
    assert QuestionTask.window == 60


def test_official_lists():
    folder = official("MUSIC-AVQA")
    test, val = (read_questions(folder / f"avqa-{split}.json") for split in ("test", "val"))
    update = {split: read_questions(folder / f"avqa-{split}.json_update.json") for split in ("test", "val")}
    fake = read_questions(folder / "avqa-train_fake.json")
    assert [len(part) for part in (test, val, update["test"], update["val"], fake)] == [9185, 4595, 9129, 4568, 6233]
    assert [len(contradictions(part)) for part in (test, val, *update.values())] == [55, 27, 0, 0]
    assert len({question.id for question in update["test"]}) == 9129
    assert len({q.video for q in val}) == 3815
    assert len({q.video for q in val} & {q.video for q in test}) == 2296
    assert len(WordList.of([*test, *val, *fake]).words) == 93
    assert (len(answer_list(test)), len({q.template for q in test})) == (41, 33)
    listed = (folder / "ans_vocab.DG-SCT.txt").read_text().split("\n")
    assert set(answer_list([*test, *val, *fake])) <= set(filter(None, listed))
    prior = BlindPrior(val)
    accuracy = accuracy_by_type(test, [prior.answer(question) for question in test])
    shown = {key: round(accuracy[key], 1) for key in ("all", "Audio", "Visual", "Audio-Visual")}
    assert shown == {"all": 51.1, "Audio": 61.5, "Visual": 41.8, "Audio-Visual": 52.2}


# -- the head ----------------------------------------------------------------------------------------------------------


def batch(size, *, seconds=3, places=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(1, 9, (size, 14), generator=generator)
    words[:, 6:] = 0
    words[0, 3:] = 0
    return (
        torch.randn(size, seconds, places, 12, generator=generator),
        torch.randn(size, seconds, 10, generator=generator),
        words,
    )


@pytest.fixture
def head():
    torch.manual_seed(0)
    return STAVQA(12, 10, words=9, answers=5, dim=16).eval()  # without dropout


def test_head_has_the_published_number_of_parameters():
    with torch.device("meta"):
        head = STAVQA(512, 128, words=93, answers=42)
    assert sum(p.numel() for p in head.parameters()) == 7_916_716  # 10,608,300 with those that the release never uses


def test_answers_depend_neither_on_the_batch_nor_on_the_order_of_places_and_seconds_nor_on_padding(head):
    places, audio, words = inputs = batch(6)
    expected = head(*inputs)
    torch.testing.assert_close(torch.cat([head(*(values[i : i + 1] for values in inputs)) for i in range(6)]), expected)
    order = [3, 1, 5, 0, 2, 4]
    torch.testing.assert_close(head(*(values[order] for values in inputs)), expected[order])
    torch.testing.assert_close(head(places[:, :, [2, 0, 3, 1]], audio, words), expected)
    torch.testing.assert_close(head(places[:, [2, 0, 1]], audio[:, [2, 0, 1]], words), expected)
    torch.testing.assert_close(head(places, audio, words[:, :6]), expected)
    assert not torch.allclose(head(places.flip(0), audio, words), expected)
    assert not torch.allclose(head(places, audio.flip(0), words), expected)


def test_spatial_grounding_weighs_places_by_their_likeness_to_the_sound(head):
    places, audio, _ = batch(1)
    visual, sound = head.visual(places[0, 0]), head.audio(audio[0, 0])
    weights = torch.softmax(torch.stack([torch.cosine_similarity(v, sound, dim=0) for v in visual]), 0)
    expected = head.ground(torch.tanh(torch.cat([visual.mean(0), (weights[:, None] * visual).sum(0)])))
    torch.testing.assert_close(head._grounded(head.visual(places), head.audio(audio))[0, 0], expected)


def test_loss_teaches_that_own_pictures_match_and_others_do_not(head):
    places, audio, words = batch(4)
    answers = torch.tensor([0, 1, 2, 3])
    others, sound = [3, 0, 1, 2], head.audio(audio)
    visual, wrong = (head._grounded(head.visual(pictures), sound) for pictures in (places, places[others]))
    logits = [head.match(torch.cat([sound, picture], -1)).log_softmax(-1) for picture in (visual, wrong)]
    match = -(logits[0][..., 1].mean() + logits[1][..., 0].mean()) / 2
    answer = torch.nn.functional.cross_entropy(head(places, audio, words), answers)
    torch.testing.assert_close(head.loss_of(places, audio, words, answers, others), answer + 0.5 * match)


def test_head_learns_clips_by_heart(head):
    places, audio, words = batch(5)
    words[:] = words[1]  # one question for all: only sight and sound tell the answers apart
    answers = torch.arange(5)
    optimizer = torch.optim.Adam(head.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        head.loss_of(places, audio, words, answers, [4, *range(4)]).backward()
        optimizer.step()
    assert (head(places, audio, words).argmax(-1) == answers).all()
