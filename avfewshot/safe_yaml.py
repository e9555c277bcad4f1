"""YAML that may have been written by anybody."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from avfewshot.errors import UsageError

DEPTH, NODES = 50, 100_000  # levels and values of a file at most


def load_yaml(path: str | os.PathLike[str], *, max_bytes: int = 1 << 20) -> Any:
    """Read a YAML file that may have been written by anybody: plain data alone, bounded size, depth and aliases.

    Raises:
        UsageError: It cannot be read, is not UTF-8 or not YAML, or is too large, too deep, or has aliases that stand
            for too much or for themselves.
    """
    import yaml

    path = Path(path)
    if not path.is_file():  # a pipe or a device would be read without end
        kind = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "there is no such file"
        raise UsageError(f"{path}: {kind}.")
    try:
        with open(path, "rb") as stream:
            raw = stream.read(max_bytes + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8.") from None
    if len(raw) > max_bytes:
        raise UsageError(f"{path}: is too large for a file of settings (more than {max_bytes >> 10:,} KiB).")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if reason := _excess(yaml.parse(text, Loader=loader)):
            raise UsageError(f"{path}: {reason}.", hint="Write every value once, plainly and without aliases.")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{path}: is not valid YAML{line}: {reason}.") from None


def _excess(events: Iterable[Any]) -> str | None:
    """What is wrong with a stream of YAML events: depth, keys given twice, amount (an alias counts what it means)."""
    sizes: dict[str, int] = {}
    stack: list[dict[str, Any]] = []
    for event in events:
        kind = type(event).__name__
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            stack.append({"anchor": event.anchor, "size": 1, "children": 0, "keys": set(), "map": kind[0] == "M"})
            if len(stack) > DEPTH:
                return f"is nested more than {DEPTH} deep"
            continue
        if kind in ("MappingEndEvent", "SequenceEndEvent"):
            done = stack.pop()
            anchor, size = done["anchor"], done["size"]
        elif kind == "ScalarEvent":
            anchor, size = event.anchor, 1
        elif kind == "AliasEvent":
            if any(outer["anchor"] == event.anchor for outer in stack):
                return f"the alias *{event.anchor} stands for itself"
            anchor, size = None, sizes.get(event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if stack:
            outer = stack[-1]
            if outer["map"] and outer["children"] % 2 == 0 and kind == "ScalarEvent":
                if event.value in outer["keys"]:
                    return f"given twice: {event.value}"
                outer["keys"].add(event.value)
            outer["children"] += 1
            outer["size"] += size
            if outer["size"] > NODES:
                return f"holds more than {NODES:,} values"
    return None
