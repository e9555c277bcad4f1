"""Imports little on purpose: every process that a test starts imports it again."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from avfewshot.data.shards.processes import run_tasks
from avfewshot.errors import AvfsError


def square(number, tick):
    tick()
    tick()
    return number * number


def endless(path, tick):
    """Leaves a file behind if nobody stops it within a minute."""
    for _ in range(6000):
        time.sleep(0.01)
        tick()
    Path(path).touch()


def die(number, tick):
    os._exit(3)


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_and_ticks_of_all_tasks(jobs):
    ticks = []
    assert sorted(run_tasks(square, [1, 2, 3], jobs=jobs, progress=ticks.append)) == [1, 4, 9]
    assert sum(ticks) == 6


def test_an_interrupt_stops_every_process_between_two_steps(tmp_path):
    def interrupt(count):
        raise KeyboardInterrupt

    tasks = [str(tmp_path / name) for name in ("a", "b", "c")]
    with pytest.raises(KeyboardInterrupt):
        list(run_tasks(endless, tasks, jobs=2, progress=interrupt))
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_is_told():
    with pytest.raises(AvfsError, match="process died"):
        list(run_tasks(die, [1, 2], jobs=2, progress=lambda count: None))


def test_worker_processes_use_one_thread_and_the_parent_is_left_as_it_was(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert set(run_tasks(threads, [1, 2], jobs=2, progress=lambda count: None)) == {"1"}
    assert os.environ["OMP_NUM_THREADS"] == "7"


def threads(number, tick):
    return os.environ["OMP_NUM_THREADS"]
