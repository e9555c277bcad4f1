"""Run folders: one run each, locked while in use, and what may be given beside --resume."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from avfewshot.cli import runs
from avfewshot.cli.runs import Run, new_run, resumed_run, run_faults
from avfewshot.config import FewshotConfig, PretrainConfig, resolve
from avfewshot.errors import AvfsError, DataError, UsageError
from avfewshot.io import try_lock

DEVICES = ("device", "devices", "nodes", "strategy")


@pytest.fixture(autouse=True)
def current(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def begun(table: str, **flags: object) -> Run:
    settings = resolve(table, flags, environ={}).check()
    run = new_run(settings, "group", "label", f"avfs {table}")
    run.claim()
    return run


def test_runs_of_the_same_second_have_folders_of_their_own():
    settings = resolve("fewshot", {"name": "x"}, environ={}).check()
    first, second = (new_run(settings, "llp_cls", "4-shot", "avfs") for _ in range(2))
    second.folder = first.folder  # as if the second had not passed
    first.claim()
    second.claim()
    assert second.folder == first.folder.with_name(f"{first.folder.name}-2")
    assert first.folder.name.endswith("-x")


def test_a_run_in_use_cannot_be_resumed_by_another_process():
    run = begun("fewshot")
    code = (
        "import sys; from pathlib import Path; from avfewshot.cli.runs import resumed_run\n"
        "resumed_run('fewshot', Path(sys.argv[1]), {}, may_change=()).claim()"
    )
    command = [sys.executable, "-c", code, str(run.folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert "another process works on this run" in done.stderr
    run._lock.close()  # as when its process has ended
    assert subprocess.run(command, capture_output=True, timeout=60).returncode == 0


def test_what_killed_processes_left_in_a_run_is_removed_when_it_goes_on():
    folder = begun("fewshot").folder
    (folder / "seed-1").mkdir()
    left = [folder / ".results-0a1b2c3d.part.json", folder / "seed-1" / ".metrics-0a1b2c3d.part.jsonl"]
    kept = [folder / "run.json", folder / "seed-1" / ".notes.part.txt", folder / "seed-1" / "metrics.jsonl"]
    for path in (*left, *kept[1:]):
        path.touch()
    with open(left[0]) as stream:  # whose writer lives
        assert try_lock(stream.fileno())
        run = resumed_run("fewshot", str(folder), {}, may_change=())
        run.claim()
    assert sorted(path for path in folder.rglob("*") if path.is_file()) == sorted([left[0], *kept])


def test_a_run_whose_folder_is_taken_away_is_not_done():
    run = begun("fewshot")
    run.check_kept()
    run.folder.rename("elsewhere")
    with pytest.raises(AvfsError, match="was removed or moved while the run wrote there"):
        run.check_kept()


def test_names_that_no_folder_should_have():
    for name in ("", ".x", "..", "a/b", "a\nb", "a\x1b[31m", "x" * 101):
        [fault] = run_faults(resolve("fewshot", {"name": name}, environ={}))
        assert "cannot be part of a folder's name" in fault.message
    assert not run_faults(resolve("fewshot", {"name": "x" * 100}, environ={}))


def test_a_run_goes_on_as_it_was_begun_from_any_folder(monkeypatch, tmp_path):
    run = begun("fewshot", task="ave", root="data", media=["a", "b"], shots="4", clip_weights="w.pt")
    (tmp_path / "elsewhere").mkdir()
    folder = run.folder.absolute()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = resumed_run("fewshot", folder, {}, may_change=())
    assert again.config == run.config
    assert again.sources == run.sources
    assert again.config.data.media == (tmp_path / "a", tmp_path / "b")
    assert (again.resumed, again.command) == (True, "avfs fewshot")


def test_what_does_not_contradict_a_run_may_be_given_beside_resume():
    folder = begun("pretrain", dataset="vggsound40k", batch_size="8", media=["a"], devices="2").folder
    flags = {"dataset": "vggsound40k", "batch_size": "8", "media": ["a"], "keep_leaks": False, "devices": "4"}
    run = resumed_run("pretrain", folder, flags, may_change=DEVICES)
    assert run.config.ranks.devices == 4
    assert run.config.training.batch_size == 8
    with pytest.raises(UsageError) as caught:
        resumed_run("pretrain", folder, {"dataset": "ovave", "batch_size": "4", "lr": "x"}, may_change=DEVICES)
    told = str(caught.value)
    assert "DATASET ovave (the run: vggsound40k)" in told
    assert "--batch-size 4 (the run: 8)" in told
    assert "--lr: a number greater than 0" in told
    with pytest.raises(AvfsError, match="begun by `avfs pretrain`"):
        resumed_run("fewshot", folder, {}, may_change=())
    record = folder / runs.RUN_FILE
    record.write_text(json.dumps({**json.loads(record.read_text()), "format": 1}))
    with pytest.raises(AvfsError, match="Begin a new run"):
        resumed_run("pretrain", folder, {}, may_change=())
    for damaged in ("[" * 100_000, "[1]", '{"format": 2', "\0"):
        record.write_text(damaged)
        with pytest.raises(DataError, match=r"run\.json: is damaged"):
            resumed_run("pretrain", folder, {}, may_change=())


def test_the_record_is_the_dump_of_the_config():
    for table, model, flags in (("fewshot", FewshotConfig, {}), ("pretrain", PretrainConfig, {"dataset": "ovave"})):
        run = begun(table, **flags)
        record = json.loads((run.folder / runs.RUN_FILE).read_text())
        assert record["config"] == run.config.model_dump(mode="json")
        assert model.from_dict(record["config"]) == run.config
        assert Path(record["config"]["run"]["runs"]).is_absolute()
