"""Reading annotation files: any line ends, with or without a byte order mark or a final newline."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

from avfewshot.errors import DataError
from avfewshot.labels import visible

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")


def read_text(path: str | Path) -> str:
    """The text of an annotation file.

    Raises:
        DataError: It cannot be read or is not UTF-8.
    """
    try:
        return _visible_lines(Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: byte {error.start} is not UTF-8.", hint="Save the file as UTF-8, or take the official one."
        ) from error


def _visible_lines(text: str) -> str:
    """`text` without invisible characters; line ends and tabs stay. Nearly every annotation file is plain ASCII."""
    if text.isascii():
        return text
    return "".join(part if part in "\r\n\t" else _spaced(part) for part in re.split(r"([\r\n\t])", text))


def _spaced(part: str) -> str:
    return part if part.isascii() else visible(part)


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Non-blank lines with their numbers, from 1. Only line feeds and carriage returns end a line."""
    lines = read_text(path).replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


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


def normalise_split(text: str) -> str | None:
    """``train``, ``val`` or ``test`` for any usual name of a split (``Training_set``, ``02-valid``), else None."""
    words = re.findall(r"[a-z]+", visible(text).lower())
    while len(words) > 1 and words[-1] in _FILLERS:
        words.pop()
    while len(words) > 1 and words[0] in _FILLERS:
        words.pop(0)
    return _SPLIT_NAMES.get("".join(words))


_FILLERS = frozenset("set data dataset split splits subset folder dir clips clip videos video files samples".split())
_NAMES = {
    "train": ("train", "training", "trn"),
    "val": ("val", "valid", "validation", "validate", "dev", "development"),
    "test": ("test", "testing", "tst", "eval", "evaluation"),
}
_SPLIT_NAMES = {
    name + filler: split for split, names in _NAMES.items() for name in names for filler in ("", "set", "data", "split")
}
