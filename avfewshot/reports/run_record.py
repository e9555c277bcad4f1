"""What the report of a few-shot run shows: plain data, filled by whoever ran it."""

from __future__ import annotations

from dataclasses import dataclass, field

from avfewshot.evaluation.results import Comparison, TaskResult


@dataclass(frozen=True)
class Curve:
    """The course of one training.

    Attributes:
        seed: Its seed.
        steps: (optimizer step, total loss, loss of sight, loss of hearing, learning rate).
        epochs: (epoch, optimizer step, headline figure on validation clips, loss on them, share of the trained logits,
            whether it was the best so far); epoch 0 is the untrained model.
        outcome: Why it ended, for people.
    """

    seed: int
    steps: tuple[tuple[int, float, float, float, float], ...]
    epochs: tuple[tuple[int, int, float, float, float, bool], ...]
    outcome: str


@dataclass(frozen=True)
class Second:
    """What two models say about a second of a clip.

    Attributes:
        truth: Names of what is annotated there; empty for background, None where seconds are not annotated.
        trained: The trained model's answer and its probability.
        zero_shot: The untrained model's.
    """

    truth: tuple[str, ...] | None
    trained: tuple[str, float]
    zero_shot: tuple[str, float]


@dataclass(frozen=True)
class Example:
    """A test clip.

    Attributes:
        name: Its id.
        truth: Its labels.
        trained: The trained model's (label, probability), the best first, up to five.
        zero_shot: The untrained model's.
        right: Whether the trained model is right (for tasks that label seconds: mostly).
        was_right: Whether the untrained model is.
        thumbnails: (second, ``data:`` address of a small JPEG).
        seconds: Second by second.
    """

    name: str
    truth: tuple[str, ...]
    trained: tuple[tuple[str, float], ...]
    zero_shot: tuple[tuple[str, float], ...]
    right: bool
    was_right: bool
    thumbnails: tuple[tuple[int, str], ...]
    seconds: tuple[Second, ...]


@dataclass(frozen=True)
class Heat:
    """A map over a frame.

    Attributes:
        title: What it shows.
        values: Rows of numbers, ``[h][w]``, upper left first; shown between their smallest and largest.
    """

    title: str
    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Look:
    """Where the model looked in one second of a clip, beside the unadapted model.

    Attributes:
        name: Id of the clip.
        second: Which second.
        label: The label that the maps are about.
        frame: ``data:`` address of the frame, square, as the model sees it.
        heats: Maps over it: where the unadapted tower finds the label, where the adapted one does, where the adapters'
            spatial attention lies.
        gates: (title, one number for each second of the clip): the temporal gates, 0 to 1.
        truth: For each second whether something is annotated, or None.
    """

    name: str
    second: int
    label: str
    frame: str
    heats: tuple[Heat, ...]
    gates: tuple[tuple[str, tuple[float, ...]], ...]
    truth: tuple[bool, ...] | None


@dataclass(frozen=True)
class Component:
    """Size and cost of a part of the model (the paper's Table 6).

    Attributes:
        name: What it is.
        trainable: Trainable parameters.
        total: All parameters.
        flops: Floating-point operations for a clip of ten seconds, or None.
    """

    name: str
    trainable: int
    total: int
    flops: int | None


@dataclass(frozen=True)
class RunRecord:
    """A whole few-shot run.

    Attributes:
        title: For example ``"llp_cls, 16 shots"``.
        task: Name of the task.
        dataset: Title of the data set.
        command: The command line.
        created: When it ended, ISO 8601.
        version: Version of this program.
        settings: (name, value, source) of every setting.
        components: Size and cost, ``"all"`` last.
        data: (split, listed, used, unusable, what it is used for).
        left: (split, id, reason) of clips that could not be used, the first ones.
        left_total: How many there are in all.
        supports: For each seed what a person should know about its support.
        comparison: Of the systems, over seeds.
        results: Of each system, first seed: per-class tables, confusion matrices, calibration, baselines, ceilings.
        curves: One a seed.
        examples: Test clips, right ones and wrong ones.
        looks: Where the adapters looked.
        notes: What a person should know, for example that there were no validation clips.
    """

    title: str
    task: str
    dataset: str
    command: str
    created: str
    version: str
    settings: tuple[tuple[str, str, str], ...]
    components: tuple[Component, ...]
    data: tuple[tuple[str, int, int, int, str], ...]
    left: tuple[tuple[str, str, str], ...]
    left_total: int
    supports: tuple[tuple[int, tuple[str, ...]], ...]
    comparison: Comparison
    results: dict[str, TaskResult]
    curves: tuple[Curve, ...]
    examples: tuple[Example, ...] = ()
    looks: tuple[Look, ...] = ()
    notes: tuple[str, ...] = field(default=())
