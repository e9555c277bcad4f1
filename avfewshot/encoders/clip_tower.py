"""CLIP's vision transformer, walked block by block."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.encoders.attention import self_attention
from avfewshot.encoders.feed_forward import feed_forward
from avfewshot.encoders.lean_imports import is_a
from avfewshot.encoders.tower import PixelScaling, Tower, add_branch, check_images, square_side
from avfewshot.errors import UsageError


class ClipTower(Tower):
    """Walks open_clip's :class:`VisionTransformer`, `visual`, which holds the parameters.

    `mean` and `std` are of the channels of the images that it was trained on, for pixels in [0, 1].

    Raises:
        UsageError: `visual` is another kind of network.
    """

    def __init__(self, visual: Any, *, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.heads: int | None = None  # those that the weights were trained with
        if not is_a(visual, "VisionTransformer"):
            raise UsageError(
                f"The image encoder is a {type(visual).__name__}; only open_clip's vision transformers can be used.",
                hint="Choose a model whose name begins with ViT-, for example ViT-B-32.",
            )
        self.visual: Any = visual
        self.image_size = square_side(visual.image_size)
        self.depth = len(visual.transformer.resblocks)
        tokens, channels = visual.positional_embedding.shape
        self.token_shapes = [(tokens, channels)] * self.depth
        self.output_dim = visual.output_dim if visual.proj is not None else channels
        self.scaling = PixelScaling(mean, std)
        self._freeze()

    def with_heads(self, heads: int) -> ClipTower:
        """The same modules with so many heads: a mistake worth repeating only to reproduce one."""
        other = copy.copy(self)
        other.heads = heads
        return other

    def patch_embed(self, inputs: Tensor, position: Tensor | None = None) -> Tensor:
        """Patches of images ``[N, 3, S, S]`` behind the class token, ``[N, 1 + patches, C]``; else a ValueError.

        Images are uint8 RGB, or floating point and already normalised; `position` ``[N, 1, C]`` is added to all tokens
        of an image before the first norm.
        """
        check_images(inputs, self.image_size)
        visual = self.visual
        kernel = visual.conv1.weight
        patches = self._patches(inputs).to(kernel.dtype)
        # A convolution whose stride is its kernel is a linear map of patches.
        return self.enter(F.linear(patches, kernel.flatten(1)), visual.positional_embedding, position)

    def enter(self, patches: Tensor, places: Tensor, position: Tensor | None = None) -> Tensor:
        """Embedded patches ``[N, L - 1, C]`` with the class token and their `places` ``[L, C]``, normalised."""
        visual = self.visual
        first = visual.class_embedding.to(patches.dtype).expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], dim=1) + places.to(patches.dtype)
        return visual.ln_pre(tokens if position is None else tokens + position.to(tokens.dtype))

    def _patches(self, images: Tensor) -> Tensor:
        """``[N, 3, S, S]`` to ``[N, patches, 3 * height * width]``, normalised where the images are uint8."""
        rows, columns = self.visual.grid_size
        height, width = self.visual.patch_size
        # A border that no whole patch covers is not seen, as in the convolution.
        images = images[:, :, : rows * height, : columns * width]
        patches = images.reshape(-1, 3, rows, height, columns, width).permute(0, 2, 4, 1, 3, 5)
        return self.scaling(patches.reshape(-1, rows * columns, 3, height, width)).flatten(2)

    @property
    def time_heads(self) -> list[int | None]:
        """See :attr:`Tower.time_heads`."""
        return [0] * self.depth

    def mlp_block(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.mlp_block`; whole pictures go together."""
        floats = tokens.shape[1] * self.visual.transformer.resblocks[i].mlp.c_fc.out_features
        return add_branch(tokens, partial(self.mlp_branch, i), floats)

    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.attn_branch`."""
        block = self.visual.transformer.resblocks[i]
        attn, tokens = block.attn, block.ln_1(tokens)
        if not is_a(block, "ResidualAttentionBlock"):
            return block.ls_1(block.ln_attn(attn(tokens)))
        joined = F.linear(tokens, attn.in_proj_weight, attn.in_proj_bias)
        return block.ls_1(attn.out_proj(self_attention(joined, int(self.heads or attn.num_heads))))

    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.mlp_branch`."""
        block = self.visual.transformer.resblocks[i]
        mlp, tokens = block.mlp, block.ln_2(tokens)
        if hasattr(mlp, "ln"):
            return block.ls_2(mlp(tokens))
        return block.ls_2(feed_forward(tokens, mlp.c_fc, mlp.gelu, mlp.c_proj))

    def time_branch(self, i: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :meth:`Tower.time_branch`; positions in time are in the tokens, and `bias` is None."""
        return self.attn_branch(i, tokens)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.final_norm`."""
        return self.visual.ln_post(tokens)

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
        """Embeddings ``[N, h, w, D]`` of the single patches of final tokens, as if each were the one that is pooled.

        They are not normalised; None for towers that do not pool by a class token.
        """
        visual = self.visual
        if visual.pool_type != "tok" or visual.attn_pool is not None:
            return None
        rows, columns = visual.grid_size
        places = visual.ln_post(tokens[:, 1 : 1 + rows * columns])
        places = places if visual.proj is None else places @ visual.proj.to(places.dtype)
        return places.unflatten(1, (rows, columns))

    def place_map(self, i: int, values: Tensor) -> Tensor:
        """See :meth:`Tower.place_map`."""
        rows, columns = self.visual.grid_size
        return values[:, -rows * columns :].unflatten(1, (rows, columns))
