"""Classification with trained adapters on real files: the tiny architecture, random weights, tensors set by hand."""

import dataclasses
import json
import os

import numpy as np
import pytest
import torch
from media_factory import tone, write_audio, write_media
from scipy.special import softmax

from avfewshot.config import TrainingConfig
from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.text import label_features
from avfewshot.errors import AvfsError, DataError, UsageError, WeightsError
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.features import Embedder
from avfewshot.inference.loading import load
from avfewshot.inference.logits import background_feature
from avfewshot.media.reader import read_clip
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model, load_model
from avfewshot.models.checkpoint import AdapterConfig, load_adapter, write_adapter

LABELS = ("red ball", "bell", "dog")
OPTIONS = {"device": "cpu", "precision": "fp32", "weights": "random"}
WINDOW = 2
SENSES = ("visual", "audio")


@pytest.fixture(scope="module")
def backbone():
    return build_backbone("tiny", weights="random")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("media")
    write_media(folder / "both.mp4", seconds=4.6, audio=tone(4.6))
    write_media(folder / "silent.mp4", seconds=2.0)
    write_audio(folder / "sound.wav", tone(2.4))
    return folder


def checkpoint(folder, backbone, /, *, trained: bool = True, training=None, **changes):
    """Write a checkpoint whose tensors were moved a little, or are as they were drawn."""
    training = training or TrainingConfig(pool="mean", fusion="product", window=7)
    model = build_model(backbone, training, seed=3)
    if trained:
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    names = {"labels": ("cat", "cow"), "wordings": ("cat", "cow"), "templates": "toy", "backbone": "tiny"}
    config = AdapterConfig(task="folder", **names, identity=backbone.identity, training=training.to_dict(), seed=3)
    return write_adapter(folder, model.trainable_state(), dataclasses.replace(config, **changes))


def edit(folder, change) -> None:
    """Write the configuration of a checkpoint anew."""
    document = json.loads((folder / "config.json").read_text())
    change(document)
    (folder / "config.json").write_text(json.dumps(document))


@pytest.fixture(scope="module")
def make(tmp_path_factory, backbone):
    """Write a checkpoint and load a classifier with it."""

    def made(*, options=None, **changes) -> Classifier:
        path = checkpoint(tmp_path_factory.mktemp("run") / "best-1", backbone, **changes)
        return load(adapter=path.parent, **OPTIONS, **(options or {}))

    return made


@pytest.fixture(scope="module")
def plain() -> Classifier:
    return load("tiny", **OPTIONS)


@pytest.fixture(scope="module")
def adapted(make) -> Classifier:
    return make(decision={"blend": 1.0, "window": WINDOW, "pool": "mean", "fusion": "weighted"})


def files(folder) -> list:
    return [folder / name for name in ("both.mp4", "silent.mp4", "sound.wav")]


def numbers(result) -> list[float]:
    parts = [result.scores, result.visual or {}, result.audio or {}, result.weights]
    segments = [score for segment in result.segments for score in segment.scores]
    return [value for part in parts for value in part.values()] + segments


def test_an_untrained_adapter_and_none_of_a_trained_one_give_the_zero_shot_scores(make, plain, folder):
    pools = ("mean", "event")
    zero_shot = {pool: plain.classify(files(folder), LABELS, pool=pool) for pool in pools}
    for blend in (0.0, 0.4, 1.0):
        fresh = make(trained=False, decision={"blend": blend, "window": WINDOW})
        for pool in pools:
            results = fresh.classify(files(folder), LABELS, fusion="weighted", pool=pool)
            for got, expected in zip(results, zero_shot[pool], strict=True):
                assert numbers(got) == pytest.approx(numbers(expected), abs=1e-5)
                assert (got.label, got.warnings) == (expected.label, expected.warnings)
    none = make(decision={"blend": 0})
    for pool in pools:  # to the bit
        assert none.classify(files(folder), LABELS, fusion="weighted", pool=pool) == zero_shot[pool]


