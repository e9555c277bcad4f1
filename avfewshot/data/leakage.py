"""Leakage: the same YouTube video in two splits, or in two data sets."""

from __future__ import annotations

import itertools
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
        examples = list(self.ids[:MAX_EXAMPLES])
        return {"first": self.first, "second": self.second, "count": self.count, "examples": examples}


def youtube_ids(dataset: Dataset, splits: Iterable[str] = SPLITS) -> set[str]:
    """YouTube ids of the samples of some splits."""
    wanted = set(splits)
    return {sample.youtube_id for sample in dataset.samples if sample.youtube_id and sample.split in wanted}


def cross_split_overlaps(dataset: Dataset) -> list[Overlap]:
    """Videos that are in two splits of one data set; only pairs that share some."""
    return _overlaps(dataset, dataset, itertools.combinations(dataset.split_sizes, 2))


def cross_dataset_overlaps(first: Dataset, second: Dataset) -> list[Overlap]:
    """Videos that are in two data sets, split by split; only pairs that share some."""
    return _overlaps(first, second, itertools.product(first.split_sizes, second.split_sizes))


def _overlaps(first: Dataset, second: Dataset, pairs: Iterable[tuple[str, str]]) -> list[Overlap]:
    ours, theirs = ({split: youtube_ids(one, [split]) for split in one.split_sizes} for one in (first, second))
    return [
        Overlap(f"{first.name}/{split}", f"{second.name}/{other}", tuple(sorted(shared)))
        for split, other in pairs
        if (shared := ours[split] & theirs[other])
    ]


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
        dataset=dataset.with_samples(sample for sample in dataset.samples if id(sample) not in gone),
        removed=tuple(sorted({sample.id for sample in leaking})),
        by_source=by_source,
    )
