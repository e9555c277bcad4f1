"""What happens when: runs of equal labels over the seconds of a clip, and a letter and a colour for each label."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from avfewshot.inference.results import SegmentResult

LETTERS = string.ascii_uppercase + string.ascii_lowercase
OTHER = "•"
"""Stands for every label beyond the letters."""


@dataclass(frozen=True)
class Paint:
    """A colour and the one to write on it.

    Attributes:
        fill: ``#rrggbb``.
        ink: ``#rrggbb`` with a contrast of at least 4.5 to 1 against the fill.
    """

    fill: str
    ink: str


# Okabe and Ito's colours, distinct for every common form of colour blindness ("Color Universal Design", 2008).
_PAINTS = (
    Paint("#56b4e9", "#000000"),
    Paint("#e69f00", "#000000"),
    Paint("#009e73", "#000000"),
    Paint("#f0e442", "#000000"),
    Paint("#0072b2", "#ffffff"),
    Paint("#d55e00", "#000000"),
    Paint("#cc79a7", "#000000"),
)
_QUIET = Paint("#b8b8b8", "#000000")


@dataclass(frozen=True)
class Run:
    """Consecutive segments with one label.

    Attributes:
        start: Seconds.
        end: Seconds.
        label: Their label.
    """

    start: float
    end: float
    label: str


@dataclass(frozen=True)
class Mark:
    """How a label is shown: never by colour alone.

    Attributes:
        letter: One character; unique among the first 52 labels.
        paint: Its colour; colours repeat after seven labels.
    """

    letter: str
    paint: Paint


def runs(segments: Iterable[SegmentResult]) -> list[Run]:
    """Join consecutive segments of one label."""
    joined: list[Run] = []
    for segment in segments:
        if joined and joined[-1].label == segment.label:
            joined[-1] = Run(joined[-1].start, segment.end, segment.label)
        else:
            joined.append(Run(segment.start, segment.end, segment.label))
    return joined


def marks(labels: Sequence[str], used: Iterable[str] | None = None) -> dict[str, Mark]:
    """A letter and a colour for each label.

    With at most 52 labels a label has the same mark in every clip. With more, the labels `used` in a clip get theirs in
    order of appearance, since letters would run out.

    Args:
        labels: All labels of the run, in order.
        used: Labels that occur in the clip at hand; may repeat.

    Returns:
        Marks by label: of all labels, or of the used ones.
    """
    named = labels if used is None or len(labels) <= len(LETTERS) else list(dict.fromkeys(used))
    table: dict[str, Mark] = {}
    colours = 0
    for index, label in enumerate(named):
        letter = LETTERS[index] if index < len(LETTERS) else OTHER
        if label.casefold() in {"background", "silence", "nothing"}:
            table[label] = Mark(letter, _QUIET)
            continue
        table[label] = Mark(letter, _PAINTS[colours % len(_PAINTS)])
        colours += 1
    return table


def cells(segments: Sequence[SegmentResult], limit: int) -> tuple[list[str], int]:
    """Labels of equal spans of a clip, at most `limit` of them.

    Args:
        segments: The seconds of a clip.
        limit: Largest number of cells, at least 1.

    Returns:
        The most frequent label of each cell (the earlier one of equals), and how many segments a cell covers.
    """
    span = max(1, -(-len(segments) // limit))
    spans = (segments[begin : begin + span] for begin in range(0, len(segments), span))
    return [Counter(segment.label for segment in part).most_common(1)[0][0] for part in spans], span
