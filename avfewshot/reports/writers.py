"""Writers that take results one by one and keep what they have when a run is cut short.

Every writer is used as ``begin``, then ``add`` for each result in order, then ``end``; after ``end`` the output is
complete and valid, whether all results came or only some. Nothing but failures is held in memory.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.io import csv_cell, is_hidden

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
    """Takes the results of one run; this one writes nothing."""

    def begin(self, run: RunInfo) -> None:
        """Called once, before the first result."""

    def add(self, result: ClipResult | Failure) -> None:
        """Called for each file, in order."""

    def end(self, summary: Summary) -> None:
        """Called once, after the last result or after an interruption."""


class JsonWriter(Writer):
    """The whole run as one JSON document (see docs/json.md), written clip by clip."""

    def __init__(self, stream: TextIO, *, segments: bool) -> None:
        self._stream = stream
        self._segments = segments
        self._failed: list[Failure] = []
        self._clips = 0

    def begin(self, run: RunInfo) -> None:
        """Write what concerns the run."""
        self._reject = run.reject
        self._stream.write(f'{{\n"version": {VERSION},\n"backbone": {dumps(run.backbone)},\n')
        self._stream.write(f'"adapter": {dumps(run.adapter)},\n"labels": {dumps(run.labels)},\n"clips": [')

    def add(self, result: ClipResult | Failure) -> None:
        """Write a clip, or keep a failure for the end."""
        if isinstance(result, Failure):
            self._failed.append(result)
            return
        self._stream.write(",\n" if self._clips else "\n")
        self._stream.write(dumps(clip_record(result, segments=self._segments)))
        self._clips += 1

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

    def __init__(self, stream: TextIO, *, segments: bool, run_id: str = "") -> None:
        self._stream = stream
        self._segments = segments
        self._more = {"run": run_id} if run_id else {}

    def add(self, result: ClipResult | Failure) -> None:
        """Write a line in one piece, so that a reader never sees half of it."""
        failed = isinstance(result, Failure)
        record = failure_record(result) if failed else clip_record(result, segments=self._segments)
        self._stream.write(dumps({**record, **self._more}) + "\n")
        self._stream.flush()


class CsvWriter(Writer):
    """One row a file, by RFC 4180 but for Unix line ends: :data:`CSV_COLUMNS`, then a probability for each label."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._labels: list[str] = []

    def begin(self, run: RunInfo) -> None:
        """Write the header."""
        self._labels = list(run.labels)
        self._more = ["labels"] if run.multi_label else []
        _write_row(self._stream, [*CSV_COLUMNS, *(f"p:{label}" for label in self._labels), *self._more])

    def add(self, result: ClipResult | Failure) -> None:
        """Write a row."""
        if isinstance(result, Failure):
            rest = [""] * (len(self._labels) + len(self._more))
            _write_row(self._stream, [result.path, *[""] * 10, result.error, *rest])
            return
        record = clip_record(result, segments=False)
        cells = [*(record[key] for key in CSV_COLUMNS[:4]), *_best(result.visual), *_best(result.audio)]
        cells += [*(record["weights"][name] for name in ("visual", "audio")), "; ".join(record["warnings"]), ""]
        cells += [record["scores"][label] for label in self._labels]
        _write_row(self._stream, [*cells, *("; ".join(result.labels or ()) for _ in self._more)])


class SegmentsCsvWriter(Writer):
    """One row a second of each clip: :data:`SEGMENT_COLUMNS`; a failure has a row with its error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def begin(self, run: RunInfo) -> None:
        """Write the header."""
        _write_row(self._stream, [*SEGMENT_COLUMNS])

    def add(self, result: ClipResult | Failure) -> None:
        """Write the rows of a file."""
        if isinstance(result, Failure):
            _write_row(self._stream, [result.path, *[""] * 6, result.error])
            return
        for segment in clip_record(result, segments=True)["segments"]:
            row = [segment[key] for key in ("start", "end", "label", "score")]
            _write_row(self._stream, [result.path, *row, *segment["weights"].values(), ""])


def _write_row(stream: TextIO, cells: list) -> None:
    # Built apart so that a row reaches the stream in one piece.
    row = io.StringIO()
    csv.writer(row, lineterminator="\n").writerow([csv_cell(_plain(cell)) for cell in cells])
    stream.write(row.getvalue())
    stream.flush()


def _plain(cell: object) -> object:
    # 1e-07 is a number to every reader, but a column of decimals is easier on people and spreadsheets.
    return f"{cell:.12f}".rstrip("0").rstrip(".") if isinstance(cell, float) else cell


def _best(scores: dict[str, float] | None) -> tuple[str, float | str]:
    if scores is None:
        return "", ""
    shares = distribution(scores)
    label = max(shares, key=shares.__getitem__)
    return label, shares[label]
