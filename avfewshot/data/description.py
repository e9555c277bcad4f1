"""Descriptions of data sets: ``data_splits/*.yaml``, or a ``dataset.yaml`` inside a data folder.

The format is documented in ``data_splits/README.md``. A description comes from a file that may have been written by
anybody: it is plain data, its file names may not leave the data folder, and all of its faults are reported at once.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
)

from avfewshot.errors import DataError, UsageError, did_you_mean
from avfewshot.io import resource_dir
from avfewshot.safe_yaml import load_yaml
from avfewshot.text import fold, visible

FORMAT = 1
DESCRIPTION_FILE = "dataset.yaml"
Reader = Literal["ave", "llp", "vggsound", "ovave", "avs", "avqa", "folder"]
_BRING_THEIR_OWN_CLASSES = ("vggsound", "avs", "avqa", "folder")


def _check_plain(name: str) -> str:
    """One path component that stays in its folder, on any system."""
    if name in {".", ".."} or any(mark in name for mark in "/\\:\0"):
        raise ValueError(f"{name!r} must be a plain file name")
    return name


Text = Annotated[str, StringConstraints(strict=True, strip_whitespace=True, min_length=1)]
Note = Annotated[str, StringConstraints(strict=True, strip_whitespace=True)]
Shown = Annotated[Text, BeforeValidator(lambda value: visible(value) if isinstance(value, str) else value)]
PlainName = Annotated[Text, AfterValidator(_check_plain)]
Digest = Annotated[str, StringConstraints(strict=True, pattern=r"^[0-9a-fA-F]{64}$")]
Count = Annotated[int, Field(strict=True, gt=0)]
Rows = Annotated[int, Field(strict=True, ge=0)]
T = TypeVar("T")
Some = Annotated[tuple[T, ...], Field(min_length=1)]


@dataclass(frozen=True)
class ClassEntry:
    """A class: the name that annotation files use and the wording that prompts use."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Shown
    wording: Shown


def default_wording(name: str) -> str:
    """A class or folder name as words: ``Frying_(food)`` becomes ``frying (food)``."""
    return " ".join(name.replace("_", " ").split()).lower() or name


def _entry(value: Any) -> Any:
    if isinstance(value, str):  # A bare name is a class with the default wording.
        value = {"name": value}
    if isinstance(value, dict) and isinstance(value.get("name"), str) and "wording" not in value:
        value = {**value, "wording": default_wording(value["name"])}
    if not isinstance(value, dict | ClassEntry):
        raise ValueError("must be {name: ..., wording: ...} with texts (quote names such as 'yes')")
    return value


def _check_classes(entries: tuple[ClassEntry, ...], info: ValidationInfo) -> tuple[ClassEntry, ...]:
    if repeated := _repeated(entry.name for entry in entries):
        raise ValueError(f"names {repeated} more than once")
    if repeated := _repeated(entry.wording for entry in entries):
        raise ValueError(f"words {repeated} more than once: the model could not tell them apart")
    if not entries and info.data.get("reader") not in _BRING_THEIR_OWN_CLASSES:
        raise ValueError("is empty")
    return entries


def _repeated(items: Any) -> str:
    counts = Counter(fold(item) for item in items)
    return ", ".join(repr(item) for item, count in counts.items() if count > 1)


@dataclass(frozen=True)
class OfficialFile:
    """An annotation file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    role: Text  # what the file is for; the reader knows the roles
    names: Some[PlainName]  # the official one first
    required: StrictBool = True  # the data set cannot be read without it
    rows: Rows | None = None  # data rows of the official file, without header
    sha256: Digest | None = None  # of the official file
    variants: tuple[Digest, ...] = ()  # SHA-256 of other official releases


def _check_files(files: tuple[OfficialFile, ...], info: ValidationInfo) -> tuple[OfficialFile, ...]:
    if not files and info.data.get("reader") != "folder":
        raise ValueError("is empty")
    if repeated := _repeated(entry.role for entry in files):
        raise ValueError(f"has the role {repeated} more than once")
    return files


def _check_supports(table: Any) -> Any:
    if not isinstance(table, dict):
        raise ValueError("must be a mapping")
    for sampler, seeds in table.items():
        if sampler == "algorithm":
            continue
        one = str(sampler).startswith("first_k")
        levels = [seeds] if one else list(seeds.values()) if isinstance(seeds, dict) else [None]
        for level in levels:
            if not isinstance(level, dict) or not all(type(k) is int and isinstance(v, str) for k, v in level.items()):
                raise ValueError(f": {sampler} must map seeds to shots to digests")
    return table


@dataclass(frozen=True)
class Description:
    """What is known of a data set without its annotation files."""

    __pydantic_config__ = ConfigDict(extra="forbid")

    name: Text
    title: Text  # one line for people
    reader: Reader  # layout of the annotation files
    tasks: Some[Text]  # tasks that use it
    classes: Annotated[tuple[Annotated[ClassEntry, BeforeValidator(_entry)], ...], AfterValidator(_check_classes)]
    files: Annotated[tuple[OfficialFile, ...], AfterValidator(_check_files)] = ()
    path: Path | None = None  # the YAML file this was read from
    background: Annotated[ClassEntry, BeforeValidator(_entry)] | None = None  # the class "no event"
    folders: tuple[PlainName, ...] = ()  # names of the folder looked for below a data root
    segments: Annotated[Count, Field(le=3600)] = 10  # seconds in a clip
    multi_label: StrictBool = False
    splits: Mapping[Text, Rows] = field(default_factory=dict)  # expected clips per split
    expected_classes: Count | None = None  # classes that a list bringing its own should have
    minimum_rows: Count | None = None  # below these such a list is suspiciously short
    known_classes: tuple[Text, ...] = ()  # classes that such a list should contain
    # Pinned fingerprints: sampler -> seed -> k -> hex digest (first_k: k -> hex digest)
    supports: Annotated[Mapping[str, Any], BeforeValidator(_check_supports)] = field(default_factory=dict)
    paper: Note = ""
    source: Note = ""
    how_to_get: Note = ""
    licence: Mapping[Text, Note] = field(default_factory=dict)  # of annotations and of media

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes, in the official order."""
        return tuple(entry.name for entry in self.classes)

    @property
    def wordings(self) -> tuple[str, ...]:
        """Wordings of the classes, in the official order."""
        return tuple(entry.wording for entry in self.classes)

    def file(self, role: str) -> OfficialFile | None:
        """The annotation file of `role`, or None if this data set has none."""
        return next((entry for entry in self.files if entry.role == role), None)

    def pinned_fingerprint(self, sampler: str, seed: int, k: int) -> str | None:
        """The published fingerprint of a draw from the official files, or None; ``first_k`` has no seed."""
        table = self.supports.get(sampler, {})
        return table.get(k) if sampler == "first_k" else table.get(seed, {}).get(k)


