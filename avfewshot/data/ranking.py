"""Seeded orders that do not depend on the order of rows: a keyed hash per item instead of a random permutation.

Adding, removing or shuffling items leaves the relative order of the others as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def rank_key(seed: int, purpose: str, group: str, name: str) -> bytes:
    """The sort key of an item: BLAKE2b digest, 16 bytes, of the four parts joined by the ASCII unit separator.

    Different purposes give independent orders; `group` is what is drawn from, such as a class name.
    """
    text = "\x1f".join((str(seed), purpose, group, name))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def ranked(items: Iterable[T], name: Callable[[T], str], *, seed: int, purpose: str, group: str) -> list[T]:
    """The items in the seeded order; equal names keep a fixed order among themselves if `items` come sorted."""
    return sorted(items, key=lambda item: (rank_key(seed, purpose, group, name(item)), name(item)))
