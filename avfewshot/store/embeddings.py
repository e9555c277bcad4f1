"""Embeddings of a store where others look in the cache of embeddings."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from avfewshot.inference.embedding_cache import EmbeddingCache
from avfewshot.inference.features import EmbeddedFile

if TYPE_CHECKING:
    from avfewshot.store.store import Store


class StoredEmbeddings(EmbeddingCache):
    """Looks in a store, and then in the cache, which alone takes new entries."""

    def __init__(self, store: Store, then: EmbeddingCache | None) -> None:
        self._store, self._then = store, then

    def has(self, path: Path | str) -> bool:
        """See :class:`EmbeddingCache`."""
        return self._store.find_clip(path) is not None or (self._then is not None and self._then.has(path))

    def get(self, path: Path | str) -> EmbeddedFile | None:
        """See :class:`EmbeddingCache`."""
        clip = self._store.find_clip(path)
        if clip is None:
            return None if self._then is None else self._then.get(path)
        parts = (*self._store.of(clip), self._store.audio_windows(clip))
        visual, audio, windows = (None if part is None else torch.from_numpy(part.copy()) for part in parts)
        return EmbeddedFile(str(path), clip.duration, visual, audio, clip.warnings, windows)

    def put(self, path: Path | str, file: EmbeddedFile) -> None:
        """See :class:`EmbeddingCache`."""
        if self._then is not None:
            self._then.put(path, file)
