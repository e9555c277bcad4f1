"""`avfs compare`: few-shot methods side by side, over shots and seeds; or finished runs, clip by clip."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.fewshot import clips_root, few_shot, load_data
from avfewshot.cli.loading import load_backbone, on_device
from avfewshot.cli.options import argument, backbone_faults, with_options
from avfewshot.cli.runs import command_line, session
from avfewshot.cli.terminal import say
from avfewshot.config import (
    ADAPTER_METHODS,
    AUTO,
    NONE,
    TUNED_METHODS,
    CompareConfig,
    FewshotConfig,
    TrainerConfig,
    TrainingConfig,
    resolve,
)
from avfewshot.errors import DataError, UsageError, collect, raise_faults
from avfewshot.io import csv_text, user_path, write_text

if TYPE_CHECKING:
    from markupsafe import Markup

    from avfewshot.evaluation.finished import FinishedRun
    from avfewshot.evaluation.results import Comparison, Estimate
    from avfewshot.reports.methods import Listing
    from avfewshot.training.fewshot import SeedResult


Table = tuple[str, "Comparison", list[dict[str, Any]]]


@with_options("compare")
def compare(
    context: typer.Context,
    finished: Annotated[list[str] | None, argument("[RUN]...", "Finished few-shot runs, instead of a task.")] = None,
    **flags: Any,
) -> None:
    """Compare few-shot methods on one task, over shots and seeds: one table for each number of shots, a chart over
    them.

    Light methods work on frozen embeddings, which are computed once and kept: after that a cell takes seconds. Those
    that are trained through the towers take minutes and are named with --methods: the adapters dgsct, lavish and
    stg_cma, and coop, cocoop, maple and clip-lora.

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
    """  # noqa: D205, E501
    command = command_line(context)
    if finished:
        _compare_finished([user_path(run) for run in finished], flags, command)
        return
    settings = resolve("compare", flags | ({"task": "folder"} if flags["data"] and not flags["task"] else {}))
    faults = settings.faults
    if settings["efficiency"]:
        raise_faults([*faults, *backbone_faults(settings)])
        _compare_efficiency(settings.config)
        return
    root = clips_root(settings.config, named=settings.source("task") != "default", faults=faults)
    faults += backbone_faults(settings)
    if settings["ablate"]:
        for option in ("methods", "protocol", "audio-context"):
            if settings.source(option.replace("-", "_")) != "default":
                what = f"--ablate trains DG-SCT alone: --{option} means nothing there."
                faults.append(UsageError(what, hint="Leave one of them out."))
    if settings["protocol"] and settings["task"] != "ave_cls":
        faults.append(UsageError("--protocol mteb is AVE by clip.", hint="Add --task ave_cls."))
    raise_faults(faults)
    config = settings.config.replace(data=settings.config.data.replace(root=root))
    name = config.name or (f"{config.task}-{config.ablate}" if config.ablate else config.task)
    folder = Path(config.runs) / "compare" / name
    with session(lambda: "Interrupted. The same command goes on where it stopped.") as (display, interrupts):
        tables = _run(config, folder, display, interrupts)
    _write(config, folder, tables, command)
    _print(tables, _listings(config, tables))
    for path in (folder / "compare.html", folder / "compare.csv"):
        say(f"written: {path}")


def _print(tables: list[Table], listings: list[Listing]) -> None:
    from rich.console import Console

    from avfewshot.reports.methods import details_table, methods_table

    console = Console(highlight=False)
    for title, comparison, methods in tables:
        if title:
            console.print(f"[bold]{title}[/bold]")
        console.print(methods_table(comparison, methods))
        console.print(details_table(comparison, methods))
    for listing in listings:
        console.print(listing.table())


def _compare_finished(folders: list[Path], flags: dict[str, Any], command: str) -> None:
    """Read runs, compare them on the test clips that they share, write and print."""
    from avfewshot.evaluation.finished import compare_finished, read_finished
    from avfewshot.reports.methods import Listing, differences_listing, write_methods_page

    faults: list[UsageError] = []
    meaningless = [key for key, value in flags.items() if value not in (None, []) and key not in ("runs", "name")]
    if meaningless:
        what = f"--{meaningless[0].replace('_', '-')} cannot be given with RUN."
        faults.append(UsageError(what, hint="Leave it out."))
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
    _print([("", comparison, diagnostics)], listings)
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


def _run(config: CompareConfig, folder: Path, display: Any, interrupts: Any) -> list[Table]:
    """Every cell by the few-shot run itself; one that is done is read from the folder."""
    display.begin("reading annotations, looking for clips", 0)
    model, also = config.model, tuple(name for name in config.methods if name != AUTO)
    _, training = on_device(model, config.training.replace(audio_context=config.audio_context[0]))
    rows = _ablation_rows(config.ablate, training) if config.ablate else {}
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
        rest = "hear single seconds, so there is no row of theirs with --audio-context clip."
        display.say(f"{', '.join(trained)}: {rest}")
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
    from avfewshot.evaluation.evaluate import average_comparisons, join_tables
    from avfewshot.training.fewshot import TRAINED

    def row(system: str, cell: str) -> str | None:
        """What a system of a cell is called; None where it does not stand in the table."""
        if ablation:
            return {_FROZEN: _FROZEN, TRAINED: cell}.get(system)
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
        title, shots = f"{config.task}: DG-SCT, {_TITLES[config.ablate]}", ()
        record["ablation"] = {"kind": config.ablate, "rows": _ablation_rows(config.ablate, config.training)}
        if config.ablate == "factors":
            chart = _sweep_chart(tables[-1][1], config.training)
    else:
        wins = listings[0]
        record["wins"] = [dict(zip(wins.head, row, strict=True)) for row in wins.rows]
    write_text(folder / "compare.json", json.dumps(record, indent=1))
    page = folder / "compare.html"
    write_methods_page(page, tables, title=title, command=command, shots=shots, listings=listings, chart=chart)


def _listings(config: CompareConfig, tables: list[Table]) -> list[Listing]:
    """Below the tables: where each method wins, or how far rows of an ablation are from the whole."""
    from avfewshot.reports.methods import differences_listing, wins_listing

    if not config.ablate:
        return [wins_listing(tables)]
    listings = []
    for title, table, _ in tables:
        *parts, whole = (name for name in table.systems if name != _FROZEN)
        pairs = [table.difference(name, whole) for name in parts]
        if _NO_ADAPTER in parts:
            pairs += [table.difference(name, _NO_ADAPTER) for name in parts if name != _NO_ADAPTER]
        listing = differences_listing(table.model_copy(update={"differences": tuple(pairs)}))
        listings.append(replace(listing, title=f"{title}: {listing.title}"))
    return listings


# Ablations: DG-SCT trained with parts of it, a row each (Tables 5, 8, 9 and Fig. 8 of the paper).

_FACTORS = ("alpha", "beta", "gamma")
SWEEP = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)  # values of each factor; the paper's own are among them
_FROZEN = "zero-shot"
_NO_ADAPTER = "none"  # the paper's "-", which a spreadsheet would read as a formula
_TITLES = {
    "modules": "spatial (S), channel (C) and temporal (T) attention",
    "directions": "directions of the exchange",
    "factors": "factors alpha, beta, gamma",
}


def _ablation_rows(kind: str, base: TrainingConfig) -> dict[str, dict[str, Any]]:
    """What each row sets otherwise than `base`; the last one is `base` itself."""
    rows: dict[str, dict[str, Any]] = {}
    if kind != "factors":  # projectors alone
        rows[_NO_ADAPTER] = {"adapter": NONE}
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


def _sweep_chart(comparison: Comparison, base: TrainingConfig) -> tuple[Markup, list[str]]:
    """A line for each factor over its values, the others as in `base` (Fig. 8); and what the lines are called."""
    from avfewshot.reports.charts import Series, line_chart
    from avfewshot.reports.figures import metric_title

    def figure(row: str) -> float:
        value = comparison.cells[row][comparison.headline].value
        return float("nan") if value is None else value

    lines = []
    for factor in _FACTORS:
        points = {value: figure(f"{factor} {value:g}") for value in SWEEP if value != getattr(base, factor)}
        points[getattr(base, factor)] = figure(comparison.systems[-1])
        lines.append(Series(factor, sorted(points.items())))
    title = f"{metric_title(comparison.headline)} over factors"
    return line_chart(title, lines, x_name="factor", shares=True, level=(figure(_FROZEN), _FROZEN)), list(_FACTORS)


# Efficiency: trainable and total parameters and computation of the systems (Table 6 of the paper).

_SECONDS = 10
_PUBLISHED = (  # system, trainable and total parameters, GFLOPs of ten seconds; for localisation on AVE
    # Table 6 prints "43.6 of 461.3 M" and "30.6 of 374.9 M": the first figures are percentages of the second, as the
    # script prints them that made them; the two rows above them are millions.
    ("CMBS (VGG-19, VGGish)", 14_400_000, 216_700_000, 40.9),
    ("LAVISH (Swin-V2-L)", 10_036_061, 238_800_000, 406.7),
    ("LAVISH* (Swin-V2-L, HTS-AT)", 114_770_000, 374_900_000, 416.1),
    ("DG-SCT (Swin-V2-L, HTS-AT)", 201_160_647, 461_300_000, 460.8),
)


def _compare_efficiency(config: CompareConfig) -> None:
    """Systems on this backbone (on the CPU), measured, then those that are published; printed, and as CSV."""
    import torch
    from rich.console import Console
    from rich.table import Column, Table

    from avfewshot.media.clip import SAMPLE_RATE
    from avfewshot.models.audio_visual import AudioVisualModel
    from avfewshot.models.build import build_model
    from avfewshot.models.complexity import count_flops, count_parameters, flops_of
    from avfewshot.tuning.methods import TUNED

    backbone, methods = load_backbone(config.model), [name for name in config.methods if name != AUTO]
    size = int(backbone.visual.image_size)
    frames = torch.zeros(1, _SECONDS, 3, size, size, dtype=torch.uint8)
    audio = torch.zeros(1, _SECONDS, SAMPLE_RATE)
    plain = AudioVisualModel(backbone).requires_grad_(False)
    total = count_parameters(plain, backbone)[-1].total
    cost = count_flops(plain, frames, audio)["all"]
    rows: list[tuple[Any, ...]] = [("frozen towers and text branches", "measured", 0, total, 0.0, cost / 1e9)]
    for name in methods or (*ADAPTER_METHODS, *TUNED):
        if name in ADAPTER_METHODS:
            model = build_model(backbone, TrainerConfig(adapter=name, projector=NONE))
            own = sum(parameter.numel() for parameter in model.adapters.parameters()) if model.adapters else 0
            flops: float | None = count_flops(model.eval(), frames, audio)["all"] / 1e9
        elif name in TUNED:
            method = TUNED[name](backbone, ("a thing", "nothing"))
            own = method.num_trainable
            flops = cost / 1e9  # prompts are encoded once for all clips
            if name == "cocoop":
                flops = None  # it encodes every class for every clip
            elif method.uses_pixels:
                walks = partial(method.embed, "visual", frames[0]), partial(method.embed, "audio", audio[0])
                flops = sum(map(flops_of, walks)) / 1e9
        else:
            continue
        rows.append((name, "measured", own, total + own, 100 * own / (total + own), flops))
    rows += [(name, "published", own, all_, 100 * own / all_, flops) for name, own, all_, flops in _PUBLISHED]
    note = (
        "CoCoOp computes every class for every clip. Projectors and temperatures are left out. Table 6 prints 43.6 and "
        "30.6 for the last two: these are percentages."
    )
    figures = (Column(name, justify="right") for name in ("trainable, M", "total, M", "share", "GFLOPs"))
    table = Table("system", "", *figures, title=f"Parameters, and computation of {_SECONDS} seconds", caption=note)
    for name, source, own, all_, percent, flops in rows:
        shown = "–" if flops is None else f"{flops:,.1f}"
        table.add_row(name, source, f"{own / 1e6:,.2f}", f"{all_ / 1e6:,.1f}", f"{percent:.1f} %", shown)
    Console(highlight=False).print(table)
    path = Path(config.runs) / "compare" / (config.name or "efficiency") / "efficiency.csv"
    write_text(path, csv_text((("system", "source", "trainable", "total", "percent", "gflops"), *rows)))
    say(f"written: {path}")
