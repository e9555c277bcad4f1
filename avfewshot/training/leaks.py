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
