"""How the files of a store are written, in commits that count whole or not at all.

The rows of a clip lie together. A clip that has gone leaves dead rows, and when they are a quarter of a file all rows
are written anew under the next number. docs/collections.md has the measurement behind this choice.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avfewshot.errors import AvfsError, DataError
from avfewshot.io import alone, atomic_path, naming
from avfewshot.media.clip import MODALITIES, Clip, Failure
from avfewshot.media.remote import is_remote
from avfewshot.media.thumbnails import jpeg
from avfewshot.store.files import ANEW, VERSION, StoredClip, check_rows, connect, rows_file

if TYPE_CHECKING:
    from avfewshot.cache import Stamp
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.features import EmbeddedFile

    _Entry = EmbeddedFile | Failure

Thumbnailed = Generator["tuple[EmbeddedFile | Failure, dict[int, bytes]]", None, None]
"""Embeddings of files in order, or what was wrong, with thumbnails by second."""

THUMBNAIL = 96  # longer side of thumbnails in pixels

_COMMIT_CLIPS, _COMMIT_SECONDS = 64, 5.0  # a kill costs at most so much work
_DEAD_SHARE = 0.25
_PATIENCE = 3.0  # seconds; a process that was killed may take some to end
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE clips (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, real BLOB NOT NULL, size INTEGER NOT NULL,
    mtime INTEGER NOT NULL, duration REAL, seconds INTEGER NOT NULL, visual INTEGER, audio INTEGER, warnings TEXT,
    error TEXT);
CREATE TABLE thumbnails (clip INTEGER, second INTEGER, jpeg BLOB NOT NULL, PRIMARY KEY (clip, second));
"""
# How sound was heard in windows, with the seconds of each; stores of an earlier version get it when they are written.
_WINDOWS = "CREATE TABLE IF NOT EXISTS windows (clip INTEGER PRIMARY KEY, lengths TEXT NOT NULL, rows BLOB NOT NULL)"
_NUMBERED = re.compile(rf"(?:{'|'.join(MODALITIES)})-([0-9]+)\.(?:f32|index)")
_TABLES = {"clips": "id", "thumbnails": "clip", "windows": "clip"}


def create(folder: Path, model: Mapping[str, Any], identity: Mapping[str, str], dims: Mapping[str, int]) -> None:
    """Make an empty store, unless another process was faster; see :meth:`Store.create`."""
    about = {"model": model, "identity": identity, "dims": dims, "rows": dict.fromkeys(MODALITIES, 0)}
    about |= {"version": VERSION, "generation": 1}
    folder.mkdir(parents=True, exist_ok=True)
    with _alone(folder):
        if not (folder / "store.db").exists():
            _create(folder / "store.db", about)


def _create(path: Path, about: Mapping[str, Any]) -> None:
    entries = [(key, json.dumps(value)) for key, value in about.items()]
    with atomic_path(path) as temporary:
        database = sqlite3.connect(temporary)
        database.executescript(_SCHEMA + _WINDOWS)
        database.executemany("INSERT INTO about VALUES (?, ?)", entries)
        database.commit()
        database.close()


def embed_files(
    towers: Classifier, paths: Sequence[Path | str], *, batch_size: int | str = "auto", workers: int = 2
) -> Thumbnailed:
    """What the frozen towers make of files, in order, each with a thumbnail of every second, by second."""
    made: dict[str, dict[int, bytes]] = {}

    def watch(clip: Clip) -> None:
        """Make thumbnails of a part of a clip while its frames are there."""
        if clip.frames is not None:
            pictures = made.setdefault(str(clip.path), {})
            for second, frame in enumerate(clip.frames, start=clip.start):
                pictures[second] = jpeg(frame.permute(1, 2, 0).numpy(), THUMBNAIL)

    with contextlib.closing(towers.iter_embed(paths, batch_size=batch_size, workers=workers, watch=watch)) as files:
        for path, file in zip(paths, files, strict=True):
            yield file, made.pop(str(path), {})


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[Writer]:
    """A writer of a store, the only one at a time; what it was given is kept, however this ends.

    Raises:
        AvfsError: Another process writes into it.
    """
    with _alone(folder), contextlib.closing(connect(folder, "rw")) as database:
        writer = Writer(folder, database)
        try:
            yield writer
        finally:
            writer.close()


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    try:
        with naming(folder), alone(folder, "another process writes into it", patience=_PATIENCE):
            yield
    except sqlite3.OperationalError as error:  # its own for a disk that is full or only to be read
        hint = "Make room there; what was embedded is kept, and the same command goes on."
        raise AvfsError(f"{folder}: cannot be written: {error}.", hint=hint) from None
    except sqlite3.DatabaseError as error:  # rows of clips that are not there, say
        raise DataError(f"{folder / 'store.db'}: is damaged ({error}).", hint=ANEW) from None


