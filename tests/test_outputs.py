"""Where results go: targets, results that are gone on with, disks that are full, processes that were killed."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from sample_results import clip, failure, run_info

from avfewshot.cli.destinations import Target, earlier_results, plan_targets, run_id
from avfewshot.cli.outputs import open_writer
from avfewshot.errors import UsageError
from avfewshot.io import atomic_path, sweep_leftovers, write_text
from avfewshot.reports.timelines import free_stem
from avfewshot.reports.writers import Summary

RUN = run_id(labels=["dog"], backbone="tiny")


def write(path: Path, *results, run=RUN, resume=False):
    writer = open_writer(Target("jsonl", path), run_info(), topk=1, segments=False, run_id=run, resume=resume)
    for result in results:
        writer.add(result)
    writer.finish(Summary(len(results), 0, len(results), 1.0))


def test_results_are_gone_on_with(tmp_path):
    path = tmp_path / "r.jsonl"
    assert len(earlier_results(path, RUN)) == 0
    write(path, clip("a.mp4"), failure("b.mp4"))
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"path": "c.mp4", "lab')  # killed in the middle of a line
    earlier = earlier_results(path, RUN)
    assert (earlier.paths, earlier.failed) == ({"a.mp4", "b.mp4"}, 1)
    assert path.read_bytes() == whole
    write(path, clip("c.mp4"), resume=True)
    assert [json.loads(line)["path"] for line in path.read_text().splitlines()] == ["a.mp4", "b.mp4", "c.mp4"]
    write(path, clip("d.mp4"))
    assert earlier_results(path, RUN).paths == {"d.mp4"}
    path.write_bytes(b'{"path": "' + b"x" * 200_000)  # half a first line
    assert len(earlier_results(path, RUN)) == 0
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "line",
    [b'{"path": "a.mp4", "label": "dog"}\n', b'{"path": "a.mp4", "run": "0"}\n', b'{"label": 1}', b"[1]", b"text",
     b"[" * 9999, b"\xff\xfe\x00", b"\xef\xbb\xbf{}", b'{"path": "a", "run": ' + b"1" * 5000 + b"}\n"],
)  # fmt: skip
def test_other_results_are_neither_mixed_with_nor_cut_off(tmp_path, line):
    path = tmp_path / "r.jsonl"
    for end in (b"\n", b""):
        path.write_bytes(line + end)
        with pytest.raises(UsageError, match=r"r\.jsonl"):
            earlier_results(path, RUN)
        assert path.read_bytes() == line + end


def test_whatever_shapes_results_makes_another_run():
    assert run_id(labels=["dog"], backbone="tiny") == RUN
    assert len({RUN, run_id(labels=["cat"], backbone="tiny"), run_id(labels=["dog"], backbone="base")}) == 3


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from sample_results import clip, run_info
from avfewshot.cli.destinations import Target
from avfewshot.cli.outputs import open_writer
from avfewshot.reports.writers import Summary
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)  # as if the disk were full
path, writer = Path(sys.argv[1]), None
try:
    writer = open_writer(Target(sys.argv[2], path), run_info(), topk=1, segments=False)
    for number in range(100):
        writer.add(clip(f"{{number}}.mp4"))
except Exception as error:
    print(error, error.hint)
try:
    writer and writer.finish(Summary(1, 0, 100, 1.0))
except Exception as error:
    print("again", error)
"""


@pytest.mark.parametrize(("form", "room"), [("jsonl", 5000), ("csv", 5000), ("csv", 20)])
def test_a_full_disk_keeps_what_is_done(tmp_path, form, room):
    path = tmp_path / f"r.{form}"
    if form == "csv":
        path.write_text("old")
    code = FULL.format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", code, path, form, str(room)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{path}: cannot be written: File too large." in done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]
    if form == "csv":
        assert path.read_text() == "old"
    else:
        lines = path.read_text().splitlines()
        assert [json.loads(line)["path"] for line in lines] == [f"{number}.mp4" for number in range(len(lines))]
        assert len(lines) > 3


def test_leftovers_of_killed_processes_are_swept_and_those_of_living_ones_are_not(tmp_path):
    target = tmp_path / "r.json"
    (tmp_path / ".r-0123abcd.part.json").write_text("{")
    (tmp_path / ".other-0123abcd.part.json").write_text("{")
    with atomic_path(target) as temporary:
        sweep_leftovers(target)
        assert temporary.exists()
        temporary.write_text("{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other-0123abcd.part.json", "r.json"]


@pytest.mark.parametrize("name", ["r" * 251 + ".txt", "€" * 83 + ".txt"])
def test_the_longest_names_can_be_written_and_modes_follow_the_umask(tmp_path, name):
    before = os.umask(0o027)
    try:
        write_text(tmp_path / name, "x")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o640
    stem = free_stem(tmp_path / name.replace(".txt", ".ts"), set())
    write_text(tmp_path / f"{stem}.srt", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{stem}.srt"])


@pytest.mark.parametrize(
    ("form", "output", "clips", "message"),
    [
        ("srt", None, 2, "one file a clip"),
        ("eaf", "a.eaf", 2, "one file a clip"),
        ("vtt", "taken.txt", 2, "is a file"),
        ("fiftyone", "taken.txt", 2, "is a file"),
        ("vtt", "new", 2, None),
        ("srt", "a.srt", 1, None),
        ("srt", ".", 2, None),
        ("csv-segments", "a.csv", 2, None),
    ],
)
def test_timelines_of_several_clips_need_a_folder(tmp_path, monkeypatch, form, output, clips, message):
    monkeypatch.chdir(tmp_path)
    Path("taken.txt").touch()
    targets, faults = plan_targets(form, output, form_given=True, clips=clips)
    assert [target.form for target in targets] == [form]
    assert (message is None and not faults) or message in str(faults[0])
