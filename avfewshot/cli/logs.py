"""Log messages and warnings, of this package and of libraries: --verbose, --log-file, --debug, and notices."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from avfewshot.cli.terminal import paused_progress, say_warning
from avfewshot.errors import UsageError
from avfewshot.text import printable

DEBUG_VARIABLE = "AVFS_DEBUG"
_PACKAGE = Path(__file__).resolve().parents[1]
_LOG = logging.getLogger("avfs")
_handlers: list[logging.Handler] = []  # for --verbose and --log-file, until the command ends


def be_verbose(level: int) -> None:
    """Log messages of this package on stderr: 1 what is done with what, 2 and more also for each file."""
    handler = _Details(logging.INFO if level == 1 else logging.DEBUG)
    _handle(handler, handler.level, "avfewshot")


def log_to(path: Path) -> None:
    """Append all that is told, log messages of every level and tracebacks to a file.

    A :class:`UsageError` where it cannot be written, or holds something else than a log.
    """
    try:
        if path.is_file() and path.stat().st_size:
            with open(path, "rb") as stream:
                if not re.match(rb"\d{4}-\d\d-\d\d ", stream.read(11)):
                    raise UsageError(f"--log-file {path}: is a file, but no log.", hint="Name another file.")
        handler = _LogFile(path, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"--log-file {path}: cannot be written: {error.strerror or error}.") from None
    handler.setFormatter(_PrintableFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    _handle(handler, logging.DEBUG, None)


def _handle(handler: logging.Handler, level: int, root: str | None) -> None:
    _handlers.append(handler)
    logging.getLogger(root).addHandler(handler)
    for name in ("avfs", "avfewshot"):
        logger = logging.getLogger(name)
        logger.setLevel(min(level, logger.level or level))


def end_logs() -> None:
    """Take back what :func:`be_verbose` and :func:`log_to` have set."""
    for handler in _handlers:
        for name in (None, "avfewshot"):
            logging.getLogger(name).removeHandler(handler)
        with contextlib.suppress(OSError):  # what a full disk did not take
            handler.close()
    _handlers.clear()
    for name in ("avfs", "avfewshot"):
        logging.getLogger(name).setLevel(logging.NOTSET)


class _PrintableFormatter(logging.Formatter):
    """Names of files come from others: they must not act in the terminal of who reads the log."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).splitlines()))


class _LogFile(logging.FileHandler):
    """A log that cannot be written any more (a full disk) is said once and does not stop the work."""

    def handleError(self, record: logging.LogRecord) -> None:
        logging.getLogger().removeHandler(self)
        say_warning(f"--log-file {self.baseFilename}: cannot be written any more: {sys.exc_info()[1]}.")


class _Details(logging.Handler):
    """Log messages below the warnings, which :class:`Notices` take."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:
            with paused_progress():
                print(printable(record.getMessage()), file=sys.stderr)  # noqa: T201


def debugging() -> bool:
    """Whether the environment asks for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "").lower() not in {"", "0", "false", "no"}


def print_traceback(error: BaseException) -> None:
    """With --debug, show where an error was raised; else the log may have it."""
    if debugging():
        traceback.print_exception(error)
    elif _handlers:
        _LOG.debug("where it happened", exc_info=error)


class Notices(logging.Handler):
    """Warnings of this package on stderr, each only once; those of libraries are for ``--debug`` and the log."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._said: set[str] = set()

    def warn(self, message: str) -> None:
        """Say it, unless it has been said."""
        if message not in self._said:
            self._said.add(message)
            with paused_progress():
                say_warning(message)

    def emit(self, record: logging.LogRecord) -> None:
        """Take a log message."""
        self.warn(record.getMessage())


@contextlib.contextmanager
def library_messages() -> Iterator[Notices]:
    """Let this package's own warnings and log messages through as notices, and those of libraries with ``--debug``."""
    notices, logger = Notices(), logging.getLogger("avfewshot")
    logger.addHandler(notices)

    def show(message: Any, category: type[Warning], filename: str, *rest: Any) -> None:
        if Path(filename).is_relative_to(_PACKAGE):
            notices.warn(str(message))
        else:
            _LOG.debug("%s: %s: %s", filename, category.__name__, message)

    with warnings.catch_warnings():
        if not debugging():
            warnings.showwarning = show
        try:
            yield notices
        finally:
            logger.removeHandler(notices)
