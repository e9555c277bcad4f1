"""Charts as inline SVG, drawn here and not in the browser: no script, a text for each, colours by CSS variables."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from avfewshot.evaluation.results import Calibration
from avfewshot.reports.confusion import Confusion
from avfewshot.reports.text import percent, printable

TONES = 6  # line colours that report pages define (classes `t0` and following); they repeat after that

MOST_POINTS = 400  # points of a line; longer ones are averaged in equal parts, since a screen could not show more

_WIDTH, _HEIGHT = 360, 230
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 38


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # (x, y), x ascending; those that are not finite are left out
    marked: tuple[float, float] | None = None  # a point to put a ring around
    smooth: bool = False  # draw a moving average, and the line itself faintly


@dataclass(frozen=True)
class Level:
    """A horizontal dashed line: its height, and what it stands for."""

    value: float
    name: str


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    level: Level | None = None,
    shares: bool = False,
    limits: tuple[float, float] | None = None,
) -> Markup:
    """Lines over a common axis as ``<svg>``; empty where no line has a finite point.

    Colours go by position: the same position in another chart has the same colour. Heights that are `shares` are
    labelled in percent; `limits` are the lowest and highest height where charts stand side by side.
    """
    lines = [[point for point in line.points if all(map(math.isfinite, point))] for line in series]
    finite = [point for line in lines for point in line]
    if not finite:
        return Markup()
    heights = [y for _, y in finite] + ([level.value] if level else [])
    low, high = limits or (min(heights), max(heights))
    y_ticks = ticks(low, high)
    x_ticks = ticks(*_ends([x for x, _ in finite]), most=6)
    if all(x == int(x) for x, _ in finite):  # epochs, steps
        x_ticks = [tick for tick in x_ticks if tick == int(tick)]
    box = _Box(_ends([*(x for x, _ in finite), *x_ticks]), (min(low, y_ticks[0]), max(high, y_ticks[-1])))
    parts = [*_axes(box, x_ticks, y_ticks, x_name, shares)]
    if level is not None:
        y = box.y(level.value)
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="levelname" x="{_WIDTH - _RIGHT}" y="{y - 4:.1f}">{_safe(level.name)}</text>')
    for position, (line, points) in enumerate(zip(series, lines, strict=True)):
        parts += _line(box, position % TONES, line, points)
    descriptions = [f"{line.name} {_told(points, shares)}" for line, points in zip(series, lines, strict=True)]
    return _svg("chart", _WIDTH, _HEIGHT, f"{title}: {'; '.join(descriptions)}", parts)


def reliability(title: str, judged: Calibration) -> Markup:
    """Accuracy over confidence, and underneath how many answers each bin holds; empty without answers."""
    if not judged.answers or judged.error is None:
        return Markup()
    left, top, size, low = 46, 12, 220, 46
    parts, most = [], max(part.count for part in judged.bins)
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y, x = top + size * (1 - tick), left + size * tick
        parts.append(f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick end" x="{left - 6}" y="{y + 4:.1f}">{100 * tick:.0f} %</text>')
        parts.append(f'<text class="tick mid" x="{x:.1f}" y="{top + size + low + 16}">{100 * tick:.0f} %</text>')
    for part in judged.bins:
        x, width = left + size * part.low + 1, max(size * (part.high - part.low) - 2, 1)
        height, share = size * part.accuracy, part.count / most
        description = (
            f"confidence {percent(part.low)} to {percent(part.high)}: {part.count} answers, "
            f"{percent(part.confidence)} sure on average, {percent(part.accuracy)} right"
        )
        parts.append(f"<g><title>{_safe(description)}</title>")
        expected = size * part.confidence
        solid, reach = min(height, expected), abs(expected - height)
        parts.append(_rect("right", x, top + size - solid, width, solid))
        parts.append(_rect("over" if expected > height else "under", x, top + size - solid - reach, width, reach))
        parts.append(_rect("count", x, top + size + 6, width, (low - 12) * share))
        parts.append("</g>")
    parts.append(f'<line class="level" x1="{left}" y1="{top + size}" x2="{left + size}" y2="{top}"/>')
    parts.append(f'<text class="tick mid" x="{left + size / 2:.0f}" y="{top + size + low + 32}">confidence</text>')
    label = f"{title}. Expected calibration error {percent(judged.error)} over {judged.answers} answers."
    return _svg("chart square", left + size + 20, top + size + low + 38, label, parts)


def change_bar(name: str, before: float, after: float) -> Markup:
    """From one figure in [0, 1] to another: a thin ring for the first, an arrow-like bar to the second."""
    start, end = 4 + 112 * before, 4 + 112 * after
    kind = "up" if after > before else "down" if after < before else "same"
    parts = [
        '<line class="rail" x1="4" x2="116" y1="8" y2="8"/>',
        f'<line class="{kind}" x1="{start:.1f}" x2="{end:.1f}" y1="8" y2="8"/>',
        f'<circle class="before" cx="{start:.1f}" cy="8" r="3"/>',
        f'<circle class="after {kind}" cx="{end:.1f}" cy="8" r="3.6"/>',
    ]
    return _svg("change", 120, 16, f"{name}: from {percent(before)} to {percent(after)}", parts)


def heat_map(title: str, confusion: Confusion) -> Markup:
    """A confusion matrix, each row in shares of itself, at a size at which its texts can be read."""
    names, size = confusion.names, len(confusion.names)
    cell = 26 if size <= 20 else 20 if size <= 32 else 16
    longest = max(map(len, names))
    left = 14 + min(max(6.3 * longest, 40), 190)
    top = 14 + min(max(4.9 * longest, 34), 150)
    width, height = left + cell * size + 0.5 * top + 10, top + cell * size + 24
    parts = [_rect("ground", left, top, cell * size, cell * size)]
    for index, name in enumerate(names):
        middle = cell * (index + 0.5)
        shown = _safe(_cut(name, 30))
        parts.append(f'<text class="tick end" x="{left - 6:.1f}" y="{top + middle + 4:.1f}">{shown}</text>')
        place = f"translate({left + middle + 3:.1f} {top - 6:.1f}) rotate(-50)"
        parts.append(f'<text class="tick" transform="{place}">{shown}</text>')
    for row, column in itertools.product(range(size), repeat=2):
        share, count = confusion.shares[row][column], confusion.counts[row][column]
        if not share:
            continue
        description = f"true {names[row]}, answered {names[column]}: {quantity(count)} ({percent(share)})"
        kind = "hit" if row == column else "miss"
        x, y = left + cell * column, top + cell * row
        parts.append(f"<g><title>{_safe(description)}</title>")
        parts.append(_rect(kind, x, y, cell, cell, f' fill-opacity="{0.12 + 0.88 * share:.2f}"'))
        if cell >= 20 and share >= 0.005:
            ink = " on" if share > 0.5 else ""
            at = f'x="{x + cell / 2:.1f}" y="{y + cell / 2 + 3.5:.1f}"'
            parts.append(f'<text class="cell{ink}" {at}>{100 * share:.0f}</text>')
        parts.append("</g>")
    for index in range(size + 1):
        offset = cell * index
        lines = f"M{left:.1f} {top + offset:.1f}h{cell * size}M{left + offset:.1f} {top:.1f}v{cell * size}"
        parts.append(f'<path class="grid" d="{lines}"/>')
    parts.append(f'<text class="tick" x="{left:.1f}" y="{height - 6:.1f}">rows: true · columns: answered · in %</text>')
    return _svg("confusion", width, height, title, parts, fixed=True)


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers that cover a range, at most about `most` + 1 of them."""
    if not high > low:
        reach = abs(low) * 0.1 or 1.0
        low, high = low - reach, high + reach
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thinned(points: Sequence[tuple[float, float]], most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most `most` points: means of equal parts."""
    span = max(1, -(-len(points) // most))
    if span == 1:
        return list(points)
    parts = [points[begin : begin + span] for begin in range(0, len(points), span)]
    return [(sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in parts]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A moving average over a fifteenth of the points, centred, narrower at both ends."""
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    half, result = len(points) // 30, []
    for index, (x, _) in enumerate(points):
        begin, end = max(0, index - half), min(len(points), index + half + 1)
        result.append((x, (sums[end] - sums[begin]) / (end - begin)))
    return result


def quantity(value: float) -> str:
    """A count for people; a clip with several labels counts as a part in several rows."""
    return f"{value:.2f}".rstrip("0").rstrip(".")


@dataclass(frozen=True)
class _Box:
    """Where numbers lie on the drawing."""

    across: tuple[float, float]
    up: tuple[float, float]

    def x(self, value: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * _part(value, self.across)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * _part(value, self.up)


def _part(value: float, ends: tuple[float, float]) -> float:
    low, high = ends
    return (min(max(value, low), high) - low) / (high - low) if high > low else 0.5


def _ends(values: Sequence[float]) -> tuple[float, float]:
    return min(values), max(values)


def _axes(box: _Box, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, shares: bool) -> Iterator[str]:
    for tick in y_ticks:
        y = box.y(tick)
        text = f"{100 * tick:.3g} %" if shares else f"{tick:.3g}"
        yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="tick end" x="{_LEFT - 6}" y="{y + 4:.1f}">{text}</text>'
    for tick in x_ticks:
        yield f'<text class="tick mid" x="{box.x(tick):.1f}" y="{_HEIGHT - _BOTTOM + 15}">{tick:.6g}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text class="tick mid" x="{middle:.0f}" y="{_HEIGHT - 5}">{_safe(x_name)}</text>'


def _line(box: _Box, tone: int, line: Series, points: Sequence[tuple[float, float]]) -> Iterator[str]:
    if not points:
        return
    yield f'<g class="t{tone}"><title>{_safe(line.name)}</title>'
    if line.smooth and len(points) > 2:
        yield f'<path class="faint" d="{_path(box, thinned(points))}"/>'
        yield f'<path class="line" d="{_path(box, thinned(smoothed(points)))}"/>'
    else:
        drawn = thinned(points)
        yield f'<path class="line" d="{_path(box, drawn)}"/>'
        if len(drawn) <= 60:
            yield "".join(f'<circle class="dot" cx="{box.x(x):.1f}" cy="{box.y(y):.1f}" r="2"/>' for x, y in drawn)
    if line.marked is not None and all(map(math.isfinite, line.marked)):
        x, y = box.x(line.marked[0]), box.y(line.marked[1])
        title = f"<title>{_safe(line.name)}: best</title>"
        yield f'<circle class="best" cx="{x:.1f}" cy="{y:.1f}" r="5.5">{title}</circle>'
    yield "</g>"


def _path(box: _Box, points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{box.x(x):.1f} {box.y(y):.1f}" for x, y in points)


def _told(points: Sequence[tuple[float, float]], shares: bool) -> str:
    if not points:
        return "none"
    first, last = (percent(y) if shares else f"{y:.3g}" for _, y in (points[0], points[-1]))
    return f"from {first} to {last}"


def _rect(kind: str, x: float, y: float, width: float, height: float, more: str = "") -> str:
    return f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"{more}/>'


def _safe(text: str) -> Markup:
    # Names come from others: neither markup nor control characters.
    return escape(printable(text))


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _svg(kind: str, width: float, height: float, label: str, parts: Sequence[str], *, fixed: bool = False) -> Markup:
    # Everything from others in `parts` was escaped where it was put in.
    size = f' width="{width:.0f}" height="{height:.0f}"' if fixed else ""
    label_text = _safe(label)
    head = f'<svg class="{kind}" viewBox="0 0 {width:.0f} {height:.0f}"{size} role="img" aria-label="{label_text}">'
    return Markup(f"{head}<title>{label_text}</title>{''.join(parts)}</svg>")
