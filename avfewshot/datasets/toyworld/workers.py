"""Clips written by several processes at once, so that an interrupt or a kill leaves whole files only."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import av

from avfewshot.datasets.toyworld.script import ClipScript
from avfewshot.datasets.toyworld.writer import write_clip
from avfewshot.errors import AvfsError, DataError
from avfewshot.fileio import sha256_file

_GO_ON = "Remedy it and run the same command again: it goes on where it stopped."
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


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
        min(jobs, len(tasks)), mp_context=multiprocessing.get_context("spawn"), initializer=_start_worker
    )
    try:
        with _worker_surroundings():
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


@contextlib.contextmanager
def _worker_surroundings() -> Iterator[None]:
    """What processes inherit that are started meanwhile: one thread each, and no ear for Ctrl-C.

    A terminal sends the interrupt to all processes; it is the parent that ends the others. One that is still importing
    its modules would print a traceback, so the signal has to be off before it starts.
    """
    before = {name: os.environ.get(name) for name in _THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(_THREAD_VARIABLES, "1"))
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """Without this a worker would wait for work for ever when its parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)
