"""Media decoded ahead of the model: in order, in bounded memory, and in processes that may die.

Threads of this process keep the order; each asks a decoding process (:mod:`avfewshot.media.decoders`) for one file at
a time. A crash of a decoder, a file that takes too long or too much memory costs that file, which is named; its process
is replaced. Processes are started when they are first needed (0.2 s), kept for the next files, and end with this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from avfewshot.errors import AvfsError, UsageError, explain
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.decoders import IsolatedReader, this_thread, time_limit
from avfewshot.media.reader import ClipReader, check_options
from avfewshot.media.remote import fetch, is_remote

T = TypeVar("T")
R = TypeVar("R")

Reader = Callable[[Path], Clip]
"""Decodes a whole file; raises an :class:`~avfewshot.errors.AvfsError` where it cannot be read."""


def iter_clips(
    paths: Iterable[str | Path],
    *,
    frame_size: int | None = 224,
    modality: str = "av",
    frame_backend: str = "auto",
    chunk_segments: int = 60,
    workers: int = 2,
    prefetch: int = 8,
    timeout: float | None = None,
) -> Iterator[Clip | Failure]:
    """Read many files, decoding ahead in worker processes.

    Files come in the order of `paths`, the chunks of a long file in order; :attr:`Clip.last` marks a file's last one.
    A file that cannot be read gives one :class:`Failure` in its place and the rest goes on. At most `prefetch` chunks
    are in memory, decoded or being decoded, beside the one that was handed out. Closing the iterator, an exception in
    the caller's loop or Ctrl-C stop the workers. Addresses (:mod:`avfewshot.media.remote`) are fetched when their turn
    comes. Files of more than `chunk_segments` seconds are cut into chunks. Without `workers` this process decodes,
    unprotected. The other options are those of :class:`~avfewshot.media.reader.ClipReader`, `timeout` is
    :data:`~avfewshot.media.decoders.TIMEOUT`; what cannot be used is a :class:`UsageError` at once, not when iteration
    begins.
    """
    check_options(modality, frame_backend)
    limits = (("chunk_segments", chunk_segments, 1), ("workers", workers, 0), ("prefetch", prefetch, 1))
    for name, value, least in limits:
        if value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}.")
    timeout = time_limit(timeout)
    options = {"frame_size": frame_size, "modality": modality, "frame_backend": frame_backend}
    isolated = functools.partial(IsolatedReader, timeout=timeout, **options)
    open_reader = isolated if workers else functools.partial(ClipReader, **options)
    chunks = functools.partial(_chunks, open_reader=open_reader, length=chunk_segments)
    items = [path if is_remote(path) else Path(path) for path in paths]
    return ordered_stream(chunks, items, workers=workers, prefetch=prefetch)


def _chunks(path: Path | str, open_reader: Callable[[Path], Any], length: int) -> Generator[Clip | Failure]:
    try:
        file = path if isinstance(path, Path) else fetch(path, timeout=time_limit())
        with open_reader(file) as reader:
            total = reader.info.num_segments
            for start in range(0, total, length):
                clip = reader.read(start, min(start + length, total))
                yield clip if isinstance(path, Path) else dataclasses.replace(clip, path=path)
    except Exception as error:  # whatever it is, it is this file's failure
        yield Failure(str(path), explain(error))


def read_ahead(paths: Iterable[Path], read: Reader, *, workers: int = 2) -> Iterator[Clip | Failure]:
    """Read whole clips in the order of `paths`, by threads that call `read`, two clips a thread ahead."""

    def attempt(path: Path) -> Clip | Failure:
        try:
            return read(path)
        except AvfsError as error:
            return Failure(str(path), explain(error))

    return ordered_map(attempt, paths, workers=workers)


def read_isolated(path: str | Path, *, timeout: float | None = None, **options: Any) -> Clip:
    """Read a whole file in a decoding process; `options` and errors are those of :class:`ClipReader`."""
    with IsolatedReader(path, timeout=timeout, **options) as reader:
        return reader.read()


_WAIT_SECONDS = 0.5  # an unlimited wait could not be interrupted by Ctrl-C on Windows


def ordered_map(function: Callable[[T], R], items: Iterable[T], *, workers: int) -> Iterator[R]:
    """``map(function, items)``, computed ahead in threads: at most two items a thread are in work or waiting."""

    def single(item: T) -> Generator[R]:
        yield function(item)

    return ordered_stream(single, items, workers=workers, prefetch=2 * workers)


def ordered_stream(
    function: Callable[[T], Generator[R]], items: Iterable[T], *, workers: int, prefetch: int
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
    changed, stopped, source, held = threading.Condition(), threading.Event(), iter(items), 0
    line: deque[_Job] = deque()  # the jobs under way, in order; the first one is being handed out
    jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
    threads: list[threading.Thread] = []

    def reserve(job: _Job) -> bool:
        """Wait for room for one more result; False if there is no more need for it."""
        nonlocal held
        with changed:
            # The last place is the first job's: if those behind it could take all, it could not go on, and they would
            # never be handed out.
            changed.wait_for(lambda: stopped.is_set() or held < prefetch - (job is not line[0]))
            held += 1
        return not stopped.is_set()

    def release() -> None:
        nonlocal held
        with changed:
            held -= 1
            changed.notify_all()

    def work() -> None:
        this_thread.stopped = stopped
        while (job := jobs.get()) is not None:
            end: Any = []
            try:
                with contextlib.closing(function(job.item)) as results:
                    while reserve(job) and (one := list(itertools.islice(results, 1))):
                        job.arriving.put(one)
            except BaseException as error:
                end = error
            release()
            job.arriving.put(end)

    try:
        while True:
            for item in itertools.islice(source, prefetch - len(line)):
                line.append(_Job(item))
                jobs.put(line[-1])
                if len(threads) < workers:
                    threads.append(threading.Thread(target=work, name="avfs-decode", daemon=True))
                    threads[-1].start()
            if not line:
                return
            while one := line[0].take():
                release()
                yield one.pop()
            with changed:
                line.popleft()
                changed.notify_all()
    finally:
        stopped.set()
        with changed:
            changed.notify_all()
        for _ in threads:
            jobs.put(None)
        for thread in threads:
            thread.join()


class _Job:
    """An item, and where its results arrive: in lists of one, so that a result is held nowhere once it is popped."""

    def __init__(self, item: Any) -> None:
        self.item = item
        self.arriving: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def take(self) -> list[Any]:
        """The next result in a list, which is empty at the end; or its exception is raised."""
        while True:
            with contextlib.suppress(queue.Empty):
                one = self.arriving.get(timeout=_WAIT_SECONDS)
                break
        if isinstance(one, BaseException):
            raise one
        return one
