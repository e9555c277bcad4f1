"""AVSBench: lists, layout and masks; MJ and MF; the TPAVI decoder and its loss."""

import shutil

import numpy as np
import pytest
import torch
from dataset_files import AVE_FILES, counts, official, write_files
from PIL import Image
from scipy.io import wavfile
from sklearn.metrics import jaccard_score

from avfewshot.data.avsbench import load_avsbench, read_list
from avfewshot.data.load import load_dataset
from avfewshot.data.shards.plan import plan_shards
from avfewshot.data.stills import read_mask, read_masks, read_stills
from avfewshot.errors import DataError, MediaError, UsageError
from avfewshot.evaluation.masks import MaskScores, f_curves, jaccard
from avfewshot.supervised.avs import AUDIO_WIDTH, STAGE_WIDTHS, TPAVI, MaskDecoder, Refine, mask_loss

S4 = (
    "name,start,category,split\n"
    "aaaaaaaaaaa,0,horse,train\n"
    "-bbbbbbbbbb,3,h orse,train\n"
    "ccccccccccc,0,bird,val\n"
    "ddddddddddd,6,bird,test\n"
    "eeeeeeeeeee,6,bird,test\n"
)
MS3 = "name,start,split\naaaaaaaaaaa_0,0,train\nccccccccccc,0,val\naaaaaaaaaaa_1,0,test\nddddddddddd_0,0,test\n"


def picture(path, mode="RGB", size=32, box=(8, 8, 24, 16)):
    image = Image.new("1" if mode == "1" else "L", (size, size))
    if mode != "RGB":
        image.paste(1 if mode == "1" else 255, box)
    if mode == "P":
        image = image.convert("P")
    path.parent.mkdir(parents=True, exist_ok=True)
    (image.convert("RGB") if mode == "RGB" else image).save(path)


def sound(path, seconds=5):
    path.parent.mkdir(parents=True, exist_ok=True)
    wavfile.write(path, 16_000, (np.sin(np.arange(seconds * 16_000) / 20) * 8000).astype(np.int16))


@pytest.fixture
def s4(tmp_path):
    write_files(tmp_path, {"Single-source/s4_meta_data.csv": S4})
    base = tmp_path / "Single-source/s4_data"
    masks = {"train/horse/aaaaaaaaaaa": 1, "train/horse/-bbbbbbbbbb": 1}
    for clip, labelled in (masks | {"val/bird/ccccccccccc": 5, "test/bird/ddddddddddd": 5}).items():
        for second in range(1, 6):
            name = f"{clip}/{clip.rsplit('/')[-1]}_{second}.png"
            picture(base / "visual_frames" / name)
            if second <= labelled:
                picture(base / "gt_masks" / name, "1")
        sound(base / f"audio_wav/{clip}.wav")
    return tmp_path


@pytest.fixture
def ms3(tmp_path):
    write_files(tmp_path, {"Multi-sources/ms3_meta_data.csv": MS3})
    base = tmp_path / "Multi-sources/ms3_data"
    for name, _, split in (row.split(",") for row in MS3.splitlines()[1:]):
        for second in range(1, 6):
            picture(base / f"visual_frames/{name}/{name}.mp4_{second}.png")
            picture(base / f"gt_masks/{split}/{name}/{name}_{second}.png", "P")
        sound(base / f"audio_wav/{split}/{name}.wav", 4)
    return tmp_path


def test_s4_has_one_mask_in_training_and_a_misspelt_category_is_mended(s4):
    dataset = load_avsbench(s4, "s4")
    assert {split: len(clips) for split, clips in dataset.clips.items()} == {"train": 2, "val": 1, "test": 1}
    assert {clip.category for clip in dataset.clips["train"]} == {"horse"}
    assert counts(dataset.report) == {"misspelt-category": 1, "dashed-ids": 1, "missing-media": 1}
    assert dataset.report.find("misspelt-category").examples == ("-bbbbbbbbbb 'h orse'",)
    train, test = (dataset.clips[split][0] for split in ("train", "test"))
    masks, labelled = read_masks(train, 16)
    assert labelled.tolist() == [True, False, False, False, False]
    assert read_masks(test, 16)[1].all()
    assert (masks[0].nonzero().amin(0).tolist(), masks[0].sum()) == ([4, 4], 8 * 4)
    assert not masks[1:].any()
    clip = read_stills(train.frames, train.audio, 16)
    assert (clip.frames.shape, clip.frames.dtype) == ((5, 3, 16, 16), torch.uint8)
    assert clip.waveform.shape == (5 * 48_000,)
    assert clip.waveform.abs().mean() > 0.1


