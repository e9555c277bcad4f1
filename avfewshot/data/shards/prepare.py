"""Writes the shards of a plan: finished ones are verified and kept, others written whole or not.

Clips are decoded ahead, in processes that may die of one, and written in order: the same clips and settings give the
same bytes, however many processes there are.
"""

from __future__ import annotations

import contextlib
import csv
import io
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from webdataset.writer import TarWriter

from avfewshot.data.clip_source import read_start
from avfewshot.data.dataset import Sample
from avfewshot.data.shards.plan import Plan, PlannedShard, clip_bytes
from avfewshot.data.shards.record import (
    INDEX_NAME,
    ClipRecord,
    Rejected,
    ShardEntry,
    ShardIndex,
    StoredClip,
    entry_path,
)
from avfewshot.errors import DataError, explain
from avfewshot.io import atomic_path, sha256_file, sweep_leftovers, write_text
from avfewshot.media.clip_bytes import encode_picture, encode_sound
from avfewshot.media.stream import ordered_map
from avfewshot.text import csv_cell

REJECTED_NAME = "rejected.csv"

_TRIED = 4  # clips that the size of all is estimated from
_HEADER = 768  # a tar header, and half a block of padding
_HEADROOM = 1.05
_PLAIN = re.compile(r"[A-Za-z0-9_.-]+")

Members = dict[str, bytes]
WriteShards = Callable[[Sequence[PlannedShard]], Iterator[ShardEntry]]
Distribute = Callable[[Callable[[], WriteShards], Sequence[PlannedShard]], Iterable[ShardEntry]]
"""Gives the entries of shards in order, which it has written by what its first argument makes on each machine."""


@dataclass(frozen=True)
class Summary:
    """What was done."""

    clips: int  # in the shards of this part, old and new
    written: int  # now
    bytes: int  # of the shards of this part
    seconds: float
    rejected: tuple[Rejected, ...]  # clips of this part that could not be prepared, now or before
    elsewhere: int  # shards of other parts that are not there yet


@dataclass(frozen=True)
class Preparation:
    """What there is to do; :func:`prepare` makes it."""

    plan: Plan
    folder: Path
    shards: tuple[PlannedShard, ...]  # those of this part
    finished: tuple[ShardEntry, ...]  # those that are there and whole
    damaged: tuple[str, ...]  # names of those that are there and not as they were written
    pending: tuple[PlannedShard, ...]
    needed: int  # bytes that the shards still to be written will take, those of other parts included
    free: int  # bytes free in the folder
    jobs: int  # processes

    @property
    def pending_clips(self) -> int:
        """Clips to write."""
        return sum(len(shard.clips) for shard in self.pending)

    def run(
        self, progress: Callable[[int], object] = lambda count: None, distribute: Distribute | None = None
    ) -> Summary:
        """Write what is pending, and the list of rejected clips; `progress` is called with counts of clips done.

        It may be interrupted at any time: finished shards stay, the one at hand leaves nothing behind. `distribute` has
        shards written elsewhere, into the same folder; by default this machine decodes with :attr:`jobs` processes.
        """
        began, folder, index = time.monotonic(), self.folder, self.plan.index
        new: list[ShardEntry] = []
        try:
            if distribute is None:
                new += _write_shards(folder, index, self.pending, jobs=self.jobs, progress=progress)
            else:
                for entry in distribute(lambda: partial(_write_shards, folder, index), self.pending):
                    new.append(entry)
                    progress(len(entry.clips) + len(entry.rejected))
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk, say: the first error is the one to tell
                _write_rejected(folder, index)
            raise
        _write_rejected(folder, index)
        entries = [*self.finished, *new]
        mine = {shard.name for shard in self.shards}
        return Summary(
            clips=sum(len(entry.clips) for entry in entries),
            written=sum(len(entry.clips) for entry in new),
            bytes=sum(entry.bytes for entry in entries),
            seconds=time.monotonic() - began,
            rejected=tuple(clip for entry in entries for clip in entry.rejected),
            elsewhere=len(_absent(self.plan, self.folder, mine)),
        )


