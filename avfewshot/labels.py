"""The labels to choose from, and the wording that the text branches read for each."""

from __future__ import annotations

import codecs
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.errors import UsageError, raise_faults

MAX_BYTES = 16 * 1024 * 1024  # a label file is text that someone wrote; a video named by mistake is larger

_COMMENT = re.compile(r"\s#(\s.*)?$")
_WORDING = re.compile(r":(\s+|$)")
_FORMAT_HINT = "Write one label a line, for example `dog barking` or `dog: a dog barking loudly`."


@dataclass(frozen=True)
class LabelSet:
    """Labels in order, each with the wording that stands for it in the prompt templates.

    Attributes:
        names: What the results call each label; unique.
        wordings: What the text branches read, in the same order; unique.
    """

    names: tuple[str, ...]
    wordings: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: Sequence[str]) -> LabelSet:
        """Labels whose wording is the name itself.

        Args:
            names: At least one label; white space is trimmed and collapsed.

        Raises:
            UsageError: A label is empty or occurs twice, or there is none.
        """
        if isinstance(names, str):
            raise UsageError(
                f"Labels must be a list of texts, not the single text {names!r}.", hint="Write [label, ...]."
            )
        entries = [(f"label {number}", _tidy(name), "") for number, name in enumerate(names, start=1)]
        return _checked(entries, where="labels", empty_hint="Give at least one label.")


def parse_labels(path: str | os.PathLike[str]) -> LabelSet:
    """Read a label file.

    One label a line in UTF-8 (a byte order mark is accepted). Blank lines are skipped; a line that begins with ``#``
    is a comment, and so is the rest of a line after a ``#`` between spaces (``C#`` and ``track #1`` are labels).
    ``label: a longer wording`` (a colon followed by a space) gives the text that stands for the label in the prompts.

    Args:
        path: The file.

    Returns:
        The labels in the order of the file.

    Raises:
        UsageError: The file is missing, not UTF-8 or holds no label; or labels are repeated or malformed. The message
            names the file and the lines. Several faults come together as one
            :class:`~avfewshot.errors.Faults`.
    """
    path = Path(path)
    entries = []
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(path)), start=1):
        if line.lstrip().startswith("#"):
            continue
        content = _COMMENT.sub("", line)
        if not content.strip():
            continue
        colon = _WORDING.search(content)
        name = content[: colon.start()] if colon else content
        wording = content[colon.end() :] if colon else None
        entries.append((f"line {number}", _tidy(name), "" if wording is None else _tidy(wording) or None))
    return _checked(entries, where=str(path), empty_hint=_FORMAT_HINT)


def _read_text(path: Path) -> str:
    try:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder, not a label file.", hint=_FORMAT_HINT)
        with open(path, "rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such label file.", hint=_FORMAT_HINT) from None
    except OSError as error:
        raise UsageError(f"{path}: the label file cannot be read: {error.strerror}.") from None
    if len(raw) > MAX_BYTES:
        raise UsageError(f"{path}: too large for a label file (more than {MAX_BYTES >> 20} MiB).", hint=_FORMAT_HINT)
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UsageError(f"{path}, line 1: the label file is UTF-16, not UTF-8.", hint="Save it as UTF-8.")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # The codec counts from behind a byte order mark; the number of line ends before the fault is the same.
        line = len(re.findall(rb"\r\n|\r|\n", error.object[: error.start])) + 1
        raise UsageError(f"{path}, line {line}: the label file is not UTF-8.", hint="Save it as UTF-8.") from None


def _tidy(text: object) -> str:
    if not isinstance(text, str):
        raise UsageError(f"A label must be a text, not {text!r}.")
    return " ".join(text.split())


def _checked(entries: Iterable[tuple[str, str, str | None]], *, where: str, empty_hint: str) -> LabelSet:
    """Build the set or say all faults.

    An entry is its position for people, the name, and the wording: "" for the name itself, None for a missing one.
    """
    faults: list[UsageError] = []
    names: list[str] = []
    wordings: list[str] = []
    seen: dict[str, tuple[str, str]] = {}
    read: dict[str, tuple[str, str]] = {}
    for position, name, wording in entries:
        if not name:
            faults.append(UsageError(f"{where}, {position}: the label is empty.", hint=empty_hint))
            continue
        if any(unicodedata.category(letter) in {"Cc", "Cs"} for letter in name + (wording or "")):
            faults.append(UsageError(f"{where}, {position}: the label holds a control character.", hint="Remove it."))
            continue
        if wording is None:
            hint = f"Write a text after `{name}:`, or leave the colon out."
            faults.append(UsageError(f"{where}, {position}: there is no wording after the colon.", hint=hint))
            continue
        wording = wording or name
        if first := seen.get(_key(name)):
            message = f"{where}, {position}: {name!r} repeats {first[1]!r} of {first[0]}."
            faults.append(UsageError(message, hint="Remove one of them."))
            continue
        seen[_key(name)] = (position, name)
        if first := read.get(_key(wording)):
            message = f"{where}, {position}: {name!r} has the same wording as {first[1]!r} of {first[0]}: {wording!r}."
            faults.append(UsageError(message, hint="The model could not tell them apart: change one wording."))
            continue
        read[_key(wording)] = (position, name)
        names.append(name)
        wordings.append(wording)
    raise_faults(faults)
    if not names:
        raise UsageError(f"{where}: there is no label in it.", hint=empty_hint)
    return LabelSet(tuple(names), tuple(wordings))


def _key(text: str) -> str:
    # CLIP and RoBERTa pipelines fold case or nearly so: `Dog` and `dog` would be one class under two names.
    return unicodedata.normalize("NFKC", text).casefold()
