"""``labels.csv``: what a person said about the clips of a folder, as a plain table that is replaced at every change.

    path,start,end,label,wording
    ,,,dog barking,a dog barks loudly       a class, with what the text branches read for it
    walk/a.mp4,,,dog barking,               a clip; its path is relative to the folder of the file
    walk/a.mp4,3,5,cat meowing,             seconds 3 and 4 of it

The label ``none`` means "none of these".
"""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass, field
from pathlib import Path

from avfewshot.errors import DataError
from avfewshot.io import write_text
from avfewshot.text import csv_cell

NAME = "labels.csv"
HEADER = ["path", "start", "end", "label", "wording"]
NONE = "none"  # the label of clips that carry none of the classes
MOST_SECONDS = 1_000_000


@dataclass
class Mark:
    """What was said about a clip."""

    label: str | None = None  # of the whole clip
    seconds: dict[int, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.label or self.seconds)

    def spans(self) -> list[tuple[int, int, str]]:
        """Runs of seconds with one label: start, end, label."""
        spans: list[tuple[int, int, str]] = []
        for second, label in sorted(self.seconds.items()):
            if spans and spans[-1][1:] == (second, label):
                spans[-1] = (spans[-1][0], second + 1, label)
            else:
                spans.append((second, second + 1, label))
        return spans


def write_marks(path: Path, classes: dict[str, str], marks: dict[Path, Mark]) -> None:
    """Replace the file, whole or not at all: the wording of each class, the marks by absolute path of the clip."""
    rows: list[list[object]] = [
        ["", "", "", name, "" if wording == name else wording] for name, wording in classes.items()
    ]
    for clip, mark in marks.items():
        name = _relative(clip, path.parent)
        if mark.label:
            rows.append([name, "", "", mark.label, ""])
        rows += [[name, start, end, label, ""] for start, end, label in mark.spans()]
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(HEADER)
    # A path never looks like a formula: it begins with "./" where it would.
    writer.writerows([row[0], *map(csv_cell, row[1:])] for row in rows)
    write_text(path, stream.getvalue())


def read_marks(path: Path) -> tuple[dict[str, str], dict[Path, Mark]]:
    """Classes with their wordings, and marks by absolute path; a :class:`DataError` names the line that is at fault."""
    classes: dict[str, str] = {}
    marks: dict[Path, Mark] = {}
    hint = f"Mend or move it; its first line is {','.join(HEADER)}."
    try:
        lines = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8-sig"))))
    except FileNotFoundError:
        return classes, marks
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: cannot be read ({error}).", hint=hint) from None
    if not lines or lines[0] != HEADER:
        raise DataError(f"{path}: is not a file of labels of `avfs serve`.", hint=hint)
    for number, row in enumerate(lines[1:], start=2):
        try:
            name, start, end, label, wording = (_plain(cell) for cell in row)
            if not label:
                raise ValueError("no label")
            if not name:
                classes[label] = wording or label
                continue
            mark = marks.setdefault(Path(os.path.abspath(path.parent / name)), Mark())
            if start or end:
                begin, stop = int(start), int(end)
                if not 0 <= begin < stop <= MOST_SECONDS:
                    raise ValueError("seconds out of range")
                mark.seconds |= dict.fromkeys(range(begin, stop), label)
            else:
                mark.label = label
        except ValueError as error:
            raise DataError(f"{path}, line {number}: is damaged ({error}).", hint=hint) from None
        if label != NONE:
            classes.setdefault(label, label)
    return classes, marks


def _plain(cell: str) -> str:
    """What :func:`csv_cell` was given."""
    return cell[1:] if cell.startswith("'") and csv_cell(cell[1:]) == cell else cell


def _relative(clip: Path, folder: Path) -> str:
    try:
        name = os.path.relpath(clip, folder)
    except ValueError:  # another drive
        return str(clip)
    return f".{os.sep}{name}" if csv_cell(name) != name and not name.startswith("..") else name
