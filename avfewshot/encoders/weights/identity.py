"""SHA-256 of weight files, remembered so that a file of a gigabyte is not hashed at every start; and other digests."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

from avfewshot.io import cache_dir, sha256_file, write_text

if TYPE_CHECKING:
    from torch import nn


def file_sha256(path: str | Path, *, remember: bool = True) -> str:
    """Hexadecimal SHA-256 of a file, remembered as long as it keeps its path, size and time of modification.

    Without `remember` the file is read in any case, which finds damage that leaves size and time alone.
    """
    path = Path(path).resolve()
    status = path.stat()
    mark = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = cache_dir("hashes", f"{hashlib.sha256(str(path).encode()).hexdigest()}.json")
    with contextlib.suppress(OSError, ValueError):
        if remember and isinstance(remembered := json.loads(note.read_text(encoding="utf-8")), dict):
            digest = remembered.pop("sha256", None)
            if remembered == mark and isinstance(digest, str) and len(digest) == 64:
                return digest
    digest = sha256_file(path)
    # Without a writable cache folder the file is hashed again next time.
    with contextlib.suppress(OSError):
        write_text(note, json.dumps({**mark, "sha256": digest}))
    return digest


def combined(*parts: str) -> str:
    """One SHA-256 for several texts in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(part.encode("utf-8")).digest() for part in parts)).hexdigest()


def sample_hash(model: nn.Module) -> str:
    """SHA-256 of the first numbers of each of a model's tensors: what tells random weights of one seed apart."""
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode("utf-8"))
        digest.update(str(tuple(tensor.shape)).encode("utf-8"))
        digest.update(tensor.detach().flatten()[:64].contiguous().numpy().tobytes())
    return digest.hexdigest()
