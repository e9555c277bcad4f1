"""The files of a store: SQLite for clips and thumbnails, float32 rows for vectors, an index that can be made again.

    DIR/store.db            clips, their means, thumbnails, windows of sound, what embedded them; a commit counts whole
                            or not at all
    DIR/visual-1.f32        a row a second, appended to; rows behind those that store.db counts are a killed run's
    DIR/audio-1.f32
    DIR/visual-1.index      4-bit product quantiser of these rows (faiss); made again where it lacks

The rows of a clip lie together. A clip that has gone leaves dead rows, and when they are a quarter of a file all rows
are written anew under the next number. docs/collections.md has the measurement behind this choice.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avfewshot.errors import AvfsError, DataError, UsageError
from avfewshot.io import atomic_path, naming, try_lock, user_path
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.remote import is_remote
from avfewshot.media.thumbnails import Thumbnail, jpeg, jpeg_source, spread
from avfewshot.store.search import BY, MODALITIES, Floats, Hit, Search, clip_query, word_query

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.embedding_cache import EmbeddingCache
    from avfewshot.inference.features import EmbeddedFile

Thumbnailed = Generator["tuple[EmbeddedFile | Failure, dict[int, bytes]]", None, None]
"""Embeddings of files in order, or what was wrong, with thumbnails by second."""

VERSION = 1
THUMBNAIL = 96  # longer side of thumbnails in pixels

_COMMIT_CLIPS, _COMMIT_SECONDS = 64, 5.0  # a kill costs at most so much work
_DEAD_SHARE = 0.25
_PATIENCE = 3.0  # seconds; a process that was killed may take some to end
_TRAINED = 20_000  # rows that a quantiser is trained on
_INDEXED = 100_000  # fewer rows are compared one by one
_SCHEMA = """
CREATE TABLE about (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE clips (id INTEGER PRIMARY KEY, path BLOB NOT NULL UNIQUE, real BLOB NOT NULL, size INTEGER NOT NULL,
    mtime INTEGER NOT NULL, duration REAL, seconds INTEGER NOT NULL, visual INTEGER, audio INTEGER, warnings TEXT,
    error TEXT);
CREATE TABLE means (clip INTEGER PRIMARY KEY, visual BLOB, audio BLOB);
CREATE TABLE thumbnails (clip INTEGER, second INTEGER, jpeg BLOB NOT NULL, PRIMARY KEY (clip, second));
"""
# How sound was heard in windows, with the seconds of each; stores of an earlier version get it when they are written.
_WINDOWS = "CREATE TABLE IF NOT EXISTS windows (clip INTEGER PRIMARY KEY, lengths TEXT NOT NULL, rows BLOB NOT NULL)"
_TABLES = {"clips": "id", "means": "clip", "thumbnails": "clip", "windows": "clip"}


@dataclass(frozen=True)
class StoredClip:
    """A clip of a store."""

    id: int
    path: str  # absolute, or an address
    real: str  # without links
    size: int  # 0 at an address
    mtime: int  # nanoseconds; likewise
    duration: float
    seconds: int  # T
    visual: int | None  # its first row of T; None without video
    audio: int | None
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


@dataclass
class Changes:
    """How files differ from what a store holds."""

    new: list[Path | str] = field(default_factory=list)
    changed: list[Path | str] = field(default_factory=list)
    gone: list[StoredClip] = field(default_factory=list)
    kept: int = 0
    failed: list[Failure] = field(default_factory=list)  # could not be embedded before, and have not changed since

    @property
    def to_embed(self) -> list[Path | str]:
        """What has to be decoded, in order."""
        return sorted([*self.new, *self.changed], key=str)


class Store:
    """A collection of clips, opened to read; :meth:`update` writes.

    Raises:
        UsageError: There is no store.
        DataError: It is damaged, or of another version.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = user_path(folder)
        self._towers: Classifier | None = None
        self._reading = threading.Lock()
        self._read()

    def _read(self) -> None:
        for name in ("embedded", "_vectors", "_by_real", "_search", "_reader"):
            self.__dict__.pop(name, None)
        if not (self.folder / "store.db").is_file():
            raise UsageError(f"{self.folder}: there is no store.", hint=f"avfs embed clips/ --store {self.folder}")
        try:
            about = dict(self._select("SELECT key, value FROM about"))
            rows = self._select("SELECT * FROM clips ORDER BY path")
            if about["version"] != str(VERSION):
                raise DataError(f"{self.folder}: is a store of version {about['version']}, not {VERSION}.")
            self.model: dict[str, Any] = json.loads(about["model"])  # arguments of load()
            self.identity: dict[str, str] = json.loads(about["identity"])
            self.dims: dict[str, int] = json.loads(about["dims"])
            self.generation = int(about["generation"])
            self.rows: dict[str, int] = json.loads(about["rows"])  # of each file
            self.clips: dict[str, StoredClip] = {}
            for id, path, real, *rest, warnings, error in rows:
                values = [id, os.fsdecode(path), os.fsdecode(real), *rest, tuple(json.loads(warnings)), error]
                self.clips[values[1]] = StoredClip(*values)
                self._check(self.clips[values[1]])
        except (sqlite3.Error, KeyError, ValueError, TypeError) as error:
            raise DataError(f"{self.folder / 'store.db'}: is damaged ({error}).", hint="Embed it again.") from None

    def _check(self, clip: StoredClip) -> None:
        """Raise ValueError for a clip whose figures cannot be, or whose rows are not there."""
        starts = [(start, self.rows[name]) for name, start in (("visual", clip.visual), ("audio", clip.audio))]
        whole = all(type(value) is int and value >= 0 for value in (clip.id, clip.size, clip.seconds))
        there = (start is None or (type(start) is int and 0 <= start <= rows - clip.seconds) for start, rows in starts)
        if not (whole and type(clip.mtime) is int and isinstance(clip.error, str | None) and all(there)):
            raise ValueError(f"{clip.path}: its row is not one that was written")
        if clip.error is None and not isinstance(clip.duration, float | int):
            raise ValueError(f"{clip.path}: has no duration")

    @classmethod
    def create(
        cls, folder: str | os.PathLike[str], model: Mapping[str, Any], identity: Mapping[str, str], dims: dict[str, int]
    ) -> Store:
        """Make an empty store, or open the one that is there.

        Args:
            folder: Made where it lacks.
            model: Arguments of :func:`avfewshot.load` that give the same towers again.
            identity: What embeddings depend on, see :meth:`Classifier.embedding_identity`.
            dims: Width of the embeddings by modality.
        """
        folder = user_path(folder)
        if not (folder / "store.db").exists():
            values = {"model": model, "identity": identity, "dims": dims, "rows": dict.fromkeys(MODALITIES, 0)}
            values |= {"version": VERSION, "generation": 1}
            with _written(folder), atomic_path(folder / "store.db") as temporary:
                database = sqlite3.connect(temporary)
                database.executescript(_SCHEMA + _WINDOWS)
                database.executemany(
                    "INSERT INTO about VALUES (?, ?)", [(key, json.dumps(value)) for key, value in values.items()]
                )
                database.commit()
                database.close()
        return cls(folder)

    def __len__(self) -> int:
        return len(self.embedded)

    @cached_property
    def embedded(self) -> list[StoredClip]:
        """Clips with embeddings, by path."""
        return [clip for clip in self.clips.values() if clip.error is None]

    # ------------------------------------------------------------------------------------------ reading

    def _connect(self, mode: str) -> sqlite3.Connection:
        address = (self.folder / "store.db").absolute().as_uri()
        return sqlite3.connect(f"{address}?mode={mode}", uri=True, timeout=30, check_same_thread=False)

    @cached_property
    def _reader(self) -> sqlite3.Connection:
        return self._connect("ro")

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query gives; one connection serves all threads, one after another."""
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    def vectors(self, modality: str) -> Floats:
        """All rows of a modality ``[N, D]``, dead ones among them: memory-mapped; what is changed stays in memory."""
        shape = self.rows[modality], self.dims[modality]
        if not shape[0]:
            return np.zeros((0, shape[1]), dtype=np.float32)
        try:
            return np.asarray(np.memmap(self._file(modality), dtype=np.float32, mode="c", shape=shape))
        except (OSError, ValueError):
            raise DataError(f"{self._file(modality)}: is missing or cut.", hint="Embed the collection again.") from None

    def of(self, clip: StoredClip) -> tuple[Floats | None, Floats | None]:
        """The embeddings of a clip, ``[T, D_v]`` and ``[T, D_a]``."""
        starts = {"visual": clip.visual, "audio": clip.audio}
        visual, audio = (
            None if start is None else self._vectors[name][start : start + clip.seconds]
            for name, start in starts.items()
        )
        return visual, audio

    @property
    def audio_context(self) -> str:
        """How its clips were heard: ``"second"`` or ``"clip"``."""
        return self.identity.get("audio context", "second")

    def audio_windows(self, clip: StoredClip) -> Floats | None:
        """Of a clip with sound that was heard in windows, the embedding of each second's window ``[T, D_a]``."""
        windows = self.windows(clip)
        return None if windows is None else np.repeat(*windows, axis=0)

    def windows(self, clip: StoredClip) -> tuple[Floats, list[int]] | None:
        """The embeddings of its windows ``[W, D_a]``, and the seconds of each."""
        if self.audio_context == "second" or clip.audio is None:
            return None
        try:
            [(lengths, content)] = self._select("SELECT lengths, rows FROM windows WHERE clip = ?", (clip.id,))
            rows = np.frombuffer(bytearray(content), dtype=np.float32).reshape(-1, self.dims["audio"])
            lengths = json.loads(lengths)
            if len(lengths) != len(rows) or sum(lengths) != clip.seconds:
                raise ValueError(f"{clip.path}: its windows are not its seconds")
            return rows, lengths
        except (sqlite3.Error, ValueError, TypeError) as error:
            raise DataError(f"{self.folder / 'store.db'}: is damaged ({error}).", hint="Embed it again.") from None

    def by_clip(self, clip: StoredClip) -> tuple[Floats | None, Floats | None]:
        """The embeddings of a clip as clips are judged: a second sounds like its window, where windows were heard."""
        visual, audio = self.of(clip)
        windows = self.audio_windows(clip)
        return visual, audio if windows is None else windows

    @cached_property
    def _vectors(self) -> dict[str, Floats]:
        return {name: self.vectors(name) for name in MODALITIES}

    def means(self) -> dict[str, Floats]:
        """Unit vectors ``[N, D]`` by modality, one for each of :attr:`embedded`; zero where it has none."""
        means = {name: np.zeros((len(self), self.dims[name]), dtype=np.float32) for name in MODALITIES}
        position = {clip.id: number for number, clip in enumerate(self.embedded)}
        for clip, *parts in self._select("SELECT clip, visual, audio FROM means"):
            for name, part in zip(MODALITIES, parts, strict=True):
                if part is not None and clip in position:
                    means[name][position[clip]] = np.frombuffer(part, dtype=np.float32)
        return means

    def thumbnail(self, path: str | os.PathLike[str], second: int = 0) -> bytes | None:
        """A JPEG of a second of a clip; None where it has no picture."""
        clip = self.clips.get(_name(path))
        query = "SELECT jpeg FROM thumbnails WHERE clip = ? AND second = ?"
        found = self._select(query, (clip.id, second)) if clip else []
        return found[0][0] if found else None

    def pictures(self, path: str | os.PathLike[str], count: int) -> list[Thumbnail]:
        """At most `count` evenly spaced ones of a clip as it is now; none where the store does not hold it."""
        clip = self.find_clip(path)
        seconds = spread(clip.seconds, count) if clip else []
        return [
            Thumbnail(second, jpeg_source(picture)) for second in seconds if (picture := self.thumbnail(path, second))
        ]

    def find_clip(self, path: str | os.PathLike[str]) -> StoredClip | None:
        """The embedded clip of a file that has not changed since, by whichever link it is named."""
        clip = self.clips.get(_name(path)) or self._by_real.get(os.path.realpath(path))
        return clip if clip is not None and clip.error is None and clip.is_current() else None

    @cached_property
    def _by_real(self) -> dict[str, StoredClip]:
        return {clip.real: clip for clip in self.embedded}

    def cache(self, identity: Mapping[str, str], then: EmbeddingCache | None) -> EmbeddingCache:
        """What looks embeddings up here before it does so in `then`.

        Raises:
            UsageError: They were made by other towers than `identity` tells.
        """
        from avfewshot.store.embeddings import StoredEmbeddings

        self.check(identity)
        return StoredEmbeddings(self, then)

    def check(self, identity: Mapping[str, str]) -> None:
        """Raise a :class:`UsageError` unless the embeddings come from towers of this identity."""
        wrong = [key for key in {**self.identity, **identity} if self.identity.get(key) != identity.get(key)]
        if wrong:
            raise UsageError(
                f"{self.folder}: was embedded with {self.model['backbone']}, {self.model['precision']}; what is asked "
                f"for differs in {', '.join(sorted(wrong))}.",
                hint="Use the same --backbone, weights, --precision and --audio-context, or embed into another store.",
            )

    def classifier(self, device: str = "auto") -> Classifier:
        """The towers that embedded it."""
        from avfewshot.inference.loading import load

        classifier = load(**self.model, device=device)
        self.check(classifier.embedding_identity)
        return classifier

    def find(
        self,
        query: str | None = None,
        *,
        like: str | os.PathLike[str] | None = None,
        by: str = "both",
        top: int = 20,
        classifier: Classifier | None = None,
    ) -> list[Hit]:
        """Search by words or by a clip; the best first, each with the moments that it was found by.

        Args:
            query: What to look for, such as ``"dog barking"``.
            like: Instead: a clip, or some of its seconds as ``"clip.mp4:12-15"``; one in the store needs no model.
            by: ``"sight"``, ``"sound"`` or ``"both"``.
            top: How many clips at most.
            classifier: The towers that embedded the store; loaded once where they are needed, unless given.

        Raises:
            UsageError: An argument is wrong.
            MediaError: `like` cannot be read.
        """
        if by not in BY:
            raise UsageError(f"There is no way to search by {by!r}.", hint=f"Choose from: {', '.join(BY)}.")
        if (query is None) == (like is None):
            raise UsageError("Search by words or by a clip?", hint="Give one of query and like.")
        if classifier is not None:
            self._towers = classifier
        if like is not None:
            wanted, itself = clip_query(self, os.fspath(like), lambda path: self.towers().embed(path))
        else:
            wanted, itself = word_query(self.towers(), query or ""), None
        return self._search.find(wanted, top, by=by, without=itself)

    def towers(self, device: str = "auto") -> Classifier:
        """The towers that embedded it, loaded when they are first asked for."""
        if self._towers is None:
            self._towers = self.classifier(device)
        return self._towers

    def search(self, *, exact: bool = False) -> Search:
        """What answers queries; with `exact` without indexes."""
        return Search(self.embedded, self._vectors, None if exact else self.index())

    @cached_property
    def _search(self) -> Search:
        return self.search()

    # ------------------------------------------------------------------------------------------ writing

    def changes(self, files: Sequence[Path | str], roots: Sequence[str | Path], *, retry: bool = False) -> Changes:
        """How `files`, all media files below `roots`, differ from what is stored; nothing is decoded or fetched.

        Stored clips below `roots` that are no file any more have gone. With `retry` files that could not be embedded
        count as new.
        """
        result = Changes()
        present = {_name(file): file for file in files}
        for path, file in present.items():
            clip = self.clips.get(path)
            if clip is None or (retry and clip.error is not None):
                result.new.append(file if is_remote(file) else Path(path))
            elif not clip.is_current():
                result.changed.append(Path(path))
            elif clip.error is not None:
                result.failed.append(Failure(path, clip.error))
            else:
                result.kept += 1
        below = tuple(os.path.join(_name(root), "") for root in roots)
        result.gone = [
            clip
            for path, clip in self.clips.items()
            if path not in present and path.startswith(below) and not os.path.exists(path)
        ]
        return result

    def update(
        self,
        changes: Changes,
        classifier: Callable[[], Classifier],
        *,
        embed: Callable[[Classifier, Sequence[Path | str]], Thumbnailed] | None = None,
        batch_size: int | str = "auto",
        workers: int = 2,
    ) -> Iterator[Path | str | Failure]:
        """Bring the store up to date; gives each file that was embedded, or could not be, as it goes.

        What was embedded is kept whenever this ends, by a kill too. Other processes may read meanwhile. `classifier` is
        called where there is something to embed; `embed` does it elsewhere than in this process; for the
        others see :meth:`Classifier.classify`.

        Raises:
            UsageError: Another process writes into it, or its embeddings come from other towers.
        """
        with _written(self.folder), self._locked(), contextlib.closing(self._connect("rw")) as database:
            database.execute(_WINDOWS)
            with database:
                for clip in changes.gone:
                    _delete(database, clip.id)
            if changes.to_embed:
                towers = classifier()
                self.check(towers.embedding_identity)
                with contextlib.closing(_Writer(self, database)) as writer:
                    embed = embed or functools.partial(embed_files, batch_size=batch_size, workers=workers)
                    with contextlib.closing(embed(towers, changes.to_embed)) as files:
                        for path, (file, pictures) in zip(changes.to_embed, files, strict=True):
                            writer.add(path, file, pictures)
                            yield file if isinstance(file, Failure) else path
            compacted = self._compact(database)
        if compacted or changes.to_embed or changes.gone:
            self._read()
            self.index()

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with open(self.folder / ".lock", "w") as stream:
            until = time.monotonic() + _PATIENCE
            while not try_lock(stream.fileno(), otherwise=True):
                if time.monotonic() > until:
                    raise UsageError(f"{self.folder}: another process writes into it.", hint="Wait for it.")
                time.sleep(0.1)
            yield

    def _compact(self, database: sqlite3.Connection) -> bool:
        """Write the rows that are in use into new files, where dead ones take too much room; tells whether it did."""
        rows = json.loads(dict(database.execute("SELECT key, value FROM about"))["rows"])
        count = "SELECT COALESCE(SUM(seconds), 0) FROM clips WHERE {} IS NOT NULL"
        alive = {name: database.execute(count.format(name)).fetchone()[0] for name in MODALITIES}
        if all(rows[name] - alive[name] <= _DEAD_SHARE * rows[name] for name in MODALITIES):
            return False
        self.rows = rows
        with database:
            for name in MODALITIES:
                old, start = self.vectors(name), 0
                with atomic_path(self._file(name, self.generation + 1)) as temporary, open(temporary, "wb") as stream:
                    query = f"SELECT id, {name}, seconds FROM clips WHERE {name} IS NOT NULL ORDER BY {name}"
                    for id, row, seconds in database.execute(query).fetchall():
                        stream.write(np.ascontiguousarray(old[row : row + seconds]).tobytes())
                        database.execute(f"UPDATE clips SET {name} = ? WHERE id = ?", (start, id))
                        start += seconds
            _set(database, "rows", alive)
            _set(database, "generation", self.generation + 1)
        for path in self.folder.glob(f"*-{self.generation}.*"):
            path.unlink(missing_ok=True)
        return True

    def _file(self, modality: str, generation: int | None = None) -> Path:
        return self.folder / f"{modality}-{generation or self.generation}.f32"

    # ------------------------------------------------------------------------------------------ index

    def index(self) -> dict[str, Any]:
        """Indexes of faiss by modality, up to date; none for few rows or without faiss: all rows are compared."""
        try:
            import faiss
        except ImportError:
            return {}
        made = {}
        for name in MODALITIES:
            vectors, path = self.vectors(name), self._file(name).with_suffix(".index")
            if len(vectors) < _INDEXED:
                continue
            index, indexed = None, 0
            with contextlib.suppress(Exception):  # missing or damaged: it is made again
                index = faiss.read_index(str(path))
                indexed = index.ntotal if index.d == vectors.shape[1] and index.ntotal <= len(vectors) else 0
            # Trained anew, too, where what it was trained on is a small part by now.
            if index is None or not indexed or len(vectors) > 4 * indexed:
                width, indexed = vectors.shape[1], 0
                index = faiss.index_factory(width, f"PQ{width // 2}x4fs", faiss.METRIC_INNER_PRODUCT)
                index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // _TRAINED)]))
            if indexed < len(vectors):
                for start in range(indexed, len(vectors), 100_000):
                    index.add(np.ascontiguousarray(vectors[start : start + 100_000]))
                with contextlib.suppress(OSError), atomic_path(path) as temporary:  # a folder that is only to be read
                    faiss.write_index(index, str(temporary))
            made[name] = index
        return made


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


class _Writer:
    """Appends embeddings to the files of a store, and commits them."""

    def __init__(self, store: Store, database: sqlite3.Connection) -> None:
        self._store, self._database = store, database
        self._rows = json.loads(dict(database.execute("SELECT key, value FROM about"))["rows"])
        self._files = {}
        for name in MODALITIES:
            self._files[name] = stream = open(store._file(name), "ab")  # noqa: SIM115
            size = self._rows[name] * store.dims[name] * 4
            if stream.tell() < size:
                raise DataError(f"{store._file(name)}: is cut.", hint="Embed the collection into a new store.")
            stream.truncate(size)  # what a killed run has left behind its last commit
        self._waiting, self._since = 0, time.monotonic()

    def add(self, path: Path | str, file: EmbeddedFile | Failure, pictures: Mapping[int, bytes]) -> None:
        """Take a file, wholly or, where that fails or is interrupted, not at all."""
        if not self._database.in_transaction:
            self._database.execute("BEGIN")
        self._database.execute("SAVEPOINT file")
        try:
            self._insert(path, file, pictures)
        except BaseException:
            self._database.execute("ROLLBACK TO file")
            raise
        self._waiting += 1
        if self._waiting >= _COMMIT_CLIPS or time.monotonic() - self._since > _COMMIT_SECONDS:
            self.commit()

    def _insert(self, path: Path | str, file: EmbeddedFile | Failure, pictures: Mapping[int, bytes]) -> None:
        name = os.fsencode(path)
        about: list[Any] = [name, name, 0, 0]
        if not is_remote(path):
            try:
                status = os.stat(path)
            except OSError:  # it went while it was decoded
                return
            about[1:] = os.fsencode(os.path.realpath(path)), status.st_size, status.st_mtime_ns
        before = self._database.execute("SELECT id FROM clips WHERE path = ?", (name,)).fetchone()
        if before is not None:
            _delete(self._database, before[0])
        insert = f"INSERT INTO clips VALUES (NULL{', ?' * 10})"
        if isinstance(file, Failure):
            self._database.execute(insert, (*about, None, 0, None, None, "[]", file.error))
        else:
            starts, means, seconds = [], [], 0
            for modality, values in (("visual", file.visual), ("audio", file.audio)):
                if values is None:
                    starts.append(None)
                    means.append(None)
                    continue
                rows = np.ascontiguousarray(values.numpy(), dtype=np.float32)
                self._files[modality].write(rows.tobytes())
                starts.append(self._rows[modality])
                mean = rows.mean(0)
                means.append((mean / max(float(np.linalg.norm(mean)), 1e-12)).astype(np.float32).tobytes())
                self._rows[modality] += len(rows)
                seconds = len(rows)
            values = (*about, file.duration, seconds, *starts, json.dumps(file.warnings), None)
            clip = self._database.execute(insert, values).lastrowid
            self._database.execute("INSERT INTO means VALUES (?, ?, ?)", (clip, *means))
            if file.audio_windows is not None:
                heard = np.ascontiguousarray(file.audio_windows.numpy(), dtype=np.float32)
                firsts = np.flatnonzero([True, *(heard[1:] != heard[:-1]).any(1)])
                lengths = np.diff(firsts, append=len(heard)).tolist()
                row = (clip, json.dumps(lengths), heard[firsts].tobytes())
                self._database.execute("INSERT INTO windows VALUES (?, ?, ?)", row)
            rows = [(clip, second, jpeg) for second, jpeg in pictures.items()]
            self._database.executemany("INSERT INTO thumbnails VALUES (?, ?, ?)", rows)

    def commit(self) -> None:
        for stream in self._files.values():
            stream.flush()
            os.fsync(stream.fileno())
        _set(self._database, "rows", self._rows)
        self._database.commit()
        self._waiting, self._since = 0, time.monotonic()

    def close(self) -> None:
        """Commit what there is, even when something else failed."""
        try:
            self.commit()
        except (OSError, sqlite3.Error) as error:
            raise AvfsError(f"{self._store.folder}: cannot be written: {error}.") from error
        finally:
            for stream in self._files.values():
                stream.close()


def _name(path: str | os.PathLike[str]) -> str:
    """What a clip is stored under."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


def _delete(database: sqlite3.Connection, clip: int) -> None:
    for table, key in _TABLES.items():
        database.execute(f"DELETE FROM {table} WHERE {key} = ?", (clip,))


@contextlib.contextmanager
def _written(folder: Path) -> Iterator[None]:
    try:
        with naming(folder):
            yield
    except sqlite3.OperationalError as error:  # its own for a disk that is full or only to be read
        hint = "Make room there; what was embedded is kept, and the same command goes on."
        raise AvfsError(f"{folder}: cannot be written: {error}.", hint=hint) from None


def _set(database: sqlite3.Connection, key: str, value: Any) -> None:
    database.execute("UPDATE about SET value = ? WHERE key = ?", (json.dumps(value), key))
