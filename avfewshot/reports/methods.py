"""Few-shot methods side by side: a table for the terminal, and one page with every method, the choice and why."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from markupsafe import Markup
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from avfewshot.evaluation.results import Comparison, Difference, Estimate, TaskResult
from avfewshot.io import csv_text, write_text
from avfewshot.reports.charts import TONES, Series, line_chart
from avfewshot.reports.figures import (
    NONE,
    basis,
    difference,
    interval,
    main_systems,
    metric_title,
    points,
    signed,
    verdict,
)
from avfewshot.reports.html import render
from avfewshot.reports.text import printable, reject_text
from avfewshot.training.record import Component

Diagnostics = Mapping[str, Mapping[str, Any]]
MUS = ("mu_v", "mu_a", "mu_av")


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
    title = f"seed {seed}: light methods, clips of the support left out"
    table = titled_table(title, caption, "method", "right", "log-loss", "ECE", "tempered", "seconds")
    for name, one in diagnostics.items():
        calibration = one.get("calibration") or {}
        table.add_row(
            Text(printable(name)),
            _cell(one.get("loo_accuracy"), ".1%").replace("%", " %"),
            *(_cell(v, ".3f") for v in (one.get("loo_log_loss"), *map(calibration.get, ("ece_before", "ece_after")))),
            _cell(one["seconds"], ".1f"),
        )
    return table


def _cell(value: float | None, form: str) -> str:
    return NONE if value is None else format(value, form)


def methods_table(comparison: Comparison, runs: Sequence[Diagnostics]) -> Table:
    """All systems on the test clips, the best first."""
    title = f"{printable(comparison.task)}: {metric_title(comparison.headline)}, in percent"
    columns = ("system", "test", "95 % interval", "left out", "labels used", "fit, s", "trained")
    table = titled_table(title, basis(comparison), *columns)
    for row in method_rows(comparison, runs):
        bold = "bold" if row["system"] == "auto" else ""
        table.add_row(
            Text(printable(row["system"]), style=bold),
            Text(points(row["estimate"].value), style=bold),
            interval(row["estimate"]),
            points(row["left_out"]),
            *(_cell(row[key], form) for key, form in (("labels", ","), ("seconds", ".1f"), ("trainable", ","))),
        )
    return table


def details_table(comparison: Comparison, runs: Sequence[Diagnostics]) -> Table:
    """Beside it: calibration before and after the temperature, and what the second modality spoils."""
    title = "the same clips: calibration, and what the second modality spoils"
    table = titled_table(title, CONFUSION, "system", "ECE", "tempered", *MUS)
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


@dataclass(frozen=True)
class Listing:
    """A plain table: what goes with the figures of a page, and on the terminal."""

    title: str
    head: tuple[str, ...]
    rows: list[tuple[str, ...]]
    note: str = ""

    def table(self, most: int = 20) -> Table:
        """For the terminal, its first rows."""
        more = f"{len(self.rows) - most:,} more are in the files. " if len(self.rows) > most else ""
        table = titled_table(printable(self.title), more + self.note)
        for name in self.head:
            table.add_column(printable(name), overflow="fold")
        for row in self.rows[:most]:
            table.add_row(*(Text(printable(cell)) for cell in row))
        return table


def differences_listing(comparison: Comparison) -> Listing:
    """The difference of every pair of systems by the headline, in points."""
    rows = [
        (f"{one.system} − {one.reference}", signed(one.estimate.value), interval(one.estimate), verdict(one)[0])
        for one in comparison.differences
        if one.metric == comparison.headline and one.estimate.value is not None
    ]
    head = ("difference", "points", "95 % interval", "verdict")
    return Listing("differences, paired on the same clips", head, rows, "unclear: the interval includes zero.")


def wins_listing(tables: Sequence[tuple[str, Comparison, Any]]) -> Listing:
    """Where each system is best, and where it is not clearly worse than the best: by the headline of each table."""
    best: dict[str, list[str]] = {}
    level: dict[str, list[str]] = {}
    for title, table, _ in tables:
        values = {name: table.cells[name][table.headline].value or 0.0 for name in table.systems}
        top = max(values, key=values.__getitem__)
        for name, value in values.items():
            best.setdefault(name, [])
            level.setdefault(name, [])
            if value == values[top]:
                best[name].append(title)
            elif not table.difference(name, top).clear:
                level[name].append(title)
    order = sorted(best, key=lambda name: (-len(best[name]), -len(level[name])))
    rows = [(name, ", ".join(best[name]) or NONE, ", ".join(level[name]) or NONE) for name in order]
    note = "Not clearly worse: the 95 % interval of the paired difference includes zero."
    return Listing("where each wins", ("system", "best", "not clearly worse than the best"), rows, note)


def write_methods_page(
    path: Path,
    tables: Sequence[tuple[str, Comparison, Sequence[Diagnostics]]],
    *,
    title: str,
    command: str,
    shots: Sequence[int] = (),
    listings: Sequence[Listing] = (),
    notes: Sequence[str] = (),
    chart: tuple[Markup, Sequence[str]] | None = None,
) -> None:
    """Write the page.

    Each of `tables` is (title, comparison over seeds, diagnostics a seed); where they are of one task at several
    `shots`, a chart over these is drawn. `notes` stand above, a paragraph each, `listings` below.
    A `chart` of the caller's own comes with the names of its lines.
    """
    over_shots = _lines(tables, shots) if len(shots) > 1 and chart is None else []
    if over_shots:
        title_of_chart = f"{metric_title(tables[0][1].headline)} over shots"
        chart = line_chart(title_of_chart, over_shots, x_name="shots", shares=True), [one.name for one in over_shots]
    page = render(
        "methods.html.j2",
        title=title,
        command=command,
        chart=chart[0] if chart else "",
        drawn=chart[1] if chart else (),
        over_shots=bool(over_shots),
        tones=TONES,
        tables=[
            {"title": name, "rows": method_rows(table, runs), "basis": basis(table), "table": table, "runs": runs}
            for name, table, runs in tables
        ],
        listings=listings,
        notes=notes,
        reject_text=reject_text,
        confusion=CONFUSION,
        mus=MUS,
    )
    write_text(path, page)


def _lines(tables: Sequence[tuple[str, Comparison, Sequence[Diagnostics]]], shots: Sequence[int]) -> list[Series]:
    """A line a system over shots: `auto`, zero-shot, and the best of the others, as many as there are colours."""
    lines = {}
    for system in dict.fromkeys(name for _, table, _ in tables for name in table.systems):
        lines[system] = [
            (float(k), value)
            for k, (_, table, _) in zip(shots, tables, strict=True)
            if system in table.systems and (value := table.cells[system][table.headline].value) is not None
        ]
    first = [name for name in ("auto", "zero-shot") if lines.get(name)]
    others = [name for name in lines if lines[name] and name not in first and lines[name] != lines.get("auto")]
    others.sort(key=lambda name: -fmean(value for _, value in lines[name]))
    return [Series(name, lines[name]) for name in (*first, *others[: TONES - len(first)])]


COMPARISON_COLUMNS = ("system", "reference", "metric", "value", "low", "high", "interval", "n")
"""Columns of :func:`comparison_csv`."""

CLASS_COLUMNS = ("class", "support", "answered", "precision", "recall", "f1", "average_precision")
"""Columns of :func:`classes_csv`."""


def comparison_table(comparison: Comparison) -> Table:
    """The systems side by side, in percent with intervals, and how far the last is from the one before it.

    Metrics are rows: there are more of them than of systems, and a terminal is narrow. A clear difference is coloured
    and marked with ``*``.
    """
    main, reference = main_systems(comparison)
    caption = Text(f"{basis(comparison)} *: the interval of the difference excludes zero.")
    table = titled_table(f"{printable(comparison.task)}, in percent", caption)
    # Where it is narrow, the titles are folded and the figures stay whole.
    table.add_column("", overflow="fold")
    for system in comparison.systems:
        table.add_column(printable(system), justify="right", no_wrap=True, style="bold" if system == main else "")
    if reference is not None:
        table.add_column(f"{printable(main)} -\n{printable(reference)}", justify="right", no_wrap=True)
    for metric in comparison.metrics:
        cells = [_figure(comparison.cells[system][metric]) for system in comparison.systems]
        if reference is not None:
            cells.append(_difference(comparison.difference(main, reference, metric)))
        style = "bold" if metric == comparison.headline else ""
        table.add_row(Text(printable(metric_title(metric)), style=style), *cells)
    return table


def titled_table(title: str, caption: str | Text | None, *columns: str) -> Table:
    """A table with a line below its head; the first of the columns holds names, the others figures."""
    table = Table(title=title, caption=caption or None, box=SIMPLE_HEAD, pad_edge=False)
    table.title_justify = table.caption_justify = "left"
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left")
    return table


def components_table(components: Sequence[Component]) -> Table:
    """Parameters and operations of the parts of a model; the part called ``all`` below a line."""
    table = Table()
    for place, title in enumerate(("part", "trainable", "parameters", "GFLOPs for 10 s")):
        table.add_column(title, justify="right" if place else "left")
    for part in components:
        if part.name == "all":
            table.add_section()
        table.add_row(
            Text(printable(part.name)),
            f"{part.trainable:,}",
            f"{part.total:,}",
            "-" if part.flops is None else f"{part.flops / 1e9:,.1f}",
        )
    return table


def comparison_markdown(comparison: Comparison) -> str:
    """The comparison as a Markdown table: a row a system, a column a metric, in percent with intervals."""
    titles = [_markdown(metric_title(metric)) for metric in comparison.metrics]
    lines = [
        f"| system | {' | '.join(titles)} |",
        f"|---|{'---:|' * len(titles)}",
    ]
    for system in comparison.systems:
        row = comparison.cells[system]
        lines.append(
            _row(
                system, (_bracketed(points(row[metric].value), interval(row[metric])) for metric in comparison.metrics)
            )
        )
    main, reference = main_systems(comparison)
    if reference is not None:
        differences = [comparison.difference(main, reference, metric).estimate for metric in comparison.metrics]
        lines.append(_row(f"{main} − {reference}", (_bracketed(*difference(one)) for one in differences)))
    return "\n".join([*lines, "", basis(comparison), ""])


def comparison_csv(comparison: Comparison) -> str:
    """Every figure and every difference as CSV, one a row, as fractions; :data:`COMPARISON_COLUMNS`.

    A difference names its reference; the column is empty for a figure. What is not defined is empty.
    """
    rows = [
        (system, "", metric, *_numbers(comparison.cells[system][metric]))
        for system in comparison.systems
        for metric in comparison.metrics
    ]
    rows += [(one.system, one.reference, one.metric, *_numbers(one.estimate)) for one in comparison.differences]
    return csv_text((COMPARISON_COLUMNS, *rows))


def classes_csv(result: TaskResult) -> str:
    """The per-class table of a system as CSV, as fractions; :data:`CLASS_COLUMNS`. What is not defined is empty."""
    rows = [
        (row.name, row.support, row.answered, row.precision, row.recall, row.f1, row.average_precision)
        for row in result.classes
    ]
    return csv_text((CLASS_COLUMNS, *rows))


def _figure(estimate: Estimate) -> Text:
    cell = Text("-" if estimate.value is None else points(estimate.value))
    if bounds := interval(estimate):
        cell.append(f"\n{_plain(bounds)}", style="dim not bold")
    return cell


def _difference(found: Difference) -> Text:
    value, bounds = map(_plain, difference(found.estimate))
    cell = Text(value)
    if found.clear:
        cell.append("*")
        cell.stylize("green" if verdict(found)[0] == "gain" else "red")
    if bounds:
        cell.append(f"\n{bounds}", style="dim")
    return cell


def _plain(text: str) -> str:
    # Some terminals know ASCII alone.
    return text.replace("−", "-").replace("–", "-")


def _row(name: str, cells: Iterable[str]) -> str:
    return f"| {_markdown(name)} | {' | '.join(cells)} |"


def _markdown(text: str) -> str:
    escaped = printable(text).replace("\\", "\\\\").replace("|", "\\|")
    return escaped.replace("<", "&lt;").replace(">", "&gt;")


def _bracketed(value: str, bounds: str) -> str:
    return f"{value} ({bounds})" if bounds else value


def _numbers(estimate: Estimate) -> tuple[Any, ...]:
    return estimate.value, estimate.low, estimate.high, estimate.interval, estimate.n
