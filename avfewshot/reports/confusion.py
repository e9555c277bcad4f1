"""What of a confusion matrix fits on a page: shares of the rows, the worst of many classes, the pairs mixed up most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avfewshot.evaluation.results import TaskResult

MOST_CLASSES = 40
"""Classes of a heat map whose names can still be read."""

MOST_PAIRS = 15


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix, or a part of one.

    Attributes:
        names: Its classes.
        counts: Rows true, columns answered.
        shares: The same as shares of everything of the true class, also of what lies outside of the part.
        classes: Classes of the whole matrix.
    """

    names: tuple[str, ...]
    counts: tuple[tuple[float, ...], ...]
    shares: tuple[tuple[float, ...], ...]
    classes: int

    @property
    def whole(self) -> bool:
        """Whether no class was left out."""
        return len(self.names) == self.classes


@dataclass(frozen=True)
class Pair:
    """A class that is taken for another.

    Attributes:
        truth: What is true.
        answered: What was answered.
        count: How often.
        share: Part of all of the true class.
        before: How often the other system did so; None where there is none.
    """

    truth: str
    answered: str
    count: float
    share: float
    before: float | None


def confusion(result: TaskResult, most: int = MOST_CLASSES) -> Confusion:
    """The matrix of a result; of many classes those with most wrong answers, in their own order.

    A wrong answer counts for the true class and for the answered one, so that both partners of a mix-up stay.

    Args:
        result: With a square matrix over its classes.
        most: Classes to keep.

    Returns:
        The matrix, or the part.
    """
    matrix, names = result.confusion, [row.name for row in result.classes]
    kept = list(range(len(names)))
    if len(names) > most:
        off = [sum(matrix[k]) + sum(row[k] for row in matrix) - 2 * matrix[k][k] for k in kept]
        kept = sorted(sorted(kept, key=lambda k: -off[k])[:most])
    totals = [sum(matrix[k]) or 1.0 for k in kept]
    counts = tuple(tuple(matrix[i][j] for j in kept) for i in kept)
    return Confusion(
        tuple(names[k] for k in kept),
        counts,
        tuple(tuple(count / total for count in row) for row, total in zip(counts, totals, strict=True)),
        len(names),
    )


def confused_pairs(result: TaskResult, other: TaskResult | None = None, most: int = MOST_PAIRS) -> list[Pair]:
    """The pairs of classes that are mixed up most often.

    Args:
        result: Of the system that it is about.
        other: Of a system to compare with, over the same classes.
        most: How many pairs.

    Returns:
        The most frequent first; of equally frequent ones in the order of the classes.
    """
    names, matrix = [row.name for row in result.classes], result.confusion
    found = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count > 0]
    found.sort(key=lambda entry: -entry[0])
    return [
        Pair(names[i], names[j], count, count / _total(matrix[i]), None if other is None else other.confusion[i][j])
        for count, i, j in found[:most]
    ]


def _total(row: Sequence[float]) -> float:
    return sum(row) or 1.0
