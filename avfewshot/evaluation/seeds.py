"""Mean and 95 % interval over runs with different seeds (Student's t).

Such an interval says how much training and the drawn supports vary, on fixed test clips; the bootstrap says how much
the choice of test clips does. They answer different questions, so an estimate names its kind.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.stats import t as student_t

from avfewshot.evaluation.comparison import Comparison, Difference
from avfewshot.evaluation.estimate import CONFIDENCE, Estimate
from avfewshot.evaluation.result import TaskResult


def over_seeds(values: Sequence[float | None]) -> Estimate:
    """Mean of a figure over runs, and the t-interval of the mean.

    Args:
        values: The figure of each run.

    Returns:
        The estimate: ``mean -+ t(0.975, n - 1) sd / sqrt(n)``, not clipped to possible values. No interval for one
        run; no value where a run has none.

    Raises:
        ValueError: There are no runs.
    """
    if not values:
        raise ValueError("There are no runs.")
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Estimate(None, n=len(values), values=tuple(known))
    mean = math.fsum(known) / len(known)
    if len(known) == 1:
        return Estimate(mean, n=1, values=tuple(known))
    reach = student_t.ppf((1 + CONFIDENCE) / 2, len(known) - 1) * np.std(known, ddof=1) / math.sqrt(len(known))
    return Estimate(mean, float(mean - reach), float(mean + reach), n=len(known), interval="seeds", values=tuple(known))


def average_results(results: Sequence[TaskResult]) -> dict[str, Estimate]:
    """The figures of one system over runs.

    Args:
        results: One for each run, of the same task and on equally many clips.

    Returns:
        Metric name -> mean with its t-interval, for the metrics that all results have.

    Raises:
        ValueError: There are none, or they do not belong together.
    """
    _check_same((result.task, result.num_clips) for result in results)
    shared = [name for name in results[0].metrics if all(name in result.metrics for result in results)]
    return {name: over_seeds([result.metrics[name].value for result in results]) for name in shared}


def average_comparisons(comparisons: Sequence[Comparison]) -> Comparison:
    """One table over runs.

    A system that does the same in every run, such as one without training, keeps its bootstrap interval: over seeds it
    has none. So does the difference of two such systems.

    Args:
        comparisons: One for each run, of the same task, systems and metrics, on equally many clips.

    Returns:
        The table; that of the only run if there is but one.

    Raises:
        ValueError: There are none, or they do not belong together.
    """
    _check_same((table.task, table.systems, table.metrics, table.num_clips) for table in comparisons)
    first = comparisons[0]
    if len(comparisons) == 1:
        return first
    fixed = {
        system
        for system in first.systems
        if all(
            table.cells[system][metric].value == first.cells[system][metric].value
            for table in comparisons
            for metric in first.metrics
        )
    }
    cells = {
        system: {
            metric: first.cells[system][metric]
            if system in fixed
            else over_seeds([table.cells[system][metric].value for table in comparisons])
            for metric in first.metrics
        }
        for system in first.systems
    }
    differences = tuple(
        found
        if {found.system, found.reference} <= fixed
        else Difference(
            found.system,
            found.reference,
            found.metric,
            over_seeds(
                [table.difference(found.system, found.reference, found.metric).estimate.value for table in comparisons]
            ),
        )
        for found in first.differences
    )
    return Comparison(
        task=first.task,
        headline=first.headline,
        num_clips=first.num_clips,
        systems=first.systems,
        metrics=first.metrics,
        cells=cells,
        differences=differences,
        replicates=first.replicates,
        seed=first.seed,
    )


def _check_same(identities: Iterable[object]) -> None:
    found = list(identities)
    if not found:
        raise ValueError("There are no runs.")
    if any(identity != found[0] for identity in found):
        raise ValueError(f"Runs do not belong together: {'; '.join(map(str, dict.fromkeys(found)))}.")
