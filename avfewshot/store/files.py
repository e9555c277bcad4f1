"""The files of a store, read: clips, their rows, windows of sound and thumbnails; :mod:`writer` writes them.

DIR/store.db            clips, their thumbnails, windows of sound, what embedded them
DIR/visual-1.f32        a row a second, appended to; rows behind those that store.db counts are a killed run's
DIR/audio-1.f32
DIR/visual-1.index      4-bit product quantiser of these rows (faiss); made again where it lacks
"""

from __future__ import annotations

import json
import os
import sqlite3
import threading
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.errors import DataError, UsageError
from avfewshot.io import user_path
from avfewshot.media.clip import MODALITIES
from avfewshot.media.remote import is_remote
from avfewshot.media.thumbnails import Thumbnail, jpeg_source, spread
from avfewshot.store.search import Floats, Rows

VERSION = 1
ANEW = "Embed the collection into a new store."
_OF_TOWERS = frozenset(
    "backbone weights precision seed clip_weights clap_weights roberta templates audio_context".split()
)


@dataclass(frozen=True)
class StoredClip(Rows):
    """A clip of a store; its path is absolute, or an address."""

    id: int
    real: str  # its path without links
    size: int  # 0 at an address
    mtime: int  # nanoseconds; likewise
    warnings: tuple[str, ...]
    error: str | None  # why it could not be embedded; it has no rows then

    @property
    def source(self) -> Path | str:
        """What :meth:`Classifier.classify` takes."""
        return self.path if is_remote(self.path) else Path(self.path)

    def is_current(self) -> bool:
        """Whether the file is the one that was embedded; what lies at an address is taken to stay."""
        if is_remote(self.path):
            return True
        try:
            status = os.stat(self.path)
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (self.size, self.mtime)


_COLUMNS = [field.name for field in fields(StoredClip)]


