"""What the report of a few-shot run shows: plain data, filled by whoever ran it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from avfewshot.evaluation.results import Comparison, TaskResult

if TYPE_CHECKING:
    from avfewshot.models.complexity import ParameterCount


@dataclass(frozen=True)
class Curve:
    """The course of one training: entries of its ``metrics.jsonl``."""

    seed: int
    steps: Sequence[Mapping[str, Any]]
    epochs: Sequence[Mapping[str, Any]]  # epoch 0 is the untrained model
    outcome: str  # why it ended, for people

    @property
    def kept(self) -> Mapping[str, Any] | None:
        """The entry of the epoch that was kept: the last one that was the best so far."""
        return next((epoch for epoch in reversed(self.epochs) if epoch["best"]), None)


@dataclass(frozen=True)
class Second:
    """What two models say about a second of a clip."""

    # names of what is annotated there; empty for background, None where seconds are not annotated
    truth: tuple[str, ...] | None
    trained: tuple[str, float]  # the trained model's answer and its probability
    zero_shot: tuple[str, float]  # the untrained model's


@dataclass(frozen=True)
class Example:
    """A test clip."""

    name: str  # its id
    truth: tuple[str, ...]  # its labels
    trained: tuple[tuple[str, float], ...]  # the trained model's (label, probability), the best first, up to five
    zero_shot: tuple[tuple[str, float], ...]  # the untrained model's
    right: bool  # whether the trained model is right (for tasks that label seconds: mostly)
    was_right: bool  # whether the untrained model is
    thumbnails: tuple[tuple[int, str], ...]  # (second, ``data:`` address of a small JPEG)
    seconds: tuple[Second, ...]  # second by second


@dataclass(frozen=True)
class Heatmap:
    """A map over a frame."""

    title: str  # what it shows
    # rows of numbers, ``[h][w]``, upper left first; shown between their smallest and largest
    values: tuple[tuple[float, ...], ...]
    over: str = ""  # ``data:`` address of the picture that it lies over, where that is not the frame


@dataclass(frozen=True)
class AttentionExample:
    """Where the model looked in one second of a clip, beside the unadapted model."""

    name: str  # id of the clip
    second: int  # which second
    label: str  # the label that the maps are about
    frame: str  # ``data:`` address of the frame, square, as the model sees it
    # maps over it: where the unadapted tower finds the label, where the adapted one does, where the adapters'
    # spatial attention lies
    heats: tuple[Heatmap, ...]
    # (title, one number for each second of the clip): the temporal gates, 0 to 1
    gates: tuple[tuple[str, tuple[float, ...]], ...]
    truth: tuple[bool, ...] | None  # For each second whether something is annotated, or None


@dataclass(frozen=True)
class RunRecord:
    """A whole few-shot run."""

    title: str  # For example ``"llp_cls, 16 shots"``
    task: str  # name of the task
    dataset: str  # title of the data set
    command: str  # the command line
    created: str  # when it ended, ISO 8601
    version: str  # version of this program
    settings: tuple[tuple[str, str, str], ...]  # (name, value, source) of every setting
    components: tuple[ParameterCount, ...]  # size and cost, ``"all"`` last
    data: tuple[tuple[str, int, int, int, str], ...]  # (split, listed, used, unusable, what it is used for)
    left: tuple[tuple[str, str, str], ...]  # (split, id, reason) of clips that could not be used, the first ones
    left_total: int  # how many there are in all
    supports: tuple[tuple[int, tuple[str, ...]], ...]  # For each seed what a person should know about its support
    comparison: Comparison  # of the systems, over seeds
    # of each system, first seed: per-class tables, confusion matrices, calibration, baselines, ceilings
    results: dict[str, TaskResult]
    curves: tuple[Curve, ...]  # one a seed
    examples: tuple[Example, ...] = ()  # test clips, right ones and wrong ones
    looks: tuple[AttentionExample, ...] = ()  # where the adapters looked
    # what a person should know, for example that there were no validation clips
    notes: tuple[str, ...] = field(default=())
