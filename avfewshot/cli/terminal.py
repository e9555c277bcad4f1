"""Between a command and the person at the terminal: errors and exit statuses, notices, progress bars, signals."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import typer

from avfewshot.errors import AvfsError, Faults, UsageError
from avfewshot.io import printable

DEBUG_VARIABLE = "AVFS_DEBUG"
INTERRUPTED = 130
_PACKAGE = Path(__file__).resolve().parents[1]
# typer's own exception classes moved between versions (it took click in); the public one leads to its parents.
_USAGE_ERROR: Any
_CLICK_EXCEPTION: Any
_USAGE_ERROR, _CLICK_EXCEPTION = typer.BadParameter.__mro__[1:3]


_LOG = logging.getLogger("avfs")  # what people are told; not below "avfewshot", whose warnings become notices
_LOG.addHandler(logging.NullHandler())  # else Python prints it
_quiet = False
_handlers: list[logging.Handler] = []  # for --verbose and --log-file, until the command ends


def be_quiet() -> None:
    """Only results and errors from now on: no notices, warnings, progress."""
    global _quiet
    _quiet = True


def be_verbose(level: int) -> None:
    """Log messages of this package on stderr: 1 what is done with what, 2 and more also for each file."""
    handler = _Details(logging.INFO if level == 1 else logging.DEBUG)
    _handle(handler, handler.level, "avfewshot")


def log_to(path: Path) -> None:
    """Append all that is told, log messages of every level and tracebacks to a file."""
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


def be_as_before() -> None:
    """Take back what the options of a command have set."""
    global _quiet
    _quiet = False
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


def status_of(command: Callable[[], Any]) -> int:
    """Call a command, which may return a status, and turn what it returns or raises into an exit status."""
    try:
        returned = command()
        sys.stdout.flush()
        return returned if isinstance(returned, int) else 0
    except AvfsError as error:
        status = error.exit_code
        _print_traceback(error)
        for single in error.faults if isinstance(error, Faults) else (error,):
            say_error(single.message, single.hint)
    except _CLICK_EXCEPTION as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `avfs data`, say: its help has been printed
            return 0
        status = error.exit_code
        message = re.sub("Input should be ([^,]*).*", r"it should be \1.", error.format_message())  # of pydantic
        context = getattr(error, "ctx", None)
        hint = None
        if isinstance(error, _USAGE_ERROR) and context is not None:
            hint = f"`{context.command_path} --help` lists what there is."
        say_error(message[:1].upper() + message[1:], hint)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        status = _close_pipe()
    except SystemExit as error:  # typer's answer to a closed pipe
        context = error.__context__
        if isinstance(context, OSError) and context.errno == errno.EPIPE:
            return _close_pipe()
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _close_pipe()
        status = 1
        _print_traceback(error)
        named = f"{error.filename}: " if error.filename else ""
        hint = None if debugging() else "Run with --debug for the traceback."
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            hint = "Make room there. What was done is kept: the same command goes on, a training with --resume RUN."
        elif _OTHER_BUILD.search(str(error)):
            hint = "It was built for another torch; `avfs doctor` names the package."
        say_error(f"{named}{error.strerror or error}.", hint)
    except Exception as error:
        status = 1
        _print_traceback(error)
        if (
            isinstance(error, MemoryError)
            or type(error).__name__ == "OutOfMemoryError"
            or _NO_MEMORY.search(str(error))
        ):
            message = "There is not enough memory."
            hint = "Try a smaller --batch-size, --precision bf16 or a smaller --backbone. "
        else:
            lines = str(error).strip().splitlines()
            message = f"Unexpected {type(error).__name__}{f': {lines[0]}' if lines else ''}"
            fits = _OTHER_BUILD.search(message) is None
            hint = "This should not happen. " if fits else "A package is for another torch; `avfs doctor` names it. "
        say_error(message, hint if debugging() else f"{hint}Run with --debug for the traceback.")
    return status


# What libraries say under `ulimit -v`: the loader of shared objects, torch, the starter of threads.
_NO_MEMORY = re.compile("failed to map segment|[Cc]annot allocate memory|not enough memory|can't start new thread")

# What torchaudio and torchvision say beside a torch of another build.
_OTHER_BUILD = re.compile("Could not load this library|operator torch(vision|audio)::|undefined symbol")


def _close_pipe() -> int:
    # The reader has gone (`avfs ... | head`). Python would complain once more when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + 13  # as if SIGPIPE had ended it


def _print_traceback(error: BaseException) -> None:
    if debugging():
        import traceback

        traceback.print_exception(error)
    elif _handlers:
        _LOG.debug("where it happened", exc_info=error)


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


def _clock(second: int) -> str:
    return f"{second // 60}:{second % 60:02}"


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


@contextlib.contextmanager
def paused_progress() -> Iterator[None]:
    """Clear a progress bar that may be on the terminal, and draw it again afterwards."""
    tqdm = sys.modules.get("tqdm")
    if tqdm is None:  # never imported: no bar
        yield
        return
    with tqdm.tqdm.external_write_mode(file=sys.stderr):
        yield


def progress_bar(total: int | None, unit: str, description: str) -> Any:
    """A tqdm bar on stderr with rate and time left; silent with --quiet and when stderr is not a terminal."""
    from tqdm import tqdm

    return tqdm(
        total=total, unit=unit, desc=description, file=sys.stderr, disable=_quiet or None, dynamic_ncols=True,
        leave=False,
    )  # fmt: skip


class Interrupts:
    """Turns SIGINT and SIGTERM into ``KeyboardInterrupt``, deferred while a result is being written.

    A second signal is not deferred, so that nobody is kept waiting against their will.
    """

    def __init__(self) -> None:
        self.received: int | None = None  # the last signal
        self._held = False
        self._waiting = False
        self._before: dict[int, Any] = {}

    @property
    def status(self) -> int:
        """Exit status by custom: 128 and the number of the signal."""
        return 128 + (self.received or signal.SIGINT)

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._take)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    @contextlib.contextmanager
    def put_off(self) -> Iterator[Callable[[], bool]]:
        """Let the first signal wait until the end of the block; gives what tells whether one is waiting."""
        self._held = True
        try:
            yield lambda: self._waiting
        finally:
            self._held = False
        if self._waiting:
            self._waiting = False
            raise KeyboardInterrupt

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        if self._held and not self._waiting:
            self._waiting = True
            return
        raise KeyboardInterrupt
