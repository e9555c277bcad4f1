"""Numbers, times and faults in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from avfewshot.text import printable


def shorten(text: str, width: int, gap: str = "…") -> str:
    """`text` cut in the middle to at most `width` characters: both ends of a path tell the most."""
    if len(text) <= width:
        return text
    room = width - len(gap)
    if room < 2:
        return text[:width]
    return f"{text[: room // 2]}{gap}{text[len(text) - (room - room // 2) :]}"


def percent(share: float) -> str:
    """A probability for people, for example ``82.1 %``."""
    return f"{100 * share:.1f} %"


def quantity(value: float) -> str:
    """A count for people; a clip with several labels counts as a part in several rows."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


def count(number: int, one: str, many: str | None = None) -> str:
    """``1 clip``, ``2 clips``; `many` is the plural where it is not made with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def duration(value: float) -> str:
    """A time to wait, for example ``40 seconds``, ``12 minutes`` or ``3.5 hours``."""
    for unit, length, digits in (("days", 86400, 1), ("hours", 3600, 1), ("minutes", 60, 0)):
        if value >= 2 * length:
            return f"{value / length:.{digits}f} {unit}"
    return count(max(1, round(value)), "second")


def size(value: float) -> str:
    """Bytes in three digits, for example ``1.23 GB``."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.0f} bytes"


def seconds(value: float) -> str:
    """A time in seconds without needless digits, for example ``3`` or ``9.5``."""
    return f"{value:.1f}".removesuffix(".0")


def rate(per_second: float) -> str:
    """A speed with two or three digits, for example ``0.42``, ``3.1`` or ``120``."""
    return f"{per_second:.{0 if per_second >= 10 else 1 if per_second >= 1 else 2}f}"


def reject_text(reject: Mapping[str, Any]) -> str:
    """What the threshold for unknown clips does, by left-out clips."""
    accepted = reject["false_accepts"]
    others = "how many do not (false accepts) takes three classes to measure"
    if accepted is not None:
        others = f"about {percent(accepted)} do not (false accepts)"
    return (
        f"{round(reject['false_rejects'] * reject['clips']):,} of {count(reject['clips'], 'left-out clip')} below the "
        f"threshold (false rejects), of clips of classes that were never seen {others}"
    )


def clock(value: float) -> str:
    """A position in a file, for example ``0:07`` or ``1:02:03``."""
    whole = int(value)
    hours, rest = divmod(whole, 3600)
    return f"{hours}:{rest // 60:02d}:{rest % 60:02d}" if hours else f"{rest // 60}:{rest % 60:02d}"


def reason(path: str, error: str) -> str:
    """An error without the path that most of them begin with, for places that name the path already."""
    return printable(error.removeprefix(f"{path}: "))
