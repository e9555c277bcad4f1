"""What trivial answers reach and what cannot be exceeded, computed from the targets at hand.

A figure means little without them: always answering "Speech" scores 52 % by LLP's published top-1.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from avfewshot.evaluation.bootstrap import MacroF1, Metric, Ratio
from avfewshot.evaluation.measures import Labels, one_hot
from avfewshot.evaluation.results import Reference
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


def baselines(task: Task, targets: Targets, *, seed: int = 0) -> tuple[Reference, ...]:
    """Figures of answers that look at no clip.

    Always the first class; always the class that is right most often (by these targets: an upper bound of what such an
    answer reaches); always background, for tasks that label seconds; and guessing, on average.
    """
    names = class_names(task, targets)
    constants = {"first_class": 0}
    if task.per_second:
        events = np.bincount(required_segments(targets).ravel(), minlength=len(names))[: targets.num_classes]
        constants |= {"majority_class": int(events.argmax()), "background": targets.background}
    else:
        constants["majority_class"] = int(targets.labels.sum(0).argmax())
    found = []
    for key, index in constants.items():
        answers = np.full(required_segments(targets).shape if task.per_second else targets.num_clips, index)
        figures = {name: s.value() for name, s in answer_statistics(task, targets, answers, seed=seed).items()}
        values = {name: value for name, value in figures.items() if np.isfinite(value)}
        found.append(Reference(key, f"always {names[index]}", values, (names[index],)))
    return *found, Reference("chance", "a class at random", _chance(task, targets))


def distinct(references: Iterable[Reference]) -> tuple[Reference, ...]:
    """References for people: the first class may also be the most frequent one, and is shown once."""
    return tuple({reference.title: reference for reference in references}.values())


def ceilings(task: Task, targets: Targets) -> tuple[Reference, ...]:
    """Figures that cannot be exceeded under a condition that the titles name.

    Never answering background (seconds), or the class that most published targets name (several labels); knowing all
    labels of a clip but not which one is drawn; and one answer for clips that are listed under several classes, where
    there are any.
    """
    found = []
    if task.per_second:
        found.append(_without(task, targets, BACKGROUND))
    elif targets.multi_label and task.published_top1:
        found.append(_without(task, targets, targets.classes[int(np.bincount(targets.lowest_labels).argmax())]))
        values = {"random_label_top1_expected": float((1 / targets.labels.sum(1)).mean())}
        found.append(Reference("label_sets", "knowing all labels of a clip, on average over draws", values))
    if repeated := _repeated(task, targets):
        found.append(repeated)
    return tuple(found)


def _chance(task: Task, targets: Targets) -> dict[str, float]:
    """Expected figures of an answer drawn uniformly from all possible ones."""
    share = 1 / len(class_names(task, targets))
    if task.per_second:
        return {"segment_accuracy": share, "event_accuracy": share}
    if not targets.multi_label:
        return {"top1": share}
    values = {"hit_at_1": float(targets.labels.sum(1).mean()) * share}
    if task.published_top1:
        values |= dict.fromkeys(("published_top1", "random_label_top1", "random_label_top1_expected"), share)
    return values


def _without(task: Task, targets: Targets, name: str) -> Reference:
    """The best figures of answers that never give one class."""
    banned = np.array(class_names(task, targets)) == name
    if task.per_second:
        truth = required_segments(targets)
        possible, events = ~banned[truth], truth != targets.background
        shares = {"segment_accuracy": possible} | ({"event_accuracy": possible[events]} if events.any() else {})
    else:
        hits = (targets.labels & ~banned).any(1)
        shares = {"hit_at_1": hits, "published_top1": ~banned[targets.lowest_labels]}
        shares["random_label_top1_expected"] = hits / targets.labels.sum(1)
    values = {name: float(share.mean()) for name, share in shares.items()}
    return Reference("without", f"never answering {name}", values, (name,))


def _repeated(task: Task, targets: Targets) -> Reference | None:
    """The best figure of one answer for each clip, where clips are listed under several classes."""
    if targets.multi_label or len(set(targets.ids)) == targets.num_clips:
        return None
    groups = targets.groups()[:, None]
    truth = required_segments(targets) if task.per_second else targets.lowest_labels[:, None]
    seconds = np.arange(truth.shape[1])[None]
    cells = np.stack(np.broadcast_arrays(groups, seconds, truth), axis=-1).reshape(-1, 3)
    votes, counts = np.unique(cells, axis=0, return_counts=True)
    # One answer for a clip's second: the label that most of its rows have.
    starts = np.unique(votes[:, :2], axis=0, return_index=True)[1]
    best = float(np.maximum.reduceat(counts, starts).sum() / len(cells))
    if best == 1:
        return None
    metric = "segment_accuracy" if task.per_second else "top1"
    return Reference("repeated_clips", "one answer for clips that are listed under several classes", {metric: best})
