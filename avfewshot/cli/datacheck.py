"""``avfs data check``: what there is of a data set, what is missing, broken or leaking."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.options import TableOrJson
from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from avfewshot.data.check import CheckResult

_MOST_CLASSES = 40  # A longer table is shown only when it is asked for.
_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red"}
_MARKS = {"info": "·", "warning": "!", "error": "✗"}

Root = Annotated[Path | None, typer.Option(help="Folder with the annotation files and clips.", show_default=False)]
Media = Annotated[
    list[Path] | None, typer.Option(help="Folder with the clips, if elsewhere; may be repeated.", show_default=False)
]
ListFile = Annotated[Path | None, typer.Option("--list", help="For VGG-Sound: the list to read.", show_default=False)]


def check(
    task: Annotated[
        str, typer.Argument(metavar="TASK", help="Task or data set (ave, llp_cls, avs_ms3, avqa, ...), or `folder`.")
    ],
    root: Root = None,
    media: Media = None,
    list_file: ListFile = None,
    against: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder with another data set to look for shared videos in; may be repeated.", show_default=False
        ),
    ] = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Open every clip: broken, too short, silent, without sound or picture.")
    ] = False,
    workers: Annotated[int, typer.Option(min=1, help="Threads that open clips.")] = 2,
    classes: Annotated[bool, typer.Option("--classes", help="Show every class, however many.")] = False,
    missing: Annotated[
        Path | None, typer.Option(help="Write the ids of clips without media here, one a line.", show_default=False)
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
    from avfewshot.io import is_hidden

    dataset = load_any(task, root, media or [], list_file)
    folders = [dataset.root, dataset.root.parent, *([root, root.parent] if root else [])]
    for folder in against or []:
        if not folder.is_dir():
            raise UsageError(f"--against {folder}: there is no such folder.")
    others = find_other_datasets(dataset, [*(against or []), *folders])
    if probe:
        from avfewshot.cli.terminal import progress_bar

        total = len({sample.path for sample in dataset.samples if sample.path is not None})
        with progress_bar(total, "clip", "Opening clips") as bar:
            result = check_dataset(dataset, others=others, probe=True, workers=workers, progress=bar.update)
    else:
        result = check_dataset(dataset, others=others)
    if missing is not None:
        _write_missing(result, missing)
    if format_ == "json":
        # As readable as before, but what a terminal would obey or could not show (names may hold anything) is escaped.
        text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
        typer.echo("".join(json.dumps(c)[1:-1] if c != "\n" and is_hidden(c) else c for c in text))
    else:
        show(result, all_classes=classes)
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


def load_any(task: str, root: Path | None, media: list[Path], list_file: Path | None) -> Any:
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


def _write_missing(result: CheckResult, path: Path) -> None:
    from avfewshot.io import write_bytes

    ids = dict.fromkeys(sample.id for sample in result.dataset.missing())
    write_bytes(path, "".join(f"{name}\n" for name in ids).encode("utf-8", "surrogateescape"))


def show(result: CheckResult, *, all_classes: bool = False, console: Console | None = None) -> None:
    """Print a result as tables; that of the classes however long it is with `all_classes`."""
    from rich.console import Console

    console = console or Console(highlight=False)
    dataset = result.dataset
    available = len(dataset.available())
    things = ("questions", "answers") if dataset.description.reader == "avqa" else ("clips", "classes")
    title = f"{dataset.description.title}: {len(dataset.samples):,} {things[0]}, {dataset.num_classes} {things[1]}"
    console.print(f"[bold]{_plain(title)}[/bold]  ({_plain(dataset.form)}, {_plain(dataset.root)})")
    console.print(_split_table(result))
    if dataset.num_classes <= _MOST_CLASSES or all_classes:
        console.print(_class_table(result))
    else:
        console.print(f"[dim]{dataset.num_classes} classes; --classes shows them.[/dim]")
    if result.overlaps:
        console.print(_overlap_table(result))
    if result.probes is not None:
        good = sum(not probe.problems for probe in result.probes)
        console.print(f"Opened {len(result.probes):,} files: {good:,} good.")
    for finding in sorted(result.report.findings, key=lambda f: list(_STYLES).index(f.severity), reverse=True):
        style = _STYLES[finding.severity]
        many = f" ({finding.count:,})" if finding.count > 1 else ""
        console.print(f"[{style}]{_MARKS[finding.severity]} {_plain(finding.message)}{many}[/{style}]")
        if finding.examples and finding.severity != "info":
            console.print(f"    [dim]e.g. {_plain(', '.join(finding.examples[:3]))}[/dim]")
    console.print(_verdict(result, available), soft_wrap=True)


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

    from avfewshot.io import printable

    return escape(printable(str(text)))


def _table(*columns: str) -> Table:
    from rich.box import SIMPLE
    from rich.table import Table

    table = Table(box=SIMPLE, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    return table


def _split_table(result: CheckResult) -> Table:
    table = _table("split", "listed", "with media", "missing", "official")
    for split, row in result.splits.items():
        numbers = (row["listed"], row["found"], row["missing"], row["expected"])
        table.add_row(split, *("" if number is None else f"{number:,}" for number in numbers))
    return table


def _class_table(result: CheckResult) -> Table:
    splits = list(result.splits)
    table = _table("class", *splits, "with media")
    for row in result.classes:
        table.add_row(_plain(row["name"]), *(f"{row[key]:,}" for key in (*splits, "found")))
    return table


def _overlap_table(result: CheckResult) -> Table:
    table = _table("the same YouTube videos in", "and in", "videos")
    for overlap in result.overlaps:
        table.add_row(_plain(overlap.first), _plain(overlap.second), f"{overlap.count:,}")
    return table
