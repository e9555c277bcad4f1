"""Class means of the support beside the texts: their arithmetic, when they are taken, and that they travel."""

import json

import numpy as np
import pytest
import torch
from command_support import Commands
from fewshot_worlds import CLASSES, write_class_folders
from training_support import backbone, texts

from avfewshot.config import TrainingConfig
from avfewshot.errors import WeightsError
from avfewshot.inference.loading import load
from avfewshot.inference.logits import ClassTexts
from avfewshot.models.anchors import SupportAnchors
from avfewshot.models.build import build_model, load_model
from avfewshot.models.checkpoint import load_adapter
from avfewshot.training.fewshot import anchors_are_worth
from avfewshot.training.objective import ClipEmbeddings, Objective

LABELS = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=bool)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), 1e-12)


@pytest.fixture
def anchors():
    rng = np.random.default_rng(0)
    visual, audio = unit(rng.normal(size=(4, 6))), unit(rng.normal(size=(4, 7)))
    audio[2] = 0  # a clip without sound
    return SupportAnchors("abc", torch.tensor(visual), torch.tensor(audio), torch.tensor(LABELS))


@pytest.mark.parametrize("left_out", [None, 0, 1])
@pytest.mark.parametrize("modality", ["visual", "audio"])
def test_means_are_those_of_the_other_clips(anchors, modality, left_out):
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(7, 7)))[0]
    turn = torch.tensor(turn[:6, :6] if modality == "visual" else turn, dtype=torch.float32)

    def project(units):
        return torch.nn.functional.normalize(units @ turn, dim=-1)

    [found] = anchors.means(modality, project, leave_out=[left_out])
    given = getattr(anchors, modality)
    rows = [row for row in range(4) if row != left_out and given[row].norm() > 0]
    expected = np.stack([unit(sum(project(given[r]).numpy() for r in rows if LABELS[r, c])) for c in (0, 1)])
    np.testing.assert_allclose(found[:2], expected, atol=1e-6)
    # The third class has no clip: it stands at the middle, as the background does.
    np.testing.assert_allclose(found[2], expected.mean(0), atol=1e-6)
    np.testing.assert_allclose(found[3], expected.mean(0), atol=1e-6)


def test_a_class_that_would_lose_its_only_clip_leaves_the_texts_alone(anchors):
    alone = SupportAnchors("abc", anchors.visual[:3], anchors.audio[:3], anchors.labels[:3])
    lost, kept = alone.means("visual", lambda units: units, leave_out=[2, 0])
    assert not lost.any()
    assert kept.any()


@pytest.fixture
def model(anchors):
    model = build_model(backbone(), TrainingConfig(adapter="none"))
    model.anchors = anchors
    return model


def test_training_logits_leave_the_clip_out_and_predictions_do_not(anchors, model):
    words = ClassTexts(texts().visual, texts().audio, tuple("abc"))
    objective = Objective(TrainingConfig(), words, per_second=False)
    own, seen = (
        objective.predict(model, [ClipEmbeddings(anchors.visual[:1], anchors.audio[:1], row)])[0] for row in (0, None)
    )
    # Compared with a mean that holds the clip itself, it looks more like its class.
    assert seen.log_probabilities[0] > own.log_probabilities[0] + 1e-3
    assert torch.allclose(words.projected(model).visual, words.visual + model.class_means("visual")[0])


def test_means_stand_beside_their_own_classes_alone(model):
    plain = texts()
    named = ClassTexts(plain.visual[[1, 0, 3]], plain.audio[[1, 0, 3]], ("b", "a"))  # in another order, not all
    expected = plain.visual[[1, 0, 3]] + model.class_means("visual")[0][[1, 0, 3]]
    assert torch.allclose(named.projected(model).visual, expected)
    foreign = ClassTexts(plain.visual, plain.audio, ("a", "b", "zebra"))
    assert torch.allclose(foreign.projected(model).visual, plain.visual)


@pytest.mark.parametrize(
    ("right", "one_shot", "better", "multiplied"),
    [
        ((10, 50, 80), False, True, True),
        ((10, 50, 52), False, True, False),
        ((48, 50, 90), False, False, False),
        ((10, 10, 90), True, True, False),
        ((60, 10, 90), True, False, False),
    ],
)
def test_means_are_taken_where_they_answer_more_and_multiplied_where_that_answers_still_more(
    right, one_shot, better, multiplied
):
    answers = [np.arange(100) < number for number in right]
    *found, told = anchors_are_worth(*answers, one_shot=one_shot, chance=0.1)
    assert found == [better, multiplied]
    assert told.startswith(f"texts {right[0]} %, class means {right[1]} % of the support")
    assert told.endswith(f"with fusion product {right[2]} %") == multiplied


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("anchors")
    write_class_folders(folder / "my_clips", clips=5)
    (folder / "codes").mkdir()
    for number, name in enumerate(CLASSES):  # names of which the text branches know nothing
        (folder / "codes" / f"class_{number}").symlink_to(folder / "my_clips" / name)
    return folder


def fewshot(world, data: str, *more: str, name: str = "") -> tuple:
    """A run on a folder of clips, and what was told."""
    options = ("--method", "dgsct", "--backbone", "tiny", "--device", "cpu", "--epochs", "1", "--val-shots", "1", *more)
    avfs = Commands(world)
    _, err = avfs("fewshot", *options, "--data", data, "--shots", "2", "--name", name or data)
    return avfs.folder_of(name or data), " ".join(err.split())


@pytest.mark.parametrize(("options", "fusion"), [((), "product"), (("--fusion", "weighted"), "weighted")])
def test_a_model_whose_class_means_are_multiplied_predicts_so(world, monkeypatch, options, fusion):
    monkeypatch.setattr("avfewshot.training.fewshot.anchors_are_worth", lambda *rows, **more: (True, True, ""))
    run, _ = fewshot(world, "codes", *options, "--max-steps", "1", name=fusion)
    assert load_adapter(run).config.decision["fusion"] == fusion
    assert load(adapter=run, device="cpu").fusion == fusion


def test_they_are_taken_where_names_mean_nothing_and_travel_with_the_run(world):
    codes, err = fewshot(world, "codes")
    assert "anchors texts and class means (texts " in err
    checkpoint = load_adapter(codes)
    assert checkpoint.tensors["anchors.labels"].sum() == 6
    record = json.loads((codes / "seed-1" / "result.json").read_text())
    assert record["results"]["trained"]["metrics"]["top1"]["value"] > 0.6
    classifier = load(adapter=codes, device="cpu")
    results = classifier.classify(sorted((world / "my_clips" / CLASSES[2]).glob("*.mp4")))  # the classes are in the run
    assert list(results[0].scores) == [f"class_{number}" for number in range(3)]
    assert [result.label for result in results].count("class_2") >= 4
    for name, tensor in (("visual", torch.zeros(6, 3)), ("labels", torch.zeros(6, 9, dtype=torch.bool))):
        broken = {**checkpoint.tensors, f"anchors.{name}": tensor}
        with pytest.raises(WeightsError, match=f"anchors.{name}"):
            load_model(type(checkpoint)(checkpoint.path, broken, checkpoint.config), classifier.backbone)
    known, err = fewshot(world, "my_clips")
    assert "anchors texts (" in err
    assert not any(name.startswith("anchors") for name in load_adapter(known).tensors)
