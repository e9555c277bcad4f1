"""Long tasks in several processes that report each step and can be stopped between two of them."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from avfewshot.errors import AvfsError

T = TypeVar("T")
R = TypeVar("R")
Tick = Callable[[], None]
"""Called after every step of a task; raises :class:`StoppedError` when the work is to end."""

_POLL_SECONDS = 0.2
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class StoppedError(Exception):
    """The parent asked for an end."""


def run_tasks(
    function: Callable[[T, Tick], R], tasks: Sequence[T], *, jobs: int, progress: Callable[[int], object]
) -> Iterator[R]:
    """Call `function` with each task and a tick.

    Closing the iterator, or an exception such as KeyboardInterrupt, stops each process at its next tick.

    Args:
        function: At the top level of a module, so that other processes find it.
        tasks: Picklable.
        jobs: Processes; with 1 the work is done in this one.
        progress: Called in this process with the number of ticks since the last call.

    Yields:
        What the calls return, in the order in which they get done.

    Raises:
        AvfsError: A process died.
    """
    if jobs == 1 or len(tasks) < 2:
        for task in tasks:
            yield function(task, lambda: progress(1))
        return
    context = multiprocessing.get_context("spawn")
    ticks, stop = context.Value("q", 0), context.Event()
    seen = 0

    def report() -> None:
        nonlocal seen
        count = ticks.value
        if count > seen:
            progress(count - seen)
            seen = count

    pool = ProcessPoolExecutor(
        min(jobs, len(tasks)), mp_context=context, initializer=_start_worker, initargs=(ticks, stop)
    )
    try:
        with _worker_surroundings():
            waiting = {pool.submit(_call, function, task) for task in tasks}
        while waiting:
            done, waiting = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            report()
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise AvfsError(
            "A process died; perhaps the memory ran out.", hint="Run it again with fewer --workers."
        ) from error
    finally:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)


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


# In a worker process: the tick that its tasks are given. Set once when it starts, since shared memory can only be
# inherited, not sent along with a task.
_tick: list[Tick] = []


def _start_worker(ticks: Any, stop: Any) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def tick() -> None:
        with ticks.get_lock():
            ticks.value += 1
        if stop.is_set():
            raise StoppedError

    _tick[:] = [tick]


def _call(function: Callable[[T, Tick], R], task: T) -> R:
    return function(task, _tick[0])


def _end_with_parent() -> None:
    """Without this a worker would wait for work for ever when its parent is killed."""
    multiprocessing.parent_process().join()
    os._exit(1)
