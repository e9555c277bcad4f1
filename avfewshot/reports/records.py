"""The stable, versioned shape of results for programs; docs/json.md describes it for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

from avfewshot.inference.results import ClipResult, Failure
from avfewshot.io import is_hidden

VERSION = 1
SECONDS_DIGITS = 3
TOLERANCE = 1e-6  # how far a written distribution may be from summing to 1


def clip_record(result: ClipResult, *, segments: bool) -> dict[str, Any]:
    """One clip as JSON-ready data, keys in their documented order; ``segments`` is empty unless asked for.

    ``scores``, ``visual``, ``audio`` and the weights sum to 1 within :data:`TOLERANCE`.
    """
    scores = distribution(result.scores)
    return {
        "path": result.path,
        "duration": round(result.duration, SECONDS_DIGITS),
        "label": result.label,
        "score": scores.get(result.label, round(result.score, 6)),
        "scores": scores,
        "visual": None if result.visual is None else distribution(result.visual),
        "audio": None if result.audio is None else distribution(result.audio),
        "weights": distribution(result.weights),
        "segments": [
            {
                "start": round(segment.start, SECONDS_DIGITS),
                "end": round(segment.end, SECONDS_DIGITS),
                "label": segment.label,
                "score": round(segment.score, 6),
                "weights": distribution(segment.weights),
            }
            for segment in (result.segments if segments else ())
        ],
        "warnings": list(result.warnings),
        **({} if result.labels is None else {"labels": list(result.labels)}),
    }


def failure_record(failure: Failure) -> dict[str, str]:
    """A file that could not be classified, as JSON-ready data."""
    return {"path": failure.path, "error": failure.error}


def distribution(shares: Mapping[str, float]) -> dict[str, float]:
    """Round shares that sum to 1 so that they still do within :data:`TOLERANCE`.

    Rounding n numbers to d digits moves their sum by at most ``n * 0.5 * 10**-d``; d grows with the number of labels to
    keep that at half of the tolerance. The models' float32 sums are off by a little themselves, hence the division.
    """
    total = math.fsum(shares.values())
    digits = 6 + math.ceil(math.log10(max(len(shares), 1)))
    if total <= 0:
        return {name: round(share, digits) for name, share in shares.items()}
    return {name: round(share / total, digits) for name, share in shares.items()}


def is_finite(result: ClipResult) -> bool:
    """Whether every number of a result is finite; a tower that overflows in fp16 gives NaN."""
    numbers = [result.duration, result.score, *result.scores.values(), *result.weights.values()]
    numbers += [*(result.visual or {}).values(), *(result.audio or {}).values()]
    for segment in result.segments:
        numbers += [segment.start, segment.end, segment.score, *segment.weights.values(), *segment.scores]
    return all(map(math.isfinite, numbers))


def dumps(record: Any) -> str:
    """JSON on one line: readable letters kept, whatever acts instead of being seen (also bytes not UTF-8) escaped."""
    text = json.dumps(record, ensure_ascii=False, allow_nan=False)
    if text.isprintable():
        return text
    return "".join(json.dumps(letter)[1:-1] if is_hidden(letter) else letter for letter in text)
