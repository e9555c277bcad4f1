"""What the page of a few-shot run shows of single clips: who says what when, and where the adapters looked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from avfewshot.evaluation.answers import BACKGROUND
from avfewshot.reports.charts import ticks
from avfewshot.reports.overlays import heat_source, is_picture
from avfewshot.reports.run_record import Example, Look, Second
from avfewshot.reports.strip import MOST_BINS, Mark, Span, marks, step_path
from avfewshot.reports.text import clock


@dataclass(frozen=True)
class Strip:
    """A row of a timeline.

    Attributes:
        name: Who says so.
        spans: Stretches with one answer.
        described: The same in words.
    """

    name: str
    spans: list[Span]
    described: str


@dataclass(frozen=True)
class Guess:
    """A row of a table of probabilities.

    Attributes:
        label: The label.
        share: Its probability.
        right: Whether the clip carries it.
    """

    label: str
    share: float
    right: bool


@dataclass(frozen=True)
class ExampleView:
    """A test clip on the page.

    Attributes:
        name: Its id.
        truth: (label, mark).
        right: Whether the trained model is right.
        was_right: Whether the untrained one is.
        guesses: (system, its rows).
        pictures: (second, address).
        strips: Rows of the timeline.
        legend: (label, mark) of everything on the timeline.
        ticks: (position in percent, time).
        columns: Width of the timeline, in seconds up to ten.
    """

    name: str
    truth: list[tuple[str, Mark]]
    right: bool
    was_right: bool
    guesses: list[tuple[str, list[Guess]]]
    pictures: list[tuple[int, str]]
    strips: list[Strip]
    legend: list[tuple[str, Mark]]
    ticks: list[tuple[float, str]]
    columns: int


@dataclass(frozen=True)
class Panel:
    """A frame with a map over it.

    Attributes:
        title: What the map shows.
        source: Address of the map; empty for the frame alone.
        ends: What the faintest and the strongest colour stand for, for people.
    """

    title: str
    source: str
    ends: str


@dataclass(frozen=True)
class Gate:
    """A temporal gate over the seconds.

    Attributes:
        title: Which one.
        path: SVG path in a box of `bins` x 1.
        bins: Seconds.
        ends: Its smallest and largest value, which the lowest and the highest step stand for.
    """

    title: str
    path: str
    bins: int
    ends: str


@dataclass(frozen=True)
class LookView:
    """A second of a clip with its maps.

    Attributes:
        name: Id of the clip.
        second: Which second.
        label: What the maps are about.
        frame: Address of the frame; empty where there is none.
        panels: The frame alone, then with each map.
        gates: Temporal gates.
        truth: Steps where something is annotated, or None.
        shown: Position of the second on the timeline, and its width, in percent; None without a timeline.
        ticks: (position in percent, time).
        columns: Width of the timeline, in seconds up to ten.
    """

    name: str
    second: int
    label: str
    frame: str
    panels: list[Panel]
    gates: list[Gate]
    truth: Gate | None
    shown: tuple[float, float] | None
    ticks: list[tuple[float, str]]
    columns: int


def example_view(example: Example, classes: Sequence[str], systems: tuple[str, str]) -> ExampleView:
    """Prepare a clip for the template.

    Args:
        example: The clip.
        classes: All classes of the task, in order: they decide which letter and colour a label has.
        systems: What the trained and the untrained model are called.
    """
    used = [*example.truth, *(label for second in example.seconds for label in _mentioned(second))]
    background = next((label for label in used if label.casefold() == BACKGROUND.casefold()), BACKGROUND)
    table = marks(list(dict.fromkeys([*classes, *used, background])), [*used, background])
    seconds = example.seconds
    rows: list[tuple[str, list[tuple[str, ...] | None]]] = [
        ("truth", [second.truth if second.truth is None else second.truth or (background,) for second in seconds]),
        (systems[0], [(second.trained[0],) for second in seconds]),
        (systems[1], [(second.zero_shot[0],) for second in seconds]),
    ]
    shown = [label for _, answers in rows for answer in answers for label in answer or ()]
    return ExampleView(
        name=example.name,
        truth=[(label, table[label]) for label in example.truth],
        right=example.right,
        was_right=example.was_right,
        guesses=[
            (system, [Guess(label, share, label in example.truth) for label, share in rows_of])
            for system, rows_of in zip(systems, (example.trained, example.zero_shot), strict=True)
        ],
        pictures=[(second, source) for second, source in example.thumbnails if is_picture(source)],
        strips=[
            _strip(name, answers, table) for name, answers in rows if any(answer is not None for answer in answers)
        ],
        legend=[(label, table[label]) for label in dict.fromkeys(shown)],
        ticks=_ticks(len(seconds)),
        columns=max(1, min(len(seconds), 10)),
    )


def look_view(look: Look) -> LookView:
    """Prepare a second of a clip for the template."""
    frame = look.frame if is_picture(look.frame) else ""
    panels = [Panel("the frame", "", "")] if frame else []
    for heat in look.heats:
        found = heat_source(heat.values)
        if found is not None:
            panels.append(Panel(heat.title, found[0], _range(*found[1])))
    gates = [gate for title, values in look.gates if (gate := _gate(title, values)) is not None]
    truth = None
    if look.truth:
        told = ", ".join(clock(second) for second, on in enumerate(look.truth) if on) or "never"
        truth = Gate("annotated", step_path([float(on) for on in look.truth]), len(look.truth), told)
    length = max([len(values) for _, values in look.gates] + [len(look.truth or ())])
    return LookView(
        name=look.name,
        second=look.second,
        label=look.label,
        frame=frame,
        panels=panels,
        gates=gates,
        truth=truth,
        shown=(100 * look.second / length, 100 / length) if look.second < length else None,
        ticks=_ticks(length),
        columns=max(1, min(length, 10)),
    )


def _mentioned(second: Second) -> list[str]:
    return [*(second.truth or ()), second.trained[0], second.zero_shot[0]]


def _strip(name: str, answers: Sequence[tuple[str, ...] | None], table: dict[str, Mark]) -> Strip:
    total, width = len(answers), max(1, -(-len(answers) // MOST_BINS))
    # Of a very long clip several seconds share a step, with what most of them hold.
    steps = [Counter(answers[begin : begin + width]).most_common(1)[0][0] for begin in range(0, total, width)]
    spans, told, begin = [], [], 0
    for answer, group in groupby(steps):
        end = min(begin + width * len(list(group)), total)
        if answer is not None:
            title = f"{begin}-{end} s: {', '.join(answer)}"
            left, reach = 100 * begin / total, 100 * (end - begin) / total
            letters = "".join(table[label].letter for label in answer)
            # The letters of all labels, the colour of the first one.
            spans.append(Span(left, reach, Mark(letters, table[answer[0]].paint), title))
            told.append(title)
        begin = end
    return Strip(name, spans, "; ".join(told[:50]))


def _gate(title: str, values: Sequence[float]) -> Gate | None:
    known = [value for value in values if math.isfinite(value)]
    if not known:
        return None
    low, high = min(known), max(known)
    # A gate moves little around its mean: between its own ends it can be seen to follow the events or not.
    heights = [
        (0.12 + 0.88 * (value - low) / (high - low) if high > low else 0.5) if math.isfinite(value) else 0.0
        for value in values
    ]
    return Gate(title, step_path(heights), len(values), _range(low, high))


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if high > low else f"{low:.3g} throughout"


def _ticks(length: int) -> list[tuple[float, str]]:
    if not length:
        return []
    return [
        (100 * tick / length, clock(tick)) for tick in ticks(0, length, most=10) if tick <= length and tick % 1 == 0
    ]
