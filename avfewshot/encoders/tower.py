"""Frozen encoders: plain ones, which are run whole, and towers, which can be walked block by block.

A tower is walked in lockstep with another one, with adapters between the steps; walked alone it gives exactly what the
library whose modules it wraps would give.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from avfewshot.encoders.presets import not_walkable

# Floats of the widest intermediate of one chunk (16 MiB in float32): it stays in the cache of a processor core, and
# below the size from which the C library gives every new tensor fresh, still unmapped pages.
_CHUNK_FLOATS = 4 * 2**20


class Encoder(nn.Module):
    """A frozen encoder of single segments: ``[N, ...]`` to ``[N, output_dim]``, in the space shared with the texts.

    It is always in evaluation mode and none of its parameters asks for a gradient, yet gradients flow through it to its
    inputs. The parameters stay in the modules of the library that they come from, so state dicts keep the library's
    keys. One that is no :class:`Tower` is *plain*: it is run whole, and adapters cannot be put between its blocks.

    Attributes:
        output_dim: Width ``D`` of the embedding.
        image_size: Side ``S`` of the pictures that it reads; an encoder of sound has none.
    """

    output_dim: int
    image_size: int

    def train(self, mode: bool = True) -> Encoder:
        """Stay in evaluation mode, whatever the surrounding model does: statistics would drift, dropout would act."""
        return super().train(False)

    def _freeze(self) -> None:
        self.requires_grad_(False)
        self.eval()

    def _keeps_float32(self, name: str) -> bool:
        """Whether the parameter or buffer `name` stays in float32 when the tower is cast to a shorter type."""
        return name.startswith("scaling.")  # of pixels

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Encoder:
        # nn.Module.to, .half, .bfloat16 and so on all come through here.
        kept = {name: tensor.data for name, tensor in self._tensors() if self._keeps_float32(name)}
        super()._apply(fn, recurse)
        for name, tensor in self._tensors():
            original = kept.get(name)
            if original is not None and tensor.dtype != original.dtype:
                tensor.data = original.to(tensor.device)
        return self

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        yield from self.named_parameters()
        yield from self.named_buffers()


class Tower(Encoder):
    """An encoder that is walked block by block.

    Attributes:
        depth: Number of transformer blocks.
        token_shapes: For each block, the number and the width ``(L, C)`` of the tokens that enter it.
    """

    depth: int
    token_shapes: list[tuple[int, int]]

    @property
    def time_heads(self) -> list[int | None]:
        """For each block, how its attention serves along time: heads of a table of relative positions that it needs.

        0: none, positions in time are added to the tokens in :meth:`patch_embed`, as its second argument; None: the
        block does not serve.
        """
        return [None] * self.depth

    @abstractmethod
    def patch_embed(self, inputs: Tensor) -> Tensor:
        """Turn N segments into the tokens ``[N, L, C]`` that enter block 0."""

    def attn_block(self, i: int, tokens: Tensor) -> Tensor:
        """The first half of block `i`, ``x + MHA(LN(x))``.

        Args:
            i: Block, from 0 to ``depth - 1``.
            tokens: ``[N, L, C]`` with ``(L, C) == token_shapes[i]``.

        Returns:
            Tokens of the same shape.
        """
        return add_branch(tokens, partial(self.attn_branch, i), 3 * tokens[0].numel())

    def mlp_block(self, i: int, tokens: Tensor) -> Tensor:
        """The second half of block `i`, ``x + MLP(LN(x))``; arguments and result as for :meth:`attn_block`."""
        rows = tokens.flatten(0, 1)
        return add_branch(rows, partial(self.mlp_branch, i), self.mlp_width(i)).view_as(tokens)

    def mlp_width(self, i: int) -> int:
        """Floats of a token in the middle of the MLP of block `i`."""
        return 4 * self.token_shapes[i][1]

    @abstractmethod
    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """What :meth:`attn_block` adds to its tokens, ``[N, L, C]``."""

    @abstractmethod
    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        """What :meth:`mlp_block` adds to its tokens, ``[N, L, C]``."""

    def time_branch(self, i: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention of block `i`, norms included, over the segments of a clip instead of its places.

        Args:
            i: Block.
            tokens: The same place through time, ``[rows, T, C]``.
            bias: Added to the scaled products, ``[1, heads, T, T]``; instead of positions in space.

        Returns:
            What the attention gives, without the residual, of the same shape.
        """
        raise NotImplementedError

    def windows(self, i: int) -> Tensor | None:
        """The tokens that attend to each other in block `i`, ``[windows, area]``; None: all of them."""
        return None

    def place_map(self, i: int, values: Tensor) -> Tensor:
        """A number for each token that enters block `i`, ``[N, L]``, as a map of the input: ``[N, rows, columns]``.

        Of pictures the upper left is first; of sounds columns are time and rows frequency, high ones first.
        """
        raise NotImplementedError

    def final_norm(self, tokens: Tensor) -> Tensor:
        """The norm behind the last block, on all tokens."""
        return tokens

    @abstractmethod
    def downsample(self, i: int, tokens: Tensor) -> Tensor:
        """What follows block `i`: patch merging where a stage ends, nothing elsewhere.

        Returns:
            Tokens of the shape ``token_shapes[i + 1]``.
        """

    @abstractmethod
    def forward_head(self, tokens: Tensor) -> Tensor:
        """Embed the tokens that leave the last block.

        Returns:
            ``[N, output_dim]``, not normalised, in the space that is shared with the texts.
        """

    def final_tokens(self, inputs: Tensor) -> Tensor:
        """The tokens that leave the last block, of inputs as :meth:`patch_embed` takes them."""
        tokens = self.patch_embed(inputs)
        for i in range(self.depth):
            tokens = self.downsample(i, self.mlp_block(i, self.attn_block(i, tokens)))
        return tokens

    def forward(self, inputs: Tensor) -> Tensor:
        """The whole tower: inputs as for :meth:`patch_embed`, result as from :meth:`forward_head`."""
        return self.forward_head(self.final_tokens(inputs))


