"""Where results go: checked before any work, opened when the first result is near, complete even after Ctrl-C."""

from __future__ import annotations

import contextlib
import functools
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from avfewshot.errors import UsageError
from avfewshot.io import atomic_path

if TYPE_CHECKING:
    from avfewshot.inference.results import ClipResult, Failure, RunInfo
    from avfewshot.reports.html import Provenance
    from avfewshot.reports.writers import Summary

SUFFIXES = {"json": ".json", "jsonl": ".jsonl", "csv": ".csv", "table": ".txt"}
_STEM = "results"
_TEXT_WIDTH = 110
"""Columns of a table in a file, which has no terminal to ask."""


@dataclass(frozen=True)
class Target:
    """A place for results.

    Attributes:
        form: A key of :data:`SUFFIXES`.
        path: The file; None is stdout.
    """

    form: str
    path: Path | None


def plan_targets(form: str, output: str | None, *, form_given: bool) -> tuple[list[Target], list[UsageError]]:
    """Decide what is written where, without touching anything.

    Args:
        form: ``"table"``, ``"json"``, ``"jsonl"``, ``"csv"`` or ``"all"``.
        output: What the person named; None or ``"-"`` is stdout. For ``"all"`` a folder, or a path without suffix.
        form_given: Whether the person chose the form; if not, the suffix of `output` does.

    Returns:
        The targets, and what is wrong with the request.
    """
    if output is None or output == "-":
        if form == "all":
            hint = "Add `--output FOLDER`, or choose one format."
            return [], [UsageError("--format all writes four files and needs --output.", hint=hint)]
        return [Target(form, None)], []
    if not output:
        return [], [UsageError("--output is empty.", hint="Name a file, for example `--output results.json`.")]
    path = Path(output).expanduser()
    if not form_given:
        form = next((name for name, suffix in SUFFIXES.items() if suffix == path.suffix.lower()), form)
    if form == "all":
        if path.is_dir() or output.endswith(("/", os.sep)):
            stem = path / _STEM
            faults = [] if path.is_dir() else _missing(path, "--output")
        else:
            stem = path
            faults = check_parent(path, "--output")
        targets = [Target(name, stem.with_name(stem.name + suffix)) for name, suffix in SUFFIXES.items()]
        for target in targets:
            faults += check_file(target.path, "--output") if not faults else []
        return targets, faults
    return [Target(form, path)], check_file(path, "--output")


def check_file(path: Path, option: str) -> list[UsageError]:
    """What stands against writing a file, before anything is computed."""
    if path.is_dir():
        return [UsageError(f"{option} {path}: is a folder.", hint="Name a file in it.")]
    if path.exists() and not os.access(path, os.W_OK):
        return [UsageError(f"{option} {path}: may not be written.", hint="Choose another file.")]
    return check_parent(path, option)


def check_parent(path: Path, option: str) -> list[UsageError]:
    """What stands against making a file in a folder."""
    parent = path.parent
    if not parent.exists():
        return _missing(parent, option)
    if not parent.is_dir():
        return [UsageError(f"{option} {path}: {parent} is not a folder.", hint="Choose another place.")]
    if not path.exists() and not os.access(parent, os.W_OK | os.X_OK):
        return [UsageError(f"{option} {path}: nothing may be written in {parent}.", hint="Choose another folder.")]
    return []


def _missing(folder: Path, option: str) -> list[UsageError]:
    return [UsageError(f"{option}: there is no folder {folder}.", hint=f"Make it: `mkdir -p {folder}`.")]


def check_overwrite(written: Iterable[tuple[str, Path]], read: Iterable[Path]) -> list[UsageError]:
    """Refuse to write over what is read, and to write two things into one file.

    Args:
        written: Option and file of everything that will be written.
        read: Files that the run reads.
    """
    inputs = {os.path.realpath(path) for path in read}
    taken: dict[str, str] = {}
    faults = []
    for option, path in written:
        place = os.path.realpath(path)
        if place in inputs:
            faults.append(UsageError(f"{option} {path}: would overwrite a file that is read.", hint="Name another."))
        elif place in taken:
            faults.append(UsageError(f"{option} {path}: {taken[place]} goes there, too.", hint="Name another file."))
        taken.setdefault(place, option)
    return faults


