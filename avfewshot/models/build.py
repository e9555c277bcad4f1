"""Models from a backbone: a fresh one to train, one with trained adapters, and that beside the frozen towers."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from avfewshot.adapters.base import CrossModalAdapter, pair_towers
from avfewshot.adapters.registry import build_adapter
from avfewshot.adapters.settings import SETTINGS
from avfewshot.config import AUTO, NONE, SupervisedTrainingConfig, TrainerConfig, read_training
from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.tower import Pair
from avfewshot.errors import DataError
from avfewshot.models.anchors import SupportAnchors
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.checkpoint import CONFIG_NAME, AdapterCheckpoint, AdapterConfig, load_adapter
from avfewshot.models.projectors import Projectors

_LARGE = 50_000_000
"""Parameters of both towers from which on activations are computed twice; ViT-B/32 and HTS-AT have 119 M."""
_ROOMY = 16 * 10**9
"""Bytes of a GPU that holds the activations of a clip of any packaged backbone; larger batches go in pieces."""


def build_model(
    backbone: Backbone,
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
                # A third of the width of CLIP's tokens, 256 for ViT-B as published.
                tower: Any = backbone.visual
                settings = {"hidden": max(1, tower.token_shapes[0][1] // 3), **settings}
            adapters = build_adapter(config.adapter, layers, settings)
        if config.projector != NONE:
            widths = backbone.visual.output_dim, backbone.audio.output_dim
            projectors = Projectors(*widths, kind=config.projector)
    checkpointing = config.checkpointing
    if checkpointing == AUTO:
        towers = (backbone.visual, backbone.audio)
        large = sum(parameter.numel() for tower in towers for parameter in tower.parameters()) > _LARGE
        gpu = device if device is not None and device.type == "cuda" else None
        checkpointing = large and not (gpu and torch.cuda.get_device_properties(gpu).total_memory >= _ROOMY)
    return AudioVisualModel(backbone, adapters, projectors, guided_layers=guided, checkpointing=bool(checkpointing))


def load_model(
    trained: AdapterCheckpoint | str | os.PathLike[str], backbone: Backbone
) -> tuple[AudioVisualModel, AdapterConfig]:
    """Put trained adapters and projectors on the backbone that they were trained with, in evaluation mode.

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


class EnsembleModel(nn.Module):
    """Embeddings of the frozen towers alone, and beside them those of the trained model, from one decoded clip."""

    def __init__(self, plain: AudioVisualModel, trained: AudioVisualModel) -> None:
        super().__init__()
        self.plain = plain
        self.trained = trained

    @property
    def adapters(self) -> CrossModalAdapter | None:
        """Those of the trained model."""
        return self.trained.adapters

    def forward(self, frames: Tensor | None, audio: Tensor | None, **present: Tensor | None) -> Pair:
        """Embed clips as ``AudioVisualModel`` does, ``[B, T, 2 D]``: by the towers, then by the trained model."""
        before = self.plain(frames, audio)
        if frames is None or audio is None or self.adapters is None:
            after = list(before)  # nothing guides the towers: they need not run twice
            if (projectors := self.trained.projectors) is not None:
                sides = projectors.visual, projectors.audio
                after = [None if one is None else side(one) for side, one in zip(sides, before, strict=True)]
        else:
            after = self.trained(frames, audio, **present)
        pairs = zip(before, after, strict=True)
        visual, sound = (None if one is None or two is None else torch.cat((one, two), -1) for one, two in pairs)
        return visual, sound
