"""`avfs data`: make toy clips; check data sets, prepare shards of them, import labels."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.options import TableOrJson, argument, option, setting_option
from avfewshot.cli.terminal import progress_bar, say
from avfewshot.engine import check_engine, ray_map
from avfewshot.errors import AvfsError, UsageError
from avfewshot.io import is_hidden, printable, write_bytes
from avfewshot.reports.text import count, duration, size

if TYPE_CHECKING:
    from rich.table import Table

    from avfewshot.data.check import CheckResult
    from avfewshot.data.shards.prepare import Preparation, Summary

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make and look after data sets.")


_MOST_CLASSES = 40  # A longer table is shown only when it is asked for.
_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red"}
_MARKS = {"info": "·", "warning": "!", "error": "✗"}

_Root = Annotated[Path | None, option("--root", None, "Folder with the annotation files and clips.")]
_Media = Annotated[list[Path] | None, option("--media", None, "Folder with the clips, if elsewhere; may be repeated.")]
_ListFile = Annotated[Path | None, option("--list", None, "For VGG-Sound: the list to read.")]


@app.command()
def check(
    task: Annotated[str, argument("TASK", "Task or data set (ave, llp_cls, avs_ms3, avqa, ...), or `folder`.")],
    root: _Root = None,
    media: _Media = None,
    list_file: _ListFile = None,
    against: Annotated[
        list[Path] | None,
        option("--against", None, "Folder with another data set to look for shared videos in; may be repeated."),
    ] = None,
    probe: Annotated[
        bool, option("--probe", None, "Open every clip: broken, too short, silent, without sound or picture.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that open clips.")] = 2,
    classes: Annotated[bool, option("--classes", None, "Show every class, however many.")] = False,
    missing: Annotated[
        Path | None, option("--missing", None, "Write the ids of clips without media here, one a line.")
    ] = None,
    format_: TableOrJson = "table",
) -> None:
    """Check a data set: coverage, label counts, duplicates, leakage between splits and data sets.

    Without --root, the folder set for the data set in avfs.toml or the environment. Exit status 1 if it cannot be used.

    Examples: avfs data check ave --root DATA --probe
              avfs data check llp_cls --root DATA --format json
              avfs data check avs_ms3 --root AVSBench --probe
              avfs data check folder --root my_clips
    """
    from avfewshot.data.check import check_dataset, find_other_datasets

    dataset = _load_any(task, root, media or [], list_file)
    folders = [dataset.root, dataset.root.parent, *([root, root.parent] if root else [])]
    for folder in against or []:
        if not folder.is_dir():
            raise UsageError(f"--against {folder}: there is no such folder.")
    others = find_other_datasets(dataset, [*(against or []), *folders])
    if probe:
        total = len({sample.path for sample in dataset.samples if sample.path is not None})
        with progress_bar(total, "clip", "Opening clips") as bar:
            result = check_dataset(dataset, others=others, probe=True, workers=workers, progress=bar.update)
    else:
        result = check_dataset(dataset, others=others)
    if missing is not None:
        ids = dict.fromkeys(sample.id for sample in dataset.missing())
        write_bytes(missing, "".join(f"{name}\n" for name in ids).encode("utf-8", "surrogateescape"))
    if format_ == "json":
        # As readable as before, but what a terminal would obey or could not show (names may hold anything) is escaped.
        text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
        typer.echo("".join(json.dumps(c)[1:-1] if c != "\n" and is_hidden(c) else c for c in text))
    else:
        _show(result, all_classes=classes)
    if not result.usable:
        raise typer.Exit(1)


def data_root(name: str, root: Path | None) -> Path:
    """The folder of a data set: the flag, else what ``avfs.toml`` or the environment says."""
    if root is not None:
        return root
    from avfewshot.data.description import dataset_of_task, load_description

    description = load_description(dataset_of_task(name))
    return configured_root((description.name, description.reader, "root"), description.title)


def configured_root(keys: Sequence[str], title: str) -> Path:
    """The folder that ``avfs.toml`` or the environment says for the first of these keys; a :class:`UsageError` else."""
    from avfewshot.config import resolve, table_settings

    resolved = resolve("data").check()
    for key in keys:
        if key in table_settings("data") and resolved[key] is not None:
            return Path(resolved[key])
    raise UsageError(
        f"Where is {title}? No data folder is set.",
        hint="Give --root DIR, or set it in avfs.toml, table [data]. Without any data: avfs data toy --root toy.",
    )


def _load_any(task: str, root: Path | None, media: list[Path], list_file: Path | None) -> Any:
    """A data set by task or name, or a folder of clips where `task` is ``folder``."""
    from avfewshot.data.folder import load_folder
    from avfewshot.data.load import load_dataset

    if task != "folder":
        return load_dataset(task, data_root(task, root), media=media, list_file=list_file)
    if root is None:
        raise UsageError("A folder of clips needs --root.", hint="avfs data check folder --root my_clips")
    if media or list_file:
        raise UsageError("--media and --list are not for a folder of clips.", hint="Its clips lie in --root.")
    return load_folder(root)


def _show(result: CheckResult, *, all_classes: bool) -> None:
    """Print a result as tables; that of the classes however long it is with `all_classes`."""
    from rich.console import Console

    console, dataset = Console(highlight=False), result.dataset
    things = ("questions", "answers") if dataset.description.reader == "avqa" else ("clips", "classes")
    title = f"{dataset.description.title}: {len(dataset.samples):,} {things[0]}, {dataset.num_classes} {things[1]}"
    console.print(f"[bold]{_plain(title)}[/bold]  ({_plain(dataset.form)}, {_plain(dataset.root)})")
    keys = ("listed", "found", "missing", "expected")
    rows = ((split, *(row[key] for key in keys)) for split, row in result.splits.items())
    console.print(_table(("split", "listed", "with media", "missing", "official"), rows))
    if dataset.num_classes <= _MOST_CLASSES or all_classes:
        rows = ((row["name"], *(row[key] for key in (*result.splits, "found"))) for row in result.classes)
        console.print(_table(("class", *result.splits, "with media"), rows))
    else:
        console.print(f"[dim]{dataset.num_classes} classes; --classes shows them.[/dim]")
    if result.overlaps:
        rows = ((overlap.first, overlap.second, overlap.count) for overlap in result.overlaps)
        console.print(_table(("the same YouTube videos in", "and in", "videos"), rows))
    if result.probes is not None:
        good = sum(not probe.problems for probe in result.probes)
        console.print(f"Opened {len(result.probes):,} files: {good:,} good.")
    for finding in sorted(result.report.findings, key=lambda f: list(_STYLES).index(f.severity), reverse=True):
        style = _STYLES[finding.severity]
        many = f" ({finding.count:,})" if finding.count > 1 else ""
        console.print(f"[{style}]{_MARKS[finding.severity]} {_plain(finding.message)}{many}[/{style}]")
        if finding.examples and finding.severity != "info":
            console.print(f"    [dim]e.g. {_plain(', '.join(finding.examples[:3]))}[/dim]")
    console.print(_verdict(result, len(dataset.available())), soft_wrap=True)


def _verdict(result: CheckResult, found: int) -> str:
    total = len(result.dataset.samples)
    if not found:
        missed = result.report.find("no-media")
        how = "" if missed and "Names met" in missed.message else result.dataset.description.how_to_get
        return (
            f"[bold red]No clip of {_plain(result.dataset.description.title)} has media below "
            f"{_plain(result.dataset.root)}.[/bold red] {_plain(how)}"
        )
    if not result.usable:
        return "[bold red]Not usable as it is: see the marks ✗ above.[/bold red]"
    share = f"{100 * found / total:.1f} %" if found < total else "all"
    opened = "" if result.probes is not None else " --probe opens each of them."
    return f"[bold]{share} of {total:,} clips have media.[/bold]{opened}"


def _plain(text: object) -> str:
    from rich.markup import escape

    return escape(printable(str(text)))


def _table(columns: Iterable[str], rows: Iterable[Iterable[str | int | None]]) -> Table:
    from rich.box import SIMPLE
    from rich.table import Column, Table

    first, *others = columns
    table = Table(first, *(Column(name, justify="right") for name in others), box=SIMPLE, pad_edge=False)
    for row in rows:
        shown = (f"{cell:,}" if isinstance(cell, int) else cell or "" for cell in row)
        table.add_row(*map(_plain, shown))
    return table


@app.command()
def prepare(
    task: Annotated[str, argument("DATASET", "Task or data set (ave, llp_cls, vggsound40k, ...), or `folder`.")],
    out: Annotated[Path, option("--out", None, "Folder for the shards; made if needed.")],
    root: _Root = None,
    media: _Media = None,
    list_file: _ListFile = None,
    backbone: Annotated[str | None, setting_option("backbone")] = None,
    splits: Annotated[str | None, option("--splits", None, "Some of train,val,test; by default all.")] = None,
    workers: Annotated[
        int | None, option("--workers", None, "Processes; by default one for each processor.", min=1)
    ] = None,
    part: Annotated[
        str, typer.Option(metavar="I/N", help="Part I of N, for N machines that share the folder.")
    ] = "1/1",
    seconds: Annotated[int, typer.Option(min=1, help="Longest stretch of a clip to store.")] = 10,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEG pictures.")] = 95,
    shard_clips: Annotated[
        int | None, option("--shard-clips", None, "Clips in a shard; by default what makes about 256 MB.", min=1)
    ] = None,
    engine: Annotated[str | None, setting_option("engine")] = None,
    address: Annotated[str | None, setting_option("address")] = None,
    retry: Annotated[bool, option("--retry", None, "Try clips again that were rejected before.")] = False,
) -> None:
    """Decode every clip once into WebDataset shards: a picture a second as JPEG, sound as FLAC, labels as JSON.

    It can be interrupted and run again: finished shards are verified by checksum and kept. Clips that cannot be read
    are listed in rejected.csv. Exit status 1 if there are any.

    Examples: avfs data prepare ave --root DATA --out shards/ave
              avfs data prepare vggsound40k --root DATA --out /shared/vgg --workers 16 --part 2/8
              avfs data prepare vggsound40k --root DATA --out /shared/vgg --engine ray --address HOST:6379
              avfs data prepare folder --root my_clips --out shards/mine --backbone tiny
    """
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out}: is a file.", hint="Name a folder; it is made if needed.")
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", part.strip())
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--part {part} is not a part.", hint="Write 1/8, 2/8 and so on up to 8/8.")
    numbers = int(match[1]), int(match[2])

    from avfewshot.config import resolve
    from avfewshot.data.shards.prepare import plan_shards
    from avfewshot.data.shards.prepare import prepare as look
    from avfewshot.encoders.presets import load_preset

    settings = resolve("zeroshot", {"backbone": backbone, "engine": engine, "address": address}).check()
    check_engine(settings["engine"], settings["address"])
    side = load_preset(settings["backbone"]).image_size()
    dataset = _load_any(task, root, media or [], list_file)
    how = {"seconds": seconds, "quality": quality, "splits": _names(splits), "shard_clips": shard_clips}
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
    with _said_when_interrupted(), progress_bar(todo.pending_clips, "clip", "Preparing") as bar:
        summary = todo.run(bar.update, on_ray)
    _conclude(todo, summary)
    if summary.rejected:
        raise typer.Exit(1)


def _names(text: str | None) -> list[str] | None:
    return None if text is None else [name.strip().lower() for name in text.split(",") if name.strip()]


@contextlib.contextmanager
def _said_when_interrupted() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say("Interrupted; the same command goes on from here.")
        raise


def _announce(todo: Preparation, part: tuple[int, int]) -> None:
    if part[1] > 1:
        typer.echo(f"Part {part[0]} of {part[1]}: {count(len(todo.shards), 'shard')}.")
    if todo.finished:
        typer.echo(f"Finished before, verified and kept: {count(len(todo.finished), 'shard')}.")
    if todo.damaged:
        typer.echo(f"Not as written before, written anew: {', '.join(todo.damaged)}.")
    if todo.pending:
        typer.echo(
            f"To write: {count(todo.pending_clips, 'clip')} in {count(len(todo.pending), 'shard')} with "
            f"{count(todo.jobs, 'process', 'processes')}; about {size(todo.needed)} of {size(todo.free)} free."
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


@app.command("import")
def import_labels(
    files: Annotated[
        list[Path], argument("FILE...", "JSON exports of Label Studio, labels.json of FiftyOne, or .eaf of ELAN.")
    ],
    clips: Annotated[Path, option("--clips", "DIR", "Folder of the labelled clips.")],
    root: Annotated[Path, option("--root", "DIR", "Gets CLASS/*.mp4; made if needed.")],
    frame_rate: Annotated[
        float | None,
        option(
            "--frame-rate",
            "NUMBER",
            "Pictures a second, where a file counts pictures: frameRate of Label Studio's <Video>, 24 unless set.",
            min=1,
            max=1000,
        ),
    ] = None,
) -> None:
    """Cut what people labelled into a folder of classes, for `--task folder`.

    Of Label Studio the annotations are read, and the predictions of tasks that have none. What is there
    already is not cut again. Clips that are missing or cannot be read are named and the others go on; exit
    status 1 if there are any.

    Examples: avfs data import export.json --clips clips --root mine
              avfs data import exported/labels.json --clips exported/data --root mine
              avfs data import timelines/*.eaf --clips clips --root mine
    """
    from avfewshot.data.importing import ClassFolders, read_stretches

    if not clips.is_dir():
        raise UsageError(f"--clips {clips}: there is no such folder.", hint="Name the folder of the labelled clips.")
    stretches = [stretch for file in files for stretch in read_stretches(file, frame_rate)]
    target, counts, failed = ClassFolders(clips, root), [0, 0], 0
    for stretch in dict.fromkeys(stretches):
        try:
            counts[target.add(stretch)] += 1
        except (AvfsError, OSError) as error:  # noqa: PERF203
            say(printable(str(error)))
            failed += 1
    typer.echo(f"{root}: {counts[True]:,} cut, {counts[False]:,} there already, {failed:,} failed.")
    if failed:
        raise typer.Exit(1)


@app.command()
def toy(
    root: Annotated[Path, option("--root", None, "Folder to write to; made if needed.")],
    seed: Annotated[int, typer.Option(help="Each seed gives another world of the same classes.")] = 0,
    clips_per_class: Annotated[
        int, typer.Option(help="Clips of each class in each data set: two thirds train, a sixth val, a sixth test.")
    ] = 24,
    jobs: Annotated[int | None, option("--jobs", None, "Processes; by default one for each processor.")] = None,
    force: Annotated[bool, option("--force", None, "Replace a toy world made with other settings.")] = False,
    only: Annotated[
        str | None, option("--only", None, "Some of ave,llp,vggsound,avs,avqa, or samples; by default the first three.")
    ] = None,
) -> None:
    """Write the toy world: small made-up clips in the layouts of AVE, LLP and VGG-Sound.

    Everything avfs does can be tried with it offline. The same seed gives the same files. It can be interrupted and
    run again: it goes on where it stopped.

    Example: avfs data toy --root toy
    """
    from avfewshot.toyworld.build import prepare

    build = prepare(root, seed=seed, clips_per_class=clips_per_class, datasets=_names(only), jobs=jobs, force=force)
    held = "".join(f"{plan.title} {len(plan.clips):,}, " for plan in build.plans)
    typer.echo(f"Toy world in {root}: {len(build.clips):,} clips ({held}{'and ' if held else ''}samples).")
    if build.damaged:
        typer.echo(f"{count(len(build.damaged), 'clip is', 'clips are')} not as written before; written anew.")
    if build.pending:
        typer.echo(
            f"To write: {count(len(build.pending), 'clip')}, about {build.expected_bytes / 1e6:,.0f} MB, "
            f"about {duration(build.expected_seconds)} with {count(build.jobs, 'process', 'processes')}."
        )
    with _said_when_interrupted():
        summary = build.run()
    for name in summary.edited:
        typer.echo(f"{root / name}: left as it is, since it was edited (--force writes it anew).")
    done = f"Wrote {count(summary.written, 'clip')} in {duration(summary.seconds)}; the toy world takes"
    typer.echo(f"{done if summary.written else 'Complete already:'} {summary.bytes / 1e6:,.0f} MB.")
    typer.echo(f"Next: cd {shlex.quote(str(root))} && avfs zeroshot --labels labels.txt samples --segments")