def test_ms3_has_five_masks_and_clips_of_training_videos_are_told_apart(ms3):
    dataset = load_avsbench(ms3, "ms3")
    assert dataset.leaked("test") == {"aaaaaaaaaaa_1"}
    assert dataset.report.find("leaked-videos").examples == ("aaaaaaaaaaa",)
    clip = dataset.clips["train"][0]
    masks, labelled = read_masks(clip, 32)
    assert labelled.all()
    assert masks.sum((1, 2)).tolist() == [16 * 8] * 5
    assert not read_stills(clip.frames, clip.audio, 32).waveform[-48_000:].any()  # four seconds of sound


def test_wrong_folders_lists_and_names_are_told(s4):
    with pytest.raises(UsageError, match="Valid: s4, ms3"):
        load_avsbench(s4, "s5")
    with pytest.raises(DataError, match=r"No annotation files of AVSBench MS3 .*looked for ms3_meta_data\.csv"):
        load_avsbench(s4, "ms3")
    write_files(s4, {"Single-source/s4_meta_data.csv": S4.replace("ccccccccccc", "zzzzzzzzzzz")})
    with pytest.raises(DataError, match=r"no clip of val is complete\. E\.g\. zzzzzzzzzzz: .*_1\.png"):
        load_avsbench(s4, "s4")


@pytest.mark.parametrize(
    ("word", "instead", "said"),
    [
        ("ccccccccccc", "../../x", "is no clip of AVSBench"),
        ("ccccccccccc", "c" * 300, "is no clip of AVSBench"),
        ("horse", "../../../horse", "is no category of AVSBench"),
        ("horse", "/etc", "is no category of AVSBench"),
        ("ccccccccccc", "c" * 200_000, "field larger than field limit"),
        ("ccccccccccc", "c\udce9", "is not UTF-8"),
    ],
)
def test_words_of_a_list_that_lead_elsewhere_are_refused(tmp_path, word, instead, said):
    text = S4.replace(word, instead).encode("utf-8", "surrogateescape")
    with pytest.raises(DataError, match=said):
        load_avsbench(write_files(tmp_path, {"Single-source/s4_meta_data.csv": text}), "s4")


def test_masks_of_every_mode_say_the_same(tmp_path):
    for mode in ("1", "L", "P"):
        picture(tmp_path / f"{mode}.png", mode)
    # A palette that is no ramp of greys: index 1 is light, index 2 is dark.
    odd = Image.fromarray(np.where(read_mask(tmp_path / "L.png", 32), 1, 2).astype(np.uint8), "P")
    odd.putpalette([0, 0, 0, 255, 255, 255, 10, 10, 10])
    odd.save(tmp_path / "odd.png")
    masks = [read_mask(tmp_path / f"{mode}.png", 32) for mode in ("1", "L", "P", "odd")]
    assert masks[0].sum() == 16 * 8
    assert all((mask == masks[0]).all() for mask in masks)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(tmp_path / "grey.png")
    with pytest.raises(MediaError, match="64 values instead of two"):
        read_mask(tmp_path / "grey.png", 8)
    write_files(tmp_path, {"text.png": "mask"})
    with pytest.raises(MediaError, match="cannot be read as a picture"):
        read_mask(tmp_path / "text.png", 8)


def test_data_check_tells_what_is_missing_misspelt_or_broken_in_s4(avfs, s4):
    base = s4 / "Single-source/s4_data"
    for kind in ("visual_frames", "gt_masks", "audio_wav"):  # misspelt on disk as well: found all the same
        (base / kind / "train/h orse").mkdir()
        for path in (base / kind / "train/horse").glob("-bbb*"):
            path.rename(base / kind / "train/h orse" / path.name)
    (base / "gt_masks/test/bird/ddddddddddd/ddddddddddd_3.png").unlink()
    sound(base / "audio_wav/val/bird/ccccccccccc.wav", 2)
    (base / "visual_frames/train/horse/aaaaaaaaaaa/aaaaaaaaaaa_4.png").write_bytes(b"no picture")
    told = avfs.json("data", "check", "avs", "--root", ".", "--probe", "--missing", "todo.txt")
    assert told["splits"]["train"] == {"listed": 2, "found": 2, "missing": 0, "expected": 3452}
    assert told["splits"]["test"].items() >= {"listed": 2, "found": 1, "missing": 1}.items()
    assert [(row["name"], row["train"], row["found"]) for row in told["classes"]] == [("bird", 0, 2), ("horse", 2, 2)]
    found = {finding["code"]: finding["examples"] for finding in told["findings"]}
    assert found["misspelt-category"] == ["-bbbbbbbbbb 'h orse'"]
    assert found["missing-masks"] == ["ddddddddddd"]
    assert found["missing-media"][0].startswith("eeeeeeeeeee: ")
    assert "aaaaaaaaaaa_4.png" in found["media-broken"][0]
    assert "ccccccccccc.wav" in found["media-short"][0]
    assert "media-no-video" not in found
    assert (told["probe"]["files"], told["probe"]["good"]) == (4, 2)
    assert (s4 / "todo.txt").read_text() == "eeeeeeeeeee\n"
    with pytest.raises(UsageError, match="not read from shards"):
        plan_shards(load_dataset("avs", s4), frame_side=32)


