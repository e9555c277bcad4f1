"""The learning rate over a training, as a factor of its configured value."""

from __future__ import annotations

import math
from collections.abc import Callable

from avfewshot.config import TrainingConfig


def rate_factor(config: TrainingConfig, steps_per_epoch: int) -> Callable[[int], float]:
    """The factor of the learning rate by number of finished steps.

    Args:
        config: Says which schedule; ``cosine`` falls to zero at the last step of the last epoch.
        steps_per_epoch: Optimizer steps of an epoch.

    Returns:
        A function for :class:`torch.optim.lr_scheduler.LambdaLR`.
    """
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
