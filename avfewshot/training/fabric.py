"""Lightning Fabric for one device: it runs forward and backward passes in the precision that is asked for."""

from __future__ import annotations

import logging
import warnings
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def single_device(device: torch.device, precision: str) -> Fabric:
    """Set Fabric up for one device of this process.

    Args:
        device: From :func:`avfewshot.devices.resolve_device`.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; the shorter formats in mixed precision, with parameters, their
            gradients and the optimizer in float32.

    Returns:
        Fabric, ready for ``setup``.
    """
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    from lightning_fabric import Fabric

    devices: list[int] | int = [device.index or 0] if device.type == "cuda" else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for programs of another kind
        return Fabric(accelerator=device.type, devices=devices, precision=_PRECISIONS[precision])
