"""A disk that fills up while something is written: a clear end, status 1, and what is done is kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from media_factory import tone, write_media

from avfewshot.cli.app import run

TINY = ("--backbone", "tiny", "--device", "cpu", "--precision", "fp32")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    for number in range(6):
        path = folder / "clips" / ("dog", "rain")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_media(path, seconds=2.0, audio=tone(2.0, frequency=200 + 100 * number))
    (folder / "labels.txt").write_text("dog barking\nrain\n" + "".join(f"another sound {n}\n" for n in range(60)))
    return folder


def mounted(folder: Path, kilobytes: int) -> subprocess.Popen | None:
    """Make a disk of so many kB; it goes when the process that is given closes its input, or this one is killed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        return None
    ended = ["sh", "-c", 'cat; umount -l "$1"', "sh", str(folder)]
    return subprocess.Popen(ended, stdin=subprocess.PIPE, start_new_session=True)


@pytest.fixture
def disk(tmp_path):
    """A function that makes a disk of so many kB."""
    folder = tmp_path / "disk"
    guards = []

    def mount(kilobytes: int) -> Path:
        folder.mkdir()
        guards.append(mounted(folder, kilobytes))
        if guards[0] is None:
            pytest.skip("a tmpfs cannot be mounted here")
        return folder

    yield mount
    for guard in filter(None, guards):
        guard.communicate()
    assert not folder.is_mount()


def test_a_killed_test_leaves_no_disk_behind(tmp_path, disk):
    disk(4)  # skips where nothing can be mounted
    (tmp_path / "other").mkdir()
    code = "import os, sys, signal, pathlib; sys.path.insert(0, sys.argv[1]); from test_full_disk import mounted\n"
    code += "mounted(pathlib.Path(sys.argv[2]), 4); print(os.path.ismount(sys.argv[2]), flush=True); signal.pause()"
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(tmp_path / "other")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "True\n"
        process.kill()
    deadline = time.monotonic() + 30
    while (tmp_path / "other").is_mount() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not (tmp_path / "other").is_mount()


def execute(world, *arguments, cache=None):
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(world)
        patch.setenv("COLUMNS", "160")
        patch.setenv("AVFS_CACHE", str(cache or world / "cache"))
        status = run([str(argument) for argument in arguments])
    said = " ".join(err.getvalue().split())
    assert "Traceback" not in said
    assert "nexpected" not in said
    return status, said


def left(disk: Path) -> list[str]:
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())


ZEROSHOT = ("zeroshot", "--labels", "labels.txt", "clips", *TINY)
FEWSHOT = ("fewshot", "--data", "clips", "--shots", "1", "--seeds", "1", *TINY)


@pytest.mark.parametrize("form", ["csv", "json", "srt", "html"])
def test_a_file_that_does_not_fit_is_not_put_in_its_place(world, disk, form):
    folder = disk(4)
    option = "--report" if form == "html" else "--output"
    status, said = execute(world, *ZEROSHOT, option, folder if form == "srt" else folder / f"r.{form}", "--format", {
        "html": "table"}.get(form, form))  # fmt: skip
    assert status == 1
    assert "No space left on device" in said
    assert form == "srt" or left(folder) == []


def test_whole_lines_are_kept_and_gone_on_with(world, disk):
    folder = disk(8)
    status, said = execute(world, *ZEROSHOT, "--output", folder / "r.jsonl")
    assert status == 1
    assert "No space left on device. Results so far are in it" in said
    lines = (folder / "r.jsonl").read_text().splitlines()
    assert 0 < len(lines) < 6
    assert all(json.loads(line)["label"] for line in lines)
    subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
    status, _ = execute(world, *ZEROSHOT, "--output", folder / "r.jsonl")
    assert status == 0
    assert (folder / "r.jsonl").read_text().splitlines()[: len(lines)] == lines
    assert len((folder / "r.jsonl").read_text().splitlines()) == 6


def test_a_full_cache_costs_no_result(world, disk, tmp_path):
    status, said = execute(world, *ZEROSHOT, "--output", tmp_path / "r.csv", cache=disk(4))
    assert status == 0, said
    assert len((tmp_path / "r.csv").read_text().splitlines()) == 7


@pytest.mark.parametrize(
    ("kilobytes", "arguments"),
    [
        (16, ("embed", "clips", "--store", "{disk}/store", *TINY)),
        (8, (*FEWSHOT, "--method", "kernel_ridge", "--runs", "{disk}/runs")),
        (60, (*FEWSHOT, "--method", "dgsct", "--epochs", "1", "--hidden", "8", "--runs", "{disk}/runs")),
        (80, ("data", "prepare", "folder", "--root", "clips", "--backbone", "tiny", "--out", "{disk}/shards")),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else None,
)
def test_commands_end_clearly_and_name_the_place(world, disk, kilobytes, arguments):
    folder = disk(kilobytes)
    status, said = execute(world, *(argument.format(disk=folder) for argument in arguments))
    assert status == 1, said
    assert str(folder) in said
    assert any(text in said for text in ("No space left on device", "disk is full", "are free"))
