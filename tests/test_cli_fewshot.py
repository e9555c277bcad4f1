"""`avfs fewshot` and `avfs zeroshot --task` from the command line, on real clips with the packaged backbone."""

import csv
import json
import math
import re
import shutil
import signal
from pathlib import Path

import pytest
from command_support import Commands
from fewshot_worlds import AVE_SPLITS, CLASSES, SECONDS, write_ave, write_class_folders
from safetensors.torch import load_file

from avfewshot.cli.progress import ProgressBar
from avfewshot.data.folder import load_folder
from avfewshot.data.sampler import draw_support

SETTINGS = ["--method", "dgsct", "--shots", "2", "--epochs", "1", "--hidden", "8", "--workers", "0"]
SYSTEMS = ["CLIP only", "CLAP only", "zero-shot", "trained"]
CLIP = f"my_clips/{CLASSES[0]}/0.mp4"


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
def avfs(world):
    return Commands(world)


@pytest.fixture(scope="module")
def done(avfs):
    """One run over two seeds."""
    out, err = avfs("fewshot", "--data", "my_clips", *SETTINGS, "--seeds", "1,2", "--name", "two")
    return avfs.folder_of("two"), out, err


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


def test_the_run_folder_holds_everything_and_the_results_are_whole_and_finite(done):
    folder, out, err = done
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
    document = read(folder)
    found = list(numbers(document))
    assert len(found) > 100
    assert all(map(math.isfinite, found))
    assert [entry["seed"] for entry in document["seeds"]] == [1, 2]
    assert list(document["seeds"][0]["results"]) == SYSTEMS
    assert document["config"]["shots"] == 2
    assert document["command"].startswith("avfs fewshot --data my_clips --method dgsct --shots 2")
    assert document["parameters"]["adapters"]["trainable"] > 0
    assert all(name in out for name in (*SYSTEMS, "top-1"))
    assert "written: " in err
    assert re.search(rf"predict with it: avfs zeroshot --adapter \S*{folder.name} CLIPS", " ".join(err.split()))
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"""(?:src|href|action)\s*=\s*["']?\s*(?:https?:)?//""", page)
    assert not re.search(r"@import|url\(\s*[\"']?(?:https?:)?//|<link|<script[^>]+src", page)
    for text in (*SYSTEMS, *CLASSES, "data:image/jpeg;base64,"):
        assert text in page


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


def test_a_run_that_is_done_gives_the_same_again(done, avfs):
    folder, out, _ = done
    before = figures(read(folder))
    kept = {path: path.read_bytes() for path in folder.glob("seed-*/**/*") if path.is_file()}
    clips = (folder / "clips.csv").read_text()
    again, err = avfs("fewshot", "--resume", folder)
    assert again == out
    assert "epoch 1/1" not in err
    assert figures(read(folder)) == before
    assert sorted((folder / "clips.csv").read_text().splitlines()) == sorted(clips.splitlines())
    assert {path: path.read_bytes() for path in folder.glob("seed-*/**/*") if path.is_file()} == kept


def test_what_was_learnt_serves_other_clips_by_the_seed_that_was_chosen(done, avfs):
    folder, _, err = done
    document = read(folder)
    chosen, best = document["chosen"], {one["seed"]: one["progress"]["best"]["figure"] for one in document["seeds"]}
    assert "validation" in chosen["why"]
    assert best[chosen["seed"]] == max(best.values())
    assert "answers for the run" in err
    adapter = folder / f"seed-{chosen['seed']}"
    document = avfs.json("zeroshot", "--labels", "labels.txt", "--adapter", adapter, CLIP)
    assert document["adapter"] == str(adapter)
    assert math.fsum(document["clips"][0]["scores"].values()) == pytest.approx(1)
    arguments = ("zeroshot", "--labels", "labels.txt", "--adapter", folder, CLIP)
    assert avfs.json(*arguments)["clips"] == document["clips"]
    (folder / "chosen.json").rename(folder / "aside.json")  # as an interrupted run leaves it
    err = avfs.refused(*arguments, status=1)
    (folder / "aside.json").rename(folder / "chosen.json")
    assert "holds the trainings of 2 seeds" in err
    assert str(folder / "seed-1") in err
    assert str(folder / "seed-2") in err


def test_a_training_begins_with_what_was_trained(done, avfs):
    before = read(done[0])["seeds"][0]["progress"]["best"]
    adapter = ("--data", "my_clips", "--adapter", done[0] / "seed-1")
    arguments = ("--shots", "2", "--epochs", "1", "--workers", "0", "--lr", "1e-9")
    folder = avfs.made("fewshot", *adapter, *arguments, name="further")
    first = json.loads((folder / "seed-1" / "metrics.jsonl").read_text().splitlines()[0])
    assert (first["epoch"], first["figure"], first["blend"]) == (0, before["figure"], before["blend"])
    assert first["loss"] == pytest.approx(before["loss"], rel=1e-5)
    assert read(folder)["config"]["hidden"] == 8
    page = re.sub(r"<[^>]*>|\s+", " ", (folder / "report.html").read_text())
    assert re.search(r"hidden +8 +the checkpoint begun with", page)
    err = avfs.refused("fewshot", *adapter, "--hidden", "16", "--no-temporal")
    assert "hidden 16 instead of 8" in err
    assert "temporal False instead of True" in err
    assert "Leave them out" in err


