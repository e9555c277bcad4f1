"""Whole clips in order, decoded ahead of the model in threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from avfewshot.errors import AvfsError, MediaError
from avfewshot.media.clip import Clip
from avfewshot.media.prefetch import ClipFailure

Reader = Callable[[Path], Clip]
"""Decodes a whole file; raises an :class:`~avfewshot.errors.AvfsError` where it cannot be read."""


def read_ahead(paths: Iterable[Path], read: Reader, *, workers: int = 2) -> Iterator[Clip | ClipFailure]:
    """Read whole clips, in the order of `paths`, twice as many ahead as there are threads.

    Args:
        paths: Media files.
        read: Reads one; called from threads.
        workers: Threads; 0 reads in the caller's own.

    Yields:
        A clip for each path, or what was wrong with it.
    """
    if workers == 0:
        for path in paths:
            yield _attempt(path, read)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="avfs-read")
    waiting: deque[Future[Clip | ClipFailure]] = deque()
    try:
        for path in paths:
            waiting.append(pool.submit(_attempt, path, read))
            if len(waiting) > 2 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _attempt(path: Path, read: Reader) -> Clip | ClipFailure:
    try:
        return read(path)
    except MediaError as error:
        return ClipFailure(path, error.reason)
    except AvfsError as error:
        return ClipFailure(path, error.message)
