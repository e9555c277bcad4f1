"""What frozen towers made of clips, on disk: the next run over the same clips needs no tower and no decoding."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from avfewshot.cache import DiskCache, file_key, file_stamp
from avfewshot.inference.features import EmbeddedFile
from avfewshot.io import cache_dir
from avfewshot.media.clip import Clip, Failure

if TYPE_CHECKING:
    from avfewshot.encoders.backbone import Backbone

_Item = TypeVar("_Item", Path, "Path | str | Clip")
Embedded = Generator["EmbeddedFile | Failure", None, None]
"""Embeddings, or what was wrong, in order."""

LookUp = Callable[[Mapping[str, str], tuple[int, int], "EmbeddingCache | None"], "EmbeddingCache"]
"""Gives, for embeddings of an identity and its dimensions and the cache that holds them, what looks elsewhere first."""

VERSION = 2
"""Raised when embeddings are computed in another way; entries of other versions are not used any more."""

MAX_BYTES = 10_000_000_000


def embedding_identity(backbone: Backbone, precision: str, audio_context: str = "second") -> dict[str, str]:
    """What the embeddings of frozen towers depend on beside the files."""
    about = {f"file {role}": digest for role, digest in backbone.identity.items()}
    if backbone.recipe:
        about["preset"] = backbone.recipe
    if audio_context != "second":  # absent in entries and stores from before there was a choice
        about["audio context"] = audio_context
    return {**about, "precision": precision, "frame size": str(backbone.visual.image_size)}


class EmbeddingCache:
    """Embeddings of whole files, keyed by the file's path, size and time, and by what computes them (`identity`).

    Addresses have none. A clip of ten seconds takes about 40 KB; all entries together at most :data:`MAX_BYTES`.
    """

    def __init__(
        self,
        identity: Mapping[str, str],
        folder: str | os.PathLike[str] | None = None,
    ) -> None:
        self._about = {"version": VERSION, **identity}
        self.disk = DiskCache(cache_dir("embeddings") if folder is None else folder, ".safetensors", MAX_BYTES)

    def has(self, path: Path | str) -> bool:
        """Whether there is an entry; it may still be damaged."""
        key = file_key(path, self._about)
        return key is not None and self.disk.entry(key).is_file()

    def get(self, path: Path | str) -> EmbeddedFile | None:
        """The embeddings of a file, or None where they are not known or the file has changed."""
        from safetensors.torch import load

        key = file_key(path, self._about)
        content = None if key is None else self.disk.get(key)
        if key is None or content is None:
            return None
        try:
            tensors = load(content)
            about = json.loads(bytes(tensors["about"].tolist()))
            return EmbeddedFile(
                str(path), float(about["duration"]), tensors.get("visual"), tensors.get("audio"),
                tuple(str(warning) for warning in about["warnings"]), tensors.get("audio_windows"),
            )  # fmt: skip
        except Exception:  # damaged, in whatever way
            self.disk.damaged(key)
            return None

    def put(self, path: Path | str, file: EmbeddedFile) -> None:
        """Keep the embeddings of a file, if that can be done."""
        import torch
        from safetensors.torch import save

        key = file_key(path, self._about)
        if key is None:
            return
        about = json.dumps({"duration": file.duration, "warnings": list(file.warnings)}).encode("utf-8")
        tensors = {"visual": file.visual, "audio": file.audio, "audio_windows": file.audio_windows}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
        tensors["about"] = torch.frombuffer(bytearray(about), dtype=torch.uint8)
        self.disk.put(key, save(tensors))


def embed_cached(
    items: Sequence[_Item],
    embed: Callable[[Sequence[_Item]], Embedded],
    cache: EmbeddingCache | None,
) -> Embedded:
    """Embeddings of items in order; files that are not known go through `embed`, and are kept then.

    Clips in memory are never kept, nor what was made of a file that has changed since. Without a cache everything is
    embedded.
    """
    stamps = [None if isinstance(item, Clip) else file_stamp(item) for item in items]
    known = [item if cache and not isinstance(item, Clip) and cache.has(item) else None for item in items]
    fresh = embed([item for item, path in zip(items, known, strict=True) if path is None])
    with contextlib.closing(fresh):
        for item, path, stamp in zip(items, known, stamps, strict=True):
            file = cache.get(path) if cache and path is not None else next(fresh)
            if file is None:  # damaged
                with contextlib.closing(embed([item])) as again:
                    file = next(again)
            new = cache if path is None else None
            if new and not isinstance(item, Clip) and isinstance(file, EmbeddedFile) and file_stamp(item) == stamp:
                new.put(item, file)
            yield file
