"""The cells of `avfs compare`, each a few-shot run of some shots, methods and seeds; their tables and files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from markupsafe import Markup

from avfewshot.cli.fewshot_run import few_shot, load_data
from avfewshot.cli.loading import load_backbone, on_device
from avfewshot.config import AUTO, NONE, TUNED_METHODS, CompareConfig, FewshotConfig, TrainingConfig
from avfewshot.errors import DataError
from avfewshot.evaluation.evaluate import average_comparisons, join_tables
from avfewshot.evaluation.evaluator import UNTRAINED
from avfewshot.evaluation.results import Comparison
from avfewshot.io import alone, write_text
from avfewshot.methods.auto import LIGHT
from avfewshot.reports.charts import Series, line_chart
from avfewshot.reports.figures import metric_title
from avfewshot.reports.listings import Listing
from avfewshot.reports.methods import (
    MUS,
    MethodsTable,
    differences_listing,
    method_rows,
    table_record,
    wins_listing,
    write_methods_page,
)
from avfewshot.reports.text import count
from avfewshot.text import csv_text
from avfewshot.training.fewshot import FewShot, SeedResult
from avfewshot.training.outcome import MTEB, TRAINED

_FACTORS = ("alpha", "beta", "gamma")
SWEEP = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)  # values of each factor; the paper's own are among them
FROZEN = "zero-shot"
NO_ADAPTER = "none"  # the paper's "-", which a spreadsheet would read as a formula
TITLES = {
    "modules": "spatial (S), channel (C) and temporal (T) attention",
    "directions": "directions of the exchange",
    "factors": "factors alpha, beta, gamma",
}


def ablation_rows(kind: str, base: TrainingConfig) -> dict[str, dict[str, Any]]:
    """What each row sets otherwise than `base`; the last one is `base` itself."""
    rows: dict[str, dict[str, Any]] = {}
    if kind != "factors":  # projectors alone
        rows[NO_ADAPTER] = {"adapter": NONE}
    if kind == "modules":
        for name in ("C", "S", "SC", "T", "SCT"):
            rows[name] = {"spatial": "S" in name, "channel": "C" in name, "temporal": "T" in name}
    elif kind == "directions":
        rows |= {"A2V": {"a2v": True, "v2a": False}, "V2A": {"a2v": False, "v2a": True}, "both": {}}
    else:
        for factor in _FACTORS:
            values = (value for value in SWEEP if value != getattr(base, factor))
            rows |= {f"{factor} {value:g}": {factor: value} for value in values}
        rows[" ".join(f"{factor} {getattr(base, factor):g}" for factor in _FACTORS)] = {}
    return rows


def sweep_chart(comparison: Comparison, base: TrainingConfig) -> tuple[Markup, list[str]]:
    """A line for each factor over its values, the others as in `base` (Fig. 8); and what the lines are called."""

    def figure(row: str) -> float:
        value = comparison.cells[row][comparison.headline].value
        return float("nan") if value is None else value

    lines = []
    for factor in _FACTORS:
        points = {value: figure(f"{factor} {value:g}") for value in SWEEP if value != getattr(base, factor)}
        points[getattr(base, factor)] = figure(comparison.systems[-1])
        lines.append(Series(factor, sorted(points.items())))
    title = f"{metric_title(comparison.headline)} over factors"
    return line_chart(title, lines, x_name="factor", shares=True, level=(figure(FROZEN), FROZEN)), list(_FACTORS)


def compare_methods(config: CompareConfig, folder: Path, display: Any, interrupts: Any) -> list[MethodsTable]:
    """Every cell by the few-shot run itself; one that is done is read from the folder.

    A :class:`DataError` where there is no test clip.
    """
    display.begin("reading annotations, looking for clips", 0)
    model, also = config.model, tuple(name for name in config.methods if name != AUTO)
    _, training = on_device(model, config.training.replace(audio_context=config.audio_context[0]))
    rows = ablation_rows(config.ablate, training) if config.ablate else {}
    dataset = load_data(FewshotConfig(training=training, data=config.data, model=model))
    display.begin(f"loading {model.backbone}", 0)
    make = few_shot(config, dataset, load_backbone(model), display, interrupts)

    def results(training: TrainingConfig, folder: Path, also: tuple[str, ...] = ()) -> list[SeedResult]:
        cell = make(training, folder, also=also, protocol=config.protocol)
        cell.folder = folder.with_name(f"{folder.name}-{cell.fingerprint}")  # what is done there has the same settings
        write_text(cell.folder / "config.yaml", cell.config.to_yaml())
        return [run(cell, seed) for seed in config.seeds]

    def run(cell: FewShot, seed: int) -> SeedResult:
        place = cell.folder / f"seed-{seed}"
        place.mkdir(exist_ok=True)
        with alone(place, "another process works on it"):
            return cell.run(seed)

    tables: list[MethodsTable] = []
    several = len(config.audio_context) > 1
    if several and (trained := [name for name in also if name in TUNED_METHODS]):
        rest = "hear single seconds, so there is no row of theirs with --audio-context clip."
        display.say(f"{', '.join(trained)}: {rest}")
    for shots in config.shots:
        title, place, cells = count(shots, "shot"), folder / f"{shots}-shot", {}
        for name, changes in rows.items():
            display.say(f"{title}: {name}")
            cells[name] = results(training.replace(shots=shots, **changes), place / name.replace(" ", "-"))
        for context in () if rows else config.audio_context:
            display.say(f"{title}, --audio-context {context}" if several else title)
            kept = tuple(name for name in also if not (several and context == "clip" and name in TUNED_METHODS))
            cells[context] = results(training.replace(shots=shots, audio_context=context), place, kept)
        if not any(one.comparison for of_cell in cells.values() for one in of_cell):
            hint = "Give a test split, or more clips a class than --shots."
            raise DataError("There is no test clip to compare methods on.", hint=hint)
        tables.append((title, *_join(cells, config)))
        write_tables(config, folder, tables, "")
    return tables


def _join(cells: dict[str, list[SeedResult]], config: CompareConfig) -> tuple[Comparison, list[dict[str, Any]]]:
    """One table of the systems of all cells over seeds, paired on seeds and clips; and what each seed says of them."""
    asked = {*UNTRAINED, AUTO, *config.methods, *LIGHT} - {"zero_shot"}  # the light ones: which `auto` has tried
    asked |= {MTEB} if config.protocol else set()

    def row(system: str, cell: str) -> str | None:
        if config.ablate:  # what each cell has trained, below zero-shot; else cells are audio contexts
            return {FROZEN: FROZEN, TRAINED: cell}.get(system)
        system = "dgsct" if system == TRAINED else system
        if system not in asked:  # a cell may hold what an earlier command has asked for
            return None
        return f"{system} ({cell})" if len(cells) > 1 else system

    tests, methods = [], []
    for of_seed in zip(*cells.values(), strict=True):
        found = [(cell, one) for cell, one in zip(cells, of_seed, strict=True) if one.comparison]
        named = [(row(s, cell), (one.comparison, s)) for cell, one in found for s in one.comparison.systems]
        if found:
            tests.append(join_tables({name: table for name, table in named if name}))
        told = [(row(m, cell), about) for cell, one in found for m, about in one.methods.items()]
        methods.append({name: about for name, about in told if name})
    return average_comparisons(tests), methods


def write_tables(config: CompareConfig, folder: Path, tables: list[MethodsTable], command: str) -> list[Listing]:
    """CSV, JSON and the page of what is done so far; gives what goes below the tables."""
    document: list[dict[str, Any]] = []
    columns = ("task", "shots", "system", "metric", "value", "low", "high", "labels_used", "fit_seconds", "trainable")
    lines: list[tuple[Any, ...]] = [(*columns, "ece_before", "ece_after", *MUS)]
    for shots, (_, comparison, methods) in zip(config.shots, tables, strict=False):
        for row in method_rows(comparison, methods):
            figure = row["estimate"]
            values = (config.task, shots, row["system"], comparison.headline, figure.value, figure.low, figure.high)
            ece, spoilt = row["ece"] or {}, row["modality_confusion"] or {}
            more = (row["labels"], row["seconds"], row["trainable"], ece.get("before"), ece.get("after"))
            lines.append((*values, *more, *map(spoilt.get, MUS)))
        document.append({"shots": shots, **table_record(comparison, methods)})
    write_text(folder / "compare.csv", csv_text(lines))
    listings = _listings(config, tables)
    record: dict[str, Any] = {"command": command, "tables": document}
    chart, shots, title = None, config.shots[: len(tables)], f"{config.task}: few-shot methods"
    if config.ablate:
        title, shots = f"{config.task}: DG-SCT, {TITLES[config.ablate]}", ()
        record["ablation"] = {"kind": config.ablate, "rows": ablation_rows(config.ablate, config.training)}
        if config.ablate == "factors":
            chart = sweep_chart(tables[-1][1], config.training)
    else:
        wins = listings[0]
        record["wins"] = [dict(zip(wins.head, row, strict=True)) for row in wins.rows]
    write_text(folder / "compare.json", json.dumps(record, indent=1))
    options: dict[str, Any] = {"title": title, "command": command, "listings": listings, "chart": chart}
    write_methods_page(folder / "compare.html", tables, seeds=config.seeds, shots=shots, **options)
    return listings


def _listings(config: CompareConfig, tables: list[MethodsTable]) -> list[Listing]:
    """Below the tables: where each method wins, or how far rows of an ablation are from the whole."""
    if not config.ablate:
        return [wins_listing(tables)]
    listings = []
    for title, table, _ in tables:
        *parts, whole = (name for name in table.systems if name != FROZEN)
        pairs = [table.difference(name, whole) for name in parts]
        if NO_ADAPTER in parts:
            pairs += [table.difference(name, NO_ADAPTER) for name in parts if name != NO_ADAPTER]
        listing = differences_listing(table.model_copy(update={"differences": tuple(pairs)}))
        listings.append(replace(listing, title=f"{title}: {listing.title}"))
    return listings
