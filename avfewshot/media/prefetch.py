"""Decodes clips ahead of the model in worker threads, in order and in bounded memory."""

from __future__ import annotations

import itertools
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from avfewshot.errors import UsageError, explain
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.reader import ClipReader, check_options

_WAIT_SECONDS = 0.5  # an unlimited wait could not be interrupted by Ctrl-C on Windows
_STOP_SECONDS = 10.0


def iter_clips(
    paths: Iterable[str | Path],
    *,
    frame_size: int | None = 224,
    modality: str = "av",
    frame_backend: str = "auto",
    chunk_segments: int = 60,
    workers: int = 2,
    prefetch: int = 8,
) -> Iterator[Clip | Failure]:
    """Read many files, decoding ahead in worker threads (FFmpeg works outside Python's lock).

    Files come in the order of `paths`, the chunks of a long file in order; :attr:`Clip.last` marks a file's last one.
    A file that cannot be read gives one :class:`Failure` in its place and the rest goes on. At most `prefetch`
    chunks are in memory, decoded or being decoded, beside the one that was handed out. Closing the iterator, an
    exception in the caller's loop or Ctrl-C stop the workers.

    Args:
        paths: The files.
        frame_size: See :class:`~avfewshot.media.reader.ClipReader`.
        modality: See :class:`~avfewshot.media.reader.ClipReader`.
        frame_backend: See :class:`~avfewshot.media.reader.ClipReader`.
        chunk_segments: Longest clip; longer files are cut into chunks of this many segments.
        workers: Number of threads, each decoding a file.
        prefetch: Number of chunks held at most.

    Returns:
        An iterator over clips and failures.

    Raises:
        UsageError: Options that cannot be used; at once, not when iteration begins.
    """
    check_options(modality, frame_backend)
    for name, value in (("chunk_segments", chunk_segments), ("workers", workers), ("prefetch", prefetch)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}.")
    options = {"frame_size": frame_size, "modality": modality, "frame_backend": frame_backend}
    return _run(_Line([Path(p) for p in paths], options, chunk_segments, prefetch), workers)


def _run(line: _Line, workers: int) -> Iterator[Clip | Failure]:
    count = min(workers, len(line.jobs))
    threads = [threading.Thread(target=line.work, name=f"avfs-decode-{i}", daemon=True) for i in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield from line.results()
    finally:
        line.stop()
        for thread in threads:
            thread.join(_STOP_SECONDS)


@dataclass
class _Job:
    """A file and what has been read of it."""

    path: Path
    ready: deque[Clip | Failure] = field(default_factory=deque)
    done: bool = False


class _Line:
    """Files in order, worked on by several threads, handed out by one."""

    def __init__(self, paths: list[Path], options: dict, chunk: int, limit: int) -> None:
        self.jobs = [_Job(path) for path in paths]
        self._options = options
        self._chunk = chunk
        self._limit = limit
        self._changed = threading.Condition()
        self._taken = itertools.count()
        self._head = 0
        self._held = 0
        self._stopped = False

    def results(self) -> Iterator[Clip | Failure]:
        """Hand out results in order."""
        for number, job in enumerate(self.jobs):
            with self._changed:
                self._head = number
                self._changed.notify_all()
            while (result := self._next_of(job)) is not None:
                yield result
                del result  # not held while the next one is decoded

    def stop(self) -> None:
        """Let the workers end after what they are decoding."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()

    def work(self) -> None:
        """Read files until there are none left; the body of a worker thread."""
        while (number := next(self._taken)) < len(self.jobs) and not self._stopped:
            job = self.jobs[number]
            try:
                self._read(number, job)
            except Exception as error:  # whatever it is, it is this file's failure
                self._put(job, Failure(str(job.path), explain(error)))
            finally:
                with self._changed:
                    job.done = True
                    self._changed.notify_all()

    def _read(self, number: int, job: _Job) -> None:
        if not self._reserve(number):
            return
        with ClipReader(job.path, **self._options) as reader:
            total = reader.info.num_segments
            for start in range(0, total, self._chunk):
                if start and not self._reserve(number):
                    return
                self._put(job, reader.read(start, min(start + self._chunk, total)))

    def _reserve(self, number: int) -> bool:
        """Wait for room for one more chunk; False if there is no more need for it.

        The last place is kept for the file that is handed out now: if files behind it could take all places, it could
        not go on, and they would never be handed out.
        """
        with self._changed:
            while not self._stopped:
                if self._held < self._limit - (number != self._head):
                    self._held += 1
                    return True
                self._changed.wait()
            return False

    def _put(self, job: _Job, result: Clip | Failure) -> None:
        with self._changed:
            job.ready.append(result)
            self._changed.notify_all()

    def _next_of(self, job: _Job) -> Clip | Failure | None:
        with self._changed:
            while not job.ready:
                if job.done:
                    return None
                self._changed.wait(_WAIT_SECONDS)
            self._held -= 1
            self._changed.notify_all()
            return job.ready.popleft()