def test_data_check_tells_leaks_of_ms3_within_and_into_other_data_sets(avfs, ms3):
    write_files(ms3 / "AVE", AVE_FILES)
    told = avfs.json("data", "check", "avs_ms3", "--root", ".")
    shared = {(one["first"], one["second"]): one["count"] for one in told["overlaps"]}
    assert shared["avs_ms3/train", "avs_ms3/test"] == 1
    assert shared["avs_ms3/test", "ave/train"] == 2
    assert told["compared_with"] == ["ave"]
    shutil.rmtree(ms3 / "Multi-sources/ms3_data/visual_frames")
    told = avfs.json("data", "check", "avs_ms3", "--root", ".", status=1)
    assert "no-media" in {finding["code"] for finding in told["findings"]}


def test_official_lists():
    path = official("AVSBench") / "metadata.GAVS.csv"
    for subset, sizes in (("s4", [3452, 740, 740]), ("ms3", [296, 64, 64])):
        rows, report = read_list(path, subset)
        assert [sum(row.split == split for row in rows) for split in ("train", "val", "test")] == sizes
        lines = (path.parent / f"avs1_{subset}_test.ACL-SSL.csv").read_text().splitlines()
        names = {line.split(",")[0].rsplit("_", 1)[0] for line in lines}
        assert len(names) == sizes[-1]
        assert names == {row.name for row in rows if row.split == "test"}
        if subset == "s4":
            assert len({row.category for row in rows}) == 23
            assert report.find("misspelt-category").examples == ("zVfLHhs9uv8 'h orse'",)
            assert report.find("leaked-videos") is None
    assert report.find("leaked-videos").count == 56
    train = {row.name[:11] for row in rows if row.split == "train"}
    assert len({row.name[:11] for row in rows}) == 219
    assert sum(row.name[:11] in train for row in rows if row.split == "test") == 38


# -- metrics -----------------------------------------------------------------------------------------------------------


def masks(count=6, side=8):
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(count, side, side, generator=generator) > 0.6
    return (torch.rand(count, side, side, generator=generator) + 0.5 * truth) / 1.5, truth


def test_jaccard_agrees_with_sklearn_and_of_an_empty_truth_is_the_share_of_background():
    predicted, truth = masks()
    expected = [jaccard_score(t.flatten(), p.flatten() > 0.5) for p, t in zip(predicted, truth, strict=True)]
    torch.testing.assert_close(jaccard(predicted, truth), torch.tensor(expected).float())
    predicted = torch.tensor([[[0.9, 0.9], [0.1, 0.1]], [[0.9, 0.1], [0.1, 0.1]], [[0.1, 0.1], [0.1, 0.5]]])
    truth = torch.tensor([[[True, False], [True, False]], [[False, False]] * 2, [[False, False]] * 2])
    torch.testing.assert_close(jaccard(predicted, truth), torch.tensor([1 / 3, 3 / 4, 1.0]))


def test_f_curves_agree_with_counting_at_every_threshold():
    predicted, truth = masks()
    truth[2] = False
    expected = torch.zeros(6, 255, dtype=torch.float64)
    for column, threshold in enumerate(np.linspace(0, 1 - 1e-10, 255)):
        above = predicted.double() >= threshold
        right = (above & truth).sum((1, 2)).double()
        precision, recall = right / above.sum((1, 2)), right / truth.sum((1, 2))
        expected[:, column] = (1.3 * precision * recall / (0.3 * precision + recall)).nan_to_num(0)
    expected[2] = torch.nan
    torch.testing.assert_close(f_curves(predicted, truth), expected, equal_nan=True)


def test_published_f_score_depends_on_the_batch_and_the_other_does_not():
    predicted, truth = masks(8)
    truth[4:6] = False
    scores = MaskScores()
    scores.add(predicted[:5], truth[:5])
    scores.add(predicted[5:], truth[5:])
    curves = f_curves(predicted, truth)
    best = [curves[:2].mean(0).max(), curves[2:4].mean(0).max(), 0.0, curves[6:].mean(0).max()]  # empty batch: 0
    result = scores.result(batch=2)
    assert result["MF_published"] == pytest.approx(100 * sum(map(float, best)) / 4)
    assert result["MF"] == pytest.approx(100 * curves[[0, 1, 2, 3, 6, 7]].mean(0).max().item())
    assert scores.result(batch=8)["MF_published"] == pytest.approx(result["MF"])
    assert result["MJ"] == pytest.approx(100 * jaccard(predicted, truth).mean().item())