def prepare(
    plan: Plan, folder: str | Path, *, part: tuple[int, int] = (1, 1), workers: int = 1, retry: bool = False
) -> Preparation:
    """Look at what is there, estimate what is missing, and see that it fits on the disk.

    Several machines may prepare different parts ``(i, n)`` of the same plan in the same folder at the same time. With
    `retry` those shards are written anew, too, that lack rejected clips.

    Raises:
        DataError: The folder holds shards of another plan, or the disk is too small.
    """
    number, count = part
    folder = Path(folder)
    shards = plan.shards[number - 1 :: count]
    _claim(folder, plan.index)
    look = partial(_examine, folder, plan.index.plan)
    states = list(zip(shards, ordered_map(look, shards, workers=min(workers, 8)), strict=True))
    finished = [state for _, state in states if isinstance(state, ShardEntry) and not (retry and state.rejected)]
    kept = {entry.name for entry in finished}
    pending = tuple(shard for shard in shards if shard.name not in kept)
    others = _absent(plan, folder, {shard.name for shard in shards})
    needed = _estimate(pending, others, plan.index) if pending else 0
    free = shutil.disk_usage(folder).free
    if needed * _HEADROOM > free:
        message = f"{folder}: the shards still to be written need about {_size(needed)}, and {_size(free)} are free."
        raise DataError(message, hint="Make room, choose another --out, or store less: --splits, --seconds, --quality.")
    return Preparation(
        plan=plan,
        folder=folder,
        shards=shards,
        finished=tuple(finished),
        damaged=tuple(shard.name for shard, state in states if state == "damaged"),
        pending=pending,
        needed=needed,
        free=free,
        jobs=max(1, min(workers, sum(len(shard.clips) for shard in pending))),
    )


def _absent(plan: Plan, folder: Path, mine: set[str]) -> list[PlannedShard]:
    """Shards of other parts that are not there yet."""
    return [s for s in plan.shards if s.name not in mine and not entry_path(folder, s.name).is_file()]


