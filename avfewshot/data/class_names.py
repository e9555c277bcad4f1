"""The spellings of a class in annotation files."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

# Key -> other keys of the same class, for spellings that no rule below explains: cut where the comma has become an
# underscore (LLP), or a mended misspelling (VGG-Sound).
_ALSO = {
    "violin": "violin fiddle",
    "chicken": "chicken rooster",
    "baby cry": "baby cry infant cry",
    "frying": "frying food",
    "telephone bell": "telephone bell ringing",
    "electric blender running": "eletric blender running",
}
_NOISE = re.compile(r"[^0-9a-z]+")


def name_key(name: str) -> str:
    """A spelling-independent key: lower case, and anything but letters and digits is one space.

    ``name_key("Frying_(food)") == name_key("Frying (food)")``. A name without any Latin letter or digit is its own key,
    in lower case.
    """
    key = _NOISE.sub(" ", name.lower()).strip() if name.isascii() else " ".join(name.replace("_", " ").lower().split())
    return key or name.strip().lower()


class ClassNames:
    """Finds the class that a name in an annotation file means.

    A name matches, in this order: exactly; by its key; by the part before the first comma, of the name or of the class,
    where that is unique; by the table of other spellings.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._exact = {name: index for index, name in enumerate(classes)}
        self._keys = _unique((name_key(name), index) for index, name in enumerate(classes))
        self._heads = _unique((name_key(name.split(",")[0]), index) for index, name in enumerate(classes))
        self._known: dict[str, int | None] = {}

    def index(self, name: str) -> int | None:
        """Index of the class that `name` means, or None."""
        if name in self._exact:
            return self._exact[name]
        if name not in self._known:
            key = name_key(name)
            others = [self._keys.get(other) for other in (name_key(name.split(",")[0]), _ALSO.get(key, ""))]
            tried = (self._keys.get(key), self._heads.get(key), *others)
            self._known[name] = next((index for index in tried if index is not None), None)
        return self._known[name]

    def whole(self, name: str) -> int | None:
        """Index of the class that is called `name` in full, spelling aside; no match by the part before a comma."""
        return self._exact.get(name, self._keys.get(name_key(name)))

    def respelt(self) -> list[str]:
        """Names asked for so far that matched, but not letter by letter, sorted."""
        return sorted(name for name, index in self._known.items() if index is not None)


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Keys that stand for one class alone; an ambiguous key means nothing."""
    meanings = set(pairs)
    counts = Counter(key for key, _ in meanings)
    return {key: index for key, index in meanings if counts[key] == 1}
