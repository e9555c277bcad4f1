"""``avfs cache``: what is kept on disk between runs, and how to empty it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.options import TableOrJson, argument, option
from avfewshot.errors import UsageError, did_you_mean
from avfewshot.io import cache_dir

cache = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    help="Say what is kept on disk between runs ($AVFS_CACHE), and empty it. What is removed is computed again.",
)
KINDS = {
    "clips": "decoded clips of trainings",
    "embeddings": "what frozen towers made of files",
    "labels": "text features of labels",
    "features": "what supervised tasks learn from",
    "hashes": "digests of weight files",
    "remote": "clips of addresses",
}
"""What may be removed. Digests of first downloads (`weights`) are no cache: later downloads are held to them."""

_ENTRY = re.compile(r"[0-9a-f]{32,64}(\.clip\.zip|\.\w{1,11})?|\..+\.part.*")
"""Names of entries and of what killed processes left; nothing else is touched, wherever the folder may lead."""


def entries(kind: str) -> list[tuple[Path, os.stat_result]]:
    """The files of one of :data:`KINDS`; links are not followed."""
    files = []
    for folder, _, names in os.walk(cache_dir(kind)):
        for name in filter(_ENTRY.fullmatch, names):
            with contextlib.suppress(OSError):
                files.append((Path(folder, name), os.lstat(os.path.join(folder, name))))
    return files


@cache.command("list")
def list_command(form: TableOrJson = "table") -> None:
    """Say how much is kept.

    Example: avfs cache list
    """
    kept = {kind: [status.st_size for _, status in entries(kind)] for kind in KINDS}
    if form == "json":
        document = {kind: {"files": len(sizes), "bytes": sum(sizes)} for kind, sizes in kept.items()}
        typer.echo(json.dumps({"folder": str(cache_dir()), "kinds": document}, indent=2))
        return
    typer.echo(str(cache_dir()))
    for kind, sizes in kept.items():
        typer.echo(f"  {kind:<11}{sum(sizes) / 1e6:>10,.1f} MB {len(sizes):>8,} files  {KINDS[kind]}")
    typer.echo("Empty it: avfs cache clear [KIND...]")


@cache.command()
def clear(
    kinds: Annotated[list[str] | None, argument("KIND", f"{', '.join(KINDS)}; all of them unless told.")] = None,
    older_than: Annotated[
        float | None, option("--older-than", "DAYS", "Only what was not used for so many days.")
    ] = None,
) -> None:
    """Remove what is kept; the next run computes it again.

    Example: avfs cache clear clips --older-than 30
    """
    wrong = [kind for kind in kinds or () if kind not in KINDS]
    if wrong:
        guess = did_you_mean(wrong[0], KINDS)
        raise UsageError(f"There is no cache {wrong[0]!r}.{guess}", hint=f"Choose from: {', '.join(KINDS)}.")
    if older_than is not None and not older_than >= 0:
        raise UsageError(f"--older-than {older_than:g}: a number of days from 0 on is needed.")
    limit = float("inf") if older_than is None else time.time() - 86400 * older_than
    removed = freed = stuck = 0
    for kind in kinds or KINDS:
        for path, status in entries(kind):
            if status.st_mtime <= limit:
                try:
                    path.unlink(missing_ok=True)
                except OSError:
                    stuck += 1
                    continue
                removed, freed = removed + 1, freed + status.st_size
    typer.echo(f"removed {removed:,} files, {freed / 1e6:,.1f} MB")
    if stuck:
        typer.echo(f"error: {stuck:,} files cannot be removed: no permission.", err=True)
        raise typer.Exit(1)
