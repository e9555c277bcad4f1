"""`avfs find`: search a store by words, or by a clip."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer

from avfewshot.cli.loading import open_store
from avfewshot.cli.logs import Notices, library_messages
from avfewshot.cli.options import with_options
from avfewshot.cli.terminal import from_here, print_table, say
from avfewshot.config import FindConfig, resolve
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.text import csv_text, printable

if TYPE_CHECKING:
    from avfewshot.store.store import Store


@with_options("find")
def find(**flags: Any) -> None:
    """Search a store that `avfs embed` made: by words, or by a clip, in sight, sound or both.

    Seconds that follow each other are joined to moments; clips are ranked by their best second. Scores are standard
    deviations above the seconds of the collection. Without QUERY and --like, queries are read from standard input, one
    a line: the model is loaded once.

    [bold]Examples[/bold]

      avfs find "dog barking" --store my-store
      avfs find "a violin" --by sound --store my-store --format json
      avfs find --like clip.mp4:12-15 --store my-store     what is like these three seconds

    [bold]Exit status:[/bold] 0 something was found, 1 nothing was, 2 misuse.
    """
    settings = resolve("find", flags)
    config: FindConfig = settings.config
    faults = settings.faults
    if config.query is not None and config.like is not None:
        faults.append(UsageError("QUERY and --like exclude each other.", hint="Leave one out."))
    store = collect(faults, lambda: open_store(config.store))
    if config.store is None:
        faults.append(UsageError("Which store?", hint="avfs find QUERY --store DIR"))
    if store is not None and config.audio_context not in (None, store.audio_context):
        message = f"{config.store}: was embedded with --audio-context {store.audio_context}."
        faults.append(UsageError(message, hint="Leave the option out, or embed into another store."))
    raise_faults(faults)
    assert store is not None
    with library_messages() as notices:
        if config.like is not None or config.query is not None:
            if not _answer(store, config, notices, config.query):
                raise typer.Exit(1)
        else:
            say("One query a line:")
            if config.format == "csv":
                typer.echo(csv_text([("query", *_COLUMNS)]), nl=False)
            for line in sys.stdin:
                if line.strip():
                    _answer(store, config, notices, line.strip())
                    sys.stdout.flush()


_COLUMNS = ("rank", "path", "start", "end", "score")


def _answer(store: Store, config: FindConfig, notices: Notices, query: str | None) -> bool:
    towers, like = None, config.like
    if query is not None:
        towers = store.towers(config.device)
        if unknown := towers.unknown_words([query]):
            notices.warn(f"{store.model['backbone']} does not know: {', '.join(unknown)}.")
    hits = store.find(query, like=like, by=config.by, top=config.top, classifier=towers)
    if config.format == "json":
        about = {"version": 1, "query": query, "like": like, "by": config.by, "clips": [asdict(hit) for hit in hits]}
        typer.echo(json.dumps(about))
    elif config.format == "csv":
        moments = ((rank, hit.path, m.start, m.end, m.score) for rank, hit in enumerate(hits, 1) for m in hit.moments)
        several = config.query is None and query is not None
        table = [(query, *moment) for moment in moments] if several else [_COLUMNS, *moments]
        typer.echo(csv_text(table), nl=False)
    else:
        if config.query is None and query is not None:
            typer.echo(f"\n{printable(query)}")  # one of several
        rows = []
        for hit in hits:
            shown = sorted(sorted(hit.moments, key=lambda moment: -moment.score)[:4], key=lambda moment: moment.start)
            text = ", ".join(f"{_clock(moment.start)}-{_clock(moment.end)} ({moment.score:.1f})" for moment in shown)
            more = f", {len(hit.moments) - 4} more" if len(hit.moments) > 4 else ""
            rows.append((from_here(hit.path), f"{hit.score:.1f}", text + more))
        print_table(rows, clip={"overflow": "fold"}, score={"justify": "right"}, moments={})
    if not hits:
        say("Nothing was found: the store has no such clip.")
    return bool(hits)


def _clock(second: int) -> str:
    return f"{second // 60}:{second % 60:02}"
