"""Reads the YAML file of a preset: the forms that its values have, and every fault at once."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from avfewshot.encoders.weights.locate import Source
from avfewshot.errors import UsageError, did_you_mean
from avfewshot.io import user_path

_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
Form = tuple[Callable[[Any], bool], str]  # whether a value has this form, and what is needed


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether a value is a text that says something."""
    return isinstance(value, str) and bool(value.strip())


def is_mapping(value: Any) -> bool:
    """Whether a value has keys."""
    return isinstance(value, Mapping)


ANY: Form = (lambda value: True, "")
TEXT: Form = (is_text, "a text is needed")
NUMBER: Form = (is_number, "a number is needed")
WHOLE: Form = (lambda value: is_number(value, whole=True) and value >= 1, "a whole number of at least 1 is needed")
FLAG: Form = (lambda value: isinstance(value, bool), "true or false is needed")
SOURCE: dict[str, Form] = dict.fromkeys(
    ("repository", "checkpoint", "revision", "file", "sha256", "size", "licence", "published"), TEXT
)
MISSING = object()


class Reader:
    """Checks what was parsed from a YAML file, and collects every fault on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[UsageError] = []

    def common(self, top: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that every kind has."""
        templates = top.get("templates", "default")
        beside = self.path.parent / templates  # a path is relative to the YAML file; a name is one of the packaged ones
        return {
            "name": self.path.stem,
            "description": top.get("description", ""),
            "templates": str(beside) if beside.suffix and beside.is_file() else templates,
            "path": self.path,
        }

    def section(
        self, raw: Any, where: str, forms: Mapping[str, Form], *, required: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values that are there and have their form."""
        if not isinstance(raw, Mapping):
            self.fault(where, "is missing." if raw is MISSING else f"keys and values are needed ({', '.join(forms)}).")
            return {}
        place = f"{where}." if where else ""
        for key in [key for key in raw if key not in forms]:
            guess = did_you_mean(str(key), forms)
            self.fault(f"{place}{key}", f"is unknown.{guess} Valid keys: {', '.join(forms)}.")
        values = {key: raw.get(key) for key in forms if raw.get(key) is not None or key in required}
        for key, value in list(values.items()):
            fits, wanted = forms[key]
            if not fits(value):
                self.fault(f"{place}{key}", f"{wanted}, not {shown(values.pop(key))}.")
        return values

    def source(self, section: Mapping[str, Any], where: str, names: tuple[str, ...]) -> Source:
        """Where a file comes from."""
        values = {key: section.get(key) for key in SOURCE}
        checkpoint, file = values.pop("checkpoint"), values.pop("file")
        if (repository := values["repository"]) and not _REPOSITORY.fullmatch(repository):
            self.fault(f"{where}.repository", f"{repository!r} is not `owner/name`.")
        if repository and file:
            self.fault(where, "`repository` and `file` exclude each other.")
        if values["sha256"] and not _SHA256.fullmatch(values["sha256"]):
            self.fault(f"{where}.sha256", "64 hexadecimal digits in lower case are needed.")
        if checkpoint and (checkpoint.startswith("/") or ".." in Path(checkpoint).parts):
            self.fault(f"{where}.checkpoint", f"{checkpoint!r} is not a file inside the repository.")
        return Source((checkpoint,) if checkpoint else names, file=self.relative(file) if file else None, **values)

    def folder_or_repository(self, given: str, where: str, **about: Any) -> Source:
        """A folder beside the YAML file, or else a repository on the hub."""
        if self.relative(given).is_dir():
            return Source(file=self.relative(given))
        if not _REPOSITORY.fullmatch(given):
            self.fault(where, f"{given!r} is neither a folder nor a repository on the hub.")
        return Source(repository=given, **about)

    def relative(self, name: str) -> Path:
        """A path in the YAML file."""
        return (self.path.parent / user_path(name)).resolve()

    def fault(self, where: str, what: str) -> None:
        """Note what is wrong."""
        self.faults.append(UsageError(f"{self.path}: {where + ': ' if where else ''}{what}"))


def shown(value: Any) -> str:
    """A value in a message."""
    # Aliases let a few lines of YAML stand for a value whose full text would fill the memory.
    return f"a {type(value).__name__}" if isinstance(value, Mapping | list) else repr(value)[:80]


def frozen(value: Any) -> Any:
    """`value` with its mappings read-only, so that a preset cannot be changed by accident."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(inner) for key, inner in value.items()})
    return tuple(frozen(inner) for inner in value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Ordinary dicts and lists of a preset's read-only ones."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple) else value
