"""What a supervised task is: a data set, the features that it needs, heads, a loss, published metrics.

A task is one file here with a subclass of :class:`SupervisedTask`, and its row in :data:`TASKS`; ``avfs train``,
``avfs eval`` and ``avfs predict`` then know it. The trainer gives it *features*, a dictionary of float32 tensors of B
clips of T seconds, of those kinds that the task `needs`:

==============  ==========================  =============================================================
``visual``      ``visual [B, T, D_v]``      embeddings of the visual tower, of length sqrt(D_v)
``audio``       ``audio [B, T, D_a]``       embeddings of the audio tower, of length sqrt(D_a)
``places``      ``places [B, T, P, C_v]``   visual tokens behind the last block, on a grid of 7 x 7 or less
``stages``      ``stage0`` to ``stage3``    ``[B, T, C, H, W]``, maps of four depths of the visual tower, from fine
                                            to coarse; a tower of one scale gives all four in one size
==============  ==========================  =============================================================

They come from frozen towers (computed once, kept on disk) or, with ``--adapter-kind``, through the adapters with
gradient; a task does not see the difference. A modality that is switched off is all zeros.
"""

from __future__ import annotations

import abc
import importlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

from torch import Tensor, nn

from avfewshot.data.dataset import SPLITS, Dataset, Sample
from avfewshot.errors import UsageError
from avfewshot.inference.logits import ClipLogits
from avfewshot.media.clip import Clip

Features = Mapping[str, Tensor]
# What the frozen towers say of the examples of a split by second, of the class texts ``about["wordings"]``.
ZeroShot = Callable[[str], list[ClipLogits]]
# Where each task lives, by the name that people give.
TASKS: dict[str, str] = {
    "ave": "avfewshot.supervised.ave:LocalisationTask",
    "avvp": "avfewshot.supervised.avvp:ParsingTask",
    "avs": "avfewshot.supervised.avs:SegmentationTask",
    "avqa": "avfewshot.supervised.avqa:QuestionTask",
}


@dataclass(frozen=True, eq=False)
class Example:
    """One clip with its question and its truth."""

    id: str
    path: Path  # of what `read_clip` reads; several examples may share it
    target: Any = None  # the task's own; None where nothing is known
    given: Any = None  # what is asked beside the clip, for tasks with questions


@dataclass(frozen=True, eq=False)
class TaskData:
    """What a training reads."""

    splits: Mapping[str, Sequence[Example]]  # train, val, test: those whose media are here
    # JSON-ready, kept in the checkpoint: all that heads and answers need later (class names, lists of answers, ...)
    about: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # for people


@dataclass(frozen=True)
class Recipe:
    """How a head is trained unless told otherwise; as published where a paper says it."""

    lr: float
    batch_size: int
    epochs: int
    milestones: tuple[int, ...] = ()  # epochs after which the rate is multiplied with `factor`
    factor: float = 1.0
    clip_norm: float = 0.0  # 0: none


class TaskHead(nn.Module):
    """What answers from features: see the module for these, and each task for what an answer is.

    Heads of other packages are entry points of the group ``avfewshot.heads``: ``avfs train TASK --head NAME``.
    """

    task: ClassVar[str]  # key of TASKS; of those of other packages alone
    recipe: ClassVar[Recipe]
    needs: ClassVar[frozenset[str]]  # kinds of features, see the table of the module

    def __init__(self, widths: Mapping[str, Any] | None = None, about: Mapping[str, Any] | None = None) -> None:
        super().__init__()

    @classmethod
    def build(cls, widths: Mapping[str, Any], about: Mapping[str, Any]) -> TaskHead:
        """A fresh head.

        Args:
            widths: Channels of each kind of feature: D_v, D_a, C_v, and for ``stages`` a list of four;
                ``frame`` is the side S of the frames.
            about: :attr:`TaskData.about`.
        """
        return cls(widths, about)

    def loss(self, features: Features, examples: Sequence[Example]) -> Tensor:
        """The mean loss of a batch, a scalar."""
        raise NotImplementedError

    def predict(self, features: Features, examples: Sequence[Example]) -> list[Any]:
        """Answers, one for each example; called without gradient, in evaluation mode."""
        raise NotImplementedError


