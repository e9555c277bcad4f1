"""Frozen encoders: plain ones, which are run whole, and towers, which can be walked block by block.

A tower is walked in lockstep with another one, with adapters between the steps; walked alone it gives exactly what the
library whose modules it wraps would give.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from avfewshot.encoders.attention import self_attention
from avfewshot.encoders.feed_forward import feed_forward
from avfewshot.errors import UsageError

Pair = tuple[Tensor | None, Tensor | None]  # of sight and of sound; None where there is none

# Floats of the widest intermediate of one chunk (16 MiB in float32): it stays in the cache of a processor core, and
# below the size from which the C library gives every new tensor fresh, still unmapped pages.
_CHUNK_FLOATS = 4 * 2**20


class Encoder(nn.Module):
    """A frozen encoder of single segments: ``[N, ...]`` to ``[N, output_dim]``, in the space shared with the texts.

    It is always in evaluation mode and none of its parameters asks for a gradient, yet gradients flow through it to its
    inputs. The parameters stay in the modules of the library that they come from, so state dicts keep the library's
    keys. One that is no :class:`Tower` is *plain*: it is run whole, and adapters cannot be put between its blocks.
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
        tensors = [*self.named_parameters(), *self.named_buffers()]
        kept = {name: tensor.data for name, tensor in tensors if self._keeps_float32(name)}
        super()._apply(fn, recurse)
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            if name in kept and tensor.dtype != kept[name].dtype:
                tensor.data = kept[name].to(tensor.device)
        return self


