"""What a few-shot run chooses hangs on support and validation clips alone: the test split comes in when all is chosen.

On stand-in towers and made-up clips, whose class is the first number of their names.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from standin_towers import StandInTower
from training_support import backbone, read, same, texts

from avfewshot.config import TrainingConfig
from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.description import ClassEntry, Description
from avfewshot.encoders.tower import Encoder
from avfewshot.evaluation.evaluator import UNTRAINED
from avfewshot.prompts import load_templates
from avfewshot.training.fewshot import TRAINED, FewShot
from avfewshot.training.fewshot_setting import RunObserver
from avfewshot.training.protocol import Callback

NAMES = ("a", "b", "c")
SECONDS = 3
COUNTS = {"train": 3, "val": 2, "test": 4}
FIRST = {"train": 0, "val": 100, "test": 200}


def dataset(task: str, **counts: int) -> Dataset:
    """Clips of three classes; where seconds are labelled, the last one of each is background."""
    samples = []
    for split, count in {**COUNTS, **counts}.items():
        for label in range(len(NAMES)):
            for number in range(FIRST[split], FIRST[split] + count):
                path = Path(f"{label}-{number}.mp4")
                seconds = (label,) * (SECONDS - 1) + (len(NAMES),) if task == "ave" else None
                samples.append(Sample(path.stem, (label,), split, len(samples), segments=seconds, path=path))
    classes = tuple(ClassEntry(name, name) for name in NAMES)
    description = Description("toy", "made-up clips", "folder", (task,), classes, (), segments=SECONDS)
    return Dataset(description, Path(), NAMES, NAMES, tuple(samples))


def mislabelled(data: Dataset) -> Dataset:
    """The same clips, those of the test split with the label of the next class."""

    def wrong(sample: Sample) -> Sample:
        if sample.split != "test":
            return sample
        label = (sample.label + 1) % len(NAMES)
        seconds = sample.segments
        if seconds is not None:
            seconds = (len(NAMES),) + (label,) * (SECONDS - 1)
        return replace(sample, labels=(label,), segments=seconds)

    return data.with_samples(wrong(sample) for sample in data.samples)


class Diary(RunObserver, Callback):
    """Writes down what is read and judged, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def training(self, seed: int, epochs: int) -> Callback:
        return self

    def on_validate(self, epoch, metrics, best):
        self.lines.append(f"validated {epoch}")

    def read(self, path: Path):
        self.lines.append(path.stem)
        return read(path)


@pytest.fixture
def make_run(monkeypatch, tmp_path):
    """Make a run on stand-ins; its diary is its observer."""
    monkeypatch.setattr("avfewshot.evaluation.evaluator.class_texts", lambda *_, **__: texts())
    plain = backbone()

    def make(data: Dataset, name: str = "run", *, whole: bool = False, **changes) -> FewShot:
        settings = {"shots": 2, "epochs": 3, "hidden": 4, "workers": 0, "precision": "fp32", "lr": 3e-3, "patience": 0}
        task = data.description.tasks[0]
        diary = Diary()
        run = FewShot(
            data,
            TrainingConfig(**{"task": task, "method": "dgsct", "val_shots": "all", **settings, **changes}),
            replace(plain, visual=Whole(plain.visual)) if whole else plain,
            load_templates("single"),
            "single",
            torch.device("cpu"),
            tmp_path / name,
            observer=diary,
        )
        run.evaluator.read = diary.read
        return run

    return make


class Whole(Encoder):
    """A stand-in that is run whole."""

    image_size = 8

    def __init__(self, tower: StandInTower) -> None:
        super().__init__()
        self.inner, self.output_dim = tower, tower.output_dim

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.inner(inputs)


@pytest.mark.parametrize("whole", [False, True])
def test_auto_leaves_adapters_out_where_towers_are_run_whole_and_says_so(make_run, monkeypatch, whole):
    monkeypatch.setattr(Diary, "say", lambda self, text: self.lines.append(text))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    run = make_run(dataset("folder"), whole=whole, method="auto")
    assert run.trains is not whole
    assert not torch.backends.cudnn.allow_tf32  # whether it trains or not, float32 is float32
    assert any("DG-SCT is left out" in line for line in run.observer.lines) is whole


