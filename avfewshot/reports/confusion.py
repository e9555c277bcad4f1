"""What of a confusion matrix fits on a page: shares of the rows, the worst of many classes, the pairs mixed up most."""

from __future__ import annotations

from dataclasses import dataclass

from avfewshot.evaluation.results import TaskResult

MOST_CLASSES = 40  # classes of a heat map whose names can still be read

MOST_PAIRS = 15


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix, or a part of one."""

    names: tuple[str, ...]
    counts: tuple[tuple[float, ...], ...]  # rows true, columns predicted
    shares: tuple[tuple[float, ...], ...]  # of everything of the true class, also of what lies outside of the part
    classes: int  # of the whole matrix

    @property
    def whole(self) -> bool:
        """Whether no class was left out."""
        return len(self.names) == self.classes


@dataclass(frozen=True)
class Pair:
    """A class that is taken for another."""

    truth: str
    answered: str
    count: float
    share: float  # of all of the true class
    before: float | None  # how often the other system did so


def confusion(result: TaskResult, most: int = MOST_CLASSES) -> Confusion:
    """The matrix of a result; of many classes those with most wrong answers, in their own order.

    A wrong answer counts for the true class and for the answered one, so that both partners of a mix-up stay.
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
    """The pairs of classes that are mixed up most often, beside how often `other` does so; the most frequent first."""
    names, matrix = [row.name for row in result.classes], result.confusion
    confused = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count > 0]
    confused.sort(key=lambda entry: -entry[0])
    return [
        Pair(
            names[i], names[j], count, count / (sum(matrix[i]) or 1.0), None if other is None else other.confusion[i][j]
        )
        for count, i, j in confused[:most]
    ]
