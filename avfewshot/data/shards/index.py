"""The files beside the shards: ``index.json`` says what there should be, ``SHARD.json`` what a finished shard holds.

``index.json`` follows from the plan alone, so every machine that shares a folder writes the same bytes. What a machine
adds goes into files of its own, one for each shard; nothing is ever merged, and nobody has to wait for anybody.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from avfewshot.data.dataset import SPLITS
from avfewshot.errors import DataError
from avfewshot.io import write_text

INDEX_NAME = "index.json"
FORMAT = "avfewshot-shards"
VERSION = 1

_SHARD_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]{0,120}\.tar")
_KEY = re.compile(r"[0-9]{1,12}_[A-Za-z0-9_-]{1,80}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_AGAIN = "Prepare the data again: avfs data prepare."


@dataclass(frozen=True)
class ShardName:
    """A shard that there should be.

    Attributes:
        name: Its file name.
        split: The split it belongs to.
        clips: Clips planned for it; some may be rejected when it is written.
    """

    name: str
    split: str
    clips: int


@dataclass(frozen=True)
class ShardIndex:
    """What a folder of shards holds.

    Attributes:
        dataset: Name of the data set.
        title: The same for people.
        classes: Class names; labels in shards are names, too.
        wordings: Wording of each class for prompts.
        multi_label: Clips may carry several labels.
        num_segments: Seconds of an annotated clip.
        list_sha256: Fingerprint of the planned clips: ids, splits, labels and rows.
        frame_side: Side of the square pictures in pixels.
        seconds: Longest stretch of a clip that is stored.
        quality: Of JPEG.
        shards: All shards, in the order of their names within a split.
    """

    dataset: str
    title: str
    classes: tuple[str, ...]
    wordings: tuple[str, ...]
    multi_label: bool
    num_segments: int
    list_sha256: str
    frame_side: int
    seconds: int
    quality: int
    shards: tuple[ShardName, ...]

    def to_json(self) -> str:
        """The content of ``index.json``; equal plans give equal texts."""
        document = {"format": FORMAT, "version": VERSION, **asdict(self)}
        return json.dumps(document, indent=1) + "\n"

    @property
    def plan(self) -> str:
        """SHA-256 of :meth:`to_json`: shards of another plan do not belong together with these."""
        return hashlib.sha256(self.to_json().encode("ascii")).hexdigest()

    def write(self, folder: Path) -> None:
        """Write ``index.json`` into `folder`, atomically."""
        write_text(folder / INDEX_NAME, self.to_json())

    @classmethod
    def read(cls, folder: Path) -> ShardIndex:
        """Read and check ``index.json``.

        Raises:
            DataError: It is missing, not of this form or version, or names files outside of its folder.
        """
        path = folder / INDEX_NAME
        raw = _read_json(path)
        with _Checking(path):
            if raw["format"] != FORMAT or raw["version"] != VERSION:
                raise ValueError(f"it is not of format {FORMAT}, version {VERSION}")
            shards = tuple(_shard_name(item) for item in _list(raw["shards"]))
            index = cls(
                dataset=_text(raw["dataset"]),
                title=_text(raw["title"]),
                classes=tuple(_text(name) for name in _list(raw["classes"])),
                wordings=tuple(_text(name) for name in _list(raw["wordings"])),
                multi_label=bool(raw["multi_label"]),
                num_segments=_whole(raw["num_segments"], 1),
                list_sha256=_text(raw["list_sha256"]),
                frame_side=_whole(raw["frame_side"], 1),
                seconds=_whole(raw["seconds"], 1),
                quality=_whole(raw["quality"], 1),
                shards=shards,
            )
            if len({shard.name for shard in shards}) != len(shards) or len(index.classes) != len(index.wordings):
                raise ValueError("names are repeated or lists of different lengths")
        return index


@dataclass(frozen=True)
class StoredClip:
    """A clip in a shard.

    Attributes:
        id: Its name in the annotation file.
        key: Its name in the shard.
        offset: Where its first member begins in the shard, in bytes.
    """

    id: str
    key: str
    offset: int


@dataclass(frozen=True)
class Rejected:
    """A clip that could not be prepared.

    Attributes:
        id: Its name in the annotation file.
        split: Its split.
        file: Its media file.
        reason: Why, in one line.
    """

    id: str
    split: str
    file: str
    reason: str


@dataclass(frozen=True)
class ShardEntry:
    """A finished shard: the content of ``SHARD.json``.

    Attributes:
        plan: :attr:`ShardIndex.plan` of the plan it was written by.
        name: File name of the shard.
        split: Its split.
        sha256: Of the shard's bytes.
        bytes: Its size.
        clips: What it holds, in order.
        rejected: What it does not hold, though it was planned.
    """

    plan: str
    name: str
    split: str
    sha256: str
    bytes: int
    clips: tuple[StoredClip, ...]
    rejected: tuple[Rejected, ...] = ()

    def write(self, folder: Path) -> None:
        """Write it beside its shard, atomically."""
        write_text(entry_path(folder, self.name), json.dumps({"version": VERSION, **asdict(self)}))

    @classmethod
    def read(cls, folder: Path, name: str) -> ShardEntry | None:
        """Read the entry of a shard.

        Args:
            folder: The folder.
            name: File name of the shard.

        Returns:
            The entry, or None where there is none.

        Raises:
            DataError: It is not of this form, or of another shard.
        """
        path = entry_path(folder, name)
        if not path.is_file():
            return None
        raw = _read_json(path)
        with _Checking(path):
            if raw["version"] != VERSION or raw["name"] != name:
                raise ValueError(f"it is not the entry of {name}, version {VERSION}")
            if not _SHA256.fullmatch(_text(raw["sha256"])):
                raise ValueError("its checksum is not a SHA-256")
            clips = tuple(_stored(item) for item in _list(raw["clips"]))
            offsets = [clip.offset for clip in clips]
            if offsets != sorted(set(offsets)) or len({clip.key for clip in clips}) != len(clips):
                raise ValueError("its clips are not in order")
            return cls(
                plan=_text(raw["plan"]),
                name=name,
                split=_split(raw["split"]),
                sha256=raw["sha256"],
                bytes=_whole(raw["bytes"], 0),
                clips=clips,
                rejected=tuple(_rejected(item) for item in _list(raw["rejected"])),
            )


def entry_path(folder: Path, name: str) -> Path:
    """Path of the entry of the shard `name`."""
    return folder / f"{name.removesuffix('.tar')}.json"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: there is no such file.", hint="Make shards with: avfs data prepare.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError):
        raise DataError(f"{path}: is not valid JSON.", hint=_AGAIN) from None


class _Checking:
    """Turns what goes wrong while fields are looked at into an error that names the file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyError):
            raise DataError(f"{self._path}: {error} is missing.", hint=_AGAIN) from None
        if isinstance(error, (TypeError, ValueError, AttributeError)):
            raise DataError(f"{self._path}: is not valid: {error}.", hint=_AGAIN) from None


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{str(value)[:40]!r} is not a list")
    return value


def _whole(value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{value!r} is not a whole number from {least} on")
    return value


def _split(value: Any) -> str:
    if value not in SPLITS:
        raise ValueError(f"{value!r} is not a split")
    return value


def _shard_name(raw: Any) -> ShardName:
    name = _text(raw["name"])
    if not _SHARD_NAME.fullmatch(name):  # nothing but a plain file name: no folder, no other place, no command
        raise ValueError(f"{name!r} is not the name of a shard")
    return ShardName(name, _split(raw["split"]), _whole(raw["clips"], 1))


def _stored(raw: Any) -> StoredClip:
    key = _text(raw["key"])
    if not _KEY.fullmatch(key):
        raise ValueError(f"{key!r} is not a key")
    return StoredClip(_text(raw["id"]), key, _whole(raw["offset"], 0))


def _rejected(raw: Any) -> Rejected:
    return Rejected(*(_text(raw[name]) for name in ("id", "split", "file", "reason")))
