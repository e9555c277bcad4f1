"""`avfs suggest`: which clips of a store to label next, for a few-shot run."""

from __future__ import annotations

import json
from typing import Any

import typer

from avfewshot.cli.loading import find_run, open_store
from avfewshot.cli.options import with_options
from avfewshot.cli.terminal import from_here, print_table, say
from avfewshot.config import SuggestConfig, resolve
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.text import csv_text


@with_options("suggest")
def suggest(**flags: Any) -> None:
    """Which clips of a store to label next: those that a run is in doubt about (small margin), among many alike
    (density), spread over clusters, so that each teaches something of its own. Clips that the run was trained on are
    left out.

    [bold]Examples[/bold]

      avfs suggest --store my-store --run runs/folder/RUN
      avfs suggest --store my-store --run runs/folder/RUN --count 50 --format csv > next.csv
      avfs learn RUN add "dog barking" clip.mp4        teach the run what was labelled

    [bold]Exit status:[/bold] 0 done, 1 nothing is left to label, 2 misuse.
    """  # noqa: D205
    settings = resolve("suggest", flags)
    config: SuggestConfig = settings.config
    faults = settings.faults
    for name in ("store", "run"):
        if getattr(config, name) is None:
            faults.append(UsageError(f"Which {name}?", hint="avfs suggest --store DIR --run RUN"))
    store = collect(faults, lambda: open_store(config.store))
    run = None if config.run is None else collect(faults, lambda folder=config.run: find_run(folder))
    raise_faults(faults)
    from avfewshot.store.doubt import doubtful_clips

    assert store is not None
    assert run is not None
    rows = doubtful_clips(store, run, config.count)
    if config.format == "json":
        typer.echo(json.dumps({"version": 1, "run": str(config.run), "clips": rows}))
    elif config.format == "csv":
        head = ("path", "label", "score", "second", "margin")
        typer.echo(csv_text((head, *(row.values() for row in rows))), nl=False)
    else:
        right = {"justify": "right"}
        told = (
            (from_here(r["path"]), r["label"], f"{r['score']:.3f}", r["second"], f"{r['margin']:.3f}") for r in rows
        )
        print_table(told, **{"clip": {"overflow": "fold"}, "perhaps": {}, "score": right, "or": {}, "margin": right})
    if not rows:
        say("There is no clip left to label.")
        raise typer.Exit(1)
