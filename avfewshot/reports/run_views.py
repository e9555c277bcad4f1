"""What the page of a few-shot run says about figures: rows, positions, and sentences in plain language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from avfewshot.evaluation.results import FEW_CLIPS, ClassRow, Comparison, Difference, Estimate, Reference, TaskResult
from avfewshot.evaluation.tasks import METRICS
from avfewshot.reports.charts import change_bar
from avfewshot.reports.text import percent

NONE = "–"
"""Stands for a figure that is not defined."""


@dataclass(frozen=True)
class FigureRow:
    """A figure on a scale of 0 to 100 %; positions are in percent.

    Attributes:
        name: Whose figure.
        kind: ``main``, ``system``, ``baseline`` or ``ceiling``.
        value: For people.
        interval: For people; empty without one.
        dot: Where it lies; None where it is not defined.
        low: Where the interval begins; None without one.
        high: Where it ends.
    """

    name: str
    kind: str
    value: str
    interval: str
    dot: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Verdict:
    """What a difference means.

    Attributes:
        kind: ``gain``, ``loss``, ``unclear`` or ``unknown``.
        text: In a sentence.
    """

    kind: str
    text: str


@dataclass(frozen=True)
class Cell:
    """A figure of a table.

    Attributes:
        value: For people, in percent.
        interval: For people; empty without one.
        kind: ``best`` of its column, ``gain`` or ``loss`` for a clear difference, else empty.
    """

    value: str
    interval: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Group:
    """Rows of the table that belong together.

    Attributes:
        title: What they are.
        rows: (name, one cell for each column).
    """

    title: str
    rows: list[tuple[str, list[Cell]]]


@dataclass(frozen=True)
class ClassChange:
    """A class before and after training.

    Attributes:
        name: The class.
        support: Clips (seconds) that carry it.
        recalls: Before, after and the change, for people.
        f1s: The same of F1.
        kind: ``gain``, ``loss`` or empty, by F1.
        bar: A drawing of the change of F1; empty where it is not defined.
    """

    name: str
    support: int
    recalls: tuple[str, str, str]
    f1s: tuple[str, str, str]
    kind: str
    bar: Markup


def main_systems(comparison: Comparison) -> tuple[str, str | None]:
    """The system that a run is about and the one that it started from: the last one and the one before it."""
    systems = comparison.systems
    return systems[-1], systems[-2] if len(systems) > 1 else None


def figure_rows(
    comparison: Comparison, baselines: Sequence[Reference], ceilings: Sequence[Reference]
) -> list[FigureRow]:
    """The headline figure of every system, the main one first, then of trivial answers and of ceilings."""
    main, _ = main_systems(comparison)
    rows = []
    for system in reversed(comparison.systems):
        found = comparison.cells[system][comparison.headline]
        known = found.value is not None and found.low is not None and found.high is not None
        rows.append(
            FigureRow(
                system,
                "main" if system == main else "system",
                share(found.value),
                interval(found),
                _place(found.value),
                _place(found.low) if known else None,
                _place(found.high) if known else None,
            )
        )
    for kind, references in (("baseline", baselines), ("ceiling", ceilings)):
        for reference in references:
            value = reference.values.get(comparison.headline)
            if value is not None:
                rows.append(FigureRow(reference.title, kind, share(value), "", _place(value)))
    return rows


def verdict(difference: Difference) -> Verdict:
    """A difference in plain language: how large, and whether it is clear."""
    found = difference.estimate
    pair = f"“{difference.system}” and “{difference.reference}”"
    if found.value is None:
        return Verdict("unknown", f"{pair} cannot be compared: the figure is not defined for both.")
    points = f"{100 * abs(found.value):.1f} percentage points"
    side = "above" if found.value > 0 else "below"
    text = f"“{difference.system}” lies {points} {side} “{difference.reference}”"
    if found.value == 0:
        text = f"{pair} are equal"
    if found.low is None or found.high is None:
        return Verdict("unknown", f"{text}. Without an interval nobody can tell whether that is more than chance.")
    basis = f"{found.n} {'training runs' if found.interval == 'seeds' else 'test clips'}"
    text += f" (95 % interval of the difference: {signed(found.low)} to {signed(found.high)}, over {basis}). "
    if not difference.clear:
        return Verdict("unclear", f"{text}The interval includes zero: from these {basis} the difference is not clear.")
    if found.low > 0:
        return Verdict("gain", f"{text}The interval lies above zero: a clear gain.")
    return Verdict("loss", f"{text}The interval lies below zero: a clear loss.")


def table_groups(comparison: Comparison, baselines: Sequence[Reference], ceilings: Sequence[Reference]) -> list[Group]:
    """All figures: systems, differences of the main one from the others, trivial answers, ceilings."""
    main, _ = main_systems(comparison)
    best = {
        metric: max(values)
        for metric in comparison.metrics
        if len(values := [v for s in comparison.systems if (v := comparison.cells[s][metric].value) is not None]) > 1
    }
    systems = [
        (system, [_cell(comparison.cells[system][metric], best.get(metric)) for metric in comparison.metrics])
        for system in reversed(comparison.systems)
    ]
    differences = [
        (f"{main} − {other}", [_difference(comparison.difference(main, other, name)) for name in comparison.metrics])
        for other in reversed(comparison.systems[:-1])
    ]
    groups = [Group("systems", systems), Group("differences in percentage points", differences)]
    for title, references in (("what answers without looking reach", baselines), ("what cannot be exceeded", ceilings)):
        rows = [
            (reference.title, [Cell(points(reference.values.get(metric))) for metric in comparison.metrics])
            for reference in references
        ]
        groups.append(Group(title, rows))
    return [group for group in groups if group.rows]


def class_changes(after: TaskResult, before: TaskResult | None) -> list[ClassChange]:
    """The classes, those that gained most F1 first; undefined changes last."""
    earlier = {} if before is None else {row.name: row for row in before.classes}

    def change(row: ClassRow) -> float | None:
        other = earlier.get(row.name)
        return None if other is None or row.f1 is None or other.f1 is None else row.f1 - other.f1

    def rank(row: ClassRow) -> tuple[bool, float]:
        found = change(row)
        return (True, 0.0) if found is None else (False, -found)

    rows = []
    for row in sorted(after.classes, key=rank):
        other, moved = earlier.get(row.name), change(row)
        rows.append(
            ClassChange(
                row.name,
                row.support,
                _from_to(other.recall if other else None, row.recall),
                _from_to(other.f1 if other else None, row.f1),
                "gain" if moved and moved > 0 else "loss" if moved and moved < 0 else "",
                change_bar(f"F1 of {row.name}", other.f1, row.f1)
                if other is not None and other.f1 is not None and row.f1 is not None
                else Markup(),
            )
        )
    return rows


def basis(comparison: Comparison) -> str:
    """What the intervals of a table are over, for people."""
    cells = [cell for row in comparison.cells.values() for cell in row.values()]
    runs = max((cell.n for cell in cells if cell.interval == "seeds"), default=0)
    resampled = any(cell.interval in ("bootstrap", "wilson") for cell in cells)
    clips = f"{comparison.num_clips} test clip{'' if comparison.num_clips == 1 else 's'}"
    few = ""
    if comparison.num_clips < FEW_CLIPS:
        few = f"Only {clips}: one clip moves a figure by {100 / comparison.num_clips:.0f} points. "
    if runs:
        text = f"Means over {runs} training runs with other seeds; 95 % intervals over runs and {clips} together."
        if resampled:
            text += " A system without training does the same in every run: its interval is over clips alone."
        return few + text
    if resampled:
        return few + f"95 % intervals over {comparison.replicates} resamples of the {clips}."
    return few + f"On {clips}, without intervals."


def metric_title(name: str) -> str:
    """What a metric is called."""
    return METRICS[name].title if name in METRICS else name


def metric_description(name: str) -> str:
    """What a metric means."""
    return METRICS[name].description if name in METRICS else ""


def share(value: float | None) -> str:
    """A fraction for people, for example ``52.4 %``."""
    return NONE if value is None else percent(value)


def points(value: float | None) -> str:
    """A fraction in percent without the sign, for the cells of a table."""
    return NONE if value is None else f"{100 * value:.1f}"


def signed(value: float) -> str:
    """A difference of fractions in percentage points, for example ``+3.1``; nothing has no sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def interval(estimate: Estimate) -> str:
    """The interval of a figure, for example ``49.1–55.6``; empty without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = points(estimate.low), points(estimate.high)
    return f"{low}–{high}" if estimate.low >= 0 else f"{low} to {high}".replace("-", "−")


def _cell(estimate: Estimate, best: float | None) -> Cell:
    return Cell(
        points(estimate.value), interval(estimate), "best" if best is not None and estimate.value == best else ""
    )


def _difference(found: Difference) -> Cell:
    value, low, high = found.estimate.value, found.estimate.low, found.estimate.high
    if value is None:
        return Cell(NONE)
    if low is None or high is None:
        return Cell(signed(value))
    kind = "" if not found.clear else "gain" if low > 0 else "loss"
    return Cell(signed(value), f"{signed(low)} to {signed(high)}", kind)


def _from_to(before: float | None, after: float | None) -> tuple[str, str, str]:
    moved = NONE if before is None or after is None else signed(after - before)
    return points(before), points(after), moved


def _place(value: float | None) -> float | None:
    return None if value is None else 100 * min(max(value, 0.0), 1.0)