class Writer:
    """Appends embeddings to the files of a store, and commits them; see :func:`writing`."""

    def __init__(self, folder: Path, database: sqlite3.Connection) -> None:
        database.execute(_WINDOWS)
        about = {key: json.loads(value) for key, value in database.execute("SELECT key, value FROM about")}
        self._folder, self._database = folder, database
        self._generation, self._dims, self._rows = about["generation"], about["dims"], about["rows"]
        self._files = {}
        for name in MODALITIES:
            path, size = rows_file(folder, name, self._generation), self._rows[name] * self._dims[name] * 4
            check_rows(path, size)
            self._files[name] = stream = open(path, "ab")  # noqa: SIM115
            stream.truncate(size)  # what a killed run has left behind its last commit
        self._waiting, self._since = 0, time.monotonic()
        self._tidy(self._generation)  # a process may have been killed while it wrote all rows anew

    def forget(self, clips: Iterable[StoredClip]) -> None:
        """Drop clips; their rows stay, and are nobody's."""
        with self._database:
            for clip in clips:
                self._delete(clip.id)

    def _delete(self, clip: int) -> None:
        for table, key in _TABLES.items():
            self._database.execute(f"DELETE FROM {table} WHERE {key} = ?", (clip,))

    def add(self, path: Path | str, file: _Entry, pictures: Mapping[int, bytes], stamp: Stamp | None) -> None:
        """Take a file, wholly or, where that fails or is interrupted, not at all.

        `stamp` is its :func:`~avfewshot.cache.file_stamp` from before it was read: one that changed since is another.
        """
        if not self._database.in_transaction:
            self._database.execute("BEGIN")
        self._database.execute("SAVEPOINT file")
        try:
            self._insert(path, file, pictures, stamp)
        except BaseException:
            self._database.execute("ROLLBACK TO file")
            raise
        self._waiting += 1
        if self._waiting >= _COMMIT_CLIPS or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def _insert(self, path: Path | str, file: _Entry, pictures: Mapping[int, bytes], stamp: Stamp | None) -> None:
        name = os.fsencode(path)
        about: list[Any] = [name, name, 0, 0]
        if not is_remote(path):
            if stamp is None or not os.path.exists(path):  # it went while it was decoded
                return
            about[1:] = os.fsencode(os.path.realpath(path)), *stamp
        before = self._database.execute("SELECT id FROM clips WHERE path = ?", (name,)).fetchone()
        if before is not None:
            self._delete(before[0])
        insert = f"INSERT INTO clips VALUES (NULL{', ?' * 10})"
        if isinstance(file, Failure):
            self._database.execute(insert, (*about, None, 0, None, None, "[]", file.error))
        else:
            starts, seconds = [], 0
            for modality, values in (("visual", file.visual), ("audio", file.audio)):
                if values is None:
                    starts.append(None)
                    continue
                rows = np.ascontiguousarray(values.numpy(), dtype=np.float32)
                self._files[modality].write(rows.tobytes())
                starts.append(self._rows[modality])
                self._rows[modality] += len(rows)
                seconds = len(rows)
            values = (*about, file.duration, seconds, *starts, json.dumps(file.warnings), None)
            clip = self._database.execute(insert, values).lastrowid
            if file.audio_windows is not None:
                heard = np.ascontiguousarray(file.audio_windows.numpy(), dtype=np.float32)
                firsts = np.flatnonzero([True, *(heard[1:] != heard[:-1]).any(1)])
                lengths = np.diff(firsts, append=len(heard)).tolist()
                row = (clip, json.dumps(lengths), heard[firsts].tobytes())
                self._database.execute("INSERT INTO windows VALUES (?, ?, ?)", row)
            rows = [(clip, second, jpeg) for second, jpeg in pictures.items()]
            self._database.executemany("INSERT INTO thumbnails VALUES (?, ?, ?)", rows)

    def commit(self) -> None:
        """Have all that was added count."""
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        self._set("rows", self._rows)
        self._database.commit()
        self._waiting, self._since = 0, time.monotonic()

    def compact(self) -> bool:
        """Write the rows that are in use into new files, where dead ones take too much room; tells whether it did."""
        self.commit()
        count = "SELECT COALESCE(SUM(seconds), 0) FROM clips WHERE {} IS NOT NULL"
        alive = {name: self._database.execute(count.format(name)).fetchone()[0] for name in MODALITIES}
        if all(self._rows[name] - alive[name] <= _DEAD_SHARE * self._rows[name] for name in MODALITIES):
            return False
        with self._database:
            for name in MODALITIES:
                self._rewrite(name)
            self._set("rows", alive)
            self._set("generation", self._generation + 1)
        for stream in self._files.values():
            stream.close()
        self._files = {}
        self._tidy(self._generation + 1)
        return True

    def _tidy(self, generation: int) -> None:
        """Remove rows and indexes of other numbers than this."""
        for path in self._folder.iterdir():
            if (match := _NUMBERED.fullmatch(path.name)) and int(match[1]) != generation:
                path.unlink()

    def _rewrite(self, name: str) -> None:
        """The rows in use of a modality under the next number."""
        width, start = self._dims[name] * 4, 0
        query = f"SELECT id, {name}, seconds FROM clips WHERE {name} IS NOT NULL ORDER BY {name}"
        old, new = (rows_file(self._folder, name, self._generation + more) for more in (0, 1))
        with open(old, "rb") as source, atomic_path(new) as temporary, open(temporary, "wb") as stream:
            for id, row, seconds in self._database.execute(query).fetchall():
                source.seek(row * width)
                stream.write(source.read(seconds * width))
                self._database.execute(f"UPDATE clips SET {name} = ? WHERE id = ?", (start, id))
                start += seconds

    def _set(self, key: str, value: Any) -> None:
        self._database.execute("UPDATE about SET value = ? WHERE key = ?", (json.dumps(value), key))

    def close(self) -> None:
        """Commit what there is, even when something else failed; an :class:`AvfsError` where it cannot be written."""
        try:
            if self._files:
                self.commit()
        except (OSError, sqlite3.Error) as error:
            raise AvfsError(f"{self._folder}: cannot be written: {error}.") from error
        finally:
            for stream in self._files.values():
                stream.close()
