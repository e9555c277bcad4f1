"""`avfs compare`: few-shot methods side by side, over shots and seeds."""

from __future__ import annotations

import csv
import io
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from avfewshot.cli.fewshot import data_root, load_data
from avfewshot.cli.options import backbone_faults, with_options
from avfewshot.cli.terminal import Interrupts, Notices, debugging, library_messages, say
from avfewshot.config import AUTO, CompareConfig, FewshotConfig, TrainingConfig, resolve
from avfewshot.errors import DataError, raise_faults
from avfewshot.io import csv_cell, write_text

if TYPE_CHECKING:
    from avfewshot.evaluation.results import Comparison

app = typer.Typer(add_completion=False)

HELP = """
Compare few-shot methods on one task, over shots and seeds: one table for each number of shots, a chart over them.

Light methods work on frozen embeddings, which are computed once and kept: after that a cell takes seconds. Those that
are trained through the towers (dgsct, coop, cocoop, maple, clip-lora) take minutes and are named with --methods.

[bold]Examples[/bold]

  avfs compare --task llp_cls --shots 1,2,4,8,16
  avfs compare --data my_clips --shots 1,2,4 --methods auto,lp_plus_plus,coop
  avfs compare --task ave_cls --shots 16 --methods auto,dgsct --name fig4     again, it goes on where it stopped

[bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted.
"""

Table = tuple[str, "Comparison", list[dict[str, Any]]]


@app.command(help=HELP)
@with_options("compare")
def compare(context: typer.Context, **flags: Any) -> None:
    """Options -> config -> load -> run each cell -> write."""
    settings = resolve("compare", flags | ({"task": "folder"} if flags["data"] and not flags["task"] else {}))
    faults = settings.faults
    root = data_root(settings.config, named=settings.source("task") != "default", faults=faults)
    faults += backbone_faults(settings)
    raise_faults(faults)
    config: CompareConfig = settings.config
    config = config.replace(data=config.data.replace(root=root))
    folder = Path(config.runs) / "compare" / (config.name or config.task)
    status = _execute(config, folder, shlex.join(["avfs", *(context.obj or ())]))
    if status:
        raise typer.Exit(status)


def _execute(config: CompareConfig, folder: Path, command: str) -> int:
    with library_messages(Notices(), debug=debugging()), Interrupts() as interrupts:
        from rich.console import Console

        from avfewshot.cli.progress import Display
        from avfewshot.reports.methods import details_table, methods_table

        try:
            with Display() as display:
                tables = _run(config, folder, display, interrupts)
        except KeyboardInterrupt:
            say("Interrupted. The same command goes on where it stopped.")
            return interrupts.status
    _write(config, folder, tables, command)
    console = Console(highlight=False)
    for title, comparison, methods in tables:
        console.print(f"[bold]{title}[/bold]")
        console.print(methods_table(comparison, methods))
        console.print(details_table(comparison, methods))
    say(f"written: {folder / 'compare.html'}")
    say(f"written: {folder / 'compare.csv'}")
    return 0


def _run(config: CompareConfig, folder: Path, display: Any, interrupts: Any) -> list[Table]:
    """Every cell by the few-shot run itself; one that is done is read from the folder."""
    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.evaluation.evaluate import average_comparisons
    from avfewshot.inference.devices import resolve_device, resolve_precision
    from avfewshot.prompts import load_templates
    from avfewshot.training.fewshot import FewShot

    display.begin("reading annotations, looking for clips", 0)
    model, also = config.model, tuple(name for name in config.methods if name != AUTO)
    training = TrainingConfig(task=config.task, seeds=config.seeds, tune=False)
    training = training.replace(precision=resolve_precision(training.precision, resolve_device(model.device)))
    dataset = load_data(FewshotConfig(training=training, data=config.data, model=model))
    display.begin(f"loading {model.backbone}", 0)
    backbone = build_backbone(
        model.backbone,
        weights=model.weights,
        clip_weights=model.clip_weights,
        clap_weights=model.clap_weights,
        roberta=model.roberta,
    )
    templates = model.templates or backbone.templates
    tables: list[Table] = []
    for shots in config.shots:
        cell = FewShot(
            dataset,
            training.replace(shots=shots),
            backbone,
            load_templates(templates),
            str(templates),
            resolve_device(model.device),
            folder / f"{shots}-shot",
            frame_backend=model.frame_backend,
            observer=display,
            put_off=interrupts.put_off,
            also=also,
        )
        results = [cell.run(seed) for seed in config.seeds]
        compared = [result.comparison for result in results if result.comparison is not None]
        if not compared:
            hint = "Give a test split, or more clips a class than --shots."
            raise DataError("There is no test clip to compare methods on.", hint=hint)
        comparison = average_comparisons(compared)
        tables.append((f"{shots} shots", comparison, [result.methods for result in results]))
        _write(config, folder, tables, "")
    return tables


def _write(config: CompareConfig, folder: Path, tables: list[Table], command: str) -> None:
    """CSV, JSON and the page of what is done so far."""
    from avfewshot.reports.methods import MUS, method_rows, write_methods_page

    text, document = io.StringIO(), []
    writer = csv.writer(text, lineterminator="\n")
    columns = ("task", "shots", "system", "metric", "value", "low", "high", "labels_used", "fit_seconds", "trainable")
    writer.writerow((*columns, "ece_before", "ece_after", *MUS))
    for shots, (_, comparison, methods) in zip(config.shots, tables, strict=False):
        rows = []
        for row in method_rows(comparison, methods):
            figure = row["estimate"]
            values = (config.task, shots, row["system"], comparison.headline, figure.value, figure.low, figure.high)
            ece, spoilt = row["ece"] or {}, row["modality_confusion"] or {}
            more = (row["labels"], row["seconds"], row["trainable"], ece.get("before"), ece.get("after"))
            writer.writerow([csv_cell(value) for value in (*values, *more, *map(spoilt.get, MUS))])
            rows.append({**row, "estimate": {"value": figure.value, "low": figure.low, "high": figure.high}})
        document.append({"shots": shots, "headline": comparison.headline, "systems": rows})
    write_text(folder / "compare.csv", text.getvalue())
    write_text(folder / "compare.json", json.dumps({"command": command, "tables": document}, indent=1))
    shots = config.shots[: len(tables)]
    title = f"{config.task}: few-shot methods"
    write_methods_page(folder / "compare.html", tables, title=title, command=command, shots=shots)