@torch.no_grad()
def logits_by_hand(classifier: Classifier, path, blend: float) -> dict[str, np.ndarray]:
    """(1 - blend) zero-shot + blend trained, in NumPy, window by window; the last column is the background."""
    model, backbone, templates = classifier.model, classifier.backbone, classifier.templates
    clip = read_clip(path, frame_size=64)
    frames, audio = clip.frames, clip.audio_segments
    windows = range(0, len(frames), WINDOW)
    trained = [model(frames[None, at : at + WINDOW], audio[None, at : at + WINDOW]) for at in windows]
    towers = AudioVisualModel(backbone)
    before = towers(frames[None], None)[0], towers(None, audio[None])[1]
    logits = {}
    for index, name in enumerate(("visual", "audio")):
        branch = getattr(backbone, f"{name}_text")
        background = background_feature(branch, getattr(templates, f"background_{name}")).float()
        texts = torch.cat((label_features(branch, LABELS, getattr(templates, name)), background[None]))
        pair = [None, None]
        pair[index] = texts
        projected = model.project_texts(*pair)[index].numpy().astype(np.float64)
        after = torch.cat([part[index][0] for part in trained]).numpy().astype(np.float64)
        zero_shot = getattr(backbone, f"{name}_scale") * before[index][0].numpy().astype(np.float64) @ texts.numpy().T
        learnt = model.temperatures.scale(name).item() * after @ projected.T
        assert np.abs(learnt - zero_shot).max() > 0.1
        logits[name] = (1 - blend) * zero_shot + blend * learnt
    return logits


@pytest.mark.parametrize("blend", [0.3, 1.0])
def test_scores_follow_from_blended_logits_and_the_projected_background(make, folder, blend, monkeypatch):
    classifier = make(decision={"blend": blend, "window": WINDOW, "pool": "mean", "fusion": "weighted"})
    passed, embed = [], Embedder.embed
    monkeypatch.setattr(Embedder, "embed", lambda self, items: passed.append(items) or embed(self, items))
    (result,) = classifier.classify(folder / "both.mp4", LABELS)
    assert len(passed) == 1  # files are decoded once for both models
    logits = logits_by_hand(classifier, folder / "both.mp4", blend)
    visual, audio = (softmax(logits[name][:, :-1], axis=-1) for name in ("visual", "audio"))
    share = (visual.max(-1) / (visual.max(-1) + audio.max(-1)))[:, None]
    fused = share * visual + (1 - share) * audio
    assert list(result.visual.values()) == pytest.approx(visual.mean(0), abs=1e-5)
    assert list(result.audio.values()) == pytest.approx(audio.mean(0), abs=1e-5)
    assert list(result.scores.values()) == pytest.approx(fused.mean(0), abs=1e-5)
    for segment, expected in zip(result.segments, fused, strict=True):
        assert segment.scores == pytest.approx(expected, abs=1e-5)
    (result,) = classifier.classify(folder / "both.mp4", LABELS, pool="event")
    for name, values in logits.items():
        weights = 1 / (1 + np.exp(values[:, -1] - values[:, :-1].max(-1)))
        expected = (weights[:, None] * softmax(values[:, :-1], axis=-1)).sum(0) / weights.sum()
        assert list(getattr(result, name).values()) == pytest.approx(expected, abs=1e-5)


def test_projectors_alone_blend_too(make, folder):
    training = TrainingConfig(adapter="none")
    logs = []
    for blend in (0.0, 0.5, 1.0):
        classifier = make(training=training, decision={"blend": blend})
        (result,) = classifier.classify(folder / "silent.mp4", LABELS, pool="mean")
        logs.append(np.log([segment.scores for segment in result.segments]))
    centred = [part - part.mean(-1, keepdims=True) for part in logs]  # logits, but for a constant a segment
    np.testing.assert_allclose(centred[1], (centred[0] + centred[2]) / 2, atol=1e-5)
    assert np.abs(centred[2] - centred[0]).max() > 1e-2


