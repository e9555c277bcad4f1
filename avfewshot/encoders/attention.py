"""Scaled dot-product attention of towers: torch's kernels, and our own on a processor."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

# Products of queries and keys of one chunk (4 MiB in float32): they stay in a processor's cache.
_CHUNK_PRODUCTS = 2**20


def attention(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None, *, scale: float | None = None
) -> Tensor:
    """Scaled dot-product attention, ``[N, heads, L, width]``, with `bias` ``[1 or N, heads, L, S]`` added to products.

    They are multiplied with `scale`, one over the root of `width` by default. Where a gradient is wanted on a
    processor, short formats are widened to float32 for it: the backward pass of torch's kernel is a multitude of small
    products, which cost several times as much in bfloat16.
    """
    learning = torch.is_grad_enabled() and query.requires_grad
    if query.device.type != "cpu" or query.dtype == torch.float32 or not learning:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)
    wide = _wide(query)
    with torch.autocast("cpu", enabled=False):
        mixed = F.scaled_dot_product_attention(
            query.to(wide), key.to(wide), value.to(wide), attn_mask=None if bias is None else bias.to(wide), scale=scale
        )
    return mixed.to(query.dtype)


def self_attention(joined: Tensor, heads: int, bias: Tensor | None = None, *, scale: float | None = None) -> Tensor:
    """Attention of tokens to each other, from queries, keys and values side by side, ``[N, L, 3 C]``: ``[N, L, C]``.

    `bias` ``[K, heads, L, L]`` is added to the scaled products, row n of it to the rows n, n + K, n + 2 K and so on.
    """
    parts = joined.unflatten(-1, (3, heads, -1))
    scale = parts.shape[-1] ** -0.5 if scale is None else scale
    traced = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if joined.device.type == "cpu" and not traced and not (bias is not None and bias.requires_grad):
        return _ChunkedAttention.apply(parts, bias, scale).flatten(2)
    if bias is not None and bias.shape[0] not in (1, joined.shape[0]):
        bias = bias.repeat(joined.shape[0] // bias.shape[0], 1, 1, 1)
    # Views only: the kernel reads queries, keys and values where the projection left them.
    query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
    return attention(query, key, value, bias, scale=scale).transpose(1, 2).flatten(2)


def gather(tokens: Tensor, other: Tensor) -> Tensor:
    """``softmax(tokens other^T) other`` of ``[N, L, C]`` and ``[N, S, C]``, without the matrix of all pairs."""
    return attention(tokens[:, None], other[:, None], other[:, None], scale=1.0)[:, 0]


class _ChunkedAttention(torch.autograd.Function):
    """:func:`self_attention` on a processor: ``[N, L, 3, heads, width]`` to ``[N, L, heads, width]``.

    Few rows at a time, by matrix products of all their heads. Products of queries and keys and their softmax are in
    float32, and are computed again in the backward pass; only the input is kept.
    """

    @staticmethod
    def forward(ctx: Any, parts: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        count, length, _, heads, width = parts.shape
        kinds = 1 if bias is None else len(bias)
        ctx.rows = max(1, _CHUNK_PRODUCTS // (heads * length * length * kinds)) * kinds
        ctx.scale = scale
        ctx.save_for_backward(parts, bias)
        bias = None if bias is None else bias.to(_wide(parts))
        result = parts.new_empty(count, length, heads, width)
        with torch.autocast("cpu", enabled=False):
            for chunk, out in zip(parts.split(ctx.rows), result.split(ctx.rows), strict=True):
                query, key, value = _by_head(chunk)
                weights = _weights(query, key, bias, scale)
                out.copy_(torch.bmm(weights.to(value.dtype), value).view(-1, heads, length, width).transpose(1, 2))
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        parts, bias = ctx.saved_tensors
        _, length, _, heads, width = parts.shape
        bias = None if bias is None else bias.to(_wide(parts))
        result = torch.empty_like(parts)
        chunks = zip(parts.split(ctx.rows), gradient.split(ctx.rows), result.split(ctx.rows), strict=True)
        with torch.autocast("cpu", enabled=False):
            for chunk, given, out in chunks:
                query, key, value = _by_head(chunk)
                given = given.transpose(1, 2).reshape(-1, length, width)
                weights = _weights(query, key, bias, ctx.scale)
                to_weights = torch.bmm(given, value.mT).to(weights.dtype)
                to_products = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
                to_products = to_products.mul_(ctx.scale).to(query.dtype)
                to_key, to_value = torch.bmm(to_products.mT, query), torch.bmm(weights.to(given.dtype).mT, given)
                for place, one in enumerate((torch.bmm(to_products, key), to_key, to_value)):
                    out[:, :, place].copy_(one.view(-1, heads, length, width).transpose(1, 2))
        return result, None, None


def _by_head(parts: Tensor) -> tuple[Tensor, ...]:
    """Queries, keys and values ``[n * heads, L, width]`` of ``[n, L, 3, heads, width]``."""
    count, length, _, heads, width = parts.shape
    return parts.permute(2, 0, 3, 1, 4).reshape(3, count * heads, length, width).unbind(0)


def _weights(query: Tensor, key: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Softmax of scaled and biased products, ``[n * heads, L, L]`` in float32 or wider."""
    products = torch.bmm(query.to(_wide(query)), key.to(_wide(key)).mT)
    if bias is None:
        return products.mul_(scale).softmax(-1)
    biased = products.view(-1, *bias.shape)
    torch.add(bias, biased, alpha=scale, out=biased)
    return products.softmax(-1)


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
