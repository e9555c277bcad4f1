"""What answers on the page: labels by their texts, and what was learnt from corrected clips by kernel ridge."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.app.label_file import NONE, Mark
from avfewshot.errors import UsageError
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.head import frozen_part
from avfewshot.inference.results import ClipResult
from avfewshot.inference.runs import LearnedRun
from avfewshot.io import write_text
from avfewshot.labels import LabelSet
from avfewshot.methods.active import margins
from avfewshot.methods.base import Features, Support, log_softmax
from avfewshot.methods.kernel_ridge import KernelRidge
from avfewshot.methods.living import LivingRidge
from avfewshot.models.checkpoint import CONFIG_NAME, FORMAT, AdapterConfig

LIVING_ROWS = 100
"""From so many clips on a new one is learnt by a block update, which takes milliseconds, and not by a new fit."""


@dataclass(frozen=True)
class Verdict:
    """What is said about a clip, in short; shares in [0, 1]."""

    label: str
    score: float
    margin: float  # to the second best label
    disagreement: float | None  # of sight and sound: total variation of their distributions; None with one of them
    unknown: bool  # nothing like what was learnt


@dataclass(eq=False)
class Learnt:
    """A fitted scorer, and what is worth knowing about it."""

    run: LearnedRun
    rows: list[tuple[str, str]]  # (id, label) of each row of the support
    living: LivingRidge | None = None
    facts: dict[str, Any] = field(default_factory=dict)


class Model:
    """Scores embedded files with some labels; never changed, only replaced.

    Without `learnt` the classifier, which embedded the files, says itself.
    """

    def __init__(self, classifier: Classifier, labels: LabelSet, learnt: Learnt | None = None) -> None:
        self.classifier, self.labels, self.learnt = classifier, labels, learnt
        own = classifier.learned
        run = learnt.run if learnt else own
        self.scorer = run.scorer if run else None
        self.texts = classifier.label_features(labels.names, labels.wordings)
        self._head = classifier.head(labels, learned=run)
        # Adapters have a say of their own: file by file, as the classifier does it.
        tuned = own is not None and own.is_tuned and learnt is None
        self._singly = tuned or classifier.blend > 0 or not classifier.embeds_frozen

    def result(self, file: EmbeddedFile) -> ClipResult:
        """Everything about a file."""
        return self._head.result(file, segments=True)

    def verdicts(self, files: Sequence[EmbeddedFile]) -> list[Verdict]:
        """The short form of many."""
        if not files:
            return []
        features = features_of(self.classifier, files) if self.classifier.embeds_frozen else None
        none = np.zeros(len(files))
        if self._singly or features is None:
            results = [self._head.result(file, segments=False) for file in files]
            fused = np.array([list(result.scores.values()) for result in results])
            uniform = [1 / fused.shape[1]] * fused.shape[1]
            visual = np.array([list(r.visual.values()) if r.visual else uniform for r in results])
            audio = np.array([list(r.audio.values()) if r.audio else uniform for r in results])
        elif self.scorer is None:
            logs = self.texts.clip_log_posteriors(features)
            fused, visual, audio = (np.exp(logs[name]) for name in ("fused", "visual", "audio"))
        else:
            own = tuple(self.scorer.texts.names) == self.labels.names
            scores = self.scorer.scores(features, None if own else self.texts)
            fused, visual, audio = np.exp(log_softmax(scores.fused)), np.exp(scores.visual), np.exp(scores.audio)
            none = none if scores.none is None else np.exp(scores.none)
        unknown = none > 0.5
        if self.learnt and self.learnt.living and features is not None:
            unknown |= self.learnt.living.unknown(features)
        gaps = np.abs(visual - audio).sum(1) / 2
        return [
            Verdict(
                self.labels.names[row.argmax()], float(row.max()), float(margin),
                None if file.visual is None or file.audio is None else float(gap), bool(strange),
            )
            for file, row, margin, gap, strange in zip(files, fused, margins(fused), gaps, unknown, strict=True)
        ]  # fmt: skip


def features_of(classifier: Classifier, files: Sequence[EmbeddedFile]) -> Features:
    """Embeddings as few-shot methods take them, of whole clips."""
    return Features.of(frozen_part(file.by_clip, classifier.dims) for file in files)


def support_of(
    classifier: Classifier, marked: Sequence[tuple[EmbeddedFile, Mark]], labels: LabelSet
) -> tuple[Support, list[tuple[str, str]]] | None:
    """A row for each labelled clip, and one for each run of labelled seconds; those of one clip are left out together.

    Gives the support, whose groups are positions in `marked`, with id and label of each row; None without any label.
    """
    parts: list[tuple[str, Any, Any]] = []
    rows: list[tuple[str, str]] = []
    groups: list[int] = []
    for group, (file, mark) in enumerate(marked):
        name, *pair = frozen_part(file, classifier.dims)
        _, *whole = frozen_part(file.by_clip, classifier.dims)
        spans: list[tuple[int, int | None, str, str]] = [
            (start, end, label, f"{name}#{start}-{end}") for start, end, label in mark.spans()
        ]
        if mark.label:
            spans.insert(0, (0, None, mark.label, name))
        for start, end, label, key in spans:
            source = whole if end is None else pair
            cut = [None if seconds is None else seconds[start:end] for seconds in source]
            if any(seconds is not None and len(seconds) for seconds in cut) and label in (*labels.names, NONE):
                parts.append((key, cut[0], cut[1]))
                rows.append((key, label))
                groups.append(group)
    if not rows:
        return None
    marks = np.array([[label == name for name in labels.names] for _, label in rows])
    return Support(Features.of(parts), marks, groups=np.array(groups)), rows


def learn(
    classifier: Classifier,
    labels: LabelSet,
    marked: Sequence[tuple[EmbeddedFile, Mark]],
    before: Learnt | None,
    templates: str = "default",
) -> Learnt | None:
    """Learn from labelled clips: anew, or by a block update where clips were only added to those of `before`.

    A few-shot run that the classifier was loaded with is learnt on from; a :class:`UsageError` where it cannot be. None
    where there is too little to learn from: a single class.
    """
    begun = time.perf_counter()
    if not classifier.embeds_frozen:
        raise UsageError(
            "What was trained here gives adapted embeddings alone, nothing can be learnt from corrections.",
            hint="Start `avfs serve` without --adapter, or with a run of `avfs fewshot --no-tune`.",
        )
    labelled = support_of(classifier, marked, labels)
    if labelled is None:
        return None
    support, rows = labelled
    texts = classifier.label_features(labels.names, labels.wordings)
    base = classifier.learned
    known_labels = {} if before is None else dict(before.rows)
    grown = (
        before is not None
        and len(before.rows) >= LIVING_ROWS
        and tuple(before.run.scorer.texts.names) == labels.names
        and known_labels.items() <= dict(rows).items()
    )
    if base is not None or grown:
        scorer = copy.deepcopy(before.run.scorer if grown and before else base.scorer if base else None)
        assert scorer is not None
        scorer.tuned = None  # adapters know nothing of these clips
        living = LivingRidge(scorer)
        fresh = [row for row, (key, _) in enumerate(rows) if not (grown and key in known_labels)]
        if fresh:
            living.add(support.features.take(np.array(fresh)), support.labels[fresh], texts)
    else:
        if (support.labels.any(0).sum() + (not support.labels.any(1).all())) < 2:
            return None
        scorer = KernelRidge().fit(support, texts)
        living = LivingRidge(scorer)
    wordings = dict(zip(labels.names, labels.wordings, strict=True))
    names = (*scorer.texts.names, *([NONE] if scorer.negatives else []))
    about = AdapterConfig(
        task="folder",
        labels=names,
        wordings=tuple(wordings.get(name, name) for name in names),
        templates=templates,
        backbone=classifier.backbone.name,
        identity=dict(classifier.backbone.identity),
        training={"method": scorer.method.name, "audio_context": classifier.audio_context},
        seed=1,
        support={"clips": [list(row) for row in rows]},
        decision={"fusion": classifier.fusion, "pool": classifier.pool},
    )
    learnt = Learnt(LearnedRun(Path(), {}, about, scorer), rows)
    facts = learnt.facts
    facts |= {"clips": len(np.unique(support.groups)), "rows": len(rows), "accuracy": None, "doubted": []}
    loo = scorer.loo(support) if scorer.clip.loo is not None else None
    if loo is not None:
        facts |= {"accuracy": scorer.diagnostics["loo_accuracy"], "judged": scorer.diagnostics.get("loo_clips")}
        wrong = support.labels.any(1) & ~support.labels[np.arange(len(rows)), loo.argmax(1)]
        facts["doubted"] = sorted({marked[support.groups[row]][0].path for row in np.flatnonzero(wrong)})
    elif living.leaves_out:
        targets = scorer.clip.arrays["targets"]
        right = targets[np.arange(len(targets)), living.left_out().argmax(1)] > 0
        facts |= {"accuracy": float(right.mean()), "judged": len(targets)}
    if living.leaves_out:
        if living.reject is None:  # else it was calibrated when it learnt
            living.calibrate_reject()
        learnt.living = living
    facts["seconds"] = time.perf_counter() - begun
    return learnt


def save_run(folder: Path, model: Model) -> None:
    """Write what was learnt as a run for ``avfs zeroshot --adapter`` and :func:`avfewshot.load`.

    A :class:`UsageError` where nothing has been learnt yet.
    """
    if model.learnt is None:
        raise UsageError("Nothing has been learnt yet.", hint="Label clips of two classes, then relearn.")
    run = model.learnt.run
    folder.mkdir(parents=True)
    run.scorer.save(folder / "scorer")
    write_text(folder / "scorer" / CONFIG_NAME, json.dumps({"format": FORMAT, **asdict(run.config)}, indent=2))
