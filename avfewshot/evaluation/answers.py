"""Figures that depend on the answers alone, not on probabilities: shared by systems, trivial answers and ceilings."""

from __future__ import annotations

import numpy as np

from avfewshot.evaluation.bootstrap import MacroF1, Metric, Ratio
from avfewshot.evaluation.measures import Labels, one_hot
from avfewshot.evaluation.targets import Targets
from avfewshot.evaluation.tasks import Task

BACKGROUND = "Background"
"""Name of the class of seconds without an event."""


def class_names(task: Task, targets: Targets) -> tuple[str, ...]:
    """Names of all possible answers, background last where it is one."""
    return (*targets.classes, BACKGROUND) if task.per_second else targets.classes


def required_segments(targets: Targets) -> Labels:
    """Labels per second, ``[N, T]``; a :class:`ValueError` where the targets have none."""
    if targets.segments is None:
        raise ValueError("Labels per second are needed, and the data set has none.")
    return targets.segments


def answer_statistics(task: Task, targets: Targets, answers: Labels, *, seed: int) -> dict[str, Metric]:
    """The figures of given answers: class indices ``[N]``, or ``[N, T]`` with K for background.

    `seed` is that of the drawn labels. A :class:`ValueError` says that the answers have another shape.
    """
    truth = required_segments(targets) if task.per_second else targets.lowest_labels
    if answers.shape != truth.shape:
        raise ValueError(f"Answers are {answers.shape}, targets are {truth.shape}.")
    if task.per_second:
        right, events = answers == truth, truth != targets.background
        clips = np.repeat(np.arange(targets.num_clips), truth.shape[1])
        answered, marks = (one_hot(labels.ravel(), targets.num_classes + 1) for labels in (answers, truth))
        return {
            "segment_accuracy": Ratio(right.sum(1), np.full(targets.num_clips, truth.shape[1])),
            "event_accuracy": Ratio((right & events).sum(1), events.sum(1)),
            "macro_f1": MacroF1(answered, marks, clips),
        }
    answered = one_hot(answers, targets.num_classes)
    macro_f1 = MacroF1(answered, targets.labels, np.arange(targets.num_clips))
    if not targets.multi_label:
        return {"top1": Ratio(answers == truth), "macro_f1": macro_f1}
    hits = (answered & targets.labels).any(1)
    statistics: dict[str, Metric] = {"hit_at_1": Ratio(hits), "macro_f1": macro_f1}
    if task.published_top1:
        statistics["published_top1"] = Ratio(answers == truth)
        statistics["random_label_top1"] = Ratio(answers == targets.random_labels(seed))
        statistics["random_label_top1_expected"] = Ratio(hits / targets.labels.sum(1))
    return statistics
