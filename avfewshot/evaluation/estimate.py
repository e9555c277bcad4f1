"""Figures with intervals, and how results become JSON and come back."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from avfewshot.errors import DataError

VERSION = 1
"""Version of the JSON form of results."""

CONFIDENCE = 0.95
"""Confidence of every interval."""

IntervalKind = Literal["bootstrap", "seeds"]


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing or not finite (JSON has no NaN)."""
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval.

    Attributes:
        value: The figure, as a fraction (0.524, not 52.4); None where it is not defined.
        low: Lower end of the interval, or None without one.
        high: Upper end.
        n: What the interval is over: clips for ``bootstrap``, runs for ``seeds``.
        interval: ``bootstrap`` over clips, ``seeds`` over runs (Student's t), or None.
        values: The figures of the single runs, for ``seeds``.
    """

    value: float | None
    low: float | None = None
    high: float | None = None
    n: int = 0
    interval: IntervalKind | None = None
    values: tuple[float, ...] = ()


def estimate_from(record: Mapping[str, Any]) -> Estimate:
    """An estimate from its JSON form."""
    return Estimate(**{**known(Estimate, record), "values": tuple(record["values"])})


def known(cls: type, record: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of `record` that are fields of `cls`: a later release of one version may have added others."""
    return {entry.name: record[entry.name] for entry in dataclasses.fields(cls) if entry.name in record}


def check_version(record: Any) -> None:
    """Refuse what was not written by this version.

    Raises:
        DataError: `record` is no result, or one of another version.
    """
    found = record.get("version") if isinstance(record, Mapping) else None
    if found != VERSION:
        raise DataError(f"Results of version {found!r} cannot be read; this release reads version {VERSION}.")


def plain(value: Any) -> Any:
    """Data classes as dictionaries, sequences as lists; a number that is not finite is a fault of the caller."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {entry.name: plain(getattr(value, entry.name)) for entry in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"A result holds {value}.")
    return value
