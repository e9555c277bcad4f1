"""What an evaluation returns: figures of one system, and several systems side by side; with a stable JSON form.

``TaskResult`` and ``Comparison`` are pydantic models: ``model_dump(mode="json")`` gives, and ``model_validate`` reads,
the JSON form of version 1, which docs/metrics.md describes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from avfewshot.evaluation.targets import BackgroundRule

CONFIDENCE = 0.95
"""Confidence of every interval."""

FEW_CLIPS = 20
"""Below so many test clips no headline stands without a word about how few they are."""

IntervalKind = Literal["bootstrap", "wilson", "seeds"]


def finite(value: Any) -> float | None:
    """`value` as a float, or None where it is missing or not finite (JSON has no NaN)."""
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval; all numbers are finite."""

    value: float | None  # a fraction (0.524, not 52.4); None where it is not defined
    low: float | None = None
    high: float | None = None
    n: int = 0  # what the interval is over: clips, or runs for "seeds"
    interval: IntervalKind | None = None  # over resampled clips, Wilson's, over runs and clips, or none
    values: tuple[float, ...] = ()  # of the single runs, for "seeds"

    def __post_init__(self) -> None:
        for value in (self.value, self.low, self.high, *self.values):
            if value is not None and not math.isfinite(value):
                raise ValueError(f"A result holds {value}.")

    def negated(self) -> Estimate:
        """The same difference, seen from the other side."""
        value, low, high = (None if end is None else 0.0 - end for end in (self.value, self.low, self.high))
        return dataclasses.replace(self, value=value, low=high, high=low, values=tuple(0.0 - v for v in self.values))


@dataclass(frozen=True)
class ClassRow:
    """A class in the per-class table; figures that are not defined are None."""

    name: str
    support: int  # clips (seconds for `ave`) that carry it
    answered: int  # clips (seconds) for which it was the prediction
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions of similar confidence, ``low < confidence <= high``."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities can be trusted."""

    error: float | None  # expected calibration error, None without predictions
    answers: int  # predictions with a probability: a second called background by a threshold has none
    bins: tuple[CalibrationBin, ...]  # those that hold any


@dataclass(frozen=True)
class Reference:
    """A figure to measure a system against, computed from the same targets."""

    key: str
    title: str
    values: dict[str, float]  # metric -> fraction
    classes: tuple[str, ...] = ()  # those that it is about, if any


@dataclass(frozen=True)
class Difference:
    """How much better `system` is than `reference`, on the same clips."""

    system: str
    reference: str
    metric: str
    estimate: Estimate  # of the difference itself: paired

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        low, high = self.estimate.low, self.estimate.high
        return low is not None and high is not None and (low > 0 or high < 0)


class _Record(BaseModel):
    # A later release of the same version may have added keys.
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    version: Literal[1] = 1


class TaskResult(_Record):
    """One system on one task."""

    task: str
    system: str
    headline: str  # the metric that stands for the task
    num_clips: int
    num_segments: int | None  # seconds evaluated, for tasks that label seconds
    metrics: dict[str, Estimate]  # in the order of a table; avfewshot.evaluation.tasks.METRICS describes them
    classes: tuple[ClassRow, ...]  # background last where the task has it
    confusion: tuple[tuple[float, ...], ...]  # rows true, columns predicted, in the order of `classes`
    calibration: Calibration
    baselines: tuple[Reference, ...]
    ceilings: tuple[Reference, ...]
    background: BackgroundRule | None = None  # what told background from events, for tasks that label seconds
    label_threshold: float | None = None  # probability from which on a clip was said to carry a class (their mean)
    replicates: int = 0  # bootstrap samples behind the intervals
    seed: int = 0  # of the bootstrap and of drawn targets

    @property
    def score(self) -> float | None:
        """Value of the headline metric."""
        return self.metrics[self.headline].value


class Comparison(_Record):
    """Systems on the same clips: a table with a row a system and a column a metric."""

    task: str
    headline: str
    num_clips: int
    systems: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: dict[str, dict[str, Estimate]]  # system -> metric -> figure
    differences: tuple[Difference, ...] = Field(repr=False)  # of every pair, the later system minus the earlier one
    replicates: int = 0
    seed: int = 0
    draws: dict[str, dict[str, tuple[float | None, ...]]] = Field(default={}, repr=False)
    """System -> metric -> the figure on each resample of the clips: what intervals over several runs are made of.

    The resamples are the same ones for all systems, and for all runs on equally many clips.
    """

    def only(self, systems: Collection[str]) -> Comparison:
        """The same table with some of its systems."""
        kept = tuple(name for name in self.systems if name in systems)
        pairs = (found for found in self.differences if {found.system, found.reference} <= set(kept))
        return self.model_copy(
            update={
                "systems": kept,
                "cells": {name: self.cells[name] for name in kept},
                "differences": tuple(pairs),
                "draws": {name: draws for name, draws in self.draws.items() if name in kept},
            }
        )

    def difference(self, system: str, reference: str, metric: str | None = None) -> Difference:
        """How much better one system is than another, by a metric or the headline; else a :class:`KeyError`."""
        metric = self.headline if metric is None else metric
        for found in self.differences:
            if found.metric == metric and {found.system, found.reference} == {system, reference}:
                same = found.system == system
                return found if same else Difference(system, reference, metric, found.estimate.negated())
        raise KeyError(f"No {metric!r} of {system!r} and {reference!r}; systems: {', '.join(self.systems)}.")
