"""Reads prepared shards: a folder checked for completeness, and streams of its splits for any number of ranks.

An epoch puts the shards into a seeded order and cuts the row of all their clips into one stretch for each rank, equal
but for one clip. Nearly every shard is read by one rank alone; where there are fewer shards than ranks, ranks read
different stretches of the same one. Within its stretch a rank shuffles by a buffer, as is usual with WebDataset.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import webdataset
from webdataset.tariterators import group_by_keys, tar_file_expander

from avfewshot.data.clip_source import (
    DEFAULT_THREADS,
    LabelledClip,
    check_place,
    share,
    worker_place,
)
from avfewshot.data.ranking import rank_key
from avfewshot.data.shards.codec import DamagedClipError, decode_members
from avfewshot.data.shards.index import ShardEntry, ShardIndex, StoredClip
from avfewshot.errors import DataError, UsageError, explain
from avfewshot.io import sha256_file
from avfewshot.media.clip import Failure
from avfewshot.media.stream import ordered_map

DEFAULT_BUFFER = 200
_NAMED = 5


class ShardSet:
    """A folder of prepared shards.

    Attributes:
        folder: The folder.
        index: What it holds.
    """

    def __init__(self, folder: Path, index: ShardIndex, entries: Sequence[ShardEntry]) -> None:
        self.folder = folder
        self.index = index
        self._entries = tuple(entries)

    @classmethod
    def open(cls, folder: str | Path, *, splits: Sequence[str] | None = None, verify: bool = False) -> ShardSet:
        """Check a folder.

        Args:
            folder: The folder, as `avfs data prepare` wrote it.
            splits: Splits that must be complete; all when None.
            verify: Also compare checksums, which reads every shard.

        Returns:
            The folder's shards.

        Raises:
            DataError: The index or an entry is missing, not valid, or from another plan; shards are missing or damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.", hint="Make shards with: avfs data prepare.")
        index = ShardIndex.read(folder)
        wanted = [shard for shard in index.shards if splits is None or shard.split in splits]
        entries: list[ShardEntry] = []
        missing: list[str] = []
        damaged: list[str] = []
        for shard in wanted:
            entry, path = ShardEntry.read(folder, shard.name), folder / shard.name
            if entry is None or not path.is_file():
                missing.append(shard.name)
                continue
            if (entry.plan, entry.split) != (index.plan, shard.split):
                raise DataError(
                    f"{path}: was written for another {index.title} than the index of its folder describes.",
                    hint="Do not mix folders of shards; prepare the data into a new one.",
                )
            size_differs = path.stat().st_size != entry.bytes
            if size_differs or (verify and sha256_file(path) != entry.sha256):
                damaged.append(shard.name)
            entries.append(entry)
        for names, what in ((missing, "missing"), (damaged, "damaged")):
            if names:
                raise DataError(
                    f"{folder}: {len(names)} of {len(wanted)} shards are {what}: {_some(names)}.",
                    hint="The same `avfs data prepare` command writes them (with --part, every part of it).",
                )
        return cls(folder, index, entries)

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self.index.classes

    @property
    def wordings(self) -> tuple[str, ...]:
        """Wording of each class for prompts."""
        return self.index.wordings

    @property
    def splits(self) -> dict[str, int]:
        """Clips of each split."""
        sizes: dict[str, int] = {}
        for entry in self._entries:
            sizes[entry.split] = sizes.get(entry.split, 0) + len(entry.clips)
        return sizes

    def check_frame_side(self, side: int) -> None:
        """Raise :class:`~avfewshot.errors.DataError` unless pictures have the side that a backbone needs.

        Args:
            side: In pixels.
        """
        if side != self.index.frame_side:
            raise DataError(
                f"{self.folder}: its pictures are {self.index.frame_side} pixels wide; this backbone needs {side}.",
                hint="Prepare the data for it: avfs data prepare ... --backbone NAME --out ANOTHER_FOLDER.",
            )

    def split(self, name: str, *, threads: int = DEFAULT_THREADS, buffer: int = DEFAULT_BUFFER) -> ShardSource:
        """The clips of a split.

        Args:
            name: The split.
            threads: Threads that decode ahead; a worker of a ``DataLoader`` uses none.
            buffer: Clips to shuffle among, held in memory as they lie on disk; the order depends on it.

        Raises:
            UsageError: There is no such split.
        """
        entries = [entry for entry in self._entries if entry.split == name]
        if not entries:
            raise UsageError(
                f"{self.folder} holds no {name!r} split of {self.index.title}.",
                hint=f"It holds: {', '.join(self.splits)}.",
            )
        return ShardSource(self.folder, self.index, entries, threads=threads, buffer=buffer)


