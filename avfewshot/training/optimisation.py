"""One optimizer step: learning rate by schedule, clipping, and what of it has a state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from avfewshot.config import TrainingConfig
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.training.schedule import rate_factor

if TYPE_CHECKING:
    from lightning_fabric import Fabric


class Optimisation:
    """The optimizer of a training, as configured.

    Args:
        fabric: Device, precision, ranks.
        model: Its trainable parameters are optimised; moved to the device.
        config: Optimizer, rate, schedule, clipping.
        steps_per_epoch: Steps of an epoch, which the schedule goes by.

    Attributes:
        module: The model as Fabric has wrapped it: what forward passes have to call.
    """

    def __init__(self, fabric: Fabric, model: AudioVisualModel, config: TrainingConfig, steps_per_epoch: int) -> None:
        self._fabric, self._config = fabric, config
        model.to(fabric.device)  # Fabric would wonder that the towers are there already
        gates = [] if model.adapters is None else model.adapters.gates()
        ids = {id(gate) for gate in gates}
        others = [parameter for parameter in model.parameters() if parameter.requires_grad and id(parameter) not in ids]
        groups = [{"params": others, "factor": 1.0}, {"params": gates, "factor": config.gate_lr, "weight_decay": 0.0}]
        kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
        self._optimizer = kind([g for g in groups if g["params"]], lr=config.lr, weight_decay=config.weight_decay)
        self.module, self._wrapped = fabric.setup(model, self._optimizer)
        self._factor = rate_factor(config, steps_per_epoch)

    @property
    def parts(self) -> dict[str, Any]:
        """What has a state, by name, for :class:`~avfewshot.training.state.TrainingState`."""
        return {"optimizer": self._optimizer, "precision": self._fabric.strategy.precision}

    def step(self, done: int) -> float:
        """Take a step along the gradients, and remove them.

        Args:
            done: Steps that were taken before.

        Returns:
            The learning rate that was used.
        """
        rate = self._config.lr * self._factor(done)
        for settings in self._optimizer.param_groups:
            settings["lr"] = rate * settings["factor"]
        if self._config.clip_norm:
            self._fabric.clip_gradients(
                self.module, self._wrapped, max_norm=self._config.clip_norm, error_if_nonfinite=False
            )
        self._wrapped.step()
        self._wrapped.zero_grad(set_to_none=True)
        return rate
