"""Charts as inline SVG, drawn here and not in the browser; ``charts.html.j2`` holds their forms."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
from markupsafe import Markup
from PIL import Image

from avfewshot.reports.html import environment
from avfewshot.reports.strip import marks
from avfewshot.reports.text import percent

TONES = 6  # line colours that report pages define (classes `t0` and following); they repeat after that

MOST_POINTS = 400  # points of a line; longer ones are averaged in equal parts, since a screen could not show more

_BOX = {"width": 360, "height": 230, "left": 46, "right": 348, "top": 12, "bottom": 192}


@dataclass(frozen=True)
class Series:
    """A line of a chart."""

    name: str
    points: Sequence[tuple[float, float]]  # (x, y), x ascending; those that are not finite are left out
    marked: tuple[float, float] | None = None  # a point to put a ring around
    smooth: bool = False  # draw a moving average, and the line itself faintly
    intervals: Sequence[tuple[float, float, float]] = ()  # (x, low, high)


def line_chart(
    title: str,
    series: Sequence[Series],
    *,
    x_name: str,
    level: tuple[float, str] | None = None,
    shares: bool = False,
    limits: tuple[float, float] | None = None,
    doubling: bool = False,
) -> Markup:
    """Lines over a common axis as ``<svg>``; empty where no line has a finite point.

    Colours go by position: the same position in another chart has the same colour. Heights that are `shares` are
    labelled in percent; `level` is a dashed line: its height, and what it stands for; `limits` are the lowest and
    highest height where charts stand side by side. With `doubling` the axis across is one of logarithms, with a tick
    at each x. Lines with intervals stand a little beside each other, so that these can be told apart.
    """
    lines = [[point for point in line.points if all(map(math.isfinite, point))] for line in series]
    across, up = ([point[axis] for line in lines for point in line] for axis in (0, 1))
    if not across:
        return Markup()
    up += [y for line in series for _, *ends in line.intervals for y in ends]
    low, high = limits or (min(heights := [*up, *([level[0]] if level else [])]), max(heights))
    y_ticks = ticks(low, high)
    x_ticks = sorted(set(across)) if doubling else ticks(min(across), max(across), most=6)
    if all(x == int(x) for x in across):  # epochs, steps
        x_ticks = [tick for tick in x_ticks if tick == int(tick)]
    low, high = min(low, y_ticks[0]), max(high, y_ticks[-1])
    first, last = min(*across, *x_ticks), max(*across, *x_ticks)
    if doubling:
        first, last = first / 1.3, last * 1.3
    along = math.log2 if doubling else float
    begin, end = along(first), along(last)

    def placed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
        width, height = _BOX["right"] - _BOX["left"], _BOX["bottom"] - _BOX["top"]
        return [
            (
                _BOX["left"] + width * _part(along(x), begin, end),
                _BOX["bottom"] - height * _part(y, low, high),
            )
            for x, y in points
        ]

    drawn, told = [], []
    for position, (line, points) in enumerate(zip(series, lines, strict=True)):
        ends = [percent(y) if shares else f"{y:.3g}" for _, y in (*points[:1], *points[-1:])]
        told.append(f"{line.name} from {ends[0]} to {ends[1]}" if ends else f"{line.name} none")
        smooth = line.smooth and len(points) > 2
        drawn.append(
            {
                "name": line.name,
                "tone": position % TONES,
                "points": placed(thinned(points)),
                "smooth": placed(thinned(smoothed(points))) if smooth else (),
                "intervals": [placed([(x, low), (x, high)]) for x, low, high in line.intervals],
                "shift": 3.5 * (position - (len(series) - 1) / 2) if any(one.intervals for one in series) else 0.0,
                "marked": placed([line.marked])[0] if line.marked and all(map(math.isfinite, line.marked)) else (),
            }
        )
    return drawing(
        "line_chart",
        f"{title}: {'; '.join(told)}",
        _BOX,
        [(placed([(tick, low)])[0][0], f"{tick:.6g}") for tick in x_ticks],
        [(placed([(first, tick)])[0][1], f"{100 * tick:.3g} %" if shares else f"{tick:.3g}") for tick in y_ticks],
        x_name,
        (placed([(first, level[0])])[0][1], level[1]) if level else (),
        drawn,
    )


def _part(value: float, low: float, high: float) -> float:
    return (min(max(value, low), high) - low) / (high - low) if high > low else 0.5


def scatter(title: str, points: Sequence[tuple[float, float]], names: Sequence[str]) -> Markup:
    """Points in the plane, each with the letter and the colour of its name, and a key; no axes, as for t-SNE."""
    side = 420
    (left, right), (low, high) = ((min(axis), max(axis)) for axis in zip(*points, strict=True))
    places = [
        (12 + (side - 24) * _part(x, left, right), side - 12 - (side - 24) * _part(y, low, high)) for x, y in points
    ]
    shown = marks(sorted(set(names)))
    label = f"{title}: {len(points)} clips of {len(shown)} classes"
    return drawing("scatter", label, side, [(shown[n], n, *at) for n, at in zip(names, places, strict=True)], shown)


def drawing(kind: str, *values: object) -> Markup:
    """What a macro of the template gives."""
    return getattr(environment().get_template("charts.html.j2").module, kind)(*values)


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


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most :data:`MOST_POINTS` points: means of equal parts."""
    span = max(1, -(-len(points) // MOST_POINTS))
    parts = (points[begin : begin + span] for begin in range(0, len(points), span))
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts]


def smoothed(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """A moving average over a fifteenth of the points, centred, narrower at both ends."""
    sums = [0.0, *itertools.accumulate(y for _, y in points)]
    half, result = len(points) // 30, []
    for index, (x, _) in enumerate(points):
        begin, end = max(0, index - half), min(len(points), index + half + 1)
        result.append((x, (sums[end] - sums[begin]) / (end - begin)))
    return result


# Matplotlib's "inferno" (CC0) at nine places: its lightness grows evenly, so it reads without colours as well.
_RAMP = np.array([
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
], dtype=np.float64)  # fmt: skip
_FAINTEST, _STRONGEST = 0.35, 0.75
_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def heat_source(values: Sequence[Sequence[float]]) -> tuple[str, tuple[float, float]] | None:
    """A map ``[h][w]`` as ``data:image/png;base64,...`` with transparency, and its smallest and largest value.

    The faintest and the strongest colour stand for these two; numbers that are not finite count as the smallest. None
    for a map without a finite number.
    """
    heights = np.array([list(row) for row in values], dtype=np.float64, ndmin=2)
    finite = np.isfinite(heights)
    if not finite.any():
        return None
    low, high = float(heights[finite].min()), float(heights[finite].max())
    parts = np.where(finite, heights, low) - low
    if high > low:
        parts /= high - low
    place = parts * (len(_RAMP) - 1)
    whole = np.minimum(place.astype(int), len(_RAMP) - 2)
    rest = (place - whole)[..., None]
    pixels = np.empty((*parts.shape, 4))
    pixels[..., :3] = _RAMP[whole] * (1 - rest) + _RAMP[whole + 1] * rest
    pixels[..., 3] = 255 * (_FAINTEST + (_STRONGEST - _FAINTEST) * parts)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8), "RGBA").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), (low, high)


def is_picture(address: str) -> bool:
    """Whether an address holds a picture itself: a page that stands alone shows no other."""
    return _PICTURE.fullmatch(address) is not None
