"""Model selection on validation clips: how good a training stands, and how its logits are joined with zero-shot ones.

A handful of clips can spoil what a large pretraining knows; the released DG-SCT is below its own zero-shot figure on
LLP. So trained and zero-shot logits are added with shares that validation chooses (Wortsman et al., CVPR 2022, join
weights for the same reason), and the untrained model itself stands as the first candidate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from avfewshot.config import AUTO
from avfewshot.evaluation.background import BackgroundRule
from avfewshot.evaluation.evaluate import evaluate
from avfewshot.evaluation.logits import clip_probabilities, second_probabilities
from avfewshot.evaluation.predictions import Decision, Fitted
from avfewshot.evaluation.targets import Targets
from avfewshot.inference.logits import ClipLogits

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Shares of the trained logits that are tried on validation clips."""


@dataclass(frozen=True)
class Verdict:
    """How good a model is on validation clips.

    Attributes:
        figure: The task's headline metric, higher is better.
        loss: Mean negative log-probability of the truth, which tells equal figures apart.
        blend: The share of the trained logits that did best.
        fitted: What was chosen with it.
    """

    figure: float
    loss: float
    blend: float
    fitted: Fitted

    def better_than(self, other: Verdict) -> bool:
        """Whether it has the higher figure, or the same at a lower loss."""
        return (self.figure, -self.loss) > (other.figure, -other.loss)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Verdict:
        """Read what :meth:`to_dict` gave.

        Raises:
            KeyError, TypeError, ValueError: It is something else.
        """
        return cls(
            float(values["figure"]), float(values["loss"]), float(values["blend"]), fitted_from(values["fitted"])
        )


def fitted_from(values: Mapping[str, Any]) -> Fitted:
    """Read a :class:`~avfewshot.evaluation.predictions.Fitted` that was stored as JSON.

    Raises:
        KeyError, TypeError, ValueError: It is something else.
    """
    rule = values["background"]
    threshold = values["label_threshold"]
    return Fitted(
        None if rule is None else BackgroundRule(rule["strategy"], rule["threshold"]),
        None if threshold is None else float(threshold),
    )


def unjudged(epoch: int, share: float | str, default: float) -> Verdict:
    """A verdict where there is nothing to judge on: each epoch counts as better than the one before.

    Args:
        epoch: Epochs done.
        share: Share of the trained logits, or ``"auto"``.
        default: What ``"auto"`` stands for then.
    """
    return Verdict(0.0, -float(epoch), default if share == AUTO else float(share), Fitted())


def judge_zero_shot(decision: Decision, zero_shot: Sequence[ClipLogits], targets: Targets) -> Verdict:
    """How good the untrained model is.

    Args:
        decision: How logits become answers.
        zero_shot: Its logits of the validation clips.
        targets: Their labels.
    """
    return _judge(decision, zero_shot, targets, 0.0)


def judge(
    decision: Decision,
    zero_shot: Sequence[ClipLogits],
    trained: Sequence[ClipLogits],
    targets: Targets,
    share: float | str = AUTO,
) -> Verdict:
    """How good a trained model is, with the share of its logits that does best.

    Args:
        decision: How logits become answers.
        zero_shot: Logits of the untrained model on the validation clips.
        trained: Logits of the trained model on the same clips.
        targets: Their labels.
        share: A share that is to be taken, or ``"auto"``.

    Returns:
        The verdict on the best share; of equally good ones the smallest, which keeps most of what was known before.
    """
    best: Verdict | None = None
    for candidate in SHARES if share == AUTO else (float(share),):
        joined = [before.ensemble(after, candidate) for before, after in zip(zero_shot, trained, strict=True)]
        verdict = _judge(decision, joined, targets, candidate)
        if best is None or verdict.better_than(best):
            best = verdict
    return best


def _judge(decision: Decision, clips: Sequence[ClipLogits], targets: Targets, share: float) -> Verdict:
    fitted = decision.fit(clips, targets)
    predictions = decision.predict(clips, targets.num_classes, fitted)
    result = evaluate(decision.task, targets, predictions, replicates=0)
    score = result.score
    return Verdict(-math.inf if score is None else score, _loss(decision, clips, targets), share, fitted)


def _loss(decision: Decision, clips: Sequence[ClipLogits], targets: Targets) -> float:
    if decision.per_second:
        segments = targets.segments
        joint = second_probabilities(clips, targets.num_classes, segments.shape[1], fusion=decision.fusion)
        true = np.take_along_axis(joint, segments[..., None], axis=-1)
    else:
        scores = clip_probabilities(clips, targets.num_classes, fusion=decision.fusion, pool=decision.pool)
        true = (scores * targets.labels).sum(1)
    return float(-np.log(np.maximum(true, 1e-12)).mean())
