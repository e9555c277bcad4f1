"""The page of a few-shot run: one file that needs no other and no connection; its script only filters examples."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from markupsafe import Markup

from avfewshot.evaluation.references import BACKGROUND, distinct
from avfewshot.evaluation.results import ClassRow, Comparison, Difference, TaskResult
from avfewshot.reports import figures
from avfewshot.reports.charts import TONES, Series, drawing, heat_source, is_picture, line_chart, ticks
from avfewshot.reports.html import component, render
from avfewshot.reports.strip import MOST_BINS, NARROWEST_LETTER, Mark, cells, marks, step_path
from avfewshot.reports.text import clock
from avfewshot.training.record import AttentionExample, Example, RunRecord

_LOSSES = {"total": "loss", "sight": "visual_loss", "hearing": "audio_loss"}  # what is drawn of a step

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
    shares = tuple(tuple(count / total for count in row) for row, total in zip(counts, totals, strict=True))
    return Confusion(tuple(names[k] for k in kept), counts, shares, len(names))


def confused_pairs(result: TaskResult, other: TaskResult | None = None, most: int = MOST_PAIRS) -> list[Pair]:
    """The pairs of classes that are mixed up most often, beside how often `other` does so; the most frequent first."""
    names, matrix = [row.name for row in result.classes], result.confusion
    confused = [(count, i, j) for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j and count > 0]
    confused.sort(key=lambda entry: -entry[0])
    pairs = []
    for count, i, j in confused[:most]:
        before = None if other is None else other.confusion[i][j]
        pairs.append(Pair(names[i], names[j], count, count / (sum(matrix[i]) or 1.0), before))
    return pairs


def run_page(record: RunRecord) -> str:
    """The page as text.

    The last system of the record's comparison is what the run is about, the one before it what it started from.
    Examples, maps, curves and intervals may be missing.
    """
    comparison = record.comparison
    main, reference = figures.main_systems(comparison)
    after = record.results[main]
    before = record.results.get(reference) if reference else None
    return render(
        "run.html.j2",
        script=component("filter.js") if record.examples else "",
        record=record,
        comparison=comparison,
        main=main,
        reference=reference,
        baselines=distinct(after.baselines),
        ceilings=after.ceilings,
        basis=figures.basis(comparison),
        verdict=figures.verdict,
        difference_cell=_difference_cell,
        best=_best_values(comparison),
        version=record.version,
        title=record.title,
        created=datetime.fromisoformat(record.created).strftime("%Y-%m-%d %H:%M %Z"),
        tones=TONES,
        **_training(record),
        **_classes(record, after, before),
        **_clips(record, after, (main, reference or "before")),
    )


def _best_values(comparison: Comparison) -> dict[str, float]:
    """The best figure of each metric that several systems have."""
    rows = comparison.cells.values()
    columns = {metric: [row[metric].value for row in rows] for metric in comparison.metrics}
    known = {metric: [value for value in values if value is not None] for metric, values in columns.items()}
    return {metric: max(values) for metric, values in known.items() if len(values) > 1}


def _difference_cell(found: Difference) -> tuple[str, str, str]:
    """Its kind (``gain``, ``loss`` or empty), the figure and the interval, for people."""
    return figures.verdict(found)[0] if found.clear else "", *figures.difference(found.estimate)


def _training(record: RunRecord) -> dict[str, Any]:
    curves, names = record.curves, [f"seed {curve.seed}" for curve in record.curves]
    start = next((epoch["figure"] for curve in curves for epoch in curve.epochs if epoch["epoch"] == 0), None)
    title, level = f"{figures.metric_title(record.comparison.headline)} on validation clips", None
    if start is not None and math.isfinite(start):
        level = (start, "before training")
    place = operator.itemgetter("epoch", "figure")
    series = [
        Series(name, list(map(place, curve.epochs)), marked=place(curve.kept) if curve.kept else None)
        for name, curve in zip(names, curves, strict=True)
    ]
    validation = line_chart(title, series, x_name="epoch", level=level, shares=True)
    steps = [step for curve in curves for step in curve.steps]
    heights = [step[key] for step in steps for key in _LOSSES.values() if math.isfinite(step[key])]
    losses = []
    for name, key in _LOSSES.items() if heights else ():
        series = [
            Series(seed, [(step["step"], step[key]) for step in curve.steps], smooth=True)
            for seed, curve in zip(names, curves, strict=True)
        ]
        limits = (min(heights), max(heights))
        if drawn := line_chart(f"Loss: {name}", series, x_name="optimizer step", limits=limits):
            losses.append((name, drawn))
    lost = sum(not math.isfinite(step["loss"]) for step in steps)
    return {"seeds": names, "validation": validation, "losses": losses, "lost_steps": lost}


def _classes(record: RunRecord, after: TaskResult, before: TaskResult | None) -> dict[str, Any]:
    matrix = confusion(after)
    first = record.curves[0].seed if record.curves else record.supports[0][0] if record.supports else None
    several = len(record.curves) > 1 and first is not None
    return {
        "unit": "clips" if after.num_segments is None else "seconds",
        "of_seed": f"Of seed {first}, the first one." if several else "",
        "classes": class_changes(after, before),
        "matrix": matrix,
        "heat_map": drawing("heat_map", f"Confusion matrix of {after.system}", matrix) if matrix.names else Markup(),
        "pairs": confused_pairs(after, before),
        "calibrations": [
            (result, drawing("reliability", f"Reliability of {result.system}", result.calibration))
            for result in (after, before)
            if result is not None and result.calibration.answers
        ],
    }


def class_changes(after: TaskResult, before: TaskResult | None) -> list[tuple[ClassRow, ClassRow | None, float | None]]:
    """Each class after and before with the change of its F1: those that gained most first, undefined changes last."""
    earlier = {} if before is None else {row.name: row for row in before.classes}

    def change(row: ClassRow) -> float | None:
        other = earlier.get(row.name)
        return None if other is None or row.f1 is None or other.f1 is None else row.f1 - other.f1

    rows = [(row, earlier.get(row.name), change(row)) for row in after.classes]
    return sorted(rows, key=lambda row: (row[2] is None, -(row[2] or 0.0)))


def _clips(record: RunRecord, after: TaskResult, systems: tuple[str, str]) -> dict[str, Any]:
    classes = [row.name for row in after.classes]
    kinds = {
        "Right only after training": (True, False),
        "Wrong only after training": (False, True),
        "Wrong before and after": (False, False),
        "Right before and after": (True, True),
    }
    groups = []
    for title, kind in kinds.items():
        if found := [one for one in record.examples if (one.right, one.was_right) == kind]:
            groups.append((title, [(one, _example(one, classes, systems)) for one in found]))
    return {"systems": systems, "examples": groups, "looks": [(look, _look(look)) for look in record.looks]}


def _example(example: Example, classes: Sequence[str], systems: tuple[str, str]) -> dict[str, Any]:
    """Marks and timeline of a clip; the order of all `classes` decides which letter and colour a label has."""
    said = ((*(second.truth or ()), second.trained[0], second.zero_shot[0]) for second in example.seconds)
    used = [*example.truth, *(label for labels in said for label in labels)]
    background = next((label for label in used if label.casefold() == BACKGROUND.casefold()), BACKGROUND)
    table = marks(list(dict.fromkeys([*classes, *used, background])), [*used, background])
    seconds = example.seconds
    rows: list[tuple[str, list[tuple[str, ...] | None]]] = [
        ("truth", [second.truth if second.truth is None else second.truth or (background,) for second in seconds]),
        (systems[0], [(second.trained[0],) for second in seconds]),
        (systems[1], [(second.zero_shot[0],) for second in seconds]),
    ]
    shown = [label for _, answers in rows for answer in answers for label in answer or ()]
    return {
        "marks": table,
        "legend": list(dict.fromkeys(shown)),
        "pictures": [(second, source) for second, source in example.thumbnails if is_picture(source)],
        "strips": [_strip(name, answers, table) for name, answers in rows if any(a is not None for a in answers)],
        "ticks": _ticks(len(seconds)),
        "columns": max(1, min(len(seconds), 10)),
    }


def _strip(name: str, answers: Sequence[tuple[str, ...] | None], table: dict[str, Mark]) -> dict[str, Any]:
    """Spans of one answer, in percent; a step of a very long clip has what most of its seconds hold."""
    steps, width = cells(answers, MOST_BINS)
    spans, begin, total = [], 0, len(answers)
    for answer, group in groupby(steps):
        end = min(begin + width * len(list(group)), total)
        if answer is not None:
            reach = 100 * (end - begin) / total
            # The letters of all labels where there is room, the colour of the first one.
            letters = "".join(table[label].letter for label in answer) if reach >= NARROWEST_LETTER else ""
            place = {"left": 100 * begin / total, "width": reach, "letters": letters, "paint": table[answer[0]].paint}
            spans.append({**place, "title": f"{begin}-{end} s: {', '.join(answer)}"})
        begin = end
    return {"name": name, "spans": spans, "described": "; ".join(span["title"] for span in spans[:50])}


def _look(look: AttentionExample) -> dict[str, Any]:
    """A second of a clip: its frame alone and with each map, gates and truth over the seconds of the clip."""
    frame = look.frame if is_picture(look.frame) else ""
    panels = [("the frame", "", "", "")] if frame else []
    for heat in look.heats:
        drawn, over = heat_source(heat.values), heat.over if is_picture(heat.over) else ""
        if drawn is not None:
            panels += [("its sound, high frequencies above", "", "", over)] if over else []
            panels.append((heat.title, drawn[0], _range(*drawn[1]), over))
    truth = None
    if look.truth:
        ends = ", ".join(clock(second) for second, on in enumerate(look.truth) if on) or "never"
        path = step_path([float(on) for on in look.truth])
        truth = {"title": "annotated", "path": path, "bins": len(look.truth), "ends": ends}
    length = max([len(values) for _, values in look.gates] + [len(look.truth or ())])
    return {
        "frame": frame,
        "panels": panels,
        "gates": [gate for title, values in look.gates if (gate := _gate(title, values)) is not None],
        "truth": truth,
        "shown": (100 * look.second / length, 100 / length) if look.second < length else None,
        "ticks": _ticks(length),
        "columns": max(1, min(length, 10)),
    }


def _gate(title: str, values: Sequence[float]) -> dict[str, Any] | None:
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min(finite), max(finite)
    # A gate moves little around its mean: between its own ends it can be seen to follow the events or not.
    heights = [
        (0.12 + 0.88 * (value - low) / (high - low) if high > low else 0.5) if math.isfinite(value) else 0.0
        for value in values
    ]
    return {"title": title, "path": step_path(heights), "bins": len(values), "ends": _range(low, high)}


def _range(low: float, high: float) -> str:
    return f"{low:.3g} to {high:.3g}" if high > low else f"{low:.3g} throughout"


def _ticks(length: int) -> list[tuple[float, str]]:
    seconds = [tick for tick in ticks(0, length, most=10) if tick <= length and tick % 1 == 0] if length else []
    return [(100 * second / length, clock(second)) for second in seconds]
