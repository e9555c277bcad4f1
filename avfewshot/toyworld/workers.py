"""Clips written by several processes at once, so that an interrupt or a kill leaves whole files only."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import av

from avfewshot.errors import AvfsError, DataError
from avfewshot.io import begin_worker, sha256_file, worker_env
from avfewshot.toyworld.script import ClipScript
from avfewshot.toyworld.writer import write_clip

_GO_ON = "Remedy it and run the same command again: it goes on where it stopped."


@dataclass(frozen=True)
class Task:
    """A clip to write.

    Attributes:
        name: What the caller knows it by.
        path: The file.
        script: What happens in it.
    """

    name: str
    path: Path
    script: ClipScript


@dataclass(frozen=True)
class Written:
    """A clip that has been written.

    Attributes:
        name: That of the task.
        sha256: Digest of the file.
    """

    name: str
    sha256: str


def write_clips(tasks: Sequence[Task], jobs: int) -> Iterator[Written]:
    """Write clips, in the order in which they get done.

    Closing the iterator, or an exception such as KeyboardInterrupt, lets each process end the clip at hand and drops
    the rest.

    Args:
        tasks: What to write.
        jobs: Processes; with 1 the work is done in this one.

    Yields:
        One entry a clip.

    Raises:
        DataError: A file cannot be written.
        AvfsError: A process died.
    """
    if jobs == 1 or len(tasks) < 2:
        yield from map(_write, tasks)
        return
    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=multiprocessing.get_context("spawn"), initializer=begin_worker
    )
    try:
        with worker_env():
            futures = [pool.submit(_write, task) for task in tasks]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        raise AvfsError(
            "A process that writes clips died; perhaps the memory ran out.", hint="Run it again with fewer --jobs."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write(task: Task) -> Written:
    try:
        write_clip(task.script, task.path)
        return Written(task.name, sha256_file(task.path))
    except (OSError, av.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(f"{task.path}: cannot be written: {reason}.", hint=_GO_ON) from error
