"""From targets and predictions to results: one system, or several on the same clips."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix

from avfewshot.evaluation import bootstrap, measures
from avfewshot.evaluation.measures import Floats
from avfewshot.evaluation.references import answer_statistics, baselines, ceilings, class_names, required_segments
from avfewshot.evaluation.results import Calibration, ClassRow, Comparison, Difference, Estimate, TaskResult
from avfewshot.evaluation.targets import Predictions, Targets, decide_segments
from avfewshot.evaluation.tasks import METRICS, Task, find_task

_TOP = 5


def evaluate(
    task: str, targets: Targets, predictions: Predictions, *, system: str = "model", **options: Any
) -> TaskResult:
    """Judge one system; see :func:`evaluate_systems`."""
    return evaluate_systems(task, targets, {system: predictions}, **options)[0][system]


def evaluate_systems(
    task: str,
    targets: Targets,
    systems: Mapping[str, Predictions],
    *,
    replicates: int = bootstrap.REPLICATES,
    seed: int = 0,
) -> tuple[dict[str, TaskResult], Comparison]:
    """Judge several systems on the same clips; gives each one's result, and a table that compares each pair of them.

    All figures of all systems are computed on the same bootstrap samples of the clips, so the interval of a difference
    is a paired one: what is hard for both does not widen it. Without `replicates` there are no intervals. The table has
    the systems in the order given, and the figures that all have. Targets and predictions that do not belong together
    are a ValueError.
    """
    judged = find_task(task)
    counts = bootstrap.resample(targets.groups(), replicates, seed)
    trivial, bounds = baselines(judged, targets, seed=seed), ceilings(judged, targets)
    headline = judged.headline_for(targets.multi_label)
    results: dict[str, TaskResult] = {}
    values: dict[str, dict[str, tuple[float, Floats]]] = {}
    for name, system in systems.items():
        statistics, rows, confusion, calibration = _state(judged, targets, system, seed)
        values[name] = {
            key: (metric.value(), bootstrap.distribution(metric, counts)) for key, metric in statistics.items()
        }
        results[name] = TaskResult(
            task=task,
            system=name,
            headline=headline,
            num_clips=targets.num_clips,
            num_segments=required_segments(targets).size if judged.per_second else None,
            metrics={
                key: bootstrap.estimate(
                    *values[name][key], targets.num_clips, proportion=isinstance(metric, bootstrap.Ratio)
                )
                for key, metric in statistics.items()
            },
            classes=rows,
            confusion=tuple(map(tuple, confusion.tolist())),
            calibration=calibration,
            background=system.background,
            label_threshold=None if system.label_threshold is None else float(np.mean(system.label_threshold)),
            replicates=replicates,
            seed=seed,
            baselines=trivial,
            ceilings=bounds,
        )
    columns = tuple(metric for metric in METRICS if all(metric in result.metrics for result in results.values()))
    table = Comparison(
        task=task,
        headline=headline,
        num_clips=targets.num_clips,
        systems=tuple(systems),
        metrics=columns,
        cells={name: {metric: result.metrics[metric] for metric in columns} for name, result in results.items()},
        differences=(),
        replicates=replicates,
        seed=seed,
        draws={
            name: {metric: tuple(map(_rounded, found[metric][1])) for metric in columns}
            for name, found in values.items()
        },
    )

    def difference(later: str, earlier: str, metric: str) -> Estimate:
        (ours, drawn), (theirs, their_drawn) = values[later][metric], values[earlier][metric]
        return bootstrap.estimate(ours - theirs, drawn - their_drawn, targets.num_clips, lowest=-1.0)

    return results, with_differences(table, difference)


def average_comparisons(comparisons: Sequence[Comparison]) -> Comparison:
    """One table over runs with different seeds on the same test clips; that of the only run if there is but one.

    Intervals are over runs and clips together (:func:`~avfewshot.evaluation.bootstrap.over_runs`), those of differences
    paired in both. A system that does the same in every run, such as one without training, keeps the interval over
    clips alone, as does the difference of two such systems. No run, or runs of different tasks, systems, metrics or
    numbers of clips, are a ValueError.
    """
    identities = [(table.task, table.systems, table.metrics, table.num_clips) for table in comparisons]
    if not identities:
        raise ValueError("There are no runs.")
    if any(identity != identities[0] for identity in identities):
        raise ValueError(f"Runs do not belong together: {'; '.join(map(str, dict.fromkeys(identities)))}.")
    first = comparisons[0]
    if len(comparisons) == 1:
        return first
    fixed = {system for system in first.systems if all(t.cells[system] == first.cells[system] for t in comparisons)}

    def draws(system: str, metric: str) -> Floats:
        rows = [table.draws.get(system, {}).get(metric, ()) for table in comparisons]
        shared = min(map(len, rows))
        return np.array([row[:shared] for row in rows], dtype=np.float64)

    def over_seeds(values: Sequence[float | None], replicates: Floats, lowest: float) -> Estimate:
        known = tuple(value for value in values if value is not None)
        if len(known) < len(values):
            return Estimate(None, n=len(values), values=known)
        found = bootstrap.estimate(
            math.fsum(known) / len(known), bootstrap.over_runs(replicates, first.seed), first.num_clips, lowest=lowest
        )
        kind = None if found.interval is None else "seeds"
        return dataclasses.replace(found, n=len(known), interval=kind, values=known)

    def cell(system: str, metric: str) -> Estimate:
        if system in fixed:
            return first.cells[system][metric]
        return over_seeds([table.cells[system][metric].value for table in comparisons], draws(system, metric), 0.0)

    def difference(later: str, earlier: str, metric: str) -> Estimate:
        if {later, earlier} <= fixed:
            return first.difference(later, earlier, metric).estimate
        values = [table.difference(later, earlier, metric).estimate.value for table in comparisons]
        return over_seeds(values, draws(later, metric) - draws(earlier, metric), -1.0)

    cells = {system: {metric: cell(system, metric) for metric in first.metrics} for system in first.systems}
    return with_differences(first.model_copy(update={"cells": cells, "draws": {}}), difference)


def join_tables(rows: Mapping[str, tuple[Comparison, str]]) -> Comparison:
    """One table of systems out of tables of one task over the same test clips: by name of its row, (table, system).

    A ValueError where tasks, headlines, numbers of clips or seeds of the bootstrap differ.
    """
    first = next(iter(rows.values()))[0]
    if len({(table.task, table.headline, table.num_clips, table.seed) for table, _ in rows.values()}) > 1:
        raise ValueError("The tables do not belong together.")
    metrics = tuple(metric for metric in first.metrics if all(metric in table.metrics for table, _ in rows.values()))
    cells = {
        name: {metric: table.cells[system][metric] for metric in metrics} for name, (table, system) in rows.items()
    }
    draws = {
        name: {metric: table.draws[system][metric] for metric in metrics}
        for name, (table, system) in rows.items()
        if system in table.draws
    }

    def difference(later: str, earlier: str, metric: str) -> Estimate:
        (table, system), (other, reference) = rows[later], rows[earlier]
        if table is other:
            return table.difference(system, reference, metric).estimate
        ours, theirs = cells[later][metric].value, cells[earlier][metric].value
        if ours is None or theirs is None:
            return Estimate(None)
        drawn = [np.array(draws.get(name, {}).get(metric, ()), dtype=np.float64) for name in (later, earlier)]
        shared = min(map(len, drawn))
        return bootstrap.estimate(ours - theirs, drawn[0][:shared] - drawn[1][:shared], first.num_clips, lowest=-1.0)

    table = first.model_copy(update={"systems": tuple(rows), "metrics": metrics, "cells": cells, "draws": draws})
    return with_differences(table, difference)


def with_differences(table: Comparison, difference: Callable[[str, str, str], Estimate]) -> Comparison:
    """The table with the differences of every pair of systems, given how to get one: (later, earlier, metric)."""
    found = [
        Difference(later, earlier, metric, difference(later, earlier, metric))
        for position, later in enumerate(table.systems)
        for earlier in table.systems[:position]
        for metric in table.metrics
    ]
    return table.model_copy(update={"differences": tuple(found)})


def _rounded(value: float) -> float | None:
    return round(float(value), 6) if np.isfinite(value) else None


_Statement = tuple[dict[str, bootstrap.Metric], tuple[ClassRow, ...], Floats, Calibration]
"""Everything about one system but its intervals: figures, per-class rows, confusion matrix, calibration."""


def _state(task: Task, targets: Targets, predictions: Predictions, seed: int) -> _Statement:
    """A row is a clip, or a second of one where the task labels seconds."""
    scores, classes = predictions.probabilities, targets.num_classes
    truth, clips = targets.lowest_labels, np.arange(targets.num_clips)
    if task.per_second:
        truth = required_segments(targets)
        if scores.shape[:-1] != truth.shape:
            raise ValueError(f"Probabilities are {scores.shape}; {task.name} needs {truth.shape} and the classes.")
        answers = decide_segments(predictions, classes)
        marks, clips = measures.one_hot(truth.ravel(), classes + 1), np.repeat(clips, truth.shape[1])
    else:
        if scores.shape != targets.labels.shape:
            raise ValueError(f"Probabilities are {scores.shape}; {task.name} needs {targets.labels.shape}.")
        answers, marks = scores.argmax(1), targets.labels
    rows: Floats = scores.reshape(len(clips), -1)
    answered = measures.one_hot(answers.ravel(), marks.shape[1])
    statistics = answer_statistics(task, targets, answers, seed=seed)
    if task.per_second:
        happens = truth != targets.background
        best = scores[..., :classes].argmax(-1)
        statistics["event_top1"] = bootstrap.Ratio(((best == truth) & happens).sum(1), happens.sum(1))
    elif classes > _TOP:
        name = "hit_at_5" if targets.multi_label else "top5"
        statistics[name] = bootstrap.Ratio(measures.hit_at_k(scores, targets.labels, _TOP))
    statistics["map"] = bootstrap.MeanAveragePrecision(rows[:, :classes], marks[:, :classes], clips)
    if predictions.label_threshold is not None:
        statistics["macro_f1_sets"] = bootstrap.MacroF1(scores >= predictions.label_threshold, targets.labels, clips)
    if targets.multi_label and not task.per_second:
        confusion = measures.multi_label_confusion(targets.labels, answers)
    else:
        every = np.arange(marks.shape[1])
        confusion = confusion_matrix(truth.ravel(), answers.ravel(), labels=every).astype(np.float64)
    # A second that a threshold calls background has no probability of being one: it is not judged for calibration.
    known = answers.ravel() < rows.shape[1]
    return (
        {name: statistics[name] for name in METRICS if name in statistics},
        measures.class_rows(class_names(task, targets), answered, marks, rows),
        confusion,
        measures.calibration(rows.max(1)[known], (answered & marks).any(1)[known]),
    )
