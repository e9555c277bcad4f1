"""Figures of a few-shot run for terminals (rich), for documents (Markdown) and for programs (CSV)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from avfewshot.evaluation.results import Comparison, Difference, Estimate, TaskResult
from avfewshot.io import csv_text
from avfewshot.reports.figures import basis, difference, interval, main_systems, metric_title, points, verdict
from avfewshot.reports.text import printable
from avfewshot.training.record import Component

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
