"""`avfs data prepare`: every clip decoded once, into shards."""

from __future__ import annotations

import os
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from avfewshot.cli.data_options import ListFile, Media, Root, load_any, names_of, said_when_interrupted
from avfewshot.cli.destinations import check_folder
from avfewshot.cli.options import argument, option, setting_option
from avfewshot.cli.terminal import progress_bar
from avfewshot.config import resolve
from avfewshot.engine import check_engine, ray_map
from avfewshot.errors import UsageError, raise_faults
from avfewshot.reports.text import count, size
from avfewshot.text import printable

if TYPE_CHECKING:
    from avfewshot.data.shards.prepare import Preparation, Summary


@said_when_interrupted()
def prepare(
    task: Annotated[str, argument("DATASET", "Task or data set (ave, llp_cls, vggsound40k, ...), or `folder`.")],
    out: Annotated[Path, option("--out", "DIR", "Folder for the shards; made if needed.")],
    root: Root = None,
    media: Media = None,
    list_file: ListFile = None,
    backbone: Annotated[str | None, setting_option("backbone")] = None,
    splits: Annotated[str | None, option("--splits", "NAMES", "Some of train,val,test; by default all.")] = None,
    workers: Annotated[
        int | None, option("--workers", "INTEGER", "Processes; by default one for each processor.", min=1)
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Part I of N, for N machines that share the folder.")
    ] = "1/1",
    seconds: Annotated[int, typer.Option(metavar="INTEGER", min=1, help="Longest stretch of a clip to store.")] = 10,
    quality: Annotated[int, typer.Option(metavar="INTEGER", min=1, max=100, help="Of the JPEG pictures.")] = 95,
    shard_clips: Annotated[
        int | None, option("--shard-clips", "INTEGER", "Clips in a shard; by default what makes about 256 MB.", min=1)
    ] = None,
    engine: Annotated[str | None, setting_option("engine")] = None,
    address: Annotated[str | None, setting_option("address")] = None,
    retry: Annotated[bool, option("--retry", "", "Try clips again that were rejected before.")] = False,
) -> None:
    """Decode every clip once into WebDataset shards: a picture a second as JPEG, sound as FLAC, labels as JSON.

    It can be interrupted and run again: finished shards are verified by checksum and kept. Clips that cannot be read
    are listed in rejected.csv. Exit status 1 if there are any.

    Examples: avfs data prepare ave --root DATA --out shards/ave
              avfs data prepare vggsound40k --root DATA --out /shared/vgg --workers 16 --part 2/8
              avfs data prepare vggsound40k --root DATA --out /shared/vgg --engine ray --address HOST:6379
              avfs data prepare folder --root my_clips --out shards/mine --backbone tiny
    """
    raise_faults(check_folder(out, "--out"))
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--part {part} is not a part.", hint="Write 1/8, 2/8 and so on up to 8/8.")
    numbers = int(match[1]), int(match[2])

    from avfewshot.data.shards.plan import plan_shards
    from avfewshot.data.shards.prepare import prepare as look
    from avfewshot.encoders.presets import load_preset

    settings = resolve("zeroshot", {"backbone": backbone, "engine": engine, "address": address}).check()
    check_engine(settings["engine"], settings["address"])
    side = load_preset(settings["backbone"]).image_size()
    dataset = load_any(task, root, media or [], list_file)
    how = {"seconds": seconds, "quality": quality, "splits": names_of(splits), "shard_clips": shard_clips}
    plan = plan_shards(dataset, frame_side=side, **how)
    sizes = {split: sum(s.clips for s in plan.index.shards if s.split == split) for split in dataset.split_sizes}
    held = ", ".join(f"{split} {clips:,}" for split, clips in sizes.items() if clips)
    typer.echo(
        f"{plan.index.title}: {count(plan.clips, 'clip')} ({held}) in {count(len(plan.shards), 'shard')}, "
        f"pictures of {side} x {side}, up to {count(seconds, 'second')} each."
    )
    if plan.missing:
        typer.echo(f"{count(len(plan.missing), 'clip')} without media left out; `avfs data check` lists them.")
    todo = look(plan, out, part=numbers, workers=workers or os.cpu_count() or 1, retry=retry)
    _announce(todo, numbers)
    on_ray = partial(ray_map, address=settings["address"], block=1) if settings["engine"] == "ray" else None
    with progress_bar(todo.pending_clips, "clip", "Preparing") as bar:
        summary = todo.run(bar.update, on_ray)
    _conclude(todo, summary)
    if summary.rejected:
        raise typer.Exit(1)


def _announce(todo: Preparation, part: tuple[int, int]) -> None:
    if part[1] > 1:
        typer.echo(f"Part {part[0]} of {part[1]}: {count(len(todo.shards), 'shard')}.")
    if todo.finished:
        typer.echo(f"Finished before, verified and kept: {count(len(todo.finished), 'shard')}.")
    if todo.damaged:
        typer.echo(f"Not as written before, written anew: {', '.join(todo.damaged)}.")
    if todo.pending:
        whole = " with the other parts" if part[1] > 1 else ""
        typer.echo(
            f"To write: {count(todo.pending_clips, 'clip')} in {count(len(todo.pending), 'shard')} with "
            f"{count(todo.jobs, 'process', 'processes')}; about {size(todo.needed)}{whole}, {size(todo.free)} are free."
        )


def _conclude(todo: Preparation, summary: Summary) -> None:
    if todo.pending:
        rate = summary.written / max(summary.seconds, 1e-3)
        typer.echo(f"Wrote {count(summary.written, 'clip')} in {summary.seconds:,.0f} s ({rate:.1f} clips/s).")
    if summary.elsewhere:
        typer.echo(f"Still to come from other parts: {count(summary.elsewhere, 'shard')}.")
    else:
        held = f"{count(summary.clips, 'clip')} in {count(len(todo.shards), 'shard')}, {size(summary.bytes)}"
        typer.echo(f"Everything is there{'' if todo.pending else ' already'}: {held}.")
    if summary.rejected:
        from avfewshot.data.shards.prepare import REJECTED_NAME

        typer.echo(f"Rejected: {count(len(summary.rejected), 'clip')}, listed in {todo.folder / REJECTED_NAME}.")
        for clip in summary.rejected[:3]:
            typer.echo(printable(f"  {clip.file}: {clip.reason}"))
