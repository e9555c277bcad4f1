"""Work done ahead in threads: in order, in bounded memory, ended with the caller."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")

_WAIT_SECONDS = 0.5  # an unlimited wait could not be interrupted by Ctrl-C on Windows

this_thread = threading.local()
""".stopped: the event that ends the work of this thread; what it waits for should watch it."""


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, workers: int) -> Iterator[R]:
    """``map(function, items)``, computed ahead in threads: at most two items a thread are in work or waiting."""
    return ordered_stream(lambda item: iter((function(item),)), items, workers=workers, prefetch=2 * workers)


def ordered_stream(
    function: Callable[[T], Iterator[R]], items: Iterable[T], *, workers: int, prefetch: int
) -> Iterator[R]:
    """The results of ``function(item)`` for each item, in order, computed ahead in threads.

    At most `prefetch` results are computed or held beside the one that was handed out. `items` is only advanced by the
    caller's thread, `prefetch` items ahead. An exception is raised where its result would have come. Closing the
    iterator, or an exception in the caller's loop, ends the threads and the decoding that they wait for. ``workers=0``
    calls `function` in the caller's own thread.
    """
    if workers < 1:
        for item in items:
            yield from function(item)
        return
    line, jobs, source = _Line(prefetch), deque[_Job](), iter(items)
    threads: list[threading.Thread] = []
    try:
        while True:
            while len(jobs) < prefetch:
                try:
                    jobs.append(_Job(function, next(source)))
                except StopIteration:
                    break
                line.put(jobs[-1])
                if len(threads) < min(workers, line.queued):
                    threads.append(threading.Thread(target=line.work, name="avfs-decode", daemon=True))
                    threads[-1].start()
            if not jobs:
                return
            line.lead(jobs[0])
            while (result := line.next_of(jobs[0])) is not None:
                yield result.pop()
                del result  # not held while the next one is decoded
            if (error := jobs.popleft().error) is not None:
                raise error
    finally:
        line.stop()
        for thread in threads:
            thread.join()


class _Job:
    """An item and what has been made of it."""

    def __init__(self, function: Callable[[Any], Iterator[Any]], item: Any) -> None:
        self.call = functools.partial(function, item)
        self.ready: deque[list[Any]] = deque()  # lists of one, so that a result is not held here any more once popped
        self.done = False
        self.error: BaseException | None = None


class _Line:
    """Jobs in order, worked on by several threads, handed out by one."""

    def __init__(self, limit: int) -> None:
        self.stopped = threading.Event()
        self.queued = 0
        self._limit = limit
        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._head: _Job | None = None
        self._held = 0

    def put(self, job: _Job) -> None:
        with self._changed:
            self.queued += 1
            self._waiting.append(job)
            self._changed.notify_all()

    def lead(self, job: _Job) -> None:
        """This job is handed out now."""
        with self._changed:
            self._head = job
            self._changed.notify_all()

    def next_of(self, job: _Job) -> list[Any] | None:
        with self._changed:
            while not job.ready:
                if job.done:
                    return None
                self._changed.wait(_WAIT_SECONDS)
            self._held -= 1
            self._changed.notify_all()
            return job.ready.popleft()

    def stop(self) -> None:
        with self._changed:
            self.stopped.set()
            self._changed.notify_all()

    def work(self) -> None:
        """Work on jobs until there is no need for more; the body of a thread."""
        this_thread.stopped = self.stopped
        while True:
            with self._changed:
                while not self._waiting and not self.stopped.is_set():
                    self._changed.wait()
                if self.stopped.is_set():
                    return
                job = self._waiting.popleft()
            try:
                self._advance(job)
            except BaseException as error:
                job.error = error
            with self._changed:
                job.done = True
                self._changed.notify_all()
            del job

    def _advance(self, job: _Job) -> None:
        results: Any = job.call()
        end = object()
        with contextlib.closing(results) if hasattr(results, "close") else contextlib.nullcontext():
            while self._reserve(job):
                result = end
                try:
                    result = next(results, end)
                finally:
                    with self._changed:
                        if result is end:
                            self._held -= 1
                        else:
                            job.ready.append([result])
                        self._changed.notify_all()
                if result is end:
                    return
                del result

    def _reserve(self, job: _Job) -> bool:
        """Wait for room for one more result; False if there is no more need for it.

        The last place is kept for the job that is handed out now: if those behind it could take all places, it could
        not go on, and they would never be handed out.
        """
        with self._changed:
            while not self.stopped.is_set():
                if self._held < self._limit - (job is not self._head):
                    self._held += 1
                    return True
                self._changed.wait()
            return False