class SupervisedTask(abc.ABC):
    """A task; its methods hold no state. See the module for the features."""

    name: ClassVar[str]
    title: ClassVar[str]
    dataset: ClassVar[str]  # key of the data folder in avfs.toml
    heads: ClassVar[Mapping[str, type[TaskHead]]]  # by name; the first is the default
    headline: ClassVar[str]  # key of the metric that selects the epoch on validation
    seconds: ClassVar[int] = 10  # T; shorter clips are padded with zeros
    window: ClassVar[int] = 10  # seconds of a file, over which the T are spread evenly

    @abc.abstractmethod
    def read(self, root: Path, media: Sequence[Path] = (), subset: str | None = None) -> TaskData:
        """Read the data set; `media` are folders of the clips if elsewhere.

        `subset` is a part of data sets that have several.

        Raises:
            AvfsError: It cannot be read, `subset` is unknown, or media are missing altogether.
        """

    def read_clip(self, path: Path, frame_size: int, frame_backend: str = "auto") -> Clip:
        """Decode the T seconds of a clip: of its first `window` seconds, spread evenly."""
        from avfewshot.data.clip_source import read_start

        clip = read_start(path, frame_size=frame_size, seconds=self.window, frame_backend=frame_backend)
        return spread_over(clip, self.seconds)

    @abc.abstractmethod
    def metrics(
        self, predictions: Sequence[Any], examples: Sequence[Example], about: Mapping[str, Any]
    ) -> dict[str, float]:
        """Published metrics in percent, by name; `headline` among them, more is better."""

    @abc.abstractmethod
    def reference_lines(self, data: TaskData, zero_shot: ZeroShot | None) -> dict[str, list[Any]]:
        """Predictions for the test split that need no training, or the truth, by what they are called.

        `zero_shot` is None where the backbone has no text branches.
        """

    @abc.abstractmethod
    def describe(self, prediction: Any, example: Example, about: Mapping[str, Any]) -> dict[str, Any]:
        """A prediction as JSON-ready values for people, as ``avfs predict`` writes it for a new clip."""

    def read_windows(
        self, path: Path, frame_size: int, frame_backend: str = "auto"
    ) -> Iterator[tuple[Clip, tuple[int, int]]]:
        """Decode a new clip of any length, T seconds for each window, with the seconds where that begins and ends."""
        from avfewshot.media.stream import IsolatedReader

        with IsolatedReader(path, frame_size=frame_size, modality="av", frame_backend=frame_backend) as reader:
            total = reader.info.num_segments
            for start in range(0, total, self.window):
                end = min(start + self.window, total)
                yield spread_over(reader.read(start, end), self.seconds), (start, end)

    def read_clips(
        self, root: Path, media: Sequence[Path], subset: str | None, target: Callable[[Dataset, Sample], Any]
    ) -> TaskData:
        """For `read`: the clips of a data set of classes; `target` makes that of one.

        A :class:`UsageError` where a `subset` is given: it has none.
        """
        from avfewshot.data.load import load_dataset, require_media

        if subset is not None:
            raise UsageError(f"{self.title} has no subsets.", hint="Leave --subset out.")
        dataset = load_dataset(self.dataset, root, media=media)
        require_media(dataset, list(media) or [root])
        splits = {
            split: [Example(one.id, one.path, target(dataset, one)) for one in dataset.available(split) if one.path]
            for split in SPLITS
        }
        about = {"classes": list(dataset.classes), "wordings": list(dataset.wordings)}
        return TaskData(splits, about, list(dataset.report.describe()))

    def cut(
        self,
        data: TaskData,
        zero_shot: ZeroShot,
        read: Callable[[ClipLogits], Any],
        above: Callable[[Any, float], Any],
        thresholds: Iterable[float],
        blind: float,
    ) -> list[Any]:
        """What is `read` from logits of test clips, `above` the threshold that fits validation best, else `blind`."""
        val, best = [read(one) for one in zero_shot("val")], blind
        if val:
            truth = data.splits["val"], data.about
            metrics = {low: self.metrics([above(one, low) for one in val], *truth) for low in thresholds}
            best = max(metrics, key=lambda low: metrics[low][self.headline])
        return [above(read(one), best) for one in zero_shot("test")]

    def class_of(self, example: Example, about: Mapping[str, Any]) -> str | None:
        """The class that stands for a clip in pictures; None where it has none, or several."""
        return None

    def streams(self, said: Any, about: Mapping[str, Any]) -> dict[str, Any]:
        """What a prediction says by second, bool ``[T, K]`` for each modality; nothing for tasks without seconds."""
        return {}

    def truth(self, example: Example) -> Any:
        """The truth in the form of a prediction."""
        return example.target

    def pictures(self, predictions: Sequence[Any], examples: Sequence[Example]) -> list[tuple[str, bytes]]:
        """Captions and PNG files of some predictions, for the report."""
        return []

    def ask(self, example: Example, question: str | None, about: Mapping[str, Any]) -> Example:
        """The example with a person's question; a :class:`UsageError` where one is missing, or given in vain."""
        if question is not None:
            raise UsageError(f"A run of {self.name} answers no questions.", hint="Leave --question out.")
        return example


def spread_over(clip: Clip, seconds: int) -> Clip:
    """At most so many seconds of a clip, evenly from all of it: of 60 every sixth, where ten are wanted."""
    length = clip.num_segments
    if length <= seconds:
        return clip
    places = [place * length // seconds for place in range(seconds)]
    sound = clip.audio_segments
    return replace(
        clip,
        frames=None if clip.frames is None else clip.frames[places],
        waveform=None if sound is None else sound[places].flatten(),
    )


def task_names() -> tuple[str, ...]:
    """Names of the supervised tasks."""
    return tuple(TASKS)


def load_task(name: str) -> SupervisedTask:
    """The task of a name, a key of :data:`TASKS`, with the heads that other packages bring, or a `UsageError`."""
    module, _, attribute = TASKS[name].partition(":")
    task: Any = getattr(importlib.import_module(module), attribute)
    outside: dict[str, type[TaskHead]] = {}
    for point in entry_points(group="avfewshot.heads"):
        try:
            head = point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"The head {point.name!r} cannot be imported: {error}.") from error
        if head.task == name:
            outside[point.name] = head
    return type(task.__name__, (task,), {"heads": {**task.heads, **outside}})()