def test_embeddings_and_label_features_are_those_of_the_trained_model(adapted, plain, folder):
    embeddings, clip = adapted.embed(folder / "both.mp4"), read_clip(folder / "both.mp4", frame_size=64)
    backbone, templates = plain.backbone, adapted.templates
    features = [label_features(getattr(backbone, f"{n}_text"), LABELS, getattr(templates, n)) for n in SENSES]
    with torch.no_grad():
        first = adapted.model(clip.frames[None, :WINDOW], clip.audio_segments[None, :WINDOW])
        projected = adapted.model.project_texts(*features)
    for got, expected in zip((embeddings.visual, embeddings.audio), first, strict=True):
        torch.testing.assert_close(got[:WINDOW], expected[0], rtol=0, atol=1e-5)
    for got, expected in zip(adapted.embed_labels(LABELS), projected, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)
        assert not got.requires_grad


def test_the_checkpoint_says_what_is_not_set(make, plain, folder):
    decision = {"blend": 0.5, "window": 3, "pool": "event", "fusion": "product"}
    told = make(templates="single", decision=decision)
    info, single = told.info(LABELS), load("tiny", templates="single", **OPTIONS).templates
    assert (info.backbone, info.pool, info.fusion) == ("tiny", "event", "product")
    assert told.templates.visual == single.visual
    assert (told.blend, told.window) == (0.5, 3)
    # What is set counts before the checkpoint.
    other = make(templates="single", decision=decision, options={"templates": "default"})
    assert other.templates != single
    assert other.info(LABELS, pool="mean", fusion="weighted").pool == "mean"
    # A checkpoint that decides nothing counts alone and as it was trained.
    undecided = make()
    info = undecided.info(LABELS)
    assert (undecided.blend, undecided.window, info.pool, info.fusion) == (1.0, 7, "mean", "product")
    expected = undecided.classify(folder / "both.mp4", LABELS, pool="mean", fusion="product")
    assert undecided.classify(folder / "both.mp4", LABELS) == expected


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ({"blend": 1.5}, r"blend must be a number in \[0, 1\], not 1.5"),
        ({"blend": "all"}, "blend must be"),
        ({"blend": True}, "blend must be"),
        ({"blend": float("nan")}, "blend must be"),
        ({"window": 0}, "window must be a whole number from 1 on"),
        ({"pool": "max", "fusion": ["sum"]}, "fusion must be one of weighted, product.*pool must be one of"),
    ],
)
def test_a_decision_that_makes_no_sense_is_refused(make, decision, message):
    with pytest.raises(DataError, match=message) as caught:
        make(decision=decision)
    assert "config.json" in caught.value.message


def test_a_format_that_no_version_wrote_is_refused(tmp_path, backbone):
    folder = checkpoint(tmp_path / "adapter", backbone)
    for value in (0, -1, True, 2, "1", None):
        edit(folder, lambda document, value=value: document.update(format=value))
        with pytest.raises(DataError, match="has format"):
            load_adapter(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": ["dog", "dog"], "wordings": ["dog", "cat"]}, "a label occurs twice"),
        ({"support": {"ids": 5}}, "the ids of its support must be a list"),
    ],
)
def test_a_config_of_the_right_types_that_makes_no_sense_is_refused(tmp_path, backbone, change, message):
    folder = checkpoint(tmp_path / "adapter", backbone)
    edit(folder, lambda document: document.update(change))
    with pytest.raises(DataError, match=message):
        load_adapter(folder)


def test_another_backbone_is_refused(make):
    with pytest.raises(WeightsError, match="trained with other weights"):
        make(identity={"clip": "random:5", "clap": "random:5"})


