"""Whole clips in order, decoded ahead of the model in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from avfewshot.errors import AvfsError, MediaError
from avfewshot.media.clip import Clip
from avfewshot.media.decode_ahead import ordered_map
from avfewshot.media.prefetch import ClipFailure

Reader = Callable[[Path], Clip]
"""Decodes a whole file; raises an :class:`~avfewshot.errors.AvfsError` where it cannot be read."""


def read_ahead(paths: Iterable[Path], read: Reader, *, workers: int = 2) -> Iterator[Clip | ClipFailure]:
    """Read whole clips, in the order of `paths`, twice as many ahead as there are threads.

    Args:
        paths: Media files.
        read: Reads one; called from threads.
        workers: Threads; 0 reads in the caller's own.

    Returns:
        A clip for each path, or what was wrong with it.
    """
    return ordered_map(partial(_attempt, read=read), paths, threads=workers)


def _attempt(path: Path, read: Reader) -> Clip | ClipFailure:
    try:
        return read(path)
    except MediaError as error:
        return ClipFailure(path, error.reason)
    except AvfsError as error:
        return ClipFailure(path, error.message)
