"""How large a model is and how much it computes: parameters and FLOPs by component (the paper's Table 6)."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.kinds.base import Preset
from avfewshot.encoders.weights.load import WeightsWarning
from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.models.audio_visual import AudioVisualModel


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of a component, and what it computes (the paper's Table 6)."""

    component: str  # what it is, for people; "all" for the sum
    trainable: int  # those that ask for a gradient
    total: int  # all of them
    flops: int | None = None  # floating-point operations for a clip, where they are counted


def count_parameters(model: AudioVisualModel, backbone: Backbone | None = None) -> list[ParameterCount]:
    """Parameters by component (with a backbone also of its text branches, which no model holds), and ``"all"``."""
    parts: dict[str, nn.Module | None] = {
        "visual tower": model.visual_tower,
        "audio tower": model.audio_tower,
        "visual text branch": backbone.visual_text if backbone else None,
        "audio text branch": backbone.audio_text if backbone else None,
        "adapters": model.adapters,
        "projectors": model.projectors,
        "temperatures": model.temperatures,
    }
    counted: set[nn.Parameter] = set()  # a transformer that serves both modalities is the visual tower's
    counts = []
    for name, part in parts.items():
        if part is not None:
            own = [parameter for parameter in part.parameters() if parameter not in counted]
            counted.update(own)
            trainable = sum(parameter.numel() for parameter in own if parameter.requires_grad)
            counts.append(ParameterCount(name, trainable, sum(parameter.numel() for parameter in own)))
    trainable, total = (sum(getattr(count, field) for count in counts) for field in ("trainable", "total"))
    return [*counts, ParameterCount("all", trainable, total)]


def count_flops(model: AudioVisualModel, frames: Tensor, audio: Tensor) -> dict[str, int]:
    """Floating-point operations of a forward pass over clips, by component: both towers, ``"adapters"``, ``"all"``.

    Matrix products, convolutions and attention are counted, a multiplication and an addition as two operations;
    spectrograms, normalisations, recurrences and element-wise work, together a few per cent, are not. The model runs
    three times on `frames` uint8 ``[B, T, 3, S, S]`` and `audio` float32 ``[B, T, samples]``.
    """
    inputs = (frames, None), (None, audio), (frames, audio)
    visual, sound, both = (flops_of(partial(model, *given)) for given in inputs)
    return {"visual tower": visual, "audio tower": sound, "adapters": both - visual - sound, "all": both}


def backbone_cost(preset: Preset, seconds: int = 10) -> dict[str, int]:
    """What a backbone takes, counted on torch's ``meta`` device, where nothing is allocated or computed.

    ``"parameters"`` of encoders and text branches, ``"memory_bytes"`` of these in float32, and ``"flops_per_clip"`` of
    embedding a clip of `seconds`, sight and sound (see :func:`count_flops`); texts are encoded once for all.
    """
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsWarning)  # on how pictures are cut: none is read
        visual, audio, modules = preset.outline()
    parameters = sum(parameter.numel() for parameter in nn.ModuleList(modules).parameters())
    size: Any = visual.image_size
    frames = torch.empty(1, 3, size, size, device="meta")
    sound = torch.empty(1, SAMPLE_RATE, device="meta")
    flops = flops_of(lambda: (visual(frames), audio(sound)))
    return {"parameters": parameters, "memory_bytes": 4 * parameters, "flops_per_clip": seconds * flops}


def flops_of(forward: Callable[[], object]) -> int:
    """Operations of a call, without gradient; see :func:`count_flops` for what is counted."""
    # torch's counter does not know the attention kernel of the CPU.
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    kernels = {kernel: lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        forward()
    return counter.get_total_flops()
