"""Two processes at once on one cache and on one folder of shards: each ends well, and what is left is whole."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from media_factory import write_two_classes

from avfewshot.cli.destinations import earlier_results
from avfewshot.data.shards.reader import ShardSet
from avfewshot.errors import UsageError
from avfewshot.io import try_lock


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    return write_two_classes(tmp_path_factory.mktemp("two") / "clips")


def both(cache: Path, *commands: list[str]) -> list[tuple[int, str]]:
    """Status and messages of commands that run at the same time."""
    environment = os.environ | {"AVFS_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, "-m", "avfewshot", *command], env=environment, stderr=subprocess.PIPE, text=True
        )
        for command in commands
    ]
    return [(process.returncode, err) for process in running for err in [process.communicate()[1]]]


def zeroshot(clips: Path, output: Path) -> list[str]:
    return [
        *("zeroshot", str(clips), "--label", "dog barking", "--label", "rain"),
        *("--backbone", "tiny", "--device", "cpu", "--output", str(output)),
    ]


def test_one_cache(clips, tmp_path):
    files = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    ends = both(tmp_path / "cache", *(zeroshot(clips, file) for file in files))
    assert [status for status, _ in ends] == [0, 0], ends
    first, second = ([json.loads(line) for line in file.read_text().splitlines()] for file in files)
    assert first == second
    assert len(first) == 6


def test_one_file_of_lines(avfs, clips, tmp_path):
    target = tmp_path / "r.jsonl"
    target.write_text("somebody's\n")
    with open(target, "a") as held:
        assert try_lock(held.fileno())
        told = avfs.refused(*zeroshot(clips, target), "--overwrite")
    assert "another process is writing it" in " ".join(told.split())
    assert target.read_text() == "somebody's\n"


def test_the_line_that_somebody_is_writing_is_not_cut_off(tmp_path):
    target = tmp_path / "r.jsonl"
    target.write_text('{"path": "a", "ru')
    with open(target, "a") as held:
        assert try_lock(held.fileno())
        with pytest.raises(UsageError, match="another process is writing it"):
            earlier_results(target, "run")
    assert target.read_text() == '{"path": "a", "ru'
    assert not earlier_results(target, "run").paths
    assert target.read_text() == ""


def test_one_folder_of_shards(clips, tmp_path):
    out = tmp_path / "shards"
    command = f"data prepare folder --root {clips} --backbone tiny --workers 1 --out {out}".split()
    ends = both(tmp_path / "cache", command, command)
    assert {status for status, _ in ends} <= {0, 1}, ends
    assert 0 in {status for status, _ in ends}, ends
    assert "Traceback" not in "".join(err for _, err in ends)
    shards = ShardSet.open(out, verify=True)
    assert sum(shards.splits.values()) == 6
    assert not list(out.glob(".*"))
