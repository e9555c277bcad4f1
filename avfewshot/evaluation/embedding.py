"""Embed the clips of a data set, with a frozen or a trained model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from avfewshot.evaluation.embedding_cache import EmbeddingCache
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.results import Failure
from avfewshot.media.stream import Reader, read_ahead
from avfewshot.models.audio_visual import AudioVisualModel

Embedded = dict[Path, EmbeddedFile | Failure]
"""Embeddings, or what was wrong, by file."""


def embed_clips(
    model: AudioVisualModel,
    paths: Sequence[Path],
    read: Reader,
    *,
    device: torch.device,
    window: int = 10,
    batch_size: int | None = None,
    workers: int = 2,
    cache: EmbeddingCache | None = None,
    progress: Callable[[], object] | None = None,
) -> Embedded:
    """Embed files.

    Args:
        model: With or without adapters, on the device, in evaluation mode.
        paths: Media files; one that is named twice is embedded once.
        read: Decodes a file.
        device: Where the model is.
        window: Seconds that go through adapters together.
        batch_size: Seconds that go through the towers at once; None: what suits the device.
        workers: Threads that decode ahead.
        cache: Where embeddings of frozen towers are kept; None for a model that is being trained.
        progress: Called after each file.

    Returns:
        An entry for each file.
    """
    found: Embedded = {}
    missing = []
    for path in dict.fromkeys(paths):
        known = cache.get(path) if cache is not None else None
        if known is None:
            missing.append(path)
        else:
            found[path] = known
            if progress is not None:
                progress()
    embedder = Embedder(model, device, batch_size, window=window)
    clips = read_ahead(missing, read, workers=workers)
    for path, item in zip(missing, embedder.embed(clips), strict=True):
        found[path] = item
        if cache is not None and isinstance(item, EmbeddedFile):
            cache.put(path, item)
        if progress is not None:
            progress()
    return found
