"""What happens when: runs of equal labels over the seconds of a clip, and a letter and a colour for each label."""

from __future__ import annotations

import itertools
import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from avfewshot.inference.results import SegmentResult

Label = TypeVar("Label")

LETTERS = string.ascii_uppercase + string.ascii_lowercase
OTHER = "•"  # stands for every label beyond the letters

MOST_BINS = 240
"""Steps of a timeline or a curve; seconds of longer clips are joined, since a screen could not show more."""

NARROWEST_LETTER = 3.0  # width in percent of the timeline from which on a span carries its letter


@dataclass(frozen=True)
class Paint:
    """A colour and the one to write on it."""

    fill: str  # #rrggbb
    ink: str  # #rrggbb with a contrast of at least 4.5 to 1 against the fill


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
    """Consecutive segments with one label."""

    start: float  # seconds
    end: float
    label: str
    score: float  # mean of its segments


@dataclass(frozen=True)
class Mark:
    """How a label is shown: never by colour alone."""

    letter: str  # one character, unique among the first 52 labels
    paint: Paint  # repeats after seven labels


def runs(segments: Iterable[SegmentResult]) -> list[Run]:
    """Join consecutive segments of one label."""
    joined = []
    for label, group in itertools.groupby(segments, key=lambda segment: segment.label):
        part = list(group)
        joined.append(Run(part[0].start, part[-1].end, label, sum(s.score for s in part) / len(part)))
    return joined


def marks(labels: Sequence[str], used: Iterable[str] | None = None) -> dict[str, Mark]:
    """A letter and a colour for each label.

    With at most 52 labels a label has the same mark in every clip. With more, the labels `used` in a clip get theirs in
    order of appearance, since letters would run out. Answers that are none of the labels come last.
    """
    used = list(dict.fromkeys(used or ()))
    named = list(dict.fromkeys([*labels, *used])) if len(labels) <= len(LETTERS) or not used else used
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


def cells(labels: Sequence[Label], limit: int) -> tuple[list[Label], int]:
    """The label of each of at most `limit` equal parts of a clip, the most frequent one, and seconds in a part."""
    span = max(1, -(-len(labels) // limit))
    parts = (labels[begin : begin + span] for begin in range(0, len(labels), span))
    return [Counter(part).most_common(1)[0][0] for part in parts], span


def step_path(values: Sequence[float]) -> str:
    """An SVG path that fills the area under a step curve: heights in [0, 1], steps one unit wide, y points down."""
    steps = "".join(f"V{1 - min(max(value, 0.0), 1.0):.3g}H{index}" for index, value in enumerate(values, start=1))
    return f"M0 1{steps}V1Z"
