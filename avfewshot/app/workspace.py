"""What the page works on: clips and what is said about them, what was learnt; answers about them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.app.changes import Changes
from avfewshot.app.clips import Clips, Entry
from avfewshot.app.label_file import NAME as LABELS_NAME
from avfewshot.app.label_file import write_marks
from avfewshot.app.learner import features_of, save_run
from avfewshot.app.worker import Worker
from avfewshot.errors import UsageError
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.head import frozen_part
from avfewshot.inference.results import ClipResult
from avfewshot.labels import LabelSet
from avfewshot.methods.active import suggest
from avfewshot.store.search import Search, word_query
from avfewshot.store.store import Store
from avfewshot.store.writer import THUMBNAIL
from avfewshot.text import printable


class Workspace:
    """Clips, the changes that tabs make to them, and the worker that embeds and scores them.

    Paths are shown relative to `folder`, whose ``labels.csv`` names classes beside `labels`. What lies outside of
    `roots` is never opened. `runs` is the folder that runs are saved in; a `store` has small pictures of the clips that
    it holds; `options` are those of :meth:`Classifier.embed_files`.
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
        self.classifier, self._runs, self._store = classifier, runs, store
        self.clips = Clips(folder, files, labels, roots or [folder])
        self.changes = Changes(self.clips)
        self.worker = Worker(self.clips, classifier, templates, options)
        self._search: Search | None = None  # over the clips that were embedded when it was last asked

    def close(self) -> None:
        """End the worker and remove the temporary folder."""
        self.worker.close()
        self.clips.close()

    def state(self) -> dict[str, Any]:
        """Everything but the clips."""
        with self.clips.lock:
            todo = sum(entry.file is None and entry.error is None for entry in self.clips.entries)
            stale = sum(entry.file is not None and entry.model is not self.worker.model for entry in self.clips.entries)
            learnt = self.worker.learnt.facts if self.worker.learnt else None
            return {
                "version": self.clips.version,
                "folder": printable(str(self.clips.folder)),
                "labels_file": printable(str(self.clips.labels_file)),
                "backbone": self.classifier.name,
                "adapter": self.classifier.adapter,
                "classes": [{"name": name, "wording": wording} for name, wording in self.clips.classes.items()],
                "clips": len(self.clips.entries),
                "embedded": len(self.clips.entries) - todo,
                "stale": stale if self.worker.model else 0,
                "labelled": sum(bool(entry.mark) for entry in self.clips.entries),
                "learnt": learnt and {key: value for key, value in learnt.items() if key != "doubted"},
            }

    def rows(self, since: int = 0) -> list[dict[str, Any]]:
        """Clips that changed after a version, in short."""
        with self.clips.lock:
            doubted = set(self.worker.learnt.facts["doubted"]) if self.worker.learnt else set()
            return [
                self._row(entry, str(entry.path) in doubted) for entry in self.clips.entries if entry.version > since
            ]

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

    def small_picture(self, path: Path, second: int, size: int) -> bytes | None:
        """A JPEG that the store has of a clip as it is now, where it is about as large as is asked for."""
        if self._store is None or size > 1.5 * THUMBNAIL or self._store.find_clip(path) is None:
            return None
        return self._store.thumbnail(path, second)

    def result(self, number: int) -> tuple[Entry, ClipResult | None]:
        """A clip and everything that is known about it."""
        entry = self.clips.entry(number)
        with self.clips.lock:
            model, file = self.worker.model, entry.file
        if model is None or file is None:
            return entry, None
        with self.worker.compute:
            return entry, model.result(file)

    def suggest(self, count: int) -> list[int]:
        """Numbers of the clips to label next."""
        with self.clips.lock:
            model = self.worker.model
            free = [
                (e.number, e.file, e.verdict.margin) for e in self.clips.entries if e.file and e.verdict and not e.mark
            ]
        if model is None or not free or not self.classifier.embeds_frozen:
            return []
        numbers, files, margins = zip(*free, strict=True)
        with self.worker.compute:
            features = lambda rows: features_of(self.classifier, [files[row] for row in rows])  # noqa: E731
            return [numbers[row] for row in suggest(np.array(margins), features, count)]

    def find(self, query: str, by: str, top: int) -> list[dict[str, Any]]:
        """The clips whose best second fits a text best, with that second; see :class:`Search`.

        A :class:`UsageError` where embeddings are adapted: they cannot be searched.
        """
        if not self.classifier.embeds_frozen:
            raise UsageError("Adapted embeddings cannot be searched.", hint="Start without --adapter.")
        with self.worker.compute:
            with self.clips.lock:
                files = [(str(e.number), e.file) for e in self.clips.entries if e.file is not None]
            if self._search is None or len(self._search) != len(files):
                dims = self.classifier.dims
                self._search = Search.of([(number, *frozen_part(file, dims)[1:]) for number, file in files])
            hits = self._search.find(word_query(self.classifier, query), top, by=by)
        return [{"id": int(hit.path), "second": hit.second, "score": hit.score} for hit in hits]

    def save(self, name: str) -> Path:
        """Write what was learnt as a run, and the labels beside it.

        A :class:`UsageError` where nothing has been learnt, or where `name` is longer than 80 characters, or of others
        than letters, digits, spaces, dots, - and _.
        """
        if not re.fullmatch(r"[\w][\w .-]{0,79}", name):
            raise UsageError("The name of a run is made of letters, digits, spaces, dots, - and _.")
        with self.clips.lock:
            model = self.worker.model
            classes, marks = dict(self.clips.classes), self.clips.all_marks()
        if model is None:
            raise UsageError("There are no labels yet.")
        folder = self._runs / "serve" / f"{datetime.now(timezone.utc).strftime('%Y%m%d-%H%M%S')}-{name}"
        save_run(folder, model)
        write_marks(folder / LABELS_NAME, classes, marks)
        return folder
