"""A collection of clips on disk, embedded second by second: what has changed, what is embedded anew, what is found."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avfewshot.cache import file_stamp
from avfewshot.errors import DataError, MediaError, UsageError
from avfewshot.io import user_path
from avfewshot.media.clip import MODALITIES, Failure
from avfewshot.media.remote import is_remote
from avfewshot.store import writer
from avfewshot.store.files import ANEW, StoredClip, StoreFiles, rows_file, stored_name
from avfewshot.store.search import BY, Floats, Hit, Search, open_index, parse_like, word_query
from avfewshot.store.writer import Thumbnailed, embed_files

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.embedding_cache import EmbeddingCache


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


class Store(StoreFiles):
    """A collection of clips, opened to read; :meth:`update` writes.

    Args:
        folder: Where `avfs embed --store` keeps it.

    Raises:
        UsageError: There is no store.
        DataError: It is damaged, or of another version.
    """

    _towers: Classifier | None = None

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

    def cache(self, identity: Mapping[str, str], dims: tuple[int, int], then: EmbeddingCache | None) -> EmbeddingCache:
        """What looks embeddings up here before it does so in `then`; raises what :meth:`check` does."""
        from avfewshot.store.embeddings import StoredEmbeddings

        self.check(identity, dims)
        return StoredEmbeddings(self, then)

    def check(self, identity: Mapping[str, str], dims: tuple[int, int]) -> None:
        """Check that the embeddings come from towers of this identity and these widths of sight and sound.

        Raises:
            UsageError: They come from others.
            DataError: It is damaged: towers of this identity make other dimensions.
        """
        wrong = [key for key in {**self.identity, **identity} if self.identity.get(key) != identity.get(key)]
        if wrong:
            raise UsageError(
                f"{self.folder}: was embedded with {self.model['backbone']}, {self.model['precision']}; what is asked "
                f"for differs in {', '.join(sorted(wrong))}.",
                hint="Use the same --backbone, weights, --precision and --audio-context, or embed into another store.",
            )
        self.check_dims(dims)

    def check_dims(self, dims: tuple[int, int]) -> None:
        """Raise a :class:`DataError` unless embeddings of sight and sound have so many dimensions."""
        own = tuple(self.dims[name] for name in MODALITIES)
        if own != dims:
            raise DataError(
                f"{self.folder / 'store.db'}: is damaged (its dimensions are {own[0]} and {own[1]}; "
                f"{self.model['backbone']} makes {dims[0]} and {dims[1]}).",
                hint=ANEW,
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

        Returns:
            A hit a clip: `path`, `score` (standard deviations above the collection), `second`, `cosines`, `moments`.

        Raises:
            UsageError: An argument is wrong.
            MediaError: `like` cannot be read.
            DataError: Rows of the store are no unit vectors.
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
        try:
            return self._search.find(wanted, top, by=by, without=itself)
        except FloatingPointError as error:
            raise self.no_unit_vectors(str(error)) from None

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
            self.check(towers.embedding_identity, towers.dims)
            self._towers = towers
        return self._towers

    def search(self, *, exact: bool = False) -> Search:
        """What answers queries; with `exact` without indexes."""
        return Search(self.embedded, self._vectors, None if exact else self.index())

    @cached_property
    def _search(self) -> Search:
        return self.search()

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
            AvfsError: Another process writes into it, or its embeddings come from other towers.
        """
        with writer.writing(self.folder) as files:
            files.forget(changes.gone)
            if changes.to_embed:
                towers = classifier()
                self.check(towers.embedding_identity, towers.dims)
                embed = embed or functools.partial(embed_files, batch_size=batch_size, workers=workers)
                stamps = list(map(file_stamp, changes.to_embed))
                with closing(embed(towers, changes.to_embed)) as embedded:
                    for path, stamp, (file, pictures) in zip(changes.to_embed, stamps, embedded, strict=True):
                        files.add(path, file, pictures, stamp)
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
