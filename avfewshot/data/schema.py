"""The typed form of a data set description; ``data_splits/README.md`` documents the keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FORMAT = 1
READERS = ("ave", "llp", "vggsound", "ovave", "folder")


@dataclass(frozen=True)
class ClassEntry:
    """A class: the name that annotation files use and the wording that prompts use."""

    name: str
    wording: str


@dataclass(frozen=True)
class OfficialFile:
    """An annotation file.

    Attributes:
        role: What the file is for; the reader knows the roles.
        names: Accepted file names, the official one first.
        required: The data set cannot be read without it.
        rows: Data rows of the official file (without header), if known.
        sha256: SHA-256 of the official file, if known.
        variants: SHA-256 of other official releases of the file.
    """

    role: str
    names: tuple[str, ...]
    required: bool = True
    rows: int | None = None
    sha256: str | None = None
    variants: tuple[str, ...] = ()


@dataclass(frozen=True)
class Description:
    """What is known of a data set without its annotation files.

    Attributes:
        name: Name of the data set.
        title: One line for people.
        reader: Layout of the annotation files, one of :data:`READERS`.
        tasks: Names of the tasks that use it.
        classes: Classes in the official order; empty where the list or the folders bring them.
        files: Annotation files.
        path: The YAML file this was read from, None for one made in code.
        background: The class "no event", or None.
        folders: Folder names looked for below a data root.
        segments: One-second segments in a clip.
        multi_label: Clips carry several labels.
        splits: Expected clips per split.
        expected_classes: Classes that a list bringing its own should have.
        minimum_rows: Rows below which such a list is suspiciously short.
        known_classes: Classes that such a list should contain.
        supports: Pinned fingerprints: sampler -> seed -> k -> hex digest (``first_k``: k -> hex digest).
        paper: Citation.
        source: Where it is published.
        how_to_get: What to do to have it.
        licence: ``annotations`` and ``media``.
    """

    name: str
    title: str
    reader: str
    tasks: tuple[str, ...]
    classes: tuple[ClassEntry, ...]
    files: tuple[OfficialFile, ...]
    path: Path | None = None
    background: ClassEntry | None = None
    folders: tuple[str, ...] = ()
    segments: int = 10
    multi_label: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)
    expected_classes: int | None = None
    minimum_rows: int | None = None
    known_classes: tuple[str, ...] = ()
    supports: Mapping[str, Any] = field(default_factory=dict)
    paper: str = ""
    source: str = ""
    how_to_get: str = ""
    licence: Mapping[str, str] = field(default_factory=dict)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the official order."""
        return tuple(entry.name for entry in self.classes)

    @property
    def wordings(self) -> tuple[str, ...]:
        """Wordings of the classes, in the official order."""
        return tuple(entry.wording for entry in self.classes)

    def file(self, role: str) -> OfficialFile | None:
        """The annotation file of `role`, or None if this data set has none."""
        return next((entry for entry in self.files if entry.role == role), None)

    def pinned_fingerprint(self, sampler: str, seed: int, k: int) -> str | None:
        """The published fingerprint of a support drawn from the official files.

        Args:
            sampler: ``"nested"``, ``"nested_multi_label"`` or ``"first_k"`` (which has no seed: it is ignored).
            seed: Seed of the draw.
            k: Shots per class.

        Returns:
            The hexadecimal digest, or None where none is pinned.
        """
        table = self.supports.get(sampler, {})
        return table.get(k) if sampler == "first_k" else table.get(seed, {}).get(k)


def default_wording(name: str) -> str:
    """A class or folder name as words: ``Frying_(food)`` becomes ``frying (food)``."""
    return " ".join(name.replace("_", " ").split()).lower()
