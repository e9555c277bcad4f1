"""Text of strangers: what shows of it, what can be printed, what a spreadsheet may open."""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

_JOINERS = "\u200c\u200d"  # parts of ordinary words in Persian and in the scripts of India, and of emoji; not in Latin


def is_hidden(letter: str) -> bool:
    """Whether a character acts instead of being seen: control, escape, bidi, line separators, undecodable bytes."""
    category = unicodedata.category(letter)
    return (category[0] == "C" or category in ("Zl", "Zp")) and letter not in _JOINERS


def printable(text: str) -> str:
    r"""`text` with every character that acts instead of being seen written out, as ``\x1b``.

    File names and labels come from others; printed raw they could change a terminal's colours, title or layout.
    """
    if text.isprintable():
        return text
    return "".join(letter.encode("unicode_escape").decode("ascii") if is_hidden(letter) else letter for letter in text)


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: text is printable, and an apostrophe keeps a spreadsheet from taking it for a formula."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows, the names of the columns first, as the text of a CSV file; None is an empty cell."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return stream.getvalue()


# Letters and symbols that show nothing (Hangul fillers, the empty Braille cell), and format characters that do show.
_BLANK = re.compile("[\u115f\u1160\u2800\u3164\uffa0]")
_SHOWN = frozenset("\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd")
# Marks that Unicode calls "default ignorable": the grapheme joiner, inherent vowels of Khmer, variation selectors.
_UNSEEN = re.compile("[\u034f\u17b4\u17b5\u180b-\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef]")


def visible(text: str) -> str:
    """`text` without characters that cannot be seen, white space collapsed.

    Format characters (Unicode category Cf: zero-width spaces, byte order marks, direction marks, soft hyphens) are
    removed, apart from those within a word or an emoji: joiners between two letters, and the tags of flags. A text of
    nothing but marks that show nothing by themselves (variation selectors and the like) is empty.
    """
    text = _BLANK.sub(" ", text)
    if not _UNSEEN.sub("", text).strip():
        return ""
    if any(unicodedata.category(letter) == "Cf" for letter in text):
        text = "".join(letter for place, letter in enumerate(text) if _is_shown(text, place))
    return " ".join(text.split())


def _is_shown(text: str, place: int) -> bool:
    letter = text[place]
    if unicodedata.category(letter) != "Cf" or letter in _SHOWN:
        return True
    before, after = text[place - 1 : place], text[place + 1 : place + 2]
    if letter in _JOINERS:
        joins = (before, after)
        return all(side and not side.isascii() and unicodedata.category(side)[0] in "LMS" for side in joins)
    return "\U000e0020" <= letter <= "\U000e007f" and ("\U0001f3f4" in text[:place])


def fold(text: str) -> str:
    """What two spellings of one label have in common: case, ``_``, white space and Unicode form do not count."""
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    plain = (letter for letter in _UNSEEN.sub("", folded) if unicodedata.category(letter) != "Cf")
    return " ".join("".join(plain).replace("_", " ").split())
