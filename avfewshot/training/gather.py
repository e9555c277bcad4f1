"""A contrastive batch that is spread over ranks: embeddings gathered with gradient, gradients averaged.

Every rank gathers the embeddings of all and computes the loss of the whole batch. Two factors meet then, and cancel:

- The gradient of a gathered tensor goes back to the rank that it came from as the *sum* of what all ranks derive for
  it. When R ranks compute one and the same loss, that is R times the gradient of the loss.
- Gradients of parameters are then *averaged* over ranks, by DDP or :func:`average_gradients`, which divides by R.

So no factor has to be put in anywhere: R ranks with B clips each get the loss and the gradients of one rank with R x B
clips, whatever the share of each rank. Parameters that act behind the gathering (text projectors, temperatures) get the
whole gradient on every rank, and their mean is the same. When ranks compute different losses of the gathered tensors
(each its own rows, say), the outcome is the gradient of the mean of these losses.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfewshot.training.ranks import rank, world_size

_DTYPES = (
    torch.float32, torch.float64, torch.float16, torch.bfloat16,
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
)  # fmt: skip
_MAX_DIMS = 8
_BUCKET = 8 * 2**20  # numbers that travel together: few messages, and little memory beside the gradients


@dataclass(frozen=True, eq=False)
class GatheredBatch:
    """The samples of all ranks, in rank order: M = sum of the ranks' N.

    Attributes:
        visual: ``[M, ...]`` with gradient, or None when no rank has a picture.
        audio: The same for sound.
        labels: ``[M]`` or ``[M, K]``.
        visual_present: Bool ``[M]``, False where a sample has no picture; None when all have one.
        audio_present: The same for sound.
    """

    visual: Tensor | None
    audio: Tensor | None
    labels: Tensor
    visual_present: Tensor | None
    audio_present: Tensor | None


def gather_with_gradient(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The tensors of all ranks, in rank order, through which gradients find their way back.

    All ranks have to call this, and all have to run the backward pass if any of their tensors requires a gradient:
    it sums up the gradients of all ranks. The module says how this goes with the averaging of DDP.

    Args:
        tensor: ``[N, ...]``; N may differ from rank to rank and may be 0. On the device that `group` communicates with.
        group: The ranks; None: all.

    Returns:
        ``[sum of N, ...]``; the tensor itself for a single rank and where torch.distributed is not in use.

    Raises:
        ValueError: The tensor has no dimension to join along, or the ranks' tensors differ in dtype or in another
            dimension than the first.
    """
    if tensor.ndim == 0:
        raise ValueError("A tensor without dimensions cannot be gathered; give it one with tensor[None].")
    if world_size(group) == 1:
        return tensor
    return _gather(tensor, _layout(tensor, len(tensor), tensor.device, group), group)


def gather_batch(
    visual: Tensor | None,
    audio: Tensor | None,
    labels: Tensor,
    *,
    visual_present: Tensor | None = None,
    audio_present: Tensor | None = None,
    group: dist.ProcessGroup | None = None,
) -> GatheredBatch:
    """Everything that the contrastive loss needs to know of the samples of all ranks.

    A rank without a picture takes part with zeros that are marked as absent, so that all ranks go the same way.

    Args:
        visual: Embeddings ``[N, ...]`` of this rank, or None when none of its samples has a picture.
        audio: The same for sound.
        labels: Class numbers ``[N]`` or a multi-hot matrix ``[N, K]``, on the device of the embeddings.
        visual_present: Bool ``[N]``, False where a sample has no picture; None: all have one, or none if there are no
            embeddings.
        audio_present: The same for sound.
        group: The ranks; None: all.

    Returns:
        The same for the samples of all ranks.

    Raises:
        ValueError: Embeddings, labels and masks differ in their number of samples, or the ranks' tensors do not fit.
    """
    parts = {}
    for name, embeddings, present in (("visual", visual, visual_present), ("audio", audio, audio_present)):
        for what, value in ((f"{name} embeddings", embeddings), (f"{name} marks of presence", present)):
            if value is not None and len(value) != len(labels):
                raise ValueError(f"There are {len(labels)} labels and {len(value)} {what}.")
        if embeddings is None or present is None:
            present = torch.full((len(labels),), embeddings is not None, device=labels.device)
        present = gather_with_gradient(present.to(labels.device), group)
        parts[name] = _gather_optional(embeddings, labels, group)
        parts[f"{name}_present"] = None if bool(present.all()) else present
    return GatheredBatch(labels=gather_with_gradient(labels, group), **parts)


@torch.no_grad()
def average_gradients(parameters: Iterable[Tensor], group: dist.ProcessGroup | None = None) -> None:
    """Replace gradients by their mean over ranks, as DDP does, for parameters that DDP does not look after.

    Call it once between the last backward pass and the optimizer's step; clip gradients afterwards. A parameter that
    some ranks did not use counts as zero there; one that no rank used keeps None.

    Args:
        parameters: The same on every rank, in the same order. Those that require no gradient are passed over.
        group: The ranks; None: all.
    """
    ranks = world_size(group)
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if ranks == 1 or not parameters:
        return
    used = torch.tensor([int(p.grad is not None) for p in parameters], device=parameters[0].device)
    dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group)
    for bucket in _buckets(p for p, anywhere in zip(parameters, used.tolist(), strict=True) if anywhere):
        for parameter in bucket:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        flat = torch.cat([parameter.grad.flatten() for parameter in bucket])
        dist.all_reduce(flat, group=group)
        flat /= ranks
        for parameter, mean in zip(bucket, flat.split([p.numel() for p in bucket]), strict=True):
            parameter.grad.copy_(mean.view_as(parameter))


