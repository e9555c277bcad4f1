"""Windowed self-attention of HTS-AT's Swin blocks, with the library's result and fewer passes over the tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from avfewshot.encoders.attention import attention


class WindowAttention(nn.Module):
    """Self-attention within the (shifted) windows of one Swin block (Liu et al., ICCV 2021, arXiv 2103.14030).

    It holds no parameters: the block keeps them. The cyclic shift and the partition into windows are one reordering of
    the tokens, and the relative position bias and the mask of the shift are added inside the attention kernel.

    Args:
        block: laion_clap's ``SwinTransformerBlock``.
    """

    order: Tensor | None
    inverse: Tensor | None

    def __init__(self, block: Any) -> None:
        super().__init__()
        height, width = block.input_resolution
        order = window_order(height, width, block.window_size, block.shift_size)
        # One window that covers the grid leaves the tokens where they are.
        still = bool(torch.equal(order, torch.arange(height * width)))
        self.register_buffer("order", None if still else order, persistent=False)
        self.register_buffer("inverse", None if still else order.argsort(), persistent=False)
        self._kept: _KeptBias | None = None

    def forward(self, tokens: Tensor, block: Any) -> Tensor:
        """Attend.

        Args:
            tokens: Normalised tokens ``[N, L, C]`` in the order of the grid.
            block: The block that this was made for.

        Returns:
            What the block adds to its tokens, ``[N, L, C]``.
        """
        attn = block.attn
        heads = attn.num_heads
        count, length, channels = tokens.shape
        if self.order is not None:
            tokens = _Reorder.apply(tokens, self.order, self.inverse)
        joined = attn.qkv(tokens)
        area = attn.window_size[0] * attn.window_size[1]
        # Views only: the kernel reads queries, keys and values where the projection left them.
        windows = joined.view(-1, area, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        bias = self._attention_bias(attn, block.attn_mask, joined.dtype)
        mixed = _attend(windows, bias, attn.scale)
        result = attn.proj(mixed.reshape(count, length, channels))
        return result if self.order is None else _Reorder.apply(result, self.inverse, self.order)

    def _attention_bias(self, attn: Any, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Relative position bias plus mask, ``[1 or windows, heads, area, area]``.

        On a CPU the sum is kept for as long as the table holds the same numbers. Elsewhere comparing them would make
        the host wait for the device, and gathering costs next to nothing.
        """
        table = attn.relative_position_bias_table
        if torch.compiler.is_compiling() or table.requires_grad or table.device.type != "cpu":
            return _gather_bias(attn, mask).to(dtype)
        if self._kept is None or not self._kept.holds(table, dtype):
            # Not inference tensors: they may be met again where gradients flow.
            with torch.inference_mode(False), torch.no_grad():
                self._kept = _KeptBias(table.clone(), _gather_bias(attn, mask).to(dtype))
        return self._kept.bias


@dataclass(frozen=True)
class _KeptBias:
    """A gathered bias and the table that it was gathered from."""

    table: Tensor
    bias: Tensor

    def holds(self, table: Tensor, dtype: torch.dtype) -> bool:
        same_kind = self.bias.dtype == dtype and self.table.dtype == table.dtype and self.table.device == table.device
        return same_kind and torch.equal(self.table, table)


class _Reorder(torch.autograd.Function):
    """A permutation of tokens whose gradient is the inverse permutation: a gather both ways."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        ctx.save_for_backward(order, inverse)
        return tokens.index_select(1, order)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        order, inverse = ctx.saved_tensors
        return _Reorder.apply(gradient, inverse, order), None, None


def plain_attention(attn: Any, tokens: Tensor, bias: Tensor | None) -> Tensor:
    """The attention of a Swin block with its own projections over ``[rows, L, C]``, without windows and positions.

    Args:
        attn: The library's ``WindowAttention``.
        tokens: Normalised.
        bias: ``[1, heads, L, L]``.
    """
    rows, length, channels = tokens.shape
    joined = attn.qkv(tokens).view(rows, length, 3, attn.num_heads, channels // attn.num_heads)
    query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
    bias = None if bias is None else bias.to(query.dtype)
    return attn.proj(attention(query, key, value, bias, scale=attn.scale).transpose(1, 2).reshape(tokens.shape))


def merge_patches(merging: Any, tokens: Tensor) -> Tensor:
    """Join squares of 2 x 2 tokens, as laion_clap's ``PatchMerging`` does, with one copy.

    Args:
        merging: The module; it holds the parameters.
        tokens: ``[N, L, C]``.

    Returns:
        ``[N, L / 4, 2 C]``.
    """
    height, width = merging.input_resolution
    count, _, channels = tokens.shape
    grid = tokens.view(count, height // 2, 2, width // 2, 2, channels)
    # The library joins them column by column.
    squares = grid.permute(0, 1, 3, 4, 2, 5).reshape(count, height * width // 4, 4 * channels)
    return merging.reduction(merging.norm(squares))


def _attend(windows: Tensor, bias: Tensor, scale: float) -> Tensor:
    """Attention with an additive bias ``[1 or windows, heads, area, area]``: ``[N * windows, area, heads, width]``.

    `windows` are queries, keys and values ``[3, N * windows, heads, area, width]``, sample by sample.
    """
    total, kinds = windows.shape[1], len(bias)
    if kinds not in (1, total):
        if windows.device.type == "cpu" and not torch.onnx.is_in_onnx_export():
            # Sample by sample, rather than a bias that is repeated for each sample.
            return torch.cat([_attend(part, bias, scale) for part in windows.split(kinds, dim=1)])
        bias = bias.repeat(total // kinds, 1, 1, 1)
    query, key, value = windows.unbind(0)
    # The kernel leaves its result in this order.
    return attention(query, key, value, bias, scale=scale).transpose(1, 2)


def _gather_bias(attn: Any, mask: Tensor | None) -> Tensor:
    area = attn.window_size[0] * attn.window_size[1]
    bias = attn.relative_position_bias_table[attn.relative_position_index.view(-1)]
    bias = bias.view(1, area, area, -1).permute(0, 3, 1, 2)
    return bias.contiguous() if mask is None else bias + mask[:, None]


def window_order(height: int, width: int, window: int, shift: int) -> Tensor:
    """For each place in the order of the (shifted) windows, the token that stands there: ``[L]``."""
    grid = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    return grid.view(height // window, window, width // window, window).transpose(1, 2).flatten()
