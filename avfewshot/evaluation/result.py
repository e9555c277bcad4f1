"""What an evaluation of one system returns: plain, immutable data with a stable JSON form (docs/metrics.md)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from avfewshot.errors import DataError
from avfewshot.evaluation.background import BackgroundRule
from avfewshot.evaluation.estimate import VERSION, Estimate, check_version, estimate_from, known, plain


@dataclass(frozen=True)
class ClassRow:
    """A class in the per-class table; figures that are not defined are None.

    Attributes:
        name: The class.
        support: Clips (seconds for ``ave``) that carry it.
        answered: Clips (seconds) for which it was the answer.
        precision: Share of its answers that are right.
        recall: Share of its clips for which it was the answer.
        f1: Harmonic mean of both.
        average_precision: Of the ranking by its probability.
    """

    name: str
    support: int
    answered: int
    precision: float | None
    recall: float | None
    f1: float | None
    average_precision: float | None


@dataclass(frozen=True)
class CalibrationBin:
    """Answers of similar confidence, ``low < confidence <= high``."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """How far the probabilities can be trusted.

    Attributes:
        error: Expected calibration error, None without answers.
        answers: Answers with a probability: a second called background by a threshold has none.
        bins: The bins that hold any.
    """

    error: float | None
    answers: int
    bins: tuple[CalibrationBin, ...]


@dataclass(frozen=True)
class Reference:
    """A figure to measure a system against, computed from the same targets.

    Attributes:
        key: Stable name.
        title: For people.
        values: Metric name -> fraction.
        classes: The classes that it is about, if any.
    """

    key: str
    title: str
    values: dict[str, float]
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class TaskResult:
    """One system on one task.

    Attributes:
        task: Name of the task.
        system: Name of the system.
        headline: The metric that stands for the task.
        num_clips: Clips evaluated.
        num_segments: Seconds evaluated, for tasks that label seconds.
        metrics: By name, in the order of a table; :data:`avfewshot.evaluation.tasks.METRICS` describes them.
        classes: The per-class table, background last where the task has it.
        confusion: Rows true, columns answered, in the order of `classes`.
        calibration: Of the answers.
        baselines: What trivial answers reach.
        ceilings: What cannot be exceeded, and why.
        background: The rule that told background from events, for tasks that label seconds.
        label_threshold: The probability from which on a clip was said to carry a class, where sets were judged.
        replicates: Bootstrap samples behind the intervals.
        seed: Seed of the bootstrap and of drawn targets.
    """

    task: str
    system: str
    headline: str
    num_clips: int
    num_segments: int | None
    metrics: dict[str, Estimate]
    classes: tuple[ClassRow, ...]
    confusion: tuple[tuple[float, ...], ...]
    calibration: Calibration
    baselines: tuple[Reference, ...]
    ceilings: tuple[Reference, ...]
    background: BackgroundRule | None = None
    label_threshold: float | None = None
    replicates: int = 0
    seed: int = 0

    @property
    def score(self) -> float | None:
        """Value of the headline metric."""
        return self.metrics[self.headline].value

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values, all numbers finite; docs/metrics.md describes the keys."""
        return {"version": VERSION, **plain(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> TaskResult:
        """The result of a dictionary that :meth:`to_dict` made.

        Raises:
            DataError: It is of another version, or no such dictionary.
        """
        check_version(record)
        try:
            fields = known(cls, record)
            fields["metrics"] = {name: estimate_from(value) for name, value in fields["metrics"].items()}
            fields["classes"] = tuple(ClassRow(**known(ClassRow, row)) for row in fields["classes"])
            fields["confusion"] = tuple(tuple(row) for row in fields["confusion"])
            judged = known(Calibration, fields["calibration"])
            judged["bins"] = tuple(CalibrationBin(**known(CalibrationBin, part)) for part in judged["bins"])
            fields["calibration"] = Calibration(**judged)
            for name in ("baselines", "ceilings"):
                entries = [known(Reference, entry) for entry in fields[name]]
                fields[name] = tuple(Reference(**{**entry, "classes": tuple(entry["classes"])}) for entry in entries)
            if fields.get("background") is not None:
                fields["background"] = BackgroundRule(**known(BackgroundRule, fields["background"]))
            return cls(**fields)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DataError(f"Not the result of an evaluation: {error}.") from error
