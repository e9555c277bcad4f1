"""What a checkpoint says of the training that it comes from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from avfewshot.config import TrainingConfig
from avfewshot.models.checkpoint import AdapterConfig, Identified
from avfewshot.training.selection import Verdict


def describe_training(
    config: TrainingConfig,
    backbone: Identified,
    *,
    labels: Sequence[str],
    wordings: Sequence[str],
    templates: str,
    seed: int,
    support: Mapping[str, Any],
    verdict: Verdict,
) -> AdapterConfig:
    """Describe a state of a training.

    Args:
        config: Its settings.
        backbone: What it was trained on.
        labels: Class names.
        wordings: What stands for them in prompts.
        templates: Name of the prompt templates.
        seed: Its seed.
        support: What it was trained on, JSON-ready.
        verdict: What validation chose.
    """
    return AdapterConfig(
        task=config.task,
        labels=tuple(labels),
        wordings=tuple(wordings),
        templates=templates,
        backbone=backbone.name,
        identity=dict(backbone.identity),
        training=config.to_dict(),
        seed=seed,
        support=dict(support),
        decision={
            "blend": verdict.blend,
            "pool": config.pool,
            "fusion": config.fusion,
            "window": config.window,
            **asdict(verdict.fitted),
        },
        metrics={"validation": {"figure": verdict.figure, "loss": verdict.loss}},
    )
