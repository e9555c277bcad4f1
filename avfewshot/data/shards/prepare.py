"""Prepares a data set: what is there is verified and kept, the rest is written by several processes."""

from __future__ import annotations

import contextlib
import csv
import io
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from avfewshot.data.shards.index import INDEX_NAME, Rejected, ShardEntry, ShardIndex, entry_path
from avfewshot.data.shards.plan import Plan, PlannedShard, expected_bytes
from avfewshot.data.shards.processes import run_tasks
from avfewshot.data.shards.writer import ShardTask, encode_sample, examine, write_shard
from avfewshot.errors import DataError, UsageError
from avfewshot.io import write_text
from avfewshot.media.clip import Failure
from avfewshot.media.stream import ordered_map

REJECTED_NAME = "rejected.csv"

_TRIED = 4  # clips that the size of all is estimated from
_HEADER = 768  # a tar header, and half a block of padding
_HEADROOM = 1.05


@dataclass(frozen=True)
class Summary:
    """What was done.

    Attributes:
        clips: Clips in the shards of this part, old and new.
        written: Clips written now.
        bytes: Size of the shards of this part.
        seconds: Time taken.
        rejected: Clips of this part that could not be prepared, now or before.
        elsewhere: Shards of other parts that are not there yet.
    """

    clips: int
    written: int
    bytes: int
    seconds: float
    rejected: tuple[Rejected, ...]
    elsewhere: int


@dataclass(frozen=True)
class Preparation:
    """What there is to do.

    Attributes:
        plan: All shards of the data set.
        folder: Where they go.
        shards: Those of this part.
        finished: Entries of those that are there and whole.
        damaged: Names of those that are there and not as they were written.
        pending: Those to write.
        needed: Bytes that the shards still to be written will take, those of other parts included.
        free: Bytes free in the folder.
        jobs: Processes.
    """

    plan: Plan
    folder: Path
    shards: tuple[PlannedShard, ...]
    finished: tuple[ShardEntry, ...]
    damaged: tuple[str, ...]
    pending: tuple[PlannedShard, ...]
    needed: int
    free: int
    jobs: int

    @property
    def pending_clips(self) -> int:
        """Clips to write."""
        return sum(len(shard.clips) for shard in self.pending)

    def run(self, progress: Callable[[int], object] = lambda count: None) -> Summary:
        """Write what is pending, and the list of rejected clips.

        It may be interrupted at any time: finished shards stay, the one at hand leaves nothing behind.

        Args:
            progress: Called with the number of clips done since the last call.

        Raises:
            DataError: A shard cannot be written.
            AvfsError: A process died.
        """
        began = time.monotonic()
        index, fingerprint = self.plan.index, self.plan.index.plan
        tasks = [ShardTask(self.folder, index, fingerprint, shard) for shard in self.pending]
        new: list[ShardEntry] = []
        try:
            new.extend(run_tasks(write_shard, tasks, jobs=self.jobs, progress=progress))
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk, say: the first error is the one to tell
                write_rejected(self.folder, index)
            raise
        write_rejected(self.folder, index)
        entries = [*self.finished, *new]
        mine = {shard.name for shard in self.shards}
        return Summary(
            clips=sum(len(entry.clips) for entry in entries),
            written=sum(len(entry.clips) for entry in new),
            bytes=sum(entry.bytes for entry in entries),
            seconds=time.monotonic() - began,
            rejected=tuple(clip for entry in entries for clip in entry.rejected),
            elsewhere=sum(
                shard.name not in mine and not entry_path(self.folder, shard.name).is_file() for shard in index.shards
            ),
        )


