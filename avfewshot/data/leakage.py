"""Leakage: the same YouTube video in two splits, or in two data sets."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from avfewshot.data.dataset import SPLITS, Dataset
from avfewshot.data.findings import MAX_EXAMPLES

EVALUATION_SPLITS = ("val", "test")


@dataclass(frozen=True)
class Overlap:
    """Videos that two splits share."""

    first: str  # ``dataset/split``
    second: str  # ``dataset/split``
    ids: tuple[str, ...]  # YouTube ids, sorted

    @property
    def count(self) -> int:
        """Number of shared videos."""
        return len(self.ids)

    def to_dict(self) -> dict[str, Any]:
        """The overlap as JSON-ready values."""
        return {
            "first": self.first,
            "second": self.second,
            "count": self.count,
            "examples": list(self.ids[:MAX_EXAMPLES]),
        }


def youtube_ids(dataset: Dataset, splits: Iterable[str] = SPLITS) -> set[str]:
    """YouTube ids of the samples of some splits."""
    wanted = set(splits)
    return {sample.youtube_id for sample in dataset.samples if sample.youtube_id and sample.split in wanted}


def cross_split_overlaps(dataset: Dataset) -> list[Overlap]:
    """Videos that are in two splits of one data set; only pairs that share some."""
    ids = {split: youtube_ids(dataset, [split]) for split in dataset.split_sizes}
    names = list(ids)
    return [
        Overlap(f"{dataset.name}/{first}", f"{dataset.name}/{second}", tuple(sorted(shared)))
        for index, first in enumerate(names)
        for second in names[index + 1 :]
        if (shared := ids[first] & ids[second])
    ]


def cross_dataset_overlaps(first: Dataset, second: Dataset) -> list[Overlap]:
    """Videos that are in two data sets, split by split; only pairs that share some."""
    theirs = {split: youtube_ids(second, [split]) for split in second.split_sizes}
    overlaps = []
    for split in first.split_sizes:
        ours = youtube_ids(first, [split])
        for other, ids in theirs.items():
            if shared := ours & ids:
                overlaps.append(Overlap(f"{first.name}/{split}", f"{second.name}/{other}", tuple(sorted(shared))))
    return overlaps


@dataclass(frozen=True)
class LeakRemoval:
    """A data set without the clips that would leak into an evaluation."""

    dataset: Dataset  # without them
    removed: tuple[str, ...]  # ids of the removed clips, sorted
    by_source: dict[str, int]  # how many of them are in which ``dataset/split``; a clip may be in several


def without_leaks(
    dataset: Dataset,
    evaluations: Iterable[Dataset],
    *,
    from_splits: Iterable[str] = ("train", "val"),
    into_splits: Iterable[str] = EVALUATION_SPLITS,
) -> LeakRemoval:
    """Remove the clips of a pretraining list whose videos are in the evaluation splits of other data sets.

    The test split of `dataset` is kept, since nothing is learnt from it. Clips without a YouTube id cannot be checked
    and stay.

    Returns:
        The cleaned data set and what was removed.
    """
    sources = {f"{other.name}/{split}": youtube_ids(other, [split]) for other in evaluations for split in into_splits}
    forbidden = set().union(*sources.values()) if sources else set()
    cleaned = set(from_splits)
    leaking = [sample for sample in dataset.samples if sample.split in cleaned and sample.youtube_id in forbidden]
    gone = {id(sample) for sample in leaking}
    by_source = {
        name: count for name, ids in sources.items() if (count := sum(sample.youtube_id in ids for sample in leaking))
    }
    return LeakRemoval(
        dataset=dataset.filtered(lambda sample: id(sample) not in gone),
        removed=tuple(sorted({sample.id for sample in leaking})),
        by_source=by_source,
    )
