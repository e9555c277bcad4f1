"""What a few-shot run leaves: results, tables, lists of clips and pages in its folder, figures on the terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console

from avfewshot.cli.runs import Run
from avfewshot.cli.terminal import say
from avfewshot.evaluation.evaluator import UNTRAINED
from avfewshot.evaluation.results import Comparison
from avfewshot.io import write_text
from avfewshot.reports.comparison import classes_csv, comparison_csv, comparison_markdown, comparison_table
from avfewshot.reports.methods import details_table, methods_table, write_methods_page
from avfewshot.reports.run_html import run_page
from avfewshot.reports.text import count, reject_text
from avfewshot.training.fewshot import FewShot, SeedResult
from avfewshot.training.outcome import TRAINED
from avfewshot.training.plan import Plan
from avfewshot.training.recording import collect as collect_record
from avfewshot.version import __version__

_ROLES = {"train": "support", "val": "selection", "test": "evaluation"}


def write_results(
    run: Run,
    trainer: FewShot,
    plan: Plan | None,
    results: Sequence[SeedResult],
    comparison: Comparison | None,
    chosen: dict[str, Any] | None,
) -> list[Path]:
    """Write results, tables, the lists of clips and the report; gives what a person may want to open."""
    folder = run.folder
    rows = run.rows() if trainer.initial is None else run.rows(trainer.backbone, trainer.config)
    record = None
    if plan is not None and comparison is not None:
        # First, since it looks at the clips: a run that was done before has not looked at any yet.
        shown = comparison.only((*UNTRAINED, TRAINED))
        record = collect_record(trainer, plan, results, shown, command=run.command, settings=rows, roles=_ROLES)
    document = {
        "version": __version__,
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "command": run.command,
        "config": trainer.config.to_dict(),
        "clips": {
            split: {"listed": listed, "used": used, "unusable": left}
            for split, listed, used, left in trainer.evaluator.usage.counts(trainer.dataset)
        },
        "labels_used": {
            **results[0].methods.get(trainer.config.method, {}).get("labels_used", {}),
            "support": len(results[0].support["ids"]),
            "validation": trainer.validation_used,
        },
        "parameters": {
            count.component: {"trainable": count.trainable, "total": count.total}
            for count in (plan.parameters if plan else ())
        },
        "flops_per_clip": plan.flops if plan else {},
        "comparison": None if comparison is None else comparison.model_dump(mode="json"),
        "seeds": [result.to_dict() for result in results],
        **({} if chosen is None else {"chosen": chosen}),
    }
    write_text(folder / "results.json", json.dumps(document, indent=1))
    if comparison is not None:
        write_text(folder / "results.csv", comparison_csv(comparison))
        write_text(folder / "results.md", comparison_markdown(comparison))
    write_text(folder / "config.yaml", trainer.config.to_yaml())
    for result in results:
        for name, scored in result.results.items():
            write_text(result.folder / f"classes-{name.replace(' ', '-').lower()}.csv", classes_csv(scored))
    trainer.evaluator.usage.write(folder / "clips.csv")
    pages = []
    if record is not None:
        write_text(folder / "report.html", run_page(record))
        pages.append(folder / "report.html")
    if trainer.has_methods and comparison is not None:
        table = (count(trainer.config.shots, "shot"), comparison, [result.methods for result in results])
        title = f"{trainer.config.task}: few-shot methods"
        notes = [] if chosen is None else [f"Seed {chosen['seed']} answers for the run: {chosen['why']}."]
        write_methods_page(folder / "methods.html", [table], title=title, command=run.command, notes=notes)
        pages.append(folder / "methods.html")
    return [*pages, folder / "results.json"]


def print_results(
    run: Run,
    trainer: FewShot,
    results: Sequence[SeedResult],
    comparison: Comparison | None,
    written: Sequence[Path],
) -> None:
    """The comparison on stdout; where files are, and how to predict, on stderr."""
    console = Console(highlight=False)
    if comparison is None:
        console.print("There was no test clip: what was learnt is saved, and nothing tells how good it is.")
    else:
        runs = [result.methods for result in results]
        console.print(methods_table(comparison, runs) if trainer.has_methods else comparison_table(comparison))
        console.print()
        console.print(details_table(comparison, runs))
    for result in results:
        if reject := result.methods.get(trainer.config.method, {}).get("reject"):
            say(f"seed {result.seed}: `unknown` (zeroshot --adapter RUN --reject): {reject_text(reject)}.")
    for split, listed, used, left in trainer.evaluator.usage.counts(trainer.dataset):
        if left:
            say(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be: see clips.csv.")
    for path in written:
        say(f"written: {path}")
    say(f"predict with it: avfs zeroshot --adapter {shlex.quote(str(run.folder))} CLIPS")
