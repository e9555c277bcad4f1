"""Clips to train on: a support whose clips can be read, and the lists of a pretraining without leaks."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avfewshot.config import TrainingConfig
from avfewshot.data.clip_source import ClipSource, RawSource, read_start, share
from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.leaks import EVALUATION_SPLITS, find_other_datasets, without_leaks, youtube_ids
from avfewshot.data.load import load_dataset, require_media
from avfewshot.data.sampler import Support, draw_support, fingerprint
from avfewshot.data.shards.reader import ShardSet
from avfewshot.errors import DataError
from avfewshot.evaluation.usage import Usage, without_media
from avfewshot.media.clip import Failure
from avfewshot.media.clip_cache import ClipCache
from avfewshot.media.stream import Reader, read_ahead

_BYTES_PER_CLIP = 1_000_000  # of a decoded clip in the cache; a list that does not fit is decoded in each epoch
_KEPT = "Videos of evaluation splits are kept (--keep-leaks): figures on those data sets are too good."
_VIDEO_ID = re.compile(r"([A-Za-z0-9_-]{11})(?:_.*)?", re.DOTALL)


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(count)``, a function of seed and epoch (from 0): nothing to store for a resume."""
    return _generator("order", seed, epoch).permutation(count).tolist()


def window_start(length: int, window: int, *, seed: int, epoch: int, key: str) -> int:
    """The first of the `window` seconds of a clip of `length`, called `key`, that are trained on in an epoch."""
    return 0 if length <= window else int(_generator("window", seed, epoch, key).integers(0, length - window + 1))


def _generator(*parts: object) -> np.random.Generator:
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))


class SupportSource(RawSource):
    """The clips of a support, in the order of :func:`epoch_order`."""

    limit: int | None = None  # clips of an epoch, at most

    def count(self, rank: int, world: int) -> int:
        """See :meth:`ClipSource.count`."""
        return share(min(len(self), self.limit or len(self)), rank, world)

    def order(self, seed: int, epoch: int) -> list[int]:
        """See :meth:`~avfewshot.data.clip_source.RawSource.order`."""
        return epoch_order(len(self), seed=seed, epoch=epoch)[: self.limit]


def sample_labels(dataset: Dataset, sample: Sample, *, per_second: bool) -> Tensor:
    """Labels of a sample: bool ``[K]``, or ``[T, K + 1]`` of its seconds, background last."""
    if not per_second:
        return torch.from_numpy(dataset.multi_hot([sample])[0])
    classes = torch.from_numpy(dataset.segment_labels(sample))
    return torch.nn.functional.one_hot(classes, dataset.num_classes + 1).bool()


def draw(dataset: Dataset, config: TrainingConfig, seed: int) -> Support:
    """The support of a few-shot run, of clips that have media."""
    options = {"sampler": config.sampler, "multi_label": config.multi_label}
    return draw_support(dataset, config.shots, seed, only_available=True, **options)


def readable_support(
    dataset: Dataset, config: TrainingConfig, seed: int, read: Reader, usage: Usage, progress: Callable[[], object]
) -> Support:
    """Draw a support all of whose clips can be read: the next in rank replace those that `usage` notes."""
    errors: dict[Path, str | None] = {}
    while True:
        support = draw(dataset, config, seed)
        paths = [sample.path for sample in support.samples if sample.path is not None]
        fresh = [path for path in paths if path not in errors]
        for path, item in zip(fresh, read_ahead(fresh, read, workers=config.workers), strict=True):
            errors[path] = item.error if isinstance(item, Failure) else None
            progress()
        broken = {path: error for path in paths if (error := errors[path]) is not None}
        if not broken:
            return support
        for sample in support.samples:
            if sample.path in broken:
                usage.leave(sample, broken[sample.path])
        dataset = without_media(dataset, broken)


