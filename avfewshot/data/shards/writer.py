"""Writes one shard, whole or not at all, and tells whether one that lies there is whole."""

from __future__ import annotations

import contextlib
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

import webdataset

from avfewshot.data.clip_source import read_start
from avfewshot.data.dataset import Sample
from avfewshot.data.shards.codec import encode_members
from avfewshot.data.shards.index import Rejected, ShardEntry, ShardIndex, StoredClip, entry_path
from avfewshot.data.shards.plan import PlannedShard
from avfewshot.data.shards.processes import Tick
from avfewshot.data.shards.record import ClipRecord
from avfewshot.errors import DataError, explain
from avfewshot.io import atomic_path, sha256_file
from avfewshot.media.clip import Failure

_ABANDONED = 3600.0  # seconds after which an unfinished file is that of a process that was killed


@dataclass(frozen=True)
class ShardTask:
    """A shard to write.

    Attributes:
        folder: Where to.
        index: The index of the folder, which holds the settings.
        plan: Its fingerprint.
        shard: The shard.
    """

    folder: Path
    index: ShardIndex
    plan: str
    shard: PlannedShard


def write_shard(task: ShardTask, tick: Tick) -> ShardEntry:
    """Decode the clips of a shard and write them, and the shard's entry after it.

    The same clips and settings give the same bytes, whenever and by whomever they are written.

    Args:
        task: What to write.
        tick: Called after every clip.

    Returns:
        The entry.

    Raises:
        DataError: The shard cannot be written.
    """
    target = task.folder / task.shard.name
    try:
        _remove_abandoned(target)
        # A shard without an entry counts for nothing; an entry must never stand beside another shard than its own.
        entry_path(task.folder, task.shard.name).unlink(missing_ok=True)
        with atomic_path(target) as temporary, open(temporary, "wb") as stream:
            entry = _fill(task, stream, tick)
        entry.write(task.folder)
    except OSError as error:
        raise DataError(
            f"{target}: cannot be written: {error.strerror or error}.",
            hint="Remedy it and run the same command again: it goes on where it stopped.",
        ) from error
    return entry


def encode_sample(sample: Sample, index: ShardIndex) -> dict[str, bytes] | Failure:
    """Decode a sample's media file and encode it for a shard.

    Args:
        sample: A sample with a media file.
        index: The settings.

    Returns:
        Members by name without the key, or why there are none.
    """
    try:
        clip = read_start(sample.path, frame_size=index.frame_side, seconds=index.seconds)
        return encode_members(clip, ClipRecord.of(sample, index.classes, clip), quality=index.quality)
    except Exception as error:  # whatever it is, it is this file's failure
        return Failure(str(sample.path), explain(error), sample.id)


def examine(folder: Path, plan: str, shard: PlannedShard) -> ShardEntry | Literal["absent", "damaged"]:
    """See whether a shard has been written and is as it was written, to the last bit.

    Args:
        folder: Where it lies.
        plan: Fingerprint of the index.
        shard: The shard.

    Returns:
        Its entry if all is well; otherwise what is wrong.
    """
    path = folder / shard.name
    try:
        entry = ShardEntry.read(folder, shard.name)
    except DataError:
        return "damaged"
    if entry is None:
        return "absent"
    if entry.plan != plan or len(entry.clips) + len(entry.rejected) != len(shard.clips):
        return "damaged"
    try:
        sound = path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
    except OSError:
        return "damaged"
    return entry if sound else "damaged"


def _fill(task: ShardTask, stream: BinaryIO, tick: Tick) -> ShardEntry:
    stored: list[StoredClip] = []
    rejected: list[Rejected] = []
    hashed = _Hashed(stream)
    # Neither a time nor an owner, so that equal clips give equal bytes.
    with webdataset.TarWriter(hashed, encoder=False, mtime=0, user="", group="") as tar:
        for clip in task.shard.clips:
            members = encode_sample(clip.sample, task.index)
            if isinstance(members, Failure):
                rejected.append(Rejected(clip.sample.id, clip.sample.split, members.path, members.error))
            else:
                stored.append(StoredClip(clip.sample.id, clip.key, tar.tarstream.offset))
                tar.write({"__key__": clip.key, **members})
            tick()
    return ShardEntry(
        plan=task.plan,
        name=task.shard.name,
        split=task.shard.split,
        sha256=hashed.digest.hexdigest(),
        bytes=hashed.size,
        clips=tuple(stored),
        rejected=tuple(rejected),
    )


class _Hashed:
    """A stream that hashes what is written to it, so that a shard need not be read again."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.digest = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._stream.write(data)


def _remove_abandoned(target: Path) -> None:
    # Others may be writing to this folder right now: only what nobody has touched for long is removed.
    for path in target.parent.glob(f".{target.stem}-*.part{target.suffix}"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
