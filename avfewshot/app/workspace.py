"""What the page works on: clips, what is said about them, what was learnt; shared by all tabs, safe between threads.

One thread computes: it embeds clips a few at a time, then scores what is out of date. Every change has a number
(`version`), and clips remember the number of their last one, so that a tab asks for what is new to it alone. What a
person says is in ``labels.csv`` before the request is answered.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.app.label_file import NAME as LABELS_NAME
from avfewshot.app.label_file import NONE, Mark, read_marks, write_marks
from avfewshot.app.learner import Learnt, Model, Verdict, features_of, learn, save_run
from avfewshot.app.scratch import Scratch
from avfewshot.errors import UsageError, explain
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.head import frozen_part
from avfewshot.inference.results import ClipResult, Failure
from avfewshot.io import printable
from avfewshot.labels import LabelSet
from avfewshot.media.discover import MEDIA_SUFFIXES
from avfewshot.methods.active import suggest
from avfewshot.store.search import Search, word_query
from avfewshot.store.store import Store
from avfewshot.store.writer import THUMBNAIL

_LOG = logging.getLogger(__name__)
EMBED_AT_ONCE = 4
SCORE_AT_ONCE = 250
SCORE_SECONDS = 1.0  # while clips are embedded, the new ones are scored so often
MOST_UNDO = 200  # changes of a tab that can be taken back
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


@dataclass(frozen=True)
class _Change:
    """What a tab did, for its undo."""

    before: dict[int, Mark]  # of clips, by number
    after: dict[int, Mark]
    classes: dict[str, str] | None = None  # before, where they changed
    classes_after: dict[str, str] | None = None


class Workspace:
    """See the module.

    Args:
        classifier: What embeds and scores.
        folder: Holds ``labels.csv``; paths are shown relative to it.
        files: The clips.
        labels: Classes to begin with, beside those of ``labels.csv``.
        roots: Folders and files that may be read; what lies elsewhere is never opened.
        runs: Folder that runs are saved in.
        templates: Name of the prompt templates.
        store: Has small pictures of clips that it holds.
        options: Of :meth:`Classifier.embed_files`.

    Raises:
        DataError: ``labels.csv`` is damaged.
    """

    def __init__(
        self,
        classifier: Classifier,
        folder: Path,
        files: Sequence[Path],
        labels: LabelSet | None = None,
        *,
        roots: Sequence[Path] = (),
        runs: Path = Path("runs"),
        templates: str = "default",
        store: Store | None = None,
        **options: Any,
    ) -> None:
        self.classifier, self.runs, self.templates, self.store = classifier, runs, templates, store
        self.folder = Path(os.path.abspath(folder))
        self.roots = {os.path.realpath(root) for root in (roots or [folder])}
        self._options = options
        self._scratch = Scratch()
        self.temporary = self._scratch.path
        self.roots.add(os.path.realpath(self.temporary))
        self.labels_file = self.folder / LABELS_NAME
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)
        self.compute = threading.Lock()  # held while towers or scorers run
        self.version = 1
        self.closing = threading.Event()
        self._undo: dict[str, list[_Change]] = {}
        self._learnt: Learnt | None = None
        self._model: Model | None = None
        self._search: Search | None = None  # over the clips that were embedded when it was last asked
        self._rebuild = True
        self._scored = 0.0  # when
        classes, self._marks = read_marks(self.labels_file)
        own = {} if labels is None else dict(zip(labels.names, labels.wordings, strict=True))
        self.classes: dict[str, str] = {**own, **{name: w for name, w in classes.items() if name not in own}}
        self.entries: list[Entry] = []
        self._todo: deque[Entry] = deque()  # to be embedded
        self._dropped: deque[Entry] = deque()  # likewise, and first
        for path in files:
            self._enter(path)
        self._learn_when_embedded = any(entry.mark for entry in self.entries)
        self._thread = threading.Thread(target=self._work, name="avfs-serve", daemon=True)

    def start(self) -> None:
        """Begin to embed."""
        self._thread.start()

    def close(self) -> None:
        """End the thread and remove the temporary folder."""
        self.closing.set()
        with self.lock:
            self._changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)
        self._scratch.close()

    # ------------------------------------------------------------------------------------------ what there is

    def state(self) -> dict[str, Any]:
        """Everything but the clips."""
        with self.lock:
            todo = sum(entry.file is None and entry.error is None for entry in self.entries)
            stale = sum(entry.file is not None and entry.model is not self._model for entry in self.entries)
            learnt = self._learnt.facts if self._learnt else None
            return {
                "version": self.version,
                "folder": printable(str(self.folder)),
                "labels_file": printable(str(self.labels_file)),
                "backbone": self.classifier.name,
                "adapter": self.classifier.adapter,
                "classes": [{"name": name, "wording": wording} for name, wording in self.classes.items()],
                "clips": len(self.entries),
                "embedded": len(self.entries) - todo,
                "stale": stale if self._model else 0,
                "labelled": sum(bool(entry.mark) for entry in self.entries),
                "learnt": learnt and {key: value for key, value in learnt.items() if key != "doubted"},
            }

    def rows(self, since: int = 0) -> list[dict[str, Any]]:
        """Clips that changed after a version, in short."""
        with self.lock:
            doubted = set(self._learnt.facts["doubted"]) if self._learnt else set()
            return [self._row(entry, str(entry.path) in doubted) for entry in self.entries if entry.version > since]

    def _row(self, entry: Entry, doubted: bool) -> dict[str, Any]:
        verdict = entry.verdict
        row: dict[str, Any] = {"id": entry.number, "path": printable(entry.name), "error": entry.error}
        row |= {"mine": entry.mark.label, "seconds": len(entry.mark.seconds), "doubted": doubted}
        if entry.file is not None:
            row["duration"] = round(entry.file.duration, 2)
        if verdict is not None:
            gap = verdict.disagreement
            row |= {"label": verdict.label, "score": round(verdict.score, 5), "margin": round(verdict.margin, 5)}
            row |= {"disagreement": None if gap is None else round(gap, 5), "unknown": verdict.unknown}
        return row

    def entry(self, number: int) -> Entry:
        """A clip by its number.

        Raises:
            KeyError: There is none.
        """
        with self.lock:
            if not 0 <= number < len(self.entries):
                raise KeyError(number)
            return self.entries[number]

    def readable(self, entry: Entry) -> Path:
        """The path of a clip that may be opened: one that lies, links followed, below what was given at the start.

        Raises:
            UsageError: It does not, or is no longer there.
        """
        real = "" if "\0" in str(entry.path) else os.path.realpath(entry.path)
        if self.roots.isdisjoint((real, *map(str, Path(real).parents))):
            raise UsageError(f"{entry.name}: leads out of the folders that were given.", hint="Give its folder, too.")
        if not os.path.isfile(real):
            raise UsageError(f"{entry.name}: is no longer there.")
        return Path(real)

    def small_picture(self, path: Path, second: int, size: int) -> bytes | None:
        """A JPEG that the store has of a clip as it is now, where it is about as large as is asked for."""
        if self.store is None or size > 1.5 * THUMBNAIL or self.store.find_clip(path) is None:
            return None
        return self.store.thumbnail(path, second)

    def result(self, number: int) -> tuple[Entry, ClipResult | None]:
        """A clip and everything that is known about it."""
        entry = self.entry(number)
        with self.lock:
            model, file = self._model, entry.file
        if model is None or file is None:
            return entry, None
        with self.compute:
            return entry, model.result(file)

    # ------------------------------------------------------------------------------------------ changes

    def add(self, source: Path, name: str) -> Entry:
        """Take over an uploaded file, which is moved into the temporary folder; it is the next one to be embedded."""
        with self.lock:
            base = re.sub(r"[^\w. ()\[\]+,&'-]", "_", os.path.basename(name.replace("\\", "/")))
            base = base.lstrip(".")[-120:] or "clip"
            if Path(base).suffix.lower() not in MEDIA_SUFFIXES:
                raise UsageError(
                    f"{base}: is not named like a media file.",
                    hint=f"Known suffixes: {' '.join(sorted(MEDIA_SUFFIXES))}.",
                )
            target = self.temporary / f"{len(self.entries):06d}" / base
            target.parent.mkdir()
            os.replace(source, target)
            return self._enter(target, f"{DROPPED}/{base}")

    def annotate(
        self,
        tab: str,
        numbers: Sequence[int],
        label: str | None,
        start: int | None = None,
        end: int | None = None,
        wording: str | None = None,
    ) -> None:
        """Say what clips hold, or seconds ``[start, end)`` of them; None takes it back. A wording makes a new class.

        Raises:
            UsageError: There is no such class, or the seconds are not in the clip.
            OSError: It cannot be kept; nothing has changed then.
        """
        with self.lock:
            entries = [self.entry(number) for number in dict.fromkeys(numbers)]
            classes = None
            if label is not None and wording is not None and label not in self.classes:
                classes = _checked({**self.classes, label: wording or label})
                label = next(reversed(classes))  # without white space around it
            elif label is not None and label not in self.classes and label != NONE:
                raise UsageError(f"There is no class {label!r}.", hint="Add it to the labels first.")
            after: dict[int, Mark] = {}
            for entry in entries:
                mark = after[entry.number] = entry.mark.copy()
                if start is None or end is None:
                    mark.label = label
                    continue
                length = 0 if entry.file is None else max(1, round(entry.file.duration + 0.49))
                if not 0 <= start < end <= length:
                    raise UsageError(f"{entry.name} has the seconds 0 to {length}, not {start} to {end}.")
                for second in range(start, end):
                    mark.seconds.pop(second, None)
                    if label is not None:
                        mark.seconds[second] = label
            self._apply(tab, after, classes)

    def set_classes(self, tab: str, classes: dict[str, str]) -> None:
        """Replace the classes; marks of those that go are taken back, too.

        Raises:
            UsageError: They cannot be told apart, or one is called ``none``.
        """
        classes = _checked(classes) if classes else {}
        with self.lock:
            kept = {*classes, NONE}
            after = {}
            for entry in self.entries:
                mark = entry.mark
                if (mark.label and mark.label not in kept) or not kept.issuperset(mark.seconds.values()):
                    seconds = {second: label for second, label in mark.seconds.items() if label in kept}
                    after[entry.number] = Mark(mark.label if mark.label in kept else None, seconds)
            self._apply(tab, after, classes)

    def undo(self, tab: str) -> bool:
        """Take back the last change that this tab made; False where there is none.

        Raises:
            UsageError: Another tab has changed the same since.
        """
        with self.lock:
            changes = self._undo.get(tab, [])
            if not changes:
                return False
            change = changes[-1]
            if any(self.entries[number].mark != mark for number, mark in change.after.items()) or (
                change.classes is not None and self.classes != change.classes_after
            ):
                changes.pop()
                raise UsageError("It was changed elsewhere since, and stays.")
            self._apply(None, change.before, change.classes)
            changes.pop()
            return True

    def learn(self) -> dict[str, Any] | None:
        """Learn from all that is labelled and embedded; the scores follow. Gives the facts, None with too little."""
        return self._new_model(learning=True)

    def suggest(self, count: int) -> list[int]:
        """Numbers of the clips to label next."""
        with self.lock:
            model = self._model
            free = [(e.number, e.file, e.verdict.margin) for e in self.entries if e.file and e.verdict and not e.mark]
        if model is None or not free or not self.classifier.embeds_frozen:
            return []
        numbers, files, margins = zip(*free, strict=True)
        with self.compute:
            features = lambda rows: features_of(self.classifier, [files[row] for row in rows])  # noqa: E731
            return [numbers[row] for row in suggest(np.array(margins), features, count)]

    def find(self, query: str, by: str, top: int) -> list[dict[str, Any]]:
        """The clips whose best second fits a text best, with that second, see :class:`~avfewshot.store.search.Search`.

        Raises:
            UsageError: The embeddings are not those of the frozen towers.
        """
        if not self.classifier.embeds_frozen:
            raise UsageError("Adapted embeddings cannot be searched.", hint="Start without --adapter.")
        with self.compute:
            with self.lock:
                files = [(str(e.number), e.file) for e in self.entries if e.file is not None]
            if self._search is None or len(self._search) != len(files):
                dims = self.classifier.dims
                self._search = Search.of([(number, *frozen_part(file, dims)[1:]) for number, file in files])
            hits = self._search.find(word_query(self.classifier, query), top, by=by)
        return [{"id": int(hit.path), "second": hit.second, "score": hit.score} for hit in hits]

    def save(self, name: str) -> Path:
        """Write what was learnt as a run, and the labels beside it."""
        if not re.fullmatch(r"[\w][\w .-]{0,79}", name):
            raise UsageError("The name of a run is made of letters, digits, spaces, dots, - and _.")
        with self.lock:
            model = self._model
            classes, marks = dict(self.classes), self._all_marks()
        if model is None:
            raise UsageError("There are no labels yet.")
        folder = self.runs / "serve" / f"{datetime.now(timezone.utc).strftime('%Y%m%d-%H%M%S')}-{name}"
        save_run(folder, model)
        write_marks(folder / LABELS_NAME, classes, marks)
        return folder

    def _apply(self, tab: str | None, after: dict[int, Mark], classes: dict[str, str] | None = None) -> None:
        """Change marks and classes: on disk first, then here, then tell."""
        moved = {number: self._keep(self.entries[number]) for number, mark in after.items() if mark}
        marks = self._all_marks()
        for number, mark in after.items():
            marks.pop(self.entries[number].path, None)
            marks[moved.get(number, self.entries[number].path)] = mark
        write_marks(
            self.labels_file, self.classes if classes is None else classes, {p: m for p, m in marks.items() if m}
        )
        before = {number: self.entries[number].mark for number in after}
        if tab is not None:
            changes = self._undo.setdefault(tab, [])
            changes.append(_Change(before, after, None if classes is None else self.classes, classes))
            del changes[:-MOST_UNDO]
        self.version += 1
        for number, mark in after.items():
            entry = self.entries[number]
            entry.mark, entry.version = mark.copy(), self.version
        if classes is not None and classes != self.classes:
            self.classes, self._rebuild = classes, True
        self._changed.notify_all()

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
            entry.file = EmbeddedFile(**{**vars(entry.file), "path": str(target)})
        return target

    def _all_marks(self) -> dict[Path, Mark]:
        """Of the clips here, and of those that the file knows from elsewhere."""
        return {**self._marks, **{entry.path: entry.mark for entry in self.entries if entry.mark}}

    # ------------------------------------------------------------------------------------------ the thread

    def _enter(self, path: Path, name: str | None = None) -> Entry:
        path = Path(os.path.abspath(path))
        with self.lock:
            self.version += 1
            entry = Entry(len(self.entries), path, name or os.path.relpath(path, self.folder), version=self.version)
            entry.mark = self._marks.pop(path, Mark())
            self.entries.append(entry)
            (self._todo if name is None else self._dropped).append(entry)
            self._changed.notify_all()
            return entry

    def _new_model(self, *, learning: bool) -> dict[str, Any] | None:
        with self.compute:
            with self.lock:
                labels = LabelSet.from_wordings(self.classes) if self.classes else None
                marked = [(e.file, e.mark.copy()) for e in self.entries if e.mark and e.file is not None]
                before = learnt = self._learnt
                self._rebuild = self._rebuild and learning
            if learning:
                learnt = None if labels is None else learn(self.classifier, labels, marked, before, self.templates)
            model = None if labels is None else Model(self.classifier, labels, learnt)
            with self.lock:
                self._learnt, self._model = learnt, model
                self.version += 1
                doubted = {path for some in (before, learnt) if learning and some for path in some.facts["doubted"]}
                for entry in self.entries:
                    entry.version = self.version if str(entry.path) in doubted else entry.version
                self._changed.notify_all()
            return learnt.facts if learnt else None

    def _work(self) -> None:
        while not self.closing.is_set():
            with self.lock:
                todo = self._dropped or self._todo
                model, rebuild = self._model, self._rebuild
                stale = []
                if model and (not todo or time.monotonic() - self._scored > SCORE_SECONDS):
                    stale = [e for e in self.entries if e.file is not None and e.model is not model]
                learn_now = not todo and self._learn_when_embedded
                if not (todo or learn_now or rebuild or stale):
                    self._changed.wait(1)
                    continue
            try:
                if rebuild:
                    self._new_model(learning=False)
                elif learn_now:
                    self._learn_when_embedded = False
                    self.learn()
                elif stale and model is not None:
                    self._score(model, stale[:SCORE_AT_ONCE])
                    if len(stale) <= SCORE_AT_ONCE:
                        self._scored = time.monotonic()
                else:
                    self._embed([todo.popleft() for _ in range(min(EMBED_AT_ONCE, len(todo)))])
            except Exception as error:  # whatever it is, the page goes on; what did not work is not tried again at once
                _LOG.warning("%s", explain(error))
                self.closing.wait(1)

    def _embed(self, entries: Sequence[Entry]) -> None:
        by_path: dict[str, Entry] = {}
        for entry in entries:
            try:
                self.readable(entry)
                by_path[str(entry.path)] = entry
            except UsageError as error:  # noqa: PERF203
                self._failed(entry, error.message)
        paths, results = list(map(Path, by_path)), []
        try:
            with self.compute, contextlib.closing(self.classifier.embed_files(paths, **self._options)) as files:
                for file in files:
                    results.append(file)
                    if self.closing.is_set():
                        break
        except Exception as error:  # out of memory, say: these clips, not the server
            results = [Failure(str(path), explain(error)) for path in paths]
        for result in results:
            entry = by_path[result.path]
            if isinstance(result, Failure):
                if str(entry.path) == result.path:
                    self._failed(entry, result.error)
                else:  # it was moved meanwhile
                    self._dropped.append(entry)
                continue
            with self.lock:
                entry.file = EmbeddedFile(**{**vars(result), "path": str(entry.path)})  # it may have been moved
                self.version += 1
                entry.version = self.version

    def _failed(self, entry: Entry, error: str) -> None:
        with self.lock:
            self.version += 1
            entry.error, entry.version = printable(error), self.version

    def _score(self, model: Model, entries: Sequence[Entry]) -> None:
        with self.compute:
            verdicts = model.verdicts([entry.file for entry in entries if entry.file is not None])
        with self.lock:
            self.version += 1
            for entry, verdict in zip(entries, verdicts, strict=True):
                entry.verdict, entry.model, entry.version = verdict, model, self.version


def _checked(classes: dict[str, str]) -> dict[str, str]:
    """Classes with white space tidied; a :class:`UsageError` where they cannot be told apart."""
    labels = LabelSet.from_wordings(classes)
    if NONE in labels.names:
        raise UsageError(f"{NONE!r} stands for clips of no class.", hint="Call the class by another name.")
    return dict(zip(labels.names, labels.wordings, strict=True))