class OpenWriter:
    """A writer and the file behind it.

    Args:
        writer: Takes the results.
        path: The file; None is stdout.
        files: Closes the file; one that is written atomically gets its name only then.
        shows_footer: Whether the person sees how the run went in what it writes.
    """

    def __init__(self, writer: Any, path: Path | None, files: contextlib.ExitStack, *, shows_footer: bool) -> None:
        self.path = path
        self.shows_footer = shows_footer
        self.finished = False
        self._writer = writer
        self._files = files
        self._error: Exception | None = None

    def add(self, result: ClipResult | Failure) -> None:
        """Hand on a result."""
        try:
            self._writer.add(result)
        except Exception as error:
            self._error = error
            raise

    def finish(self, summary: Summary) -> None:
        """Complete the output.

        Raises:
            Exception: What kept it from being completed. A result that could be written in part only spoils the whole
                file, which is then not put in its place.
        """
        with self._files:
            if self._error is not None:
                raise self._error
            self._writer.end(summary)
        self.finished = True


def open_writer(target: Target, run: RunInfo, *, topk: int, segments: bool) -> OpenWriter:
    """Open a target and begin it.

    Args:
        target: From :func:`plan_targets`.
        run: What produces the results.
        topk: Labels of each clip in a table.
        segments: Whether to tell what each second holds.
    """
    from avfewshot.reports.tables import TableWriter
    from avfewshot.reports.writers import CsvWriter, JsonlWriter, JsonWriter

    files = contextlib.ExitStack()
    stream = _standard_output(target.form) if target.path is None else files.enter_context(_opened(target))
    writer: Any
    if target.form == "table":
        writer = TableWriter(_table_console(stream, target.path), topk=topk, segments=segments)
    elif target.form == "json":
        writer = JsonWriter(stream, segments=segments)
    elif target.form == "jsonl":
        writer = JsonlWriter(stream, segments=segments)
    else:
        writer = CsvWriter(stream)
    writer.begin(run)
    return OpenWriter(writer, target.path, files, shows_footer=target == Target("table", None))


def open_page(path: Path, run: RunInfo, *, topk: int, total: int, provenance: Provenance, decoder: str) -> OpenWriter:
    """Begin the HTML page of a run.

    Args:
        path: The page.
        run: What produces the results.
        topk: Labels of each clip in its table.
        total: Files of the run.
        provenance: How it was asked for.
        decoder: The frame backend, for the pictures.
    """
    from avfewshot.reports.html import HtmlWriter
    from avfewshot.reports.thumbnails import thumbnails

    pictures = functools.partial(thumbnails, frame_backend=decoder)
    writer = HtmlWriter(path, topk=topk, total=total, provenance=provenance, pictures=pictures)
    writer.begin(run)
    return OpenWriter(writer, path, contextlib.ExitStack(), shows_footer=False)


def _table_console(stream: TextIO, path: Path | None) -> Any:
    from rich.console import Console

    if path is None:
        return Console(file=stream, highlight=False)
    return Console(file=stream, highlight=False, width=_TEXT_WIDTH, color_system=None, force_terminal=False)


def _standard_output(form: str) -> TextIO:
    if form != "table" and hasattr(sys.stdout, "reconfigure"):  # JSON is UTF-8 whatever the terminal speaks
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")
    return sys.stdout


@contextlib.contextmanager
def _opened(target: Target) -> Iterator[TextIO]:
    path = target.path
    assert path is not None
    if target.form == "jsonl" or (path.exists() and not path.is_file()):
        # Lines are to be read while they come; and a device or a pipe must not be replaced by a file.
        with open(path, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            yield stream
        return
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream,
    ):
        yield stream
