"""Media decoded ahead of the model: in order, in bounded memory, and in processes that may die.

Threads of this process keep the order; each asks a decoding process (:mod:`avfewshot.media.worker`) for one file at a
time. A crash of a decoder, a file that takes too long or too much memory costs that file, which is named; its process
is replaced. Processes are started when they are first needed (0.2 s), kept for the next files, and end with this one.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from avfewshot.errors import AvfsError, UsageError, explain
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.decoders import IsolatedReader, time_limit
from avfewshot.media.ordered import ordered_map, ordered_stream
from avfewshot.media.reader import ClipReader, check_options
from avfewshot.media.remote import fetch, is_remote

__all__ = ["IsolatedReader", "Reader", "iter_clips", "ordered_map", "read_ahead", "read_isolated"]

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
    the caller's loop or Ctrl-C stop the workers.

    Args:
        paths: The files; addresses (:mod:`avfewshot.media.remote`) are fetched when their turn comes.
        frame_size: See :class:`~avfewshot.media.reader.ClipReader`.
        modality: Likewise.
        frame_backend: Likewise.
        chunk_segments: Longest clip; longer files are cut into chunks of this many segments.
        workers: Number of processes; 0 decodes in this one, unprotected.
        prefetch: Number of chunks held at most.
        timeout: See :data:`~avfewshot.media.decoders.TIMEOUT`.

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
    timeout = time_limit(timeout)
    options = {"frame_size": frame_size, "modality": modality, "frame_backend": frame_backend}
    open_reader = (
        functools.partial(IsolatedReader, timeout=timeout, **options)
        if workers
        else (functools.partial(ClipReader, **options))
    )
    chunks = functools.partial(_chunks, open_reader=open_reader, length=chunk_segments)
    items = [path if is_remote(path) else Path(path) for path in paths]
    return ordered_stream(chunks, items, workers=workers, prefetch=prefetch)


def _chunks(path: Path | str, open_reader: Callable[[Path], Any], length: int) -> Iterator[Clip | Failure]:
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
