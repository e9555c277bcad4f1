"""Lightning Fabric for one device or many: it runs forward and backward passes in the precision that is asked for."""

from __future__ import annotations

import logging
import os
import warnings
from typing import TYPE_CHECKING

import torch

from avfewshot.inference.devices import keep_float32

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def single_device(device: torch.device, precision: str) -> Fabric:
    """Set Fabric up for one device of this process.

    Args:
        device: From :func:`avfewshot.inference.devices.resolve_device`.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``; the shorter formats in mixed precision, with parameters, their
            gradients and the optimizer in float32.

    Returns:
        Fabric, ready for ``setup``.
    """
    from lightning_fabric import Fabric

    _quiet()
    keep_float32()
    devices: list[int] | int = [device.index or 0] if device.type == "cuda" else 1
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice for programs of another kind
        return Fabric(accelerator=device.type, devices=devices, precision=_PRECISIONS[precision])


def many_devices(
    device: torch.device, precision: str, *, devices: int | str = 1, nodes: int = 1, strategy: str = "auto"
) -> Fabric:
    """Set Fabric up for several devices or machines, and start the other processes where nobody has.

    Under torchrun and Slurm the processes are there already; torchrun's are counted from the environment.

    Args:
        device: The kind of device.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        devices: Devices (on a CPU: processes) of each machine, or ``"auto"``: all of them.
        nodes: Machines.
        strategy: ``"auto"``: DDP where there are several ranks; or ``"ddp"``.

    Returns:
        Fabric, launched.
    """
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import DDPStrategy

    _quiet()
    keep_float32()
    devices, nodes = launched_ranks(devices, nodes)
    # A Slurm job of several tasks is never taken for a single one: Fabric says which --devices and --nodes it needs.
    single = devices == 1 and nodes == 1 and int(os.environ.get("SLURM_NTASKS") or 1) == 1
    wanted: list[int] | int | str = [device.index or 0] if single and device.type == "cuda" else devices
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(
            accelerator=device.type,
            devices=wanted,
            num_nodes=nodes,
            # Clips of each length make a forward pass of their own, so ranks differ in their number of passes: if
            # each sent buffers, they would wait for each other for ever. Only frozen towers have any.
            strategy="auto" if single and strategy == "auto" else DDPStrategy(broadcast_buffers=False),
            precision=_PRECISIONS[precision],
        )
        fabric.launch()
    return fabric


def launched_ranks(devices: int | str, nodes: int) -> tuple[int | str, int]:
    """How many ranks there are: what torchrun has started counts, whatever was asked for.

    Args:
        devices: Devices of each machine, as asked for.
        nodes: Machines, as asked for.

    Returns:
        The same, corrected.
    """
    world, local = (int(os.environ.get(name) or 0) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return (local, world // local) if world > 1 and local else (devices, nodes)


def _quiet() -> None:
    """Its advice is for people who write loops, not for those who run them; its import sets levels of its own."""
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