def _claim(folder: Path, index: ShardIndex) -> None:
    """Write the index unless it is there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / INDEX_NAME).exists():
            write_text(folder / INDEX_NAME, index.to_json())
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to: {error.strerror or error}.") from error
    there = ShardIndex.read(folder)
    if there != index:
        message = f"{folder} holds shards of another plan: {_difference(there, index)}."
        raise DataError(message, hint="Repeat the command with the options of the first time, or choose another --out.")


def _difference(there: ShardIndex, index: ShardIndex) -> str:
    for name, what in (
        ("dataset", "data set {}"),
        ("frame_side", "frames of {} pixels"),
        ("seconds", "{} seconds a clip"),
        ("quality", "JPEG quality {}"),
        ("classes", "other classes"),
        ("wordings", "other wordings of classes"),
    ):
        old, new = getattr(there, name), getattr(index, name)
        if old != new:
            return f"{what.format(old)} instead of {new}" if "{}" in what else what
    old, new = (sum(shard.clips for shard in some.shards) for some in (there, index))
    if old != new:
        return f"{old:,} clips, where now {new:,} are found"
    return "other clips, or another --shard-clips or --splits"


def _examine(folder: Path, plan: str, shard: PlannedShard) -> ShardEntry | Literal["absent", "damaged"]:
    """The entry of a shard that has been written and is as it was written, to the last bit; else what is wrong."""
    path = folder / shard.name
    try:
        entry = ShardEntry.read(folder, shard.name)
        if entry is None:
            return "absent"
        if entry.plan != plan or len(entry.clips) + len(entry.rejected) != len(shard.clips):
            return "damaged"
        sound = path.stat().st_size == entry.bytes and sha256_file(path) == entry.sha256
    except (OSError, DataError):
        return "damaged"
    return entry if sound else "damaged"


def _estimate(pending: Sequence[PlannedShard], others: Sequence[PlannedShard], index: ShardIndex) -> int:
    """Bytes that shards will take, judging by their first few clips."""
    # The first clips of several shards rather than of one: the order is random, but a split may be unlike another.
    firsts = [shard.clips[n] for n in range(_TRIED) for shard in pending if n < len(shard.clips)][:_TRIED]
    encoded = [_encode(clip.sample, index) for clip in firsts]
    sizes = [sum(len(content) + _HEADER for content in e.values()) for e in encoded if not isinstance(e, Rejected)]
    each = sum(sizes) / len(sizes) if sizes else clip_bytes(index.frame_side, index.seconds)
    return round(each * sum(len(shard.clips) for shard in [*pending, *others]))


def _encode(sample: Sample, index: ShardIndex) -> Members | Rejected:
    """Members of a clip by name without the key, or why there are none."""
    try:
        assert sample.path is not None
        clip = read_start(sample.path, frame_size=index.frame_side, seconds=index.seconds)
        members = {"json": ClipRecord.of(sample, index.classes, clip).to_json()}
        for second, frame in enumerate(() if clip.frames is None else clip.frames):
            members[f"{second}.jpg"] = encode_picture(frame, index.quality)
        if clip.waveform is not None:
            members["flac"] = encode_sound(clip.waveform)
        return members
    except Exception as error:  # whatever it is, it is this file's failure
        return Rejected(sample.id, sample.split, str(sample.path), explain(error))


def _write_shards(
    folder: Path,
    index: ShardIndex,
    shards: Sequence[PlannedShard],
    *,
    jobs: int = 0,
    progress: Callable[[int], object] = lambda count: None,
) -> Iterator[ShardEntry]:
    samples = [clip.sample for shard in shards for clip in shard.clips]
    encoder = ordered_map(partial(_encode, index=index), samples, workers=jobs)
    with contextlib.closing(encoder) as encoded:  # pyright: ignore[reportArgumentType]
        for shard in shards:
            yield _write_shard(folder, index, shard, encoded, progress)


def _write_shard(
    folder: Path,
    index: ShardIndex,
    shard: PlannedShard,
    encoded: Iterator[Members | Rejected],
    progress: Callable[[int], object],
) -> ShardEntry:
    """Write a shard, taking its clips from `encoded`, and its entry after it."""
    target = folder / shard.name
    try:
        sweep_leftovers(target)  # of killed processes
        sweep_leftovers(entry_path(folder, shard.name))
        # A shard without an entry counts for nothing; an entry must never stand beside another shard than its own.
        entry_path(folder, shard.name).unlink(missing_ok=True)
        stored: list[StoredClip] = []
        rejected: list[Rejected] = []
        with atomic_path(target) as temporary, open(temporary, "wb") as stream:
            # Neither a time nor an owner, so that equal clips give equal bytes.
            with TarWriter(stream, encoder=False, mtime=0, user="", group="") as tar:
                for clip in shard.clips:
                    members = next(encoded)
                    if isinstance(members, Rejected):
                        rejected.append(members)
                    else:
                        stored.append(StoredClip(clip.sample.id, clip.key, tar.tarstream.offset))
                        tar.write({"__key__": clip.key, **members})
                    progress(1)
            stream.flush()
            digest, size = sha256_file(temporary), temporary.stat().st_size
        entry = ShardEntry(index.plan, shard.name, shard.split, digest, size, tuple(stored), tuple(rejected))
        entry.write(folder)
    except OSError as error:
        hint = "Remedy it and run the same command again: it goes on where it stopped."
        raise DataError(f"{target}: cannot be written: {error.strerror or error}.", hint=hint) from error
    return entry


def _write_rejected(folder: Path, index: ShardIndex) -> None:
    """Write ``rejected.csv``: the rejected clips of all shards that are there, whoever wrote them."""
    while True:  # another machine may have finished a shard meanwhile and have written the list before us
        before = _entries(folder, index)
        stream = io.StringIO(newline="")
        table = csv.writer(stream)
        table.writerow(("id", "split", "file", "reason"))
        table.writerows(map(_cell, astuple(clip)) for entry in before for clip in entry.rejected)
        write_text(folder / REJECTED_NAME, stream.getvalue())
        if [entry.sha256 for entry in _entries(folder, index)] == [entry.sha256 for entry in before]:
            return


def _cell(text: str) -> str:
    return text if _PLAIN.fullmatch(text) else csv_cell(text)  # an id of YouTube may begin with a dash: no formula


def _entries(folder: Path, index: ShardIndex) -> list[ShardEntry]:
    entries: list[ShardEntry | None] = []
    for shard in index.shards:
        with contextlib.suppress(DataError):  # a faulty one is written anew when its part is prepared again
            entries.append(ShardEntry.read(folder, shard.name))
    return [entry for entry in entries if entry is not None]


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
