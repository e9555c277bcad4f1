"""What became of the clips of a run: which were used, and which could not be, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.results import Failure
from avfewshot.io import write_text
from avfewshot.text import csv_text


@dataclass
class Usage:
    """What became of the clips of a run."""

    used: dict[str, list[str]] = field(default_factory=dict)  # by role (train: supports, val, test) ids that were used
    _left: dict[tuple[str, str, str], None] = field(default_factory=dict)  # an ordered set

    @property
    def left(self) -> list[tuple[str, str, str]]:
        """(split, id, reason) of clips that could not be used, each once, in the order in which that was found."""
        return list(self._left)

    def leave(self, sample: Sample, reason: str) -> None:
        """Note that a clip cannot be used; once."""
        self._left[sample.split, sample.id, reason] = None

    def restore(self, left: Iterable[tuple[str, str, str]]) -> None:
        """Note what an earlier run found, as :attr:`left` gives it."""
        self._left |= dict.fromkeys(left)

    def counts(self, dataset: Dataset) -> list[tuple[str, int, int, int]]:
        """(split, clips listed, used, unusable) of every split."""
        left = Counter(split for split, _, _ in self._left)
        return [
            (split, size, len(self.used.get(split, ())), left[split]) for split, size in dataset.split_sizes.items()
        ]

    def write(self, path: Path) -> None:
        """Write all clips that were used, and those that could not be, as CSV: split, id, used, reason."""
        used = ((split, name, "yes", "") for split, ids in self.used.items() for name in ids)
        left = ((split, name, "no", reason) for split, name, reason in self.left)
        write_text(path, csv_text((("split", "id", "used", "reason"), *used, *left)))

    def sort(
        self, samples: Sequence[Sample], embedded: Mapping[Path, EmbeddedFile | Failure]
    ) -> list[tuple[Sample, EmbeddedFile]]:
        """The samples whose clips could be embedded, with their embeddings, in order; the others are noted."""
        found = []
        for sample in samples:
            item = None if sample.path is None else embedded[sample.path]
            if item is None:
                self.leave(sample, "no media file was found")
            elif isinstance(item, Failure):
                self.leave(sample, item.error)
            else:
                found.append((sample, item))
        return found


def without_media(dataset: Dataset, paths: Iterable[Path]) -> Dataset:
    """The same data set, as if some media files were not there."""
    gone = set(paths)
    return dataset.with_samples(
        replace(sample, path=None) if sample.path in gone else sample for sample in dataset.samples
    )
