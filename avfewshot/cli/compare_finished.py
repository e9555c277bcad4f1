"""`avfs compare RUN RUN`: finished few-shot runs, clip by clip."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from avfewshot.cli.runs import folder_faults
from avfewshot.cli.terminal import say
from avfewshot.config import resolve
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.evaluation.finished import FinishedRun, compare_finished, read_finished
from avfewshot.io import write_text
from avfewshot.reports.listings import Listing
from avfewshot.reports.methods import (
    differences_listing,
    figure_record,
    print_methods,
    table_record,
    write_methods_page,
)
from avfewshot.text import csv_text


def compare_finished_runs(folders: list[Path], flags: dict[str, Any], command: str) -> None:
    """Read runs, compare them on the test clips that they share, write and print."""
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
    raise_faults([*faults, *settings.faults, *folder_faults(settings)])
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
    if seen > comparison.num_clips:
        note += f"; {seen - comparison.num_clips:,} are not in all runs, and ECE and mu are of all test clips of a run"
    head = ("clip", "true", *(run.name for run in finished))
    listings = [
        differences_listing(comparison),
        Listing("clips that are answered differently well", head, rows, f"{note}."),
    ]
    told = [dict(zip(run.seeds, run.methods, strict=True)) for run in finished]
    seeds = sorted(set().union(*told))
    diagnostics = [
        {run.name: about[seed] for run, about in zip(finished, told, strict=True) if seed in about} for seed in seeds
    ]
    table = (", ".join(f"{run.name}: {run.method}" for run in finished), comparison, diagnostics)
    page = target / "compare.html"
    write_methods_page(page, [table], title="few-shot runs", command=command, seeds=seeds, listings=listings)
    document: dict[str, Any] = {"command": command, "clips": comparison.num_clips}
    document["runs"] = {run.name: {"method": run.method, "seeds": list(run.seeds)} for run in finished}
    document |= table_record(comparison, diagnostics)
    document["differences"] = [
        {"system": d.system, "reference": d.reference, **figure_record(d.estimate)} for d in comparison.differences
    ]
    document["differing"] = [dict(zip(head, row, strict=True)) for row in rows]
    write_text(target / "compare.json", json.dumps(document, indent=1))
    write_text(target / "clips.csv", csv_text((head, *rows)))
    print_methods([table], listings)
    for name in ("compare.html", "compare.json", "clips.csv"):
        say(f"written: {target / name}")


def _answers(run: FinishedRun, clip: Any) -> str:
    """What a run answered to a clip: the label, or how many seconds were right; of each seed where they differ."""
    said = []
    for seed, answers in run.seeds.items():
        one, length = answers[clip], len(clip[1])
        said.append(one if isinstance(one, str) else f"{run.right(seed, clip) * length:.0f} of {length} seconds")
    return " / ".join(said if len(set(said)) > 1 else said[:1])
