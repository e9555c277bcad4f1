"""The labels to choose from, and the wording that the text branches read for each."""

from __future__ import annotations

import codecs
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.errors import UsageError, raise_faults
from avfewshot.text import fold, visible

MAX_BYTES = 16 * 1024 * 1024  # a label file is text that someone wrote; a video named by mistake is larger
MAX_LETTERS = 10_000  # of a label, and of a wording; the text branches read some 300 of them

_COMMENT = re.compile(r"^#.*|\s#(\s.*)?$")
_WORDING = re.compile(r":(\s+|$)")
_FORMAT_HINT = "Write one label a line, for example `dog barking` or `dog: a dog barking loudly`."


@dataclass(frozen=True)
class LabelSet:
    """Labels in order, each with the wording that stands for it in the prompt templates."""

    names: tuple[str, ...]  # what the results call each label; unique
    wordings: tuple[str, ...]  # what the text branches read, in the same order; unique

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> LabelSet:
        """Labels whose wording is the name itself, white space collapsed; a :class:`UsageError` has all faults."""
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise UsageError(f"Labels must be a list of texts, not {names!r}.", hint="Write [label, ...].")
        entries = [(f"label {number}", _tidy(name), "") for number, name in enumerate(names, start=1)]
        return _checked(entries, where="labels", empty_hint="Give at least one label.")

    @classmethod
    def from_wordings(cls, wordings: Mapping[str, str]) -> LabelSet:
        """Labels with the wording that stands for each in the prompts; errors as for :meth:`from_names`."""
        entries = [
            (f"label {number}", _tidy(name), _tidy(wording) or None)
            for number, (name, wording) in enumerate(wordings.items(), start=1)
        ]
        return _checked(entries, where="labels", empty_hint="Give at least one label.")

    @classmethod
    def from_texts(cls, texts: Sequence[str]) -> LabelSet:
        """Labels written like lines of a label file, ``label`` or ``label: wording``; errors as :meth:`from_names`."""
        entries = [_entry(f"number {number}", text) for number, text in enumerate(texts, start=1)]
        return _checked(entries, where="--label", empty_hint="Give at least one label.")


def parse_labels(path: str | os.PathLike[str]) -> LabelSet:
    """Read a label file, or standard input where `path` is ``-``.

    One label a line in UTF-8 (a byte order mark is accepted). Blank lines are skipped; a line that begins with ``#``
    is a comment, and so is the rest of a line after a ``#`` between spaces (``C#`` and ``track #1`` are labels).
    ``label: a longer wording`` (a colon followed by a space) gives the text that stands for the label in the prompts.

    Raises:
        UsageError: The file is missing, not UTF-8 or holds no label; or labels are repeated or malformed: all at once.
    """
    path, where = Path(path), "standard input" if os.fspath(path) == "-" else str(path)
    text = _read_text(path, where)
    if kind := _other_format(text, where):
        raise UsageError(f"{where}: this is {kind}, not a list of labels.", hint=_FORMAT_HINT)
    lines = enumerate(text.splitlines(), start=1)
    contents = ((number, _COMMENT.sub("", visible(line))) for number, line in lines)
    entries = [_entry(f"line {number}", content) for number, content in contents if content]
    return _checked(entries, where=where, empty_hint=_FORMAT_HINT)


def _entry(position: str, text: str) -> tuple[str, str, str | None]:
    colon = _WORDING.search(text)
    if colon is None:
        return position, _tidy(text), ""
    return position, _tidy(text[: colon.start()]), _tidy(text[colon.end() :]) or None


_TITLE = "label|labels|class|classes|category|class_name|label_name|display_name"
_HEADER = re.compile(
    rf"({_TITLE}|index|id|mid|name|video_id|file|path|split|wording|text|prompt|description|caption|count)",
    re.IGNORECASE,
)
_NUMBERED = re.compile(r"\d+[.):]?\s+(?=\S)")
_BINARY = (
    b"%PDF-", b"{\\rtf", b"\x1f\x8b", b"PK\3\4", b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"BZh", b"\xfd7zXZ", b"ID3"
)  # fmt: skip


