"""`avfs pretrain`: what a newcomer does wrong, and whole runs from videos and from shards."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from dataset_files import AVE_FILES, write_files
from fewshot_worlds import everywhere_script

from avfewshot.cli.app import run
from avfewshot.cli.runs import Run
from avfewshot.config import PretrainConfig, settings_of
from avfewshot.models.checkpoint import load_adapter
from avfewshot.toyworld.render import write_clip
from avfewshot.toyworld.vocabulary import Composition
from avfewshot.training.data import shards_to_pretrain, shows_one_of
from avfewshot.training.distributed import launched_ranks

CLASSES = {
    "dog barking": ("dog", "barking"),
    "bell ringing": ("bell", "ringing"),
    "clock ticking": ("clock", "ticking"),
}
SPLITS = ("train", "train", "val")
LEAKED = "hhhhhhhhhhh"
"""A video of the test split of the small AVE beside the list."""

SMALL = ["--backbone", "tiny", "--device", "cpu", "--precision", "fp32", "--window", "3", "--workers", "1"]
SMALL += ["--epochs", "1", "--batch-size", "3"]


@pytest.fixture(autouse=True)
def _nowhere(tmp_path, monkeypatch):
    """No avfs.toml and no data in the current folder."""
    monkeypatch.chdir(tmp_path)


def refused(capsys, *arguments: str) -> str:
    """What is said of a command that is misuse."""
    assert run(["pretrain", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return " ".join(captured.err.split())


NEEDED = "a whole number of at least 1 or 'auto' is needed, not"
BAD_DEVICES = [
    (f"vggsound40k --root . --devices={bad}", [f"--devices: {NEEDED} {bad!r}."])
    for bad in ("0", "-1", "two", "²", "1.5")
]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("vggsound40k", ["Where is VGG-Sound(40K)? No data folder is set.", "avfs data toy --root toy"]),
        ("vggsound41k", ["There is no pretraining list 'vggsound41k'.", "vggsound40k|vggsound|ovave"]),
        ("", ["Which list is to be pretrained on?"]),
        ("vggsound40k --shards s --root r --list l.csv", ["--root and --list cannot be given with --shards."]),
        *BAD_DEVICES,
        ("vggsound40k --root . --seed 1,2", ["--seed: one whole number from 0 to 4294967295 is needed, not '1,2'."]),
        ("vggsound40k --root . --config two.yaml", ["two.yaml: seeds is unknown. Did you mean 'seed'?"]),
        (
            "vggsound40k --root . --name ../x --runs file/runs --backbone huge",
            ["--name '../x' cannot be part of a folder's name.", "is not a folder.", "huge"],
        ),
        (
            "vggsound40k --devices 0 --strategy fsdp --lr fast --adapter none-such --against no-folder --batch-size 1",
            ["Where is VGG-Sound(40K)?", "--devices: ", "--strategy: 'fsdp' is not one of auto, ddp.", "--lr: ",
             "none-such: there is nothing at this path.", "no-folder: there is no such folder."],
        ),
        ("--resume none-such", ["--resume none-such: there is no such folder."]),
    ],
)  # fmt: skip
def test_misuse_is_told_before_any_work(capsys, arguments, parts):
    Path("two.yaml").write_text("seeds: [1, 2]\n")
    Path("file").write_text("")
    text = refused(capsys, *arguments.split())
    assert [part for part in parts if part not in text] == []
    assert "--seeds" not in text


def test_resuming_takes_what_does_not_contradict_the_run(capsys, tmp_path):
    config = PretrainConfig(dataset="vggsound40k")
    Run(config, dict.fromkeys(settings_of(PretrainConfig), "default"), tmp_path / "begun", "avfs pretrain").claim()
    text = refused(capsys, "vggsound", "--resume", "begun", "--lr", "1e-3", "--keep-leaks", "--val-clips", "1000")
    for said in ("vggsound (the run: vggsound40k)", "--lr 0.001 (the run: ", "--keep-leaks true (the run: false)"):
        assert said in text
    assert "--val-clips" not in text
    assert "Begin a new run for other settings." in text


def test_a_run_of_another_kind_is_not_resumed(capsys, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"format": 1, "kind": "fewshot"}')
    assert run(["pretrain", "--resume", "run"]) == 1
    assert "is not the record of a pretraining" in " ".join(capsys.readouterr().err.split())


def test_a_list_without_its_videos_is_told(capsys, tmp_path):
    write_files(tmp_path / "lists", {"vggsound-avel40k.csv": "category,video_id,split\ndog barking,00000001,train\n"})
    assert run(["pretrain", "vggsound40k", "--root", "lists", *SMALL]) == 1
    text = " ".join(capsys.readouterr().err.split())
    assert "none of its 1 clips" in text
    assert "--media DIR" in text
    assert not (tmp_path / "runs").exists()


def test_processes_of_torchrun_are_counted_from_the_environment(monkeypatch):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert launched_ranks(2, 3) == (2, 3)
    monkeypatch.setenv("WORLD_SIZE", "32")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "8")
    assert launched_ranks(1, 1) == (8, 4)


def test_prepared_clips_of_forbidden_videos_are_told_by_their_ids():
    leaks = shows_one_of({LEAKED})
    assert [name for name in (LEAKED, f"{LEAKED}_000030", f"{LEAKED}2", "0000001", f"x{LEAKED}") if leaks(name)] == [
        LEAKED,
        f"{LEAKED}_000030",
    ]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Nine clips of three seconds in three classes, listed as VGG-Sound(40K) is; one is in the small AVE beside it."""
    folder = tmp_path_factory.mktemp("world")
    lines = ["category,video_id,split,label"]
    for label, parts in CLASSES.items():
        for number, split in enumerate(SPLITS):
            video = LEAKED if (label, number) == ("clock ticking", 0) else f"{label[:4]}video_{number}"
            rng = np.random.default_rng(len(lines))
            write_clip(everywhere_script(Composition(*parts), rng, 3), folder / "vgg" / f"{video}_000010.mp4")
            lines.append(f'{label},{video}_000010,{split},"[1, 1, 1, 0, 0, 0, 0, 0, 0, 0]"')
    write_files(folder / "vgg", {"vggsound-avel40k_labels.csv": "\n".join(lines) + "\n"})
    write_files(folder / "AVE", AVE_FILES)
    return folder


