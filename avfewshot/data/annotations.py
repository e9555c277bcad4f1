"""Annotation files: where they lie, and whether they are the official ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.class_names import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Sample
from avfewshot.data.description import DESCRIPTION_FILE, ClassEntry, Description
from avfewshot.errors import DataError, UsageError

# Where annotation files lie beside the media in the authors' own archives and repositories.
_SUBFOLDERS = (
    *("", "data", "annotations", "labels", "splits", "meta_anno_files", "csv"),
    *("Single-source", "Multi-sources", "json_update", "json", "data/json_update", "data/json"),
)
OTHER_CLASSES = "Another data set's classes go into a dataset.yaml beside it (data_splits/README.md)."  # a hint


@dataclass(frozen=True)
class Annotations:
    """The annotation files of a data set on disk."""

    folder: Path  # where they lie
    files: dict[str, Path]  # file by role


def locate(description: Description, root: str | Path) -> Annotations:
    """Find the annotation files below a data root: those of the first folder that has every required one.

    They are looked for in the root itself, in the sub-folders that the description names, and in the usual sub-folders
    of those (``data``, ``annotations``, ...).

    Raises:
        UsageError: The root is not a folder.
        DataError: No folder has the required files; the message names what was looked for and where to get it.
    """
    root = Path(root)
    if not root.is_dir():
        kind = "is a file, not a folder" if root.exists() else "does not exist"
        raise UsageError(f"The data folder {root} {kind}.", hint=_way_out(description))
    complete, best = _search(description, root)
    if complete is None:
        raise DataError(_explain(description, root, best), hint=_way_out(description))
    return complete


def _search(description: Description, root: Path) -> tuple[Annotations | None, Annotations | None]:
    """The first folder with every required file, and the fullest of those that lack some."""
    best: Annotations | None = None
    beside = []
    if description.path is not None and description.path.name == DESCRIPTION_FILE:  # It describes what lies beside it.
        beside = [description.path.parent] if description.path.parent.is_relative_to(root) else []
    for base in (*beside, root, *(root / sub for sub in description.folders)):
        for folder in (base / sub for sub in _SUBFOLDERS):
            paths = {entry.role: [folder / name for name in entry.names] for entry in description.files}
            files = {role: there[0] for role, names in paths.items() if (there := [p for p in names if p.is_file()])}
            if files and not _lacking(description, files):
                return Annotations(folder, files), best
            if files and (best is None or len(files) > len(best.files)):
                best = Annotations(folder, files)
    return None, best


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
    required = [entry for entry in description.files if entry.required]
    wanted = ", ".join(entry.names[0] for entry in required or description.files)
    other = f" (its {DESCRIPTION_FILE} describes another data set)" if (root / DESCRIPTION_FILE).is_file() else ""
    return f"No annotation files of {description.title} below {root}{other}; looked for {wanted}."


def _way_out(description: Description) -> str:
    source = f" {description.title} is at {description.source}." if description.source else ""
    only = f" --only {description.reader}" if description.reader in ("avs", "avqa") else ""  # not made unasked
    return f"Give the folder with --root.{source} To try things without it: avfs data toy --root DIR{only}."


def note_dashes(ids: Iterable[str], report: DatasetReport) -> None:
    """Tell of ids that a command line takes for options."""
    message = "Ids begin with a dash; write ./ before such a file name on a command line."
    report.note("info", "dashed-ids", message, sorted({name for name in ids if name.startswith("-")}))


def make_dataset(
    description: Description,
    annotations: Annotations,
    samples: Iterable[Sample],
    rows: dict[str, int],
    report: DatasetReport,
    *,
    form: str,
    classes: Sequence[ClassEntry] | None = None,
    names: ClassNames | None = None,
    multi_label: bool = False,
) -> Dataset:
    """The data set of a reader, after telling which `names` were respelt and which files are the official ones.

    `rows` counts the data rows of the files by role, `form` names the form of the annotation files for people;
    `classes` are those of the description unless given. A :class:`DataError` where there is no sample.
    """
    samples = tuple(sorted(samples, key=lambda sample: SPLITS.index(sample.split)))
    if not samples:
        raise DataError(f"{annotations.folder}: no file of {description.title} lists a clip.")
    if names is not None:
        report.note("info", "respelt-classes", "Class names were matched by another spelling.", names.respelt())
    _compare_with_official(description, annotations.files, rows, report)
    classes = description.classes if classes is None else classes
    return Dataset(
        description=description,
        root=annotations.folder,
        classes=tuple(entry.name for entry in classes),
        wordings=tuple(entry.wording for entry in classes),
        samples=samples,
        multi_label=multi_label,
        form=form,
        files=annotations.files,
        report=report,
    )


def _compare_with_official(
    description: Description, files: dict[str, Path], rows: dict[str, int], report: DatasetReport
) -> None:
    """Say for each file whether it is the official one: by its SHA-256, else by its number of rows."""
    as_published: list[str] = []
    for role, path in files.items():
        official = description.file(role)
        if official is None:
            continue
        count = rows.get(role)
        bears_the_name = path.name in official.names
        wrong_count = official.rows is not None and count is not None and count != official.rows
        numbers = f"{count} rows; the official file has {official.rows}"
        if official.sha256 is None:
            if wrong_count and bears_the_name:
                report.add("warning", "row-count", f"{path.name} has {numbers}.")
            continue
        data = path.read_bytes()
        plain = data.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n").rstrip(b"\n")
        windows = plain.replace(b"\n", b"\r\n")
        other_ends = (plain, plain + b"\n", windows, windows + b"\r\n")
        digest, *others = (hashlib.sha256(form).hexdigest() for form in (data, *other_ends))
        if digest == official.sha256:
            as_published.append(path.name)
        elif digest in official.variants:
            report.add("info", "other-release", f"{path.name} is another official release of {official.names[0]}.")
        elif official.sha256 in others:
            as_published.append(f"{path.name} (with other line ends)")
        elif bears_the_name:  # A list given by path claims nothing.
            note = f"it has {numbers}" if wrong_count else "its rows are as many, but not the same"
            report.add("warning", "differs-from-official", f"{path.name} is not as published: {note}.")
    if as_published:
        report.add("info", "official-files", f"As published: {', '.join(as_published)}.", as_published)