def description_names() -> tuple[str, ...]:
    """Names of the packaged descriptions, sorted."""
    return tuple(sorted(path.stem for path in resource_dir("data_splits").glob("*.yaml")))


def load_description(name: str, root: str | Path | None = None) -> Description:
    """The description of a data set by its name, such as ``"ave"``.

    A ``dataset.yaml`` that describes `name` in `root`, or in a sub-folder that the packaged description names, takes
    precedence over the packaged one.

    Raises:
        UsageError: No data set has this name.
        DataError: A description file is faulty.
    """
    if name not in description_names():
        raise UsageError(f"There is no data set {name!r}.", hint=f"Data sets: {', '.join(description_names())}.")
    packaged = read_description(resource_dir("data_splits") / f"{name}.yaml")
    if root is None:
        return packaged
    for folder in (Path(root), *(Path(root) / sub for sub in packaged.folders)):
        local = folder / DESCRIPTION_FILE
        if local.is_file():
            description = read_description(local)
            if description.name == name:
                return description
    return packaged


def all_descriptions() -> tuple[Description, ...]:
    """All packaged descriptions, sorted by name."""
    return tuple(load_description(name) for name in description_names())


def task_names() -> tuple[str, ...]:
    """Names of all tasks of the packaged data sets, sorted."""
    return tuple(sorted({task for description in all_descriptions() for task in description.tasks}))


def dataset_of_task(task: str) -> str:
    """The name of the data set that a task (or a data set's own name) uses; a :class:`UsageError` if there is none."""
    for description in all_descriptions():
        if task in description.tasks or task == description.name:
            return description.name
    hint = f"Tasks: {', '.join(task_names())}; `folder` for clips in folders named by their class."
    raise UsageError(f"There is no task {task!r}.{did_you_mean(task, task_names())}", hint=hint)


def read_description(path: str | Path) -> Description:
    """Read and check one description file; a :class:`DataError` lists all faults."""
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _read(path: Path, _modified: int, _size: int) -> Description:
    try:
        raw = load_yaml(path)
    except UsageError as error:
        raise DataError(error.message, hint=error.hint) from None
    faults: list[str] = []
    if not isinstance(raw, dict):
        raise DataError(f"{path}: the top level must be a mapping of keys.", hint=_HINT)
    if raw.get("format") != FORMAT:
        faults.append(f"format must be {FORMAT}, not {raw.get('format')!r}")
    values = {"files": [], **raw}
    values.pop("format", None)
    if values.pop("path", None) is not None:  # a field, but no key
        faults.append("unknown key path")
    try:
        description = _CHECKED.validate_python({str(key): value for key, value in values.items()})
    except ValidationError as error:
        faults += faults_of(error)
    if faults:
        raise DataError(f"{path}: {len(faults)} fault(s) in the data set description: {'; '.join(faults)}.", hint=_HINT)
    return replace(description, path=path, folders=description.folders or (description.name,))


_HINT = "data_splits/README.md describes the format."
_CHECKED = TypeAdapter(Description)
_WANTED = {
    "string_type": "must be a text",
    "string_too_short": "must be a text, not empty",
    "too_short": "is empty",
    "tuple_type": "must be a list",
    "mapping_type": "must be a mapping",
    "bool_type": "must be true or false",
    "dataclass_type": "must be a mapping of keys",
    "float_type": "must be a number",
    "finite_number": "must be a finite number",
    "greater_than": "must be a positive whole number",
    "greater_than_equal": "must be a whole number from 0 on",
    "less_than_equal": "is too large",
    "string_pattern_mismatch": "must be a SHA-256, which has 64 hexadecimal digits",
}


def faults_of(error: ValidationError) -> list[str]:
    """What pydantic found wrong, one phrase each that begins with the place."""
    return [_fault(item) for item in error.errors()]


def _fault(error: Any) -> str:
    where = ""
    for part in error["loc"]:
        where += f"[{part}]" if isinstance(part, int) else f".{part}" if where else str(part)
    kind = error["type"]
    if kind == "missing":
        return f"{where} is missing"
    if kind in ("unexpected_keyword_argument", "extra_forbidden"):
        return f"unknown key {where}"
    if kind == "int_type":
        return f"{where} must be a whole number, not {error['input']!r}"
    if kind == "literal_error":
        return f"{where} must be one of {error['ctx']['expected']}, not {str(error['input'])[:40]!r}"
    if kind == "value_error":
        reason = str(error["ctx"]["error"])
        return where + reason if reason.startswith(":") else f"{where} {reason}"
    return f"{where} {_WANTED.get(kind, error['msg'])}"
