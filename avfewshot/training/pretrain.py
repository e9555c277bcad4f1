"""Pretraining on a list of clips: streams over ranks, large contrastive batches, checkpoints that resume to the bit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from avfewshot.config import AUTO, TrainingConfig
from avfewshot.data.clip_source import ClipSource, LabelledClip
from avfewshot.errors import AvfsError
from avfewshot.inference.devices import free_memory, is_out_of_memory
from avfewshot.inference.logits import ClassTexts
from avfewshot.media.clip import Failure
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.training.cuda_graphs import make_passes
from avfewshot.training.journal import Journal
from avfewshot.training.loop import Progress, mean_gate
from avfewshot.training.objective import PretrainObjective, TrainingClip
from avfewshot.training.optimisation import Optimisation
from avfewshot.training.order import window_start
from avfewshot.training.selection import Verdict
from avfewshot.training.state import TrainingState
from avfewshot.training.store import CheckpointStore, Resumed

if TYPE_CHECKING:
    from lightning_fabric import Fabric

SAVE_SECONDS = 300.0
"""A checkpoint is written after each epoch, and inside one when so much time has passed."""


@dataclass(frozen=True)
class Pace:
    """How fast a pretraining goes.

    Attributes:
        clips: Clips a second over all ranks, since the training was begun or resumed.
        waiting: Share of the time that this rank waited for clips.
        memory: Bytes of GPU memory at the peak on this rank; None on a CPU.
        left: Seconds until the last epoch's end.
    """

    clips: float
    waiting: float
    memory: int | None
    left: float


class PretrainWatcher:
    """Is told how a pretraining goes; this one does nothing."""

    def begin_epoch(self, epoch: int, steps: int, done: int) -> None:
        """An epoch begins, or goes on after `done` of its steps."""

    def stepped(self, step: int, loss: float, pace: Pace) -> None:
        """A step is done."""

    def judged(self, epoch: int, verdict: Verdict, best: bool) -> None:
        """A validation is done."""

    def unreadable(self, failure: Failure) -> None:
        """A clip could not be read and is left out."""


class Pretraining:
    """One pretraining; the same object is made on every rank.

    Args:
        fabric: Launched; device, precision, ranks.
        model: With fresh trainable parts, equal on all ranks.
        config: The settings; a batch is ``batch_size x accumulation`` clips a rank.
        seed: Of the order.
        source: The clips.
        skip: Whether a clip is to be left out, by its id.
        texts: Features of the classes and of the background.
        judge: Judges the model, in evaluation mode, after so many epochs; called on rank 0 alone.
        start: The verdict on the untrained model.
        store: Where checkpoints go; rank 0 writes.
        describe: What a checkpoint says of itself, given the verdict.
        journal: Where the course is written down; rank 0 writes.
        watcher: Is told how it goes.
        stopping: Whether somebody asked to stop; looked at after each step.
    """

    def __init__(
        self,
        fabric: Fabric,
        model: AudioVisualModel,
        config: TrainingConfig,
        *,
        seed: int,
        source: ClipSource,
        texts: ClassTexts,
        judge: Callable[[AudioVisualModel, int], Verdict],
        start: Verdict,
        store: CheckpointStore,
        describe: Callable[[Verdict], AdapterConfig],
        journal: Journal,
        skip: Callable[[str], bool] = lambda name: False,
        watcher: PretrainWatcher | None = None,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._fabric, self._model, self._config, self._seed = fabric, model, config, seed
        self._source, self._skip, self._judge = source, skip, judge
        self._store, self._describe, self._journal = store, describe, journal
        self._watcher, self._stopping = watcher or PretrainWatcher(), stopping
        self._objective = PretrainObjective(config, texts.to(fabric.device), fabric.device)
        self._batch = config.batch_size * config.accumulation
        self.micro_batch = config.batch_size if config.micro_batch == AUTO else int(config.micro_batch)
        # Rank 0 has the most clips: the others take part in its last step with what they have, or with nothing.
        self.steps_per_epoch = -(-source.count(0, fabric.world_size) // self._batch)
        self._optimisation = Optimisation(fabric, model, config, self.steps_per_epoch)
        self._passes = make_passes(fabric, self._optimisation.module, model, config.cuda_graphs)
        self.progress = Progress(epoch=0, batch=0, step=0, best=start, best_epoch=0, gate=mean_gate(model))
        self._labels = torch.eye(texts.num_classes, dtype=torch.bool)
        self._saved = self._began = time.monotonic()
        self._waited, self._steps_here = 0.0, 0

    def resume(self, found: Resumed) -> list[str]:
        """Go on from a checkpoint, with the same number of ranks.

        Args:
            found: What the store gave.

        Returns:
            What could not be restored on this machine, for people.

        Raises:
            AvfsError: It does not fit this training.
        """
        before = found.config.support.get("ranks", 1)
        if before != self._fabric.world_size:
            raise AvfsError(
                f"The pretraining was begun on {before} ranks and cannot go on with {self._fabric.world_size}: its "
                "batches would hold other clips.",
                hint=f"Resume on {before} ranks, or begin anew with --adapter RUN.",
            )
        self.progress = Progress.from_dict(found.state.progress)
        lost = found.state.restore(self._model, self._optimisation.parts)
        if self._fabric.global_rank == 0:
            step = self.progress.step
            self._journal.rewind({"step": step, "epoch": min(step, self.progress.epoch * self.steps_per_epoch)})
        return lost

    def run(self) -> bool:
        """Train to the end of the last epoch.

        Returns:
            Whether it came to its end; False when it was asked to stop, its state saved.

        Raises:
            AvfsError: Memory does not suffice, or the loss is not finite.
        """
        if not self._store.steps():
            # The journal before the checkpoint: a process that is killed in between comes by here again.
            if self._fabric.global_rank == 0:
                self._journal.rewind({})
            self._note(
                kind="epoch", step=0, epoch=0, best=True, gate=self.progress.gate, **self.progress.best.to_dict()
            )
            self._save(best=True)
        self._fabric.barrier()
        while not self.progress.finished:
            if not self._epoch():
                self._save()
                self._fabric.barrier()
                return False
            self._conclude()
        self._fabric.barrier()
        return True

    def _epoch(self) -> bool:
        progress = self.progress
        self._model.train()
        self._watcher.begin_epoch(progress.epoch + 1, self.steps_per_epoch, progress.batch)
        stream = self._source.stream(
            seed=self._seed,
            epoch=progress.epoch,
            rank=self._fabric.global_rank,
            world=self._fabric.world_size,
            start=min(
                progress.batch * self._batch, self._source.count(self._fabric.global_rank, self._fabric.world_size)
            ),
        )
        try:
            while self.progress.batch < self.steps_per_epoch:
                began = time.monotonic()
                clips = self._take(stream)
                self._waited += time.monotonic() - began
                self._step(clips)
                if self._asked_to_stop():
                    return False
                if time.monotonic() - self._saved > SAVE_SECONDS:
                    self._save()
        finally:
            if hasattr(stream, "close"):
                stream.close()
        return True

    def _take(self, stream: Iterator[LabelledClip | Failure]) -> list[TrainingClip]:
        clips = []
        for item in islice(stream, self._batch):
            if isinstance(item, Failure):
                self._watcher.unreadable(item)
            elif not self._skip(item.id):
                clips.append(self._prepared(item))
        return clips

    def _prepared(self, item: LabelledClip) -> TrainingClip:
        window = self._config.window
        start = window_start(item.clip.num_segments, window, seed=self._seed, epoch=self.progress.epoch, key=item.id)
        return TrainingClip.of(item.clip, self._labels[list(item.labels)].any(0), start, window)

    def _step(self, clips: list[TrainingClip]) -> None:
        step = self.progress.step
        loss = self._gradients(clips)
        total = loss.total.item()
        if not torch.isfinite(loss.total):
            raise AvfsError("The loss is not a finite number any more.", hint="Use --precision fp32 or a smaller --lr.")
        rate = self._optimisation.step(step)
        self.progress = replace(self.progress, step=step + 1, batch=self.progress.batch + 1)
        self._steps_here += 1
        self._note(
            kind="step", step=step + 1, epoch=self.progress.epoch + 1, loss=total, visual_loss=loss.visual.item(),
            audio_loss=loss.audio.item(), visual_weight=loss.weights[:, 0].mean().item(), lr=rate,
        )  # fmt: skip
        self._watcher.stepped(step + 1, total, self._pace())

    def _gradients(self, clips: list[TrainingClip]) -> Any:
        several = self._fabric.world_size > 1
        while True:
            self._passes.prepare()
            self._model.zero_grad(set_to_none=True)
            try:
                return self._objective.backward(
                    self._passes,
                    self._model,
                    clips,
                    micro_batch=self.micro_batch,
                    backward=self._fabric.backward,
                    no_sync=(lambda: self._fabric.no_backward_sync(self._optimisation.module)) if several else None,
                )
            except RuntimeError as error:
                # A rank that began a step again would wait for the others, who have gone on.
                if several or not is_out_of_memory(error) or self.micro_batch == 1:
                    if is_out_of_memory(error):
                        raise AvfsError(
                            f"{self._fabric.device} has not enough memory for {self.micro_batch} clips at once.",
                            hint="Use a smaller --micro-batch (the batch stays as large), --checkpointing, or bf16.",
                        ) from None
                    raise
            self.micro_batch //= 2
            self._passes.release()
            free_memory(self._fabric.device)

    def _conclude(self) -> None:
        epoch = self.progress.epoch + 1
        every = 1 if self._config.validate_every == AUTO else int(self._config.validate_every)
        due = epoch % every == 0 or epoch >= int(self._config.epochs)
        finished = f"all {epoch} epochs done" if epoch >= int(self._config.epochs) else ""
        self.progress = replace(self.progress, epoch=epoch, batch=0, finished=finished)
        best = False
        if due:
            self._model.eval()
            values = self._judge(self._model, epoch).to_dict() if self._fabric.global_rank == 0 else None
            verdict = Verdict.from_dict(self._fabric.broadcast(values))
            best = verdict.better_than(self.progress.best)
            gate = mean_gate(self._model)
            if best:
                self.progress = replace(self.progress, best=verdict, best_epoch=epoch, gate=gate)
            self._note(kind="epoch", step=self.progress.step, epoch=epoch, best=best, gate=gate, **verdict.to_dict())
            self._watcher.judged(epoch, verdict, best)
        self._save(best=best)

    def _save(self, *, best: bool = False) -> None:
        self._saved = time.monotonic()
        if self._fabric.global_rank == 0:
            state = TrainingState.capture(self._model, self._optimisation.parts, progress=self.progress.to_dict())
            self._store.save(self.progress.step, self._describe(self.progress.best), state, best=best)

    def _note(self, **entry: Any) -> None:
        if self._fabric.global_rank == 0:
            self._journal.write(**entry)

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to: all of them stop after the same step."""
        asked = self._stopping()
        if self._fabric.world_size == 1:
            return asked
        flag = torch.tensor(float(asked), device=self._fabric.device)
        return bool(self._fabric.all_reduce(flag, reduce_op="sum") > 0)

    def _pace(self) -> Pace:
        passed = max(time.monotonic() - self._began, 1e-9)
        steps = self._steps_here
        total = self.steps_per_epoch * int(self._config.epochs)
        device = self._fabric.device
        return Pace(
            clips=steps * self._batch * self._fabric.world_size / passed,
            waiting=self._waited / passed,
            memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            left=(total - self.progress.step) * passed / steps,
        )
