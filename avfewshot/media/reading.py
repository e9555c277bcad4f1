"""Whole clips in order, decoded ahead of the model in threads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from avfewshot.errors import AvfsError, explain
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.decode_ahead import ordered_map

Reader = Callable[[Path], Clip]
"""Decodes a whole file; raises an :class:`~avfewshot.errors.AvfsError` where it cannot be read."""


def read_ahead(paths: Iterable[Path], read: Reader, *, workers: int = 2) -> Iterator[Clip | Failure]:
    """Read whole clips, in the order of `paths`, twice as many ahead as there are threads.

    Args:
        paths: Media files.
        read: Reads one; called from threads.
        workers: Threads; 0 reads in the caller's own.

    Returns:
        A clip for each path, or what was wrong with it.
    """
    return ordered_map(partial(_attempt, read=read), paths, threads=workers)


def _attempt(path: Path, read: Reader) -> Clip | Failure:
    try:
        return read(path)
    except AvfsError as error:
        return Failure(str(path), explain(error))