def test_a_dry_run_trains_nothing(avfs, world):
    out, _ = avfs("fewshot", "--data", "my_clips", *SETTINGS, "--dry-run", "--name", "dry")
    for part in ("2 clips a class", "up to 3 a seed", "memory", "GB", "adapters", "projectors", "run folder"):
        assert part in out
    assert "Nothing was trained" in out
    assert out.partition("train")[0].count("my_clips") == 1  # the title of a folder of clips says where it is
    assert not list((world / "runs").rglob("*-dry"))


def test_without_validation_clips_it_says_so(avfs, world):
    data = world / "no_val"
    for number, split in ((1, "train"), (2, "test"), (3, "val")):
        for name in CLASSES[1:]:
            target = data / split / name / f"{number}.mp4"
            target.parent.mkdir(parents=True)
            shutil.copy(world / "my_clips" / name / f"{number}.mp4", target)
            if split == "val":
                target.write_bytes(target.read_bytes()[:2000])
    _, err = avfs("fewshot", "--data", "no_val", *SETTINGS, "--shots", "1", "--name", "blind")
    assert "no validation clip" in err
    assert "validation 0.0 %" not in err
    assert "val: 0 of 2 clips used, 2 cannot be" in err
    assert "There were no validation clips" in (avfs.folder_of("blind") / "report.html").read_text()


@pytest.fixture(scope="module")
def seconds(avfs):
    """A run on the task that labels seconds."""
    return avfs.made("fewshot", "--task", "ave", *SETTINGS, "--shots", "1", name="seconds")


def test_seconds_are_told_from_background(seconds, avfs, world):
    [path] = seconds.glob("seed-1/checkpoints/best-*/config.json")
    config = json.loads(path.read_text())
    assert config["decision"]["background"]["strategy"] == "threshold"
    assert math.isfinite(config["decision"]["background"]["threshold"])
    assert config["training"]["gamma"] == 0.01
    result = read(seconds)["seeds"][0]["results"]["trained"]
    assert result["num_segments"] == SECONDS * AVE_SPLITS["test"] * len(CLASSES)
    # What one task taught begins another: of ave and ave_cls only the defaults of gamma differ, which nobody set.
    assert "Nothing was trained" in avfs("fewshot", "--task", "ave_cls", "--adapter", seconds, "--dry-run")[0]
    out, _ = avfs("zeroshot", "--task", "ave", "--adapter", seconds, "--output", "judged.csv")
    assert "adapted" in out
    assert "adapted" in (world / "judged.csv").read_text()


def test_towers_in_a_short_format_see_all_the_way_through(avfs, seconds):
    short = ("--task", "ave", "--precision", "bf16")
    folder = avfs.made("fewshot", *short, *SETTINGS, "--shots", "1", name="short")
    page = (folder / "report.html").read_text()
    for part in ("where the label is", "its sound, high frequencies above", "spatial attention, last layer, of sound"):
        assert part in page
    wide, narrow = (read(run)["seeds"][0]["results"]["zero-shot"] for run in (seconds, folder))
    assert wide["headline"] == narrow["headline"]
    figures_of = [document["metrics"][document["headline"]]["value"] for document in (wide, narrow)]
    assert figures_of[1] == pytest.approx(figures_of[0], abs=0.2)  # a few of eighteen seconds
    assert "adapted" in avfs("zeroshot", *short, "--adapter", folder)[0]
    assert "bf16" in "".join(avfs("fewshot", *short, *SETTINGS, "--shots", "1", "--dry-run"))


def test_a_task_is_judged_without_training(avfs, world):
    out, err = avfs("zeroshot", "--task", "ave_cls", "--output", "judged.json")
    assert all(name in out for name in SYSTEMS[:3])
    document = json.loads((world / "judged.json").read_text())
    assert list(document["results"]) == SYSTEMS[:3]
    assert all(map(math.isfinite, numbers(document)))
    assert "written: judged.json" in err


def test_an_interrupted_run_goes_on_to_the_same_result(done, avfs):
    on_step = ProgressBar.on_step

    def interrupt(self, *values):
        on_step(self, *values)
        signal.raise_signal(signal.SIGINT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressBar, "on_step", interrupt)
        _, err = avfs("fewshot", "--data", "my_clips", *SETTINGS, "--name", "cut", status=130)
    folder = avfs.folder_of("cut")
    assert f"To go on: avfs fewshot --resume runs/folder/{folder.name}" in err
    assert not (folder / "results.json").exists()

    avfs("fewshot", "--resume", folder)
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
