"""`avfs train`, `avfs eval` and `avfs predict`, end to end on small worlds."""

import csv
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_support import TINY
from dataset_files import write_description
from fewshot_worlds import AVE_SPLITS, CLASSES, SECONDS, write_ave
from training_support import same

from avfewshot.cache import DiskCache
from avfewshot.cli import progress
from avfewshot.models.checkpoint import find_checkpoint, load_adapter
from avfewshot.supervised.base import Recipe
from avfewshot.supervised.features import FeatureStore
from avfewshot.supervised.training import HeadTask


@pytest.fixture(scope="module")
def ave(tmp_path_factory):
    return write_ave(tmp_path_factory.mktemp("ave"))


@pytest.fixture(scope="module")
def llp(ave, tmp_path_factory):
    """The same clips in LLP's layout; what is true of a clip is what the AVE lists say, heard and seen."""
    root = tmp_path_factory.mktemp("llp")
    shutil.copytree(ave / "AVE", root / "LLP")
    events = "filename\tonset\toffset\tevent_labels\n"
    for split in AVE_SPLITS:
        lines = "filename\tevent_labels\n"
        for row in (ave / f"{split}Set.txt").read_text().splitlines():
            label, video, _, onset, offset = row.split("&")
            name = f"{video}_0_{SECONDS}"
            (root / "LLP" / f"{video}.mp4").rename(root / "LLP" / f"{name}.mp4")
            lines += f"{name}\t{label}\n"
            events += f"{name}\t{onset}\t{offset}\t{label}\n" if split != "train" else ""
        (root / f"{split}.csv").write_text(lines)
    roles = {split: f"{split}.csv" for split in AVE_SPLITS}
    for modality in ("audio", "visual"):
        (root / f"{modality}.csv").write_text(events)
        roles[f"{modality}_events"] = f"{modality}.csv"
    classes = [{"name": name, "wording": name} for name in CLASSES]
    files = [{"role": role, "names": [name]} for role, name in roles.items()]
    changes = {"name": "llp", "title": "small LLP", "reader": "llp", "tasks": ["llp_cls"], "segments": SECONDS}
    write_description(root, classes=classes, files=files, **changes)
    return root


def test_ave_from_training_to_prediction(avfs, ave, tmp_path):
    folder, document = avfs.trained("ave", ave, *TINY, "--epochs", "2", "--seeds", "1,2")
    assert list(document["systems"]) == [
        "zero-shot by second", "always background", "always car honking", "true class in all seconds", "cmbs",
    ]  # fmt: skip
    assert [(one["seed"], len(one["log"])) for one in document["seeds"]] == [(1, 2), (2, 2)]
    figure = document["systems"]["cmbs"]["segment_accuracy"]
    assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 100
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert float(next(r for r in rows if r["system"] == "cmbs")["percent"]) == pytest.approx(figure["mean"], abs=1e-3)
    page = (folder / "report.html").read_text()
    assert "always background" in page
    assert f"{figure['mean']:.1f}" in page
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert [len(one["seconds"]) for one in said] == [10] * document["clips"]

    assert avfs.json("eval", folder, "--root", ave)["systems"] == document["systems"]
    # A setting that came after the run was trained has its default.
    record = json.loads((folder / "run.json").read_text())
    del record["sources"]["patience"], record["config"]["training"]["patience"]
    (folder / "run.json").write_text(json.dumps(record))
    blind = avfs.json("eval", folder, "--split", "val", "--modality", "visual")
    assert (blind["modality"], list(blind["systems"])) == ("visual", ["cmbs"])

    clip = next((ave / "AVE").glob("*.mp4"))
    # A file that cannot be read costs itself, not the others.
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    out, err = avfs("predict", folder, broken, clip, "--format", "json", status=1)
    assert "broken.mp4" in err
    line = json.loads(out)
    assert (line["path"], line["start"], line["end"]) == (str(clip), 0, SECONDS)
    assert set(line["seconds"]) <= {*CLASSES, "background"}
    assert str(clip) in avfs("predict", folder, clip)[0]
    avfs.refused("predict", folder, clip, "--question", "why?")


def test_avvp_from_training_to_prediction(avfs, llp):
    folder, document = avfs.trained("avvp", llp, *TINY, "--head", "han", "--epochs", "1")
    systems = document["systems"]
    assert "zero-shot by second" in systems
    nothing, labels = systems["nothing at all"], systems["true labels in all seconds"]
    assert nothing["segment_Event"]["mean"] == 0
    assert labels["segment_Type"]["mean"] > nothing["segment_Type"]["mean"]
    line = avfs.json("predict", folder, next((llp / "LLP").glob("*.mp4")))
    assert all(set(event) == {"label", "start", "end"} for event in line["heard"] + line["seen"])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_adapter(find_checkpoint(folder / "seed-1")).tensors


