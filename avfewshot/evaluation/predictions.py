"""From logits to what the evaluation judges, with rules that are chosen on validation data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avfewshot.evaluation.background import BackgroundRule, fit_background
from avfewshot.evaluation.logits import Floats, clip_probabilities, second_probabilities, second_salience
from avfewshot.evaluation.measures import choose_label_threshold
from avfewshot.evaluation.targets import Predictions, Targets
from avfewshot.evaluation.tasks import find_task
from avfewshot.inference.logits import ClipLogits

_SMALLEST = 1e-300


@dataclass(frozen=True)
class Thresholds:
    """What was chosen on validation data for one system."""

    background: BackgroundRule | None = None  # how seconds without an event are told; None for tasks that label clips
    # from which probability on a clip is said to carry a class; None where clips have one label
    label_threshold: float | None = None


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

    def fit(self, clips: Sequence[ClipLogits], targets: Targets) -> Thresholds:
        """Choose on validation data what has to be chosen."""
        if not self.per_second:
            if not targets.multi_label:
                return Thresholds()
            probabilities = clip_probabilities(clips, targets.num_classes, fusion=self.fusion, pool=self.pool)
            return Thresholds(label_threshold=choose_label_threshold(probabilities, targets.labels))
        assert targets.segments is not None
        probabilities, salience = self._seconds(clips, targets.num_classes)
        rule = fit_background(
            self.background, probabilities[..., : targets.num_classes], targets.segments, salience=salience
        )
        return Thresholds(background=rule)

    def predict(self, clips: Sequence[ClipLogits], num_classes: int, fitted: Thresholds) -> Predictions:
        """What a system says about clips, by its logits and what :meth:`fit` chose."""
        if not self.per_second:
            probabilities = clip_probabilities(clips, num_classes, fusion=self.fusion, pool=self.pool)
            return Predictions(probabilities, label_threshold=fitted.label_threshold)
        probabilities, salience = self._seconds(clips, num_classes)
        return Predictions(probabilities, background=fitted.background, salience=salience)

    def _seconds(self, clips: Sequence[ClipLogits], num_classes: int) -> tuple[Floats, Floats | None]:
        """Probabilities in the form that the background's strategy takes, and how sure it is that something happens."""
        joint = second_probabilities(clips, num_classes, self.seconds, fusion=self.fusion)
        if self.background == "prompt":
            return joint, None
        events = joint[..., :num_classes]
        # Divided by the largest first: a second that is background beyond doubt has no digits left for its events.
        largest = events.max(-1, keepdims=True)
        shares = np.where(largest > 0, events / np.maximum(largest, _SMALLEST), 1.0)
        return shares / shares.sum(-1, keepdims=True), second_salience(clips, events.argmax(-1))
