"""What is known of a clip of a store, and how files differ from what a store holds."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from avfewshot.media.clip import Failure
from avfewshot.media.remote import is_remote


@dataclass(frozen=True)
class StoredClip:
    """A clip of a store."""

    id: int
    path: str  # absolute, or an address
    real: str  # without links
    size: int  # 0 at an address
    mtime: int  # nanoseconds; likewise
    duration: float
    seconds: int  # T
    visual: int | None  # its first row of T; None without video
    audio: int | None
    warnings: tuple[str, ...]
    error: str | None  # why it could not be embedded; it has no rows then

    @property
    def source(self) -> Path | str:
        """What :meth:`Classifier.classify` takes."""
        return self.path if is_remote(self.path) else Path(self.path)

    def is_current(self) -> bool:
        """Whether the file is the one that was embedded; what lies at an address is taken to stay."""
        if is_remote(self.path):
            return True
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime)


@dataclass
class Changes:
    """How files differ from what a store holds."""

    new: list[Path | str] = field(default_factory=list)
    changed: list[Path | str] = field(default_factory=list)
    gone: list[StoredClip] = field(default_factory=list)
    kept: int = 0
    failed: list[Failure] = field(default_factory=list)  # could not be embedded before, and have not changed since

    @property
    def to_embed(self) -> list[Path | str]:
        """What has to be decoded, in order."""
        return sorted([*self.new, *self.changed], key=str)


def stored_name(path: str | os.PathLike[str]) -> str:
    """What a clip is stored under."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)