@pytest.mark.parametrize("more", [(), ("--adapter-kind", "dgsct", "--batch-size", "3")])
def test_an_interrupted_training_resumes_to_the_bit(more, avfs, ave, monkeypatch):
    options = (*TINY, "--epochs", "2", "--batch-size", "4", *more)
    whole, document = avfs.trained("ave", ave, *options, name="whole")
    on_step, steps = progress.ProgressBar.on_step, []

    def interrupt(self, *values):
        on_step(self, *values)
        steps.append(values)
        if len(steps) == 3:  # the first of two steps of the second epoch
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.ProgressBar, "on_step", interrupt)
    avfs("train", "ave", "--root", ave, "--name", "cut", *options, status=130)
    cut = avfs.folder_of("cut")
    assert not (cut / "results.json").exists()
    assert len(steps) == 3
    avfs("train", "--resume", cut)
    assert len(steps) == 4
    resumed = json.loads((cut / "results.json").read_text())
    assert all(document[part] == resumed[part] for part in ("seeds", "systems"))
    first, second = tensors(whole), tensors(cut)
    assert any(name.startswith("towers.") for name in first) == bool(more)
    assert same(first, second)


def test_the_rate_falls_behind_the_epochs_that_the_recipe_names():
    recipe = Recipe(lr=1e-3, batch_size=4, epochs=10, milestones=(2, 4), factor=0.1)
    task = HeadTask(SimpleNamespace(recipe=recipe, examples=lambda split: []), None, 1)
    factor = task.lr_lambda(None, steps_per_epoch=3)
    assert [factor(step) for step in (0, 5, 6, 11, 12)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    # Without validation clips the last epoch is the best.
    assert task.validate(None, 1).better_than(task.baseline(None))
    assert task.validate(None, 2).better_than(task.validate(None, 1))


def test_selection_looks_at_validation_alone(avfs, ave, tmp_path):
    more = (*TINY, "--epochs", "3", "--head", "cmbs-weak")
    folder, document = avfs.trained("ave", ave, *more)
    [one] = document["seeds"]
    figures = [entry["segment_accuracy"] for entry in one["log"]]
    assert one["best_epoch"] == 1 + figures.index(max(figures))
    # With other test clips the same epoch and the same weights come out.
    other = tmp_path / "other"
    shutil.copytree(ave, other)
    rows = (other / "testSet.txt").read_text().splitlines()
    (other / "testSet.txt").write_text("\n".join(rows[:2]))
    again, _ = avfs.trained("ave", other, *more, name="again")
    assert same(tensors(folder), tensors(again))


def test_faults_and_dry_run(avfs, ave, tmp_path):
    for words, status, *parts in (
        ("train", 2, "avfs train ave|avvp|avs|avqa"),
        (f"train ave --head han --root {ave} --epochs 0", 2, "Heads: cmbs, cmbs-weak", "--epochs"),
        ("train ave --root no", 2),
        (f"train ave --root {ave} --subset x", 2, "--subset"),
        (f"train ave --root {ave} --dry-run", 0, "trainable parameters"),
        (f"eval {tmp_path}", 2, f"RUN {tmp_path}: is not the folder of a run"),
        (f"eval {tmp_path} --modality smell", 2),
        (f"predict {tmp_path}", 2),
    ):
        _, err = avfs(*words.split(), *(TINY if " ave" in words else ()), status=status)
        assert [part for part in parts if part not in " ".join(err.split())] == [], words
        assert not (tmp_path / "runs").exists()


def test_features_of_a_clip_that_changes_while_it_is_read_are_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("avfewshot.supervised.features.clip_features", lambda *_: {"audio": torch.ones(1, 2)})
    store, path = FeatureStore.__new__(FeatureStore), tmp_path / "a.mp4"
    vars(store).update(_about={}, _disk=DiskCache(tmp_path / "c", ".safetensors", 1 << 20), _memory={}, _bytes=0)
    vars(store).update(task=SimpleNamespace(seconds=1), model=None, kinds=(), device=None)
    path.write_bytes(b"half")
    for whole, kept in ((b"half and half", []), (b"", [1.0, 1.0])):
        store.read = lambda _, whole=whole: whole and path.write_bytes(whole)
        store.get(path)
        store._memory.clear()
        found = store._find(path)
        assert (found["audio"][0].tolist() if found else []) == kept
