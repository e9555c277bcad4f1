"""Systems side by side on the terminal, as Markdown and as CSV."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple
from typing import Any

from rich.table import Table
from rich.text import Text

from avfewshot.evaluation.results import Comparison, Difference, Estimate, TaskResult
from avfewshot.reports.figures import basis, cell, difference, interval, main_systems, metric_title, points, verdict
from avfewshot.reports.listings import figures_table
from avfewshot.text import csv_text, printable

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
    table = figures_table(title=f"{printable(comparison.task)}, in percent", caption=caption)
    # Where it is narrow, the titles are folded and the figures stay whole.
    table.add_column("", overflow="fold")
    for system in comparison.systems:
        table.add_column(printable(system), justify="right", no_wrap=True, style="bold" if system == main else "")
    if reference is not None:
        table.add_column(f"{printable(main)} -\n{printable(reference)}", justify="right", no_wrap=True)
    for metric in comparison.metrics:
        figures = [comparison.cells[system][metric] for system in comparison.systems]
        form = cell if metric == comparison.headline else lambda one, _: points(one.value)
        cells = [_figure(one, form(one, comparison)) for one in figures]
        if reference is not None:
            cells.append(_difference(comparison.difference(main, reference, metric)))
        style = "bold" if metric == comparison.headline else ""
        table.add_row(Text(printable(metric_title(metric)), style=style), *cells)
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
    return csv_text((CLASS_COLUMNS, *map(astuple, result.classes)))


def _figure(estimate: Estimate, value: str) -> Text:
    text = Text("-" if estimate.value is None else value)
    if bounds := interval(estimate):
        text.append(f"\n{_plain(bounds)}", style="dim not bold")
    return text


def _difference(found: Difference) -> Text:
    value, bounds = map(_plain, difference(found.estimate))
    text = Text(value)
    if found.clear:
        text.append("*")
        text.stylize("green" if verdict(found)[0] == "gain" else "red")
    if bounds:
        text.append(f"\n{bounds}", style="dim")
    return text


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
