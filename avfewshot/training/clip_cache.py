"""Decoded clips on disk, so that the second epoch reads no video.

What is given never depends on whether it came from the cache: a clip that was just decoded has its sound rounded to
the 16 bits that are stored, and its pictures are stored losslessly. A ten-second clip takes 0.3 to 0.8 MB with pictures
of 64 x 64 and 0.7 to 1.3 MB with 224 x 224, and comes back in a tenth to a third of the time that decoding takes with
the former, in a sixth to a half with the latter.

Several processes may share a folder. Entries appear whole or not at all, a damaged one is decoded anew, and one that
another process has just evicted is a miss. Where the folder cannot be written (a full disk, no permission) clips are
decoded each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avfewshot.errors import UsageError
from avfewshot.io import cache_dir, write_bytes
from avfewshot.media.clip import Clip
from avfewshot.media.flac import rounded
from avfewshot.media.stream import read_isolated
from avfewshot.training.clip_codec import DamagedError, decode_clip, encode_clip

VERSION = 1
"""Raised when clips are decoded or stored in another way; entries of other versions are not used any more."""

DEFAULT_MAX_BYTES = 20_000_000_000

_SUFFIX = ".clip.zip"
_HEADROOM = 10  # an eviction frees this part of the cache at least, so that it is not due again with the next clip
_STRETCH = 64  # a process looks at the folder again after having written this part of the cache
_ABANDONED = 3600.0  # seconds after which an unfinished file is that of a process that was killed


@dataclass(frozen=True)
class CacheStatistics:
    """What a cache has done in this process.

    Attributes:
        hits: Clips read from the cache.
        misses: Clips decoded, for whatever reason.
        damaged: Misses whose entry was there, and damaged.
        unstored: Misses that could not be kept: too large, no space, no permission, or a file that changed
            while it was read.
        evicted: Entries removed to make room.
        bytes_read: Size of the entries read.
        bytes_written: Size of the entries written.
    """

    hits: int = 0
    misses: int = 0
    damaged: int = 0
    unstored: int = 0
    evicted: int = 0
    bytes_read: int = 0
    bytes_written: int = 0


class ClipCache:
    """Reads whole clips, each from its file the first time and from the cache from then on.

    An entry belongs to a path, the file's size and time of modification, and to how it is read; a file that changes is
    decoded anew. The entries not used for the longest time give way to new ones. One process alone never fills more
    than `max_bytes`; each further one at the same time may add a 64th. Threads may share a cache.

    Args:
        folder: Where entries are kept; the ``clips`` folder of the caches unless told.
        max_bytes: Bound on the sum of all entries; 0 keeps none. A training set that is larger than the bound is mostly
            decoded anew in each epoch: better give it room, or a bound of 0.

    Raises:
        UsageError: The bound is negative.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        if max_bytes < 0:
            raise UsageError(f"The size of the clip cache cannot be negative: {max_bytes}.", hint="0 switches it off.")
        self.folder = Path(folder) if folder is not None else cache_dir("clips")
        self.max_bytes = max_bytes
        self._statistics = CacheStatistics()
        self._room = 0  # bytes that may be written before the folder is looked at again
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[type[ClipCache], tuple[Path, int]]:
        # Worker processes start with a cache of their own on the same folder.
        return ClipCache, (self.folder, self.max_bytes)

    @property
    def statistics(self) -> CacheStatistics:
        """What happened so far in this process."""
        return self._statistics

    def get(
        self,
        path: str | os.PathLike[str],
        *,
        frame_size: int | None = 224,
        modality: str = "av",
        frame_backend: str = "auto",
    ) -> Clip:
        """Read a whole clip.

        Args:
            path: The media file.
            frame_size: See :class:`~avfewshot.media.reader.ClipReader`.
            modality: Likewise.
            frame_backend: Likewise.

        Returns:
            The clip as :func:`~avfewshot.media.reader.read_clip` gives it, its waveform rounded to 16 bits.

        Raises:
            MediaError: The file cannot be read; this is not remembered.
            UsageError: An unknown modality or backend.
        """
        path = Path(path)
        options = {"frame_size": frame_size, "modality": modality, "frame_backend": frame_backend}
        mark = _mark(path) if self.max_bytes else None
        key = None if mark is None else _key(path, mark, options)
        if key is not None and (clip := self._read(key, path)) is not None:
            return clip
        clip = read_isolated(path, **options)
        if clip.waveform is not None:
            clip = replace(clip, waveform=rounded(clip.waveform))
        self._count(misses=1)
        if key is not None:
            if _mark(path) == mark:
                self._write(key, encode_clip(clip, key))
            else:
                self._count(unstored=1)
        return clip

    def size(self) -> int:
        """Bytes that the entries of all processes take now."""
        return sum(size for _, size, _ in self._scan())

    def clear(self) -> None:
        """Remove all entries."""
        for _, _, entry in self._scan():
            with contextlib.suppress(OSError):
                entry.unlink()
        self._room = 0

    def _entry(self, key: str) -> Path:
        return self.folder / f"{key}{_SUFFIX}"

    def _read(self, key: str, path: Path) -> Clip | None:
        entry = self._entry(key)
        try:
            content = entry.read_bytes()
        except OSError:
            return None
        try:
            clip = decode_clip(content, key, path)
        except DamagedError:
            self._count(damaged=1)
            with contextlib.suppress(OSError):
                entry.unlink()
            return None
        with contextlib.suppress(OSError):  # evicted meanwhile, or a folder that is only to be read
            os.utime(entry)
        self._count(hits=1, bytes_read=len(content))
        return clip

    def _write(self, key: str, content: bytes) -> None:
        try:
            if not self._reserve(len(content)):
                self._count(unstored=1)
                return
            write_bytes(self._entry(key), content)
        except OSError:  # a cache that cannot be written costs time, not the result
            self._count(unstored=1)
            return
        self._count(bytes_written=len(content))

    def _reserve(self, size: int) -> bool:
        """Have room for an entry, by evicting others if need be; False where it is larger than the whole cache."""
        if size > self.max_bytes:
            return False
        with self._lock:
            if self._room < size:
                self._room = self._make_room(size)
            fits = self._room >= size
            self._room -= size if fits else 0
        return fits

    def _make_room(self, size: int) -> int:
        entries = sorted(self._scan())
        total = sum(taken for _, taken, _ in entries)
        if total + size > self.max_bytes:
            goal = self.max_bytes - max(size, self.max_bytes // _HEADROOM)
            evicted = 0
            for _, taken, entry in entries:
                if total <= goal:
                    break
                try:
                    entry.unlink(missing_ok=True)  # another process may have been faster
                except OSError:
                    continue
                total -= taken
                evicted += 1
            self._statistics = replace(self._statistics, evicted=self._statistics.evicted + evicted)
        return min(self.max_bytes - total, max(size, self.max_bytes // _STRETCH))

    def _scan(self) -> list[tuple[int, int, Path]]:
        """(time of last use, size, path) of every entry; what killed processes left unfinished is removed."""
        found: list[tuple[int, int, Path]] = []
        try:
            listed = list(os.scandir(self.folder))
        except OSError:
            return found
        for item in listed:
            with contextlib.suppress(OSError):
                if item.name.endswith(_SUFFIX):
                    status = item.stat()
                    found.append((status.st_mtime_ns, status.st_size, Path(item.path)))
                elif _is_unfinished(item.name) and time.time() - item.stat().st_mtime > _ABANDONED:
                    os.unlink(item.path)
        return found

    def _count(self, **changes: int) -> None:
        with self._lock:
            now = self._statistics
            self._statistics = replace(now, **{name: getattr(now, name) + by for name, by in changes.items()})


def _is_unfinished(name: str) -> bool:
    """Whether a file is one that :func:`~avfewshot.io.atomic_path` would have renamed in the end."""
    return name.startswith(".") and ".clip-" in name and name.endswith(".part.zip")


def _mark(path: Path) -> tuple[int, int] | None:
    """What changes with a file's content; None where there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def _key(path: Path, mark: tuple[int, int], options: dict[str, Any]) -> str:
    text = json.dumps([VERSION, os.fspath(path.resolve()), *mark, options], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
