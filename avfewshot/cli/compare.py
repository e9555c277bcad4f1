"""`avfs compare`: few-shot methods side by side, over shots and seeds; or finished runs, clip by clip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.fewshot import data_root, few_shot, load_data
from avfewshot.cli.loading import load_backbone
from avfewshot.cli.options import backbone_faults, with_options
from avfewshot.cli.runs import command_line, session
from avfewshot.cli.terminal import say
from avfewshot.config import AUTO, TUNED_METHODS, CompareConfig, FewshotConfig, TrainingConfig, resolve
from avfewshot.errors import DataError, UsageError, collect, raise_faults
from avfewshot.io import csv_text, user_path, write_text

if TYPE_CHECKING:
    from avfewshot.evaluation.finished import FinishedRun
    from avfewshot.evaluation.results import Comparison, Estimate
    from avfewshot.reports.methods import Listing
    from avfewshot.training.fewshot import SeedResult

app = typer.Typer(add_completion=False)

HELP = """
Compare few-shot methods on one task, over shots and seeds: one table for each number of shots, a chart over them.

Light methods work on frozen embeddings, which are computed once and kept: after that a cell takes seconds. Those that
are trained through the towers take minutes and are named with --methods: the adapters dgsct, lavish and stg_cma, and
coop, cocoop, maple and clip-lora.

[bold]Examples[/bold]

  avfs compare --task llp_cls --shots 1,2,4,8,16
  avfs compare --data my_clips --shots 1,2,4 --methods auto,lp_plus_plus,coop
  avfs compare --task ave_cls --shots 16 --methods auto,dgsct --name fig4     again, it goes on where it stopped
  avfs compare --task ave_cls --shots 1 --protocol mteb                       with the public zero-shot protocol
  avfs compare --task ave_cls --shots 1,4 --audio-context second,clip         is sound in one pass as good here?
  avfs compare --task ave_cls --shots 16 --ablate modules                     DG-SCT without S, C, T (Table 5)
  avfs compare --efficiency --backbone base                                   parameters and GFLOPs, without data
  avfs compare runs/folder/RUN runs/folder/OTHER                              finished runs, paired on their test clips

[bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted.
"""

Table = tuple[str, "Comparison", list[dict[str, Any]]]


@app.command(help=HELP)
@with_options("compare")
def compare(
    context: typer.Context,
    finished: Annotated[
        list[str] | None,
        typer.Argument(metavar="[RUN]...", help="Finished few-shot runs, instead of a task.", show_default=False),
    ] = None,
    **flags: Any,
) -> None:
    """Options -> config -> load -> run each cell -> write."""
    command = command_line(context)
    if finished:
        _compare_finished([user_path(run) for run in finished], flags, command)
        return
    settings = resolve("compare", flags | ({"task": "folder"} if flags["data"] and not flags["task"] else {}))
    faults = settings.faults
    if settings["efficiency"]:
        raise_faults([*faults, *backbone_faults(settings)])
        from avfewshot.cli.efficiency import efficiency_rows, show_efficiency

        config = settings.config
        rows = efficiency_rows(load_backbone(config.model), [name for name in config.methods if name != AUTO])
        show_efficiency(rows, Path(config.runs) / "compare" / (config.name or "efficiency") / "efficiency.csv")
        return
    root = data_root(settings.config, named=settings.source("task") != "default", faults=faults)
    faults += backbone_faults(settings)
    if settings["ablate"]:
        faults += [
            UsageError(
                f"--ablate trains DG-SCT alone: --{key.replace('_', '-')} means nothing there.",
                hint="Leave one of them out.",
            )
            for key in ("methods", "protocol", "audio_context")
            if settings.source(key) != "default"
        ]
    if settings["protocol"] and settings["task"] != "ave_cls":
        faults.append(UsageError("--protocol mteb is AVE by clip.", hint="Add --task ave_cls."))
    raise_faults(faults)
    config = settings.config.replace(data=settings.config.data.replace(root=root))
    name = config.name or (f"{config.task}-{config.ablate}" if config.ablate else config.task)
    folder = Path(config.runs) / "compare" / name
    _execute(config, folder, command)


def _compare_finished(folders: list[Path], flags: dict[str, Any], command: str) -> None:
    """Read runs, compare them on the test clips that they share, write and print."""
    from rich.console import Console

    from avfewshot.evaluation.finished import compare_finished, read_finished
    from avfewshot.reports.methods import Listing, details_table, differences_listing, methods_table, write_methods_page

    faults: list[UsageError] = []
    meaningless = [key for key, value in flags.items() if value not in (None, []) and key not in ("runs", "name")]
    if meaningless:
        faults.append(
            UsageError(f"--{meaningless[0].replace('_', '-')} cannot be given with RUN.", hint="Leave it out.")
        )
    if len({folder.resolve() for folder in folders}) < max(2, len(folders)):
        hint = "avfs compare RUN RUN; for methods on clips: avfs compare --data DIR"
        faults.append(UsageError("Comparing takes two runs or more, each named once.", hint=hint))
    runs = [collect(faults, lambda folder=folder: read_finished(folder)) for folder in dict.fromkeys(folders)]
    settings = resolve("compare", {key: flags[key] for key in ("runs", "name")})
    raise_faults([*faults, *settings.faults])
    finished = [run for run in runs if run is not None]
    if len({run.name for run in finished}) < len(finished):
        finished = [replace(run, name=str(folder)) for run, folder in zip(finished, folders, strict=True)]
    comparison, differing = compare_finished(finished)
    target = Path(settings["runs"]) / "compare" / (settings["name"] or "runs")
    rows = [
        (name, ", ".join(dict.fromkeys(truth)), *(_answers(run, (name, truth)) for run in finished))
        for name, truth in differing
    ]
    seen = max(len(answers) for run in finished for answers in run.seeds.values())
    note = f"{len(differing):,} of the {comparison.num_clips:,} shared test clips"
    note += f"; {seen - comparison.num_clips:,} are not in all runs." if seen > comparison.num_clips else "."
    head = ("clip", "true", *(run.name for run in finished))
    listings = [differences_listing(comparison), Listing("clips that are answered differently well", head, rows, note)]
    diagnostics = [
        {run.name: run.methods[index] for run in finished if index < len(run.methods)}
        for index in range(max(len(run.methods) for run in finished))
    ]
    table = (", ".join(f"{run.name}: {run.system}" for run in finished), comparison, diagnostics)
    write_methods_page(target / "compare.html", [table], title="few-shot runs", command=command, listings=listings)
    document = {"command": command, "clips": comparison.num_clips, **_table_record(comparison, diagnostics)}
    document["differences"] = [
        {"system": d.system, "reference": d.reference, **_figure(d.estimate)} for d in comparison.differences
    ]
    document["differing"] = [dict(zip(head, row, strict=True)) for row in rows]
    write_text(target / "compare.json", json.dumps(document, indent=1))
    write_text(target / "clips.csv", csv_text((head, *rows)))
    console = Console(highlight=False)
    for part in (methods_table(comparison, diagnostics), details_table(comparison, diagnostics)):
        console.print(part)
    for listing in listings:
        console.print(listing.table())
    for name in ("compare.html", "compare.json", "clips.csv"):
        say(f"written: {target / name}")


def _answers(run: FinishedRun, clip: Any) -> str:
    """What a run answered to a clip: the label, or how many seconds were right; of each seed where they differ."""
    said = []
    for seed, answers in run.seeds.items():
        one, length = answers[clip], len(clip[1])
        said.append(one if isinstance(one, str) else f"{run.right(seed, clip) * length:.0f} of {length} seconds")
    return " / ".join(said if len(set(said)) > 1 else said[:1])


def _figure(figure: Estimate) -> dict[str, float | None]:
    return {"value": figure.value, "low": figure.low, "high": figure.high}


def _table_record(comparison: Comparison, methods: list[dict[str, Any]]) -> dict[str, Any]:
    from avfewshot.reports.methods import method_rows

    rows = [{**row, "estimate": _figure(row["estimate"])} for row in method_rows(comparison, methods)]
    return {"headline": comparison.headline, "systems": rows}


def _execute(config: CompareConfig, folder: Path, command: str) -> None:
    from rich.console import Console

    with session(lambda: "Interrupted. The same command goes on where it stopped.") as (display, interrupts):
        from avfewshot.reports.methods import details_table, methods_table

        tables = _run(config, folder, display, interrupts)
    _write(config, folder, tables, command)
    console = Console(highlight=False)
    for title, comparison, methods in tables:
        console.print(f"[bold]{title}[/bold]")
        console.print(methods_table(comparison, methods))
        console.print(details_table(comparison, methods))
    for listing in _listings(config, tables):
        console.print(listing.table())
    say(f"written: {folder / 'compare.html'}")
    say(f"written: {folder / 'compare.csv'}")


def _run(config: CompareConfig, folder: Path, display: Any, interrupts: Any) -> list[Table]:
    """Every cell by the few-shot run itself; one that is done is read from the folder."""
    from avfewshot.cli.ablate import ablation_rows
    from avfewshot.inference.devices import resolve_device, resolve_precision

    display.begin("reading annotations, looking for clips", 0)
    model, also = config.model, tuple(name for name in config.methods if name != AUTO)
    training = config.training.replace(audio_context=config.audio_context[0])
    training = training.replace(precision=resolve_precision(training.precision, resolve_device(model.device)))
    rows = ablation_rows(config.ablate, training) if config.ablate else {}
    dataset = load_data(FewshotConfig(training=training, data=config.data, model=model))
    display.begin(f"loading {model.backbone}", 0)
    make = few_shot(config, dataset, load_backbone(model), display, interrupts)

    def results(training: TrainingConfig, folder: Path, also: tuple[str, ...] = ()) -> list[SeedResult]:
        cell = make(training, folder, also=also, protocol=config.protocol)
        cell.folder = folder.with_name(f"{folder.name}-{cell.fingerprint}")  # what is done there has the same settings
        write_text(cell.folder / "config.yaml", cell.config.to_yaml())
        return [cell.run(seed) for seed in config.seeds]

    tables: list[Table] = []
    several = len(config.audio_context) > 1
    if several and (trained := [name for name in also if name in TUNED_METHODS]):
        display.say(
            f"{', '.join(trained)}: hear single seconds, so there is no row of theirs with --audio-context clip."
        )
    for shots in config.shots:
        title, place, cells = f"{shots} shots", folder / f"{shots}-shot", {}
        for name, changes in rows.items():
            display.say(f"{title}: {name}")
            cells[name] = results(training.replace(shots=shots, **changes), place / name.replace(" ", "-"))
        for context in () if rows else config.audio_context:
            kept = tuple(name for name in also if not (several and context == "clip" and name in TUNED_METHODS))
            cells[context] = results(training.replace(shots=shots, audio_context=context), place, kept)
        if not any(one.comparison for of_cell in cells.values() for one in of_cell):
            hint = "Give a test split, or more clips a class than --shots."
            raise DataError("There is no test clip to compare methods on.", hint=hint)
        tables.append((title, *_join(cells, ablation=bool(rows))))
        _write(config, folder, tables, "")
    return tables


def _join(cells: dict[str, list[SeedResult]], *, ablation: bool) -> tuple[Comparison, list[dict[str, Any]]]:
    """One table of the systems of all cells over seeds, paired on seeds and clips; and what each seed says of them.

    Of an ablation the cells are rows: what each has trained, below zero-shot. Else they are audio contexts.
    """
    from avfewshot.cli.ablate import FROZEN
    from avfewshot.evaluation.evaluate import average_comparisons, join_tables
    from avfewshot.training.fewshot import TRAINED

    def row(system: str, cell: str) -> str | None:
        """What a system of a cell is called; None where it does not stand in the table."""
        if ablation:
            return {FROZEN: FROZEN, TRAINED: cell}.get(system)
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


def _write(config: CompareConfig, folder: Path, tables: list[Table], command: str) -> None:
    """CSV, JSON and the page of what is done so far."""
    from avfewshot.cli.ablate import TITLES, ablation_rows, sweep_chart
    from avfewshot.reports.methods import MUS, method_rows, write_methods_page

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
        document.append({"shots": shots, **_table_record(comparison, methods)})
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
    page = folder / "compare.html"
    write_methods_page(page, tables, title=title, command=command, shots=shots, listings=listings, chart=chart)


def _listings(config: CompareConfig, tables: list[Table]) -> list[Listing]:
    """Below the tables: where each method wins, or how far rows of an ablation are from the whole."""
    from avfewshot.cli.ablate import against_whole_and_none
    from avfewshot.reports.methods import differences_listing, wins_listing

    if not config.ablate:
        return [wins_listing(tables)]
    found = [(title, differences_listing(against_whole_and_none(table))) for title, table, _ in tables]
    return [replace(one, title=f"{title}: {one.title}") for title, one in found]
