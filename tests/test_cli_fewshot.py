"""`avfs fewshot` and `avfs zeroshot --task` from the command line, on real clips with the packaged backbone."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from command_support import execute
from fewshot_worlds import AVE_SPLITS, CLASSES, SECONDS, write_ave, write_class_folders
from safetensors.torch import load_file

from avfewshot.data.folder import load_folder
from avfewshot.data.sampler import draw_support

SETTINGS = ["--method", "dgsct", "--shots", "2", "--epochs", "1", "--hidden", "8", "--workers", "0"]
SYSTEMS = ["CLIP only", "CLAP only", "zero-shot", "trained"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Clips of three classes, one of them broken that would be in the support of seed 1; a small AVE; settings."""
    folder = tmp_path_factory.mktemp("world")
    clips = write_class_folders(folder / "my_clips")
    broken = draw_support(load_folder(clips), 2, 1).samples[0]
    broken.path.write_bytes(broken.path.read_bytes()[:2000])
    (folder / "broken.txt").write_text(broken.id)
    write_ave(folder / "AVE")
    (folder / "labels.txt").write_text("\n".join(CLASSES))
    (folder / "avfs.toml").write_text('backbone = "tiny"\ndevice = "cpu"\nprecision = "fp32"\n[data]\nave = "AVE"\n')
    return folder


@pytest.fixture(scope="module")
def call(world, tmp_path_factory):
    """Run a command in the world's folder with one cache for the module; gives status, stdout and stderr."""
    return partial(execute, world, cache=world / "cache")


@pytest.fixture(scope="module")
def done(call, world):
    """One run over two seeds."""
    status, out, err = call("fewshot", "--data", "my_clips", *SETTINGS, "--seeds", "1,2", "--name", "two")
    assert status == 0, err
    [folder] = (world / "runs" / "folder").glob("*-two")
    return folder, out, err


