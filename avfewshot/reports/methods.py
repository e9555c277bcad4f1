"""Few-shot methods side by side: a table for the terminal, and one page with every method, the choice and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table
from rich.text import Text

from avfewshot.evaluation.results import Comparison, Estimate
from avfewshot.io import write_text
from avfewshot.reports.charts import TONES, Series, line_chart
from avfewshot.reports.figures import NONE, basis, cell, interval, metric_title, points, share, signed, verdict
from avfewshot.reports.html import render
from avfewshot.reports.listings import Listing, figures_table
from avfewshot.reports.text import reject_text
from avfewshot.text import printable

Diagnostics = Mapping[str, Mapping[str, Any]]
MethodsTable = tuple[str, Comparison, Sequence[Diagnostics]]
"""Its title, systems over seeds, and of each seed what the fitted methods say of themselves."""

MUS = ("mu_v", "mu_a", "mu_av")
_BESIDE = ("auto", "zero-shot")  # in every chart


def method_rows(comparison: Comparison, runs: Sequence[Diagnostics]) -> list[dict[str, Any]]:
    """One row a system, the best first: its headline figure, and what is known of it without test clips.

    `runs` is of each seed what the fitted methods say of themselves.
    """
    rows = []
    for system in comparison.systems:
        diagnostics = [run[system] for run in runs if system in run]
        left_out = [one["loo_accuracy"] for one in diagnostics if one.get("loo_accuracy") is not None]
        labels = diagnostics[0].get("labels_used") if diagnostics else None
        spoilt = [one["modality_confusion"] for one in diagnostics if one.get("modality_confusion")]
        errors = [one["ece"]["test"] for one in diagnostics if one.get("ece")]
        rows.append(
            {
                "system": system,
                "estimate": comparison.cells[system][comparison.headline],
                "left_out": fmean(left_out) if left_out else None,
                "labels": None if labels is None else sum(labels.values()),
                "seconds": fmean(one["seconds"] for one in diagnostics) if diagnostics else None,
                "trainable": diagnostics[0].get("trainable") if diagnostics else None,
                "ece": {end: fmean(one[end] for one in errors) for end in ("before", "after")} if errors else None,
                "modality_confusion": {mu: fmean(one[mu] for one in spoilt) for mu in MUS} if spoilt else None,
            }
        )
    return sorted(rows, key=lambda row: -(row["estimate"].value or 0.0))


def left_out_table(seed: int, diagnostics: Diagnostics) -> Table:
    """What light methods get right on clips of the support, each left out: known before any test clip is read."""
    auto = diagnostics.get("auto")
    caption = "" if auto is None else f"auto: {auto.get('choice', '')}; {auto.get('why', '')}"
    if auto is not None and auto.get("seconds_by"):
        caption += f"; seconds by {' and '.join(auto['seconds_by'])}"
    title = f"seed {seed}: light methods, clips of the support left out"
    columns = ("method", "right", "log-loss", "ECE", "tempered", "seconds")
    table = figures_table(*columns, title=title, caption=caption or None)
    for name, one in diagnostics.items():
        calibration = one.get("calibration") or {}
        table.add_row(
            Text(printable(name)),
            share(one.get("loo_accuracy")),
            _cell(one.get("loo_log_loss"), ".3f"),
            *(share(calibration.get(end)) for end in ("ece_before", "ece_after")),
            _cell(one["seconds"], ".1f"),
        )
    return table


def _cell(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def methods_table(comparison: Comparison, runs: Sequence[Diagnostics]) -> Table:
    """All systems on the test clips, the best first."""
    title = f"{printable(comparison.task)}: {metric_title(comparison.headline)}, in percent"
    columns = ("system", "test", "95 %\ninterval", "left\nout", "labels\nused", "fit, s", "trained")
    table = figures_table(*columns, title=title, caption=basis(comparison, (comparison.headline,)))
    for column in table.columns[1:]:
        column.no_wrap = True  # the figures stay whole, and what a terminal of 80 columns leaves to the names is enough
    for row in method_rows(comparison, runs):
        bold = "bold" if row["system"] == "auto" else ""
        table.add_row(
            Text(printable(row["system"]), style=bold),
            Text(cell(row["estimate"], comparison), style=bold),
            interval(row["estimate"]),
            points(row["left_out"]),
            *(_cell(row[key], form) for key, form in (("labels", ","), ("seconds", ".1f"), ("trainable", ","))),
        )
    return table


def details_table(comparison: Comparison, runs: Sequence[Diagnostics]) -> Table:
    """Beside it: calibration before and after the temperature, and what the second modality spoils."""
    title = "the same clips: calibration, and what fusion spoils, in percent"
    table = figures_table("system", "ECE", "tempered", *MUS, title=title, caption=CONFUSION)
    for row in method_rows(comparison, runs):
        if row["ece"] or row["modality_confusion"]:
            errors, spoilt = row["ece"] or {}, row["modality_confusion"] or {}
            figures = (*map(errors.get, ("before", "after")), *map(spoilt.get, MUS))
            table.add_row(Text(printable(row["system"])), *map(points, figures))
    return table


CONFUSION = (
    "mu: percent of the clips (seconds) that sight alone (v), sound alone (a), each of the two alone (av) gets right "
    "and both together get wrong."
)


def print_methods(tables: Sequence[MethodsTable], listings: Sequence[Listing] = ()) -> None:
    """Print :func:`methods_table` and :func:`details_table` of each, then the listings."""
    console = Console(highlight=False)
    for title, comparison, runs in tables:
        if title:
            console.print(Text(printable(title), style="bold"))
        console.print(methods_table(comparison, runs))
        console.print()
        console.print(details_table(comparison, runs))
    for listing in listings:
        console.print()
        console.print(listing.table())


def figure_record(figure: Estimate) -> dict[str, float | None]:
    """A figure, JSON-ready."""
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def table_record(comparison: Comparison, runs: Sequence[Diagnostics]) -> dict[str, Any]:
    """The rows of :func:`method_rows`, JSON-ready."""
    rows = [{**row, "estimate": figure_record(row["estimate"])} for row in method_rows(comparison, runs)]
    return {"headline": comparison.headline, "systems": rows}


def differences_listing(comparison: Comparison) -> Listing:
    """The difference of every pair of systems by the headline, in points."""
    rows = [
        (f"{one.system} − {one.reference}", signed(one.estimate.value), interval(one.estimate), verdict(one)[0])
        for one in comparison.differences
        if one.metric == comparison.headline and one.estimate.value is not None
    ]
    head = ("difference", "points", "95 % interval", "verdict")
    return Listing("differences, paired on the same clips", head, rows, "unclear: the interval includes zero.")


def wins_listing(tables: Sequence[MethodsTable]) -> Listing:
    """Where each system is best, and where it is not clearly worse than the best: by the headline of each table."""
    best: dict[str, list[str]] = {}
    level: dict[str, list[str]] = {}
    for title, table, _ in tables:
        values = {name: table.cells[name][table.headline].value or 0.0 for name in table.systems}
        top = max(values, key=values.__getitem__)
        for name, value in values.items():
            best.setdefault(name, [])
            level.setdefault(name, [])
            if math.isclose(value, values[top]):  # equal means over seeds differ in the last digit
                best[name].append(title)
            elif not table.difference(name, top).clear:
                level[name].append(title)
    order = sorted(best, key=lambda name: (-len(best[name]), -len(level[name])))
    rows = [(name, ", ".join(best[name]) or NONE, ", ".join(level[name]) or NONE) for name in order]
    note = "Not clearly worse: the 95 % interval of the paired difference includes zero."
    return Listing("where each wins", ("system", "best", "not clearly worse than the best"), rows, note)


def write_methods_page(
    path: Path,
    tables: Sequence[MethodsTable],
    *,
    title: str,
    command: str,
    seeds: Sequence[int],
    shots: Sequence[int] = (),
    listings: Sequence[Listing] = (),
    notes: Sequence[str] = (),
    chart: tuple[Markup, Sequence[str]] | None = None,
) -> None:
    """Write the page. `seeds` are those that the tables' systems say something of themselves for.

    Where the tables are of one task at several `shots`, a chart over these is drawn, and one of each system where it
    cannot have all lines. `notes` stand above, a paragraph each, `listings` below. A `chart` of the caller's own comes
    with the names of its lines.
    """
    lines = _lines(tables, shots) if len(shots) > 1 and chart is None else {}
    panels: dict[str, Markup] = {}
    if lines:
        name, shown = f"{metric_title(tables[0][1].headline)} over shots", _foremost(lines)
        drawn = line_chart(name, shown, x_name="shots", shares=True, doubling=True)
        chart = drawn, [one.name for one in shown]
        panels = _panels(lines) if len(shown) < len(lines) else {}
    page = render(
        "methods.html.j2",
        title=title,
        command=command,
        chart=chart[0] if chart else "",
        drawn=chart[1] if chart else (),
        over_shots=bool(lines),
        panels=panels,
        beside=[name for name in _BESIDE if name in lines],
        tones=TONES,
        seeds=seeds,
        tables=[
            {"title": name, "rows": method_rows(table, runs), "table": table, "runs": runs}
            | {"basis": basis(table, (table.headline,))}
            for name, table, runs in tables
        ],
        listings=listings,
        notes=notes,
        reject_text=reject_text,
        confusion=CONFUSION,
        mus=MUS,
    )
    write_text(path, page)


def _lines(tables: Sequence[MethodsTable], shots: Sequence[int]) -> dict[str, Series]:
    """A line a system over shots, with its intervals, where it has any figure."""
    lines: dict[str, Series] = {}
    at_shots = sorted(zip(shots, tables, strict=True), key=lambda one: one[0])
    for system in dict.fromkeys(name for _, table, _ in tables for name in table.systems):
        cells = [
            (float(k), table.cells[system][table.headline]) for k, (_, table, _) in at_shots if system in table.systems
        ]
        points = [(k, one.value) for k, one in cells if one.value is not None]
        ends = [(k, one.low, one.high) for k, one in cells if one.low is not None and one.high is not None]
        if points:
            lines[system] = Series(system, points, intervals=ends)
    return lines


def _foremost(lines: Mapping[str, Series]) -> list[Series]:
    """`auto`, zero-shot, and the best of the lines that differ from that of `auto`, as many as there are colours."""
    first = [name for name in _BESIDE if name in lines]
    auto = lines["auto"].points if "auto" in lines else None
    others = [name for name, line in lines.items() if name not in first and line.points != auto]
    others.sort(key=lambda name: -fmean(value for _, value in lines[name].points))
    return [lines[name] for name in (*first, *others[: TONES - len(first)])]


def _panels(lines: Mapping[str, Series]) -> dict[str, Markup]:
    """A chart of each system with its intervals, over the lines of `auto` and zero-shot, all of the same height."""
    heights = [end for line in lines.values() for _, *ends in (*line.points, *line.intervals) for end in ends]
    options: dict[str, Any] = {"x_name": "shots", "shares": True, "doubling": True}
    beside = [replace(lines[name], intervals=()) for name in _BESIDE if name in lines]
    return {
        name: line_chart(name, [*beside, line], limits=(min(heights), max(heights)), **options)
        for name, line in lines.items()
        if name not in _BESIDE
    }