def walkable(*encoders: Encoder) -> bool:
    """Whether adapters can be put between the blocks of all of them."""
    return all(isinstance(encoder, Tower) for encoder in encoders)


def require_walkable(what: str, *encoders: Encoder) -> None:
    """Refuse plain encoders for something that works between the blocks of towers.

    Raises:
        UsageError: One of them is plain; the presets that would do are listed.
    """
    if walkable(*encoders):
        return
    raise not_walkable(what, "this backbone")


def _rows_at_once(tokens: Tensor, width: int) -> int | None:
    """How many rows of `tokens` to take at once through a step whose widest intermediate has `width` floats a row.

    Chunks pay on a CPU, where they keep intermediates in the cache, and only where no graph is recorded. None: all.
    """
    if tokens.device.type != "cpu" or torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export():
        return None
    if torch.is_grad_enabled() and tokens.requires_grad:
        return None
    rows = max(1, _CHUNK_FLOATS // width)
    return rows if rows < tokens.shape[0] else None


def add_branch(tokens: Tensor, branch: Callable[[Tensor], Tensor], width: int) -> Tensor:
    """``tokens + branch(tokens)`` for a branch that treats every row (the first dimension) alone.

    Args:
        tokens: ``[rows, ...]``.
        branch: Keeps the shape.
        width: Floats of the widest intermediate of the branch, for each row.

    Returns:
        Tokens of the same shape.
    """
    rows = _rows_at_once(tokens, width)
    if rows is None:
        return tokens + branch(tokens)
    result = torch.empty_like(tokens)
    for part, out in zip(tokens.split(rows), result.split(rows), strict=True):
        torch.add(part, branch(part), out=out)
    return result
