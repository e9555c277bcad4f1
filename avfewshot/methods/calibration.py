"""What probabilities mean, by left-out clips: temperature and ECE, per-class thresholds, when to answer "unknown"."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from avfewshot.methods.base import SMALLEST, Floats, log_loss, log_softmax

BINS = 15
STANDARDISED = 0.75
SHRINKAGE = 10  # clips that the common threshold counts for against a class's own


def expected_calibration_error(log_posterior: Floats, labels: npt.NDArray[np.bool_]) -> float:
    """ECE of the best answer: mean over 15 bins of |confidence - accuracy|, weighted by their clips."""
    confidence = np.exp(log_posterior.max(1))
    right = labels[np.arange(len(labels)), log_posterior.argmax(1)]
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = [abs(confidence[bins == b].sum() - right[bins == b].sum()) for b in range(BINS)]
    return float(sum(gaps) / len(labels))


def temperature(log_posterior: Floats, labels: npt.NDArray[np.bool_]) -> dict[str, float]:
    """The temperature of least log-loss on left-out clips, within 1/10 to 10, and the ECE before and after.

    Besides its labels each clip has a share of 1 / (2n + 2) of "any other class": n clips that are all right do not say
    that every answer is certain, but that the next one is right with probability (n + 1/2) / (n + 1) (the Jeffreys
    prior; Platt, 1999, smooths his targets for the same reason). The ECE after is that of the clips the temperature was
    chosen on: one parameter, so little is flattered.
    """
    from scipy.optimize import minimize_scalar

    targets, share = labels / labels.sum(1, keepdims=True), 0.5 / (len(labels) + 1)

    def loss(log_temperature: float) -> float:
        said = log_softmax(log_posterior / np.exp(log_temperature))
        others = np.log(np.maximum((np.exp(said) * ~labels).sum(1), SMALLEST))
        return float(((1 - share) * log_loss(said, targets) - share * others).mean())

    found: Any = minimize_scalar(loss, bounds=(-np.log(10), np.log(10)), method="bounded")
    best = float(np.exp(found.x))
    after = log_softmax(log_posterior / best)
    return {
        "temperature": best,
        "ece_before": expected_calibration_error(log_posterior, labels),
        "ece_after": expected_calibration_error(after, labels),
    }


def label_thresholds(log_posterior: Floats, labels: npt.NDArray[np.bool_]) -> Floats:
    """From which probability on a clip carries a class, ``[K]``: best F1 on left-out clips, shrunk to the common one.

    ``(n_c own_c + 10 common) / (n_c + 10)``, n_c the clips of the class: a threshold of two clips is no threshold.
    """
    probability = np.exp(log_posterior)
    common = _best_f1(probability.ravel(), labels.ravel(), 0.5)
    own = np.array([_best_f1(probability[:, c], labels[:, c], common) for c in range(labels.shape[1])])
    clips = labels.sum(0)
    return (clips * own + SHRINKAGE * common) / (clips + SHRINKAGE)


def standardised_labels(log_posteriors: Sequence[Floats]) -> npt.NDArray[np.bool_]:
    """Which labels a clip carries where no threshold is known, ``[K]``: the rule of AV2A (CVPR 2025).

    Log-probabilities ``[K]`` of each modality are standardised over the labels; a label belongs to the clip if the mean
    of the sigmoids is at least 0.75.
    """
    shares = [1 / (1 + np.exp(-(row - row.mean()) / max(row.std(), 1e-9))) for row in log_posteriors]
    return np.mean(shares, axis=0) >= STANDARDISED


def _best_f1(scores: Floats, truth: npt.NDArray[np.bool_], otherwise: float) -> float:
    if not truth.any():
        return otherwise
    order = np.argsort(-scores, kind="stable")
    hits = truth[order].cumsum()
    f1 = 2 * hits / (np.arange(1, len(order) + 1) + truth.sum())
    best = int(f1.argmax())
    following = scores[order[best + 1]] if best + 1 < len(order) else 0.0
    return float((scores[order[best]] + following) / 2)


def reject_threshold(known: Floats, unknown: Floats, keep: float = 0.95) -> dict[str, Any]:
    """Below which score a clip is "unknown".

    A point of the known clips' distribution, interpolated between two of them. Of few clips the lowest is then below
    it: the lowest itself as the threshold would reject hardly fewer clips that come later, and accept more unknown ones
    (``benchmarks/few_classes.py --unknown``).

    Args:
        known: Scores of clips of known classes, each left out, ``[n]``.
        unknown: Scores of clips when all clips of their class are left out, ``[m]``.
        keep: Share of known clips that shall be accepted.

    Returns:
        ``threshold``; ``false_accepts``, the share of unknown clips at or above it; ``false_rejects``, that of known
        ones below it.
    """
    threshold = float(np.quantile(known, 1 - keep))
    return {
        "threshold": threshold,
        "keep": keep,
        "clips": len(known),
        "false_accepts": float((unknown >= threshold).mean()) if len(unknown) else None,
        "false_rejects": float((known < threshold).mean()),
    }


PENALTY = 0.01
BAYES_FACTOR = 2.0


def beats_chance(hits: int, rows: int, chance: float) -> bool:
    """Whether so many right answers are more than guessing.

    Either luck has as many in less than 1 % of cases (binomial), or, where the clips are too few for that, the Bayes
    factor of answers that are of use is at least 2: their accuracy is then drawn from Beta(4, 1), with a mean of 80 %.
    Two of two clips of two classes are enough.
    """
    from scipy.special import bdtrc, betaln

    if hits <= chance * rows:
        return False
    useful = betaln(4 + hits, 1 + rows - hits) - betaln(4, 1)
    guessed = hits * np.log(chance) + (rows - hits) * np.log1p(-chance)
    return bool(bdtrc(hits - 1, rows, chance) < 0.01 or useful - guessed > np.log(BAYES_FACTOR))


def text_is_useful(text: Floats, targets: Floats) -> bool:
    """Whether the text, ``[n, C]``, answers better than chance on the support."""
    rows = len(text)
    if text.shape[1] < 2 or not rows:
        return False
    hits = int((targets[np.arange(rows), text.argmax(1)] > 0).sum())
    return beats_chance(hits, rows, float((targets > 0).mean()))


def stack(
    experts: Sequence[Floats], targets: Floats, row_weights: Floats, start: Floats | None = None, *, pull: float = 0.0
) -> Floats:
    """Weights >= 0 of logits ``[n, C]`` that minimise the log-loss of their sum.

    They are drawn to `start` as strongly as `pull` says; without it slightly to zero.
    """
    from scipy.optimize import minimize

    logits, total = np.stack(experts), row_weights.sum()
    first = np.ones(len(logits)) if start is None else start
    drawn_to, penalty = (first, pull) if pull else (np.zeros(len(logits)), PENALTY)

    def loss(weights: Floats) -> tuple[float, Floats]:
        log_posterior = log_softmax(np.tensordot(weights, logits, 1))
        error = (np.exp(log_posterior) - targets) * row_weights[:, None]
        off = weights - drawn_to
        value = (row_weights * log_loss(log_posterior, targets)).sum() + penalty * (off**2).sum()
        slope = np.tensordot(logits, error, ((1, 2), (0, 1))) + 2 * penalty * off
        return value / total, slope / total

    return minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(logits)).x
