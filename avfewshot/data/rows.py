"""Rows of annotation files, and what their cells mean: ids, videos, seconds, splits."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from pathlib import Path
from typing import Any

from avfewshot.errors import DataError
from avfewshot.media.discover import MEDIA_SUFFIXES
from avfewshot.text import printable, visible

_MOST_BYTES = 1 << 28  # the largest known list takes 11 MB
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_ADDRESS = re.compile(r"https?://(?:\S*[?&]v=|\S*/)([A-Za-z0-9_-]{11})(?:[&?#]\S*)?")


def read_text(path: str | Path) -> str:
    """The text of an annotation file, without byte order mark, NULs and what is invisible; or a :class:`DataError`."""
    try:
        if os.stat(path).st_size > _MOST_BYTES:
            raise DataError(f"{path}: more than {_MOST_BYTES >> 20} MiB are too many for an annotation file.")
        text = Path(path).read_bytes().decode("utf-8-sig").replace("\0", "")
    except OSError as error:
        raise DataError(f"{path}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        message = f"{path}: byte {error.start} is not UTF-8."
        raise DataError(message, hint="Save the file as UTF-8, or take the official one.") from error
    if text.isascii():  # nearly always
        return text
    return "".join(part if part.isascii() else visible(part) for part in re.split(r"([\r\n\t])", text))


def read_lines(path: str | Path) -> list[tuple[int, str]]:
    """Non-blank lines, stripped, with their numbers from 1. Only line feeds and carriage returns end a line."""
    lines = enumerate(io.StringIO(read_text(path), newline=None), 1)
    return [(number, line.strip()) for number, line in lines if line.strip()]


def read_csv(path: str | Path, delimiter: str = ",") -> list[tuple[int, list[str]]]:
    """Rows of a CSV file with the number of their last line, blank ones left out, cells stripped.

    A :class:`DataError` where it cannot be read (:func:`read_text`), or for the first line that is no CSV.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter)
    try:
        return [(reader.line_num, [cell.strip() for cell in row]) for row in reader if any(map(str.strip, row))]
    except csv.Error as error:
        raise DataError(f"{path}, line {reader.line_num}: {error}.", hint=other_form(path)) from error


def read_json_text(path: str | Path, **options: Any) -> Any:
    """What an annotation file in JSON holds, or a :class:`DataError`; `options` are those of :func:`json.loads`."""
    try:
        document = json.loads(read_text(path), **options)
        json.dumps(document, ensure_ascii=False).encode()  # half of a surrogate pair can be written nowhere
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is not JSON ({error}).", hint=other_form(path)) from error
    return document


def other_form(path: str | Path) -> str:
    """A hint for a file of another form: its beginning shows a page of an error, say, or a pointer of Git LFS."""
    begin = next((f"begins with {printable(line[:60])}" for _, line in read_lines(path)), "is empty")
    return f"It {begin}; take the official file."


def clip_id(text: str) -> str:
    """An id as a list has it, without quotation marks, folders and suffix of a file or the rest of an address."""
    text = text.strip("\"' ")
    if match := _ADDRESS.fullmatch(text):
        return match[1]
    stem, suffix = os.path.splitext(text)
    return re.split(r"[/\\]", stem)[-1] if suffix.lower() in MEDIA_SUFFIXES else text


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
