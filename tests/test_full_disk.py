"""A disk that fills up while something is written: a clear end, status 1, and what is done is kept."""

import json
import shutil
import subprocess
from pathlib import Path

import command_support
import pytest
from media_factory import write_two_classes


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full")
    write_two_classes(folder / "clips")
    (folder / "labels.txt").write_text("dog barking\nrain\n" + "".join(f"another sound {n}\n" for n in range(60)))
    said = [{"result": [{"type": "choices", "value": {"choices": ["dog"]}}]}]
    tasks = [{"data": {"video": path.name}, "annotations": said} for path in (folder / "clips").rglob("*.mp4")]
    (folder / "labels.json").write_text(json.dumps(tasks))
    return folder


@pytest.fixture
def disk(tmp_path):
    """A function that makes a disk of so many kB, which goes with this process, however it ends."""
    folder = tmp_path / "disk"
    guards = []

    def mount(kilobytes: int) -> Path:
        folder.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("a tmpfs cannot be mounted here")
        ended = ["sh", "-c", 'cat; umount -l "$1"', "sh", str(folder)]
        guards.append(subprocess.Popen(ended, stdin=subprocess.PIPE, start_new_session=True))
        return folder

    yield mount
    for guard in guards:
        guard.communicate()
    assert not folder.is_mount()


def execute(world, *arguments, cache=None):
    status, _, err = command_support.execute(world, *arguments, cache=cache or world / "cache")
    assert "nexpected" not in err
    return status, " ".join(err.split())


def left(disk: Path) -> list[str]:
    return sorted(str(path.relative_to(disk)) for path in disk.rglob("*") if path.is_file())


ZEROSHOT = ("zeroshot", "--labels", "labels.txt", "clips", *command_support.TINY)
FEWSHOT = ("fewshot", "--data", "clips", "--shots", "1", "--seeds", "1", *command_support.TINY)


@pytest.mark.parametrize("form", ["csv", "json", "srt", "html"])
def test_a_file_that_does_not_fit_is_not_put_in_its_place(world, disk, form):
    folder = disk(4)
    output = ("--output", folder if form == "srt" else folder / f"r.{form}", "--format", form)
    status, said = execute(world, *ZEROSHOT, *(("--report", folder / "r.html") if form == "html" else output))
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
        (16, ("embed", "clips", "--store", "{disk}/store", *command_support.TINY)),
        (8, (*FEWSHOT, "--method", "kernel_ridge", "--runs", "{disk}/runs")),
        (60, (*FEWSHOT, "--method", "dgsct", "--epochs", "1", "--hidden", "8", "--runs", "{disk}/runs")),
        (24, ("data", "import", "labels.json", "--clips", "clips", "--root", "{disk}/mine")),
        (8, ("export", "--labels", "labels.txt", "--onnx", "{disk}/onnx", "--backbone", "tiny")),
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
