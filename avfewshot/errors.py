"""Errors meant for the person at the keyboard.

Every error that a user can cause derives from :class:`AvfsError`. The command line prints its message and its hint,
without a traceback, and exits with :attr:`AvfsError.exit_code`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from difflib import get_close_matches
from os import PathLike, fspath
from typing import TypeVar

_T = TypeVar("_T")


class AvfsError(Exception):
    """Work that failed: exit status 1. `message` says what is wrong and where, `hint` what to do, a line each."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}" if self.hint else self.message


class UsageError(AvfsError):
    """A wrong request (arguments, label file, settings): exit status 2."""

    exit_code = 2


class MediaError(AvfsError):
    """A media file that cannot be read; a batch reports it and goes on. `reason` does not name the path."""

    def __init__(self, path: str | PathLike[str], reason: str, *, hint: str | None = None) -> None:
        super().__init__(f"{fspath(path)}: {reason}", hint=hint)
        self.path = fspath(path)
        self.reason = reason


class WeightsError(AvfsError):
    """Weights that are missing, damaged, unsafe or of another architecture."""


class DataError(AvfsError):
    """A data set, annotation file or folder that is not in the expected form."""


class Faults(UsageError):
    """At least two things are wrong with a request; `faults` are in the order to show them."""

    def __init__(self, faults: Sequence[UsageError]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


def explain(error: BaseException) -> str:
    """Why a file could not be read, in one line and without its path."""
    if isinstance(error, MediaError):
        text = f"{error.reason} {error.hint}" if error.hint else error.reason
    elif isinstance(error, AvfsError):
        text = str(error)
    elif isinstance(error, OSError) and error.strerror:
        text = error.strerror
    else:
        text = f"unexpected {type(error).__name__}: {error}"
    return " ".join(text.split())


def check_choice(what: str, value: object, choices: Collection[str]) -> None:
    """Refuse what is none of the choices; the :class:`UsageError` lists them."""
    if value not in choices:
        raise UsageError(f"There is no {what} {value!r}.", hint=f"Choose from: {', '.join(choices)}.")


def some(names: Sequence[str], limit: int = 8) -> str:
    """The first names, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


def flatten(error: UsageError) -> tuple[UsageError, ...]:
    """The single errors inside `error`: those of a :class:`Faults`, else itself alone."""
    return error.faults if isinstance(error, Faults) else (error,)


def collect(faults: list[UsageError], check: Callable[[], _T]) -> _T | None:
    """What a check gives; None where it fails, with its faults added to the others."""
    try:
        return check()
    except UsageError as error:
        faults.extend(flatten(error))
        return None


def raise_faults(faults: Sequence[UsageError]) -> None:
    """Raise the one error there is, or :class:`Faults` of all of them, nested ones flattened; nothing for none."""
    single = [part for fault in faults for part in flatten(fault)]
    if len(single) == 1:
        raise single[0]
    if len(single) > _MOST_FAULTS:
        single[_MOST_FAULTS - 1 :] = [UsageError(f"... and {len(single) - _MOST_FAULTS + 1:,} faults more.")]
    if single:
        raise Faults(single)


_MOST_FAULTS = 100


def did_you_mean(name: str, valid: Iterable[str]) -> str:
    """``" Did you mean 'kernel_ridge'?"`` for ``"rigde"``: the nearest name, by its whole or else by a word of it."""
    whole = {one.lower(): one for one in valid}
    words = {word: one for key, one in whole.items() for word in re.split(r"[_-]", key)}
    for names in (whole, words):
        if close := get_close_matches(name.lower(), names, n=1):
            return f" Did you mean {names[close[0]]!r}?"
    return ""
