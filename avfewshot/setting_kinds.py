"""What a setting's value can be: how it is read from text or TOML, checked, and shown."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

_TRUE = {"1", "true", "yes", "on"}
_FALSE = {"0", "false", "no", "off"}
_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


class Kind:
    """Reads the values of a setting."""

    metavar = "TEXT"
    """How help texts and messages describe the values."""

    def parse(self, raw: Any, *, from_text: bool) -> Any:
        """Check a value.

        Args:
            raw: Text from a flag or the environment, or a TOML value.
            from_text: True for the former: numbers and switches then come as text.

        Returns:
            The typed value.

        Raises:
            ValueError: With what was expected, for people.
        """
        raise NotImplementedError

    def show(self, value: Any) -> str:
        """The value as the person would write it."""
        return str(value)

    def suggestions(self) -> list[str]:
        """Values for shell completion."""
        return []


@dataclass(frozen=True)
class Text(Kind):
    """Any text that is not empty."""

    def parse(self, raw: Any, *, from_text: bool) -> str:
        """See :meth:`Kind.parse`."""
        text = _as_text(raw, "a text")
        if not text.strip():
            raise ValueError("a text is needed, it is empty.")
        return text


@dataclass(frozen=True)
class PathText(Kind):
    """A path; it need not exist yet. ``~`` is the home folder."""

    metavar = "PATH"

    def parse(self, raw: Any, *, from_text: bool) -> Path:
        """See :meth:`Kind.parse`."""
        if isinstance(raw, os.PathLike) and from_text:
            raw = os.fspath(raw)
        text = _as_text(raw, "a path")
        if not text:
            raise ValueError("a path is needed, it is empty.")
        return Path(text).expanduser()


class Choice(Kind):
    """One of a few words.

    Args:
        *choices: The words.
    """

    def __init__(self, *choices: str) -> None:
        self.choices = choices
        self.metavar = "|".join(choices)

    def parse(self, raw: Any, *, from_text: bool) -> str:
        """See :meth:`Kind.parse`."""
        text = _as_text(raw, f"one of {', '.join(self.choices)}")
        if text not in self.choices:
            close = get_close_matches(text, self.choices, n=1)
            guess = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"{text!r} is not one of {', '.join(self.choices)}{guess}.")
        return text

    def suggestions(self) -> list[str]:
        """See :meth:`Kind.suggestions`."""
        return list(self.choices)


class Whole(Kind):
    """A whole number.

    Args:
        least: Smallest value.
        or_word: A word that is accepted as well, for example ``"auto"``.
    """

    def __init__(self, least: int, or_word: str | None = None) -> None:
        self.least = least
        self.or_word = or_word
        self.metavar = f"INTEGER|{or_word}" if or_word else "INTEGER"

    def parse(self, raw: Any, *, from_text: bool) -> int | str:
        """See :meth:`Kind.parse`."""
        word = f" or {self.or_word!r}" if self.or_word else ""
        expected = f"a whole number of at least {self.least}{word} is needed, not {raw!r}."
        if self.or_word is not None and raw == self.or_word:
            return raw
        if from_text and isinstance(raw, str):
            if not re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", raw):
                raise ValueError(expected)
            raw = int(raw)
        if isinstance(raw, bool) or not isinstance(raw, int) or raw < self.least:
            raise ValueError(expected)
        return raw

    def suggestions(self) -> list[str]:
        """See :meth:`Kind.suggestions`."""
        return [self.or_word] if self.or_word else []


@dataclass(frozen=True)
class Flag(Kind):
    """Yes or no."""

    metavar = "BOOLEAN"

    def parse(self, raw: Any, *, from_text: bool) -> bool:
        """See :meth:`Kind.parse`."""
        if isinstance(raw, bool):
            return raw
        if from_text and isinstance(raw, str):
            if raw.strip().lower() in _TRUE:
                return True
            if raw.strip().lower() in _FALSE:
                return False
        raise ValueError(f"true or false is needed, not {raw!r}.")

    def show(self, value: bool) -> str:
        """See :meth:`Kind.show`."""
        return "true" if value else "false"


@dataclass(frozen=True)
class Device(Kind):
    """Where to compute. Whether the machine has it is found out when the model is loaded."""

    metavar = "auto|cpu|cuda|cuda:N|mps"

    def parse(self, raw: Any, *, from_text: bool) -> str:
        """See :meth:`Kind.parse`."""
        text = _as_text(raw, "a device")
        if not _DEVICE.fullmatch(text):
            raise ValueError(f"{text!r} is not a device: auto, cpu, cuda, cuda:0 (cuda:1, ...) or mps.")
        return text

    def suggestions(self) -> list[str]:
        """See :meth:`Kind.suggestions`."""
        return ["auto", "cpu", "cuda", "cuda:0", "mps"]


def _as_text(raw: Any, expected: str) -> str:
    if not isinstance(raw, str):
        raise ValueError(f"{expected} is needed, not {raw!r}.")
    return raw
