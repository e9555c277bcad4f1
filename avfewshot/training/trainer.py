"""The training loop: epochs, steps, validation, early stopping, checkpoints; resumes bit for bit, on one rank or many.

What is learnt is a :class:`TrainTask`; how, and where it stands, is a :class:`Trainer`'s. Everything random is a
function of seed and epoch (the order, windows of long clips) or stored (optimizer, generators), so a training that was
stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from avfewshot.config import AUTO, TrainerConfig
from avfewshot.errors import AvfsError
from avfewshot.inference.devices import free_memory, is_out_of_memory
from avfewshot.models.losses import CombinedLoss
from avfewshot.training.checkpoints import CheckpointManager, Resumed, TrainingState
from avfewshot.training.cuda_graphs import EagerRunner, make_runner
from avfewshot.training.gradcache import Embeddings, cached_backward
from avfewshot.training.metrics_log import MetricsLogger
from avfewshot.training.protocol import Callback, Pace, Progress, TrainTask
from avfewshot.training.validation import ValMetrics

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_LOG = logging.getLogger(__name__)
SAVE_SECONDS = 300.0
"""A checkpoint is written when an epoch ends with the best model so far, and else when so much time has passed."""


class Trainer:
    """One training of one model; over several ranks the same object is made on each.

    Args:
        fabric: Launched; device, precision, ranks.
        model: With fresh trainable parts, equal on all ranks: a module with ``trainable_state()`` and
            ``load_trainable_state()`` as :class:`~avfewshot.models.audio_visual.AudioVisualModel` has them.
        config: Optimizer, schedule, batches, epochs; `patience` (epochs without a better figure) where it has one.
        task: What is learnt.
        callbacks: Are told how it goes.
        folder: Gets ``checkpoints/`` and ``metrics.jsonl``; rank 0 writes.
        seed: Of the order.
        stopping: Whether somebody asked to stop; looked at after each step.
    """

    progress: Progress  # from `fit` or `resume` on

    def __init__(
        self,
        fabric: Fabric,
        model: Any,
        config: TrainerConfig,
        task: TrainTask,
        callbacks: Iterable[Callback] = (),
        *,
        folder: Path,
        seed: int,
        stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        if fabric.world_size > 1 and not task.gradcache:
            raise ValueError("Over several ranks a task needs gradcache = True.")
        self.fabric, self.model, self.config, self.task, self.seed = fabric, model, config, task, seed
        self.callbacks, self.stopping = tuple(callbacks), stopping
        self.checkpoints = CheckpointManager(folder / "checkpoints")
        self.log = MetricsLogger(folder / "metrics.jsonl")
        # Samples that go through the model at once; halved when memory ends.
        self.micro_batch = config.batch_size if config.micro_batch == AUTO else int(config.micro_batch)
        self.step_size = config.batch_size * config.accumulation
        # Rank 0 has the most clips: the others take part in its last step with what they have, or with nothing.
        self.steps_per_epoch = -(-task.source.count(0, fabric.world_size) // self.step_size)
        self.lr_factor = task.lr_lambda(config, self.steps_per_epoch)
        # What forward passes have to call: the model as Fabric has wrapped it.
        self.module, self.optimizer = fabric.setup(model.to(fabric.device), self._make_optimizer())
        self.parts = {"optimizer": self.optimizer.optimizer, "precision": fabric.strategy.precision}  # with a state
        self.runner: EagerRunner = make_runner(fabric, self.module, model, config.cuda_graphs)
        self._resumed = False
        self._saved = self._began = time.monotonic()
        self._waited, self._steps_here = 0.0, 0

    def _make_optimizer(self) -> torch.optim.Optimizer:
        config, fabric, adapters = self.config, self.fabric, getattr(self.model, "adapters", None)
        gates = [] if adapters is None else adapters.gates()
        ids = {id(gate) for gate in gates}
        others = [one for one in self.model.parameters() if one.requires_grad and id(one) not in ids]
        groups = [{"params": others, "factor": 1.0}, {"params": gates, "factor": config.gate_lr, "weight_decay": 0.0}]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        return kind(
            [group for group in groups if group["params"]],
            lr=config.lr,
            weight_decay=config.weight_decay,
            # One pass over memory instead of ten. Not with a gradient scaler: it would unscale before clipping does.
            fused=not getattr(fabric.strategy.precision, "scaler", None) and fabric.device.type in ("cpu", "cuda"),
        )

    def resume(self, found: Resumed) -> list[str]:
        """Go on from a checkpoint; gives what could not be restored here, for people.

        An :class:`AvfsError` where the number of ranks differs, or the state does not fit.
        """
        before = found.config.support.get("ranks", 1)
        if before != self.fabric.world_size:
            raise AvfsError(
                f"The training was begun on {before} ranks and cannot go on with {self.fabric.world_size}: its "
                "batches would hold other clips.",
                hint=f"Resume on {before} ranks, or begin anew with --adapter RUN.",
            )
        self.progress = Progress.from_dict(found.state.progress)
        lost = found.state.restore(self.model, self.parts)
        step = self.progress.step
        if self.fabric.global_rank == 0:
            # An epoch is validated after its last step: whether that was before the checkpoint is told by the epoch.
            self.log.rewind({"step": step, "epoch": min(step, self.progress.epoch * self.steps_per_epoch)})
            if not found.skipped:  # what a killed process was about to remove; a training that is done saves no more
                self.checkpoints.tidy()
        self._resumed = True
        return lost

    def fit(self, resume: Resumed | None = None) -> Progress:
        """Train until the last epoch, or until validation has not improved for as long as the settings say.

        Gives where it ended; `finished` is empty when it was asked to stop, with its state saved.

        Raises:
            AvfsError: A clip cannot be read any more, memory does not suffice, or the loss is not finite.
        """
        done = False
        try:
            if resume is not None:
                lost = [f"This does not resume bit for bit: {reason}" for reason in self.resume(resume)]
                older = [f"An older checkpoint is gone on from: {reason}" for reason in resume.skipped]
                for callback, message in product(self.callbacks, (*older, *lost)):
                    callback.on_warning(message)
            if not self._resumed:
                self._begin()
            self.fabric.barrier()
            while not self.progress.finished:
                if not self._epoch():
                    self._save()
                    break
                self._end_epoch()
            self.fabric.barrier()
            done = bool(self.progress.finished)
        finally:
            for callback in self.callbacks:
                callback.on_fit_end(done)
        return self.progress

    def _begin(self) -> None:
        metrics = self._on_rank_0(lambda: self.task.baseline(self.model.eval()))
        self.progress = Progress(epoch=0, batch=0, step=0, best=metrics, best_epoch=0, gate=mean_gate(self.model))
        # The log before the checkpoint: a process that is killed in between comes by here again.
        if self.fabric.global_rank == 0:
            self.log.rewind({})
        self._log(kind="epoch", step=0, epoch=0, best=True, gate=self.progress.gate, **metrics.to_dict())
        self._save(best=True)

    def _epoch(self) -> bool:
        """Take the steps that are left of an epoch; False: somebody asked to stop."""
        progress, rank, world = self.progress, self.fabric.global_rank, self.fabric.world_size
        self.model.train()
        for callback in self.callbacks:
            callback.on_epoch_start(progress.epoch + 1, self.steps_per_epoch, progress.batch)
        start = min(progress.batch * self.step_size, self.task.source.count(rank, world))
        place = {"rank": rank, "world": world, "start": start}
        stream: Any = self.task.source.stream(seed=self.seed, epoch=progress.epoch, **place)
        with closing(stream):
            while self.progress.batch < self.steps_per_epoch:
                began = time.monotonic()
                samples = [self.task.sample(item, progress.epoch) for item in islice(stream, self.step_size)]
                self._waited += time.monotonic() - began
                self._step([sample for sample in samples if sample is not None])
                if self._asked_to_stop():
                    return False
                if time.monotonic() - self._saved > SAVE_SECONDS:
                    self._save()
        return True

    def _step(self, samples: list[Any]) -> None:
        step = self.progress.step
        loss = self.accumulate(samples)
        if not math.isfinite(loss["loss"]):
            raise AvfsError(
                "The loss is not a finite number any more.", hint="Use --precision fp32, or a smaller --lr."
            )
        lr = self.descend(step)
        self.progress = replace(self.progress, step=step + 1, batch=self.progress.batch + 1)
        self._steps_here += 1
        self._log(kind="step", step=step + 1, epoch=self.progress.epoch + 1, **loss, lr=lr)
        pace = self._pace()
        for callback in self.callbacks:
            callback.on_step(step + 1, loss["loss"], pace)

    def descend(self, done: int) -> float:
        """Step along the gradients after `done` other steps, and remove them; gives the learning rate used."""
        lr = self.config.lr * self.lr_factor(done)
        for group in self.parts["optimizer"].param_groups:  # of which Fabric's wrapper has an old copy after a resume
            group["lr"] = lr * group["factor"]
        if self.config.clip_norm:
            self.fabric.clip_gradients(
                self.module, self.optimizer, max_norm=self.config.clip_norm, error_if_nonfinite=False
            )
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return lr

    def accumulate(self, samples: list[Any]) -> dict[str, float]:
        """Leave the mean gradient of the batches of a step in the parameters; gives their mean loss and its parts.

        When memory runs out, micro-batches are halved and the step begins again; an :class:`AvfsError` where that
        cannot be done: with one clip, or with several ranks.
        """
        while True:
            self.runner.prepare()
            losses = self._attempt(self.task.batches(samples, self.config.batch_size))
            if losses is not None:
                return {name: sum(loss[name] for loss in losses) / len(losses) for name in losses[0]}
            # A rank that began a step again would wait for the others, who have gone on.
            if self.micro_batch == 1 or self.fabric.world_size > 1:
                raise AvfsError(
                    f"{self.fabric.device} has not enough memory for a training step with {self.micro_batch} "
                    f"{'clip' if self.micro_batch == 1 else 'clips'} at once.",
                    hint="Use a smaller --micro-batch (the batch stays as large), --checkpointing, --precision bf16, a "
                    "smaller --window or a smaller --backbone.",
                )
            tried, self.micro_batch = self.micro_batch, self.micro_batch // 2
            self.runner.release()
            free_memory(self.fabric.device)
            _LOG.warning(
                "%s ran out of memory with %d clips at once; going on with %d.",
                self.fabric.device,
                tried,
                self.micro_batch,
            )

    def _attempt(self, batches: list[list[Any]]) -> list[dict[str, float]] | None:
        # The error, whose traceback holds the activations, is gone when this returns: their memory is free again.
        self.model.zero_grad(set_to_none=True)
        backward = self._backward_cached if self.task.gradcache else self._backward_pieces
        try:
            return [backward(batch, 1 / len(batches)) for batch in batches]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _backward_cached(self, batch: list[Any], share: float) -> dict[str, float]:
        """One loss of all micro-batches."""
        several = self.fabric.world_size > 1
        found = []

        def loss(embeddings: Embeddings) -> Tensor:
            found.append(self.task.loss(embeddings, batch))
            return _total(found[0]) * share

        cached_backward(
            [lambda piece=piece: self.task.embed(self.runner, piece) for piece in self._pieces(batch)],
            loss,
            backward=self.fabric.backward,
            no_sync=(lambda: self.fabric.no_backward_sync(self.module)) if several else None,
            parameters=[p for p in self.model.parameters() if p.requires_grad] if several else (),
        )
        return _loss_values(found[0])

    def _backward_pieces(self, batch: list[Any], share: float) -> dict[str, float]:
        """A loss of each micro-batch, weighted by its samples."""
        total = self.task.weight(batch)
        losses = []
        for piece in self._pieces(batch):
            loss = self.task.loss(self.task.embed(self.runner, piece), piece)
            weight = self.task.weight(piece) / total
            self.fabric.backward(_total(loss) * (share * weight))
            losses.append((weight, _loss_values(loss)))
        return {name: sum(weight * values[name] for weight, values in losses) for name in losses[0][1]}

    def _pieces(self, batch: list[Any]) -> list[list[Any]]:
        return [batch[start : start + self.micro_batch] for start in range(0, len(batch), self.micro_batch)]

    def _end_epoch(self) -> None:
        """Validate the model after an epoch, if it is time, and save."""
        epoch, best = self.progress.epoch + 1, False
        last = epoch >= int(self.config.epochs)
        self.progress = replace(
            self.progress, epoch=epoch, batch=0, finished=f"all {epoch} epochs done" if last else ""
        )
        metrics = None
        if last or epoch % self.task.validate_every == 0:
            metrics = self._on_rank_0(lambda: self.task.validate(self.model.eval(), epoch))
            best, gate = metrics.better_than(self.progress.best), mean_gate(self.model)
            if best:
                self.progress = replace(self.progress, best=metrics, best_epoch=epoch, gate=gate)
            waited, patience = epoch - self.progress.best_epoch, getattr(self.config, "patience", 0)
            if not last and patience and waited >= patience:
                self.progress = replace(self.progress, finished=f"no better for {waited} epochs")
            self._log(kind="epoch", step=self.progress.step, epoch=epoch, best=best, gate=gate, **metrics.to_dict())
        due = self.task.save_every_epoch or time.monotonic() - self._saved > SAVE_SECONDS
        if best or due or self.progress.finished:
            self._save(best=best)
        if metrics is not None:
            for callback in self.callbacks:
                callback.on_validate(epoch, metrics, best)

    def _on_rank_0(self, compute: Callable[[], ValMetrics]) -> ValMetrics:
        return self.fabric.broadcast(compute() if self.fabric.global_rank == 0 else None)  # type: ignore

    def _save(self, *, best: bool = False) -> None:
        self._saved = time.monotonic()
        if self.fabric.global_rank == 0:
            state = TrainingState.capture(self.model, self.parts, progress=self.progress.to_dict())
            self.checkpoints.save(self.progress.step, self.task.metadata(self.progress.best), state, best=best)

    def _log(self, **entry: Any) -> None:
        if self.fabric.global_rank == 0:
            self.log.log(**entry)
            for callback in self.callbacks:
                callback.on_log(entry)

    def _asked_to_stop(self) -> bool:
        """Whether any rank was asked to: all of them stop after the same step."""
        asked = self.stopping()
        if self.fabric.world_size == 1:
            return asked
        flag: Any = self.fabric.all_reduce(torch.tensor(float(asked), device=self.fabric.device), reduce_op="sum")
        return bool(flag > 0)

    def _pace(self) -> Pace:
        passed = max(time.monotonic() - self._began, 1e-9)
        device = self.fabric.device
        return Pace(
            clips=self._steps_here * self.step_size * self.fabric.world_size / passed,
            waiting=self._waited / passed,
            memory=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            left=(self.steps_per_epoch * int(self.config.epochs) - self.progress.step) * passed / self._steps_here,
        )


def _total(loss: CombinedLoss | Tensor) -> Tensor:
    return loss if isinstance(loss, Tensor) else loss.total


def _loss_values(loss: CombinedLoss | Tensor) -> dict[str, float]:
    if isinstance(loss, Tensor):
        return {"loss": loss.item()}
    return {
        "loss": loss.total.item(),
        "visual_loss": loss.visual.item(),
        "audio_loss": loss.audio.item(),
        "visual_weight": loss.weights[:, 0].mean().item(),
    }


def mean_gate(model: Any) -> float:
    """See :meth:`~avfewshot.adapters.base.CrossModalAdapter.mean_gate`; 0 without adapters."""
    adapters = getattr(model, "adapters", None)
    return 0.0 if adapters is None else adapters.mean_gate()
