"""`avfs train`, `avfs eval` and `avfs predict`, end to end on small worlds."""

import csv
import json
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from fewshot_worlds import AVE_SPLITS, CLASSES, SECONDS, write_ave

from avfewshot.cli import progress
from avfewshot.cli.app import run
from avfewshot.models.checkpoint import find_checkpoint, load_adapter
from avfewshot.supervised.base import Recipe
from avfewshot.supervised.training import HeadTask

TINY = ("--backbone", "tiny", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def ave(tmp_path_factory):
    return write_ave(tmp_path_factory.mktemp("ave"))


@pytest.fixture(scope="module")
def llp(ave, tmp_path_factory):
    """The same clips in LLP's layout; what is true of a clip is what the AVE lists say, heard and seen."""
    root = tmp_path_factory.mktemp("llp")
    events = "filename\tonset\toffset\tevent_labels\n"
    for split in AVE_SPLITS:
        rows = [line.split("&") for line in (ave / f"{split}Set.txt").read_text().splitlines()]
        names = {video: f"{video}_0_{SECONDS}" for _, video, *_ in rows}
        for video, name in names.items():
            (root / "LLP").mkdir(exist_ok=True)
            shutil.copy(ave / "AVE" / f"{video}.mp4", root / "LLP" / f"{name}.mp4")
        lines = "".join(f"{names[row[1]]}\t{row[0]}\n" for row in rows)
        (root / f"{split}.csv").write_text("filename\tevent_labels\n" + lines)
        if split != "train":
            events += "".join(f"{names[row[1]]}\t{row[3]}\t{row[4]}\t{row[0]}\n" for row in rows)
    for modality in ("audio", "visual"):
        (root / f"{modality}.csv").write_text(events)
    roles = {
        **{split: f"{split}.csv" for split in AVE_SPLITS},
        "audio_events": "audio.csv",
        "visual_events": "visual.csv",
    }
    description = {
        "format": 1,
        "name": "llp",
        "title": "small LLP",
        "reader": "llp",
        "tasks": ["llp_cls"],
        "segments": SECONDS,
        "classes": [{"name": name, "wording": name} for name in CLASSES],
        "files": [{"role": role, "names": [name]} for role, name in roles.items()],
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False))
    return root


def train(task, root, runs, *more, name="r"):
    status = run(["train", task, "--root", str(root), "--runs", str(runs), "--name", name, *TINY, *more])
    assert status == 0
    [folder] = (runs / task).glob(f"*-{name}")
    return folder


@pytest.mark.parametrize("head", ["cmbs", "cmbs-weak"])
def test_ave_from_training_to_prediction(head, ave, tmp_path, capsys):
    folder = train("ave", ave, tmp_path, "--head", head, "--epochs", "2", "--seeds", "1,2")
    document = json.loads((folder / "results.json").read_text())
    assert list(document["systems"]) == [
        "zero-shot by second", "always background", "always car honking", "true class in all seconds", head,
    ]  # fmt: skip
    assert [one["seed"] for one in document["seeds"]] == [1, 2]
    assert all(len(one["log"]) == 2 for one in document["seeds"])
    figure = document["systems"][head]["segment_accuracy"]
    assert 0 <= figure["low"] <= figure["mean"] <= figure["high"] <= 100
    rows = list(csv.DictReader((folder / "results.csv").open()))
    assert float(next(r for r in rows if r["system"] == head)["percent"]) == pytest.approx(figure["mean"], abs=1e-3)
    page = (folder / "report.html").read_text()
    assert "always background" in page
    assert f"{figure['mean']:.1f}" in page
    said = [json.loads(line) for line in (folder / "predictions.jsonl").read_text().splitlines()]
    assert len(said) == document["clips"]
    assert all(len(one["seconds"]) == 10 for one in said)

    capsys.readouterr()
    assert run(["eval", str(folder), "--format", "json", "--root", str(ave)]) == 0
    again = json.loads(capsys.readouterr().out)
    assert again["systems"] == document["systems"]
    # A setting that came after the run was trained has its default.
    record = json.loads((folder / "run.json").read_text())
    del record["sources"]["patience"], record["config"]["training"]["patience"]
    (folder / "run.json").write_text(json.dumps(record))
    assert run(["eval", str(folder), "--split", "val", "--modality", "visual", "--format", "json"]) == 0
    blind = json.loads(capsys.readouterr().out)
    assert (blind["modality"], list(blind["systems"])) == ("visual", [head])

    clip = next((ave / "AVE").glob("*.mp4"))
    assert run(["predict", str(folder), str(clip), "--format", "json"]) == 0
    [line] = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert (line["path"], line["start"], line["end"]) == (str(clip), 0, SECONDS)
    assert set(line["seconds"]) <= {*CLASSES, "background"}
    # A file that cannot be read costs itself, not the others.
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    assert run(["predict", str(folder), str(broken), str(clip)]) == 1
    output = capsys.readouterr()
    assert str(clip) in output.out
    assert "broken.mp4" in output.err
    assert run(["predict", str(folder), str(clip), "--question", "why?"]) == 2


