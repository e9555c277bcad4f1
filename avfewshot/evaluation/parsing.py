"""F-scores of audio-visual video parsing, by second and by event, as published for LLP (Tian et al., ECCV 2020).

Everything is a mean over clips of a mean over classes; a clip in which nothing is said and nothing true counts as 1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Bools = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.int64]

STREAMS = ("A", "V", "AV")
LEVELS = ("segment", "event")
MIN_IOU = 0.5


def parsing_scores(
    predictions: Sequence[tuple[Bools, Bools]], truths: Sequence[tuple[Bools, Bools]]
) -> dict[str, float]:
    """All published F-scores in percent, of what is heard and what is seen in each clip, bool ``[T, K]`` each.

    Gives ``segment_A``, ``segment_V``, ``segment_AV``, ``segment_Type``, ``segment_Event``, and the same of ``event_``.
    AV is what is heard and seen in the same second, Type the mean of A, V and AV, Event the score of the counts of A
    and V together.
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
