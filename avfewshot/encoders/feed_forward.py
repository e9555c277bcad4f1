"""The feed-forward maps of frozen blocks: two linear maps with a GELU between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from avfewshot.encoders.lean_imports import is_a

_CHUNK_FLOATS = 2**22  # of the hidden features of one chunk (4 MiB in float32): they stay in a processor's cache
_QUICK = 1.702  # QuickGELU(x) = x sigmoid(1.702 x)


def feed_forward(tokens: Tensor, inner: nn.Linear, activation: nn.Module, outer: nn.Linear) -> Tensor:
    """``outer(activation(inner(tokens)))`` of ``[..., C]``, in fewer passes where it is GELU or CLIP's QuickGELU.

    Where a graph is recorded on a processor and both maps are frozen, tokens go in chunks, forward and backward, and
    of the hidden features those before the activation are kept alone.
    """
    quick = is_a(activation, "QuickGELU")
    if not quick and not (isinstance(activation, nn.GELU) and activation.approximate == "none"):
        return outer(activation(inner(tokens)))
    # x sigmoid(a x) = silu(a x) / a; both factors ride along in the matrix products: one pass instead of three.
    factor = _QUICK if quick else 1.0
    maps = (inner.weight, inner.bias, outer.weight, outer.bias)
    rows = tokens.flatten(0, -2)
    frozen = tokens.dtype == inner.weight.dtype and not any(one.requires_grad for one in maps)
    if frozen and tokens.device.type == "cpu" and torch.is_grad_enabled() and tokens.requires_grad:
        return _ChunkedFeedForward.apply(rows, *maps, factor).view_as(tokens)
    hidden = torch.addmm(maps[1], rows, maps[0].t(), beta=factor, alpha=factor)
    hidden = F.silu(hidden) if quick else F.gelu(hidden)
    return torch.addmm(maps[3], hidden, maps[2].t(), alpha=1 / factor).view_as(tokens)


class _ChunkedFeedForward(torch.autograd.Function):
    """:func:`feed_forward` of ``[N, C]`` by frozen maps, a few rows at a time; a `factor` of 1 stands for GELU."""

    @staticmethod
    def forward(
        ctx: Any, tokens: Tensor, inner: Tensor, inner_bias: Tensor, outer: Tensor, outer_bias: Tensor, factor: float
    ) -> Tensor:
        activation = F.gelu if factor == 1 else F.silu
        ctx.rows, ctx.factor = max(1, _CHUNK_FLOATS // len(inner)), factor
        kept, result = tokens.new_empty(len(tokens), len(inner)), torch.empty_like(tokens)
        for given, hidden, out in zip(*(one.split(ctx.rows) for one in (tokens, kept, result)), strict=True):
            torch.addmm(inner_bias, given, inner.t(), beta=factor, alpha=factor, out=hidden)
            torch.addmm(outer_bias, activation(hidden), outer.t(), alpha=1 / factor, out=out)
        ctx.save_for_backward(kept, inner, outer)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        kept, inner, outer = ctx.saved_tensors
        slope = torch.ops.aten.gelu_backward if ctx.factor == 1 else torch.ops.aten.silu_backward
        result = torch.empty_like(gradient)
        for given, hidden, out in zip(*(one.split(ctx.rows) for one in (gradient, kept, result)), strict=True):
            torch.mm(slope(given @ outer, hidden), inner, out=out)  # the factors of both maps cancel each other
        return result, None, None, None, None, None
