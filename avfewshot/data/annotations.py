"""Annotation files: finding and reading them, the spellings of a class, and whether they are the official ones."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Sample
from avfewshot.data.description import DESCRIPTION_FILE, ClassEntry, Description
from avfewshot.errors import DataError, UsageError
from avfewshot.labels import visible
from avfewshot.media.discover import MEDIA_SUFFIXES

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


_MOST_BYTES = 1 << 28  # the largest known list takes 11 MB
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_ADDRESS = re.compile(r"https?://(?:\S*[?&]v=|\S*/)([A-Za-z0-9_-]{11})(?:[&?#]\S*)?")


def read_text(path: str | Path) -> str:
    """The text of an annotation file, without a byte order mark and invisible characters.

    Raises:
        DataError: It cannot be read or is not UTF-8.
    """
    try:
        if os.stat(path).st_size > _MOST_BYTES:
            raise DataError(f"{path}: more than {_MOST_BYTES >> 20} MiB are too many for an annotation file.")
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8.", hint="Save the file as UTF-8, or take the official one."
        ) from error
    if text.isascii():  # nearly always
        return text
    return "".join(part if part.isascii() else visible(part) for part in re.split(r"([\r\n\t])", text))


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Non-blank lines, stripped, with their numbers from 1. Only line feeds and carriage returns end a line."""
    lines = enumerate(io.StringIO(read_text(path), newline=None), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_csv(path: str | Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """Rows of a CSV file with the number of their last line, blank rows left out and cells stripped.

    Raises:
        DataError: It cannot be read as CSV.
    """
    reader = csv.reader(io.StringIO(read_text(path).replace("\0", ""), newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.") from error


def clip_id(text: str) -> str:
    """An id as a list has it, without quotation marks, the suffix of a file or the rest of an address."""
    text = text.strip("\"' ")
    if match := _ADDRESS.fullmatch(text):
        return match[1]
    stem, suffix = os.path.splitext(text)
    return stem if suffix.lower() in MEDIA_SUFFIXES else text


def youtube_id(text: str) -> str | None:
    """`text` if it has the form of a YouTube id (11 letters, digits, ``-`` or ``_``, and not a mere row number)."""
    return text if YOUTUBE_ID.fullmatch(text) and not text.isdigit() else None


def seconds(text: str) -> float | None:
    """A number of seconds, or None where `text` is not a finite number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < float("inf") else None


_FILLERS = frozenset("set data dataset split splits subset folder dir clips clip videos video files samples".split())
_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_SPLIT_NAMES = {
    name + filler: split for split, names in _NAMES.items() for name in names for filler in ("", "set", "data", "split")
}


def normalise_split(text: str) -> str | None:
    """``train``, ``val`` or ``test`` for any usual name of a split (``Training_set``, ``02-valid``), else None."""
    words = re.findall(r"[a-z]+", visible(text).lower())
    while len(words) > 1 and words[-1] in _FILLERS:
        words.pop()
    while len(words) > 1 and words[0] in _FILLERS:
        words.pop(0)
    return _SPLIT_NAMES.get("".join(words))


# Key -> other keys of the same class, for spellings that no rule below explains: cut where the comma has become an
# underscore (LLP), or a mended misspelling (VGG-Sound).
_ALSO = {
    "violin": "violin fiddle",
    "chicken": "chicken rooster",
    "baby cry": "baby cry infant cry",
    "frying": "frying food",
    "telephone bell": "telephone bell ringing",
    "electric blender running": "eletric blender running",
}
_NOISE = re.compile(r"[^0-9a-z]+")


def name_key(name: str) -> str:
    """A spelling-independent key: lower case, and anything but letters and digits is one space.

    ``name_key("Frying_(food)") == name_key("Frying (food)")``. A name without any Latin letter or digit is its own key,
    in lower case.
    """
    key = _NOISE.sub(" ", name.lower()).strip() if name.isascii() else " ".join(name.replace("_", " ").lower().split())
    return key or name.strip().lower()


class ClassNames:
    """Finds the class that a name in an annotation file means.

    A name matches, in this order: exactly; by its key; by the part before the first comma, of the name or of the class,
    where that is unique; by the table of other spellings.
    """

    def __init__(self, classes: Sequence[str]) -> None:
        self._exact = {name: index for index, name in enumerate(classes)}
        self._keys = _unique((name_key(name), index) for index, name in enumerate(classes))
        self._heads = _unique((name_key(name.split(",")[0]), index) for index, name in enumerate(classes))
        self._known: dict[str, int | None] = {}

    def index(self, name: str) -> int | None:
        """Index of the class that `name` means, or None."""
        if name in self._exact:
            return self._exact[name]
        if name not in self._known:
            key = name_key(name)
            others = [self._keys.get(other) for other in (name_key(name.split(",")[0]), _ALSO.get(key, ""))]
            tried = (self._keys.get(key), self._heads.get(key), *others)
            self._known[name] = next((index for index in tried if index is not None), None)
        return self._known[name]

    def whole(self, name: str) -> int | None:
        """Index of the class that is called `name` in full, spelling aside; no match by the part before a comma."""
        return self._exact.get(name, self._keys.get(name_key(name)))

    def respelt(self) -> list[str]:
        """Names asked for so far that matched, but not letter by letter, sorted."""
        return sorted(name for name, index in self._known.items() if index is not None)


def _unique(pairs: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Keys that stand for one class alone; an ambiguous key means nothing."""
    meanings = set(pairs)
    counts = Counter(key for key, _ in meanings)
    return {key: index for key, index in meanings if counts[key] == 1}


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
    `classes` are those of the description unless given.

    Raises:
        DataError: There are no samples.
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
