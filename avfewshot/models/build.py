"""Models from a backbone: a fresh one to train, or one with trained adapters."""

from __future__ import annotations

import os
from typing import Any, Protocol

import torch

from avfewshot.adapters.base import pair_towers
from avfewshot.adapters.projectors import Projectors
from avfewshot.adapters.registry import build_adapter
from avfewshot.adapters.settings import SETTINGS
from avfewshot.config import AUTO, NONE, SupervisedTrainingConfig, TrainerConfig, read_training
from avfewshot.errors import DataError
from avfewshot.models.anchors import SupportAnchors
from avfewshot.models.audio_visual import AudioVisualModel, Towers
from avfewshot.models.checkpoint import CONFIG_NAME, AdapterCheckpoint, AdapterConfig, Identified, load_adapter

_LARGE = 50_000_000
"""Parameters of both towers from which on activations are computed twice; ViT-B/32 and HTS-AT have 119 M."""
_ROOMY = 16 * 10**9
"""Bytes of a GPU that holds the activations of a clip of any packaged backbone; larger batches go in pieces."""


class NamedTowers(Towers, Identified, Protocol):
    """The part of a backbone that trained tensors need."""


def build_model(
    backbone: Towers,
    config: TrainerConfig | SupervisedTrainingConfig,
    *,
    seed: int = 0,
    device: torch.device | None = None,
) -> AudioVisualModel:
    """Put adapters and projectors on a backbone, as configured; fresh ones change nothing until they are trained.

    Raises:
        UsageError: The adapter does not know one of its settings.
    """
    adapters = projectors = None
    guided = None if config.guided_layers == "all" else int(config.guided_layers)
    if config.variant == "released-8-heads":
        from avfewshot.encoders.spectrogram_tower import with_released_heads

        backbone = with_released_heads(backbone)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if config.adapter != NONE:
            layers = pair_towers(backbone.visual, backbone.audio)[-(guided or 0) :]
            settings = config.adapter_settings
            if config.adapter not in SETTINGS or config.adapter == "dgsct":
                settings = {"hidden": default_hidden(backbone), **settings}
            adapters = build_adapter(config.adapter, layers, settings)
        if config.projector != NONE:
            widths = backbone.visual.output_dim, backbone.audio.output_dim
            projectors = Projectors(*widths, kind=config.projector)
    checkpointing = config.checkpointing
    if checkpointing == AUTO:
        towers = (backbone.visual, backbone.audio)
        large = sum(parameter.numel() for tower in towers for parameter in tower.parameters()) > _LARGE
        checkpointing = large and not _is_roomy(device)
    return AudioVisualModel(backbone, adapters, projectors, guided_layers=guided, checkpointing=bool(checkpointing))


def _is_roomy(device: torch.device | None) -> bool:
    return (
        device is not None and device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= _ROOMY
    )


def default_hidden(backbone: Towers) -> int:
    """Width of the space of attention maps: a third of that of CLIP's tokens, 256 for ViT-B as published."""
    tower: Any = backbone.visual
    return max(1, tower.token_shapes[0][1] // 3)


def load_model(
    trained: AdapterCheckpoint | str | os.PathLike[str], backbone: NamedTowers
) -> tuple[AudioVisualModel, AdapterConfig]:
    """Put trained adapters and projectors on the backbone that they were trained with.

    The model is in evaluation mode; beside it stands what the checkpoint tells of itself.

    Raises:
        DataError: There is no checkpoint, or its configuration is damaged.
        UsageError: Its training configuration is not valid.
        WeightsError: The tensors are damaged, or belong to another backbone.
    """
    checkpoint = trained if isinstance(trained, AdapterCheckpoint) else load_adapter(trained)
    checkpoint.config.check_backbone(backbone, where=checkpoint.path)
    config = read_training(checkpoint.config.training, where=os.fspath(checkpoint.path / "config.json"))
    try:
        # Widths that a stranger's file asks for are compared with its tensors before anything is allocated.
        with torch.device("meta"):
            _with_anchors(build_model(backbone, config), checkpoint).check_trainable_state(checkpoint.tensors)
    except (RuntimeError, OverflowError, TypeError) as error:  # sizes beyond what a tensor can have
        reason = " ".join(str(error).split())[:120]
        raise DataError(f"{checkpoint.path / CONFIG_NAME}: describes no model that can be built ({reason}).") from None
    model = _with_anchors(build_model(backbone, config), checkpoint)
    model.load_trainable_state(checkpoint.tensors)
    return model.eval(), checkpoint.config


def _with_anchors(model: AudioVisualModel, checkpoint: AdapterCheckpoint) -> AudioVisualModel:
    widths = model.visual_tower.output_dim, model.audio_tower.output_dim
    model.anchors = SupportAnchors.like(checkpoint.tensors, checkpoint.config.labels, widths)
    return model
