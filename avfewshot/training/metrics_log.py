"""``metrics.jsonl``: what happened in a training, an entry a line."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from avfewshot.io import naming, write_text


class MetricsLogger:
    """Entries that a resumed training is going to write again are taken back."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)  # made with the first entry

    def log(self, **entry: Any) -> None:
        """Append an entry; it has a ``step``."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with naming(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")

    def entries(self) -> Iterator[dict[str, Any]]:
        """All entries; what is none, such as half a line of a killed process, is passed over."""
        if not self.path.is_file():
            return
        for line in self.path.read_bytes().splitlines():
            with contextlib.suppress(ValueError, RecursionError):
                entry = json.loads(line)
                if isinstance(entry, dict) and isinstance(entry.get("step"), int) and "kind" in entry:
                    yield entry

    def rewind(self, keep: Mapping[str, int]) -> None:
        """Forget what came after the checkpoint that a training goes on from.

        `keep` has the last step of each kind of entry.
        """
        if not self.path.is_file():
            return
        kept = [entry for entry in self.entries() if entry["step"] <= keep.get(str(entry["kind"]), -1)]
        write_text(self.path, "".join(json.dumps(entry) + "\n" for entry in kept))