class Tower(Encoder):
    """An encoder that is walked block by block."""

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
        """The first half of block `i`, ``x + MHA(LN(x))``: ``[N, L, C]`` with (L, C) of ``token_shapes[i]``."""
        return add_branch(tokens, partial(self.attn_branch, i), 3 * tokens[0].numel())

    def mlp_block(self, i: int, tokens: Tensor) -> Tensor:
        """The second half of block `i`, ``x + MLP(LN(x))``; arguments and result as for :meth:`attn_block`."""
        rows = tokens.flatten(0, 1)
        return add_branch(rows, partial(self.mlp_branch, i), 4 * tokens.shape[-1]).view_as(tokens)

    @abstractmethod
    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """What :meth:`attn_block` adds to its tokens, ``[N, L, C]``."""

    @abstractmethod
    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        """What :meth:`mlp_block` adds to its tokens, ``[N, L, C]``."""

    def time_branch(self, i: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """The attention of block `i`, norms included, over the segments of a clip instead of its places, no residual.

        `tokens` ``[rows, T, C]`` are the same place through time; `bias` ``[1, heads, T, T]`` is added to the scaled
        products, instead of positions in space.
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
        """What follows block `i`, to ``token_shapes[i + 1]``: patch merging where a stage ends, nothing elsewhere."""

    @abstractmethod
    def forward_head(self, tokens: Tensor) -> Tensor:
        """Embed the tokens that leave the last block: ``[N, output_dim]``, not normalised."""

    def final_tokens(self, inputs: Tensor) -> Tensor:
        """The tokens that leave the last block, of inputs as :meth:`patch_embed` takes them."""
        tokens = self.patch_embed(inputs)
        for i in range(self.depth):
            tokens = self.downsample(i, self.mlp_block(i, self.attn_block(i, tokens)))
        return tokens

    def forward(self, inputs: Tensor) -> Tensor:
        """The whole tower: inputs as for :meth:`patch_embed`, result as from :meth:`forward_head`."""
        return self.forward_head(self.final_tokens(inputs))


class WindowTower(Tower):
    """The blocks of a Swin transformer, timm's or laion_clap's: attention in windows, shifted in every other block."""

    def _walk(self, stages: Sequence[Any], mergings: Sequence[Any]) -> None:
        """Take the blocks of the stages, and what merges the tokens behind each of them."""
        self._blocks: list[Any] = [block for stage in stages for block in stage.blocks]
        self._unshifted = [place % 2 == 0 for stage in stages for place in range(len(stage.blocks))]
        ends = accumulate(len(stage.blocks) for stage in stages)
        self._mergings = {end - 1: merging for end, merging in zip(ends, mergings, strict=False)}
        self.depth = len(self._blocks)

    @property
    def time_heads(self) -> list[int | None]:
        """See :attr:`Tower.time_heads`: blocks whose windows are not shifted serve, every other one of a stage."""
        pairs = zip(self._blocks, self._unshifted, strict=True)
        return [block.attn.num_heads if serves else None for block, serves in pairs]

    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.mlp_branch`."""
        block = self._blocks[i]
        return feed_forward(block.norm2(tokens), block.mlp.fc1, block.mlp.act, block.mlp.fc2)

    def time_branch(self, i: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :meth:`Tower.time_branch`."""
        attn = self._blocks[i].attn
        joined = attn.qkv(self._blocks[i].norm1(tokens))
        bias = None if bias is None else bias.to(joined.dtype)
        return attn.proj(self_attention(joined, attn.num_heads, bias, scale=attn.scale))


def walkable(*encoders: Encoder) -> bool:
    """Whether adapters can be put between the blocks of all of them."""
    return all(isinstance(encoder, Tower) for encoder in encoders)


def add_branch(tokens: Tensor, branch: Callable[[Tensor], Tensor], width: int) -> Tensor:
    """``tokens + branch(tokens)`` for a branch that keeps the shape and treats every row (the first dimension) alone.

    Where no graph is recorded on a CPU, rows go in chunks that keep intermediates in the cache; `width` is the floats
    of the widest intermediate for each row.
    """
    rows = max(1, _CHUNK_FLOATS // width)
    recorded = torch.is_grad_enabled() and tokens.requires_grad
    traced = torch.compiler.is_compiling() or torch.onnx.is_in_onnx_export()
    if tokens.device.type != "cpu" or traced or recorded or rows >= tokens.shape[0]:
        return tokens + branch(tokens)
    result = torch.empty_like(tokens)
    for part, out in zip(tokens.split(rows), result.split(rows), strict=True):
        torch.add(part, branch(part), out=out)
    return result


def window_order(height: int, width: int, window: int, shift: int) -> Tensor:
    """For each place in the order of the (shifted) windows, the token that stands there: ``[L]``."""
    grid = torch.arange(height * width).view(height, width).roll((-shift, -shift), (0, 1))
    return grid.view(height // window, window, width // window, window).transpose(1, 2).flatten()


class PixelScaling(nn.Module):
    """uint8 pixels as an encoder was trained on them: ``(x / 255 - mean) / std``, one multiplication and one addition.

    `mean` and `std` are of the channels (red, green, blue), for pixels in [0, 1].
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.register_buffer("pixel_scale", (1 / (255 * deviation)).float()[:, None, None], persistent=False)
        self.register_buffer("pixel_shift", shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``[..., 3, S, S]`` in float32; floating-point images are normalised already and pass."""
        if images.dtype != torch.uint8:
            return images
        return torch.addcmul(self.pixel_shift, images.to(self.pixel_scale.dtype), self.pixel_scale)


def check_images(images: Tensor, side: int) -> None:
    """Raise a ValueError unless they are ``[N, 3, side, side]``."""
    if images.ndim != 4 or images.shape[1:] != (3, side, side):
        raise ValueError(f"Images of shape [N, 3, {side}, {side}] are needed, not {list(images.shape)}.")


def whole_seconds(waveforms: Tensor, sample_rate: int, most: int) -> int:
    """How many seconds ``[N, samples]`` have; a ValueError unless they are whole, and from 1 to `most`."""
    seconds, rest = divmod(waveforms.shape[-1], sample_rate)
    if rest or not 1 <= seconds <= most:
        raise ValueError(f"1 to {most} whole seconds are needed, not {list(waveforms.shape)}.")
    return seconds


def square_side(size: int | tuple[int, int]) -> int:
    """The side of the images that an encoder reads; a UsageError where they are not square."""
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UsageError(f"The image encoder reads {width} x {height} images; only square ones can be used.")
    return height


class PlainTower(Encoder):
    """Runs an image encoder of open_clip, a trunk of timm or a ResNet, with its own pooling and projection."""

    def __init__(self, visual: Any, *, mean: Sequence[float], std: Sequence[float], output_dim: int) -> None:
        super().__init__()
        self.visual = visual
        self.image_size = square_side(visual.image_size)
        self.output_dim = output_dim
        self.scaling = PixelScaling(mean, std)
        self._freeze()

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed ``[N, 3, S, S]``, uint8 RGB or floating point and already normalised: ``[N, output_dim]``."""
        return self.visual(self.scaling(inputs).to(next(self.visual.parameters()).dtype))
