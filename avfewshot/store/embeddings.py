"""Embeddings of a store where others look in the cache of embeddings."""

from __future__ import annotations

from pathlib import Path

import torch

from avfewshot.inference.embedding_cache import EmbeddingCache
from avfewshot.inference.features import EmbeddedFile
from avfewshot.store.files import StoreFiles


class StoredEmbeddings(EmbeddingCache):
    """Looks in a store, and then in the cache, which alone takes new entries."""

    def __init__(self, store: StoreFiles, then: EmbeddingCache | None) -> None:
        self._store, self._then = store, then

    def has(self, path: Path | str) -> bool:
        """See :class:`EmbeddingCache`."""
        return self._store.find_clip(path) is not None or (self._then is not None and self._then.has(path))

    def get(self, path: Path | str) -> EmbeddedFile | None:
        """See :class:`EmbeddingCache`."""
        clip = self._store.find_clip(path)
        if clip is None:
            return None if self._then is None else self._then.get(path)
        # Rows lie in the mapped files of the store, and a window stands once for all of its seconds: ten thousand clips
        # are held by a page without a copy.
        visual, audio = (None if part is None else torch.from_numpy(part) for part in self._store.of(clip))
        windows = None
        if (heard := self._store.windows(clip)) is not None:
            rows, lengths = torch.from_numpy(heard[0]), torch.tensor(heard[1])
            windows = rows.expand(clip.seconds, -1) if len(rows) == 1 else rows.repeat_interleave(lengths, 0)
        return EmbeddedFile(str(path), clip.duration, visual, audio, clip.warnings, windows)

    def put(self, path: Path | str, file: EmbeddedFile) -> None:
        """See :class:`EmbeddingCache`."""
        if self._then is not None:
            self._then.put(path, file)
