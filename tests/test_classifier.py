"""The classifier on real files, with the tiny architecture and random weights."""

import math
import shutil
import threading
from pathlib import Path

import pytest
import torch
from media_factory import tone, write_audio, write_media
from PIL import Image
from torch.nn import functional as F
from torchaudio.functional import resample

import avfewshot
from avfewshot.config import ZeroshotConfig, settings_of
from avfewshot.errors import MediaError, UsageError
from avfewshot.inference.classifier import DEFAULT_FUSION, DEFAULT_POOL, Classifier
from avfewshot.inference.loading import load
from avfewshot.inference.results import ClipResult, Failure
from avfewshot.labels import LabelSet
from avfewshot.media.reader import read_clip
from avfewshot.models.fusion import FUSIONS, POOLS, predict_clips
from avfewshot.reports.writers import is_finite

LABELS = ("red ball", "bell", "dog")


@pytest.fixture(scope="module")
def classifier() -> Classifier:
    return load("tiny", device="cpu", precision="fp32", weights="random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_media(folder / "both.mp4", seconds=2.6, audio=tone(2.6))
    write_media(folder / "silent.mp4", seconds=2.0)
    write_audio(folder / "sound.wav", tone(1.4))
    (folder / "notes.mp4").write_text("no video")
    return folder


def one(classifier: Classifier, item, labels=LABELS, **options) -> ClipResult:
    """The only result."""
    (result,) = classifier.classify(item, labels, **options)
    return result


def assert_values(found: dict[str, float], expected: torch.Tensor) -> None:
    torch.testing.assert_close(torch.tensor(list(found.values())).double(), expected.double(), rtol=0, atol=1e-5)


def test_a_result_follows_from_embeddings_and_label_features(classifier, folder):
    result, embeddings = one(classifier, folder / "both.mp4", pool="mean"), classifier.embed(folder / "both.mp4")
    of_sight, of_sound = classifier.embed_labels(LABELS)
    visual = (classifier.backbone.visual_scale * embeddings.visual @ of_sight.T).softmax(-1)
    audio = (classifier.backbone.audio_scale * embeddings.audio @ of_sound.T).softmax(-1)
    share = visual.amax(-1) / (visual.amax(-1) + audio.amax(-1))
    fused = share[:, None] * visual + (1 - share)[:, None] * audio
    assert_values(result.scores, fused.mean(0))
    assert_values(result.visual, visual.mean(0))
    assert_values(result.audio, audio.mean(0))
    assert result.weights["visual"] == pytest.approx(share.mean().item(), abs=1e-5)
    assert result.label == LABELS[fused.mean(0).argmax()]
    assert result.score == result.scores[result.label] == max(result.scores.values())
    for segment, scores, weight in zip(result.segments, fused, share, strict=True):
        torch.testing.assert_close(torch.tensor(segment.scores), scores, rtol=0, atol=1e-5)
        assert segment.weights["visual"] == pytest.approx(weight.item(), abs=1e-5)
        assert segment.label == LABELS[scores.argmax()]


def test_event_pooling_uses_the_templates_background(classifier, folder):
    embeddings, logits, backgrounds = classifier.embed(folder / "both.mp4"), [], []
    for name, features in zip(("visual", "audio"), classifier.embed_labels(LABELS), strict=True):
        scaled = getattr(classifier.backbone, f"{name}_scale") * getattr(embeddings, name).double()
        texts = getattr(classifier.templates, f"background_{name}")
        background = getattr(classifier.backbone, f"{name}_text").encode(texts).double().mean(0)
        logits.append(scaled @ features.double().T)
        backgrounds.append(scaled @ F.normalize(background, dim=-1))
    expected = predict_clips(*logits, pool="event", backgrounds=backgrounds)
    result = one(classifier, folder / "both.mp4", pool="event")
    assert_values(result.scores, expected.probabilities)
    assert_values(result.audio, expected.audio)
    assert result.scores != one(classifier, folder / "both.mp4", pool="mean").scores


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("pool", POOLS)
def test_everything_that_should_sum_to_one_does(classifier, folder, fusion, pool):
    paths = [folder / name for name in ("both.mp4", "silent.mp4", "sound.wav")]
    for result in classifier.classify(paths, LABELS, fusion=fusion, pool=pool):
        assert is_finite(result)
        for shares in (result.scores, result.visual, result.audio, result.weights):
            assert shares is None or math.fsum(shares.values()) == pytest.approx(1, abs=1e-9)
        for segment in result.segments:
            assert math.fsum(segment.scores) == pytest.approx(1, abs=1e-9)
            assert math.fsum(segment.weights.values()) == pytest.approx(1, abs=1e-9)
    alone = one(classifier, folder / "both.mp4", ["dog"], fusion=fusion, pool=pool)
    assert alone.scores == {"dog": pytest.approx(1)}
    assert alone.weights == pytest.approx({"visual": 0.5, "audio": 0.5})


def test_one_modality_alone_decides_and_that_is_said_unless_it_was_asked_for(classifier, folder):
    paths = [folder / name for name in ("silent.mp4", "sound.wav", "both.mp4")]
    silent, sound, both = classifier.classify([str(path) for path in paths], LABELS)
    assert silent.audio is None
    assert silent.scores == silent.visual
    assert silent.weights == {"visual": 1.0, "audio": 0.0}
    assert silent.warnings == ["no audio track", "classified by sight alone"]
    assert sound.visual is None
    assert sound.weights == {"visual": 0.0, "audio": 1.0}
    assert sound.warnings[-1] == "classified by sound alone"
    assert both.warnings == []
    silent, no_picture, seen = classifier.classify(paths, LABELS, modality="visual")
    assert seen.audio is None
    assert (seen.warnings, silent.warnings) == ([], [])
    assert isinstance(no_picture, Failure)
    assert seen.visual == pytest.approx(both.visual)


def test_segments_are_seconds_and_end_with_the_file_however_long_it_is(classifier, folder, tmp_path):
    long = write_audio(tmp_path / "long.wav", tone(64.7, rate=8000), rate=8000)
    both, sound, hour = classifier.classify([folder / "both.mp4", folder / "sound.wav", long], LABELS)
    assert [(segment.start, segment.end) for segment in both.segments[:2]] == [(0.0, 1.0), (1.0, 2.0)]
    assert both.segments[-1].start == 2.0
    assert both.segments[-1].end == pytest.approx(both.duration, abs=1e-9)
    assert 2.5 < both.duration < 2.8
    assert [(segment.start, segment.end) for segment in sound.segments] == [(0.0, 1.0)]
    assert one(classifier, folder / "both.mp4", segments=False).segments == []
    assert len(hour.segments) == 65
    assert hour.segments[-1].end == pytest.approx(64.7, abs=0.01)


def test_bad_files_fail_alone_and_order_is_kept(classifier, folder):
    names = ["notes.mp4", "both.mp4", "missing.mp4", "both.mp4"]
    results = classifier.classify([folder / name for name in names], LABELS)
    assert [result.path for result in results] == [str(folder / name) for name in names]
    assert [type(result) for result in results] == [Failure, ClipResult, Failure, ClipResult]
    assert results[1] == results[3]
    assert classifier.classify([], LABELS) == []


def test_names_that_begin_with_a_tilde_are_names(classifier, folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("~.mp4", "~root"):
        shutil.copy(folder / "both.mp4", name)
    results = classifier.classify(["~nobody-here/a.mp4", "~.mp4", Path("~root")], LABELS)
    assert [result.ok for result in results] == [False, True, True]
    assert results[0].error == "no such file"


def test_embeddings_are_the_towers_unit_vectors_and_label_features_those_of_the_wordings(classifier, folder):
    embeddings, clip = classifier.embed(folder / "both.mp4"), read_clip(folder / "both.mp4", frame_size=64)
    with torch.no_grad():
        torch.testing.assert_close(embeddings.visual, F.normalize(classifier.backbone.visual(clip.frames), dim=-1))
        audio = classifier.backbone.audio(clip.audio_segments)
        torch.testing.assert_close(embeddings.audio, F.normalize(audio, dim=-1))
    assert embeddings.visual.dtype == embeddings.audio.dtype == torch.float32
    assert classifier.embed(folder / "both.mp4", modality="audio").visual is None
    with pytest.raises(MediaError, match=r"missing\.mp4: no such file"):
        classifier.embed(folder / "missing.mp4")
    visual, audio = classifier.embed_labels(LABELS)
    other, _ = classifier.embed_labels(LabelSet(LABELS, ("blue car", "bell", "dog")))
    assert visual.shape == audio.shape == (3, 128)
    torch.testing.assert_close(visual.norm(dim=-1), torch.ones(3))
    assert not torch.allclose(visual[0], other[0])
    assert torch.equal(visual[1:], other[1:])


def test_results_stream_and_closing_them_stops_the_decoding_threads(classifier, folder):
    before = set(threading.enumerate())
    results = classifier.iter_classify([folder / "both.mp4"] * 30, LABELS, batch_size=3)
    assert next(results).path == str(folder / "both.mp4")
    assert set(threading.enumerate()) - before
    results.close()
    assert not set(threading.enumerate()) - before


def test_info_tells_what_made_the_results_and_names_unknown_words_once(classifier):
    labels = LabelSet(("dog", "quokka"), ("dog", "a zyzzyva frying in a zyzzyva"))
    info = classifier.info(labels, fusion="product", pool="event")
    assert (info.backbone, info.adapter, info.device, info.precision) == ("tiny", None, "cpu", "fp32")
    assert (info.fusion, info.pool) == ("product", "event")
    assert info.labels == ["dog", "quokka"]
    assert info.wordings == list(labels.wordings)
    assert "zyzzyva" in classifier.unknown_words(labels)
    cut, unknown = info.warnings  # a word that is not known is spelt out, beyond the context of 16 tokens
    assert "Too long" in cut
    assert "quokka" in cut
    assert unknown.count("zyzzyva") == 1
    assert "quokka" in classifier.unknown_words(["quokka"])
    assert "quokka" not in classifier.unknown_words(labels)  # the wording is read, not the name


def test_bf16_stays_close_to_fp32_and_another_seed_does_not(folder, classifier):
    half = load("tiny", device="cpu", precision="bf16", weights="random")
    got, expected = half.embed(folder / "both.mp4"), classifier.embed(folder / "both.mp4")
    assert half.info(LABELS).precision == "bf16"
    assert got.visual.dtype == torch.float32
    assert F.cosine_similarity(got.visual, expected.visual, dim=-1).min() > 0.999
    assert F.cosine_similarity(got.audio, expected.audio, dim=-1).min() > 0.999
    assert not torch.equal(got.visual, expected.visual)
    for features, others in zip(half.embed_labels(LABELS), classifier.embed_labels(LABELS), strict=True):
        assert torch.equal(features, others)  # texts are always encoded in float32
    assert is_finite(one(half, folder / "both.mp4"))
    again, other = (load("tiny", device="cpu", precision="fp32", weights="random", seed=seed) for seed in (0, 1))
    assert one(again, folder / "both.mp4") == one(classifier, folder / "both.mp4") != one(other, folder / "both.mp4")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "cuda:77"}, "This machine has: cpu"),
        ({"precision": "fp8"}, "fp32, bf16, fp16"),
        ({"templates": "nonsense"}, "nonsense"),
        *[({name: 3}, f"{name} .*3") for name in ("backbone", "device", "adapter")],
        *[({"seed": "x"}, "seed"), ({"precision": None}, "precision"), ({"templates": []}, "templates")],
    ],
)
def test_what_cannot_be_loaded_is_said_before_weights_are_read(monkeypatch, options, message):
    assert avfewshot.load is load
    monkeypatch.setattr("avfewshot.inference.loading.build_backbone", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(UsageError, match=message):
        load(**{"backbone": "tiny", "weights": "random", **options})


def test_command_line_and_python_have_the_same_defaults():
    settings = settings_of(ZeroshotConfig)
    assert (settings["fusion"].default, settings["pool"].default) == (DEFAULT_FUSION, DEFAULT_POOL)
    assert tuple(settings["fusion"].words) == FUSIONS
    assert set(settings["pool"].words) == set(POOLS)


# What can be given from Python.


def rows(path) -> dict:
    clip = read_clip(path, frame_size=None)
    return {"frames": clip.frames, "waveform": clip.waveform, "rate": 48_000}


def test_frames_and_sound_in_memory_are_classified_as_the_file_they_came_from(classifier, folder):
    expected, given = one(classifier, folder / "both.mp4"), rows(folder / "both.mp4")
    arrays = {"frames": given["frames"].permute(0, 2, 3, 1).numpy(), "waveform": given["waveform"].numpy()}
    for item in (given, {**arrays, "rate": 48_000}):
        result = one(classifier, item)
        assert result.ok
        assert result.path == "input 1"
        assert result.scores == pytest.approx(expected.scores, abs=1e-6)
        assert len(result.segments) == 3
    visual = one(classifier, given["frames"])
    assert visual.visual == pytest.approx(expected.visual, abs=1e-6)
    assert visual.warnings[-1] == "classified by sight alone"
    stereo = (given["waveform"].repeat(2, 1), 48_000)
    assert one(classifier, stereo).audio == pytest.approx(expected.audio, abs=1e-6)


def test_sound_of_another_rate_and_of_integers_is_brought_to_the_models(classifier):
    rate = 16_000
    wave = (0.1 * torch.randn(2 * rate, generator=torch.Generator().manual_seed(0))).clamp(-0.9, 0.9)
    expected = classifier.embed((resample(wave, rate, 48_000), 48_000)).audio
    for given in ((wave, rate), ((wave * 32768).short().numpy(), rate)):
        torch.testing.assert_close(classifier.embed(given).audio, expected, atol=1e-3, rtol=0)


def test_pictures_are_clips_of_one_second(classifier, folder):
    frames = rows(folder / "silent.mp4")["frames"]
    pictures = [Image.fromarray(frame.permute(1, 2, 0).numpy()) for frame in frames]
    results = classifier.classify(pictures, LABELS)
    assert [result.path for result in results] == ["input 1", "input 2"]
    for result, segment in zip(results, one(classifier, frames).segments, strict=True):
        assert list(result.visual.values()) == pytest.approx(segment.scores, abs=1e-6)
    assert classifier.embed(pictures[0]).visual.shape[0] == 1


def test_folders_and_globs_are_expanded_and_failures_can_be_used_like_results(classifier, folder):
    results = classifier.classify([folder, str(folder / "s*.wav")], LABELS)
    names = ["both.mp4", "notes.mp4", "silent.mp4", "sound.wav", "sound.wav"]
    assert [Path(result.path).name for result in results] == names
    assert [result.ok for result in results] == [True, False, True, True, True]
    embedded = classifier.embed(folder)
    assert [item.ok for item in embedded] == [True, False, True, True]
    assert embedded[0].path == str(folder / "both.mp4")
    with pytest.raises(UsageError, match="No media file matches"):
        classifier.classify(str(folder / "*.mkv"), LABELS)


def test_results_become_a_table_and_progress_is_told(classifier, folder, capsys):
    pandas = pytest.importorskip("pandas")
    told, paths = [], [folder / "both.mp4", folder / "notes.mp4"]
    results = classifier.classify(paths, LABELS, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]
    classifier.classify(paths, LABELS, progress=True)
    assert "2/2" in capsys.readouterr().err
    table = results.to_pandas()
    assert isinstance(table, pandas.DataFrame)
    assert list(table.columns[:5]) == ["path", "duration", "label", "score", "error"]
    assert table["label"][0] == results[0].label
    assert table[f"score_{LABELS[1]}"][0] == results[0].scores[LABELS[1]]
    assert table["error"][1] == results[1].error
    seconds = results.to_pandas(segments=True)
    assert seconds["start"].tolist()[:3] == [0, 1, 2]
    assert seconds["label"][2] == results[0].segments[2].label


def test_wordings_of_labels_can_be_a_dictionary(classifier, folder):
    wordings = {"ball": "red ball", "ring": "bell"}
    torch.testing.assert_close(classifier.embed_labels(wordings), classifier.embed_labels(["red ball", "bell"]))
    assert set(one(classifier, folder / "sound.wav", wordings).scores) == {"ball", "ring"}
    with pytest.raises(UsageError, match="no wording"):
        classifier.classify(folder / "sound.wav", {"ball": ""})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": None}, "NoneType cannot be classified"),
        ({"paths": 3}, "int cannot be classified"),
        ({"paths": b"a.mp4"}, "bytes cannot be classified"),
        ({"paths": [3.5]}, "input 1: float cannot"),
        ({"paths": {"film": 1}}, "film means nothing"),
        ({"paths": {"waveform": [0.0] * 10}}, "rate of the waveform cannot be None"),
        ({"paths": torch.zeros(2, 3, 8, 8)}, "frames are uint8"),
        ({"paths": torch.zeros(2, 8, 8, dtype=torch.uint8)}, r"not \[1, 2, 8, 8\]"),
        ({"paths": (torch.full((9,), math.nan), 8000)}, "not finite"),
        ({"paths": {}}, "nothing in it"),
        ({"labels": None}, "Which labels"),
        ({"labels": 3}, "list of texts"),
        ({"labels": [1, 2]}, "must be a text"),
        ({"labels": {"a": None}}, "must be a text"),
        ({"labels": []}, "no label"),
        ({"labels": ["dog", "dog"]}, "dog"),
        ({"labels": "dog"}, "text"),
        ({"modality": 3}, "There is no modality 3.*"),
        ({"modality": "text"}, "av, visual, audio"),
        ({"fusion": "sum"}, "weighted, product"),
        ({"pool": "max"}, "mean, event"),
        ({"workers": -1}, "at least 0"),
        ({"workers": "x"}, "workers must be a whole number"),
        ({"workers": True}, "workers must be a whole number"),
        ({"batch_size": 0}, "from 1 on"),
        ({"batch_size": "many"}, "from 1 on"),
        ({"batch_size": 2.5}, "batch size"),
        ({"frame_backend": "opencv"}, "auto, decord, pyav"),
    ],
)
def test_what_cannot_be_used_is_said_before_any_work(classifier, folder, change, message):
    with pytest.raises(UsageError, match=message):
        classifier.iter_classify(**{"paths": folder / "sound.wav", "labels": LABELS, **change})


def test_a_second_run_over_the_same_files_decodes_nothing_and_says_the_same(classifier, folder, tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("both.mp4", "notes.mp4", "sound.wav")]
    for path in paths:
        path.write_bytes((folder / path.name).read_bytes())
    caching = load("tiny", device="cpu", precision="fp32", weights="random", cache=True)
    first = caching.classify(paths, LABELS)
    assert [result.ok for result in first] == [True, False, True]
    read = []
    monkeypatch.setattr(
        "avfewshot.inference.embedding.read_items",
        lambda items, **_: (read.append(item) or Failure(str(item), "no decoding") for item in items),
    )
    again = caching.classify(paths, LABELS)
    assert read == [paths[1]]
    assert [again[0], again[2]] == [first[0], first[2]]
    entry = next(p for p in caching._cache.disk.folder.iterdir() if caching._cache.disk.entry(p.stem) == p)
    entry.write_bytes(b"damaged")
    read.clear()
    caching.classify(paths, LABELS)
    assert len(read) == 2
