"""From whatever ends a command to a message for the person and an exit status."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import typer

from avfewshot.errors import AvfsError, Faults

DEBUG_VARIABLE = "AVFS_DEBUG"
INTERRUPTED = 130
# typer's own exception classes moved between versions (it took click in); the public one leads to its parents.
_USAGE_ERROR, _CLICK_EXCEPTION = typer.BadParameter.__mro__[1:3]


def wants_debug(arguments: Sequence[str]) -> tuple[list[str], bool]:
    """Take ``--debug`` out of the arguments, wherever it stands before ``--``.

    Returns:
        The other arguments, and whether tracebacks are wanted (the environment may say so, too).
    """
    rest = list(arguments)
    end = rest.index("--") if "--" in rest else len(rest)
    kept = [argument for argument in rest[:end] if argument != "--debug"]
    asked = len(kept) < end
    return kept + rest[end:], asked or debugging()


def debugging() -> bool:
    """Whether the environment asks for tracebacks."""
    return os.environ.get(DEBUG_VARIABLE, "").lower() not in {"", "0", "false", "no"}


def status_of(command: Callable[[], Any], *, debug: bool) -> int:
    """Call a command and turn what it returns or raises into an exit status.

    Args:
        command: Called without arguments; may return a status.
        debug: Show the traceback of an error.

    Returns:
        The exit status.
    """
    try:
        returned = command()
        sys.stdout.flush()
        return returned if isinstance(returned, int) else 0
    except AvfsError as error:
        status = error.exit_code
        _report(error, debug)
        for single in error.faults if isinstance(error, Faults) else (error,):
            say_error(single.message, single.hint)
    except _CLICK_EXCEPTION as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # `avfs data`, say: its help has been printed
            return 0
        status = error.exit_code
        say_error(_first_upper(error.format_message()), _help_hint(error))
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except BrokenPipeError:
        status = _close_pipe()
    except SystemExit as error:  # typer's answer to a closed pipe
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
    except OSError as error:
        if error.errno == errno.EPIPE:
            return _close_pipe()
        status = 1
        _report(error, debug)
        named = f"{error.filename}: " if error.filename else ""
        say_error(f"{named}{error.strerror or error}.", None if debug else "Run with --debug for the traceback.")
    except Exception as error:
        status = 1
        _report(error, debug)
        message, hint = _explain(error)
        say_error(message, hint if debug else f"{hint}Run with --debug for the traceback.")
    return status


def say_error(message: str, hint: str | None = None) -> None:
    """Print an error and what to do about it on stderr."""
    _say("error", "bold red", message, hint)


def say_warning(message: str) -> None:
    """Print a warning on stderr."""
    _say("warning", "bold yellow", message, None)


def _say(kind: str, style: str, message: str, hint: str | None) -> None:
    from rich.console import Console
    from rich.text import Text

    from avfewshot.reports.text import printable

    console = Console(stderr=True, highlight=False)
    lines = [printable(line) for line in message.splitlines()] or [""]
    text = Text.assemble((f"{kind}:", style), f" {lines[0]}", *(f"\n  {line}" for line in lines[1:]))
    if hint:
        text.append(f"\n  {printable(hint)}", style="dim")
    console.print(text, soft_wrap=True)


def _report(error: BaseException, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)


def _explain(error: Exception) -> tuple[str, str]:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return "There is not enough memory.", "Try a smaller --batch-size, --precision bf16 or a smaller --backbone. "
    lines = str(error).strip().splitlines()
    detail = f": {lines[0]}" if lines else ""
    return f"Unexpected {type(error).__name__}{detail}", "This should not happen. "


def _help_hint(error: Any) -> str | None:
    context = getattr(error, "ctx", None)
    if not isinstance(error, _USAGE_ERROR) or context is None:
        return None
    return f"`{context.command_path} --help` lists what there is."


def _first_upper(message: str) -> str:
    return message[:1].upper() + message[1:]


def _close_pipe() -> int:
    # The reader has gone (`avfs ... | head`). Python would complain once more when it flushes stdout at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1
