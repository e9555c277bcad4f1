"""SHA-256 of weight files, remembered so that a file of a gigabyte is not hashed at every start."""

from __future__ import annotations

import contextlib
import hashlib
import json
from pathlib import Path

from avfewshot.io import cache_dir, sha256_file, write_text


def file_sha256(path: str | Path, *, remember: bool = True) -> str:
    """Hexadecimal SHA-256 of a file.

    Remembered under the cache folder as long as the file keeps its path, size and time of modification.

    Args:
        path: An existing file.
        remember: False reads the file whatever is remembered; that finds damage which leaves size and time alone.

    Returns:
        64 hexadecimal digits.
    """
    path = Path(path).resolve()
    status = path.stat()
    mark = {"path": str(path), "size": status.st_size, "mtime_ns": status.st_mtime_ns}
    note = cache_dir("hashes", f"{hashlib.sha256(str(path).encode()).hexdigest()}.json")
    if remember and (digest := _remembered(note, mark)):
        return digest
    digest = sha256_file(path)
    # Without a writable cache folder the file is hashed again next time.
    with contextlib.suppress(OSError):
        write_text(note, json.dumps({**mark, "sha256": digest}))
    return digest


def _remembered(note: Path, mark: dict[str, str | int]) -> str | None:
    with contextlib.suppress(OSError, ValueError):
        remembered = json.loads(note.read_text(encoding="utf-8"))
        if isinstance(remembered, dict) and {key: remembered.get(key) for key in mark} == mark:
            digest = remembered.get("sha256")
            return digest if isinstance(digest, str) and len(digest) == 64 else None
    return None


def combined(*parts: str) -> str:
    """One SHA-256 for several texts in their order."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part.encode("utf-8")).digest())
    return digest.hexdigest()
