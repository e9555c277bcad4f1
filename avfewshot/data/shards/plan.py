"""Which clip goes into which shard: decided by the data set alone, so that machines need not talk to each other."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from avfewshot.data.dataset import SPLITS, Dataset, Sample
from avfewshot.data.ranking import ranked
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

    def part(self, number: int, count: int) -> tuple[PlannedShard, ...]:
        """The shards of part `number` of `count`: every `count`-th, from shard `number` - 1 on.

        Raises:
            UsageError: There is no such part.
        """
        if not 1 <= number <= count:
            raise UsageError(f"There is no part {number} of {count}.", hint="Parts are 1/n, 2/n and so on up to n/n.")
        return self.shards[number - 1 :: count]


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
    `seconds` the longest stretch of a clip to store; `shard_clips` by default :func:`default_shard_clips`.

    Raises:
        UsageError: A setting is out of range, or a split does not exist.
        DataError: No clip has a media file.
    """
    if dataset.description.reader in ("avs", "avqa"):
        raise UsageError(
            f"{dataset.description.title} is not read from shards.", hint="avfs train reads its files as they are."
        )
    size = default_shard_clips(frame_side, seconds) if shard_clips is None else shard_clips
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
    for split in wanted:
        samples = sorted(dataset.available(split), key=lambda sample: (sample.id, sample.row))
        order = ranked(samples, lambda sample: sample.id, seed=seed, purpose="shards", group=split)
        clips = [PlannedClip(_key(number, sample.id), sample) for number, sample in enumerate(order)]
        for number, start in enumerate(range(0, len(clips), size)):
            name = f"{_plain(dataset.name)}-{split}-{number:06d}.tar"
            shards.append(PlannedShard(name, split, tuple(clips[start : start + size])))
    if not shards:
        raise DataError(
            f"No clip of {dataset.description.title} has a media file below {dataset.root}.",
            hint="`avfs data check` tells what is missing; --media DIR names another place.",
        )
    index = ShardIndex(
        dataset=dataset.name,
        title=dataset.description.title,
        classes=dataset.classes,
        wordings=dataset.wordings,
        multi_label=dataset.multi_label,
        num_segments=dataset.num_segments,
        list_sha256=_fingerprint(shards, dataset.classes),
        frame_side=frame_side,
        seconds=seconds,
        quality=quality,
        shards=tuple(ShardName(shard.name, shard.split, len(shard.clips)) for shard in shards),
    )
    missing = tuple(sample for split in wanted for sample in dataset.missing(split))
    return Plan(index, tuple(shards), missing)


def default_shard_clips(frame_side: int, seconds: int) -> int:
    """Clips that make a shard of about 256 MB, at most 1000, for pictures of `frame_side` pixels."""
    return max(1, min(SHARD_CLIPS, SHARD_BYTES // expected_bytes(frame_side, seconds)))


def expected_bytes(frame_side: int, seconds: int) -> int:
    """What a clip takes by rule of thumb."""
    return round(seconds * (frame_side**2 * _BYTES_PER_PIXEL + _BYTES_PER_SECOND))


def _fingerprint(shards: Sequence[PlannedShard], classes: Sequence[str]) -> str:
    """SHA-256 over what is planned; where the media lie on this machine does not count."""
    digest = hashlib.sha256()
    for shard in shards:
        for key, sample in shard.clips:
            line = [shard.name, key, sample.id, sample.row, [classes[label] for label in sample.labels]]
            digest.update(json.dumps(line).encode("ascii") + b"\n")
    return digest.hexdigest()


def _key(number: int, name: str) -> str:
    # The number makes it unique: AVE lists clips under two classes, and odd characters all become "_".
    return f"{number:06d}_{_ODD.sub('_', name)[:80] or '_'}"


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "-", name).strip("-")[:80] or "clips"
