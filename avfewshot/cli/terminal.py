"""What is said at the terminal: errors, notices, tables, progress bars."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from avfewshot.io import DISK_FULL
from avfewshot.text import printable

_LOG = logging.getLogger("avfs")  # what people are told; not below "avfewshot", whose warnings become notices
_LOG.addHandler(logging.NullHandler())  # else Python prints it
_quiet = False
_NARROW = 60  # columns; below them a description leaves no room for rate and time left


class _Told(io.FileIO):
    """Standard error: what a full disk does not take, or a terminal that is gone, is no reason to end the work."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in DISK_FULL | {errno.EIO}:
                raise
            return len(data)


def hold_streams() -> None:
    """Make standard streams of this process that can be relied on, whichever of them it was given."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # noqa: PERF203 - closed: the next file would have its number, and with it what libraries print
            os.open(os.devnull, os.O_RDWR)
    if sys.stdout is None:
        sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
    raw = io.BufferedWriter(_Told(2, "w", closefd=False))
    sys.stderr = io.TextIOWrapper(raw, sys.stdout.encoding, "backslashreplace", line_buffering=True)


def be_quiet(quiet: bool = True) -> None:
    """Only results and errors from now on: no notices, warnings, progress."""
    global _quiet
    _quiet = quiet


def say_error(message: str, hint: str | None = None) -> None:
    """Print an error and what to do about it on stderr."""
    _LOG.error(f"{message} {hint}" if hint else message)
    _say("error", "bold red", message, hint)


def say_warning(message: str) -> None:
    """Print a warning on stderr."""
    _LOG.warning(message)
    if not _quiet:
        _say("warning", "bold yellow", message, None)


def _say(kind: str, style: str, message: str, hint: str | None) -> None:
    from rich.console import Console
    from rich.text import Text

    lines = [printable(line) for line in message.splitlines()] or [""]
    text = Text.assemble((f"{kind}:", style), f" {lines[0]}", *(f"\n  {line}" for line in lines[1:]))
    if hint:
        text.append(f"\n  {printable(hint)}", style="dim")
    Console(stderr=True, highlight=False).print(text, soft_wrap=True)


def say(message: Any) -> None:
    """Print a text, or something that rich can print, on stderr, above a progress bar if there is one."""
    _LOG.info(message)
    if _quiet:
        return
    with paused_progress():
        if isinstance(message, str):
            print("\n".join(map(printable, message.splitlines())), file=sys.stderr)  # noqa: T201
            return
        from rich.console import Console

        Console(stderr=True, highlight=False).print(message, soft_wrap=True)


def from_here(path: str) -> str:
    """What is shown of a path: what lies below the current folder is named from there."""
    return path.removeprefix(os.path.join(os.getcwd(), ""))


def print_table(rows: Iterable[Iterable[str]], **columns: dict[str, Any]) -> None:
    """Print rows of text on stdout; `columns` are their names with what rich has to know of each."""
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    table = Table(
        *(Column(name, **how) for name, how in columns.items()), box=None, header_style="bold", pad_edge=False
    )
    for row in rows:
        table.add_row(*(Text(printable(text)) for text in row))
    Console(highlight=False).print(table)


@contextlib.contextmanager
def paused_progress() -> Iterator[None]:
    """Clear a progress bar that may be on the terminal, and draw it again afterwards."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:  # never imported: no bar
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


def progress_bar(total: int | None, unit: str, description: str, done: int = 0) -> Any:
    """A tqdm bar on stderr with rate and time left; silent with --quiet and when stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total, initial=done, unit=unit, desc=description, file=sys.stderr, disable=_quiet or None, leave=False,
        **_bar_size(),
    )  # fmt: skip


def _bar_size() -> dict[str, Any]:
    """How tqdm fits a line: with figures first if it is narrow; $COLUMNS goes before what the terminal tells."""
    size = (0, 0)
    how: dict[str, Any] = {"dynamic_ncols": True}
    with contextlib.suppress(OSError):
        size = os.get_terminal_size(2)
    if "COLUMNS" in os.environ or not all(size):  # a serial line, `script`
        size = shutil.get_terminal_size()
        how = {"ncols": size[0] - 1, "nrows": size[1]}
    if size[0] < _NARROW:
        how["bar_format"] = "{n_fmt}/{total_fmt} [{remaining}, {rate_fmt}{postfix}] {desc}"
    return how
