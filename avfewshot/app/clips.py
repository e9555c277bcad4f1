"""The clips of the page, and what is said about them; shared by all tabs, safe between threads.

Every change has a number (`version`), and clips remember the number of their last one, so that a tab asks for what is
new to it alone. What a person says is in ``labels.csv`` before anything here changes.
"""

from __future__ import annotations

import contextlib
import copy
import os
import re
import shutil
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avfewshot.app.label_file import NAME as LABELS_NAME
from avfewshot.app.label_file import Mark, read_marks, write_marks
from avfewshot.app.learner import Model, Verdict
from avfewshot.errors import UsageError
from avfewshot.inference.features import EmbeddedFile
from avfewshot.io import try_lock
from avfewshot.labels import LabelSet
from avfewshot.media.discover import MEDIA_SUFFIXES

DROPPED = "dropped"
"""Folder in the first one that a dropped clip is moved to when it is labelled; before, it is in a temporary one."""


@dataclass(eq=False)
class Entry:
    """A clip."""

    number: int
    path: Path  # absolute
    name: str  # as people see it
    mark: Mark = field(default_factory=Mark)
    file: EmbeddedFile | None = None
    error: str | None = None
    verdict: Verdict | None = None
    model: Model | None = None  # what the verdict is of
    version: int = 0

    def embedded(self, file: EmbeddedFile) -> None:
        """Take embeddings, from wherever the clip lay when they were made."""
        self.file = EmbeddedFile(**{**vars(file), "path": str(self.path)})


class Clips:
    """See the module; the arguments are those of the workspace."""

    def __init__(self, folder: Path, files: Sequence[Path], labels: LabelSet | None, roots: Sequence[Path]) -> None:
        self.folder = Path(os.path.abspath(folder))
        self.labels_file = self.folder / LABELS_NAME
        classes, self._elsewhere = read_marks(self.labels_file)
        own = {} if labels is None else dict(zip(labels.names, labels.wordings, strict=True))
        self.classes: dict[str, str] = {**own, **classes, **own}
        self._scratch = Scratch()
        self.temporary = self._scratch.path
        self.roots = {os.path.realpath(root) for root in (*roots, self.temporary)}
        self.lock = threading.RLock()
        self.changed = threading.Condition(self.lock)
        self.version = 1
        self.entries: list[Entry] = []
        self.todo: deque[Entry] = deque()  # to be embedded
        self.dropped: deque[Entry] = deque()  # likewise, and first
        for path in files:
            self._enter(path)

    def close(self) -> None:
        """Remove the temporary folder."""
        self._scratch.close()

    def touch(self, *entries: Entry) -> None:
        """Tell that something has changed, in these clips or elsewhere."""
        with self.lock:
            self.version += 1
            for entry in entries:
                entry.version = self.version
            self.changed.notify_all()

    def entry(self, number: int) -> Entry:
        """A clip by its number; a :class:`KeyError` where there is none."""
        with self.lock:
            if not 0 <= number < len(self.entries):
                raise KeyError(number)
            return self.entries[number]

    def readable(self, entry: Entry) -> Path:
        """The path of a clip; a :class:`UsageError` unless it lies, links followed, below what was given."""
        real = "" if "\0" in str(entry.path) else os.path.realpath(entry.path)
        if self.roots.isdisjoint((real, *map(str, Path(real).parents))):
            raise UsageError(f"{entry.name}: leads out of the folders that were given.", hint="Give its folder, too.")
        if not os.path.isfile(real):
            raise UsageError(f"{entry.name}: there is no such file.")
        return Path(real)

    def add(self, source: Path, name: str) -> Entry:
        """Take over an uploaded file, which is moved into the temporary folder; it is the next one to be embedded.

        A :class:`UsageError` where `name` has no suffix of media files.
        """
        with self.lock:
            base = re.sub(r"[^\w. ()\[\]+,&'-]", "_", os.path.basename(name.replace("\\", "/")))
            base = base.lstrip(".")[-120:] or "clip"
            if Path(base).suffix.lower() not in MEDIA_SUFFIXES:
                hint = f"Known suffixes: {' '.join(sorted(MEDIA_SUFFIXES))}."
                raise UsageError(f"{base}: is not named like a media file.", hint=hint)
            target = self.temporary / f"{len(self.entries):06d}" / base
            target.parent.mkdir()
            os.replace(source, target)
            return self._enter(target, f"{DROPPED}/{base}")

    def all_marks(self) -> dict[Path, Mark]:
        """What is said of the clips here, and of those that the file of labels knows from elsewhere."""
        return {**self._elsewhere, **{entry.path: entry.mark for entry in self.entries if entry.mark}}

    def mark(self, after: Mapping[int, Mark], classes: dict[str, str] | None) -> None:
        """Change marks, by number of the clip, and classes: on disk first, then here, then tell."""
        moved = {number: self._keep(self.entries[number]) for number, mark in after.items() if mark}
        marks = self.all_marks()
        for number, mark in after.items():
            marks.pop(self.entries[number].path, None)
            marks[moved.get(number, self.entries[number].path)] = mark
        known = self.classes if classes is None else classes
        write_marks(self.labels_file, known, {path: mark for path, mark in marks.items() if mark})
        for number, mark in after.items():
            self.entries[number].mark = copy.deepcopy(mark)
        if known != self.classes:
            self.classes = known
        self.touch(*(self.entries[number] for number in after))

    def _keep(self, entry: Entry) -> Path:
        """Move a dropped clip out of the temporary folder, since its label is to outlive this process."""
        if not entry.path.is_relative_to(self.temporary):
            return entry.path
        folder = self.folder / DROPPED
        folder.mkdir(exist_ok=True)
        target, number = folder / entry.path.name, 1
        while True:
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
                break
            except FileExistsError:
                number += 1
                target = folder / f"{entry.path.stem}-{number}{entry.path.suffix}"
        shutil.move(entry.path, target)
        self.roots.add(os.path.realpath(folder))
        entry.path, entry.name = target, f"{DROPPED}/{target.name}"
        if entry.file is not None:
            entry.embedded(entry.file)
        return target

    def _enter(self, path: Path, name: str | None = None) -> Entry:
        path = Path(os.path.abspath(path))
        with self.lock:
            entry = Entry(len(self.entries), path, name or os.path.relpath(path, self.folder))
            entry.mark = self._elsewhere.pop(path, Mark())
            self.entries.append(entry)
            (self.todo if name is None else self.dropped).append(entry)
            self.touch(entry)
            return entry


_PREFIX = "avfs-serve-"


class Scratch:
    """The folder :attr:`path`, held by a lock that ends with this process, however it ends."""

    def __init__(self) -> None:
        self._sweep()
        made = Path(tempfile.mkdtemp(prefix="avfs-new-"))
        self._held = _hold(made)
        self.path = made.rename(made.with_name(_PREFIX + made.name.removeprefix("avfs-new-")))  # held before it is seen

    def close(self) -> None:
        """Remove it, and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @staticmethod
    def _sweep() -> None:
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):  # it is held, or of somebody else
                if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
                    continue
                if (held := _hold(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder; None where another process has, and where there are no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # Windows opens no folders
        return None
    if try_lock(handle):
        return handle
    os.close(handle)
    return None
