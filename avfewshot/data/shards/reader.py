"""Reads prepared shards: a folder checked for completeness, and streams of its splits for any number of ranks.

An epoch puts the shards into a seeded order and cuts the row of all their clips into one stretch for each rank, equal
but for one clip: whole shards, with the last one split. Within its stretch a rank shuffles by a buffer, as is usual
with WebDataset; an epoch that was interrupted goes on by skipping what was used.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from webdataset.filters import shuffle

from avfewshot.data.clip_source import DEFAULT_THREADS, LabelledClip, share
from avfewshot.data.dataset import rank_key
from avfewshot.data.shards.record import ClipRecord, DamagedClipError, ShardEntry, ShardIndex, StoredClip
from avfewshot.errors import DataError, UsageError, explain, some
from avfewshot.io import sha256_file
from avfewshot.media.clip import SAMPLE_RATE, Clip, Failure
from avfewshot.media.clip_bytes import decode_pictures, decode_sound
from avfewshot.media.stream import ordered_map

DEFAULT_BUFFER = 200


class ShardSet:
    """A folder of prepared shards; :meth:`open` makes it."""

    def __init__(self, folder: Path, index: ShardIndex, entries: Sequence[ShardEntry]) -> None:
        self.folder, self.index = folder, index
        self._entries = tuple(entries)

    @classmethod
    def open(cls, folder: str | Path, *, splits: Sequence[str] | None = None, verify: bool = False) -> ShardSet:
        """Check a folder as `avfs data prepare` wrote it, its `splits` (None: all) to be complete.

        With `verify` checksums are compared, too, which reads every shard.

        Raises:
            DataError: The index or an entry is missing, not valid, or from another plan; shards are missing or damaged.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise DataError(f"{folder}: there is no such folder.", hint="Make shards with: avfs data prepare.")
        index = ShardIndex.read(folder)
        plan = index.plan
        wanted = [shard for shard in index.shards if splits is None or shard.split in splits]
        entries: list[ShardEntry] = []
        missing: list[str] = []
        damaged: list[str] = []
        for shard in wanted:
            entry, path = ShardEntry.read(folder, shard.name), folder / shard.name
            if entry is None or not path.is_file():
                missing.append(shard.name)
                continue
            if (entry.plan, entry.split) != (plan, shard.split):
                message = f"{path}: was written for another {index.title} than the index of its folder describes."
                raise DataError(message, hint="Do not mix folders of shards; prepare the data into a new one.")
            size_differs = path.stat().st_size != entry.bytes
            if size_differs or (verify and sha256_file(path) != entry.sha256):
                damaged.append(shard.name)
            entries.append(entry)
        for names, what in ((missing, "missing"), (damaged, "damaged")):
            if names:
                message = f"{folder}: {len(names)} of {len(wanted)} shards are {what}: {some(names, 5)}."
                hint = "The same `avfs data prepare` command writes them (with --part, every part of it)."
                raise DataError(message, hint=hint)
        return cls(folder, index, entries)

    @property
    def splits(self) -> dict[str, int]:
        """Clips of each split."""
        sizes: Counter[str] = Counter()
        for entry in self._entries:
            sizes[entry.split] += len(entry.clips)
        return sizes

    def check_frame_side(self, side: int) -> None:
        """Raise :class:`~avfewshot.errors.DataError` unless pictures have the side in pixels that a backbone needs."""
        if side != self.index.frame_side:
            raise DataError(
                f"{self.folder}: its pictures are {self.index.frame_side} pixels wide; this backbone needs {side}.",
                hint="Prepare the data for it: avfs data prepare ... --backbone NAME --out ANOTHER_FOLDER.",
            )

    def split(self, name: str, *, threads: int = DEFAULT_THREADS, buffer: int = DEFAULT_BUFFER) -> ShardSource:
        """The clips of a split, decoded ahead by `threads` threads.

        `buffer` is of clips to shuffle among, held in memory as they lie on disk; the order depends on it. A
        :class:`UsageError` where there is no such split.
        """
        entries = [entry for entry in self._entries if entry.split == name]
        if not entries:
            message = f"{self.folder} holds no {name!r} split of {self.index.title}."
            raise UsageError(message, hint=f"It holds: {', '.join(self.splits)}.")
        return ShardSource(self.folder, self.index, entries, threads=threads, buffer=buffer)


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
        self._folder, self._index, self._entries = folder, index, tuple(entries)
        self.classes, self.wordings = index.classes, index.wordings
        self._threads, self._buffer = threads, buffer
        self._total = sum(len(entry.clips) for entry in entries)
        self._labels = {name: label for label, name in enumerate(index.classes)}

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
        encoded = self._read(seed, epoch, rank, world)
        if seed is not None and self._buffer > 1:
            mixed = hashlib.blake2b(f"{seed} {epoch} {rank} {world} 0 1".encode(), digest_size=8)
            number = int.from_bytes(mixed.digest(), "big")
            encoded = shuffle(self._buffer, initial=self._buffer, seed=number)(encoded)
        return ordered_map(self._decode, islice(encoded, start, None), workers=self._threads)

    def _read(self, seed: int | None, epoch: int, rank: int, world: int) -> Iterator[_Encoded]:
        """The clips of a rank, shard by shard."""
        entries = list(self._entries)
        if seed is not None:
            entries.sort(key=lambda entry: rank_key(seed, "shards", str(epoch), entry.name))
        first = rank * (self._total // world) + min(rank, self._total % world)
        stop = first + share(self._total, rank, world)
        position = 0
        for entry in entries:
            begin, end = max(first - position, 0), min(stop - position, len(entry.clips))
            if begin < end:
                yield from self._read_shard(self._folder / entry.name, entry.clips[begin:end])
            position += len(entry.clips)

    def _read_shard(self, shard: Path, clips: Sequence[StoredClip]) -> Iterator[_Encoded]:
        """Clips that lie one after another in a shard; whatever happens, one item for each."""
        read, reason = 0, "the shard ends before it"
        members: dict[str, bytes] = {}
        try:
            with open(shard, "rb") as stream:
                stream.seek(clips[0].offset)
                # Not compressed, and read as it comes: no member is looked for elsewhere.
                with tarfile.open(fileobj=stream, mode="r:") as tar:
                    while (member := tar.next()) is not None:
                        key, _, name = member.name.partition(".")
                        if key != clips[read].key and members:
                            yield _Encoded(shard, clips[read], members)
                            read, members = read + 1, {}
                            if read == len(clips):
                                return
                        if key != clips[read].key:
                            raise DamagedClipError("the shard holds another clip in its place")
                        members[name] = self._content(tar, member, len(members))
            if members:
                yield _Encoded(shard, clips[read], members)
                read += 1
        except DamagedClipError as error:
            reason = str(error)
        except Exception as error:  # whatever tarfile makes of bytes that are not its own
            # A damaged shard costs the clips behind the damage, not the training.
            reason = f"the shard is damaged: {explain(error)}"
            if members:  # of a clip that may be whole: what it lacks is noticed when it is decoded
                yield _Encoded(shard, clips[read], members)
                read += 1
        for clip in clips[read:]:
            yield _Encoded(shard, clip, reason)

    def _content(self, tar: tarfile.TarFile, member: tarfile.TarInfo, before: int) -> bytes:
        """The bytes of a member that may come from anybody: a plain file, no larger than a clip's can be."""
        side, seconds = self._index.frame_side, self._index.seconds
        most = (1 << 20) + max(4 * side * side, 4 * 48_000 * seconds)
        if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.sparse is not None:
            raise DamagedClipError(f"its member {member.name[:80]!r} is not a plain file")
        if member.size > most or before > seconds + 2:
            raise DamagedClipError(f"its member {member.name[:80]!r} is larger than that of a clip can be")
        stream = tar.extractfile(member)
        content = b"" if stream is None else stream.read()
        if len(content) != member.size:
            raise DamagedClipError("the shard ends within it")
        return content

    def _decode(self, encoded: _Encoded) -> LabelledClip | Failure:
        path = encoded.shard / encoded.clip.key
        try:
            members = encoded.members
            if isinstance(members, str):
                raise DamagedClipError(members)
            record = ClipRecord.parse(members["json"])
            # Before anything is decoded: what a record claims decides how much memory that takes.
            if record.frame_side not in (None, self._index.frame_side) or record.seconds > self._index.seconds:
                raise DamagedClipError("it is not of the size that the index says")
            if record.id != encoded.clip.id:
                raise DamagedClipError("it is another clip than its entry says")
            background = len(self._index.classes)
            segments = None
            if record.segments is not None:
                segments = tuple(background if name is None else self._label(name) for name in record.segments)
            labels = tuple(sorted(self._label(name) for name in record.labels))
            frames = waveform = None
            if record.frame_side is not None:
                pictures = [members[f"{second}.jpg"] for second in range(record.seconds)]
                frames = decode_pictures(pictures, ("JPEG",), record.frame_side)
            if record.has_sound:
                waveform = decode_sound(members["flac"], record.seconds * SAMPLE_RATE)
            clip = Clip(path, record.duration, 0, frames, waveform, record.warnings, last=record.whole)
            return LabelledClip(record.id, labels, clip, segments)
        except KeyError as error:
            reason = f"it has no member {error}"
        except ValueError as error:  # members that are damaged or not those of a clip
            reason = " ".join(str(error).split())
        return Failure(str(path), f"{reason}; `avfs data prepare` mends damaged shards", encoded.clip.id)

    def _label(self, name: str) -> int:
        if name not in self._labels:
            raise DamagedClipError(f"its class {name!r} is not in the index")
        return self._labels[name]
