"""A collection of clips on disk, embedded second by second; see :mod:`~avfewshot.store.writer` for its files."""

from __future__ import annotations

import functools
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avfewshot.errors import DataError, MediaError, UsageError
from avfewshot.io import user_path
from avfewshot.media.clip import Failure
from avfewshot.media.remote import is_remote
from avfewshot.media.thumbnails import Thumbnail, jpeg_source, spread
from avfewshot.store import writer
from avfewshot.store.search import BY, MODALITIES, Floats, Hit, Search, open_index, parse_like, word_query
from avfewshot.store.writer import Thumbnailed, connect, embed_files, rows_file

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.embedding_cache import EmbeddingCache


_OF_TOWERS = frozenset(
    "backbone weights precision seed clip_weights clap_weights roberta templates audio_context".split()
)


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


def stored_name(path: str | os.PathLike[str]) -> str:
    """What a clip is stored under."""
    return os.fspath(path) if is_remote(path) else os.path.abspath(path)


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
            if about["version"] != str(writer.VERSION):
                raise DataError(f"{self.folder}: is a store of version {about['version']}, not {writer.VERSION}.")
            self.model: dict[str, Any] = json.loads(about["model"])  # arguments of load()
            if not {"backbone", "precision"} <= self.model.keys() <= _OF_TOWERS:
                raise ValueError("its model is not one that was written")
            self.identity: dict[str, str] = json.loads(about["identity"])
            self.dims: dict[str, int] = json.loads(about["dims"])
            self.generation = int(about["generation"])
            self.rows: dict[str, int] = json.loads(about["rows"])  # of each file
            self.clips: dict[str, StoredClip] = {}
            for id, path, real, *rest, warnings, error in rows:
                values = [id, os.fsdecode(path), os.fsdecode(real), *rest, tuple(json.loads(warnings)), error]
                self.clips[values[1]] = StoredClip(*values)
                self._check(self.clips[values[1]])
        except (sqlite3.Error, KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
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
            writer.create(folder, model, identity, dims)
        return cls(folder)

    def __len__(self) -> int:
        return len(self.embedded)

    @cached_property
    def embedded(self) -> list[StoredClip]:
        """Clips with embeddings, by path."""
        return [clip for clip in self.clips.values() if clip.error is None]

    # ------------------------------------------------------------------------------------------ reading

    @cached_property
    def _reader(self) -> sqlite3.Connection:
        return connect(self.folder, "ro")

    def _select(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """What a query of the database gives; one connection serves all threads, one after another."""
        with self._reading:
            return self._reader.execute(query, values).fetchall()

    def vectors(self, modality: str) -> Floats:
        """All rows of a modality ``[N, D]``, dead ones among them: memory-mapped; what is changed stays in memory."""
        shape = self.rows[modality], self.dims[modality]
        if not shape[0]:
            return np.zeros((0, shape[1]), dtype=np.float32)
        path = rows_file(self.folder, modality, self.generation)
        try:
            return np.asarray(np.memmap(path, dtype=np.float32, mode="c", shape=shape))
        except (OSError, ValueError):
            raise DataError(f"{path}: is missing or cut.", hint="Embed the collection again.") from None

    def of(self, clip: StoredClip) -> tuple[Floats | None, Floats | None]:
        """The embeddings of a clip, ``[T, D_v]`` and ``[T, D_a]``."""
        visual, audio = (
            None if start is None else self._vectors[name][start : start + clip.seconds]
            for name, start in (("visual", clip.visual), ("audio", clip.audio))
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
            wanted, itself = self._like(os.fspath(like))
        else:
            wanted, itself = word_query(self.towers(), query or ""), None
        return self._search.find(wanted, top, by=by, without=itself)

    def _like(self, like: str) -> tuple[dict[str, Floats], StoredClip | None]:
        """The mean of some seconds of a clip (:func:`parse_like`) by modality, and the clip where the store has it."""
        path, start, end = parse_like(like)
        source = path if is_remote(path) else user_path(path)
        clip = self.find_clip(source)
        if clip is not None:
            parts: Sequence[Floats | None] = self.of(clip)
        elif isinstance(source, Path) and not source.exists():
            raise MediaError(path, "there is no such file")
        else:
            whole: Any = self.towers().embed(source)
            parts = [None if part is None else part.numpy() for part in (whole.visual, whole.audio)]
        seconds = max(len(part) for part in parts if part is not None)
        if start is not None and start >= seconds:
            raise UsageError(f"--like {like}: the clip has {seconds} seconds.")
        pairs = zip(MODALITIES, parts, strict=True)
        means = {name: part[start:end].mean(0) for name, part in pairs if part is not None}
        return {name: mean / max(float(np.linalg.norm(mean)), 1e-12) for name, mean in means.items()}, clip

    def towers(self, device: str = "auto") -> Classifier:
        """The towers that embedded it, loaded when they are first asked for."""
        if self._towers is None:
            from avfewshot.inference.loading import load

            towers = load(**self.model, device=device)
            self.check(towers.embedding_identity)
            self._towers = towers
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
        present = {stored_name(file): file for file in files}
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
        below = tuple(os.path.join(stored_name(root), "") for root in roots)
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
        with writer.writing(self.folder) as files:
            files.forget(changes.gone)
            if changes.to_embed:
                towers = classifier()
                self.check(towers.embedding_identity)
                embed = embed or functools.partial(embed_files, batch_size=batch_size, workers=workers)
                with closing(embed(towers, changes.to_embed)) as embedded:
                    for path, (file, pictures) in zip(changes.to_embed, embedded, strict=True):
                        files.add(path, file, pictures)
                        yield file if isinstance(file, Failure) else path
            compacted = files.compact()
        if compacted or changes.to_embed or changes.gone:
            self._read()
            self.index()

    def index(self) -> dict[str, Any]:
        """Indexes of faiss by modality, up to date; none for few rows or without faiss: all rows are compared."""
        places = {name: rows_file(self.folder, name, self.generation).with_suffix(".index") for name in MODALITIES}
        made = {name: open_index(path, self.vectors(name)) for name, path in places.items()}
        return {name: index for name, index in made.items() if index is not None}
