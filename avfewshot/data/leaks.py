"""Videos that are learnt from in one place and evaluated on in another: within a data set, and across data sets."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.dataset import SPLITS, Dataset
from avfewshot.data.description import description_names
from avfewshot.data.load import load_dataset
from avfewshot.errors import AvfsError

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


def find_other_datasets(dataset: Dataset | str, folders: Iterable[str | Path]) -> list[Dataset]:
    """Other data sets whose annotation files lie below some folders, sorted by name, media not looked up.

    `dataset` is the one being checked, or its name where its own files are not here. The first folder that has a data
    set wins; one that cannot be read is left out.
    """
    roots = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    own = dataset if isinstance(dataset, str) else dataset.name
    own_files = set() if isinstance(dataset, str) else set(map(os.path.realpath, dataset.files.values()))
    others: list[Dataset] = []
    for name in description_names():
        for folder in roots:
            if name == own or not folder.is_dir():
                continue
            try:
                other = load_dataset(name, folder, find_media=False)
            except AvfsError:
                continue
            if own_files.isdisjoint(map(os.path.realpath, other.files.values())):
                others.append(other)
                break
    return others


def shared_videos(first: Dataset, second: Dataset) -> Iterator[Overlap]:
    """YouTube videos in two splits of one data set, or in two data sets, by pairs of splits that share some."""
    ours, theirs = ({split: youtube_ids(one, [split]) for split in one.split_sizes} for one in (first, second))
    for split, other in itertools.combinations(ours, 2) if first is second else itertools.product(ours, theirs):
        if shared := ours[split] & theirs[other]:
            yield Overlap(f"{first.name}/{split}", f"{second.name}/{other}", tuple(sorted(shared)))


def youtube_ids(dataset: Dataset, splits: Iterable[str] = SPLITS) -> set[str]:
    """YouTube ids of the samples of some splits."""
    wanted = set(splits)
    return {sample.youtube_id for sample in dataset.samples if sample.youtube_id and sample.split in wanted}


@dataclass(frozen=True)
class LeakRemoval:
    """A data set without the clips that would leak into an evaluation."""

    dataset: Dataset  # without them
    removed: tuple[str, ...]  # ids of the removed clips, sorted
    by_source: dict[str, int]  # how many of them are in which ``dataset/split``; a clip may be in several


def without_leaks(dataset: Dataset, evaluations: Iterable[Dataset]) -> LeakRemoval:
    """Remove training and validation clips whose videos are in the evaluation splits of other data sets.

    The test split of `dataset` is kept, since nothing is learnt from it, and so are clips without a YouTube id.
    """
    sources = {f"{o.name}/{split}": youtube_ids(o, [split]) for o in evaluations for split in EVALUATION_SPLITS}
    forbidden = set().union(*sources.values())
    leaking = [s for s in dataset.samples if s.split in ("train", "val") and s.youtube_id in forbidden]
    gone = {id(sample) for sample in leaking}
    by_source = {name: sum(sample.youtube_id in ids for sample in leaking) for name, ids in sources.items()}
    return LeakRemoval(
        dataset.with_samples(sample for sample in dataset.samples if id(sample) not in gone),
        tuple(sorted({sample.id for sample in leaking})),
        {name: count for name, count in by_source.items() if count},
    )
