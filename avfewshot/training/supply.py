"""What a training is given: a support whose clips can be read, and its labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from avfewshot.config import TrainingConfig
from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.sampler import Support, draw_support
from avfewshot.evaluation.usage import Usage, without_media
from avfewshot.media.clip import Failure
from avfewshot.media.stream import Reader, read_ahead
from avfewshot.training.loop import Labelled


def readable_support(
    dataset: Dataset,
    config: TrainingConfig,
    seed: int,
    read: Reader,
    usage: Usage,
    *,
    progress: Callable[[], object] | None = None,
) -> Support:
    """Draw a support all of whose clips can be read; each that cannot is replaced by the next in rank.

    Args:
        dataset: The data set, with media.
        config: Shots, sampler, multi-label.
        seed: Of the draw.
        read: Decodes a clip; what it reads it should remember.
        usage: Learns about clips that cannot be used.
        progress: Called after each clip that was read.

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
            known[path] = item.error if isinstance(item, Failure) else None
            if progress is not None:
                progress()
        broken = {sample.path: known[sample.path] for sample in support.samples if known[sample.path]}
        if not broken:
            return support
        for sample in support.samples:
            if sample.path in broken:
                usage.leave(sample, broken[sample.path])
        dataset = without_media(dataset, broken)


def labelled(dataset: Dataset, samples: Sequence[Sample], *, per_second: bool) -> list[Labelled]:
    """Samples in the form in which they are trained on.

    Args:
        dataset: Their data set.
        samples: Samples with media.
        per_second: Whether seconds are labelled.
    """
    return [
        Labelled(sample.id, sample.path, _labels(dataset, sample, per_second), row)
        for row, sample in enumerate(samples)
    ]


def _labels(dataset: Dataset, sample: Sample, per_second: bool) -> Tensor:
    if not per_second:
        return torch.from_numpy(dataset.multi_hot([sample])[0])
    classes = torch.from_numpy(dataset.segment_labels(sample))
    return torch.nn.functional.one_hot(classes, dataset.num_classes + 1).bool()
