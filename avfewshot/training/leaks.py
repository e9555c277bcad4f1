"""Which prepared clips show videos that are evaluated on: told by their ids, since shards hold no list."""

from __future__ import annotations

import re
from collections.abc import Collection

_ID = re.compile(r"([A-Za-z0-9_-]{11})(?:_.*)?", re.DOTALL)


class LeakFilter:
    """Tells clips of forbidden videos.

    Args:
        forbidden: YouTube ids, 11 characters each.
    """

    def __init__(self, forbidden: Collection[str]) -> None:
        self._forbidden = frozenset(forbidden)

    def __call__(self, name: str) -> bool:
        """Whether a clip of this id (``VIDEO`` or ``VIDEO_START...``) shows a forbidden video."""
        match = _ID.fullmatch(name)
        return match is not None and match[1] in self._forbidden

    def describe(self, left: int, looked: bool, kept: bool) -> str:
        """What a person should know.

        Args:
            left: Clips left out.
            looked: Whether there were data sets to compare with.
            kept: Whether clips are kept on purpose.
        """
        if kept:
            return "Videos of evaluation splits are kept (--keep-leaks): figures on those data sets are too good."
        if not looked:
            return "Leakage into evaluation is not checked: name the folders of AVE and LLP with --against DIR."
        return f"Leakage into evaluation: {left:,} clips left out."