def stored_name(path: str | os.PathLike[str]) -> str:
    """What a clip is stored under."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def connect(folder: Path, mode: str) -> sqlite3.Connection:
    """Open the database, ``"ro"`` or ``"rw"``, for whichever thread asks first."""
    address = (folder / "store.db").absolute().as_uri()
    return sqlite3.connect(f"{address}?mode={mode}", uri=True, timeout=30, check_same_thread=False)


def rows_file(folder: Path, modality: str, generation: int) -> Path:
    """Where the rows of a modality lie."""
    return folder / f"{modality}-{generation}.f32"


def check_rows(path: Path, size: int) -> None:
    """Raise a :class:`DataError` where a file of rows is shorter than a store counts, or no file: a pipe would hang."""
    if (size or path.exists()) and not (path.is_file() and path.stat().st_size >= size):
        raise DataError(f"{path}: is missing or cut.", hint=ANEW)


class StoreFiles:
    """A collection of clips, opened to read.

    Raises:
        UsageError: There is no store.
        DataError: It is damaged, or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = user_path(folder)
        self._reading = threading.Lock()
        self._read()

    def _read(self) -> None:
        for name in ("embedded", "_vectors", "_by_real", "_search", "_reader"):
            self.__dict__.pop(name, None)
        if not (self.folder / "store.db").is_file():
            raise UsageError(f"{self.folder}: there is no store.", hint=f"avfs embed clips/ --store {self.folder}")
        try:
            about = dict(self._select("SELECT key, value FROM about"))
            if about["version"] != str(VERSION):
                raise DataError(f"{self.folder}: is a store of version {about['version']}, not {VERSION}.", hint=ANEW)
            self.model: dict[str, Any] = json.loads(about["model"])  # arguments of load()
            if not {"backbone", "precision"} <= self.model.keys() <= _OF_TOWERS:
                raise ValueError("its model is not one that was written")
            self.identity: dict[str, str] = json.loads(about["identity"])
            self.dims: dict[str, int] = json.loads(about["dims"])
            self.generation = int(about["generation"])
            self.rows: dict[str, int] = json.loads(about["rows"])  # of each file
            if not all(isinstance(digest, str) for digest in self.identity.values()):
                raise ValueError("its identity is not one that was written")
            if not all(type(self.dims[name]) is int and self.dims[name] > 0 for name in MODALITIES):
                raise ValueError("its dimensions are not whole numbers from 1 on")
            self.clips: dict[str, StoredClip] = {}
            for row in self._select(f"SELECT {', '.join(_COLUMNS)} FROM clips ORDER BY path"):
                values: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
                values |= {key: os.fsdecode(values[key]) for key in ("path", "real")}
                values["warnings"] = tuple(json.loads(values["warnings"]))
                clip = StoredClip(**values)
                self._check(clip)
                self.clips[clip.path] = clip
        except (sqlite3.Error, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{self.folder / 'store.db'}: is damaged ({error}).", hint=ANEW) from None

    def _check(self, clip: StoredClip) -> None:
        """Raise ValueError for a clip whose figures cannot be, or whose rows are not there."""
        starts = [(start, self.rows[name]) for name, start in (("visual", clip.visual), ("audio", clip.audio))]
        whole = all(type(value) is int and value >= 0 for value in (clip.id, clip.size, clip.seconds))
        there = (start is None or (type(start) is int and 0 <= start <= rows - clip.seconds) for start, rows in starts)
        if not (whole and type(clip.mtime) is int and isinstance(clip.error, str | None) and all(there)):
            raise ValueError(f"{clip.path}: its row is not one that was written")
        timed = clip.seconds and isinstance(clip.duration, float | int) and abs(clip.duration - clip.seconds) <= 1
        if clip.error is None and not (timed and (clip.visual, clip.audio) != (None, None)):
            raise ValueError(f"{clip.path}: its rows are not those of its duration")
        if "\0" in clip.path:
            raise ValueError("a path holds a NUL byte")

    def __len__(self) -> int:
        return len(self.embedded)

    @cached_property
    def embedded(self) -> list[StoredClip]:
        """Clips with embeddings, by path."""
        return [clip for clip in self.clips.values() if clip.error is None]

    @cached_property
    def _reader(self) -> sqlite3.Connection:
        return connect(self.folder, "ro")

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query of the database gives; one connection serves all threads, one after another."""
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    def vectors(self, modality: str) -> Floats:
        """All rows of a modality, float32 ``[N, D]``, dead ones among them.

        They are memory-mapped; what is changed stays in memory. A :class:`DataError` where they are missing or cut.
        """
        shape = self.rows[modality], self.dims[modality]
        if not shape[0]:
            return np.zeros((0, shape[1]), dtype=np.float32)
        path = rows_file(self.folder, modality, self.generation)
        check_rows(path, shape[0] * shape[1] * 4)
        try:
            return np.asarray(np.memmap(path, dtype=np.float32, mode="c", shape=shape))
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read: {error}.") from None

    def of(self, clip: StoredClip) -> tuple[Floats | None, Floats | None]:
        """The embeddings of a clip, float32 ``[T, D_v]`` and ``[T, D_a]``; a :class:`DataError` for damaged ones."""
        made: list[Floats | None] = []
        for name, start in (("visual", clip.visual), ("audio", clip.audio)):
            made.append(None if start is None else self._vectors[name][start : start + clip.seconds])
            if made[-1] is not None and not (np.abs(made[-1]) <= 2).all():
                raise self.no_unit_vectors(name)
        return made[0], made[1]

    def no_unit_vectors(self, modality: str) -> DataError:
        """That rows of a modality are none that were written: NaN, infinite, or far from unit length."""
        path = rows_file(self.folder, modality, self.generation)
        return DataError(f"{path}: is damaged, it holds rows that are no unit vectors.", hint=ANEW)

    @property
    def audio_context(self) -> str:
        """How its clips were heard: ``"second"`` or ``"clip"``."""
        return self.identity.get("audio context", "second")

    def audio_windows(self, clip: StoredClip) -> Floats | None:
        """Of a clip with sound that was heard in windows, that of each second's window, float32 ``[T, D_a]``."""
        windows = self.windows(clip)
        return None if windows is None else np.repeat(*windows, axis=0)

    def windows(self, clip: StoredClip) -> tuple[Floats, list[int]] | None:
        """The embeddings of its windows, float32 ``[W, D_a]``, and the seconds of each; None where it was not heard so.

        A :class:`DataError` where the database is damaged.
        """
        if self.audio_context == "second" or clip.audio is None:
            return None
        try:
            [(lengths, content)] = self._select("SELECT lengths, rows FROM windows WHERE clip = ?", (clip.id,))
            rows = np.frombuffer(bytearray(content), dtype=np.float32).reshape(-1, self.dims["audio"])
            lengths = json.loads(lengths)
            if len(lengths) != len(rows) or sum(lengths) != clip.seconds or not np.isfinite(rows).all():
                raise ValueError(f"{clip.path}: its windows are not those of its seconds")
            return rows, lengths
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise DataError(f"{self.folder / 'store.db'}: is damaged ({error}).", hint=ANEW) from None

    def by_clip(self, clip: StoredClip) -> tuple[Floats | None, Floats | None]:
        """As :meth:`of`, as clips are judged: a second sounds like its window, where windows were heard."""
        visual, audio = self.of(clip)
        windows = self.audio_windows(clip)
        return visual, audio if windows is None else windows

    @cached_property
    def _vectors(self) -> dict[str, Floats]:
        return {name: self.vectors(name) for name in MODALITIES}

    def thumbnail(self, path: str | os.PathLike[str], second: int = 0) -> bytes | None:
        """A JPEG of a second of a clip; None where it has no picture."""
        clip = self.clips.get(stored_name(path))
        query = "SELECT jpeg FROM thumbnails WHERE clip = ? AND second = ?"
        return next((row[0] for row in self._select(query, (clip.id, second))), None) if clip else None

    def pictures(self, path: str | os.PathLike[str], count: int) -> list[Thumbnail]:
        """At most `count` evenly spaced ones of a clip as it is now; none where the store does not hold it."""
        clip = self.find_clip(path)
        seconds = spread(clip.seconds, count) if clip else []
        found = ((second, self.thumbnail(path, second)) for second in seconds)
        return [Thumbnail(second, jpeg_source(picture)) for second, picture in found if picture]

    def find_clip(self, path: str | os.PathLike[str]) -> StoredClip | None:
        """The embedded clip of a file that has not changed since, by whichever link it is named."""
        clip = self.clips.get(stored_name(path)) or self._by_real.get(os.path.realpath(path))
        return clip if clip is not None and clip.error is None and clip.is_current() else None

    @cached_property
    def _by_real(self) -> dict[str, StoredClip]:
        return {clip.real: clip for clip in self.embedded}