@dataclass(frozen=True)
class _Piece:
    """Clips that lie one after another in a shard."""

    shard: Path
    clips: tuple[StoredClip, ...]


@dataclass(frozen=True)
class _Encoded:
    """A clip as it lies in a shard: its members, or why they cannot be read."""

    shard: Path
    clip: StoredClip
    members: dict[str, bytes] | str


class ShardSource:
    """A :class:`~avfewshot.data.clip_source.ClipSource` of a split in shards; :meth:`ShardSet.split` makes it."""

    def __init__(
        self, folder: Path, index: ShardIndex, entries: Sequence[ShardEntry], *, threads: int, buffer: int
    ) -> None:
        if buffer < 1:
            raise UsageError(f"A buffer of {buffer} clips is out of range.", hint="1 keeps the order of the shards.")
        self._folder, self._index, self._entries = folder, index, tuple(entries)
        self._threads, self._buffer = threads, buffer
        self._total = sum(len(entry.clips) for entry in entries)
        self._labels = {name: label for label, name in enumerate(index.classes)}

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names."""
        return self._index.classes

    @property
    def wordings(self) -> tuple[str, ...]:
        """Wording of each class for prompts."""
        return self._index.wordings

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of all clips, in the order of the shards."""
        return tuple(clip.id for entry in self._entries for clip in entry.clips)

    def __len__(self) -> int:
        return self._total

    def count(self, rank: int, world: int) -> int:
        """See :meth:`~avfewshot.data.clip_source.ClipSource.count`."""
        return share(self._total, rank, world)

    def stream(
        self, *, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[LabelledClip | Failure]:
        """See :meth:`~avfewshot.data.clip_source.ClipSource.stream`."""
        check_place(rank, world, start)
        return self._stream(seed, epoch, rank, world, start)

    def _stream(
        self, seed: int | None, epoch: int, rank: int, world: int, start: int
    ) -> Iterator[LabelledClip | Failure]:
        worker, workers, done = worker_place(start)
        first, stop = _stretch(0, self._total, rank, world)
        first, stop = _stretch(first, stop, worker, workers)
        shuffles = []
        if seed is not None and self._buffer > 1:
            mixed = hashlib.blake2b(f"{seed} {epoch} {rank} {world} {worker} {workers}".encode(), digest_size=8)
            number = int.from_bytes(mixed.digest(), "big")
            shuffles = [partial(webdataset.shuffle, self._buffer, initial=self._buffer, seed=number)]
        pieces = list(_cut(self._order(seed, epoch), first, stop))
        # Which clips have been used follows from the seed alone; shards that hold no others are not opened.
        order = list(_pipeline(lambda: iter(range(stop - first)), shuffles))
        used = frozenset(order[:done])
        encoded = _pipeline(lambda: _read_pieces(pieces, used), shuffles)
        rest = islice(encoded, done, None)
        yield from ordered_map(self._decode, rest, workers=self._threads if workers == 1 else 0)

    def _order(self, seed: int | None, epoch: int) -> list[_Piece]:
        entries = list(self._entries)
        if seed is not None:
            entries.sort(key=lambda entry: rank_key(seed, "shards", str(epoch), entry.name))
        return [_Piece(self._folder / entry.name, entry.clips) for entry in entries]

    def _decode(self, encoded: _Encoded) -> LabelledClip | Failure:
        path = encoded.shard / encoded.clip.key
        try:
            if isinstance(encoded.members, str):
                raise DamagedClipError(encoded.members)
            clip, record = decode_members(encoded.members, path)
            if record.frame_side not in (None, self._index.frame_side) or record.seconds > self._index.seconds:
                raise DamagedClipError("it is not of the size that the index says")
            if record.id != encoded.clip.id:
                raise DamagedClipError("it is another clip than its entry says")
            background = len(self._index.classes)
            segments = record.segments and tuple(
                background if name is None else self._labels[name] for name in record.segments
            )
            return LabelledClip(record.id, tuple(sorted(self._labels[name] for name in record.labels)), clip, segments)
        except DamagedClipError as error:
            reason = str(error)
        except KeyError as error:
            reason = f"its class {error} is not in the index"
        return Failure(str(path), f"{reason}; `avfs data prepare` mends damaged shards", encoded.clip.id)


def _stretch(first: int, stop: int, number: int, count: int) -> tuple[int, int]:
    """Stretch `number` of `count` of the clips ``[first, stop)``; the first stretches may be longer by one."""
    total = stop - first
    begin = first + number * (total // count) + min(number, total % count)
    return begin, begin + share(total, number, count)


def _cut(pieces: Iterable[_Piece], first: int, stop: int) -> Iterator[_Piece]:
    """The clips ``[first, stop)`` of the row that the pieces make."""
    position = 0
    for piece in pieces:
        begin, end = max(first - position, 0), min(stop - position, len(piece.clips))
        if begin < end:
            yield _Piece(piece.shard, piece.clips[begin:end])
        position += len(piece.clips)


def _pipeline(source: Callable[[], Iterator[Any]], stages: Sequence[Callable[[], Any]]) -> Iterator[Any]:
    return iter(webdataset.DataPipeline(source, *(stage() for stage in stages)))


def _read_pieces(pieces: Sequence[_Piece], used: frozenset[int]) -> Iterator[_Encoded | None]:
    """Read clips in order; None for the clips of a piece that were all used."""
    position = 0
    for piece in pieces:
        numbers = range(position, position + len(piece.clips))
        position += len(piece.clips)
        if all(number in used for number in numbers):
            yield from (None for _ in numbers)
        else:
            yield from _read_piece(piece)


def _read_piece(piece: _Piece) -> Iterator[_Encoded]:
    """Read clips that lie one after another; whatever happens, one item for each."""
    read, problems = 0, []
    try:
        with open(piece.shard, "rb") as stream:
            stream.seek(piece.clips[0].offset)
            # Also keeps out what only poses as a shard, such as a compressed file that unpacks to any size.
            if stream.read(len(piece.clips[0].key)) != piece.clips[0].key.encode():
                raise DamagedClipError("the shard does not hold it where the index says")
            stream.seek(piece.clips[0].offset)
            samples = group_by_keys(_files(stream, piece.shard, problems))
            for clip, sample in zip(piece.clips, samples, strict=False):
                if sample["__key__"] != clip.key:
                    raise DamagedClipError("the shard holds another clip in its place")
                members = {name: content for name, content in sample.items() if not name.startswith("__")}
                yield _Encoded(piece.shard, clip, members)
                read += 1
    except (DamagedClipError, OSError, ValueError) as error:
        problems.append(str(error) if isinstance(error, DamagedClipError) else explain(error))
    reason = next(iter(problems), "the shard ends before it")
    for clip in piece.clips[read:]:
        yield _Encoded(piece.shard, clip, reason)


def _files(stream: BinaryIO, shard: Path, problems: list[str]) -> Iterator[dict[str, Any]]:
    """Members of a shard up to its end or to the first damage, which is added to `problems`."""
    try:
        yield from tar_file_expander([{"url": str(shard), "stream": stream}])
    except Exception as error:  # a damaged shard costs the clips behind the damage, not the training
        problems.append(f"the shard is damaged: {explain(error)}")
        yield {}  # the end of a shard, after which the clip at hand is given out


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
