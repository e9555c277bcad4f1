"""Supervised runs on the terminal, as CSV and as one self-contained page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from avfewshot.io import write_text
from avfewshot.reports.charts import TONES, Series, drawing, heat_source, line_chart, scatter
from avfewshot.reports.html import render
from avfewshot.reports.listings import Listing
from avfewshot.text import csv_text

if TYPE_CHECKING:
    from avfewshot.supervised.figures import Embedded, Look, Parsed


def figures(document: Mapping[str, Any], *, brief: bool = False) -> Listing:
    """Systems by metric, in percent; `brief` gives intervals of the headline alone."""
    systems, headline = document["systems"], document["headline"]
    metrics = list(next(iter(systems.values())))
    metrics.sort(key=lambda metric: metric != headline)
    rows = [
        (name, *(_shown(estimates[metric], not brief or metric == headline) for metric in metrics))
        for name, estimates in systems.items()
    ]
    seeds = len(document.get("seeds", ()))
    over = f"clips and {seeds} seeds" if seeds > 1 else "clips"
    title = f"{document['title']}: {document['clips']:,} {document['split']} clips, in percent"
    note = f"Brackets: 95 % intervals over {over}, where a metric is a mean over clips."
    return Listing(title, ("system", *(metric.replace("_", " ") for metric in metrics)), rows, note)


def _shown(estimate: Mapping[str, Any], bounds: bool) -> str:
    text = f"{estimate['mean']:.1f}"
    return text if estimate["low"] is None or not bounds else f"{text} [{estimate['low']:.1f}, {estimate['high']:.1f}]"


def print_results(document: Mapping[str, Any]) -> None:
    """Print the figures; a metric a line where one a column does not fit."""
    from rich.console import Console

    console, listing = Console(highlight=False), figures(document, brief=True)
    wide = console.measure(listing.table(), options=console.options.update(width=1000)).maximum > console.width
    console.print((listing.turned() if wide else listing).table())


def write_table(path: Path, document: Mapping[str, Any]) -> None:
    """Write ``results.csv``: a line a system and metric."""
    lines: list[tuple[Any, ...]] = [("system", "metric", "percent", "low", "high")]
    for system, metrics in document["systems"].items():
        for metric, one in metrics.items():
            numbers = (None if value is None else round(value, 4) for value in (one["mean"], one["low"], one["high"]))
            lines.append((system, metric, *numbers))
    write_text(path, csv_text(lines))


def write_report(
    path: Path,
    document: Mapping[str, Any],
    settings: Sequence[tuple[str, str, str]],
    pictures: Sequence[tuple[str, bytes]] = (),
) -> None:
    """Write the page of a ``results.json``; `settings` are (name, value, source), `pictures` (caption, PNG)."""
    charts = []
    for key in ("loss", document["headline"]):
        logs = {f"seed {one['seed']}": one["log"] for one in document["seeds"]}
        lines = [Series(seed, [(e["epoch"], e[key]) for e in log if key in e]) for seed, log in logs.items()]
        charts.append((key.replace("_", " "), line_chart(key, lines, x_name="epoch")))
    sources = [Markup("data:image/png;base64,") + base64.b64encode(png).decode("ascii") for _, png in pictures]
    page = render(
        "supervised.html.j2",
        title=f"{document['task']}: {document['head']}",
        document=document,
        figures=figures(document),
        charts=charts,
        settings=settings,
        pictures=[(caption, source) for (caption, _), source in zip(pictures, sources, strict=True)],
    )
    write_text(path, page)


def write_figures(
    path: Path,
    document: Mapping[str, Any],
    adapter: str,
    embedded: Sequence[Embedded],
    looks: Sequence[Look],
    parsed: Sequence[Parsed],
) -> None:
    """Write the page of what the papers draw; `document` as of ``results.json``, `adapter` the kind of its adapters."""
    page = render(
        "supervised_figures.html.j2",
        title=f"{document['task']}: {document['head']}",
        split=document["split"],
        tones=TONES,
        weighed="the spatial attention (Eq. 4)" if adapter == "dgsct" else "what they add, as a share of what is there",
        systems=parsed[0].systems if parsed else (),
        embedded=[(one, scatter(one.title, one.points.tolist(), one.classes)) for one in embedded],
        looks=[(clip, list(map(_looked, rows))) for clip, rows in groupby(looks, key=lambda row: row.clip)],
        parsed=[
            (one.clip, drawing("event_chart", f"When in {one.clip}", one.seconds, one.streams, TONES)) for one in parsed
        ],
    )
    write_text(path, page)


def _looked(row: Look) -> dict[str, Any]:
    """A second with its maps as half-transparent pictures."""
    return vars(row) | {name: heat and heat[0] for name in ("seen", "heard") for heat in [heat_source(vars(row)[name])]}


def told(line: Mapping[str, Any]) -> str:
    """A prediction in one line, for people."""
    parts = []
    for name, value in line.items():
        if name in ("path", "start", "end", "masks"):
            continue
        if name == "seconds":
            spans = [(label, list(group)) for label, group in groupby(enumerate(value), key=lambda item: item[1])]
            parts.append(", ".join(f"{g[0][0]}-{g[-1][0] + 1} {label}" for label, g in spans))
        elif isinstance(value, list) and all(isinstance(item, Mapping) for item in value):
            events = ", ".join(f"{item['start']}-{item['end']} {item['label']}" for item in value)
            parts.append(f"{name}: {events or 'nothing'}")
        else:
            parts.append(f"{name}: {value}")
    return "; ".join(parts)
