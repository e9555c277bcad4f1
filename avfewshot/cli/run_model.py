"""The backbone of a training as its request names it, and what the training begins with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from avfewshot.cli.run_request import Rows

if TYPE_CHECKING:
    import torch

    from avfewshot.encoders.backbone import Backbone
    from avfewshot.evaluation.observer import Observer
    from avfewshot.models.checkpoint import AdapterCheckpoint
    from avfewshot.training.config import TrainingConfig


def load_parts(
    config: TrainingConfig, model: Mapping[str, Any], adapter: str | None, settings: Rows, observer: Observer
) -> tuple[TrainingConfig, Backbone, AdapterCheckpoint | None]:
    """Load the backbone, and the checkpoint to begin with if there is one.

    Args:
        config: The settings of the training.
        model: Values of the settings that choose the backbone, see :func:`avfewshot.cli.run_request.model_values`.
        adapter: The checkpoint's folder, or None.
        settings: All settings: what nobody set is as in the checkpoint.
        observer: Is told what happens.

    Returns:
        The settings, with the adapters of the checkpoint; the backbone on the CPU; the checkpoint.

    Raises:
        AvfsError: Something is missing, damaged, or does not fit.
    """
    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.encoders.presets import load_preset
    from avfewshot.inference.loading import recalled
    from avfewshot.models.checkpoint import load_adapter
    from avfewshot.training.transfer import like_checkpoint

    name, initial = model["backbone"], None
    if adapter is not None:
        # Read before the weights, so that what does not fit is told at once.
        initial = load_adapter(adapter)
        given = [row[0] for row in settings if not row[2].startswith("default")]
        config = like_checkpoint(config, initial, given=given)
        name = name if "backbone" in given else recalled(initial, "backbone", load_preset)
    observer.begin(f"loading {getattr(name, 'name', name)}", 0)
    backbone = build_backbone(
        name,
        weights=model["weights"],
        clip_weights=model["clip_weights"],
        clap_weights=model["clap_weights"],
        roberta=model["roberta"],
    )
    if initial is not None:
        initial.config.check_backbone(backbone, where=initial.path)
    return config, backbone, initial


def say_without_graphs(config: TrainingConfig, device: torch.device, observer: Observer, *, ranks: int = 1) -> None:
    """Say so where ``cuda_graphs`` is asked for and cannot be had: everything is computed all the same.

    Args:
        config: The settings of the training.
        device: Where it computes.
        observer: Is told.
        ranks: How many devices take part.
    """
    if config.cuda_graphs and (device.type != "cuda" or ranks > 1):
        where = f"{ranks} devices" if ranks > 1 else str(device)
        observer.say(f"--cuda-graphs is for a single CUDA device and does nothing on {where}.")
