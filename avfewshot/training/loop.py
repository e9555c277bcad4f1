"""The training loop: epochs over a support, validation, early stopping, checkpoints; resumes bit for bit.

Everything random is a function of seed and epoch (the order, windows of long clips) or stored (optimizer, generators),
so a training that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avfewshot.config import AUTO, TrainingConfig
from avfewshot.errors import AvfsError, DataError
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.stream import Reader, read_ahead
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.training.cuda_graphs import make_passes
from avfewshot.training.journal import Journal
from avfewshot.training.objective import Objective, TrainingClip
from avfewshot.training.optimisation import Optimisation
from avfewshot.training.order import epoch_order, window_start
from avfewshot.training.selection import Verdict
from avfewshot.training.state import TrainingState
from avfewshot.training.steps import GradientSteps
from avfewshot.training.store import CheckpointStore, Resumed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_SAVE_SECONDS = 300.0
"""A checkpoint is written when an epoch ends with the best model so far, and else when so much time has passed."""
_VALIDATIONS = 2


@dataclass(frozen=True, eq=False)
class Labelled:
    """A clip to train on.

    Attributes:
        key: Its name.
        path: Its media file.
        labels: Bool ``[K]``, or ``[T, K + 1]`` for tasks that label seconds, as in
            :class:`~avfewshot.training.objective.TrainingClip`.
    """

    key: str
    path: Path
    labels: Tensor
    row: int | None = None  # in the support


@dataclass(frozen=True)
class Progress:
    """Where a training stands, between two steps.

    Attributes:
        epoch: Epochs finished and judged.
        batch: Batches done of the next one.
        step: Optimizer steps done.
        best: The best verdict so far.
        best_epoch: After which epoch it was given; 0 is the untrained model.
        finished: Why the training has ended, or an empty text.
        gate: Mean |gate| of the best model's adapters.
    """

    epoch: int
    batch: int
    step: int
    best: Verdict
    best_epoch: int
    finished: str = ""
    gate: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {**self.__dict__, "best": self.best.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Progress:
        """Read what :meth:`to_dict` gave.

        Raises:
            DataError: It is something else.
        """
        try:
            return cls(**{**values, "best": Verdict.from_dict(values["best"])})
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"The stored training does not say where it stands ({error}).") from None


class Watcher:
    """Is told how a training goes; this one does nothing."""

    def begin_epoch(self, epoch: int, batches: int, done: int) -> None:
        """An epoch begins, or goes on after `done` of its batches."""

    def stepped(self, batches: int, loss: float) -> None:
        """A step over some batches is done."""

    def judged(self, epoch: int, verdict: Verdict, best: bool) -> None:
        """A validation is done."""


class Training:
    """One training of one model.

    Args:
        fabric: Device and precision.
        model: With fresh trainable parts, on the CPU or the device.
        config: The settings.
        seed: Of the order.
        clips: What is trained on.
        read: Decodes a clip.
        objective: The loss.
        judge: Judges the model, in evaluation mode, on validation clips after so many epochs.
        start: The verdict on the untrained model.
        validation_clips: How many clips `judge` runs over.
        store: Where checkpoints go.
        describe: What a checkpoint says of itself, given the verdict.
        journal: Where the course is written down.
        watcher: Is told how it goes.
        put_off: Gives a context in which signals wait, so that none comes in the middle of a step.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: AudioVisualModel,
        config: TrainingConfig,
        *,
        seed: int,
        clips: Sequence[Labelled],
        read: Reader,
        objective: Objective,
        judge: Callable[[AudioVisualModel, int], Verdict],
        start: Verdict,
        validation_clips: int = 0,
        store: CheckpointStore,
        describe: Callable[[Verdict], AdapterConfig],
        journal: Journal,
        watcher: Watcher | None = None,
        put_off: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._config, self._seed, self._clips, self._read = config, seed, clips, read
        self._judge, self._store, self._describe, self._journal = judge, store, describe, journal
        self._watcher = watcher or Watcher()
        self._put_off = put_off
        self._model = model
        self._batches = -(-len(clips) // config.batch_size)
        self.steps_per_epoch = -(-self._batches // config.accumulation)
        self._optimisation = Optimisation(fabric, model, config, self.steps_per_epoch)
        self._steps = GradientSteps(
            fabric,
            make_passes(fabric, self._optimisation.module, model, config.cuda_graphs),
            model,
            objective,
            contrastive=config.objective == "contrastive",
            micro_batch=config.batch_size if config.micro_batch == AUTO else config.micro_batch,
        )
        self.validate_every = validation_interval(config, len(clips), validation_clips)
        self.progress = Progress(epoch=0, batch=0, step=0, best=start, best_epoch=0, gate=mean_gate(model))
        self._saved = time.monotonic()

    def resume(self, found: Resumed) -> list[str]:
        """Go on from a checkpoint.

        Args:
            found: What the store gave.

        Returns:
            What could not be restored on this machine, for people.

        Raises:
            AvfsError: It does not fit this training.
        """
        self.progress = Progress.from_dict(found.state.progress)
        lost = found.state.restore(self._model, self._optimisation.parts)
        step = self.progress.step
        # An epoch is judged after its last step: whether that was before the checkpoint is told by the epoch.
        judged = self.progress.epoch * self.steps_per_epoch
        self._journal.rewind({"step": step, "epoch": min(step, judged)})
        return lost

    def run(self) -> Progress:
        """Train until the last epoch, or until validation has not improved for as long as the settings say.

        Returns:
            Where the training ended.

        Raises:
            KeyboardInterrupt: It was interrupted; the state is saved.
            AvfsError: A clip cannot be read any more, or memory does not suffice.
        """
        if not self._store.steps():
            self._save(best=True)
            self._journal.write(
                kind="epoch", step=0, epoch=0, best=True, gate=self.progress.gate, **self.progress.best.to_dict()
            )
        try:
            while not self.progress.finished:
                self._epoch()
                with self._put_off():
                    self._conclude()
        except KeyboardInterrupt:
            self._save()
            raise
        return self.progress

    def _epoch(self) -> None:
        epoch, done = self.progress.epoch, self.progress.batch
        self._model.train()
        self._watcher.begin_epoch(epoch + 1, self._batches, done)
        for group in self._groups(epoch, done):
            with self._put_off():
                self._step(group)
            self._watcher.stepped(len(group), self._last_loss)
            if time.monotonic() - self._saved > _SAVE_SECONDS:
                self._save()

    def _step(self, group: list[list[TrainingClip]]) -> None:
        step = self.progress.step
        loss = self._steps.accumulate(group)
        rate = self._optimisation.step(step)
        self._last_loss = loss.total
        self.progress = replace(self.progress, step=step + 1, batch=self.progress.batch + len(group))
        self._journal.write(
            kind="step", step=step + 1, epoch=self.progress.epoch + 1, loss=loss.total, visual_loss=loss.visual,
            audio_loss=loss.audio, visual_weight=loss.visual_weight, lr=rate,
        )  # fmt: skip

    def _conclude(self) -> None:
        """Judge the model after an epoch, if it is time."""
        epoch = self.progress.epoch + 1
        if epoch % self.validate_every and epoch < int(self._config.epochs):
            self.progress = replace(self.progress, epoch=epoch, batch=0)
            return
        self._model.eval()
        verdict = self._judge(self._model, epoch)
        best = verdict.better_than(self.progress.best)
        gate = mean_gate(self._model)
        finished = ""
        waited = epoch - (epoch if best else self.progress.best_epoch)
        if epoch >= int(self._config.epochs):
            finished = f"all {epoch} epochs done"
        elif self._config.patience and waited >= self._config.patience:
            finished = f"no better for {waited} epochs"
        self.progress = replace(
            self.progress,
            epoch=epoch,
            batch=0,
            best=verdict if best else self.progress.best,
            best_epoch=epoch if best else self.progress.best_epoch,
            finished=finished,
            gate=gate if best else self.progress.gate,
        )
        self._journal.write(
            kind="epoch", step=self.progress.step, epoch=epoch, best=best, gate=gate, **verdict.to_dict()
        )
        if best or finished or time.monotonic() - self._saved > _SAVE_SECONDS:
            self._save(best=best)
        self._watcher.judged(epoch, verdict, best)

    def _save(self, *, best: bool = False) -> None:
        state = TrainingState.capture(self._model, self._optimisation.parts, progress=self.progress.to_dict())
        self._store.save(self.progress.step, self._describe(self.progress.best), state, best=best)
        self._saved = time.monotonic()

    def _groups(self, epoch: int, done: int) -> Iterator[list[list[TrainingClip]]]:
        """What is left of an epoch, in batches that make a step together."""
        size = self._config.batch_size
        order = epoch_order(len(self._clips), seed=self._seed, epoch=epoch)[done * size :]
        chosen = [self._clips[index] for index in order]
        clips = read_ahead([clip.path for clip in chosen], self._read, workers=self._config.workers)
        batch: list[TrainingClip] = []
        group: list[list[TrainingClip]] = []
        for position, (labelled, clip) in enumerate(zip(chosen, clips, strict=True), start=1):
            batch.append(self._prepared(labelled, clip, epoch))
            if len(batch) == size or position == len(chosen):
                group.append(batch)
                batch = []
                if len(group) == self._config.accumulation or position == len(chosen):
                    yield group
                    group = []

    def _prepared(self, labelled: Labelled, clip: Clip | Failure, epoch: int) -> TrainingClip:
        if isinstance(clip, Failure):
            raise AvfsError(
                f"{clip.path}: could be read when the training was set up, and cannot be read any more: {clip.error}",
                hint="Put the file back and go on with --resume.",
            )
        window = self._config.window
        start = window_start(clip.num_segments, window, seed=self._seed, epoch=epoch, key=labelled.key)
        return TrainingClip.of(clip, labelled.labels, start, window, labelled.row)


def mean_gate(model: AudioVisualModel) -> float:
    """See :meth:`~avfewshot.adapters.base.CrossModalAdapter.mean_gate`; 0 without adapters."""
    return 0.0 if model.adapters is None else model.adapters.mean_gate()


def validation_interval(config: TrainingConfig, clips: int, validation_clips: int) -> int:
    """Epochs between validations.

    Args:
        config: Says how many, or ``"auto"``: so many that no fewer clips are trained on than a validation has, but
            such that there are two validations.
        clips: Clips of an epoch.
        validation_clips: Clips of a validation.
    """
    if config.validate_every != AUTO:
        return int(config.validate_every)
    return max(1, min(-(-validation_clips // max(1, clips)), -(-int(config.epochs) // _VALIDATIONS)))
