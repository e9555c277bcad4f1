"""What is written beside and inside shards, all of it plain JSON that may come from anybody.

``index.json`` says what there should be and follows from the plan alone, so every machine that shares a folder writes
the same bytes; ``SHARD.json`` says what a finished shard holds; a JSON member of each clip says what the clip is. What
a machine adds goes into files of its own; nothing is ever merged, and nobody has to wait for anybody.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AllowInfNan, Field, PlainValidator, StrictBool, TypeAdapter, ValidationError

from avfewshot.data.dataset import Sample
from avfewshot.data.description import faults_of
from avfewshot.errors import DataError
from avfewshot.io import write_text
from avfewshot.media.clip import Clip

INDEX_NAME = "index.json"
FORMAT = "avfewshot-shards"
VERSION = 1
_AGAIN = "Prepare the data again: avfs data prepare."
_MOST_BYTES = 1 << 28
MOST = 10_000  # seconds of a clip, pixels of a side: memory is given by these

T = TypeVar("T")


class DamagedClipError(ValueError):
    """Members that are damaged or not those of a clip."""


def _matching(pattern: str, what: str) -> PlainValidator:
    expression = re.compile(pattern, re.DOTALL)

    def check(value: Any) -> str:
        # Not pydantic's own texts: ids made from file names that are not valid UTF-8 hold lone surrogates.
        if not isinstance(value, str):
            raise ValueError("is not a text")
        if not expression.fullmatch(value):
            raise ValueError(f"is not {what}: {value[:80]!r}")
        return value

    return PlainValidator(check)


def _whole(least: int, most: int | None = None) -> PlainValidator:
    def check(value: Any) -> int:
        if type(value) is not int or value < least or (most is not None and value > most):
            message = f"is not a whole number from {least} {f'to {most}' if most else 'on'}: {str(value)[:40]!r}"
            raise ValueError(message)
        return value

    return PlainValidator(check)


Text = Annotated[str, _matching(r".*", "a text")]
Whole = Annotated[int, _whole(0)]
Positive = Annotated[int, _whole(1)]
Bounded = Annotated[int, _whole(1, MOST)]
Number = Annotated[float, Field(strict=True), AllowInfNan(False)]
Split = Literal["train", "val", "test"]
# Nothing but a plain file name: no folder, no other place, no command.
ShardFile = Annotated[str, _matching(r"[A-Za-z0-9][A-Za-z0-9-]{0,120}\.tar", "the name of a shard")]
Key = Annotated[str, _matching(r"[0-9]{1,12}_[A-Za-z0-9_-]{1,80}", "a key")]
Sha256 = Annotated[str, _matching(r"[0-9a-f]{64}", "a SHA-256")]


@dataclass(frozen=True)
class ShardName:
    """A shard that there should be."""

    name: ShardFile
    split: Split
    clips: Positive  # planned for it; some may be rejected when it is written


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds: the content of ``index.json``."""

    dataset: Text
    title: Text
    classes: tuple[Text, ...]  # labels in shards are names, too
    wordings: tuple[Text, ...]
    multi_label: StrictBool
    num_segments: Bounded  # seconds of an annotated clip
    list_sha256: Text  # fingerprint of the planned clips: ids, splits, labels and rows
    frame_side: Bounded  # of the square pictures, in pixels
    seconds: Bounded  # longest stretch of a clip that is stored
    quality: Positive  # of JPEG
    shards: tuple[ShardName, ...]  # in the order of their names within a split

    def to_json(self) -> str:
        """The content of ``index.json``; equal plans give equal texts."""
        return json.dumps({"format": FORMAT, "version": VERSION, **asdict(self)}, indent=1) + "\n"

    @property
    def plan(self) -> str:
        """SHA-256 of :meth:`to_json`: shards of another plan do not belong together with these."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    @classmethod
    def read(cls, folder: Path) -> ShardIndex:
        """Read and check ``index.json``; a :class:`DataError` where it is missing or not sound."""
        path = folder / INDEX_NAME
        index = _read(cls, path, f"of format {FORMAT}", format=FORMAT)
        names = {shard.name for shard in index.shards}
        if len(names) != len(index.shards) or len(set(index.classes)) != len(index.classes):
            raise DataError(f"{path}: names of shards or classes are repeated.", hint=_AGAIN)
        if len(index.classes) != len(index.wordings):
            raise DataError(f"{path}: classes and wordings are lists of different lengths.", hint=_AGAIN)
        return index


@dataclass(frozen=True)
class StoredClip:
    """A clip in a shard."""

    id: Text  # its name in the annotation file
    key: Key  # its name in the shard
    offset: Whole  # where its first member begins in the shard, in bytes


@dataclass(frozen=True)
class Rejected:
    """A clip that could not be prepared, and why."""

    id: Text
    split: Text
    file: Text
    reason: Text


def _in_order(clips: tuple[StoredClip, ...]) -> tuple[StoredClip, ...]:
    offsets = [clip.offset for clip in clips]
    if offsets != sorted(set(offsets)) or len({clip.key for clip in clips}) != len(clips):
        raise ValueError("are not in order")
    return clips


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard: the content of ``SHARD.json``."""

    plan: Text  # ShardIndex.plan of the plan it was written by
    name: ShardFile
    split: Split
    sha256: Sha256  # of the shard's bytes
    bytes: Whole
    clips: Annotated[tuple[StoredClip, ...], AfterValidator(_in_order)]
    rejected: tuple[Rejected, ...] = ()  # planned, and not in it

    def write(self, folder: Path) -> None:
        """Write it beside its shard, atomically."""
        write_text(entry_path(folder, self.name), json.dumps({"version": VERSION, **asdict(self)}))

    @classmethod
    def read(cls, folder: Path, name: str) -> ShardEntry | None:
        """The entry of the shard `name`, or None; a :class:`DataError` where it is not sound."""
        path = entry_path(folder, name)
        return _read(cls, path, f"the entry of {name}", name=name) if path.is_file() else None


