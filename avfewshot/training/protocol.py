"""What a trainer asks of what it trains, and what it tells those who follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter
from torch import Tensor

from avfewshot.config import TrainerConfig
from avfewshot.data.clip_source import Source
from avfewshot.errors import DataError
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.models.losses import CombinedLoss
from avfewshot.training.gradcache import Embeddings
from avfewshot.training.validation import ValMetrics

PutOff = Callable[[], AbstractContextManager[Callable[[], bool]]]
"""Makes the context in which signals wait until a step is done; it gives what tells whether one has come."""


def undisturbed() -> AbstractContextManager[Callable[[], bool]]:
    """The same where nobody interrupts."""
    return nullcontext(lambda: False)


class TrainTask:
    """What is learnt. A subclass has a source, a loss and a validation; the rest has defaults.

    The trainer takes ``batch_size x accumulation`` items of `source` for a step, turns each into a sample
    (:meth:`sample`), makes batches of them (:meth:`batches`), and leaves the mean gradient of the batches' losses in
    the parameters. A batch goes through the model in micro-batches: each is embedded (:meth:`embed`), and then

    - with ``gradcache = False`` each micro-batch has a loss of its own, weighted by :meth:`weight`: right where the
      loss of a batch is the mean over its samples;
    - with ``gradcache = True`` the loss is computed once, of the embeddings of all micro-batches: right also where the
      samples of a batch are each other's candidates (contrastive losses), and needed over several ranks.

    :mod:`avfewshot.supervised.training` has a task whose model is a head on frozen embeddings.
    """

    source: Source[Any]
    gradcache: bool = False  # see the class
    validate_every: int = 1  # epochs between validations; there is one after the last epoch in any case
    save_every_epoch: bool = True  # else only after the best ones and every SAVE_SECONDS: for short epochs

    def sample(self, item: Any, epoch: int) -> Any | None:
        """Make a training sample of an item of the source; None leaves it out. Here also failures to read come in."""
        return item

    def batches(self, samples: list[Any], batch_size: int) -> list[list[Any]]:
        """The batches of a step, whose losses are averaged. Over several ranks `samples` may be empty."""
        return [samples[start : start + batch_size] for start in range(0, len(samples), batch_size)]

    def weight(self, samples: Sequence[Any]) -> float:
        """How much samples count in the loss of a larger batch."""
        return len(samples)

    def lr_lambda(self, config: TrainerConfig, steps_per_epoch: int) -> Callable[[int], float]:
        """The factor of the learning rate by number of finished steps; ``cosine`` falls to zero at the last one."""
        total = max(1, int(config.epochs) * steps_per_epoch)
        warmup = round(config.warmup * total)

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / (warmup + 1)
            if config.schedule == "cosine":
                return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / max(1, total - warmup))))
            if config.schedule == "step":
                return config.step_factor ** (step // (config.step_epochs * steps_per_epoch))
            return 1.0

        return factor

    def embed(self, forward: Callable[..., Any], samples: Sequence[Any]) -> Embeddings:
        """Run a micro-batch through the model by `forward`, its forward pass in the training's precision.

        Gives tensors with as many rows each; None where no sample has that part. With `gradcache` this may run twice
        and has to do the same both times.
        """
        return ()

    def loss(self, embeddings: Embeddings, samples: Sequence[Any]) -> CombinedLoss | Tensor:
        """The loss of embedded samples, a mean over them: the parts of both modalities, or a scalar."""
        raise NotImplementedError

    def baseline(self, model: Any) -> ValMetrics:
        """Metrics of what the training begins with, in evaluation mode; called on rank 0 alone."""
        return self.validate(model, 0)

    def validate(self, model: Any, epoch: int) -> ValMetrics:
        """Metrics of the model, in evaluation mode, after so many epochs; called on rank 0 alone."""
        raise NotImplementedError

    def metadata(self, metrics: ValMetrics) -> AdapterConfig:
        """What a checkpoint says of itself, given the best metrics so far."""
        raise NotImplementedError


@dataclass(frozen=True)
class Progress:
    """Where a training stands, between two steps."""

    epoch: int  # epochs finished, and validated where they are
    batch: int  # steps done of the next one
    step: int  # optimizer steps done
    best: ValMetrics  # the best metrics so far
    best_epoch: int  # after which epoch they were reached; 0 is the untrained model
    finished: str = ""  # why the training has ended, or an empty text
    gate: float = 0.0  # mean |gate| of the best model's adapters

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {**self.__dict__, "best": self.best.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """Read what :meth:`to_dict` gave; else there is a :class:`DataError`."""
        try:
            return TypeAdapter(cls).validate_python(values)
        except ValueError as error:
            raise DataError(f"The stored training does not say where it stands ({error}).") from None


@dataclass(frozen=True)
class Pace:
    """How fast a training goes, since it was begun or resumed."""

    clips: float  # clips a second over all ranks
    waiting: float  # share of the time that this rank waited for clips
    memory: int | None  # bytes of GPU memory at the peak on this rank; None on a CPU
    left: float  # seconds until the last epoch's end


class Callback:
    """Is told how a training goes; this one does nothing."""

    def on_epoch_start(self, epoch: int, steps: int, done: int) -> None:
        """An epoch begins, or goes on after `done` of its steps."""

    def on_step(self, step: int, loss: float, pace: Pace) -> None:
        """A step is done."""

    def on_validate(self, epoch: int, metrics: ValMetrics, best: bool) -> None:
        """A validation is done."""

    def on_log(self, entry: Mapping[str, Any]) -> None:
        """An entry of ``metrics.jsonl`` is written, on rank 0."""

    def on_fit_end(self, finished: bool) -> None:
        """The training ends, or was asked to stop, or fails."""

    def on_warning(self, message: str) -> None:
        """Something is not as it should be, and the training goes on."""