@pytest.mark.parametrize("head", ["han", "mgn"])
def test_avvp_from_training_to_prediction(head, llp, tmp_path, capsys):
    folder = train("avvp", llp, tmp_path, "--head", head, "--epochs", "2")
    systems = json.loads((folder / "results.json").read_text())["systems"]
    assert "zero-shot by second" in systems
    assert systems["nothing at all"]["segment_Event"]["mean"] == 0
    assert (
        systems["true labels in all seconds"]["segment_Type"]["mean"]
        > systems["nothing at all"]["segment_Type"]["mean"]
    )
    clip = next((llp / "LLP").glob("*.mp4"))
    capsys.readouterr()
    assert run(["predict", str(folder), str(clip), "--format", "json"]) == 0
    line = json.loads(capsys.readouterr().out)
    assert all(set(event) == {"label", "start", "end"} for event in line["heard"] + line["seen"])


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_adapter(find_checkpoint(folder / "seed-1")).tensors


@pytest.mark.parametrize("more", [(), ("--adapter-kind", "dgsct", "--batch-size", "3")])
def test_an_interrupted_training_resumes_to_the_bit(more, ave, tmp_path, monkeypatch):
    options = ("--epochs", "2", "--batch-size", "4", *more)
    whole = train("ave", ave, tmp_path, *options, name="whole")
    on_step, steps = progress.ProgressBar.on_step, []

    def interrupt(self, *values):
        on_step(self, *values)
        steps.append(values)
        if len(steps) == 3:  # the first of two steps of the second epoch
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(progress.ProgressBar, "on_step", interrupt)
    arguments = ["train", "ave", "--root", str(ave), "--runs", str(tmp_path), "--name", "cut", *TINY, *options]
    assert run(arguments) == 130
    [cut] = (tmp_path / "ave").glob("*-cut")
    assert not (cut / "results.json").exists()
    assert len(steps) == 3
    assert run(["train", "--resume", str(cut)]) == 0
    assert len(steps) == 4
    one, other = (json.loads((folder / "results.json").read_text()) for folder in (whole, cut))
    assert one["seeds"] == other["seeds"]
    assert one["systems"] == other["systems"]
    first, second = tensors(whole), tensors(cut)
    assert first.keys() == second.keys()
    assert any(name.startswith("towers.") for name in first) == bool(more)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_rate_falls_behind_the_epochs_that_the_recipe_names():
    recipe = Recipe(lr=1e-3, batch_size=4, epochs=10, milestones=(2, 4), factor=0.1)
    task = HeadTask(SimpleNamespace(recipe=recipe, examples=lambda split: []), None, 1)
    factor = task.lr_lambda(None, steps_per_epoch=3)
    assert [factor(step) for step in (0, 5, 6, 11, 12)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    # Without validation clips the last epoch is the best.
    assert task.validate(None, 1).better_than(task.baseline(None))
    assert task.validate(None, 2).better_than(task.validate(None, 1))


def test_selection_looks_at_validation_alone(ave, tmp_path):
    folder = train("ave", ave, tmp_path, "--epochs", "4")
    [one] = json.loads((folder / "results.json").read_text())["seeds"]
    figures = [entry["segment_accuracy"] for entry in one["log"]]
    assert one["best_epoch"] == 1 + figures.index(max(figures))
    # With other test clips the same epoch and the same weights come out.
    other = tmp_path / "other"
    shutil.copytree(ave, other)
    rows = (other / "testSet.txt").read_text().splitlines()
    (other / "testSet.txt").write_text("\n".join(rows[:2]))
    again = train("ave", other, tmp_path, "--epochs", "4", name="again")
    first, second = tensors(folder), tensors(again)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_faults_and_dry_run(ave, tmp_path, capsys):
    assert run(["train"]) == 2
    assert "avfs train ave|avvp|avs|avqa" in capsys.readouterr().err
    assert run(["train", "ave", "--head", "han", "--root", str(ave), "--epochs", "0", *TINY]) == 2
    output = capsys.readouterr().err
    assert "Heads: cmbs, cmbs-weak" in output
    assert "--epochs" in output
    assert run(["train", "ave", "--root", str(tmp_path / "no"), *TINY]) == 2
    assert run(["train", "ave", "--root", str(ave), "--subset", "x", "--runs", str(tmp_path), *TINY]) == 2
    assert "--subset" in capsys.readouterr().err
    assert run(["train", "ave", "--root", str(ave), "--runs", str(tmp_path / "runs"), "--dry-run", *TINY]) == 0
    assert "trainable parameters" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    capsys.readouterr()
    assert run(["eval", str(tmp_path)]) == 2
    assert f"RUN {tmp_path}: is not the folder of a run" in capsys.readouterr().err
    assert run(["eval", str(tmp_path), "--modality", "smell"]) == 2
    assert run(["predict", str(tmp_path)]) == 2
