"""Which clips of a data set a run uses, and which it cannot use and why."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from avfewshot.datasets.dataset import Dataset, Sample
from avfewshot.datasets.sampler import Support, draw_support
from avfewshot.embedder import EmbeddedFile
from avfewshot.fileio import write_text
from avfewshot.media.prefetch import ClipFailure
from avfewshot.results import Failure
from avfewshot.scoring.embedding import Embedded
from avfewshot.scoring.reading import Reader, read_ahead
from avfewshot.training.config import TrainingConfig
from avfewshot.training.loop import Labelled

NO_MEDIA = "no media file was found"


@dataclass
class Usage:
    """What became of the clips of a run.

    Attributes:
        used: By role (``train`` for supports, ``val``, ``test``) the ids that were used.
        left: (split, id, reason) of clips that could not be used.
    """

    used: dict[str, list[str]] = field(default_factory=dict)
    left: list[tuple[str, str, str]] = field(default_factory=list)

    def leave(self, sample: Sample, reason: str) -> None:
        """Note that a clip cannot be used; once."""
        entry = (sample.split, sample.id, reason)
        if entry not in self.left:
            self.left.append(entry)

    def counts(self, dataset: Dataset) -> list[tuple[str, int, int, int]]:
        """(split, clips listed, used, unusable) of every split."""
        return [
            (
                split,
                size,
                len(self.used.get(split, ())),
                sum(left[0] == split for left in self.left),
            )
            for split, size in dataset.split_sizes.items()
        ]

    def write(self, path: Path) -> None:
        """Write all clips that were used, and those that could not be, as CSV: split, id, used, reason."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(("split", "id", "used", "reason"))
        for split, ids in self.used.items():
            writer.writerows((split, name, "yes", "") for name in ids)
        writer.writerows((split, name, "no", reason) for split, name, reason in self.left)
        write_text(path, text.getvalue())


def readable_support(
    dataset: Dataset,
    config: TrainingConfig,
    seed: int,
    read: Reader,
    usage: Usage,
    *,
    progress: Callable[[int], object] | None = None,
) -> Support:
    """Draw a support all of whose clips can be read; each that cannot is replaced by the next in rank.

    Args:
        dataset: The data set, with media.
        config: Shots, sampler, multi-label.
        seed: Of the draw.
        read: Decodes a clip; what it reads it should remember.
        usage: Learns about clips that cannot be used.
        progress: Called with the number of clips of the support, then with 1 for each clip read.

    Returns:
        The support.

    Raises:
        DataError: There is nothing to draw from.
    """
    known: dict[Path, str | None] = {}
    while True:
        support = draw_support(
            dataset, config.shots, seed, sampler=config.sampler, multi_label=config.multi_label, only_available=True
        )
        fresh = [sample.path for sample in support.samples if sample.path not in known]
        for path, item in zip(fresh, read_ahead(fresh, read, workers=config.workers), strict=True):
            known[path] = item.error if isinstance(item, ClipFailure) else None
            if progress is not None:
                progress(len(support.samples))
        broken = {sample.path: known[sample.path] for sample in support.samples if known[sample.path]}
        if not broken:
            return support
        for sample in support.samples:
            if sample.path in broken:
                usage.leave(sample, broken[sample.path])
        dataset = without_media(dataset, broken)


def without_media(dataset: Dataset, paths: Iterable[Path]) -> Dataset:
    """The same data set, as if some media files were not there."""
    gone = set(paths)
    return dataset.with_samples(
        replace(sample, path=None) if sample.path in gone else sample for sample in dataset.samples
    )


def usable(samples: Sequence[Sample], embedded: Embedded, usage: Usage) -> list[tuple[Sample, EmbeddedFile]]:
    """The samples whose clips could be embedded.

    Args:
        samples: Of a split; those without media are left out.
        embedded: What became of their files.
        usage: Learns about the others.

    Returns:
        Samples with their embeddings, in order.
    """
    found = []
    for sample in samples:
        item = None if sample.path is None else embedded[sample.path]
        if item is None:
            usage.leave(sample, NO_MEDIA)
        elif isinstance(item, Failure):
            usage.leave(sample, item.error)
        else:
            found.append((sample, item))
    return found


def labelled(dataset: Dataset, samples: Sequence[Sample], *, per_second: bool) -> list[Labelled]:
    """Samples in the form in which they are trained on.

    Args:
        dataset: Their data set.
        samples: Samples with media.
        per_second: Whether seconds are labelled.
    """
    return [Labelled(sample.id, sample.path, _labels(dataset, sample, per_second)) for sample in samples]


def _labels(dataset: Dataset, sample: Sample, per_second: bool) -> Tensor:
    if not per_second:
        return torch.from_numpy(dataset.multi_hot([sample])[0])
    classes = torch.from_numpy(dataset.segment_labels(sample))
    return torch.nn.functional.one_hot(classes, dataset.num_classes + 1).bool()


def describe_usage(counts: Sequence[tuple[str, int, int, int]], roles: Mapping[str, str]) -> list[str]:
    """What a person should know, one sentence a split that the run uses.

    Args:
        counts: From :meth:`Usage.counts`.
        roles: What each split is used for.
    """
    lines = []
    for split, listed, used, left in counts:
        if split in roles:
            rest = f"; {left:,} cannot be used" if left else ""
            lines.append(f"{roles[split]}: {used:,} of {listed:,} clips of {split}{rest}.")
    return lines
