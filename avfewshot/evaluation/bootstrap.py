"""Figures on resamples of the clips, and the intervals that these give."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.metrics import f1_score

from avfewshot.evaluation.measures import Bools, Floats, average_precisions
from avfewshot.evaluation.results import CONFIDENCE, Estimate, finite

REPLICATES = 1000
_FEW = 50  # clips below which proportions get Wilson's interval
_BLOCK = 250  # Resamples handled at a time: bounds the memory of rankings with many clips.

Counts = npt.NDArray[np.float32]


def resample(groups: npt.NDArray[np.int64], replicates: int, seed: int) -> Counts:
    """Draw as many groups as there are, with replacement, `replicates` times.

    From the group number of each row, ``[N]``, from 0 without gaps, to how often each row was drawn, float32 ``[N, R]``
    (whole numbers). Draws depend on nothing but the seed and the number of groups.
    """
    number = int(groups.max()) + 1
    rng = np.random.default_rng(seed)
    counts = np.empty((number, replicates), dtype=np.float32)
    for index in range(replicates):
        counts[:, index] = np.bincount(rng.integers(number, size=number), minlength=number)
    return counts[groups]


class Ratio:
    """Such as accuracy: the sum of what is right, ``[N]`` (truths, fractions, seconds), by that of what counts."""

    biased = False  # resamples are not off to one side of the figure

    def __init__(self, right: npt.NDArray[Any], total: npt.NDArray[Any] | None = None) -> None:
        self._right = np.asarray(right, dtype=np.float64)
        self._total = np.ones_like(self._right) if total is None else np.asarray(total, dtype=np.float64)

    def value(self) -> float:
        """The figure on all clips; NaN where it is not defined."""
        total = self._total.sum()
        return float(self._right.sum() / total) if total else float("nan")

    def replicates(self, counts: Counts) -> Floats:
        """The figure on each resample, ``[R]``, by how often clips were drawn, ``[N, R]``; NaN where not defined."""
        return _divide(self._right @ counts, self._total @ counts)


class MacroF1:
    """Mean of the F1 of the classes that occur, of answers and labels as multi-hot ``[M, K]``.

    Rows are clips, or seconds of clips; `clips` names the clip of each, ``[M]``, not descending, all of 0 to N - 1.
    """

    biased = True  # a clip that is drawn twice ranks beside itself

    def __init__(self, answers: Bools, labels: Bools, clips: npt.NDArray[np.int64]) -> None:
        self._present = labels.any(0).nonzero()[0]
        self._answers, self._labels, self._clips = answers, labels, clips

    def value(self) -> float:
        """See :meth:`Ratio.value`."""
        if not len(self._present):
            return math.nan
        options: Any = {"labels": self._present, "average": "macro", "zero_division": 0}
        return float(f1_score(self._labels, self._answers, **options))

    def replicates(self, counts: Counts) -> Floats:
        """See :meth:`Ratio.replicates`; in each resample, over the classes that occur in it."""
        answers, labels = self._answers[:, self._present], self._labels[:, self._present]
        starts = np.searchsorted(self._clips, np.arange(len(counts)))
        right, answered, true = (
            counts.T @ np.add.reduceat(cells.astype(np.float32), starts)
            for cells in (answers & labels, answers, labels)
        )
        return _mean_of_defined(np.where(true > 0, _divide(2 * right, answered + true), np.nan).T)


class MeanAveragePrecision:
    """Mean of the average precision of the classes that occur, of scores ``[M, K]``; else as :class:`MacroF1`."""

    biased = True  # a clip that is drawn twice ranks beside itself

    def __init__(self, scores: Floats, labels: Bools, clips: npt.NDArray[np.int64]) -> None:
        self._scores, self._labels, self._clips = scores, labels, clips

    def value(self) -> float:
        """See :meth:`Ratio.value`."""
        return float(_mean_of_defined(average_precisions(self._scores, self._labels)[:, None])[0])

    def replicates(self, counts: Counts) -> Floats:
        """See :meth:`Ratio.replicates`; in each resample, over the classes that occur in it."""
        found = np.full((self._labels.shape[1], counts.shape[1]), np.nan)
        for start in range(0, counts.shape[1], _BLOCK):
            block = np.ascontiguousarray(counts[:, start : start + _BLOCK])
            for index in self._labels.any(0).nonzero()[0]:
                found[index, start : start + _BLOCK] = self._resampled(index, block)
        return _mean_of_defined(found)

    def _resampled(self, index: int, counts: Counts) -> Floats:
        """Average precision of one class on each resample, as scikit-learn has it with counts as sample weights."""
        order = np.argsort(-self._scores[:, index], kind="stable")
        scores, true = self._scores[order, index], self._labels[order, index]
        # A cut is only possible where the score changes, and only counts where it lets in a clip of the class.
        cut = np.append(0, scores[1:] < scores[:-1]).cumsum()
        useful = np.unique(cut[true])
        ends = np.searchsorted(cut, useful, side="right")
        drawn = counts[self._clips[order[: ends[-1]]]]
        retrieved = np.add.reduceat(drawn, np.append(0, ends[:-1])).cumsum(0)
        relevant = np.add.reduceat(drawn[true[: ends[-1]]], np.searchsorted(cut[true], useful)).astype(np.float64)
        precision = _divide(relevant.cumsum(0), retrieved, otherwise=0.0)
        return _divide((precision * relevant).sum(0), relevant.sum(0))


Metric = Ratio | MacroF1 | MeanAveragePrecision


def distribution(statistic: Metric, counts: Counts) -> Floats:
    """The figure on each resample, ``[R]``, centred on the figure itself where resampling is biased.

    With few clips of a class the mean average precision of resamples lies so far above the figure that their
    percentiles may not even hold it. Their spread is what an interval is about: it is kept, and the shift taken out.
    """
    replicates = statistic.replicates(counts)
    if not statistic.biased or not replicates.size:
        return replicates
    return replicates + (statistic.value() - _mean_of_defined(replicates))


def interval(replicates: Floats) -> tuple[float, float] | None:
    """The percentile interval of a bootstrap distribution; None where no resample defines the figure."""
    defined = replicates[np.isfinite(replicates)]
    if not len(defined):
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def estimate(
    value: float, replicates: Floats, clips: int, *, lowest: float = 0.0, proportion: bool = False
) -> Estimate:
    """A figure, `lowest` to 1, with its interval, by its value on each resample, ``[R]``.

    The percentile bootstrap is too narrow for proportions of few clips, and has no width where all clips are alike.
    There Wilson's score interval (1927) with clips as units stands in. Without resamples there is no interval.
    """
    ends = interval(replicates) if np.isfinite(value) else None
    if ends is None:
        return Estimate(finite(value), n=clips)
    low, high = np.clip(ends, lowest, 1.0).tolist()
    if lowest == 0 and ((proportion and clips < _FEW) or low == high):
        return Estimate(finite(value), *wilson(value, clips), n=clips, interval="wilson")
    return Estimate(finite(value), low, high, n=clips, interval="bootstrap")


def wilson(share: float, number: int) -> tuple[float, float]:
    """Wilson's score interval of a share of `number` independent cases."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    centre = (share + z * z / (2 * number)) / (1 + z * z / number)
    reach = z / (1 + z * z / number) * math.sqrt(share * (1 - share) / number + z * z / (4 * number * number))
    return max(0.0, centre - reach), min(1.0, centre + reach)


