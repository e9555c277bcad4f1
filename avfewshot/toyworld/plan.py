"""What a toy data set consists of, and where its ids and its randomness come from; nothing is rendered here."""

from __future__ import annotations

import csv
import hashlib
import io
import string
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from avfewshot.toyworld.script import ClipScript

FEWEST_CLIPS = 3  # clips of a class below which a split would be empty
SPLITS = ("train", "val", "test")
_ID_LETTERS = string.ascii_letters + string.digits + "-_"  # those of YouTube; an id may begin with any of them


@dataclass(frozen=True)
class PlannedClip:
    """A media file to be written."""

    path: str  # below the root of the toy world, with forward slashes
    script: ClipScript  # what happens in it
    picture: tuple[int, bool] | None = None  # a still of that second, or its mask; None: the whole clip


@dataclass(frozen=True)
class DatasetPlan:
    """All files of one data set."""

    name: str  # ``"ave"``, ``"llp"`` or ``"vggsound"``
    title: str  # what people call it
    classes: tuple[str, ...]  # names of its classes as people read them
    clips: tuple[PlannedClip, ...]  # media files
    texts: dict[str, str]  # contents of the annotation files by path below the root


def splits_of(clips_per_class: int) -> list[str]:
    """The split of each clip of a class: two thirds train, a sixth val, a sixth test, at least one of each."""
    held = max(1, clips_per_class // 6)
    return ["train"] * (clips_per_class - 2 * held) + ["val"] * held + ["test"] * held


def digest(*parts: object) -> bytes:
    """A digest of the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def generator(*parts: object) -> np.random.Generator:
    """A source of randomness of the parts alone."""
    return np.random.default_rng(int.from_bytes(digest(*parts), "big"))


def identity(seed: int, dataset: str, label: str, number: int) -> tuple[str, np.random.Generator]:
    """An id as YouTube makes them and the source of a clip's script."""
    key = (seed, dataset, label, number)
    video = "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in digest(*key, "id")[:11])
    return video, generator(*key, "script")


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; ids stay as they are, also those that begin with a minus sign."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


def clips_of(
    seed: int, dataset: str, classes: Iterable[str], clips_per_class: int
) -> Iterator[tuple[str, str, str, np.random.Generator]]:
    """(Class, split, id, source of the script) of each clip of a data set."""
    for label in classes:
        for number, split in enumerate(splits_of(clips_per_class)):
            yield label, split, *identity(seed, dataset, label, number)
