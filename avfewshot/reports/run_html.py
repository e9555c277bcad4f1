"""The page of a few-shot run: one file that needs no other, no script and no connection."""

from __future__ import annotations

import math
from datetime import datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from avfewshot.evaluation.references import distinct
from avfewshot.evaluation.results import TaskResult
from avfewshot.io import write_text
from avfewshot.reports.charts import TONES, Level, Series, heat_map, line_chart, quantity, reliability
from avfewshot.reports.confusion import confused_pairs, confusion
from avfewshot.reports.example_views import ExampleView, example_view, look_view
from avfewshot.reports.html import environment, style
from avfewshot.reports.run_record import Curve, RunRecord
from avfewshot.reports.run_views import (
    NONE,
    basis,
    class_changes,
    figure_rows,
    main_systems,
    metric_description,
    metric_title,
    share,
    table_groups,
    verdict,
)

_LOSSES = (("total", 1), ("sight", 2), ("hearing", 3))
"""What is drawn of a step, and its place in :attr:`Curve.steps`."""


def write_run_page(path: Path, record: RunRecord) -> None:
    """Write the page, whole or not at all.

    Args:
        path: Where to; parent folders are made.
        record: What it shows. The last system of its comparison is what the run is about, the one before it what it
            started from. Examples, maps, curves and intervals may be missing.
    """
    write_text(path, run_page(record))


def run_page(record: RunRecord) -> str:
    """The page as text."""
    return environment().get_template("run.html.j2").render(_context(record))


def _context(record: RunRecord) -> dict[str, Any]:
    comparison = record.comparison
    main, reference = main_systems(comparison)
    after = record.results[main]
    before = record.results.get(reference) if reference else None
    others = reversed(comparison.systems[:-1])
    return {
        "version": record.version,
        "style": style("report.css", "run.css"),
        "script_hash": "",
        "title": record.title,
        "task": record.task,
        "dataset": record.dataset,
        "created": _when(record.created),
        "command": record.command,
        "settings": record.settings,
        "notes": record.notes,
        "main": main,
        "reference": reference,
        "metric": _column(comparison.headline, comparison.headline),
        "basis": basis(comparison),
        "figures": figure_rows(comparison, distinct(after.baselines), after.ceilings),
        "verdicts": [verdict(comparison.difference(main, other)) for other in others],
        "columns": [_column(metric, comparison.headline) for metric in comparison.metrics],
        "groups": table_groups(comparison, distinct(after.baselines), after.ceilings),
        **_training(record),
        **_classes(record, after, before),
        **_clips(record, after, (main, reference or "before")),
        "data": record.data,
        "supports": record.supports,
        "left": record.left,
        "left_total": record.left_total,
        "components": [
            {
                "name": part.name,
                "trainable": f"{part.trainable:,}",
                "total": f"{part.total:,}",
                "gflops": NONE if part.flops is None else f"{part.flops / 1e9:,.1f}",
                "sum": part.name == "all",
            }
            for part in record.components
        ],
    }


def _when(stamp: str) -> str:
    """A time stamp for people; as it is where it is none."""
    try:
        return datetime.fromisoformat(stamp).strftime("%Y-%m-%d %H:%M %Z").strip()
    except ValueError:
        return stamp


def _column(metric: str, headline: str) -> dict[str, Any]:
    return {
        "title": metric_title(metric),
        "description": metric_description(metric),
        "headline": metric == headline,
    }


def _training(record: RunRecord) -> dict[str, Any]:
    curves, names = record.curves, [f"seed {curve.seed}" for curve in record.curves]
    start = next((epoch[2] for curve in curves for epoch in curve.epochs if epoch[0] == 0), None)
    validation = line_chart(
        f"{metric_title(record.comparison.headline)} on validation clips",
        [
            Series(name, [(epoch[0], epoch[2]) for epoch in curve.epochs], marked=_best(curve))
            for name, curve in zip(names, curves, strict=True)
        ],
        x_name="epoch",
        level=Level(start, "before training") if start is not None and math.isfinite(start) else None,
        shares=True,
    )
    steps = [step for curve in curves for step in curve.steps]
    heights = [step[place] for step in steps for _, place in _LOSSES if math.isfinite(step[place])]
    losses: list[tuple[str, Markup]] = []
    for name, place in _LOSSES if heights else ():
        series = [
            Series(seed, [(step[0], step[place]) for step in curve.steps], smooth=True)
            for seed, curve in zip(names, curves, strict=True)
        ]
        limits = (min(heights), max(heights))
        drawing = line_chart(f"Loss: {name}", series, x_name="optimizer step", limits=limits)
        if drawing:
            losses.append((name, drawing))
    return {
        "curves": [_course(curve) for curve in curves],
        "seeds": names,
        "tones": TONES,
        "validation": validation,
        "losses": losses,
        "lost_steps": sum(not math.isfinite(step[1]) for step in steps),
    }


def _kept(curve: Curve) -> tuple[int, int, float, float, float, bool] | None:
    """The entry of the epoch that was kept: the last one that was the best so far."""
    return next((epoch for epoch in reversed(curve.epochs) if epoch[5]), None)


def _best(curve: Curve) -> tuple[float, float] | None:
    kept = _kept(curve)
    return None if kept is None else (kept[0], kept[2])


def _course(curve: Curve) -> dict[str, Any]:
    kept = _kept(curve)
    known = kept is not None and math.isfinite(kept[2])
    return {
        "seed": curve.seed,
        "kept": NONE if kept is None else f"epoch {kept[0]} of {curve.epochs[-1][0]} (step {kept[1]})",
        "figure": share(kept[2]) if kept is not None and known else NONE,
        "blend": NONE if kept is None or not math.isfinite(kept[4]) else f"{kept[4]:.2f}",
        "outcome": curve.outcome,
    }


def _classes(record: RunRecord, after: TaskResult, before: TaskResult | None) -> dict[str, Any]:
    seconds = after.num_segments is not None
    matrix = confusion(after)
    first = record.curves[0].seed if record.curves else record.supports[0][0] if record.supports else None
    several = len(record.curves) > 1 and first is not None
    judged = [result for result in (after, before) if result is not None and result.calibration.answers]
    return {
        "unit": "seconds" if seconds else "clips",
        "of_seed": f"Of seed {first}, the first one." if several else "",
        "classes": class_changes(after, before),
        "matrix": heat_map(f"Confusion matrix of {after.system}", matrix) if matrix.names else Markup(),
        "matrix_whole": matrix.whole,
        "matrix_classes": matrix.classes,
        "matrix_shown": len(matrix.names),
        "pairs": confused_pairs(after, before),
        "quantity": quantity,
        "calibrations": [
            {
                "system": result.system,
                "error": share(result.calibration.error),
                "answers": result.calibration.answers,
                "drawing": reliability(f"Reliability of {result.system}", result.calibration),
            }
            for result in judged
        ],
    }


def _clips(record: RunRecord, after: TaskResult, systems: tuple[str, str]) -> dict[str, Any]:
    classes = [row.name for row in after.classes]
    views = [example_view(example, classes, systems) for example in record.examples]
    kinds: tuple[tuple[str, list[ExampleView]], ...] = (
        ("Right only after training", [view for view in views if view.right and not view.was_right]),
        ("Wrong only after training", [view for view in views if view.was_right and not view.right]),
        ("Wrong before and after", [view for view in views if not view.right and not view.was_right]),
        ("Right before and after", [view for view in views if view.right and view.was_right]),
    )
    return {
        "examples": [(title, found) for title, found in kinds if found],
        "looks": [look_view(look) for look in record.looks],
    }
