"""What a training will take, before it begins: clips, steps, size of the model, memory."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from avfewshot.config import AUTO, TrainerConfig, TrainingConfig
from avfewshot.encoders.backbone import Backbone
from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.complexity import ParameterCount, count_flops, count_parameters


@dataclass(frozen=True)
class Plan:
    """What a training takes."""

    clips: int  # clips of the support
    batches: int  # batches of an epoch
    steps: int  # optimizer steps, if all epochs are done
    micro_batch: int  # clips at once, to begin with
    parameters: tuple[ParameterCount, ...]  # by component, and operations of a forward pass over a clip
    flops: dict[str, int]  # floating-point operations of a forward pass over a clip, by component
    weights_bytes: int  # memory of the parameters
    training_bytes: int  # memory of gradients and of the optimizer
    activation_bytes: int  # memory of activations at the peak of a step

    @property
    def memory(self) -> int:
        """Bytes that a training step takes at its peak, as far as tensors go."""
        return self.weights_bytes + self.training_bytes + self.activation_bytes

    def memory_by_part(self) -> str:
        """:attr:`memory` in words."""
        weights, training, activations = (
            f"{part / 1e9:.1f}" for part in (self.weights_bytes, self.training_bytes, self.activation_bytes)
        )
        return (
            f"about {self.memory / 1e9:.1f} GB: weights {weights}, gradients and optimizer {training}, activations of "
            f"{self.micro_batch} clips {activations}"
        )


def make_plan(model: AudioVisualModel, backbone: Backbone, config: TrainerConfig, clips: int) -> Plan:
    """Work out what a training of `clips` clips takes; runs the model, on the CPU in float32, on a single second."""
    batches = -(-clips // config.batch_size)
    limit = config.max_steps if isinstance(config, TrainingConfig) else None
    micro = config.batch_size if config.micro_batch == AUTO else int(config.micro_batch)
    parameters = count_parameters(model, backbone)
    trainable = next(count.trainable for count in parameters if count.component == "all")
    seconds = config.window
    flops = {name: count * seconds for name, count in count_flops(model, *_second(model)).items()}
    short = config.precision in ("bf16", "fp16")  # in which frozen towers are held, all else in float32
    widths = [2 if short and count.component.endswith("tower") else 4 for count in parameters[:-1]]
    return Plan(
        clips=clips,
        batches=batches,
        steps=min(int(config.epochs) * -(-batches // config.accumulation), limit or sys.maxsize),
        micro_batch=micro,
        parameters=tuple(replace(one, flops=flops.get(one.component)) for one in parameters),
        flops=flops,
        weights_bytes=sum(width * count.total for width, count in zip(widths, parameters, strict=False)),
        training_bytes=12 * trainable,  # a gradient and two moments of Adam
        activation_bytes=_activations(model) * seconds * micro // (1 if config.precision == "fp32" else 2),
    )


def _second(model: AudioVisualModel) -> tuple[Tensor, Tensor]:
    size: Any = model.visual_tower.image_size
    return torch.zeros(1, 1, 3, size, size, dtype=torch.uint8), torch.zeros(1, 1, SAMPLE_RATE)


def _activations(model: AudioVisualModel) -> int:
    """Bytes that are kept for the backward pass of one second."""
    everything, largest = _kept(model, checkpointing=False)
    if not model.checkpointing or model.adapters is None:
        return everything
    # What is kept between the halves of layers, and what the largest half keeps while it is computed again: the most
    # that any stretch between two calls of the adapters keeps when nothing is forgotten.
    return _kept(model, checkpointing=True)[0] + largest


def _kept(model: AudioVisualModel, *, checkpointing: bool) -> tuple[int, int]:
    own = {parameter.data_ptr() for parameter in model.parameters()}
    seen: dict[int, int] = {}
    stretches = [0]

    def keep(tensor: Tensor) -> Tensor:
        pointer = tensor.untyped_storage().data_ptr()
        if pointer not in seen and pointer not in own:
            seen[pointer] = tensor.untyped_storage().nbytes()
            stretches[-1] += seen[pointer]
        held.append(tensor)  # so that no address is used twice
        return tensor

    held: list[Tensor] = []
    hook = None if model.adapters is None else model.adapters.register_forward_pre_hook(lambda *_: stretches.append(0))
    before, model.checkpointing = model.checkpointing, checkpointing
    try:
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(*_second(model))
    finally:
        model.checkpointing = before
        if hook is not None:
            hook.remove()
    return sum(seen.values()), max(stretches)
