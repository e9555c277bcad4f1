"""Descriptions of data sets: ``data_splits/*.yaml``, or a ``dataset.yaml`` inside a data folder.

The format is documented in ``data_splits/README.md``. A description comes from a file that may have been written by
anybody, so it is parsed with the safe YAML loader, its file names may not leave the data folder, and all of its faults
are reported at once.
"""

from __future__ import annotations

import functools
from pathlib import Path

import yaml

from avfewshot.data.description_parser import parse_description
from avfewshot.data.schema import Description
from avfewshot.errors import DataError, UsageError
from avfewshot.io import resource_dir

DESCRIPTION_FILE = "dataset.yaml"
_MAX_BYTES = 1 << 20  # A thousand classes take 60 kB; anything larger than this is not a description.


def description_names() -> tuple[str, ...]:
    """Names of the packaged descriptions, sorted."""
    return tuple(sorted(path.stem for path in resource_dir("data_splits").glob("*.yaml")))


def load_description(name: str, root: str | Path | None = None) -> Description:
    """The description of a data set.

    Args:
        name: Name of a packaged description, such as ``"ave"``.
        root: Data folder; a ``dataset.yaml`` in it that describes `name`, or in a sub-folder that the packaged
            description names, takes precedence over the packaged one.

    Returns:
        The description.

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
    """The name of the data set that a task uses; a data set's own name is accepted as well.

    Raises:
        UsageError: There is no such task.
    """
    for description in all_descriptions():
        if task in description.tasks or task == description.name:
            return description.name
    raise UsageError(
        f"There is no task {task!r}.",
        hint=f"Tasks: {', '.join(task_names())}. For clips in folders named by their class, use --data FOLDER.",
    )


def read_description(path: str | Path) -> Description:
    """Read and check one description file.

    Raises:
        DataError: It cannot be read or is faulty; the message lists all faults.
    """
    path = Path(path)
    try:
        stat = path.stat()
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error
    if stat.st_size > _MAX_BYTES:
        raise DataError(f"{path}: {stat.st_size} bytes are too many for a data set description.")
    return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=32)
def _read(path: Path, _modified: int, _size: int) -> Description:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 (byte {error.start}).") from error
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" at line {where.line + 1}" if where else ""
        raise DataError(f"{path}: not YAML{line}: {getattr(error, 'problem', None) or error}.") from error
    description, faults = parse_description(raw, path)
    if faults:
        raise DataError(
            f"{path}: {len(faults)} fault(s) in the data set description: {'; '.join(faults)}.",
            hint="data_splits/README.md describes the format.",
        )
    return description