def read(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def figures(document: dict) -> dict:
    """What a run found, without when and how it was asked for."""
    return {key: value for key, value in document.items() if key not in ("created", "command")}


def numbers(value):
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers(item)
    elif isinstance(value, float):
        yield value


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def test_the_run_folder_holds_everything(done):
    folder, *_ = done
    for name in ("run.json", "config.yaml", "results.json", "results.csv", "results.md", "clips.csv", "report.html"):
        assert (folder / name).stat().st_size, name
    for seed in (1, 2):
        part = folder / f"seed-{seed}"
        kinds = [json.loads(line)["kind"] for line in (part / "metrics.jsonl").read_text().splitlines()]
        assert kinds == ["epoch", "step", "step", "step", "epoch"]
        for kind in ("best", "step"):
            assert list(part.glob(f"checkpoints/{kind}-*/adapter.safetensors"))
        assert len(rows(part / "classes-trained.csv")) >= len(CLASSES)
    assert not [path for path in folder.rglob("*") if ".part" in path.name]


def test_the_results_are_whole_and_finite(done):
    document = read(done[0])
    found = list(numbers(document))
    assert len(found) > 100
    assert all(map(math.isfinite, found))
    assert [entry["seed"] for entry in document["seeds"]] == [1, 2]
    assert list(document["seeds"][0]["results"]) == SYSTEMS
    assert document["config"]["shots"] == 2
    assert document["command"].startswith("avfs fewshot --data my_clips --method dgsct --shots 2")
    assert document["parameters"]["adapters"]["trainable"] > 0


def test_a_table_names_what_is_compared(done):
    _, out, err = done
    for name in SYSTEMS:
        assert name in out
    assert "top-1" in out
    assert "written: " in err


def test_a_broken_clip_is_replaced_and_listed(done, world):
    folder, _, err = done
    broken = (world / "broken.txt").read_text()
    listed = rows(folder / "clips.csv")
    [entry] = [row for row in listed if row["used"] == "no"]
    assert (entry["split"], entry["id"]) == ("train", broken)
    assert entry["reason"]
    counts = {split: sum(row["used"] == "yes" and row["split"] == split for row in listed) for split in ("val", "test")}
    assert counts == {"val": 3, "test": 3}
    support = read(folder)["seeds"][0]["support"]
    assert broken in support["replaced"]
    assert broken not in support["ids"]
    assert len(support["ids"]) == 2 * len(CLASSES)
    assert "1 cannot be: see clips.csv" in err


def test_the_page_stands_alone(done):
    page = (done[0] / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//|<link|<script[^>]+src", page)
    for text in (*SYSTEMS, *CLASSES, "data:image/jpeg;base64,"):
        assert text in page


def test_a_run_that_is_done_gives_the_same_again(done, call):
    folder, out, _ = done
    before = figures(read(folder))
    kept = {path: path.read_bytes() for path in folder.glob("seed-*/**/*") if path.is_file()}
    clips = (folder / "clips.csv").read_text()
    status, again, err = call("fewshot", "--resume", folder)
    assert status == 0, err
    assert again == out
    assert "epoch 1/1" not in err
    assert figures(read(folder)) == before
    assert sorted((folder / "clips.csv").read_text().splitlines()) == sorted(clips.splitlines())
    assert {path: path.read_bytes() for path in folder.glob("seed-*/**/*") if path.is_file()} == kept


def test_what_was_learnt_serves_other_clips(done, call, world):
    clip = world / "my_clips" / CLASSES[0] / "0.mp4"
    adapter = done[0] / "seed-1"
    status, out, err = call("zeroshot", "--labels", "labels.txt", "--adapter", adapter, "--format", "json", clip)
    assert status == 0, err
    document = json.loads(out)
    assert document["adapter"] == str(adapter)
    assert math.fsum(document["clips"][0]["scores"].values()) == pytest.approx(1)


def test_a_run_of_several_seeds_that_did_not_choose_one_is_no_adapter(done, call, world):
    clip = world / "my_clips" / CLASSES[0] / "0.mp4"
    arguments = ["zeroshot", "--labels", "labels.txt", "--adapter", done[0], clip]
    assert call(*arguments)[0] == 0
    (done[0] / "chosen.json").rename(done[0] / "aside.json")  # as an interrupted run leaves it
    status, _, err = call(*arguments)
    (done[0] / "aside.json").rename(done[0] / "chosen.json")
    assert status == 1
    assert "holds the trainings of 2 seeds" in err
    assert str(done[0] / "seed-1") in err
    assert str(done[0] / "seed-2") in err


def test_a_training_begins_with_what_was_trained(done, call, world):
    before = read(done[0])["seeds"][0]["progress"]["best"]
    arguments = ["--data", "my_clips", "--shots", "2", "--epochs", "1", "--workers", "0", "--lr", "1e-9"]
    status, _, err = call("fewshot", *arguments, "--adapter", done[0] / "seed-1", "--name", "further")
    assert status == 0, err
    [folder] = (world / "runs" / "folder").glob("*-further")
    first = json.loads((folder / "seed-1" / "metrics.jsonl").read_text().splitlines()[0])
    assert first["epoch"] == 0
    assert (first["figure"], first["blend"]) == (before["figure"], before["blend"])
    assert first["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert read(folder)["config"]["hidden"] == 8
    page = re.sub(r"<[^>]*>|\s+", " ", (folder / "report.html").read_text())
    assert re.search(r"hidden +8 +the checkpoint begun with", page)


def test_a_checkpoint_cannot_be_contradicted(done, call):
    arguments = ["--data", "my_clips", "--adapter", done[0] / "seed-1", "--hidden", "16", "--no-temporal"]
    status, _, err = call("fewshot", *arguments)
    assert status == 2
    assert "hidden 16 instead of 8" in err
    assert "temporal False instead of True" in err
    assert "Leave them out" in err


def test_a_dry_run_trains_nothing(call, world):
    status, out, err = call("fewshot", "--data", "my_clips", *SETTINGS, "--dry-run", "--name", "dry")
    assert status == 0, err
    for part in ("2 clips a class", "up to 3 a seed", "memory", "GB", "adapters", "projectors", "run folder"):
        assert part in out
    assert "Nothing was trained" in out
    assert not list((world / "runs").rglob("*-dry"))


def test_without_validation_clips_it_says_so(call, world):
    data = world / "no_val"
    for number, split in ((1, "train"), (2, "test"), (3, "val")):
        for name in CLASSES[1:]:
            target = data / split / name / f"{number}.mp4"
            target.parent.mkdir(parents=True)
            shutil.copy(world / "my_clips" / name / f"{number}.mp4", target)
            if split == "val":
                target.write_bytes(target.read_bytes()[:2000])
    status, _, err = call("fewshot", "--data", "no_val", *SETTINGS, "--shots", "1", "--name", "blind")
    assert status == 0, err
    assert "no validation clip" in err
    assert "validation 0.0 %" not in err
    assert "val: 0 of 2 clips used, 2 cannot be" in err
    [folder] = (world / "runs" / "folder").glob("*-blind")
    assert "There were no validation clips" in (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def seconds(call, world):
    """A run on the task that labels seconds."""
    status, out, err = call("fewshot", "--task", "ave", *SETTINGS, "--shots", "1", "--name", "seconds")
    assert status == 0, err
    [folder] = (world / "runs" / "ave").glob("*-seconds")
    return folder, out


def test_seconds_are_told_from_background(seconds):
    folder, out = seconds
    [path] = folder.glob("seed-1/checkpoints/best-*/config.json")
    config = json.loads(path.read_text())
    assert config["decision"]["background"]["strategy"] == "threshold"
    assert math.isfinite(config["decision"]["background"]["threshold"])
    assert config["training"]["gamma"] == 0.01
    result = read(folder)["seeds"][0]["results"]["trained"]
    assert result["num_segments"] == SECONDS * AVE_SPLITS["test"] * len(CLASSES)
    assert "trained" in out


def test_what_one_task_taught_begins_another(seconds, call):
    # Of ave and ave_cls only the defaults of gamma differ: nobody set it, so nothing is contradicted.
    status, out, err = call("fewshot", "--task", "ave_cls", "--adapter", seconds[0], "--dry-run")
    assert status == 0, err
    assert "Nothing was trained" in out


def test_towers_in_a_short_format_see_all_the_way_through(call, world, seconds):
    short = ["--task", "ave", "--precision", "bf16"]
    status, out, err = call("fewshot", *short, *SETTINGS, "--shots", "1", "--name", "short")
    assert status == 0, err
    [folder] = (world / "runs" / "ave").glob("*-short")
    page = (folder / "report.html").read_text()
    for part in ("where the label is", "its sound, high frequencies above", "spatial attention, last layer, of sound"):
        assert part in page
    wide, narrow = (read(run)["seeds"][0]["results"]["zero-shot"] for run in (seconds[0], folder))
    assert wide["headline"] == narrow["headline"]
    figures_of = [document["metrics"][document["headline"]]["value"] for document in (wide, narrow)]
    assert figures_of[1] == pytest.approx(figures_of[0], abs=0.2)  # a few of eighteen seconds

    status, out, err = call("zeroshot", *short, "--adapter", folder)
    assert status == 0, err
    assert "adapted" in out
    status, out, err = call("fewshot", *short, *SETTINGS, "--shots", "1", "--dry-run")
    assert status == 0, err
    assert "bf16" in out + err


def test_a_task_is_judged_without_training(call, world, seconds):
    status, out, err = call("zeroshot", "--task", "ave_cls", "--output", "judged.json")
    assert status == 0, err
    for name in SYSTEMS[:3]:
        assert name in out
    document = json.loads((world / "judged.json").read_text())
    assert list(document["results"]) == SYSTEMS[:3]
    assert all(map(math.isfinite, numbers(document)))
    assert "written: judged.json" in err


def test_a_task_is_judged_with_what_was_trained(call, world, seconds):
    status, out, err = call("zeroshot", "--task", "ave", "--adapter", seconds[0], "--output", "judged.csv")
    assert status == 0, err
    assert "adapted" in out
    assert "adapted" in (world / "judged.csv").read_text()


def test_an_interrupted_run_goes_on_to_the_same_result(done, call, world):
    command = [sys.executable, "-m", "avfewshot", "fewshot", "--data", "my_clips", *SETTINGS, "--name", "cut"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVFS_CACHE", str(world / "cache"))
        process = subprocess.Popen(command, cwd=world, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and process.poll() is None:
            journals = world.glob("runs/folder/*-cut/seed-1/metrics.jsonl")
            if any('"kind": "step"' in path.read_text() for path in journals):
                break
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
    [folder] = (world / "runs" / "folder").glob("*-cut")
    assert process.returncode == 130, err
    assert f"To go on: avfs fewshot --resume runs/folder/{folder.name}" in err
    assert "Traceback" not in err
    assert not (folder / "results.json").exists()

    status, _, err = call("fewshot", "--resume", folder)
    assert status == 0, err
    straight, gone_on = (
        {path.parent.name: load_file(path) for path in (run / "seed-1").glob("checkpoints/*/adapter.safetensors")}
        for run in (done[0], folder)
    )
    last = max(straight)
    assert gone_on[last].keys() == straight[last].keys()
    assert all(tensor.equal(straight[last][name]) for name, tensor in gone_on[last].items())
    ended = [read(one)["seeds"][0] for one in (folder, done[0])]
    for seed in ended:
        del seed["methods"]["trained"]["seconds"]  # how long it took
    assert ended[0] == ended[1]
    entries = [(run / "seed-1" / "metrics.jsonl").read_text() for run in (done[0], folder)]
    assert entries[0] == entries[1]
