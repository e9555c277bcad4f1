"""One optimizer step: learning rate by schedule, clipping, and what of it has a state."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from avfewshot.config import TrainerConfig

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class OptimizerStep:
    """The optimizer of a training; `factor` gives that of the learning rate by number of finished steps."""

    def __init__(self, fabric: Fabric, model: Any, config: TrainerConfig, factor: Callable[[int], float]) -> None:
        self._fabric, self._config, self._factor = fabric, config, factor
        model.to(fabric.device)  # Fabric would wonder that the towers are there already
        adapters = getattr(model, "adapters", None)
        gates = [] if adapters is None else adapters.gates()
        ids = {id(gate) for gate in gates}
        others = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in ids]
        groups = [{"params": others, "factor": 1.0}, {"params": gates, "factor": config.gate_lr, "weight_decay": 0.0}]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        self._optimizer = kind(
            [g for g in groups if g["params"]],
            lr=config.lr,
            weight_decay=config.weight_decay,
            # One pass over memory instead of ten. Not with a gradient scaler: it would unscale before clipping does.
            fused=not getattr(fabric.strategy.precision, "scaler", None) and fabric.device.type in ("cpu", "cuda"),
        )
        # What forward passes have to call: the model as Fabric has wrapped it.
        self.module, self._wrapped = fabric.setup(model, self._optimizer)

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state, by name, for :class:`~avfewshot.training.checkpoints.TrainingState`."""
        return {"optimizer": self._optimizer, "precision": self._fabric.strategy.precision}

    def step(self, done: int) -> float:
        """Take a step along the gradients after `done` others, and remove them; gives the learning rate used."""
        lr = self._config.lr * self._factor(done)
        for group in self._optimizer.param_groups:
            group["lr"] = lr * group["factor"]
        if self._config.clip_norm:
            self._fabric.clip_gradients(
                self.module, self._wrapped, max_norm=self._config.clip_norm, error_if_nonfinite=False
            )
        self._wrapped.step()
        self._wrapped.zero_grad(set_to_none=True)
        return lr


def lr_lambda(config: TrainerConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor of the learning rate by number of finished steps; ``cosine`` falls to zero at the very last one."""
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
