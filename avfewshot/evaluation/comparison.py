"""Several systems on the same clips: figures side by side and paired differences."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from avfewshot.errors import DataError
from avfewshot.evaluation.estimate import VERSION, Estimate, check_version, estimate_from, known, plain


@dataclass(frozen=True)
class Difference:
    """How much better `system` is than `reference`, on the same clips.

    Attributes:
        system: The one.
        reference: The other.
        metric: Name of the metric.
        estimate: Figure of `system` minus figure of `reference`, with the interval of the difference.
    """

    system: str
    reference: str
    metric: str
    estimate: Estimate

    @property
    def clear(self) -> bool:
        """Whether the interval excludes zero."""
        low, high = self.estimate.low, self.estimate.high
        return low is not None and high is not None and (low > 0 or high < 0)

    def reversed(self) -> Difference:
        """The same seen from the other side."""
        estimate = dataclasses.replace(
            self.estimate,
            value=_minus(self.estimate.value),
            low=_minus(self.estimate.high),
            high=_minus(self.estimate.low),
            values=tuple(_minus(value) for value in self.estimate.values),
        )
        return Difference(self.reference, self.system, self.metric, estimate)


@dataclass(frozen=True)
class Comparison:
    """Systems on the same clips: a table with a row a system and a column a metric.

    Attributes:
        task: Name of the task.
        headline: The metric that stands for the task.
        num_clips: Clips evaluated.
        systems: Rows, in the order in which they were given.
        metrics: Columns.
        cells: System -> metric -> figure.
        differences: Of every pair of systems, the later one minus the earlier one.
        replicates: Bootstrap samples behind the intervals.
        seed: Seed of the bootstrap and of drawn targets.
    """

    task: str
    headline: str
    num_clips: int
    systems: tuple[str, ...]
    metrics: tuple[str, ...]
    cells: dict[str, dict[str, Estimate]]
    differences: tuple[Difference, ...] = field(repr=False)
    replicates: int = 0
    seed: int = 0

    def difference(self, system: str, reference: str, metric: str | None = None) -> Difference:
        """How much better one system is than another.

        Args:
            system: The one.
            reference: The other.
            metric: Name of the metric; None: the headline.

        Raises:
            KeyError: A name is unknown, or both are the same system.
        """
        metric = self.headline if metric is None else metric
        for found in self.differences:
            if found.metric == metric and {found.system, found.reference} == {system, reference}:
                return found if found.system == system else found.reversed()
        raise KeyError(f"No {metric!r} of {system!r} and {reference!r}; systems: {', '.join(self.systems)}.")

    def to_dict(self) -> dict[str, Any]:
        """The table as JSON-ready values, all numbers finite; docs/metrics.md describes the keys."""
        return {"version": VERSION, **plain(self)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Comparison:
        """The table of a dictionary that :meth:`to_dict` made.

        Raises:
            DataError: It is of another version, or no such dictionary.
        """
        check_version(record)
        try:
            fields = known(cls, record)
            for name in ("systems", "metrics"):
                fields[name] = tuple(fields[name])
            fields["cells"] = {
                system: {name: estimate_from(value) for name, value in row.items()}
                for system, row in fields["cells"].items()
            }
            fields["differences"] = tuple(
                Difference(**{**known(Difference, entry), "estimate": estimate_from(entry["estimate"])})
                for entry in fields["differences"]
            )
            return cls(**fields)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise DataError(f"Not a comparison of systems: {error}.") from error


def _minus(value: float | None) -> float | None:
    return None if value is None else 0.0 - value  # not -0.0
