"""Finding the annotation files of a data set below a data root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.description import DESCRIPTION_FILE, Description
from avfewshot.errors import AvfsError, DataError, UsageError

# Where annotation files lie beside the media in the authors' own archives and repositories.
_SUBFOLDERS = ("", "data", "annotations", "labels", "splits", "meta_anno_files", "csv")


@dataclass(frozen=True)
class Annotations:
    """The annotation files of a data set on disk."""

    folder: Path  # where they lie
    files: dict[str, Path]  # file by role


def locate(description: Description, root: str | Path) -> Annotations:
    """Find the annotation files below a data root.

    They are looked for in the root itself, in the sub-folders that the description names, and in the usual
    sub-folders of those (``data``, ``annotations``, ...); all of them must lie in one folder.

    Args:
        description: Which files to look for.
        root: The data root.

    Returns:
        The files of the first folder that has every required one.

    Raises:
        UsageError: The root is not a folder.
        DataError: No folder has the required files; the message names what was looked for and where to get it.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"The data folder {root} {kind}.", hint=_way_out(description))
    complete, best = _search(description, root)
    if complete is not None:
        return complete
    raise DataError(_explain(description, root, best), hint=_way_out(description))


def is_complete(description: Description, root: str | Path) -> bool:
    """Whether :func:`locate` would succeed."""
    try:
        locate(description, root)
    except AvfsError:
        return False
    return True


def _search(description: Description, root: Path) -> tuple[Annotations | None, Annotations | None]:
    """The first folder with every required file, and the fullest of those that lack some."""
    best: Annotations | None = None
    beside = []
    if description.path is not None and description.path.name == DESCRIPTION_FILE:  # It describes what lies beside it.
        beside = [description.path.parent] if description.path.parent.is_relative_to(root) else []
    for base in (*beside, root, *(root / sub for sub in description.folders)):
        for folder in (base / sub for sub in _SUBFOLDERS):
            found = _files_in(description, folder)
            if found and not _lacking(description, found):
                return Annotations(folder, found), best
            if found and (best is None or len(found) > len(best.files)):
                best = Annotations(folder, found)
    return None, best


def _files_in(description: Description, folder: Path) -> dict[str, Path]:
    found = {}
    for entry in description.files:
        for name in entry.names:
            if (folder / name).is_file():
                found[entry.role] = folder / name
                break
    return found


def _lacking(description: Description, found: dict[str, Path]) -> list[str]:
    lacking = [entry.names[0] for entry in description.files if entry.required and entry.role not in found]
    if lacking or any(entry.required for entry in description.files):
        return lacking
    # No file is needed by itself, but one that lists clips is.
    lists = [entry for entry in description.files if entry.role in {"list", "train", "test"}]
    return [] if any(entry.role in found for entry in lists) else [entry.names[0] for entry in lists]


def _explain(description: Description, root: Path, best: Annotations | None) -> str:
    if best is not None:
        lacking = ", ".join(_lacking(description, best.files))
        return f"{best.folder} lacks {lacking} of {description.title}."
    parent = root.resolve().parent
    if _search(description, parent)[0] is not None:
        return f"{root} holds no annotation files of {description.title}, but its parent does: give {parent}."
    wanted = ", ".join(entry.names[0] for entry in description.files if entry.required) or ", ".join(
        f"{entry.names[0]}" for entry in description.files
    )
    other = f" (its {DESCRIPTION_FILE} describes another data set)" if (root / DESCRIPTION_FILE).is_file() else ""
    return f"No annotation files of {description.title} below {root}{other}; looked for {wanted}."


def _way_out(description: Description) -> str:
    source = f" {description.title} is at {description.source}." if description.source else ""
    return f"Give the folder with --root.{source} To try things without it: avfs data toy --root DIR."
