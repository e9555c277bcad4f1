"""How a command ends: what it returns or raises as a message for people and an exit status."""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import typer

from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.logs import debugging, print_traceback
from avfewshot.cli.terminal import say, say_error
from avfewshot.errors import AvfsError, Faults
from avfewshot.io import DISK_FULL

# typer's own exception classes moved between versions (it took click in); the public one leads to its parents.
_USAGE_ERROR: Any
_CLICK_EXCEPTION: Any
_USAGE_ERROR, _CLICK_EXCEPTION = typer.BadParameter.__mro__[1:3]


def status_of(command: Callable[[], Any]) -> int:
    """Call a command, which may return a status, and turn what it returns or raises into an exit status."""
    with Interrupts() as interrupts:
        return _status_of(command, interrupts)


def _status_of(command: Callable[[], Any], interrupts: Interrupts) -> int:
    try:
        returned = command()
        sys.stdout.flush()
        return returned if isinstance(returned, int) else 0
    except AvfsError as error:
        status = error.exit_code
        print_traceback(error)
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
        say("Interrupted.")
        status = interrupts.status
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
        print_traceback(error)
        named = f"{error.filename}: " if error.filename else ""
        hint = None if debugging() else "Run with --debug for the traceback."
        if error.errno in (*DISK_FULL, errno.EROFS, errno.EACCES):
            remedy = "Make room there." if error.errno in DISK_FULL else "See that it may be read and written."
            hint = f"{remedy} What was done is kept: the same command goes on, a training with --resume RUN."
        elif _OTHER_BUILD.search(str(error)):
            hint = "It was built for another torch; `avfs doctor` names the package."
        say_error(f"{named}{error.strerror or error}.", hint)
    except Exception as error:
        status = 1
        print_traceback(error)
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
