"""From the embeddings of a file to its result: compared with label features, fused and pooled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfewshot.errors import UsageError
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.logits import ClassTexts, ClipLogits, score_clip
from avfewshot.inference.results import ClipResult, SegmentResult
from avfewshot.inference.runs import LearnedRun
from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Features, Floats, LabelFeatures, log_softmax
from avfewshot.methods.calibration import standardised_labels
from avfewshot.methods.living import LivingRidge
from avfewshot.models.fusion import both_ways, predict_events, second_posteriors
from avfewshot.tuning.methods import TunedMethod


class ZeroShotHead:
    """Compares embeddings with the K labels of a run, `names`.

    `spaces` holds texts and temperature scales of the model; or of the frozen towers and of the trained model, whose
    embeddings then stand side by side (:class:`~avfewshot.models.build.EnsembleModel`), `alpha` being the share of
    the trained logits.
    """

    def __init__(
        self,
        names: Sequence[str],
        spaces: Sequence[tuple[ClassTexts, tuple[float, float]]],
        alpha: float,
        *,
        modality: str,
        fusion: str,
        pool: str,
    ) -> None:
        self._names = names
        self._spaces = spaces
        self._alpha = alpha
        self._modality = modality
        self._options = {"fusion": fusion, "pool": pool}

    def result(self, file: EmbeddedFile, *, segments: bool) -> ClipResult:
        """The result of a file; with `segments`, also what each second holds."""
        logits = self.logits(file.by_clip)
        prediction = predict_events(logits.visual, logits.audio, **self._options)
        scores = prediction.probabilities.tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        warnings = list(file.warnings)
        if self._modality == "av" and (file.visual is None or file.audio is None):
            warnings.append(f"classified by {'sound' if file.visual is None else 'sight'} alone")
        return ClipResult(
            path=file.path,
            duration=file.duration,
            label=self._names[best],
            score=scores[best],
            scores=dict(zip(self._names, scores, strict=True)),
            visual=self._by_name(prediction.visual),
            audio=self._by_name(prediction.audio),
            weights=dict(zip(MODALITIES, prediction.weights.tolist(), strict=True)),
            segments=self._segments(file) if segments else [],
            warnings=warnings,
        )

    def labels_of(self, result: ClipResult) -> list[str]:
        """All labels that a clip carries, the surest first: the best, and those that stand out in sight and sound."""
        rows = [
            np.log(np.maximum([shares[name] for name in self._names], 1e-30))
            for shares in (result.visual, result.audio)
            if shares is not None
        ]
        chosen = dict(zip(self._names, standardised_labels(rows), strict=True))
        order = sorted(result.scores, key=result.scores.__getitem__, reverse=True)
        return [name for name in order if chosen[name] or name == result.label]

    def logits(self, file: EmbeddedFile) -> ClipLogits:
        """Logits of the seconds of a file."""
        count = len(self._spaces)
        parts = ([None] * count if part is None else part.chunk(count, -1) for part in (file.visual, file.audio))
        found = [score_clip(*pair, *space) for *pair, space in zip(*parts, self._spaces, strict=True)]
        return found[0] if count == 1 else found[0].ensemble(found[1], self._alpha)

    def both_ways(self, file: EmbeddedFile) -> list[tuple[Tensor, Tensor]]:
        """What is said with the modalities joined as set, and the other way: of the file, and of its seconds.

        Log-probabilities ``[K]``, and ``[T, K + 1]`` with the background last.
        """
        logits, found = self.logits(file), []
        for fusion in both_ways(self._options["fusion"]):
            clip = predict_events(logits.visual, logits.audio, **{**self._options, "fusion": fusion}).probabilities
            found.append((clip.clamp(min=1e-12).log(), second_posteriors(logits.visual, logits.audio, fusion=fusion)))
        return found

    def _segments(self, file: EmbeddedFile) -> list[SegmentResult]:
        results, logits = [], self.logits(file)
        prediction = predict_events(logits.visual, logits.audio, **self._options)
        rows = zip(prediction.segment_probabilities.tolist(), prediction.segment_weights.tolist(), strict=True)
        alone = [  # without the background text, the last one
            None if scores is None else scores[:, : len(self._names)].softmax(-1).tolist()
            for scores in (logits.visual, logits.audio)
        ]
        for index, (scores, weights) in enumerate(rows):
            visual, audio = (None if seconds is None else seconds[index] for seconds in alone)
            best = max(range(len(scores)), key=scores.__getitem__)
            end = min(index + 1.0, file.duration) if file.duration > index else index + 1.0
            shares: dict[str, float] = dict(zip(MODALITIES, weights, strict=True))
            results.append(
                SegmentResult(float(index), end, self._names[best], scores[best], shares, scores, visual, audio)
            )
        return results

    def _by_name(self, probabilities: Tensor | None) -> dict[str, float] | None:
        return None if probabilities is None else dict(zip(self._names, probabilities.tolist(), strict=True))


BACKGROUND = "background"
"""What a second, or a clip, is called in which nothing happens, where the run has learnt what that is."""
UNKNOWN = "unknown"
"""What a clip is called that is like nothing that was learnt, where that is asked for."""


class TunedHead(ZeroShotHead):
    """Logits by a tuned method, of embeddings of its own towers; fused and pooled as everywhere."""

    def __init__(self, method: TunedMethod, names: Sequence[str], **options: str) -> None:
        super().__init__(names, [], 1.0, **options)
        self._method = method

    def logits(self, file: EmbeddedFile) -> ClipLogits:
        """See :meth:`ZeroShotHead.logits`."""
        device = next(self._method.parameters()).device
        visual, audio = (None if one is None else one.to(device) for one in (file.visual, file.audio))
        with torch.no_grad():
            [pair] = self._method.compare([(visual, audio)])
        return ClipLogits(*(None if one is None else one.double().cpu() for one in pair))


def rejector(run: LearnedRun | None, labels: Sequence[str]) -> LivingRidge:
    """What tells that a clip is like nothing that was learnt; a :class:`UsageError` where nothing can."""
    if run is None:
        hint = "Add --adapter RUN, a run of auto or of a method on frozen embeddings."
        raise UsageError("Only what was learnt on frozen embeddings can tell unknown clips (--reject).", hint=hint)
    ridge = LivingRidge(run.scorer.rejector or run.scorer, learn=False) if run.scorer.clip.arrays else None
    if ridge is None or ridge.reject is None:
        raise UsageError(
            f"{run.path}: has no threshold for unknown clips.",
            hint="It takes at least two clips a class; a run of an earlier version has to be made again.",
        )
    learnt = {name for name, trained in zip(run.scorer.texts.names, run.scorer.trained, strict=True) if trained}
    if UNKNOWN in labels:
        raise UsageError(f"A label is called {UNKNOWN!r}: --reject has no word of its own.")
    if strange := [label for label in labels if label not in learnt and label != run.none]:
        raise UsageError(
            f"--reject goes by clips that were learnt; there were none of {', '.join(strange[:5])}.",
            hint="Leave the labels out: those of the run are then taken.",
        )
    return ridge


class LearnedHead(ZeroShotHead):
    """Scores files by a fitted method; labels that it was not fitted on are left to the text.

    "None of these", where the run has clips of it, is a label among the others if it is asked for by its name; if not,
    a warning says when it fits best. A clip of a run on seconds in none of whose seconds anything happens is called
    :data:`BACKGROUND`; with `reject`, one that is like nothing that was learnt :data:`UNKNOWN`. `zero_shot` gives
    weights of the modalities, and the trained logits where the method has a tuned part; `dims` are the widths of the
    frozen embeddings, which stand first.
    """

    def __init__(
        self,
        run: LearnedRun,
        texts: LabelFeatures,
        zero_shot: ZeroShotHead,
        dims: tuple[int, int],
        *,
        reject: bool = False,
    ) -> None:
        self.__dict__.update(vars(zero_shot))
        self._scorer, self._zero_shot, self._dims, self._labels = run.scorer, zero_shot, dims, texts.names
        self._none = texts.names.index(run.none) if run.none in texts.names and len(texts.names) > 1 else None
        self._texts = texts.take([row for row in range(len(texts.names)) if row != self._none])
        self._own = self._texts.names == tuple(run.scorer.texts.names)
        self._ridge = rejector(run, self._labels) if reject else None

    def result(self, file: EmbeddedFile, *, segments: bool) -> ClipResult:
        """See :meth:`ZeroShotHead.result`."""
        base = self._zero_shot.result(file, segments=segments)
        whole = file if self._scorer.second else file.by_clip
        features, (tuned, tuned_seconds) = self._features(whole), self._tuned(whole)
        found = self._scorer.scores(features, None if self._own else self._texts, tuned=tuned)
        scores = self._columns(found.joined[0])
        label = max(scores, key=scores.__getitem__)
        score, warnings = scores[label], list(base.warnings)
        if self._none is None and found.none is not None and np.exp(found.none[0]) > 0.5:
            warnings.append(f"none of the labels fits: {100 * np.exp(found.none[0]):.0f} %")
        timed = self._own and (segments or self._scorer.second)
        rows = self._scorer.segment_logits(self._features(file), tuned=tuned_seconds)[0] if timed else None
        if rows is not None and self._scorer.second and (nothing := float(np.exp(rows[:, -1].min()))) > 0.5:
            label, score = BACKGROUND, nothing
        if self._ridge is not None and label in self._texts.names and self._ridge.unknown(features, self._labels)[0]:
            label = UNKNOWN
        return replace(
            base,
            label=label,
            score=score,
            scores=scores,
            segments=base.segments if rows is None else self._timeline(rows, base.segments),
            warnings=warnings,
        )

    def _tuned(self, file: EmbeddedFile) -> tuple[list[Floats] | None, list[list[Floats]] | None]:
        """What the tuned part says of a file, as the scorer takes it for clips and for seconds."""
        if not self._scorer.is_tuned:
            return None, None
        columns = [row for row in range(len(self._labels)) if row != self._none]
        clip, seconds = zip(*self._zero_shot.both_ways(file), strict=True)
        return [one[None, columns].numpy() for one in clip], [[one[:, [*columns, -1]].numpy()] for one in seconds]

    def _features(self, file: EmbeddedFile) -> Features:
        return Features.of([frozen_part(file, self._dims)])

    def labels_of(self, result: ClipResult) -> list[str]:
        """All labels that a clip carries, the surest first: by thresholds from left-out clips, where there are any."""
        if result.label not in self._texts.names:
            return [] if result.label == UNKNOWN else [result.label]
        known = self._scorer.thresholds
        if not known:
            return super().labels_of(result)
        other = sum(known.values()) / len(known)  # of a label that was not learnt
        order = sorted(self._texts.names, key=result.scores.__getitem__, reverse=True)
        return [name for name in order if result.scores[name] >= known.get(name, other) or name == result.label]

    def _columns(self, log_posterior: Floats) -> dict[str, float]:
        """Probabilities of the labels that were asked for, from those of the method, its own last one maybe beside."""
        known = len(self._texts.names)
        if self._none is None:
            log_posterior = log_posterior[:known]
        elif len(log_posterior) > known:
            log_posterior = np.insert(log_posterior[:known], self._none, log_posterior[known])
        return dict(zip(self._labels, np.exp(log_softmax(log_posterior)).tolist(), strict=True))

    def _timeline(self, rows: Floats, base: Sequence[SegmentResult]) -> list[SegmentResult]:
        segments = []
        for row, segment in zip(rows, base, strict=False):
            scores = self._columns(row)
            label = max(scores, key=scores.__getitem__)
            score = scores[label]
            if self._scorer.second and row.argmax() == len(row) - 1:
                label, score = BACKGROUND, float(np.exp(row[-1]))
            segments.append(replace(segment, label=label, score=score, scores=list(scores.values())))
        return segments


def frozen_part(file: EmbeddedFile, dims: tuple[int, int]) -> tuple[str, Any, Any]:
    """Id, sight and sound of a file as few-shot methods take them: what the frozen towers gave, which stands first."""
    visual = None if file.visual is None else file.visual[:, : dims[0]].numpy()
    audio = None if file.audio is None else file.audio[:, : dims[1]].numpy()
    if visual is not None and audio is not None:
        seconds = min(len(visual), len(audio))
        visual, audio = visual[:seconds], audio[:seconds]
    return file.path, visual, audio