def contents(folder: Path) -> dict[str, bytes]:
    """All files that a training wrote."""
    files = [*(folder / "checkpoints").rglob("*"), folder / "metrics.jsonl"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files if path.is_file()}


@pytest.mark.parametrize("task", ["folder", "ave"])
def test_test_clips_are_not_read_before_training_has_ended_and_their_labels_cannot_reach_what_is_chosen(make_run, task):
    data = dataset(task)
    run = make_run(data, "right")
    before = []

    def spy(path):
        if int(path.stem.partition("-")[2]) >= FIRST["test"]:
            before.append(contents(run.folder / "seed-1"))
        return run.observer.read(path)

    run.evaluator.read = spy
    right = run.run(1)
    assert contents(right.folder) == before[0]  # nothing that was chosen changes from then on
    diary = run.observer.lines
    of_test = {sample.path.stem for sample in data.split("test")}
    first = next(index for index, line in enumerate(diary) if line in of_test)
    assert [line for line in diary if line.startswith("validated")] == ["validated 1", "validated 2", "validated 3"]
    assert diary.index("validated 3") < first
    assert set(diary[first:]) == of_test
    wrong = make_run(mislabelled(data), "wrong").run(1)
    assert len([name for name in contents(right.folder) if name.endswith("adapter.safetensors")]) > 2
    assert contents(wrong.folder) == contents(right.folder)
    assert (wrong.progress, wrong.support) == (right.progress, right.support)
    assert right.progress.best.blend > 0  # a trained model was chosen, not the untrained one
    for system in (*UNTRAINED, TRAINED):
        assert wrong.results[system].score != right.results[system].score


@pytest.mark.parametrize(("task", "multi_label"), [("ave", False), ("folder", True)])
def test_thresholds_of_no_system_move_with_the_labels_of_test_clips(make_run, task, multi_label):
    data = replace(dataset(task), multi_label=multi_label)
    before = make_run(data, "right").evaluator.untrained()
    after = make_run(mislabelled(data), "wrong").evaluator.untrained()
    for system in UNTRAINED:
        chosen = before[system].background, before[system].label_threshold
        assert (chosen[1] if multi_label else chosen[0].threshold) is not None
        assert (after[system].background, after[system].label_threshold) == chosen


def test_training_needs_no_test_clips(make_run):
    run = make_run(dataset("folder", test=0))
    _, progress = run.train(1, run.support(1))
    assert progress.finished == "all 3 epochs done"


def test_the_same_seed_gives_the_same_run_and_another_seed_another(make_run):
    data = dataset("folder")
    first, again = make_run(data, "first").run(1), make_run(data, "again").run(1)
    other = make_run(data, "other").run(2)
    before = contents(first.folder)
    assert contents(again.folder) == before
    assert other.support["fingerprint"] != first.support["fingerprint"]
    assert contents(other.folder)["metrics.jsonl"] != before["metrics.jsonl"]
    run = make_run(data, "first")  # what is done is not repeated
    repeated = run.run(1)
    assert repeated.to_dict() == first.to_dict()
    assert contents(repeated.folder) == before
    assert not run.observer.lines  # not even its support is read again
    assert set(run.evaluator.usage.used["train"]) == set(first.support["ids"])
    for one in (again, first):
        del one.methods["trained"]["seconds"]  # how long it took
    assert again.to_dict() == first.to_dict()


@pytest.mark.parametrize(("changes", "blend"), [({"patience": 1}, 0.5), ({"blend": 0.75}, 0.75)])
def test_without_validation_clips_the_last_epoch_and_the_share_that_is_set_are_taken(make_run, changes, blend):
    result = make_run(dataset("folder", val=0), **changes).run(1)
    progress = result.progress
    assert (progress.epoch, progress.best_epoch, progress.finished) == (3, 3, "all 3 epochs done")
    checkpoints = result.folder / "checkpoints"
    [best] = checkpoints.glob("best-*")
    assert json.loads((best / "config.json").read_text())["decision"]["blend"] == progress.best.blend == blend
    tensors = [load_file(path / "adapter.safetensors") for path in (best, max(checkpoints.glob("step-*")))]
    assert same(*tensors)


