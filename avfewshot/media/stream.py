"""Media decoded ahead of the model: in order, in bounded memory, and in processes that may die.

Threads of this process keep the order; each asks a decoding process (:mod:`avfewshot.media.worker`) for one file at a
time. A crash of a decoder, a file that takes too long or too much memory costs that file, which is named; its process
is replaced. Processes are started when they are first needed (0.2 s), kept for the next files, and end with this one.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from avfewshot.errors import AvfsError, MediaError, UsageError, explain
from avfewshot.io import THREAD_VARIABLES
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.reader import ClipReader, MediaInfo, as_tensors, check_options

T = TypeVar("T")
R = TypeVar("R")

TIMEOUT = 60.0
"""Seconds that a file may take, and one more for each of its seconds that was delivered."""

MEMORY = 1_200_000_000
"""Bytes that the decoding of a file may allocate (where the system has ``RLIMIT_AS``)."""

_WAIT_SECONDS = 0.5  # an unlimited wait could not be interrupted by Ctrl-C on Windows
_WATCH_SECONDS = 0.1

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
    timeout: float = TIMEOUT,
) -> Iterator[Clip | Failure]:
    """Read many files, decoding ahead in worker processes.

    Files come in the order of `paths`, the chunks of a long file in order; :attr:`Clip.last` marks a file's last one.
    A file that cannot be read gives one :class:`Failure` in its place and the rest goes on. At most `prefetch` chunks
    are in memory, decoded or being decoded, beside the one that was handed out. Closing the iterator, an exception in
    the caller's loop or Ctrl-C stop the workers.

    Args:
        paths: The files.
        frame_size: See :class:`~avfewshot.media.reader.ClipReader`.
        modality: Likewise.
        frame_backend: Likewise.
        chunk_segments: Longest clip; longer files are cut into chunks of this many segments.
        workers: Number of processes; 0 decodes in this one, unprotected.
        prefetch: Number of chunks held at most.
        timeout: See :data:`TIMEOUT`.

    Raises:
        UsageError: Options that cannot be used; at once, not when iteration begins.
    """
    check_options(modality, frame_backend)
    for name, value, least in (
        ("chunk_segments", chunk_segments, 1),
        ("workers", workers, 0),
        ("prefetch", prefetch, 1),
    ):
        if value < least:
            raise UsageError(f"{name} must be at least {least}, not {value}.")
    if timeout <= 0:
        raise UsageError(f"The time limit must be more than 0 seconds, not {timeout:g}.")
    options = {"frame_size": frame_size, "modality": modality, "frame_backend": frame_backend}
    open_reader = (
        functools.partial(IsolatedReader, timeout=timeout, **options)
        if workers
        else (functools.partial(ClipReader, **options))
    )
    chunks = functools.partial(_chunks, open_reader=open_reader, length=chunk_segments)
    return ordered_stream(chunks, map(Path, list(paths)), workers=workers, prefetch=prefetch)


def _chunks(path: Path, open_reader: Callable[[Path], Any], length: int) -> Iterator[Clip | Failure]:
    try:
        with open_reader(path) as reader:
            total = reader.info.num_segments
            for start in range(0, total, length):
                yield reader.read(start, min(start + length, total))
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


def read_isolated(path: str | Path, *, timeout: float = TIMEOUT, **options: Any) -> Clip:
    """Read a whole file in a decoding process; `options` and errors are those of :class:`ClipReader`."""
    with IsolatedReader(path, timeout=timeout, **options) as reader:
        return reader.read()


class IsolatedReader:
    """A :class:`~avfewshot.media.reader.ClipReader` in another process: the same options, `info` and clips.

    Raises:
        MediaError: Also where the decoder crashed, took longer than `timeout` or ran out of its memory.
    """

    def __init__(self, path: str | Path, *, timeout: float = TIMEOUT, **options: Any) -> None:
        check_options(options.get("modality", "av"), options.get("frame_backend", "auto"))
        self._path = Path(path)
        self._timeout = self._left = timeout
        self._worker = _pool().take()
        name = os.fsencode(os.path.abspath(self._path)).decode("latin-1")
        try:
            facts, _ = self._ask({"path": name, "options": options})
        except BaseException:
            self.close()
            raise
        self.frame_backend: str | None = facts.pop("backend")
        self.info = MediaInfo(self._path, **{**facts, "warnings": tuple(facts["warnings"])})

    def read(self, start: int = 0, stop: int | None = None) -> Clip:
        """See :meth:`ClipReader.read`."""
        total = self.info.num_segments
        stop = total if stop is None else stop
        if not 0 <= start < stop <= total:
            raise ValueError(f"{self._path} has the segments [0, {total}), not [{start}, {stop}).")
        facts, arrays = self._ask({"read": [start, stop]})
        self._left += stop - start
        clip = Clip(
            self._path, facts["duration"], facts["start"], arrays.get("frames"), arrays.get("waveform"),
            tuple(facts["warnings"]), facts["last"],
        )  # fmt: skip
        return as_tensors(clip)

    def _ask(self, request: dict) -> tuple[dict, dict[str, np.ndarray]]:
        if self._worker is None:
            raise MediaError(self._path, "is closed")
        began = time.monotonic()
        try:
            facts, arrays = self._worker.ask(request, self._left)
        except _DeadError as dead:
            self._worker = None
            reason = str(dead).format(timeout=f"{self._timeout:g}")
            raise MediaError(self._path, reason) from None
        self._left -= time.monotonic() - began
        if "error" in facts:
            raise MediaError(self._path, facts["error"], hint=facts["hint"])
        return facts, arrays

    def close(self) -> None:
        """Close the file and give the process back."""
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            worker.ask({}, self._timeout)
        except _DeadError:
            return
        _pool().give(worker)

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# Order and bounds.


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
        _thread.stopped = self.stopped
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
        results, end = job.call(), object()
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


_thread = threading.local()  # .stopped: the event that ends the work of this thread


# Processes.


class _DeadError(Exception):
    """The process ended, or had to be ended; says why."""


class _Worker:
    """One decoding process; used by one thread at a time."""

    def __init__(self) -> None:
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from avfewshot.media import worker; "
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        paths = json.dumps([root, *(p for p in sys.path if p and p != root)])  # not '': clips may lie beside an av.py
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"{code}worker.serve({MEMORY})", paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")},
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which ends its workers
        )  # fmt: skip
        self.deadline: float | None = None
        self.stopped: threading.Event | None = None
        self._why: str | None = None

    def ask(self, request: dict, seconds: float) -> tuple[dict, dict[str, np.ndarray]]:
        """Send a request and wait for the answer and its arrays; raise :class:`_DeadError` where none comes."""
        self.stopped, self.deadline = getattr(_thread, "stopped", None), time.monotonic() + seconds
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            facts = json.loads(line)
            arrays = {}
            for name, kind, shape in facts.pop("arrays", ()):
                arrays[name] = np.empty(shape, kind)
                if self._process.stdout.readinto(memoryview(arrays[name]).cast("B")) != arrays[name].nbytes:
                    raise EOFError
            return facts, arrays
        except (OSError, EOFError, ValueError):
            self.end()
            raise _DeadError(self._why or _died(self._process.returncode)) from None
        except BaseException:  # Ctrl-C in the middle of an answer: the process cannot be used any more
            self.end()
            raise
        finally:
            self.deadline = None

    def watch(self) -> None:
        """End the process where it takes too long or is not needed any more; the thread that waits then goes on."""
        deadline, stopped = self.deadline, self.stopped
        if deadline is None:
            return
        if stopped is not None and stopped.is_set():
            self._why = "was given up"
        elif time.monotonic() > deadline:
            self._why = "took longer than {timeout} s to decode"
        else:
            return
        self._process.kill()

    def end(self) -> None:
        """End the process, if need be by force."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _died(status: int) -> str:
    if status >= 0:
        return f"the decoder ended (exit status {status})"
    with contextlib.suppress(ValueError):
        return f"the decoder crashed (signal {-status}, {signal.Signals(-status).name})"
    return f"the decoder crashed (signal {-status})"


class _Pool:
    """Idle decoding processes, and a thread that watches the busy ones."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        threading.Thread(target=self._watch, name="avfs-watch", daemon=True).start()
        atexit.register(self._end)

    def take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker()
        with self._lock:
            self._all = {w for w in self._all if w._process.returncode is None} | {worker}
        return worker

    def give(self, worker: _Worker) -> None:
        with self._lock:
            self._idle.append(worker)

    def _watch(self) -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                workers = list(self._all)
            for worker in workers:
                worker.watch()

    def _end(self) -> None:
        if os.getpid() == self.pid:
            for worker in list(self._all):
                worker.end()


_pools: list[_Pool] = []
_pools_lock = threading.Lock()


def _pool() -> _Pool:
    with _pools_lock:
        if (
            not _pools or _pools[0].pid != os.getpid()
        ):  # a forked process has the pool of its parent, which is not its own
            _pools[:] = [_Pool()]
        return _pools[0]
