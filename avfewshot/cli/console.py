"""What goes to the person's terminal while a command works: warnings once each, and a progress bar."""

from __future__ import annotations

import contextlib
import logging
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avfewshot.cli.lifecycle import say_warning

_PACKAGE = Path(__file__).resolve().parents[1]


class Notices:
    """Warnings on stderr, each only once."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def warn(self, message: str) -> None:
        """Say it, unless it has been said."""
        if message not in self._said:
            self._said.add(message)
            with paused_progress():
                say_warning(message)


@contextlib.contextmanager
def library_messages(notices: Notices, *, debug: bool) -> Iterator[None]:
    """Let this package's own warnings and log messages through as notices; keep those of libraries for ``--debug``.

    Args:
        notices: Where they go.
        debug: Show what libraries say as well, as they say it.
    """
    handler = _NoticeHandler(notices)
    logger = logging.getLogger("avfewshot")
    logger.addHandler(handler)

    def show(message: Any, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(filename).is_relative_to(_PACKAGE):
            notices.warn(str(message))

    with warnings.catch_warnings():
        if not debug:
            warnings.showwarning = show
        try:
            yield
        finally:
            logger.removeHandler(handler)


class _NoticeHandler(logging.Handler):
    def __init__(self, notices: Notices) -> None:
        super().__init__(logging.WARNING)
        self._notices = notices

    def emit(self, record: logging.LogRecord) -> None:
        self._notices.warn(record.getMessage())


@contextlib.contextmanager
def paused_progress() -> Iterator[None]:
    """Clear a progress bar that may be on the terminal, and draw it again afterwards."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:  # never imported: no bar
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


def progress_bar(total: int, unit: str, description: str) -> Any:
    """A tqdm bar on stderr with rate and time left; silent when stderr is not a terminal.

    Args:
        total: How many there are to do.
        unit: What is counted, for example ``"clip"``.
        description: What is done.
    """
    from tqdm import tqdm

    return tqdm(
        total=total, unit=unit, desc=description, file=sys.stderr, disable=None, dynamic_ncols=True, leave=False
    )
