"""`avfs pretrain`: what a newcomer does wrong, and whole runs from videos and from shards."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from command_support import Commands
from dataset_files import AVE_FILES, write_files
from fewshot_worlds import everywhere_script

from avfewshot.cli.progress import Display, ProgressBar
from avfewshot.media.clip import Failure
from avfewshot.models.checkpoint import load_adapter
from avfewshot.toyworld.render import write_clip
from avfewshot.toyworld.vocabulary import Composition
from avfewshot.training.data import shards_to_pretrain, shows_one_of
from avfewshot.training.distributed import launched_ranks
from avfewshot.training.protocol import Pace

CLASSES = {
    "dog barking": ("dog", "barking"),
    "bell ringing": ("bell", "ringing"),
    "clock ticking": ("clock", "ticking"),
}
SPLITS = ("train", "train", "val")
LEAKED = "hhhhhhhhhhh"  # a video of the test split of the small AVE beside the list
CLIP = "vgg/dog video_2_000010.mp4"
SMALL = ("--backbone", "tiny", "--device", "cpu", "--window", "3", "--workers", "1", "--epochs", "1")
SMALL += ("--batch-size", "3", "--precision")


def refused(folder: Path, *arguments: object, status: int = 2) -> str:
    """What is said in a folder of a command that is misuse."""
    out, err = Commands(folder, shared=False)("pretrain", *arguments, status=status)
    assert out == ""
    return " ".join(err.split())


NEEDED = "--devices: a whole number of at least 1 or 'auto' is needed, not"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("vggsound41k", ["There is no pretraining list 'vggsound41k'.", "vggsound40k|vggsound|ovave"]),
        ("vggsound40k --shards s --root r --list l.csv", ["--root and --list cannot be given with --shards."]),
        *((f"vggsound40k --root . --devices={bad}", [f"{NEEDED} {bad!r}."]) for bad in ("0", "-1", "two", "²", "1.5")),
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
def test_misuse_is_told_before_any_work(tmp_path, arguments, parts):
    write_files(tmp_path, {"two.yaml": "seeds: [1, 2]\n", "file": ""})
    text = refused(tmp_path, *arguments.split())
    assert [part for part in parts if part not in text] == []
    assert "--seeds" not in text


def test_a_run_of_another_kind_is_not_resumed(tmp_path):
    write_files(tmp_path, {"run/run.json": '{"format": 1, "kind": "fewshot"}'})
    assert "is not the record of a pretraining" in refused(tmp_path, "--resume", "run", status=1)


def test_a_list_without_its_videos_is_told(tmp_path):
    write_files(tmp_path / "lists", {"vggsound-avel40k.csv": "category,video_id,split\ndog barking,00000001,train\n"})
    text = refused(tmp_path, "vggsound40k", "--root", "lists", *SMALL, "fp32", status=1)
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
    names = (LEAKED, f"{LEAKED}_000030", f"{LEAKED}2", "0000001", f"x{LEAKED}")
    assert list(filter(shows_one_of({LEAKED}), names)) == [LEAKED, f"{LEAKED}_000030"]


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
    (folder / "labels.txt").write_text("dog barking\nbell ringing\n")
    return folder


@pytest.fixture(scope="module")
def avfs(world):
    return Commands(world)


@pytest.fixture(scope="module")
def pretrained(avfs) -> Path:
    """The run folder of one pretraining from videos."""
    _, said = avfs("pretrain", "vggsound40k", "--root", "vgg", *SMALL, "fp32", "--name", "videos")
    folder, said = avfs.folder_of("videos"), " ".join(said.split())
    assert "Leakage into evaluation (AVE): 1 clips left out (1 in ave/test)." in said
    assert "5 clips of 3 classes, 2 steps an epoch, 1 epoch; batches of 3, 3 at once" in said
    assert "epoch 1/1: loss" in said
    assert f"avfs zeroshot --task ave_cls --adapter {folder.relative_to(avfs.folder)}" in said
    return folder


def test_a_dry_run_says_what_it_would_take(avfs, tmp_path):
    dry = ("--runs", tmp_path / "runs", "--dry-run", "--epochs", "4", "--devices", "2")
    out, _ = avfs("pretrain", "vggsound40k", "--root", "vgg", *SMALL, "fp32", *dry)
    out = " ".join(out.split())
    assert "5 clips of 3 classes; 3 to validate with" in out
    assert "4 in 4 epochs, batches of 3 on each of 2 devices" in out  # 3 clips of 5 on the first of them
    for part in ("1 clips left out", "memory about", "adapters", "Nothing was trained"):
        assert part in out
    assert not (tmp_path / "runs").exists()


def test_the_model_card_tells_what_the_adapters_are_and_they_classify(avfs, pretrained):
    config = load_adapter(pretrained).config
    card = (pretrained / "README.md").read_text()
    assert "| backbone | tiny (" in card
    assert all(digest[:12] in card for digest in config.identity.values())
    assert f"| list fingerprint | {config.support['fingerprint']} |" in card
    assert "avel-labels: 5 clips, 3 classes" in card
    assert card.rstrip().endswith("## Classes\n\nbell ringing, clock ticking, dog barking")
    assert "1 clips left out" in card
    asked = ("--labels", "labels.txt", "--adapter", pretrained, "--backbone", "tiny", "--device", "cpu")
    [result] = avfs.json("zeroshot", *asked, CLIP)["clips"]
    assert set(result["scores"]) == {"dog barking", "bell ringing"}
    assert sum(result["scores"].values()) == pytest.approx(1, abs=1e-6)


def test_towers_in_a_short_format_are_pretrained_on(avfs):
    folder = avfs.made("pretrain", "vggsound40k", "--root", "vgg", *SMALL, "bf16", name="short")
    asked = ("--labels", "labels.txt", "--adapter", folder, "--device", "cpu", "--precision", "bf16")
    assert len(avfs.json("zeroshot", *asked, CLIP)["clips"]) == 1


def test_a_finished_run_can_be_resumed_and_says_whether_its_clips_have_changed(pretrained, avfs, world, tmp_path):
    copy = shutil.copytree(pretrained, tmp_path / "copy")
    before = {path.name: path.read_bytes() for path in (copy / "README.md", copy / "metrics.jsonl")}
    assert "bit for bit" not in avfs("pretrain", "--resume", copy, "--device", "cpu")[1]
    assert {name: (copy / name).read_bytes() for name in before} == before
    video = world / "vgg" / "bellvideo_0_000010.mp4"
    video.rename(tmp_path / video.name)
    try:
        _, err = avfs("pretrain", "--resume", copy, "--device", "cpu")
    finally:
        (tmp_path / video.name).rename(video)
    assert "This does not resume bit for bit: the clips are not those" in " ".join(err.split())


def test_the_same_from_shards(avfs, world):
    prepare = ("data", "prepare", "vggsound40k", "--root", "vgg", "--out", "shards", "--backbone", "tiny")
    avfs(*prepare, "--seconds", "3", "--workers", "1")
    asked = ("--shards", "shards", "--against", "AVE", *SMALL, "fp32", "--name", "shards")
    _, said = avfs("pretrain", "vggsound40k", *asked)
    assert "Leakage into evaluation: 1 clips left out." in " ".join(said.split())
    assert "6 clips of 3 classes" in " ".join(said.split())
    folder = avfs.folder_of("shards")
    assert load_adapter(folder).config.support["clips"] == 5
    assert "5 clips, 3 classes" in (folder / "README.md").read_text()

    def pretrained_on(against, keep_leaks):
        options = {"frame_size": 64, "workers": 1, "against": against, "keep_leaks": keep_leaks}
        return shards_to_pretrain(world / "shards", "vggsound40k", **options)

    left = pretrained_on([world / "AVE"], False)
    assert left.notes == ("Leakage into evaluation: 1 clips left out.",)
    assert left.skip(f"{LEAKED}_000010")
    unchecked = pretrained_on([], False)
    assert "is not checked" in unchecked.notes[0]
    assert "--against DIR" in unchecked.notes[0]
    kept = pretrained_on([world / "AVE"], True)
    assert "too good" in kept.notes[0]
    assert not kept.skip(f"{LEAKED}_000010")


def test_the_first_clips_that_cannot_be_read_are_said_and_all_are_written_down(tmp_path, capsys):
    display, file = Display(), tmp_path / "unreadable.csv"
    display.write_left(file)
    assert not file.exists()
    for number in (0, 1, 2, 3, 0):  # again in the next epoch
        display.unreadable(Failure(f"{number}.mp4", "is empty", f"id-{number}"))
    said = capsys.readouterr().err
    assert [f"left out: {number}.mp4: is empty" in said for number in range(4)] == [True, True, True, False]
    assert said.count("left out") == 3
    display.write_left(file)
    assert file.read_text().splitlines() == ["id,path,reason", *(f"id-{n},{n}.mp4,is empty" for n in range(4))]
    assert "4 clips could not be read" in capsys.readouterr().err


def test_after_a_few_steps_the_time_to_the_end_is_told_once_with_what_would_shorten_it(capsys):
    for left, shorter in ((3 * 3600.0, False), (9 * 3600.0, True)):
        bar = ProgressBar(Display(), "epoch", 2, pace=True)
        for step in range(7):
            bar.on_step(step, 1.0, Pace(2.0, 0.1, None, left))
        said = capsys.readouterr().err
        assert said.count(f"2.0 clips/s: about {left / 3600:.1f} hours to the end of epoch 2") == 1
        assert ("--shards would shorten that" in said) == shorter
