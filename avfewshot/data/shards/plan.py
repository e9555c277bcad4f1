"""Which clip goes into which shard: by the data set alone, so that machines need not talk to each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from avfewshot.data.dataset import SPLITS, Dataset, Sample, ranked
from avfewshot.data.shards.record import MOST, ShardIndex, ShardName, Split
from avfewshot.errors import DataError, UsageError, did_you_mean

SHARD_CLIPS = 1000
SHARD_BYTES = 256_000_000

# JPEG at quality 95 takes about 0.4 bytes a pixel, FLAC about 40 kB a second of 48 kHz mono.
_BYTES_PER_PIXEL = 0.4
_BYTES_PER_SECOND = 40_000
_ODD = re.compile(r"[^A-Za-z0-9_-]")


class PlannedClip(NamedTuple):
    """A clip and its name in the shard, which is unique and plain, whatever the clip's id is made of."""

    key: str
    sample: Sample


class PlannedShard(NamedTuple):
    """A shard to write: its file name, its split, and what goes into it, in order."""

    name: str
    split: Split
    clips: tuple[PlannedClip, ...]


@dataclass(frozen=True)
class Plan:
    """All shards of a data set."""

    index: ShardIndex  # what index.json will say
    shards: tuple[PlannedShard, ...]  # in the order of the index
    missing: tuple[Sample, ...]  # samples without a media file, which are left out

    @property
    def clips(self) -> int:
        """Number of clips planned."""
        return sum(len(shard.clips) for shard in self.shards)


def plan_shards(
    dataset: Dataset,
    *,
    frame_side: int,
    seconds: int = 10,
    quality: int = 95,
    splits: Sequence[str] | None = None,
    shard_clips: int | None = None,
    seed: int = 0,
) -> Plan:
    """Assign the clips of a data set, whose media have been looked up, to shards.

    Clips of a split are put into a seeded order first, so that every shard is a mixture of classes. The plan is the
    same for the same data set and settings, on any machine. `frame_side` is in pixels, `quality` of JPEG from 1 to 100,
    `seconds` the longest stretch of a clip to store; `shard_clips` by default what makes about 256 MB, at most 1000.

    Raises:
        UsageError: A setting is out of range, or a split does not exist.
        DataError: No clip has a media file.
    """
    if dataset.description.reader in ("avs", "avqa"):
        message = f"{dataset.description.title} is not read from shards."
        raise UsageError(message, hint="avfs train reads its files as they are.")
    usual = max(1, min(SHARD_CLIPS, SHARD_BYTES // clip_bytes(frame_side, seconds)))
    size = usual if shard_clips is None else shard_clips
    limits = (("--shard-clips", size, None), ("--seconds", seconds, MOST), ("--quality", quality, 100))
    for option, value, most in limits:
        if value < 1 or (most is not None and value > most):
            raise UsageError(f"{option} {value} is out of range.", hint=f"From 1 to {most}." if most else "At least 1.")
    available = tuple(dataset.split_sizes)
    if unknown := [split for split in splits or () if split not in available]:
        message = f"{dataset.description.title} has no split {unknown[0]!r}.{did_you_mean(unknown[0], available)}"
        raise UsageError(message, hint=f"Its splits: {', '.join(available)}.")
    wanted: list[Split] = [split for split in SPLITS if split in (splits or available)]
    shards: list[PlannedShard] = []
    digest = hashlib.sha256()  # over what is planned; where the media lie on this machine does not count
    plain = re.sub(r"[^A-Za-z0-9]+", "-", dataset.name).strip("-")[:80] or "clips"
    for split in wanted:
        samples = sorted(dataset.available(split), key=lambda sample: (sample.id, sample.row))
        order = ranked(samples, seed=seed, purpose="shards", group=split)
        # The number makes the key unique: AVE lists clips under two classes, and odd characters all become "_".
        keys = (f"{number:06d}_{_ODD.sub('_', sample.id)[:80] or '_'}" for number, sample in enumerate(order))
        clips = [PlannedClip(key, sample) for key, sample in zip(keys, order, strict=True)]
        for number, start in enumerate(range(0, len(clips), size)):
            shard = PlannedShard(f"{plain}-{split}-{number:06d}.tar", split, tuple(clips[start : start + size]))
            shards.append(shard)
            for key, sample in shard.clips:
                labels = [dataset.classes[label] for label in sample.labels]
                digest.update(json.dumps([shard.name, key, sample.id, sample.row, labels]).encode("ascii") + b"\n")
    if not shards:
        message = f"No clip of {dataset.description.title} has a media file below {dataset.root}."
        raise DataError(message, hint="`avfs data check` tells what is missing; --media DIR names another place.")
    index = ShardIndex(
        dataset=dataset.name,
        title=dataset.description.title,
        classes=dataset.classes,
        wordings=dataset.wordings,
        multi_label=dataset.multi_label,
        num_segments=dataset.num_segments,
        list_sha256=digest.hexdigest(),
        frame_side=frame_side,
        seconds=seconds,
        quality=quality,
        shards=tuple(ShardName(shard.name, shard.split, len(shard.clips)) for shard in shards),
    )
    missing = tuple(sample for split in wanted for sample in dataset.missing(split))
    return Plan(index, tuple(shards), missing)


def clip_bytes(frame_side: int, seconds: int) -> int:
    """What a clip takes by rule of thumb."""
    return round(seconds * (frame_side**2 * _BYTES_PER_PIXEL + _BYTES_PER_SECOND))
