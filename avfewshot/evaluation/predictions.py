"""From logits to what the evaluation judges, with rules that are chosen on validation data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfewshot.evaluation.measures import choose_label_threshold
from avfewshot.evaluation.targets import BackgroundRule, Predictions, Targets, fit_background
from avfewshot.evaluation.tasks import find_task
from avfewshot.inference.logits import ClipLogits
from avfewshot.models.fusion import fuse, predict_events, predict_seconds

Floats = npt.NDArray[np.float64]

_LACKING = -1e6  # salience of seconds that a clip lacks


@dataclass(frozen=True)
class Fitted:
    """What was chosen on validation data for one system."""

    background: BackgroundRule | None = None  # how seconds without an event are told; None for tasks that label clips
    # from which probability on a clip is said to carry a class; None where clips have one label
    label_threshold: float | None = None
    fusion: str = ""  # how the modalities are joined; empty: as the configuration says


@dataclass(frozen=True)
class PredictionConfig:
    """How logits become answers."""

    task: str  # name of the task
    fusion: str  # how the modalities are joined
    pool: str  # how the seconds of a clip are pooled, for tasks that label clips
    background: str = "threshold"  # strategy for seconds without an event, for tasks that label seconds
    seconds: int = 10  # annotated seconds of a clip, for the same

    @property
    def per_second(self) -> bool:
        """Whether seconds are labelled, not clips."""
        return find_task(self.task).per_second

    def fit(self, clips: Sequence[ClipLogits], targets: Targets) -> Fitted:
        """Choose on validation data what has to be chosen."""
        if not self.per_second:
            if not targets.multi_label:
                return Fitted(fusion=self.fusion)
            probabilities = clip_probabilities(clips, targets.num_classes, fusion=self.fusion, pool=self.pool)
            threshold = choose_label_threshold(probabilities, targets.labels)
            return Fitted(label_threshold=threshold, fusion=self.fusion)
        assert targets.segments is not None
        probabilities, salience = self._seconds(clips, targets.num_classes)
        rule = fit_background(
            self.background, probabilities[..., : targets.num_classes], targets.segments, salience=salience
        )
        return Fitted(background=rule, fusion=self.fusion)

    def predict(self, clips: Sequence[ClipLogits], num_classes: int, fitted: Fitted) -> Predictions:
        """What a system says about clips, by its logits and what :meth:`fit` chose."""
        if not self.per_second:
            probabilities = clip_probabilities(clips, num_classes, fusion=fitted.fusion or self.fusion, pool=self.pool)
            return Predictions(probabilities, label_threshold=fitted.label_threshold)
        decision = replace(self, fusion=fitted.fusion or self.fusion)
        probabilities, salience = decision._seconds(clips, num_classes)
        return Predictions(probabilities, background=fitted.background, salience=salience)

    def _seconds(self, clips: Sequence[ClipLogits], num_classes: int) -> tuple[Floats, Floats | None]:
        """Probabilities in the form that the background's strategy takes, and how sure it is that something happens."""
        if self.background == "prompt":
            return second_probabilities(clips, num_classes, self.seconds, fusion=self.fusion), None
        shares = np.full((len(clips), self.seconds, num_classes), 1 / num_classes)
        sureness = np.full(shares.shape[:2], _LACKING)
        for rows, visual, audio in _alike(clips):
            events, salience = predict_seconds(visual, audio, fusion=self.fusion)
            known = min(self.seconds, salience.shape[1])
            shares[rows, :known], sureness[rows, :known] = events[:, :known].exp().numpy(), salience[:, :known].numpy()
        return shares, sureness


def clip_probabilities(clips: Sequence[ClipLogits], num_classes: int, *, fusion: str, pool: str) -> Floats:
    """A distribution over the classes for each clip, ``[N, K]``; uniform without picture and sound."""
    result = np.full((len(clips), num_classes), 1 / num_classes)
    for rows, visual, audio in _alike(clips):
        result[rows] = predict_events(visual, audio, fusion=fusion, pool=pool).probabilities.numpy()
    return result


def second_probabilities(clips: Sequence[ClipLogits], num_classes: int, seconds: int, *, fusion: str) -> Floats:
    """A distribution over the classes and the background for each second of each clip, ``[N, T, K + 1]``.

    Longer clips are cut to T `seconds`; seconds that a shorter one lacks are background.
    """
    result = np.zeros((len(clips), seconds, num_classes + 1))
    result[..., num_classes] = 1
    for rows, visual, audio in _alike(clips):
        probabilities, _ = fuse(visual, audio, fusion=fusion)
        known = min(seconds, probabilities.shape[1])
        result[rows, :known] = probabilities[:, :known].numpy()
    return result


def _alike(clips: Sequence[ClipLogits]) -> list[tuple[list[int], Tensor | None, Tensor | None]]:
    """Clips of the same length and modalities, stacked: numbers of the clips and ``[n, T, K + 1]``."""
    groups: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.num_segments:
            groups[clip.num_segments, clip.visual is not None, clip.audio is not None].append(index)
    stacked = []
    for rows in groups.values():
        pairs = zip(*((clips[row].visual, clips[row].audio) for row in rows), strict=True)
        stacked.append((rows, *(None if part[0] is None else torch.stack(part) for part in pairs)))
    return stacked