def prepare(
    plan: Plan, folder: str | Path, *, part: tuple[int, int] = (1, 1), workers: int = 1, retry: bool = False
) -> Preparation:
    """Look at what is there, estimate what is missing, and see that it fits on the disk.

    Several machines may prepare different parts of the same plan in the same folder at the same time.

    Args:
        plan: What there should be.
        folder: Where; made if needed.
        part: ``(i, n)``: this is part i of n.
        workers: Processes to write with.
        retry: Also write those shards anew that lack rejected clips.

    Returns:
        What is to be done, to be done by :meth:`Preparation.run`.

    Raises:
        UsageError: There is no such part, or fewer than one worker.
        DataError: The folder holds shards of another plan, or the disk is too small.
    """
    if workers < 1:
        raise UsageError(f"--workers {workers} is out of range.", hint="At least 1.")
    folder = Path(folder)
    shards = plan.part(*part)
    fingerprint = _claim(folder, plan.index)
    look = partial(examine, folder, fingerprint)
    states = list(zip(shards, ordered_map(look, shards, workers=min(workers, 8)), strict=True))
    finished = [state for _, state in states if isinstance(state, ShardEntry) and not (retry and state.rejected)]
    kept = {entry.name for entry in finished}
    pending = [shard for shard in shards if shard.name not in kept]
    mine = {shard.name for shard in shards}
    others = [s for s in plan.shards if s.name not in mine and not entry_path(folder, s.name).is_file()]
    needed = _estimate(pending, others, plan.index) if pending else 0
    free = shutil.disk_usage(folder).free
    if needed * _HEADROOM > free:
        raise DataError(
            f"{folder}: the shards still to be written need about {_size(needed)}, and {_size(free)} are free.",
            hint="Make room, choose another --out, or store less: --splits, --seconds, --quality.",
        )
    return Preparation(
        plan=plan,
        folder=folder,
        shards=shards,
        finished=tuple(finished),
        damaged=tuple(shard.name for shard, state in states if state == "damaged"),
        pending=tuple(pending),
        needed=needed,
        free=free,
        jobs=max(1, min(workers, len(pending))),
    )


def write_rejected(folder: Path, index: ShardIndex) -> None:
    """Write ``rejected.csv``: the rejected clips of all shards that are there, whoever wrote them.

    Args:
        folder: Folder of shards.
        index: Its index.
    """
    while True:  # another machine may have finished a shard meanwhile and have written the list before us
        before = _entries(folder, index)
        stream = io.StringIO(newline="")
        table = csv.writer(stream)
        table.writerow(("id", "split", "file", "reason"))
        for entry in before:
            table.writerows((clip.id, clip.split, clip.file, clip.reason) for clip in entry.rejected)
        text = stream.getvalue().encode("utf-8", "backslashreplace").decode("utf-8")
        write_text(folder / REJECTED_NAME, text)
        if [entry.sha256 for entry in _entries(folder, index)] == [entry.sha256 for entry in before]:
            return


def _entries(folder: Path, index: ShardIndex) -> list[ShardEntry]:
    found: list[ShardEntry] = []
    for shard in index.shards:
        try:
            entry = ShardEntry.read(folder, shard.name)
        except DataError:  # written anew when its part is prepared again
            continue
        if entry is not None:
            found.append(entry)
    return found


def _claim(folder: Path, index: ShardIndex) -> str:
    """Write the index unless it is there; the plan's fingerprint."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / INDEX_NAME).exists():
            index.write(folder)
    except OSError as error:
        raise DataError(f"{folder}: cannot be written to: {error.strerror or error}.") from error
    there = ShardIndex.read(folder)
    if there == index:
        return index.plan
    raise DataError(
        f"{folder} holds shards of another plan: {_difference(there, index)}.",
        hint="Repeat the command with the options of the first time, or choose another --out.",
    )


def _difference(there: ShardIndex, index: ShardIndex) -> str:
    for name, what in (
        ("dataset", "data set"),
        ("frame_side", "frames of {} pixels"),
        ("seconds", "{} seconds a clip"),
        ("quality", "JPEG quality"),
        ("classes", "classes"),
        ("wordings", "wordings of classes"),
    ):
        old, new = getattr(there, name), getattr(index, name)
        if old != new:
            if isinstance(old, tuple):
                return f"other {what}"
            return f"{what.format(old)} instead of {new}" if "{}" in what else f"{what} {old} instead of {new}"
    old, new = (sum(shard.clips for shard in some.shards) for some in (there, index))
    if old != new:
        return f"{old:,} clips, where now {new:,} are found"
    return "other clips, or another --shard-clips or --splits"


def _estimate(pending: list[PlannedShard], others: list[PlannedShard], index: ShardIndex) -> int:
    """Bytes that shards will take, judging by their first few clips."""
    # The first clips of several shards rather than of one: the order is random, but a split may be unlike another.
    firsts = [shard.clips[n] for n in range(_TRIED) for shard in pending if n < len(shard.clips)][:_TRIED]
    sizes = []
    for clip in firsts:
        members = encode_sample(clip.sample, index)
        if not isinstance(members, Failure):
            sizes.append(sum(len(content) + _HEADER for content in members.values()))
    each = sum(sizes) / len(sizes) if sizes else expected_bytes(index.frame_side, index.seconds)
    return round(each * sum(len(shard.clips) for shard in [*pending, *others]))


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e9 else f"{count / 1e6:,.1f} MB"
