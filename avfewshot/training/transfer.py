"""Beginning a training with tensors that were trained before."""

from __future__ import annotations

from collections.abc import Collection

from avfewshot.config import SHAPING, TrainerConfig, read_training
from avfewshot.errors import UsageError
from avfewshot.models.checkpoint import AdapterCheckpoint


def like_checkpoint(
    config: TrainerConfig, checkpoint: AdapterCheckpoint, *, given: Collection[str] = ()
) -> TrainerConfig:
    """Give a training the adapters and projectors of a checkpoint, so that its tensors fit.

    Args:
        config: The settings of the new training.
        checkpoint: What it begins with.
        given: Names of settings that somebody has set: these must not contradict the checkpoint.

    Returns:
        The settings with those of the checkpoint's adapters.

    Raises:
        UsageError: Settings contradict the checkpoint; all of them are listed.
    """
    before = read_training(checkpoint.config.training, where=str(checkpoint.path / "config.json"))
    kept = {name: getattr(before, name) for name in SHAPING}
    wrong = [name for name in SHAPING if name in given and getattr(config, name) != kept[name]]
    if wrong:
        shown = ", ".join(f"{name} {getattr(config, name)} instead of {kept[name]}" for name in wrong)
        raise UsageError(
            f"{checkpoint.path}: was trained with other settings: {shown}.",
            hint="Leave them out, or begin without --adapter.",
        )
    return config.replace(**kept)
