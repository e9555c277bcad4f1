"""The thread that computes: it embeds clips a few at a time, then learns, then scores what is out of date."""

from __future__ import annotations

import contextlib
import copy
import logging
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from avfewshot.app.clips import Clips, Entry
from avfewshot.app.learner import Learnt, Model, learn
from avfewshot.errors import UsageError, explain
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.results import Failure
from avfewshot.labels import LabelSet
from avfewshot.text import printable

_LOG = logging.getLogger(__name__)
EMBED_AT_ONCE = 4
SCORE_AT_ONCE = 250
SCORE_SECONDS = 1.0  # while clips are embedded, the new ones are scored so often


class Worker:
    """See the module; `options` are of :meth:`Classifier.embed_files`."""

    def __init__(self, clips: Clips, classifier: Classifier, templates: str, options: Mapping[str, Any]) -> None:
        self._clips, self._classifier, self._templates, self._options = clips, classifier, templates, options
        self.compute = threading.Lock()  # held while towers or scorers run
        self.closing = threading.Event()
        self.model: Model | None = None
        self.learnt: Learnt | None = None
        self._built: dict[str, str] | None = None  # classes that the last model was built for
        self._scored = 0.0  # when
        self._learn_when_embedded = any(entry.mark for entry in clips.entries)
        self._thread = threading.Thread(target=self._work, name="avfs-serve", daemon=True)

    def start(self) -> None:
        """Begin to embed."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self.closing.set()
        with self._clips.lock:
            self._clips.changed.notify_all()
        if self._thread.is_alive():
            self._thread.join(10)

    def learn(self) -> dict[str, Any] | None:
        """Learn from all that is labelled and embedded; the scores follow. Gives the facts, None with too little."""
        return self._new_model(learning=True)

    def _new_model(self, *, learning: bool) -> dict[str, Any] | None:
        clips = self._clips
        with self.compute:
            with clips.lock:
                labels = LabelSet.from_wordings(clips.classes) if clips.classes else None
                marked = [(e.file, copy.deepcopy(e.mark)) for e in clips.entries if e.mark and e.file is not None]
                before = learnt = self.learnt
                self._built = self._built if learning else clips.classes
            if learning:
                learnt = None if labels is None else learn(self._classifier, labels, marked, before, self._templates)
            model = None if labels is None else Model(self._classifier, labels, learnt)
            with clips.lock:
                self.learnt, self.model = learnt, model
                doubted = {path for some in (before, learnt) if learning and some for path in some.facts["doubted"]}
                clips.touch(*(entry for entry in clips.entries if str(entry.path) in doubted))
            return learnt.facts if learnt else None

    def _work(self) -> None:
        clips = self._clips
        while not self.closing.is_set():
            with clips.lock:
                todo = clips.dropped or clips.todo
                model, rebuild = self.model, self._built is not clips.classes
                stale = []
                if model and (not todo or time.monotonic() - self._scored > SCORE_SECONDS):
                    stale = [e for e in clips.entries if e.file is not None and e.model is not model]
                learn_now = not todo and self._learn_when_embedded
                if not (todo or learn_now or rebuild or stale):
                    clips.changed.wait(1)
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
                self._clips.readable(entry)
                by_path[str(entry.path)] = entry
            except UsageError as error:  # noqa: PERF203
                self._failed(entry, error.message)
        paths, results = list(map(Path, by_path)), []
        try:
            with self.compute, contextlib.closing(self._classifier.embed_files(paths, **self._options)) as files:
                for file in files:
                    results.append(file)
                    if self.closing.is_set():
                        break
        except Exception as error:  # out of memory, say: these clips, not the server
            results = [Failure(str(path), explain(error)) for path in paths]
        for result in results:
            entry = by_path[result.path]
            if not isinstance(result, Failure):
                with self._clips.lock:
                    entry.embedded(result)
                    self._clips.touch(entry)
            elif str(entry.path) == result.path:
                self._failed(entry, result.error)
            else:  # it was moved meanwhile
                self._clips.dropped.append(entry)

    def _failed(self, entry: Entry, error: str) -> None:
        with self._clips.lock:
            entry.error = printable(error)
            self._clips.touch(entry)

    def _score(self, model: Model, entries: Sequence[Entry]) -> None:
        with self.compute:
            verdicts = model.verdicts([entry.file for entry in entries if entry.file is not None])
        with self._clips.lock:
            for entry, verdict in zip(entries, verdicts, strict=True):
                entry.verdict, entry.model = verdict, model
            self._clips.touch(*entries)
