"""Files of results: opened when the first result is near, complete even after Ctrl-C."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TextIO

from rich.console import Console

from avfewshot.cli.destinations import FIFTYONE, TIMELINES, Target, claim
from avfewshot.errors import AvfsError, UsageError
from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.io import atomic_path, sweep_leftovers
from avfewshot.reports.tables import TableWriter
from avfewshot.reports.timelines import FiftyOneWriter, LabelStudioWriter, TimelineWriter
from avfewshot.reports.writers import CsvWriter, JsonlWriter, JsonWriter, SegmentsCsvWriter, Summary, Writer


class OpenWriter:
    """A writer and the file behind it, which `files` closes; one that is written atomically gets its name only then.

    Whole lines stay in a stream of `lines` when one of them cannot be written.
    """

    def __init__(
        self,
        writer: Writer,
        path: Path | None,
        files: contextlib.ExitStack | None = None,
        lines: TextIO | None = None,
    ) -> None:
        self.path, self.finished = path, False
        self._writer, self._files, self._lines = writer, files or contextlib.ExitStack(), lines
        self._error: Exception | None = None
        self._note_whole_lines()

    def add(self, result: ClipResult | Failure) -> None:
        """Hand on a result."""
        try:
            self._writer.add(result)
            self._note_whole_lines()
        except Exception as error:
            self._error = self._explained(error)
            raise self._error from error

    def finish(self, summary: Summary) -> None:
        """Complete the output, or raise what keeps it from that: then the file is not put in its place."""
        try:
            with self._files:
                if self._error is not None:
                    raise self._error
                self._writer.end(summary)
        except Exception as error:
            if self._lines is not None and self.path is not None:
                with contextlib.suppress(OSError):
                    os.truncate(self.path, self._whole)
            raise self._explained(error) from error
        self.finished = True

    def _note_whole_lines(self) -> None:
        self._whole = 0 if self._lines is None else os.fstat(self._lines.fileno()).st_size

    def _explained(self, error: Exception) -> Exception:
        return _explained(error, self.path, lines=self._lines is not None)


def _explained(error: Exception, path: Path | None, *, lines: bool) -> Exception:
    if path is None or not isinstance(error, OSError) or error.errno == errno.EPIPE:
        return error
    hint = "An older file of this name is as it was. A .jsonl file keeps what is done, and can be gone on with."
    if lines:
        hint = "Results so far are in it; the same command goes on from there."
    return AvfsError(f"{path}: cannot be written: {error.strerror or error}.", hint=hint)


def open_writer(
    target: Target, run: RunInfo, *, topk: int, segments: bool, run_id: str = "", resume: bool = False
) -> OpenWriter:
    """Open a target and begin it; `resume` appends to what :func:`earlier_results` has looked through."""
    files = contextlib.ExitStack()
    form, path = target.form, target.path
    if path is not None:
        is_folder = form == "fiftyone" or path.suffix.lower() != TIMELINES.get(form, path.suffix.lower())
        (path if is_folder else path.parent).mkdir(parents=True, exist_ok=True)
    if form in TIMELINES and path is not None and path.is_dir():
        return OpenWriter(TimelineWriter(form, folder=path), path)

    def opened(place: Path, mode: Literal["w", "a"] = "w") -> TextIO:
        return files.enter_context(open(place, mode, encoding="utf-8", errors="backslashreplace", newline="\n"))

    if form == "fiftyone":
        assert path is not None
        media, labels = (opened(files.enter_context(atomic_path(path / name))) for name in FIFTYONE)
        return OpenWriter(FiftyOneWriter(media, labels, run), path, files)
    # A device or a pipe must not be replaced by a file; lines are to be read while they come.
    special = path is not None and path.exists() and not path.is_file()
    lines = form == "jsonl" and path is not None and not special
    if path is None:
        stream = sys.stdout
        if form != "table" and isinstance(stream, io.TextIOWrapper):  # JSON is UTF-8 whatever the terminal speaks
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    elif lines or special:
        # Nothing is emptied before it is known that nobody is writing it.
        stream = opened(path, "a" if lines else "w")
        if lines:
            try:
                claim(path, stream.fileno())
            except UsageError:
                files.close()
                raise
            if not resume:
                stream.truncate(0)
    else:
        sweep_leftovers(path)
        stream = opened(files.enter_context(atomic_path(path)))
    # A file has no terminal to ask for its width.
    plain: dict[str, Any] = {"width": 110, "color_system": None, "force_terminal": False} if path else {}
    writers: dict[str, Callable[[], Writer]] = {
        "table": lambda: TableWriter(Console(file=stream, highlight=False, **plain), run, topk=topk, segments=segments),
        "json": lambda: JsonWriter(stream, run, segments=segments),
        "jsonl": lambda: JsonlWriter(stream, run, segments=segments, run_id=run_id if path else ""),
        "csv": lambda: CsvWriter(stream, run),
        "csv-segments": lambda: SegmentsCsvWriter(stream, run),
        "labelstudio": lambda: LabelStudioWriter(stream, run),
        **{name: lambda: TimelineWriter(form, stream) for name in TIMELINES},
    }
    try:
        writer = writers[form]()
    except OSError as error:  # of the first lines
        with contextlib.suppress(OSError), files:  # which flush once more
            raise
        raise _explained(error, path, lines=lines) from error
    return OpenWriter(writer, path, files, stream if lines else None)
