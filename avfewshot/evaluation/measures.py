"""Pure measures on arrays: what is right, per-class rows, confusion, calibration.

N clips (or seconds), K classes. Ties go to the lowest class index everywhere, as argmax has it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from avfewshot.evaluation.results import Calibration, CalibrationBin, ClassRow, finite

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]

CALIBRATION_BINS = 15


def one_hot(labels: npt.NDArray[Any], num_classes: int) -> Bools:
    """Class indices ``[N]`` as a boolean matrix ``[N, K]``."""
    return np.asarray(labels)[:, None] == np.arange(num_classes)


def hit_at_k(probabilities: Floats, labels: Bools, k: int) -> Bools:
    """Whether one of the k most probable classes is one of the clip's labels ``[N, K]``: bool ``[N]``."""
    ranked = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(labels, ranked, axis=1).any(1)


def average_precisions(scores: Floats, labels: Bools) -> Floats:
    """Average precision of each class, by scikit-learn's definition (no interpolation).

    From scores and multi-hot labels ``[N, K]`` to ``[K]``, NaN for a class that no clip carries.
    """
    found = np.full(labels.shape[1], np.nan)
    for index in labels.any(0).nonzero()[0]:
        found[index] = average_precision_score(labels[:, index], scores[:, index])
    return found


def class_rows(names: tuple[str, ...], answers: Bools, labels: Bools, scores: Floats) -> tuple[ClassRow, ...]:
    """The per-class table of answers and labels, multi-hot ``[N, K]``: a row a class.

    `scores` ``[N, K']`` give average precision; the last ``K - K'`` classes have none. Undefined figures are None:
    precision of a class that was never answered, everything else of a class that never occurs.
    """
    table: Any = precision_recall_fscore_support(labels, answers, average=None, zero_division=np.nan)  # pyright: ignore
    precision, recall, f1, support = table
    precisions = np.full(len(names), np.nan)
    precisions[: scores.shape[1]] = average_precisions(scores, labels[:, : scores.shape[1]])
    return tuple(
        ClassRow(
            name=name,
            support=int(support[index]),
            answered=int(answers[:, index].sum()),
            precision=finite(precision[index]),
            recall=finite(recall[index]),
            f1=finite(f1[index]) if support[index] else None,
            average_precision=finite(precisions[index]),
        )
        for index, name in enumerate(names)
    )


def multi_label_confusion(labels: Bools, answers: Labels) -> Floats:
    """Confusion of clips with several labels, where every clip counts 1.

    A right answer counts on the diagonal of the class answered; a wrong one is divided equally among the rows of the
    clip's labels. So the sum is N, and the diagonal's sum is the number of hits.
    """
    answered = one_hot(answers, labels.shape[1])
    hits = (labels & answered).any(1)
    shares = np.where(hits[:, None], answered, labels / labels.sum(1, keepdims=True))
    return shares.T @ answered.astype(np.float64)


def calibration(confidence: Floats, right: Bools, *, bins: int = CALIBRATION_BINS) -> Calibration:
    """Expected calibration error: how far confidence is from accuracy (Guo et al., ICML 2017, Eq. 3); None for M = 0.

    From the probability of each answer and whether it was right, ``[M]``; with those of the equally wide bins over
    ``(0, 1]`` that hold anything.
    """
    edges = np.linspace(0, 1, bins + 1)
    # Bins hold their upper edge, so that a confidence of 1 has a bin.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    filled = counts.nonzero()[0]
    confidences = np.bincount(index, confidence, minlength=bins)[filled] / counts[filled]
    accuracies = np.bincount(index, right, minlength=bins)[filled] / counts[filled]
    error = np.abs(confidences - accuracies) @ counts[filled] / len(confidence) if len(confidence) else None
    return Calibration(
        error=finite(error),
        answers=len(confidence),
        bins=tuple(
            CalibrationBin(float(edges[i]), float(edges[i + 1]), int(counts[i]), float(sure), float(accuracy))
            for i, sure, accuracy in zip(filled, confidences, accuracies, strict=True)
        ),
    )


def choose_label_threshold(scores: Floats, truth: Bools) -> float:
    """The probability from which on a clip is said to carry a class, chosen for the best macro F1 on validation data.

    From probabilities and multi-hot labels ``[N, K]``, some of them true. All thresholds that tell the given
    probabilities apart are tried; classes that no validation clip carries do not count. The threshold is itself one of
    the probabilities, the highest of equally good ones. A class is answered if its probability is not below it.
    """
    present = truth.any(0).nonzero()[0]
    scores, truth = scores[:, present], truth[:, present]
    order = np.argsort(-scores, axis=0, kind="stable")
    right = np.take_along_axis(truth, order, axis=0).cumsum(0)
    answered = np.arange(1, len(scores) + 1)[:, None]
    f1 = 2 * right / (answered + truth.sum(0))
    # F1 of one class changes only where one of its own clips comes in; in the common order the changes add up.
    gains = np.diff(f1, axis=0, prepend=0).ravel()
    entering = np.take_along_axis(scores, order, axis=0).ravel()
    common = np.argsort(-entering, kind="stable")
    curve = gains[common].cumsum()
    entering = entering[common]
    last_of_ties = np.append(entering[1:] < entering[:-1], True)
    return float(entering[np.where(last_of_ties, curve, -1).argmax()])