@pytest.fixture(scope="module")
def pretrained(world) -> tuple[Path, str]:
    """The run folder of one pretraining from videos, and what it said."""
    return go(world, "videos", "--root", str(world / "vgg"))


def go(world: Path, name: str, *options: str) -> tuple[Path, str]:
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        status = run(["pretrain", "vggsound40k", *options, *SMALL, "--runs", str(world / "runs"), "--name", name])
    assert status == 0, said.getvalue()
    [folder] = (world / "runs" / "pretrain").glob(f"*-{name}")
    return folder, " ".join(said.getvalue().split())


def test_a_run_says_what_it_does(pretrained):
    folder, said = pretrained
    assert "Leakage into evaluation (AVE): 1 clips left out (1 in ave/test)." in said
    assert "5 clips of 3 classes, 2 steps an epoch, 1 epochs; batches of 3, 3 at once" in said
    assert "epoch 1/1: loss" in said
    assert f"avfs zeroshot --task ave_cls --adapter {folder}" in said
    assert "Traceback" not in said


def test_a_dry_run_says_what_it_would_take(world, capsys, tmp_path):
    runs = ["--runs", str(tmp_path / "runs"), "--dry-run", "--epochs", "4"]
    assert run(["pretrain", "vggsound40k", "--root", str(world / "vgg"), *SMALL, *runs, "--devices", "2"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "5 clips of 3 classes; 3 to validate with" in out
    assert "4 in 4 epochs, batches of 3 on each of 2 devices" in out  # 3 clips of 5 on the first of them
    for part in ("1 clips left out", "memory about", "adapters", "Nothing was trained"):
        assert part in out
    assert not (tmp_path / "runs").exists()


def test_the_model_card_tells_what_the_adapters_are(pretrained):
    folder, _ = pretrained
    config = load_adapter(folder).config
    card = (folder / "README.md").read_text()
    assert "| backbone | tiny (" in card
    assert all(digest[:12] in card for digest in config.identity.values())
    assert f"| list fingerprint | {config.support['fingerprint']} |" in card
    assert "avel-labels: 5 clips, 3 classes" in card
    assert card.rstrip().endswith("## Classes\n\nbell ringing, clock ticking, dog barking")
    assert "1 clips left out" in card


def test_towers_in_a_short_format_are_pretrained_on(world, capsys):
    short = ["bf16" if value == "fp32" else value for value in SMALL]
    runs = world / "short"
    command = ["pretrain", "vggsound40k", "--root", str(world / "vgg"), *short, "--runs", str(runs), "--name", "short"]
    assert run(command) == 0, capsys.readouterr().err
    capsys.readouterr()
    [folder] = (runs / "pretrain").glob("*-short")
    (world / "labels.txt").write_text("dog barking\nbell ringing\n")
    arguments = f"zeroshot --device cpu --precision bf16 --format json --labels {world}/labels.txt --adapter {folder}"
    assert run([*arguments.split(), str(world / "vgg" / "dog video_2_000010.mp4")]) == 0
    assert len(json.loads(capsys.readouterr().out)["clips"]) == 1


def test_pretrained_adapters_classify(pretrained, world, tmp_path, capsys):
    folder, _ = pretrained
    (tmp_path / "labels.txt").write_text("dog barking\nbell ringing\n")
    clip = world / "vgg" / "dog video_2_000010.mp4"
    arguments = ["--labels", "labels.txt", "--adapter", str(folder), "--backbone", "tiny", "--device", "cpu"]
    assert run(["zeroshot", *arguments, "--format", "json", str(clip)]) == 0
    [result] = json.loads(capsys.readouterr().out)["clips"]
    assert set(result["scores"]) == {"dog barking", "bell ringing"}
    assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-6)


def test_a_finished_run_can_be_resumed_and_stays_as_it_is(pretrained, capsys):
    folder, _ = pretrained
    before = {path.name: path.read_bytes() for path in (folder / "README.md", folder / "metrics.jsonl")}
    assert run(["pretrain", "--resume", str(folder), "--device", "cpu"]) == 0
    assert {name: (folder / name).read_bytes() for name in before} == before
    assert "bit for bit" not in capsys.readouterr().err


def test_a_run_whose_clips_have_changed_says_so(pretrained, world, capsys, tmp_path):
    folder, _ = pretrained
    copy = shutil.copytree(folder, tmp_path / "copy")
    video = world / "vgg" / "bellvideo_0_000010.mp4"
    video.rename(tmp_path / video.name)
    try:
        assert run(["pretrain", "--resume", str(copy), "--device", "cpu"]) == 0
    finally:
        (tmp_path / video.name).rename(video)
    assert "This does not resume bit for bit: the clips are not those" in " ".join(capsys.readouterr().err.split())


def test_the_same_from_shards(world, capsys):
    prepare = ["data", "prepare", "vggsound40k", "--root", str(world / "vgg"), "--out", str(world / "shards")]
    assert run([*prepare, "--backbone", "tiny", "--seconds", "3", "--workers", "1"]) == 0
    capsys.readouterr()
    folder, said = go(world, "shards", "--shards", str(world / "shards"), "--against", str(world / "AVE"))
    assert "Leakage into evaluation: 1 clips left out." in said
    assert "6 clips of 3 classes" in said
    config = load_adapter(folder).config
    assert config.support["clips"] == 5
    assert "5 clips, 3 classes" in (folder / "README.md").read_text()
    options = {"frame_size": 64, "workers": 1}
    left = shards_to_pretrain(world / "shards", "vggsound40k", **options, against=[world / "AVE"], keep_leaks=False)
    assert left.notes == ("Leakage into evaluation: 1 clips left out.",)
    assert left.skip(f"{LEAKED}_000010")
    unchecked = shards_to_pretrain(world / "shards", "vggsound40k", **options, against=[], keep_leaks=False)
    assert "is not checked" in unchecked.notes[0]
    assert "--against DIR" in unchecked.notes[0]
    kept = shards_to_pretrain(world / "shards", "vggsound40k", **options, against=[world / "AVE"], keep_leaks=True)
    assert "too good" in kept.notes[0]
    assert not kept.skip(f"{LEAKED}_000010")