def _other_format(text: str, where: str) -> str | None:
    """What a file is that was given as a label file by mistake; None for one that may be one."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines:
        return None
    if len(lines) == 1:
        if lines[0].count(",") > 1 or ";" in lines[0]:
            return "one line of several labels"
    elif all(_NUMBERED.match(line) for line in lines):
        rests = {fold(_NUMBERED.sub("", line)) for line in lines}  # "2 people", "3 people" are labels
        if len(rests) == len(lines) > 2 or all(re.match(r"\d+[.):]", line) for line in lines):
            return "a numbered list"
    if re.match(rf"(names|{_TITLE}):(\s*\[|$)", lines[0], re.IGNORECASE):
        return "YAML"
    if (text.strip()[0] in "{[" and text.strip()[-1] in "}]") or re.match(r"\s*[\[{]\s*[\"'\[{]", text):
        return "JSON"
    if len(lines) > 1 and all(re.fullmatch(r"""("[^"]*"|'[^']*')\s*,?""", line) for line in lines):
        return "JSON lines or a table (CSV)"
    if len(lines) > 1 and all(re.match(r"[-*+\u2022\u2013]\s", line) for line in lines):
        return "a list with bullets (YAML, Markdown)"
    if len(lines) > 1 and re.fullmatch(_TITLE, lines[0].strip(), re.IGNORECASE):
        return "a table (CSV)"
    if lines[0].lstrip().startswith("<") and lines[-1].rstrip().endswith(">"):
        return "HTML or XML"
    for mark in "\t,;|":
        rows = [[cell.strip(" \"'") for cell in line.split(mark)] for line in lines]
        titles = sum(_HEADER.fullmatch(title) is not None for title in rows[0])  # two of "id,label,score" are enough
        if titles > 1:
            return "a table (CSV)"
        numbers = any(all(re.fullmatch(r"-?\d*\.?\d*", row[at]) for row in rows) for at in (0, -1))
        named = where.lower().endswith((".csv", ".tsv"))
        if all(len(row) > 1 for row in rows) and (named or (len(rows) > 1 and (numbers or mark == "\t"))):
            return "a table (CSV)"
    return None


def _read_text(path: Path, where: str) -> str:
    try:
        if path.is_dir():
            raise UsageError(f"{where}: is a folder, not a label file.", hint=_FORMAT_HINT)
        if where == "standard input":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with open(path, "rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{where}: there is no such label file.", hint=_FORMAT_HINT) from None
    except OSError as error:
        raise UsageError(f"{where}: the label file cannot be read: {error.strerror}.") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{where}: too large for a label file (more than {MAX_BYTES >> 20} MiB).", hint=_FORMAT_HINT)
    every_other = b"\0" in raw and any(raw[start:1000:2].strip(b"\0") == b"" for start in (0, 1)) and raw.strip(b"\0")
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) or every_other:
        raise UsageError(f"{where}, line 1: the label file is UTF-16, not UTF-8.", hint="Save it as UTF-8.")
    if b"\0" in raw or raw.startswith(_BINARY):
        raise UsageError(f"{where}: this is no text, and so no label file.", hint=_FORMAT_HINT)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark; the number of line ends before the fault is the same.
        line = len(re.findall(rb"\r\n|\r|\n", error.object[: error.start])) + 1
        raise UsageError(f"{where}, line {line}: the label file is not UTF-8.", hint="Save it as UTF-8.") from None


def _tidy(text: object) -> str:
    if not isinstance(text, str):
        raise UsageError(f"A label must be a text, not {text!r}.")
    return visible(text)


def _checked(entries: Iterable[tuple[str, str, str | None]], *, where: str, empty_hint: str) -> LabelSet:
    """The set of (position for people, name, wording: "" for the name itself, None where it lacks), or all faults."""
    faults: list[UsageError] = []
    kept: dict[str, str] = {}
    seen: dict[str, tuple[str, str]] = {}
    read: dict[str, tuple[str, str]] = {}
    for position, name, given in entries:
        wording, hint = given or name, empty_hint
        if not name:
            problem = "the label is empty."
        elif max(len(name), len(wording)) > MAX_LETTERS:
            problem = f"{name[:40]!r}... is longer than {MAX_LETTERS:,} letters."
        elif any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in name + wording):
            problem, hint = "the label holds a control character.", "Remove it."
        elif given is None:
            problem = "there is no wording after the colon."
            hint = f"Write a text after `{name}:`, or leave the colon out."
        elif (first := seen.setdefault(fold(name), (position, name)))[0] != position:
            problem, hint = f"{name!r} repeats {first[1]!r} of {first[0]}.", "Remove one of them."
        elif (first := read.setdefault(fold(wording), (position, name)))[0] != position:
            problem = f"{name!r} has the same wording as {first[1]!r} of {first[0]}: {wording!r}."
            hint = "The model could not tell them apart: change one wording."
        else:
            kept[name] = wording
            continue
        faults.append(UsageError(f"{where}, {position}: {problem}", hint=hint))
    raise_faults(faults)
    if not kept:
        raise UsageError(f"{where}: there is no label in it.", hint=empty_hint)
    return LabelSet(tuple(kept), tuple(kept.values()))
