"""timm's Swin transformers, walked block by block: Swin (arXiv 2103.14030) and Swin-V2 (arXiv 2111.09883)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.attention import attention
from avfewshot.encoders.tower import PixelScaling, WindowTower, check_images, square_side, window_order
from avfewshot.encoders.weights.load import load_into, read_tensors
from avfewshot.errors import UsageError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_MAX_LOGIT_SCALE = math.log(100)  # the bound of Swin-V2's cosine attention


class SwinTower(WindowTower):
    """Walks timm's ``SwinTransformer``, whose norms stand before attention and MLP.

    It is for square images whose grids the windows cover; `mean` and `std` are of their channels, for pixels in [0, 1].
    Another module is a :class:`UsageError`.
    """

    kind = "SwinTransformer"

    def __init__(
        self, swin: nn.Module, *, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
    ) -> None:
        super().__init__()
        if type(swin).__name__ != self.kind:
            raise UsageError(f"The image encoder is a {type(swin).__name__}; timm's {self.kind} is needed.")
        self.swin: Any = swin  # the wrapped module; it holds the parameters
        self.image_size = square_side(self.swin.patch_embed.img_size)
        stages = list(self.swin.layers)
        self._walk(stages, [stage.downsample for stage in stages[1:]])
        self.grids: list[tuple[int, int]] = [tuple(block.input_resolution) for block in self._blocks]
        self.token_shapes = [
            (rows * columns, block.norm1.normalized_shape[0])
            for (rows, columns), block in zip(self.grids, self._blocks, strict=True)
        ]
        self.output_dim = self.swin.num_features
        self.scaling = PixelScaling(mean, std)
        self._freeze()

    def patch_embed(self, inputs: Tensor) -> Tensor:
        """Cut images ``[N, 3, S, S]``, uint8 RGB or normalised floating point, into patches: tokens ``[N, L, C]``."""
        check_images(inputs, self.image_size)
        return self.swin.patch_embed(self.scaling(inputs).to(self.swin.patch_embed.proj.weight.dtype)).flatten(1, 2)

    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.attn_branch`."""
        block = self._blocks[i]
        return block._attn(block.norm1(tokens).unflatten(1, self.grids[i])).flatten(1, 2)

    def windows(self, i: int) -> Tensor | None:
        """See :meth:`Tower.windows`."""
        block, (rows, columns) = self._blocks[i], self.grids[i]
        (height, width), (shift, across) = block.window_size, block.shift_size
        if height != width or shift != across or rows % height or columns % width:
            return None
        return window_order(rows, columns, height, shift).view(-1, height * width)

    def downsample(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.downsample`; timm's merging stands at the beginning of a stage."""
        if i not in self._mergings:
            return tokens
        return self._mergings[i](tokens.unflatten(1, self.grids[i])).flatten(1, 2)

    def place_map(self, i: int, values: Tensor) -> Tensor:
        """See :meth:`Tower.place_map`."""
        return values.unflatten(1, self.grids[i])

    def final_norm(self, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.final_norm`."""
        return self.swin.norm(tokens)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """The mean of the normalised tokens, ``[N, output_dim]``."""
        return self.final_norm(tokens).mean(1)


class SwinV2Tower(SwinTower):
    """Walks timm's ``SwinTransformerV2``: norms stand behind attention and MLP, attention compares by cosine."""

    kind = "SwinTransformerV2"

    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.attn_branch`."""
        block = self._blocks[i]
        return block.norm1(block._attn(tokens.unflatten(1, self.grids[i]))).flatten(1, 2)

    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.mlp_branch`."""
        return self._blocks[i].norm2(self._blocks[i].mlp(tokens))

    def time_branch(self, i: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :meth:`Tower.time_branch`."""
        block = self._blocks[i]
        attn, (rows, length, channels) = block.attn, tokens.shape
        shift = None if attn.q_bias is None else torch.cat((attn.q_bias, attn.k_bias, attn.v_bias))
        joined = F.linear(tokens, attn.qkv.weight, shift).view(rows, length, 3, attn.num_heads, -1)
        query, key, value = joined.permute(2, 0, 3, 1, 4).unbind(0)
        scale = attn.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp().to(query.dtype)
        query, key = F.normalize(query, dim=-1) * scale, F.normalize(key, dim=-1)
        bias = None if bias is None else bias.to(query.dtype)
        mixed = attention(query, key, value, bias, scale=1.0)
        return block.norm1(attn.proj(mixed.transpose(1, 2).reshape(rows, length, channels)))


def load_swin(tower: SwinTower, path: Path, name: str) -> None:
    """Load timm's weights, with or without the classifier, of this or of an older release."""
    from timm.models import swin_transformer, swin_transformer_v2

    library = swin_transformer_v2 if isinstance(tower, SwinV2Tower) else swin_transformer
    state = library.checkpoint_filter_fn(read_tensors(path), tower.swin)
    state = {key: tensor for key, tensor in state.items() if not key.startswith("head.")}
    load_into(tower.swin, state, path=path, architecture=f"timm's {name}")


def build_swin(name: str, *, pretrained: bool = False, **options: Any) -> SwinTower:
    """Build one of timm's by name, such as ``"swinv2_large_window12_192.ms_in22k"``, without its classifier.

    The weights are random unless `pretrained`; `options` go to ``timm.create_model``, such as ``img_size``. A
    :class:`UsageError` where timm has no such model.
    """
    import timm

    if not timm.is_model(name):
        close = ", ".join(timm.list_models("swin*")[:8])
        raise UsageError(f"timm has no model {name!r}.", hint=f"For example: {close}.")
    model: Any = timm.create_model(name, pretrained=pretrained, num_classes=0, **options)
    config = model.pretrained_cfg
    tower = SwinV2Tower if type(model).__name__ == SwinV2Tower.kind else SwinTower
    return tower(model, mean=config["mean"], std=config["std"])