def entry_path(folder: Path, name: str) -> Path:
    """Path of the entry of the shard `name`."""
    return folder / f"{name.removesuffix('.tar')}.json"


@dataclass(frozen=True)
class EventRecord:
    """An event of a clip, in seconds."""

    label: Text
    onset: Number
    offset: Number
    modality: Literal["av", "audio", "visual"]


@dataclass(frozen=True)
class ClipRecord:
    """One clip of a shard. Classes go by name, so that a shard can be read without its index."""

    id: Text  # the clip's name in its annotation file
    labels: tuple[Text, ...]
    split: Text
    row: Whole  # position in its annotation file
    duration: Number  # of the whole media file, in seconds
    seconds: Bounded  # T, the seconds stored
    whole: StrictBool  # whether these are all seconds of the file
    frame_side: Bounded | None  # of the square pictures, in pixels; None without pictures
    has_sound: StrictBool
    # Class per second, None where nothing happens; None as a whole where the data set has no such labels.
    segments: tuple[Text | None, ...] | None = None
    events: tuple[EventRecord, ...] = ()
    youtube_id: Text | None = None
    start: Number | None = None  # of the clip in that video, in seconds
    end: Number | None = None
    warnings: tuple[Text, ...] = ()  # what the reader found odd about the media file

    @classmethod
    def of(cls, sample: Sample, classes: Sequence[str], clip: Clip) -> ClipRecord:
        """The record of a sample of a data set with these classes, and of what was decoded of it."""
        names = [*classes, None]  # the label after the last class is "nothing happens"
        return cls(
            id=sample.id,
            labels=tuple(classes[label] for label in sample.labels),
            split=sample.split,
            row=sample.row,
            duration=clip.duration,
            seconds=clip.num_segments,
            whole=clip.last,
            frame_side=None if clip.frames is None else clip.frames.shape[-1],
            has_sound=clip.waveform is not None,
            segments=None if sample.segments is None else tuple(names[label] for label in sample.segments),
            events=tuple(EventRecord(classes[e.label], e.onset, e.offset, e.modality) for e in sample.events),
            youtube_id=sample.youtube_id,
            start=sample.start,
            end=sample.end,
            warnings=clip.warnings,
        )

    def to_json(self) -> bytes:
        """The JSON member."""
        # In ASCII, which can hold ids made from file names that are not valid UTF-8.
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":")).encode("ascii")

    @classmethod
    def parse(cls, content: bytes) -> ClipRecord:
        """Read the JSON member; a :class:`DamagedClipError` where it is not sound."""
        try:
            raw = json.loads(content)
            if not isinstance(raw, dict) or raw.get("version") != VERSION:
                reason = f"not of version {VERSION}"
            else:
                return _adapter(cls).validate_python(raw)
        except ValidationError as error:
            reason = "; ".join(faults_of(error)[:5])
        except (ValueError, RecursionError):
            reason = "not JSON"
        raise DamagedClipError(f"its description is not valid: {reason}")


@cache
def _adapter(kind: type[Any]) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _read(kind: type[T], path: Path, what: str, **expected: str) -> T:
    """The content of a JSON file of this version that has the expected values."""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise DataError(f"{path}: is too large.", hint=_AGAIN)
        raw = json.loads(path.read_bytes())
        expected_here = {"version": VERSION, **expected}
        if not isinstance(raw, dict) or any(raw.get(key) != value for key, value in expected_here.items()):
            raise DataError(f"{path}: is not {what}, version {VERSION}.", hint=_AGAIN)
        return _adapter(kind).validate_python(raw)
    except ValidationError as error:
        raise DataError(f"{path}: is not valid: {'; '.join(faults_of(error)[:5])}.", hint=_AGAIN) from None
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.", hint="Make shards with: avfs data prepare.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not valid JSON.", hint=_AGAIN) from None
