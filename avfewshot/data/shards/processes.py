"""Long tasks in several processes that report each step and can be stopped between two of them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from avfewshot.errors import AvfsError
from avfewshot.io import begin_worker, worker_env

T = TypeVar("T")
R = TypeVar("R")
Tick = Callable[[], None]
"""Called after every step of a task; raises :class:`StoppedError` when the work is to end."""

_POLL_SECONDS = 0.2


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
        with worker_env():
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


# In a worker process: the tick that its tasks are given. Set once when it starts, since shared memory can only be
# inherited, not sent along with a task.
_tick: list[Tick] = []


def _start_worker(ticks: Any, stop: Any) -> None:
    begin_worker()

    def tick() -> None:
        with ticks.get_lock():
            ticks.value += 1
        if stop.is_set():
            raise StoppedError

    _tick[:] = [tick]


def _call(function: Callable[[T, Tick], R], task: T) -> R:
    return function(task, _tick[0])