@pytest.mark.parametrize("name", ["backbone", "templates"])
def test_a_backbone_or_templates_that_are_not_here_are_told_with_the_remedy(make, name):
    with pytest.raises(UsageError, match=f"best-1: its {name} '/nowhere/mine.yaml'.*--{name}"):
        make(**{name: "/nowhere/mine.yaml"})
    assert make(**{name: "/nowhere/mine.yaml"}, options={name: {"backbone": "tiny", "templates": "toy"}[name]})


@pytest.mark.parametrize("name", ["backbone", "templates"])
def test_a_checkpoint_does_not_choose_which_files_of_the_machine_are_read(tmp_path, backbone, name):
    secret = tmp_path / "secret.yaml"
    secret.write_text("the secret: {}\n")
    folder = checkpoint(tmp_path / "adapter", backbone)
    (folder / "link.yaml").symlink_to(secret)
    os.mkfifo(folder / "pipe.yaml")
    for value in (str(secret), "../secret.yaml", "link.yaml", "/dev/zero", "pipe.yaml"):
        edit(folder, lambda document, value=value: document.update({name: value}))
        with pytest.raises(UsageError, match="neither packaged nor a file of its folder") as caught:
            load(adapter=folder, **OPTIONS)
        assert "the secret" not in str(caught.value), value


def test_templates_of_ones_own_go_along_with_the_checkpoint(tmp_path, backbone):
    own = tmp_path / "mine.txt"
    own.write_text("a scene of {}\n")
    folder = checkpoint(tmp_path / "adapter", backbone, templates=str(own))
    own.unlink()
    assert load(adapter=folder, **OPTIONS).templates.visual == ("a scene of {}",)


def test_widths_are_compared_with_the_tensors_before_anything_is_allocated(tmp_path, backbone):
    folder = checkpoint(tmp_path / "adapter", backbone)
    for width, said in ((10**6, "instead of"), (10**9, "can be built"), (10**30, "can be built")):
        edit(folder, lambda document, width=width: document["training"].update(hidden=width))
        with pytest.raises(AvfsError, match=said):
            load(adapter=folder, **OPTIONS)


def test_a_path_without_a_checkpoint_is_an_error_before_weights_are_read(tmp_path, monkeypatch):
    monkeypatch.setattr("avfewshot.inference.loading.build_backbone", lambda *_, **__: pytest.fail("weights were read"))
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(AvfsError, match=path.name):
            load(adapter=path, **OPTIONS)


def test_a_ready_model_can_be_given(backbone, adapted, folder, tmp_path):
    model, _ = load_model(checkpoint(tmp_path / "given", backbone), backbone)
    classifier = Classifier(backbone, adapted.templates, model=model.train(), window=WINDOW)
    assert not classifier.model.training
    (got,) = classifier.classify(folder / "both.mp4", LABELS, pool="mean")
    (expected,) = adapted.classify(folder / "both.mp4", LABELS)
    assert numbers(got) == pytest.approx(numbers(expected), abs=1e-6)
    for options in ({"blend": 1.5}, {"blend": -0.1}, {"window": 0}):
        with pytest.raises(ValueError, match=r"cannot be|not 0"):
            Classifier(backbone, adapted.templates, model=model, **options)


def test_the_command_predicts_unknown_labels_with_an_adapter(adapted, avfs, folder, tmp_path):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    (tmp_path / "empty").mkdir()
    command = ("zeroshot", "--labels", "labels.txt", "--format", "json", str(folder / "both.mp4"), "--adapter")
    arguments = ("--weights", "random", "--device", "cpu", "--precision", "fp32")
    out, err = avfs(*command, adapted.adapter, *arguments)
    document = json.loads(out)
    assert (document["adapter"], document["backbone"]) == (adapted.adapter, "tiny")
    (expected,) = adapted.classify(folder / "both.mp4", LABELS)
    assert document["clips"][0]["scores"] == pytest.approx(expected.scores, abs=1e-5)
    assert f"tiny with {adapted.adapter} on cpu" in err
    assert avfs.refused(*command, "empty", status=1).startswith("error: empty: holds no adapter checkpoint.\n")