def test_a_share_of_zero_is_the_untrained_model(make_run):
    result = make_run(dataset("folder"), blend=0.0, epochs=1).run(1)
    trained, untrained = (result.results[name].model_dump() for name in (TRAINED, "zero-shot"))
    assert {**trained, "system": ""} == {**untrained, "system": ""}


@pytest.mark.parametrize("place", ["support", "val", "test"])
def test_a_clip_that_cannot_be_read_is_left_out_and_named(make_run, place):
    data = dataset("folder")
    broken = make_run(data).support(1).samples[0] if place == "support" else data.split(place)[0]
    samples = [sample for sample in data.samples if sample != broken]
    samples.append(replace(broken, path=Path(f"{broken.path.stem}-broken.mp4")))
    run = make_run(data.with_samples(sorted(samples, key=lambda sample: sample.row)), epochs=1)
    result, usage = run.run(1), run.evaluator.usage
    assert usage.left == [(broken.split, broken.id, "it is broken.")]
    assert result.support["clips"] == 2 * len(NAMES)
    assert result.support["replaced"] == ([broken.id] if place == "support" else [])
    assert broken.id not in usage.used[broken.split]
    sizes = {split: (listed, used, left) for split, listed, used, left in usage.counts(data)}
    for split in ("val", "test"):
        count = COUNTS[split] * len(NAMES)
        assert sizes[split] == ((count, count - 1, 1) if place == split else (count, count, 0))


def test_frozen_embeddings_of_splits_and_supports_serve_the_light_methods(make_run):
    run = make_run(dataset("folder"))
    support = run.support(1)
    samples, features = run.evaluator.features(support.samples)
    assert [sample.id for sample in samples] == list(features.ids) == [sample.id for sample in support.samples]
    clip = read(samples[0].path)
    expected = run.evaluator.zero_shot(clip.frames[None], clip.audio_segments[None])
    for got, wanted in zip((features.visual[0], features.audio[0]), expected, strict=True):
        torch.testing.assert_close(torch.from_numpy(got).float(), wanted[0].detach())
    assert run.evaluator.features("val")[1].ids == tuple(sample.id for sample in run.dataset.split("val"))
    assert len(make_run(dataset("folder", val=0)).evaluator.features("val")[1]) == 0


@pytest.mark.parametrize(("anchors", "kept"), [("text", False), ("support", True)])
def test_class_means_stand_beside_the_texts_or_not_as_asked(make_run, anchors, kept):
    result = make_run(dataset("folder"), anchors=anchors, epochs=1, blend=1.0).run(1)
    tensors = load_file(sorted((result.folder / "checkpoints").glob("step-*"))[-1] / "adapter.safetensors")
    assert any(name.startswith("anchors") for name in tensors) is kept


def test_epochs_are_found_by_the_number_of_steps(make_run):
    for count, changes, epochs in (
        (3, {"epochs": "auto"}, 20),
        (50, {"epochs": "auto", "shots": 50, "batch_size": 2}, 7),
        (150, {"epochs": "auto", "shots": 150, "batch_size": 1}, 3),
        (3, {"epochs": 4}, 4),
    ):
        assert make_run(dataset("folder", train=count), f"{count}-{epochs}", **changes).config.epochs == epochs


def test_adapters_are_trained_side_by_side_as_each_would_be_alone(make_run):
    both = make_run(dataset("folder"), "both", reduction=2, epochs=1)
    both.also = ("lavish", "stg_cma")
    result = both.run(1)
    alone = make_run(dataset("folder"), "alone", method="lavish", reduction=2, epochs=1)
    only = alone.run(1)
    assert alone.config.adapter == "lavish"
    assert set(result.results) == {*UNTRAINED, TRAINED, "lavish", "stg_cma"}
    assert only.results[TRAINED].score == result.results["lavish"].score
    trainable = [result.methods[name]["trainable"] for name in (TRAINED, "lavish", "stg_cma")]
    assert len(set(trainable)) == 3
    assert result.methods["lavish"]["labels_used"] == only.methods[TRAINED]["labels_used"]
    files = [contents(folder) for folder in (only.folder, result.folder / "lavish")]
    tensors = [{n: content for n, content in one.items() if n.endswith("adapter.safetensors")} for one in files]
    assert tensors[0] == tensors[1]
    assert len(tensors[0]) > 1
    both.train = None  # what is done is not done again
    assert both.run(1).results.keys() == result.results.keys()