def _buckets(parameters: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Parameters of one dtype and device together, up to about :data:`_BUCKET` numbers, in an order that all share."""
    open_buckets: dict[tuple[torch.dtype, torch.device], list[Tensor]] = defaultdict(list)
    numbers: Counter[tuple[torch.dtype, torch.device]] = Counter()
    for parameter in parameters:
        kind = parameter.dtype, parameter.device
        open_buckets[kind].append(parameter)
        numbers[kind] += parameter.numel()
        if numbers[kind] >= _BUCKET:
            yield open_buckets.pop(kind)
            del numbers[kind]
    yield from open_buckets.values()


@dataclass(frozen=True)
class _Layout:
    """What the ranks are about to gather; the same on all of them."""

    rows: tuple[int, ...]
    trailing: tuple[int, ...]
    dtype: torch.dtype
    learns: bool


def _layout(tensor: Tensor | None, rows: int, device: torch.device, group: dist.ProcessGroup | None) -> _Layout | None:
    """Tell the others about the tensor of this rank, and hear of theirs; None when no rank has one."""
    own = torch.zeros(4 + _MAX_DIMS, dtype=torch.int64)
    own[0] = rows
    if tensor is not None:
        learns = tensor.requires_grad and torch.is_grad_enabled()
        # 1 + dtype: 0 says that there is no tensor.
        described = [1 + _DTYPES.index(tensor.dtype), int(learns), tensor.ndim - 1, *tensor.shape[1:]]
        own[1 : 1 + len(described)] = torch.tensor(described)
    own = own.to(device)
    told = [torch.empty_like(own) for _ in range(world_size(group))]
    dist.all_gather(told, own, group=group)
    told = [each.tolist() for each in told]
    forms = {
        number: (_DTYPES[kind - 1], tuple(shape[:dims]))
        for number, (_, kind, _, dims, *shape) in enumerate(told)
        if kind
    }
    if not forms:
        return None
    if len(set(forms.values())) > 1:
        listed = "; ".join(
            f"rank {number}: {dtype} [N, {str(shape)[1:-1]}]" for number, (dtype, shape) in forms.items()
        )
        raise ValueError(f"The tensors of the ranks do not fit together: {listed}.")
    dtype, trailing = next(iter(forms.values()))
    return _Layout(tuple(each[0] for each in told), trailing, dtype, any(each[2] for each in told))


def _gather_optional(tensor: Tensor | None, labels: Tensor, group: dist.ProcessGroup | None) -> Tensor | None:
    """:func:`gather_with_gradient` for a tensor that some ranks do not have."""
    if world_size(group) == 1:
        return tensor
    layout = _layout(tensor, len(labels), labels.device, group)
    if layout is None:
        return None
    if tensor is None:
        tensor = torch.zeros((len(labels), *layout.trailing), dtype=layout.dtype, device=labels.device)
    return _gather(tensor, layout, group)


def _gather(tensor: Tensor, layout: _Layout, group: dist.ProcessGroup | None) -> Tensor:
    if not (layout.learns and torch.is_grad_enabled()):
        return _collect(tensor, layout.rows, group)
    if not tensor.requires_grad:
        # The backward pass is a conversation: a rank that has nothing to learn must not stay away from it.
        tensor = tensor.detach().requires_grad_()
    return _Gather.apply(tensor, layout.rows, group)


class _Gather(torch.autograd.Function):
    """Concatenation over ranks; its adjoint sums over ranks and takes this rank's rows."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, rows: tuple[int, ...], group: dist.ProcessGroup | None) -> Tensor:
        ctx.rows, ctx.group = rows, group
        return _collect(tensor, rows, group)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        # A sum over many ranks in half precision would lose digits. A copy: autograd may hold the gradient elsewhere.
        total = gradient.to(torch.promote_types(gradient.dtype, torch.float32), copy=True).contiguous()
        dist.all_reduce(total, group=ctx.group)
        place = rank(ctx.group)
        own = total.narrow(0, sum(ctx.rows[:place]), ctx.rows[place])
        return own.to(gradient.dtype), None, None


def _collect(tensor: Tensor, rows: tuple[int, ...], group: dist.ProcessGroup | None) -> Tensor:
    """Concatenation over ranks, without gradient. All send equally much, which every backend can do."""
    sent = tensor.detach().contiguous()
    flags = sent.dtype == torch.bool
    if flags:
        sent = sent.to(torch.uint8)  # not every backend sends bools
    padded = sent.new_zeros((max(rows), *sent.shape[1:]))
    padded[: len(sent)] = sent
    if padded.numel():
        received = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(received, padded, group=group)
        padded = torch.cat([part[:count] for part, count in zip(received, rows, strict=True)])
    return padded.bool() if flags else padded
