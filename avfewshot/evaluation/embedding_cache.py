"""What frozen towers made of clips, on disk: the next run over the same clips needs no tower and no decoding."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from avfewshot.inference.features import EmbeddedFile
from avfewshot.io import cache_dir, write_bytes

VERSION = 1
"""Raised when embeddings are computed in another way; entries of other versions are not used any more."""


class EmbeddingCache:
    """Embeddings of whole files, keyed by the file's content mark and by what computes them.

    A clip of ten seconds takes about 40 KB. Entries are written whole or not at all; a damaged one counts as missing.

    Args:
        identity: What the embeddings depend on beside the file: weights, precision, how clips are read.
        folder: Where entries are kept; the ``embeddings`` folder of the caches unless told.
    """

    def __init__(self, identity: Mapping[str, str], folder: str | os.PathLike[str] | None = None) -> None:
        self._identity = dict(identity)
        self.folder = Path(folder) if folder is not None else cache_dir("embeddings")

    def get(self, path: Path) -> EmbeddedFile | None:
        """The embeddings of a file, or None where they are not known or the file has changed."""
        entry = self._entry(path)
        if entry is None:
            return None
        with contextlib.suppress(OSError, SafetensorError, KeyError, ValueError):
            tensors = load(entry.read_bytes())
            about = json.loads(bytes(tensors["about"].tolist()))
            return EmbeddedFile(
                str(path), float(about["duration"]), tensors.get("visual"), tensors.get("audio"),
                tuple(str(warning) for warning in about["warnings"]),
            )  # fmt: skip
        return None

    def put(self, path: Path, file: EmbeddedFile) -> None:
        """Keep the embeddings of a file; a folder that cannot be written costs time later, not the result."""
        import torch

        entry = self._entry(path)
        if entry is None:
            return
        about = json.dumps({"duration": file.duration, "warnings": list(file.warnings)}).encode("utf-8")
        tensors = {"about": torch.frombuffer(bytearray(about), dtype=torch.uint8)}
        tensors |= {
            name: tensor.contiguous()
            for name, tensor in (("visual", file.visual), ("audio", file.audio))
            if tensor is not None
        }
        with contextlib.suppress(OSError):
            write_bytes(entry, save(tensors))

    def _entry(self, path: Path) -> Path | None:
        try:
            status = path.stat()
        except OSError:
            return None
        key = [VERSION, os.fspath(path.resolve()), status.st_size, status.st_mtime_ns, self._identity]
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode("utf-8", "surrogateescape")).hexdigest()
        return self.folder / digest[:2] / f"{digest}.safetensors"
