"""CLIP's vision transformer, walked block by block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.attention import attention
from avfewshot.encoders.lean_imports import is_a
from avfewshot.encoders.tower import Tower, add_branch
from avfewshot.errors import UsageError

_QUICK = 1.702  # QuickGELU(x) = x * sigmoid(1.702 x)


class ClipTower(Tower):
    """Walks open_clip's :class:`VisionTransformer`.

    Args:
        visual: The vision tower of an open_clip model.
        mean: Channel means (red, green, blue) of the images that it was trained on, for pixels in [0, 1].
        std: Channel deviations, likewise.

    Attributes:
        visual: The wrapped module; it holds the parameters.
        image_size: Side ``S`` of the square images.

    Raises:
        UsageError: `visual` is another kind of network.
    """

    def __init__(self, visual: nn.Module, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if not is_a(visual, "VisionTransformer"):
            raise UsageError(
                f"The image encoder is a {type(visual).__name__}; only open_clip's vision transformers can be used.",
                hint="Choose a model whose name begins with ViT-, for example ViT-B-32.",
            )
        height, width = visual.image_size
        if height != width:
            raise UsageError(f"The image encoder reads {width} x {height} images; only square ones can be used.")
        self.visual = visual
        self.image_size = height
        self.depth = len(visual.transformer.resblocks)
        tokens, channels = visual.positional_embedding.shape
        self.token_shapes = [(tokens, channels)] * self.depth
        self.output_dim = visual.output_dim if visual.proj is not None else channels
        # uint8 pixels are normalised by one multiplication and one addition: (x / 255 - mean) / std.
        deviation = torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.register_buffer("pixel_scale", (1 / (255 * deviation)).float()[:, None], persistent=False)
        self.register_buffer("pixel_shift", shift.float()[:, None], persistent=False)
        self._freeze()

    def patch_embed(self, inputs: Tensor) -> Tensor:
        """Cut images into patches and embed them.

        Args:
            inputs: ``[N, 3, S, S]``: uint8 RGB, or floating point and already normalised.

        Returns:
            Tokens ``[N, 1 + patches, C]``, the class token first.

        Raises:
            ValueError: Another shape.
        """
        if inputs.ndim != 4 or inputs.shape[1:] != (3, self.image_size, self.image_size):
            wanted = f"[N, 3, {self.image_size}, {self.image_size}]"
            raise ValueError(f"Images of shape {wanted} are needed, not {list(inputs.shape)}.")
        visual = self.visual
        kernel = visual.conv1.weight
        patches = self._patches(inputs).to(kernel.dtype)
        # A convolution whose stride is its kernel is a linear map of patches.
        tokens = F.linear(patches, kernel.flatten(1))
        first = visual.class_embedding.to(tokens.dtype).expand(len(tokens), 1, -1)
        tokens = torch.cat([first, tokens], dim=1) + visual.positional_embedding.to(tokens.dtype)
        return visual.ln_pre(tokens)

    def _patches(self, images: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, patches, 3 * height * width]``, normalised where the images are uint8."""
        rows, columns = self.visual.grid_size
        height, width = self.visual.patch_size
        # A border that no whole patch covers is not seen, as in the convolution.
        images = images[:, :, : rows * height, : columns * width]
        patches = images.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        patches = patches.reshape(-1, rows * columns, 3, height * width)
        if images.dtype == torch.uint8:
            patches = torch.addcmul(self.pixel_shift, patches.to(self.pixel_scale.dtype), self.pixel_scale)
        return patches.flatten(2)

    def attn_block(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.attn_block`."""
        block = self.visual.transformer.resblocks[i]
        length, channels = self.token_shapes[i]
        return add_branch(tokens, lambda x: block.ls_1(_attention(block, block.ln_1(x))), 3 * length * channels)

    def mlp_block(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.mlp_block`."""
        block = self.visual.transformer.resblocks[i]
        floats = self.token_shapes[i][0] * block.mlp.c_fc.out_features
        return add_branch(tokens, lambda x: block.ls_2(_mlp(block.mlp, block.ln_2(x))), floats)

    def downsample(self, i: int, tokens: Tensor) -> Tensor:
        """A vision transformer has one stage: the tokens stay."""
        return tokens

    def forward_head(self, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.forward_head`."""
        visual = self.visual
        if visual.pool_type == "tok" and visual.attn_pool is None:
            pooled = visual.ln_post(tokens[:, 0])  # the other tokens are not read
        else:
            pooled, _ = visual._pool(tokens)
        return pooled if visual.proj is None else pooled @ visual.proj.to(pooled.dtype)

    def place_embeddings(self, tokens: Tensor) -> Tensor | None:
        """Embeddings of the single patches, as if each were the one that is pooled.

        Args:
            tokens: Behind the last block, ``[N, 1 + h * w, C]``.

        Returns:
            ``[N, h, w, D]``, not normalised; None for towers that do not pool by a class token.
        """
        visual = self.visual
        if visual.pool_type != "tok" or visual.attn_pool is not None:
            return None
        rows, columns = visual.grid_size
        places = visual.ln_post(tokens[:, 1 : 1 + rows * columns])
        places = places if visual.proj is None else places @ visual.proj.to(places.dtype)
        return places.unflatten(1, (rows, columns))

    def _keeps_float32(self, name: str) -> bool:
        return name.startswith("pixel_")


def _attention(block: nn.Module, tokens: Tensor) -> Tensor:
    """Self-attention of a block over ``[N, L, C]``."""
    if not is_a(block, "ResidualAttentionBlock"):
        return block.ln_attn(block.attn(tokens))
    attn = block.attn
    batch, length, channels = tokens.shape
    heads = attn.num_heads
    joined = F.linear(tokens, attn.in_proj_weight, attn.in_proj_bias)
    # Views only: the kernel reads queries, keys and values where the projection left them.
    query, key, value = joined.view(batch, length, 3, heads, channels // heads).permute(2, 0, 3, 1, 4).unbind(0)
    mixed = attention(query, key, value)
    return attn.out_proj(mixed.transpose(1, 2).reshape(batch, length, channels))


def _mlp(mlp: nn.Sequential, tokens: Tensor) -> Tensor:
    """The MLP of a block over ``[N, L, C]``."""
    if not is_a(mlp.gelu, "QuickGELU") or hasattr(mlp, "ln"):
        return mlp(tokens)
    # x sigmoid(a x) = silu(a x) / a, and both factors ride along in the matrix products: one pass instead of three.
    rows = tokens.flatten(0, 1)
    hidden = torch.addmm(mlp.c_fc.bias, rows, mlp.c_fc.weight.t(), beta=_QUICK, alpha=_QUICK)
    result = torch.addmm(mlp.c_proj.bias, F.silu(hidden), mlp.c_proj.weight.t(), alpha=1 / _QUICK)
    return result.view_as(tokens)
