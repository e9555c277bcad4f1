"""Figures of supervised tasks as published: video parsing (LLP), segmentation (AVSBench), answers (MUSIC-AVQA)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfewshot.data.music_avqa import Question

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

STREAMS = ("A", "V", "AV")
LEVELS = ("segment", "event")
MIN_IOU = 0.5


def parsing_scores(
    predictions: Sequence[tuple[Bools, Bools]], truths: Sequence[tuple[Bools, Bools]]
) -> dict[str, float]:
    """F-scores of video parsing in percent (Tian et al., ECCV 2020), of what is heard and seen, bool ``[T, K]`` a clip.

    Means over clips of means over classes; a clip in which nothing is said and nothing true counts as 1. Gives
    ``segment_A``, ``segment_V``, ``segment_AV``, ``segment_Type``, ``segment_Event``, and the same of ``event_``. AV is
    what is heard and seen in the same second, Type the mean of A, V and AV, Event the score of the counts of A and V.
    """
    scores: dict[str, list[float]] = {f"{level}_{stream}": [] for level in LEVELS for stream in (*STREAMS, "Event")}
    for said, true in zip(predictions, truths, strict=True):
        streams = [(said[0], true[0]), (said[1], true[1]), (said[0] & said[1], true[0] & true[1])]
        for level, count in (("segment", _count_seconds), ("event", _count_events)):
            counts = [count(*stream) for stream in streams]
            for stream, one in zip((*STREAMS, "Event"), (*counts, counts[0] + counts[1]), strict=True):
                scores[f"{level}_{stream}"].append(_f_score(one))
    result = {name: 100 * float(np.mean(values)) for name, values in scores.items()}
    for level in LEVELS:
        result[f"{level}_Type"] = sum(result[f"{level}_{stream}"] for stream in STREAMS) / len(STREAMS)
    return result


def _f_score(counts: Counts) -> float:
    """Of hits, false alarms and misses ``[3, K]``: mean over the classes that are said or true."""
    hits, false, missed = counts[:, counts.any(0)]
    return float((2 * hits / (2 * hits + false + missed)).mean()) if len(hits) else 1.0


def _count_seconds(said: Bools, true: Bools) -> Counts:
    return np.stack([(said & true).sum(0), (said & ~true).sum(0), (~said & true).sum(0)])


def _count_events(said: Bools, true: Bools) -> Counts:
    """A run of seconds is an event; one that is said is right if any true one overlaps it by half (IoU)."""
    counts = np.zeros((3, said.shape[1]), dtype=np.int64)
    for label in np.flatnonzero(said.any(0) | true.any(0)):
        mine, theirs = runs(said[:, label]), runs(true[:, label])
        fits = np.array([[_iou(one, other) >= MIN_IOU for other in theirs] for one in mine], dtype=bool)
        fits = fits.reshape(len(mine), len(theirs))
        hits = int(fits.any(1).sum())
        counts[:, label] = hits, len(mine) - hits, len(theirs) - int(fits.any(0).sum())
    return counts


def runs(active: Bools) -> list[tuple[int, int]]:
    """Maximal stretches ``[start, stop)`` of true seconds."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], active, [False]))))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _iou(one: tuple[int, int], other: tuple[int, int]) -> float:
    shared = min(one[1], other[1]) - max(one[0], other[0])
    return shared / (max(one[1], other[1]) - min(one[0], other[0]))


BETA_SQUARED = 0.3
PUBLISHED_BATCH = 20
"""Frames in a batch of the released test script: four clips of five frames."""

_THRESHOLDS = 255


def jaccard(probabilities: Tensor, truth: Tensor) -> Tensor:
    """Intersection over union of each frame at a threshold of 0.5, MJ before its mean.

    Where the truth is empty it is the share of pixels that are rightly left out, neither 0 nor 1.
    """
    predicted, truth = (probabilities > 0.5).flatten(1), truth.flatten(1)
    union = (predicted | truth).sum(1)
    overlap = (predicted & truth).sum(1) / union.clamp(min=1)
    return torch.where(truth.any(1), overlap, 1 - predicted.float().mean(1))


def f_curves(probabilities: Tensor, truth: Tensor) -> Tensor:
    """F-score of each frame at 255 thresholds from 0 to just under 1; arguments as for :func:`jaccard`.

    Returns:
        float64 ``[N, 255]``; NaN for frames whose truth is empty, which the score skips.
    """
    thresholds = torch.linspace(0, 1 - 1e-10, _THRESHOLDS, dtype=torch.float64, device=probabilities.device)
    # A pixel lies above as many thresholds as its bin says: one histogram for each kind of pixel gives every count.
    bins = torch.bucketize(probabilities.flatten(1).double(), thresholds, right=True)
    above = []
    for pixels in (truth.flatten(1), ~truth.flatten(1)):
        counts = torch.zeros(len(bins), _THRESHOLDS + 1, dtype=torch.float64, device=bins.device)
        counts.scatter_add_(1, bins, pixels.double())
        above.append(counts.flip(1).cumsum(1).flip(1)[:, 1:])
    right, wrong = above
    precision = right / (right + wrong).clamp(min=1)
    positives = truth.flatten(1).sum(1, keepdim=True).double()
    recall = right / positives  # 0 / 0 where the truth is empty
    score = (1 + BETA_SQUARED) * precision * recall / (BETA_SQUARED * precision + recall)
    return torch.where(positives > 0, score.nan_to_num(0.0), torch.nan)


class MaskScores:
    """Region similarity and F-score of masks (AVSBench, Zhou et al., ECCV 2022), of frames in their order.

    The published F-score takes its maximum over thresholds inside each batch of the test loader and averages batches:
    it depends on their size. The same score over all frames at once stands beside it.
    """

    def __init__(self) -> None:
        self._jaccard: list[Tensor] = []
        self._curves: list[Tensor] = []

    def add(self, probabilities: Tensor, truth: Tensor) -> None:
        """Add frames; arguments as for :func:`jaccard`."""
        self._jaccard.append(jaccard(probabilities, truth).cpu())
        self._curves.append(f_curves(probabilities, truth).cpu())

    def result(self, batch: int = PUBLISHED_BATCH) -> dict[str, float]:
        """Percentages ``MJ``, ``MF`` (over all frames) and ``MF_published`` (the mean of batches of `batch` frames)."""
        curves = torch.cat(self._curves)
        return {
            "MJ": 100 * torch.cat(self._jaccard).mean().item(),
            "MF": 100 * _maximum(curves),
            "MF_published": 100 * sum(map(_maximum, curves.split(batch))) / len(curves.split(batch)),
        }


def _maximum(curves: Tensor) -> float:
    """The best threshold's mean over frames that have something to find; 0 without any."""
    return 0.0 if curves.isnan().all() else curves.nanmean(0).max().item()


def accuracy_by_type(questions: Sequence[Question], answers: Sequence[str]) -> dict[str, float]:
    """Percentage of right answers.

    Returns:
        ``all`` over all questions (micro), then each modality ("Audio", ...) and each type ("Audio Counting", ...) that
        occurs, sorted.
    """
    right: dict[str, list[bool]] = defaultdict(list)
    for question, answer in zip(questions, answers, strict=True):
        for key in ("all", question.type[0], question.key):
            right[key].append(answer == question.answer)
    return {key: 100 * sum(right[key]) / len(right[key]) for key in sorted(right, key=lambda key: (key != "all", key))}