def shows_one_of(videos: Iterable[str]) -> Callable[[str], bool]:
    """Tells prepared clips of forbidden videos by their ids (``VIDEO`` or ``VIDEO_START...``): shards hold no list."""
    forbidden = frozenset(videos)

    def leaks(name: str) -> bool:
        match = _VIDEO_ID.fullmatch(name)
        return match is not None and match[1] in forbidden

    return leaks


@dataclass(frozen=True)
class PretrainData:
    """The clips of a pretraining."""

    train: ClipSource
    val: ClipSource | None  # clips to validate on
    skip: Callable[[str], bool]  # whether a clip is to be left out, by its id
    about: dict[str, Any]  # what a checkpoint says of the list: list, fingerprint, clips
    notes: tuple[str, ...]  # what a person should know


def shards_to_pretrain(
    folder: str | Path, name: str, *, frame_size: int, workers: int, against: Iterable[str | Path], keep_leaks: bool
) -> PretrainData:
    """Clips of prepared shards, without videos of the evaluation splits of the data sets in `against`."""
    shards = ShardSet.open(folder)
    shards.check_frame_side(frame_size)
    train = shards.split("train", threads=workers)
    val = shards.split("val", threads=workers) if shards.splits.get("val") else None
    others = [] if keep_leaks else find_other_datasets(name, against)
    leaks = shows_one_of(video for other in others for video in youtube_ids(other, EVALUATION_SPLITS))
    left = sum(leaks(clip) for clip in train.ids)
    if keep_leaks:
        note = _KEPT
    elif others:
        note = f"Leakage into evaluation: {left:,} clips left out."
    else:
        note = "Leakage into evaluation is not checked: name the folders of AVE and LLP with --against DIR."
    about = {"list": shards.index.title, "fingerprint": fingerprint(train.ids), "clips": len(train) - left}
    return PretrainData(train, val, leaks, about, (note,))


def videos_to_pretrain(
    name: str,
    root: str | Path,
    *,
    media: Sequence[str | Path] = (),
    list_file: str | Path | None = None,
    frame_size: int,
    frame_backend: str,
    workers: int,
    cache_size: int,
    against: Iterable[str | Path],
    keep_leaks: bool,
) -> PretrainData:
    """The same from videos; what is decoded is kept on disk where all of it fits into `cache_size` bytes.

    A :class:`DataError` where no training clip has media.
    """
    dataset = load_dataset(name, root, media=media, list_file=list_file)
    require_media(dataset, media or [root])
    notes = [f"{dataset.description.title}: {dataset.form}, {len(dataset.samples):,} clips."]
    notes += [finding.message for finding in dataset.report.findings if finding.severity != "info"]
    if keep_leaks:
        notes.append(_KEPT)
    else:
        others = find_other_datasets(dataset, [*against, root, Path(root).parent])
        removal = without_leaks(dataset, others)
        names = ", ".join(other.description.title for other in others) or "no other data set found (--against DIR)"
        where = ", ".join(f"{count:,} in {split}" for split, count in removal.by_source.items())
        notes.append(
            f"Leakage into evaluation ({names}): {len(removal.removed):,} clips left out{f' ({where})' * bool(where)}."
        )
        dataset = removal.dataset
    usable, val = dataset.available("train"), dataset.available("val")
    if not usable:
        raise DataError(f"{dataset.description.title} has no training clip with media.")
    total = dataset.split_sizes["train"]
    if len(usable) < total:
        notes.append(f"{len(usable):,} of {total:,} training clips have media.")
    read = partial(read_start, frame_size=frame_size, frame_backend=frame_backend)
    if cache_size >= _BYTES_PER_CLIP * (len(usable) + len(val)):
        read = partial(ClipCache(max_bytes=cache_size).get, frame_size=frame_size, frame_backend=frame_backend)
    about = {"list": dataset.form, "fingerprint": fingerprint(sample.id for sample in usable), "clips": len(usable)}
    return PretrainData(
        RawSource(dataset, usable, read, threads=workers),
        RawSource(dataset, val, read, threads=workers) if val else None,
        lambda clip: False,
        about,
        tuple(notes),
    )
