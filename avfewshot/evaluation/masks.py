"""Region similarity and F-score of masks (AVSBench, Zhou et al., ECCV 2022).

The published F-score takes its maximum over thresholds inside each batch of the test loader and averages batches: it
depends on their size. The same score over all frames at once stands beside it.
"""

from __future__ import annotations

import torch
from torch import Tensor

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
    """Gathers frames in their order and scores all of them."""

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
