"""`avfs compare --ablate`: DG-SCT trained with parts of it, a row each (Tables 5, 8, 9 and Fig. 8 of the paper)."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from avfewshot.config import NONE, TrainingConfig
from avfewshot.evaluation.results import Comparison
from avfewshot.reports.charts import Series, line_chart
from avfewshot.reports.figures import metric_title

_FACTORS = ("alpha", "beta", "gamma")
SWEEP = (0.0, 0.01, 0.05, 0.1, 0.2, 0.5)  # values of each factor; the paper's own are among them
FROZEN = "zero-shot"
NO_ADAPTER = "none"  # the paper's "-", which a spreadsheet would read as a formula
TITLES = {
    "modules": "spatial (S), channel (C) and temporal (T) attention",
    "directions": "directions of the exchange",
    "factors": "factors alpha, beta, gamma",
}


def ablation_rows(kind: str, base: TrainingConfig) -> dict[str, dict[str, Any]]:
    """What each row sets otherwise than `base`; the last one is `base` itself."""
    rows: dict[str, dict[str, Any]] = {}
    if kind != "factors":  # projectors alone
        rows[NO_ADAPTER] = {"adapter": NONE}
    if kind == "modules":
        for name in ("C", "S", "SC", "T", "SCT"):
            rows[name] = {"spatial": "S" in name, "channel": "C" in name, "temporal": "T" in name}
    elif kind == "directions":
        rows |= {"A2V": {"a2v": True, "v2a": False}, "V2A": {"a2v": False, "v2a": True}, "both": {}}
    else:
        for factor in _FACTORS:
            values = (value for value in SWEEP if value != getattr(base, factor))
            rows |= {f"{factor} {value:g}": {factor: value} for value in values}
        rows[" ".join(f"{factor} {getattr(base, factor):g}" for factor in _FACTORS)] = {}
    return rows


def sweep_chart(comparison: Comparison, base: TrainingConfig) -> tuple[Markup, list[str]]:
    """A line for each factor over its values, the others as in `base` (Fig. 8); and what the lines are called."""

    def figure(row: str) -> float:
        value = comparison.cells[row][comparison.headline].value
        return float("nan") if value is None else value

    lines = []
    for factor in _FACTORS:
        points = {value: figure(f"{factor} {value:g}") for value in SWEEP if value != getattr(base, factor)}
        points[getattr(base, factor)] = figure(comparison.systems[-1])
        lines.append(Series(factor, sorted(points.items())))
    title = f"{metric_title(comparison.headline)} over factors"
    return line_chart(title, lines, x_name="factor", shares=True, level=(figure(FROZEN), FROZEN)), list(_FACTORS)