# -- the decoder -------------------------------------------------------------------------------------------------------


def inputs(clips=3):
    generator = torch.Generator().manual_seed(0)
    maps = [torch.randn(clips, 2, 6, 8, 8, generator=generator) for _ in STAGE_WIDTHS]
    return maps, torch.randn(clips, 2, 10, generator=generator)


@pytest.fixture
def decoder():
    torch.manual_seed(0)
    decoder = MaskDecoder([6] * 4, 10, channels=16, size=64)
    for tpavi in decoder.interact:  # as after some training: at first the sound has no say
        torch.nn.init.normal_(tpavi.batch_norm.weight)
    return decoder


def test_decoder_has_the_published_number_of_parameters():
    with torch.device("meta"):
        decoder, uncalled = MaskDecoder(STAGE_WIDTHS, AUDIO_WIDTH), Refine(256)
    number = sum(p.numel() for p in decoder.parameters())
    assert number + sum(p.numel() for p in uncalled.parameters()) == 19_877_569  # published, with a unit never called


def test_the_sum_of_attention_is_that_over_all_places_and_seconds():
    torch.manual_seed(0)
    theta, g = torch.randn(6, 4, 3, 5, dtype=torch.float64), torch.randn(6, 4, 3, 5, dtype=torch.float64)
    phi = torch.randn(2, 3, 4, dtype=torch.float64)
    for clip in range(2):
        rows = slice(3 * clip, 3 * clip + 3)
        query, value = (maps[rows].movedim(1, -1).reshape(-1, 4) for maps in (theta, g))
        key = phi[clip].repeat_interleave(3 * 5, dim=0)  # the sound of a second at each of its places
        plain = (query @ key.T / len(key)) @ value
        short = TPAVI.attend(theta, phi, g)[rows].movedim(1, -1).reshape(-1, 4)
        torch.testing.assert_close(short, plain)


def test_at_first_the_sound_has_no_say_and_maps_are_normalised():
    tpavi = TPAVI(16).train()
    maps = torch.randn(4, 16, 3, 3)
    out, sound = tpavi(maps, torch.randn(2, 2, AUDIO_WIDTH))
    torch.testing.assert_close(out, torch.nn.functional.layer_norm(maps.movedim(1, -1), (16,)).movedim(-1, 1))
    assert sound.shape == (4, 16)


def test_masks_do_not_depend_on_the_batch_and_listen(decoder):
    decoder.eval()
    maps, audio = inputs()
    logits, _ = decoder(maps, audio)
    assert logits.shape == (3, 2, 64, 64)
    for clip in range(3):
        alone, _ = decoder([stage[clip : clip + 1] for stage in maps], audio[clip : clip + 1])
        torch.testing.assert_close(alone[0], logits[clip], atol=1e-5, rtol=1e-4)
    assert not torch.allclose(decoder(maps, audio.flip(0))[0], logits)


def test_loss_counts_labelled_frames_alone_and_adds_the_matching_term(decoder):
    maps, audio = inputs(2)
    logits, stages = decoder(maps, audio)
    truth, labelled = torch.rand(2, 2, 64, 64) > 0.5, torch.tensor([[True, False], [True, False]])
    plain = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], truth[:, 0].float())
    torch.testing.assert_close(mask_loss(logits, truth, labelled, stages), plain)
    terms = []
    for features, sound in stages:
        mask = torch.sigmoid(torch.nn.functional.avg_pool2d(logits.flatten(0, 1), 64 // features.shape[-1]))
        masked = (features * mask[:, None]).mean((2, 3)).softmax(-1)
        target = sound.softmax(-1)
        terms.append((target * (target.log() - masked.log())).sum())
    torch.testing.assert_close(mask_loss(logits, truth, labelled, stages, 0.5), plain + 0.5 * sum(terms) / 4)


def test_decoder_learns_clips_by_heart_from_the_sound_alone(decoder):
    torch.manual_seed(1)
    maps, audio = inputs(4)
    maps = [stage[:1, :1].expand(4, -1, -1, -1, -1) for stage in maps]  # only the sound tells them apart
    truth = torch.zeros(4, 1, 64, 64, dtype=torch.bool)
    for clip in range(4):
        truth[clip, :, 16 * clip : 16 * clip + 16] = True
    optimizer = torch.optim.Adam(decoder.parameters(), lr=5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        logits, stages = decoder(maps, audio[:, :1])
        mask_loss(logits, truth, torch.ones(4, 1, dtype=torch.bool), stages).backward()
        optimizer.step()
    assert jaccard(torch.sigmoid(logits).flatten(0, 1), truth.flatten(0, 1)).mean() > 0.8
