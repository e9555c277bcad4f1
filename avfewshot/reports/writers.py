"""Writers that take results one by one and keep what they have when a run is cut short.

A writer is made with what is known of the run, gets each result in order by ``add``, and ``end``: after that the output
is complete and valid, whether all results came or only some. Nothing but failures is held in memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.media.clip import MODALITIES
from avfewshot.text import csv_text, is_hidden

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
    return {name: round(share / total if total > 0 else share, digits) for name, share in shares.items()}


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


CSV_COLUMNS = (
    "path", "duration", "label", "score", "visual_label", "visual_score", "audio_label", "audio_score",
    "visual_weight", "audio_weight", "warnings", "error",
)  # fmt: skip
"""Columns before the probabilities, which have one column a label named ``p:LABEL``."""

SEGMENT_COLUMNS = ("path", "start", "end", "label", "score", "visual_weight", "audio_weight", "error")
"""Columns of :class:`SegmentsCsvWriter`."""


@dataclass(frozen=True)
class Summary:
    """How a run went."""

    clips: int  # files classified
    failed: int  # files that could not be
    total: int  # files asked for; more than clips + failed when the run was cut short
    elapsed: float  # seconds from the first file to the last, loading the model not counted

    @property
    def rate(self) -> float:
        """Files a second."""
        return (self.clips + self.failed) / self.elapsed if self.elapsed > 0 else 0.0

    @property
    def complete(self) -> bool:
        """Whether every file has had its turn."""
        return self.clips + self.failed == self.total


class Writer:
    """Takes the results of one run, in order; this one writes nothing."""

    def add(self, result: ClipResult | Failure) -> None:
        """Take a file's."""
        if isinstance(result, Failure):
            self.failed(result)
        else:
            self.clip(result)

    def clip(self, result: ClipResult) -> None:
        """Write a clip."""

    def failed(self, failure: Failure) -> None:
        """Write a file that could not be classified; in forms that have no place for it, nothing."""

    def end(self, summary: Summary) -> None:
        """Complete the output, after the last result or after an interruption."""


class JsonWriter(Writer):
    """The whole run as one JSON document (see docs/json.md), written clip by clip."""

    def __init__(self, stream: TextIO, run: RunInfo, *, segments: bool) -> None:
        self._stream, self._segments, self._reject = stream, segments, run.reject
        self._failed: list[Failure] = []
        self._clips = 0
        stream.write(f'{{\n"version": {VERSION},\n"backbone": {dumps(run.backbone)},\n')
        stream.write(f'"adapter": {dumps(run.adapter)},\n"labels": {dumps(run.labels)},\n"clips": [')

    def clip(self, result: ClipResult) -> None:
        """Write a clip."""
        self._stream.write(",\n" if self._clips else "\n")
        self._stream.write(dumps(clip_record(result, segments=self._segments)))
        self._clips += 1

    def failed(self, failure: Failure) -> None:
        """Keep it for the end."""
        self._failed.append(failure)

    def end(self, summary: Summary) -> None:
        """Write the failures and close the document."""
        self._stream.write("\n],\n" if self._clips else "],\n")
        failures = ",\n".join(dumps(failure_record(failure)) for failure in self._failed)
        rest = "" if self._reject is None else f',\n"reject": {dumps(self._reject)}'
        self._stream.write(f'"failed": [\n{failures}\n]' if failures else '"failed": []')
        self._stream.write(rest + "\n}\n")
        self._stream.flush()


class JsonlWriter(Writer):
    """One JSON object a line, flushed as soon as the file is done; a failure is ``{"path": ..., "error": ...}``.

    `run_id` is written into each line as ``"run"``, so that a later run knows whether it may go on; empty: not.
    """

    def __init__(self, stream: TextIO, run: RunInfo, *, segments: bool, run_id: str = "") -> None:
        self._stream, self._segments = stream, segments
        self._more = {"run": run_id} if run_id else {}

    def add(self, result: ClipResult | Failure) -> None:
        """Write a line in one piece, so that a reader never sees half of it."""
        failed = isinstance(result, Failure)
        record = failure_record(result) if failed else clip_record(result, segments=self._segments)
        self._stream.write(dumps({**record, **self._more}) + "\n")
        self._stream.flush()


class CsvWriter(Writer):
    """One row a file, by RFC 4180 but for Unix line ends: :data:`CSV_COLUMNS`, then a probability for each label."""

    def __init__(self, stream: TextIO, run: RunInfo) -> None:
        self._stream, self._labels = stream, list(run.labels)
        self._more = ["labels"] if run.multi_label else []
        _write_row(stream, *CSV_COLUMNS, *(f"p:{label}" for label in self._labels), *self._more)

    def clip(self, result: ClipResult) -> None:
        """Write a row."""
        record = clip_record(result, segments=False)
        cells = [*(record[key] for key in CSV_COLUMNS[:4]), *_best(record["visual"]), *_best(record["audio"])]
        cells += [*(record["weights"][name] for name in MODALITIES), "; ".join(record["warnings"]), ""]
        cells += [record["scores"][label] for label in self._labels]
        _write_row(self._stream, *cells, *("; ".join(result.labels or ()) for _ in self._more))

    def failed(self, failure: Failure) -> None:
        """Write a row with its error."""
        _write_row(self._stream, failure.path, *[""] * 10, failure.error, *[""] * len(self._labels + self._more))


class SegmentsCsvWriter(Writer):
    """One row a second of each clip: :data:`SEGMENT_COLUMNS`; a failure has a row with its error."""

    def __init__(self, stream: TextIO, run: RunInfo) -> None:
        self._stream = stream
        _write_row(stream, *SEGMENT_COLUMNS)

    def clip(self, result: ClipResult) -> None:
        """Write the rows of a clip."""
        for segment in clip_record(result, segments=True)["segments"]:
            row = [segment[key] for key in ("start", "end", "label", "score")]
            _write_row(self._stream, result.path, *row, *segment["weights"].values(), "")

    def failed(self, failure: Failure) -> None:
        """Write a row with its error."""
        _write_row(self._stream, failure.path, *[""] * 6, failure.error)


def _write_row(stream: TextIO, *cells: object) -> None:
    stream.write(csv_text([map(_plain, cells)]))  # in one piece
    stream.flush()


def _plain(cell: object) -> object:
    # 1e-07 is a number to every reader, but a column of decimals is easier on people and spreadsheets.
    return f"{cell:.12f}".rstrip("0").rstrip(".") if isinstance(cell, float) else cell


def _best(shares: Mapping[str, float] | None) -> tuple[str, float | str]:
    if not shares:
        return "", ""
    label = max(shares, key=shares.__getitem__)
    return label, shares[label]