def over_runs(draws: Floats, seed: int) -> Floats:
    """Hierarchical bootstrap ``[R]`` of the mean over runs on the same clips, from the figure of each, ``[S, R]``.

    Every column is one resample of the clips, which all runs share; in it runs are drawn with replacement. As the mean
    of S drawn runs varies too little by ``(S - 1) / S``, its distance from the mean of all is widened by the root of
    the inverse (Rao and Wu, JASA 1988). With the same seed for all figures differences are paired.
    """
    runs, replicates = draws.shape
    means = draws.mean(0)
    if runs == 1:
        return means
    chosen = np.random.default_rng(seed).integers(runs, size=(runs, replicates))
    return means + math.sqrt(runs / (runs - 1)) * (np.take_along_axis(draws, chosen, 0).mean(0) - means)


def _divide(above: npt.NDArray[Any], below: npt.NDArray[Any], otherwise: float = np.nan) -> Floats:
    result = np.full(np.broadcast_shapes(above.shape, below.shape), otherwise, dtype=np.float64)
    return np.divide(above, below, out=result, where=below > 0)


def _mean_of_defined(values: Floats) -> Floats:
    """Mean over the first axis of the values that are not NaN; NaN where there are none."""
    defined = np.isfinite(values)
    return _divide(np.where(defined, values, 0).sum(0), defined.sum(0))
