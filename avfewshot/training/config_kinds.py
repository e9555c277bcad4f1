"""Kinds of values that only training has: numbers in a range, seeds, sizes."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from avfewshot.setting_kinds import Flag, Kind

_SEED_LIMIT = 2**32
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?", re.IGNORECASE)
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


class Number(Kind):
    """A finite number in a range.

    Args:
        least: Smallest value.
        most: Largest value; unbounded when None.
        above: Whether `least` itself is too small.
        or_word: A word that may stand in place of the number.
    """

    metavar = "NUMBER"

    def __init__(
        self, least: float, most: float | None = None, *, above: bool = False, or_word: str | None = None
    ) -> None:
        self.least, self.most, self.above, self.or_word = least, most, above, or_word
        if or_word is not None:
            self.metavar = f"NUMBER|{or_word}"

    def parse(self, raw: Any, *, from_text: bool) -> float | str:
        """See :meth:`~avfewshot.setting_kinds.Kind.parse`.

        Text is read as a number in files as well, since YAML takes ``3e-4`` for one.
        """
        if self.or_word is not None and raw == self.or_word:
            return self.or_word
        bounds = f"{'greater than' if self.above else 'of at least'} {self.least:g}"
        bounds += "" if self.most is None else f" and at most {self.most:g}"
        word = f" or {self.or_word}" if self.or_word else ""
        expected = f"a number {bounds}{word} is needed, not {raw!r}."
        if isinstance(raw, str):
            try:
                value = float(raw)
            except ValueError:
                raise ValueError(expected) from None
        elif isinstance(raw, (int, float)) and not isinstance(raw, bool):
            try:
                value = float(raw)
            except OverflowError:
                raise ValueError(expected) from None
        else:
            raise ValueError(expected)
        too_small = value <= self.least if self.above else value < self.least
        if not math.isfinite(value) or too_small or (self.most is not None and value > self.most):
            raise ValueError(expected)
        return value

    def show(self, value: float | str) -> str:
        """See :meth:`~avfewshot.setting_kinds.Kind.show`."""
        return value if isinstance(value, str) else f"{value:g}"


class Switch(Flag):
    """Yes, no, or ``auto``."""

    metavar = "BOOLEAN|auto"

    def parse(self, raw: Any, *, from_text: bool) -> bool | str:
        """See :meth:`~avfewshot.setting_kinds.Kind.parse`."""
        return raw if raw == "auto" else super().parse(raw, from_text=from_text)

    def show(self, value: bool | str) -> str:
        """See :meth:`~avfewshot.setting_kinds.Kind.show`."""
        return value if isinstance(value, str) else super().show(value)


class Seeds(Kind):
    """One or several seeds: ``1`` or ``1,2,3``; in files also a list."""

    metavar = "INTEGER[,INTEGER...]"

    def parse(self, raw: Any, *, from_text: bool) -> tuple[int, ...]:
        """See :meth:`~avfewshot.setting_kinds.Kind.parse`."""
        expected = f"different whole numbers from 0 to {_SEED_LIMIT - 1}, as 1,2,3, are needed, not {raw!r}."
        if isinstance(raw, str):
            items: Sequence[Any] = raw.split(",")
            if not all(re.fullmatch(r"\s*[0-9]{1,18}\s*", item) for item in items):
                raise ValueError(expected)
            items = [int(item) for item in items]
        else:
            items = list(raw) if isinstance(raw, (list, tuple)) else [raw]
        sound = all(isinstance(item, int) and not isinstance(item, bool) and 0 <= item < _SEED_LIMIT for item in items)
        if not items or not sound or len(set(items)) < len(items):
            raise ValueError(expected)
        return tuple(items)

    def show(self, value: Sequence[int]) -> str:
        """See :meth:`~avfewshot.setting_kinds.Kind.show`."""
        return ",".join(str(item) for item in value)


class Size(Kind):
    """A number of bytes: ``500MB``, ``20GB`` (powers of ten) or plain bytes."""

    metavar = "SIZE"

    def parse(self, raw: Any, *, from_text: bool) -> int:
        """See :meth:`~avfewshot.setting_kinds.Kind.parse`."""
        if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
            return raw
        match = _SIZE.fullmatch(raw.strip()) if isinstance(raw, str) else None
        if match is None:
            raise ValueError(f"a size as 500MB, 20GB or 0 is needed, not {raw!r}.")
        return round(float(match[1]) * _UNITS[match[2].lower()])

    def show(self, value: int) -> str:
        """See :meth:`~avfewshot.setting_kinds.Kind.show`."""
        for unit in ("t", "g", "m", "k"):
            if value and value % _UNITS[unit] == 0:
                return f"{value // _UNITS[unit]}{unit.upper()}B"
        return str(value)
