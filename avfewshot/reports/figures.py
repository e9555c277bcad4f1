"""Figures for people: how numbers, intervals and differences are written, and what they are over."""

from __future__ import annotations

from collections.abc import Sequence

from avfewshot.evaluation.results import FEW_CLIPS, Comparison, Difference, Estimate
from avfewshot.evaluation.tasks import METRICS
from avfewshot.reports.text import percent

NONE = "–"  # stands for a figure that is not defined
COUNTED = 10  # of fewer test clips their number is told: "2 of 2" promises less than "100.0 %"


def main_systems(comparison: Comparison) -> tuple[str, str | None]:
    """The system that a run is about and the one that it started from: the last one and the one before it."""
    systems = comparison.systems
    return systems[-1], systems[-2] if len(systems) > 1 else None


def verdict(difference: Difference) -> tuple[str, str]:
    """What a difference means: ``gain``, ``loss``, ``unclear`` or ``unknown``, and a sentence in plain language."""
    estimate = difference.estimate
    pair = f"“{difference.system}” and “{difference.reference}”"
    if estimate.value is None:
        return ("unknown", f"{pair} cannot be compared: the figure is not defined for both.")
    points = f"{100 * abs(estimate.value):.1f} percentage points"
    side = "above" if estimate.value > 0 else "below"
    text = f"“{difference.system}” lies {points} {side} “{difference.reference}”"
    if estimate.value == 0:
        text = f"{pair} are equal"
    if estimate.low is None or estimate.high is None:
        return ("unknown", f"{text}. Without an interval nobody can tell whether that is more than chance.")
    basis = f"{estimate.n} {'training runs' if estimate.interval == 'seeds' else 'test clips'}"
    text += f" (95 % interval of the difference: {signed(estimate.low)} to {signed(estimate.high)}, over {basis}). "
    if not difference.clear:
        return ("unclear", f"{text}The interval includes zero: from these {basis} the difference is not clear.")
    if estimate.low > 0:
        return ("gain", f"{text}The interval lies above zero: a clear gain.")
    return ("loss", f"{text}The interval lies below zero: a clear loss.")


def basis(comparison: Comparison, metrics: Sequence[str] = ()) -> str:
    """What the intervals of a table are over, for people; of a table of some `metrics` alone."""
    shown = metrics or comparison.metrics
    cells = [row[metric] for row in comparison.cells.values() for metric in shown]
    runs = max((cell.n for cell in cells if cell.interval == "seeds"), default=0)
    kinds = {cell.interval for cell in cells}
    resampled = not kinds.isdisjoint(("bootstrap", "wilson"))
    clips = f"{comparison.num_clips} test clip{'' if comparison.num_clips == 1 else 's'}"
    few = ""
    if comparison.num_clips < FEW_CLIPS:
        few = f"Only {clips}: one clip moves a figure by {100 / comparison.num_clips:.0f} points. "
    if runs:
        text = f"Means over {runs} training runs with other seeds; 95 % intervals over runs and {clips} together."
        if resampled:
            text += (
                " What is of one run, or the same in every run as without training, has its interval over clips alone."
            )
        return few + text
    if resampled and "bootstrap" not in kinds:
        return few + f"95 % intervals by Wilson's score over {clips}."
    if resampled:
        wilson = ", by Wilson's score where those are too few or all alike" if "wilson" in kinds else ""
        return few + f"95 % intervals over {comparison.replicates} resamples of the {clips}{wilson}."
    return few + f"On {clips}, without intervals."


def metric_title(name: str) -> str:
    """What a metric is called."""
    return METRICS[name].title if name in METRICS else name


def metric_description(name: str) -> str:
    """What a metric means."""
    return METRICS[name].description if name in METRICS else ""


def share(value: float | None) -> str:
    """A fraction for people, for example ``52.4 %``."""
    return NONE if value is None else percent(value)


def points(value: float | None) -> str:
    """A fraction in percent without the sign, for the cells of a table."""
    return NONE if value is None else f"{100 * value:.1f}"


def counted(estimate: Estimate, comparison: Comparison) -> str | None:
    """A share of fewer than :data:`COUNTED` clips by their number, for example ``2 of 2``; None for other figures.

    None too in a table with means over runs, where a column of both would be no help.
    """
    kinds = {row[comparison.headline].interval for row in comparison.cells.values()}
    if estimate.value is None or estimate.interval != "wilson" or estimate.n >= COUNTED or kinds != {"wilson"}:
        return None
    right = round(estimate.value * estimate.n)
    return f"{right} of {estimate.n}" if abs(right - estimate.value * estimate.n) < 1e-6 else None


def headline(estimate: Estimate, comparison: Comparison) -> str:
    """A figure of a table that stands alone: ``52.4 %``, or as :func:`counted`."""
    return counted(estimate, comparison) or share(estimate.value)


def cell(estimate: Estimate, comparison: Comparison) -> str:
    """A figure in a cell of a table in percent: ``52.4``, or as :func:`counted`."""
    return counted(estimate, comparison) or points(estimate.value)


def signed(value: float) -> str:
    """A difference of fractions in percentage points, for example ``+3.1``; nothing has no sign."""
    text = f"{100 * value:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def difference(estimate: Estimate) -> tuple[str, str]:
    """A difference and its interval in percentage points, for example ``+3.1`` and ``+0.4 to +5.9``, if it has one."""
    if estimate.value is None:
        return NONE, ""
    ends = [signed(end) for end in (estimate.low, estimate.high) if end is not None]
    return signed(estimate.value), " to ".join(ends)


def interval(estimate: Estimate) -> str:
    """The interval of a figure, for example ``49.1–55.6``; empty without one."""
    if estimate.low is None or estimate.high is None:
        return ""
    low, high = points(estimate.low), points(estimate.high)
    return f"{low}–{high}" if estimate.low >= 0 else f"{low} to {high}".replace("-", "−")
