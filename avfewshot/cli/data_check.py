"""`avfs data check`: coverage, label counts, duplicates and leakage of a data set."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from avfewshot.cli.data_options import ListFile, Media, Root, load_any
from avfewshot.cli.options import TableOrJson, argument, option
from avfewshot.cli.terminal import progress_bar, say
from avfewshot.errors import UsageError
from avfewshot.io import write_bytes
from avfewshot.reports.listings import figures_table
from avfewshot.reports.text import count
from avfewshot.text import is_hidden, printable

if TYPE_CHECKING:
    from avfewshot.data.check import CheckResult

_MOST_CLASSES = 40  # A longer table is shown only when it is asked for.
_STYLES = {"info": "dim", "warning": "yellow", "error": "bold red"}
_MARKS = {"info": "·", "warning": "!", "error": "✗"}


def check(
    task: Annotated[str, argument("TASK", "Task or data set (ave, llp_cls, avs_ms3, avqa, ...), or `folder`.")],
    root: Root = None,
    media: Media = None,
    list_file: ListFile = None,
    against: Annotated[
        list[Path] | None,
        option("--against", "DIR", "Folder with another data set to look for shared videos in; may be repeated."),
    ] = None,
    probe: Annotated[
        bool, option("--probe", "", "Open every clip: broken, too short, silent, without sound or picture.")
    ] = False,
    workers: Annotated[int, typer.Option(metavar="INTEGER", min=1, help="Threads that open clips.")] = 2,
    classes: Annotated[bool, option("--classes", "", "Show every class, however many.")] = False,
    missing: Annotated[
        Path | None, option("--missing", "FILE", "Write the ids of clips without media here, one a line.")
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
    from avfewshot.data.check import check_dataset
    from avfewshot.data.leaks import find_other_datasets

    dataset = load_any(task, root, media or [], list_file)
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
        say(f"written: {missing} ({count(len(ids), 'id')})")
    if format_ == "json":
        # As readable as before, but what a terminal would obey or could not show (names may hold anything) is escaped.
        text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False)
        typer.echo("".join(json.dumps(c)[1:-1] if c != "\n" and is_hidden(c) else c for c in text))
    else:
        _show(result, all_classes=classes)
    if not result.usable:
        raise typer.Exit(1)


def _show(result: CheckResult, *, all_classes: bool) -> None:
    """Print a result as tables; that of the classes however long it is with `all_classes`."""
    console, dataset = Console(highlight=False), result.dataset
    things = ("questions", "answers") if dataset.description.reader == "avqa" else ("clips", "classes")
    title = f"{dataset.description.title}: {len(dataset.samples):,} {things[0]}, {dataset.num_classes} {things[1]}"
    console.print(f"[bold]{_plain(title)}[/bold]  ({_plain(dataset.form)}, {_plain(dataset.root)})")
    columns = {"listed": "listed", "found": "with media", "missing": "missing"}
    if any(row["expected"] is not None for row in result.splits.values()):
        columns["expected"] = "official"
    rows = ((split, *(row[key] for key in columns)) for split, row in result.splits.items())
    console.print(_table(("split", *columns.values()), rows))
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
    return escape(printable(str(text)))


def _table(columns: Iterable[str], rows: Iterable[Iterable[str | int | None]]) -> Table:
    table = figures_table(*columns, box=SIMPLE)
    for row in rows:
        shown = (f"{cell:,}" if isinstance(cell, int) else cell or "" for cell in row)
        table.add_row(*map(_plain, shown))
    return table
