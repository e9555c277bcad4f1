"""One kind of cache on disk for all that is dear to compute: entries under a digest of what they were made of.

A cache is a convenience: whatever goes wrong with it (a full disk, a quota, no permission, another process that evicts
what is being read) costs time, never the result. Entries appear whole or not at all. Several processes and threads may
share a folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from avfewshot.io import write_bytes

_HEADROOM = 10  # an eviction frees this part of the cache at least, so that it is not due again with the next entry
_STRETCH = 64  # a process looks at the folder again after having written this part of the cache
_ABANDONED = 3600.0  # seconds from now, either way, whose unfinished file is that of a process that was killed


Stamp = tuple[int, int]
"""Size in bytes and time of change in nanoseconds."""


def file_stamp(path: str | os.PathLike[str]) -> Stamp | None:
    """Size and time of change of a file, which is taken to be the same while they are; None where there is none."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # a link to itself, a null byte in the name
        return None
    return status.st_size, status.st_mtime_ns


def file_key(path: str | os.PathLike[str], about: Mapping[str, object]) -> str | None:
    """Digest of a file's path, size and time of change, and of how it is used; None where there is no such file."""
    stamp = file_stamp(path)
    if stamp is None:
        return None
    # Not Path.resolve, which raises RuntimeError for a link to itself before Python 3.13.
    text = json.dumps([os.path.realpath(path), *stamp, dict(about)], sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


class DiskCache:
    """Bytes by key; the entries that were not used for the longest time give way to new ones.

    One process alone never fills more than `max_bytes`; each further one at the same time may add a 64th.
    """

    def __init__(self, folder: str | os.PathLike[str], suffix: str, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes  # 0 keeps nothing
        self.counts: Counter[str] = Counter()  # hits, misses, damaged (and so missed), unstored, evicted
        self._suffix = suffix
        self._room = 0  # bytes that may be written before the folder is looked at again
        self._lock = threading.Lock()

    def entry(self, key: str) -> Path:
        """Where an entry is kept."""
        return self.folder / f"{key}{self._suffix}"

    def get(self, key: str) -> bytes | None:
        """The entry, or None."""
        try:
            content = self.entry(key).read_bytes()
        except Exception:
            self.count("misses")
            return None
        with contextlib.suppress(OSError):  # evicted meanwhile, or a folder that is only to be read
            os.utime(self.entry(key))
        self.count("hits")
        return content

    def damaged(self, key: str) -> None:
        """What :meth:`get` gave for this key cannot be used."""
        self.counts.update(hits=-1, misses=1, damaged=1)
        with contextlib.suppress(OSError):
            self.entry(key).unlink()

    def put(self, key: str, content: bytes) -> None:
        """Keep an entry, if that can be done."""
        try:
            if self._reserve(len(content)):
                write_bytes(self.entry(key), content)
                return
        except Exception:
            pass
        self.count("unstored")

    def count(self, what: str) -> None:
        """Add one to :attr:`counts`."""
        with self._lock:
            self.counts[what] += 1

    def size(self) -> int:
        """Bytes that the entries of all processes take now."""
        return sum(size for _, size, _ in self._scan())

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
            for _, taken, entry in entries:
                if total <= goal:
                    break
                with contextlib.suppress(OSError):
                    entry.unlink(missing_ok=True)  # another process may have been faster
                    total -= taken
                    self.counts["evicted"] += 1
        return min(self.max_bytes - total, max(size, self.max_bytes // _STRETCH))

    def _scan(self) -> list[tuple[int, int, Path]]:
        """(time of last use, size, path) of every entry; what killed processes left unfinished is removed."""
        entries: list[tuple[int, int, Path]] = []
        try:
            listed = list(os.scandir(self.folder))
        except OSError:
            return entries
        for item in listed:
            with contextlib.suppress(OSError):
                status = item.stat()
                if item.name.startswith("."):
                    if ".part" in item.name and abs(time.time() - status.st_mtime) > _ABANDONED:
                        os.unlink(item.path)
                elif item.name.endswith(self._suffix):
                    entries.append((status.st_mtime_ns, status.st_size, Path(item.path)))
        return entries
