"""What the HTML page shows of a clip: numbers turned into rows, positions and step curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from avfewshot.inference.results import ClipResult, RunInfo, SegmentResult
from avfewshot.reports.records import distribution
from avfewshot.reports.strip import Mark, cells, marks, runs
from avfewshot.reports.text import clock, percent, printable, seconds
from avfewshot.reports.thumbnails import Thumbnail

MOST_BINS = 240
"""Steps of a curve; seconds of longer clips are averaged, since a screen could not show more."""

MOST_TRACKS = 4
SECONDS = 1.0
"""Length of a segment."""

NARROWEST_LETTER = 3.0
"""Width in percent of the timeline from which on a span carries its letter."""


@dataclass(frozen=True)
class ScoreRow:
    """A label of the table of scores; a modality that is absent has None."""

    label: str
    chosen: bool
    fused: float
    visual: float | None
    audio: float | None


@dataclass(frozen=True)
class Span:
    """A stretch of the timeline with one label; position and width in percent."""

    left: float
    width: float
    mark: Mark
    title: str

    @property
    def letter(self) -> str:
        """What is written on it: nothing where there is no room."""
        return self.mark.letter if self.width >= NARROWEST_LETTER else ""


@dataclass(frozen=True)
class Track:
    """A curve over the seconds: an SVG path in a box of `bins` x 1."""

    name: str
    mark: Mark
    path: str
    bins: int
    title: str


@dataclass(frozen=True)
class Timeline:
    """What happens when, all parts over the same axis."""

    spans: list[Span]
    tracks: list[Track]
    balance: Track | None
    ticks: list[tuple[float, str]]
    described: str


@dataclass(frozen=True)
class ClipView:
    """A clip on the page."""

    number: int
    path: str
    duration: str
    label: str
    score: float
    mark: Mark
    rows: list[ScoreRow]
    weights: dict[str, float]
    pictures: list[Thumbnail]
    columns: int
    timeline: Timeline | None
    warnings: list[str]
    has_video: bool
    has_audio: bool


def clip_view(number: int, result: ClipResult, run: RunInfo, pictures: list[Thumbnail], *, topk: int) -> ClipView:
    """Prepare a clip for the template.

    Args:
        number: Position in the run, from 1.
        result: The classified clip.
        run: What produced it.
        pictures: Frames of it.
        topk: Rows of the table of scores.
    """
    used = [result.label, *(segment.label for segment in result.segments)]
    table = marks(run.labels, used)
    fused = distribution(result.scores)
    best = sorted(fused, key=fused.__getitem__, reverse=True)[:topk]
    return ClipView(
        number=number,
        path=printable(result.path),
        duration=f"{seconds(result.duration)} s",
        label=result.label,
        score=fused[result.label],
        mark=table[result.label],
        rows=[
            ScoreRow(
                label,
                label == result.label,
                fused[label],
                None if result.visual is None else result.visual[label],
                None if result.audio is None else result.audio[label],
            )
            for label in best
        ],
        weights=result.weights,
        pictures=pictures,
        columns=max(1, min(len(result.segments), 10)),
        timeline=_timeline(result, run, table) if result.segments else None,
        warnings=[printable(warning) for warning in result.warnings],
        has_video=result.visual is not None,
        has_audio=result.audio is not None,
    )


def _timeline(result: ClipResult, run: RunInfo, table: dict[str, Mark]) -> Timeline:
    segments = result.segments
    origin = segments[0].start
    length = segments[-1].start + SECONDS - origin  # the last one may be cut off by the end of the file
    found = runs(_thinned(segments))
    starts = [100 * (part.start - origin) / length for part in found]
    spans = [
        Span(left, right - left, table[part.label], f"{seconds(part.start)}-{seconds(part.end)} s: {part.label}")
        for part, left, right in zip(found, starts, [*starts[1:], 100.0], strict=True)
    ]
    balance = None
    if result.visual is not None and result.audio is not None:
        shares = _binned([segment.weights["visual"] for segment in segments])
        mean = sum(segment.weights["visual"] for segment in segments) / len(segments)
        balance = Track(
            "visual share",
            table[result.label],
            step_path(shares),
            len(shares),
            f"Share of the visual scores over the seconds, {percent(mean)} on average; the rest is audio.",
        )
    described = ", ".join(f"{seconds(part.start)}-{seconds(part.end)} s {part.label}" for part in runs(segments)[:50])
    return Timeline(spans, _tracks(segments, run.labels, table), balance, _ticks(origin, length), described)


def _thinned(segments: Sequence[SegmentResult]) -> list[SegmentResult]:
    """Segments of a very long clip, joined so that the page stays small."""
    labels, span = cells(segments, MOST_BINS)
    if span == 1:
        return list(segments)
    return [
        SegmentResult(
            segments[index * span].start,
            segments[min((index + 1) * span, len(segments)) - 1].end,
            label,
            0.0,
            {},
            [],
        )
        for index, label in enumerate(labels)
    ]


def _tracks(segments: Sequence[SegmentResult], labels: Sequence[str], table: dict[str, Mark]) -> list[Track]:
    # The labels that win seconds, those that win most first, then in the order of their highest moment.
    won = dict.fromkeys(labels, 0)
    for segment in segments:
        won[segment.label] += 1
    peaks = {label: max(segment.scores[index] for segment in segments) for index, label in enumerate(labels)}
    order = sorted(labels, key=lambda label: (won[label], peaks[label]), reverse=True)
    chosen = [label for label in order if label in table and (won[label] or peaks[label] >= 0.05)][:MOST_TRACKS]
    tracks = []
    for label in chosen:
        index = labels.index(label)
        curve = _binned([segment.scores[index] for segment in segments])
        when = max(segments, key=lambda segment: segment.scores[index])
        title = f"{label}: highest at {seconds(when.start)}-{seconds(when.end)} s with {percent(peaks[label])}"
        tracks.append(Track(label, table[label], step_path(curve), len(curve), title))
    return tracks


def _binned(values: Sequence[float]) -> list[float]:
    span = max(1, -(-len(values) // MOST_BINS))
    parts = (values[begin : begin + span] for begin in range(0, len(values), span))
    return [sum(part) / len(part) for part in parts]


def step_path(values: Sequence[float]) -> str:
    """An SVG path that fills the area under a step curve.

    Args:
        values: Heights in [0, 1]; each step is one unit wide and y points down, as SVG has it.
    """
    steps = "".join(f"V{1 - min(max(value, 0.0), 1.0):.3g}H{index}" for index, value in enumerate(values, start=1))
    return f"M0 1{steps}V1Z"


def _ticks(origin: float, length: float) -> list[tuple[float, str]]:
    """Positions in percent and their times, at most about ten of them."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((step for step in steps if length / step <= 10), 7200)
    count = int(length // step)
    return [(100 * index * step / length, clock(origin + index * step)) for index in range(count + 1)]
