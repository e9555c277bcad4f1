"""Attention as towers and adapters need it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Scaled dot-product attention.

    Where a gradient is wanted on a processor, short formats are widened to float32 for it: the backward pass of torch's
    kernel is a multitude of small products, which cost several times as much in bfloat16.

    Args:
        query: ``[N, heads, L, width]``.
        key: ``[N, heads, S, width]``.
        value: ``[N, heads, S, width]``.
        bias: Added to the scaled products, ``[1 or N, heads, L, S]``.
        scale: What the products are multiplied with; None: one over the root of `width`.

    Returns:
        ``[N, heads, L, width]``.
    """
    learning = torch.is_grad_enabled() and query.requires_grad
    if query.device.type != "cpu" or query.dtype == torch.float32 or not learning:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    wide = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.to(wide), key.to(wide), value.to(wide), attn_mask=None if bias is None else bias.to(wide), scale=scale
        )
    return mixed.to(query.dtype)


def gather(tokens: Tensor, other: Tensor) -> Tensor:
    """``softmax(tokens other^T) other`` of ``[N, L, C]`` and ``[N, S, C]``, without the matrix of all pairs."""
    return attention(tokens[:, None], other[:, None], other[:, None], scale=1.0)[:, 0]
