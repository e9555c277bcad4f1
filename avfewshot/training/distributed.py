"""Lightning Fabric for one device or many, and a contrastive batch that is spread over ranks.

Every rank gathers the embeddings of all and computes the loss of the whole batch. Two factors meet then, and cancel:

- The gradient of a gathered tensor goes back to the rank that it came from as the *sum* of what all ranks derive for
  it. When R ranks compute one and the same loss, that is R times the gradient of the loss.
- Gradients of parameters are then *averaged* over ranks by DDP, which divides by R.

So no factor has to be put in anywhere: R ranks with B clips each get the loss and the gradients of one rank with R x B
clips, whatever the share of each rank. Parameters that act behind the gathering (text projectors, temperatures) get the
whole gradient on every rank, and their mean is the same.
"""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from avfewshot.encoders.tower import Pair
from avfewshot.inference.devices import keep_float32, keep_memory

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


def single_device(device: torch.device, precision: str) -> Fabric:
    """Set Fabric up for one device of this process.

    Formats shorter than fp32 are mixed precision: parameters, their gradients and the optimizer stay in float32.
    """
    return _fabric(device, precision, devices=[device.index or 0] if device.type == "cuda" else 1)


def many_devices(
    device: torch.device, precision: str, *, devices: int | str = 1, nodes: int = 1, strategy: str = "auto"
) -> Fabric:
    """Set Fabric up for several devices or machines, and start the other processes where nobody has.

    Under torchrun and Slurm the processes are there already; torchrun's are counted from the environment.
    """
    from lightning_fabric.strategies.ddp import DDPStrategy

    devices, nodes = launched_ranks(devices, nodes)
    # A Slurm job of several tasks is never taken for a single one: Fabric says which --devices and --nodes it needs.
    single = devices == 1 and nodes == 1 and int(os.environ.get("SLURM_NTASKS") or 1) == 1
    wanted: list[int] | int | str = [device.index or 0] if single and device.type == "cuda" else devices
    # Clips of each length make a forward pass of their own, so ranks differ in their number of passes: if each sent
    # buffers, they would wait for each other for ever. Only frozen towers have any.
    chosen = "auto" if single and strategy == "auto" else DDPStrategy(broadcast_buffers=False)
    return _fabric(device, precision, launch=True, devices=wanted, num_nodes=nodes, strategy=chosen)


def launched_ranks(devices: int | str, nodes: int) -> tuple[int | str, int]:
    """Devices of each machine and machines, corrected: what torchrun has started counts, whatever was asked for."""
    world, local = (int(os.environ.get(name) or 0) for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))
    return (local, world // local) if world > 1 and local else (devices, nodes)


def _fabric(device: torch.device, precision: str, *, launch: bool = False, **options: Any) -> Fabric:
    from lightning_fabric import Fabric

    # Its advice is for people who write loops, not for those who run them; its import sets levels of its own.
    for name in ("lightning_fabric", "lightning_fabric.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    keep_float32()
    if device.type == "cpu":
        keep_memory()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fabric = Fabric(accelerator=device.type, precision=cast("Any", _PRECISIONS[precision]), **options)
        if launch:
            fabric.launch()
    return fabric


@contextlib.contextmanager
def parting(fabric: Fabric) -> Iterator[None]:
    """Where the block succeeds, all ranks wait for each other and end what connects them before any of them leaves."""
    yield
    if dist.is_available() and dist.is_initialized():
        fabric.barrier()
        dist.destroy_process_group()


@dataclass(frozen=True, eq=False)
class GatheredBatch:
    """The samples of all ranks, in rank order: M = sum of the ranks' N."""

    visual: Tensor | None  # [M, D_v] with gradient, or None when no rank has a picture
    audio: Tensor | None  # the same for sound
    labels: Tensor  # bool [M, K]
    present: Pair  # bool [M], False where a sample has no picture, or no sound; None: all have one


def gather_batch(
    visual: Tensor | None, audio: Tensor | None, labels: Tensor, present: tuple[Tensor, Tensor]
) -> GatheredBatch:
    """Everything that the contrastive loss needs to know of the samples of all ranks.

    All ranks have to call this, and to run the backward pass of what they make of it. A rank without a picture takes
    part with zeros, so that all ranks go the same way. Embeddings of this rank are ``[N, D]``, None when none of its
    samples has the modality; N may differ from rank to rank. Labels are bool ``[N, K]``; masks, bool ``[N]``, are False
    where a sample lacks the modality. A ValueError where embeddings of ranks differ in width or size of a number.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return GatheredBatch(visual, audio, labels, (_mask(present[0]), _mask(present[1])))
    # The ranks tell each other their sizes: rows, and for each modality width and bytes of a number, 0 for none.
    own = [len(labels)]
    for part in (visual, audio):
        own += (0, 0) if part is None else (part.shape[-1], max(4, part.element_size()))
    sizes = [torch.zeros(5, dtype=torch.int64, device=labels.device) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor(own, device=labels.device))
    table = torch.stack(sizes).tolist()
    rows = [row[0] for row in table]
    embeddings = []
    for part, column in ((visual, 1), (audio, 3)):
        forms = sorted({(row[column], row[column + 1]) for row in table if row[column]})
        if len(forms) > 1:
            raise ValueError(f"The embeddings of the ranks do not fit together: (width, bytes) {forms}.")
        if not forms:
            embeddings.append(None)
            continue
        if part is None:
            dtype = torch.float64 if forms[0][1] == 8 else torch.float32
            part = torch.zeros((len(labels), forms[0][0]), dtype=dtype, device=labels.device)
        # Without a gradient of its own a rank would stay away from the backward pass, which is a conversation. And a
        # sum of gradients over many ranks in half precision would lose digits.
        part = part if part.requires_grad else part.requires_grad_()
        embeddings.append(_gather(part.to(torch.promote_types(part.dtype, torch.float32)), rows))
    marks = torch.cat((labels, torch.stack(present, 1)), 1)
    marks = _gather(marks.to(torch.uint8), rows).bool()  # not every backend sends bools
    return GatheredBatch(embeddings[0], embeddings[1], marks[:, :-2], (_mask(marks[:, -2]), _mask(marks[:, -1])))


def _mask(present: Tensor) -> Tensor | None:
    return None if bool(present.all()) else present


def _gather(part: Tensor, rows: list[int]) -> Tensor:
    """Concatenation over ranks; all send equally much, which every backend can do."""
    from torch.distributed.nn.functional import all_gather

    padded = torch.cat((part, part.new_zeros((max(rows) - len(part), *part.shape[1:]))))
    if not part.requires_grad:
        received = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(received, padded)
    else:
        received = all_gather(padded, dist.group.WORLD)
    return torch.cat([each[:count] for each, count in zip(received, rows, strict=True)])
