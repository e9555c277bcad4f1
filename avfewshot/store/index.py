"""Indexes of the rows of a store, which find candidates: nothing that could not be made again."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.io import atomic_path
from avfewshot.store.search import Floats

_TRAINED = 20_000  # rows that a quantiser is trained on
_INDEXED = 100_000  # fewer rows are compared one by one


def open_index(path: Path, vectors: Floats) -> Any | None:
    """An index of faiss of all `vectors`, brought up to date; None for few of them, or without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    if len(vectors) < _INDEXED:
        return None
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
    return index
