"""The tasks and the figures that they are judged by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from avfewshot.errors import UsageError


@dataclass(frozen=True)
class Metric:
    """What a figure is called and means."""

    title: str  # head of its column
    description: str  # one line for people


METRICS: Mapping[str, Metric] = MappingProxyType(
    {
        "segment_accuracy": Metric("seconds", "share of all seconds whose event, or background, is right"),
        "event_accuracy": Metric("event seconds", "the same over the seconds in which there is an event"),
        "event_top1": Metric("event top-1", "over these seconds, whether the most probable event is right"),
        "top1": Metric("top-1", "share of clips whose most probable class is right"),
        "top5": Metric("top-5", "share of clips whose class is among the five most probable"),
        "published_top1": Metric(
            "top-1 (published)", "argmax of the scores against argmax of the multi-hot labels: the lowest index wins"
        ),
        "random_label_top1": Metric("top-1 (random label)", "against one label of each clip, drawn at random by seed"),
        "random_label_top1_expected": Metric("top-1 (any draw)", "the same on average over all draws"),
        "hit_at_1": Metric("hit@1", "share of clips whose most probable class is one of their labels"),
        "hit_at_5": Metric("hit@5", "share of clips with one of their labels among the five most probable classes"),
        "map": Metric("mAP", "average precision, mean over the classes that occur"),
        "macro_f1": Metric("macro F1", "F1 of the single answers, mean over the classes that occur"),
        "macro_f1_sets": Metric("macro F1 (sets)", "F1 of all classes above a threshold chosen on validation data"),
    }
)
"""Every figure by its stable name, in the order of a table."""


@dataclass(frozen=True)
class Task:
    """How a task is judged."""

    name: str  # its name
    per_second: bool = False  # every second gets a label, not the clip
    headline: str = "top1"  # the metric that stands for it, and that model selection uses
    multi_label_headline: str = "hit_at_1"  # the same where clips carry several labels
    published_top1: bool = False  # the published multi-label top-1 belongs to it

    def headline_for(self, multi_label: bool) -> str:
        """The metric that stands for the task on data with one label, or several, a clip."""
        return self.multi_label_headline if multi_label and not self.per_second else self.headline


TASKS: Mapping[str, Task] = MappingProxyType(
    {
        task.name: task
        for task in (
            Task("ave", per_second=True, headline="segment_accuracy"),
            Task("ave_cls"),
            Task("llp_cls", published_top1=True),
            Task("vggsound_cls"),
            Task("folder"),
        )
    }
)
"""Tasks by name."""


def find_task(name: str) -> Task:
    """The task of a name; a :class:`UsageError` lists those there are."""
    if name not in TASKS:
        raise UsageError(f"There is no task {name!r} to evaluate.", hint=f"Tasks: {', '.join(TASKS)}.")
    return TASKS[name]
