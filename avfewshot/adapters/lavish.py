"""LAVISH: latent tokens gather the other modality, a bottleneck adds it (Lin et al., CVPR 2023, arXiv 2212.07983).

For tokens x of one modality and y of the other, in each half of a paired layer and in each direction:

    t'  = t + softmax(t y^T) y                       the other modality, compressed into n latent tokens
    x'  = x + g_latent softmax(x t'^T) t'
    out = g LN(BN(Up(relu(BN(Down(LN(x')))))))       grouped maps C -> C / r -> C

Both gates are zero at first. Where the towers differ in width, y first crosses a bridge.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.adapters.base import HALVES, CrossModalAdapter, Half, PairedLayer
from avfewshot.adapters.settings import LavishSettings
from avfewshot.encoders.attention import gather
from avfewshot.encoders.tower import Pair
from avfewshot.errors import UsageError


class LatentAdapter(nn.Module):
    """One direction in one half of a layer; `source` and `target` are (L, C) of the tokens listened to and guided.

    Raises:
        UsageError: The groups do not divide the widths.
    """

    def __init__(self, source: tuple[int, int], target: tuple[int, int], settings: LavishSettings) -> None:
        super().__init__()
        (tokens, width), (length, channels) = source, target
        groups, hidden = settings.groups, max(1, channels // settings.reduction)
        if channels % groups or hidden % groups:
            raise UsageError(
                f"The adapter's groups ({groups}) must divide {channels} channels and the {hidden} of its bottleneck.",
                hint="Choose fewer groups or another reduction.",
            )
        self.token_bridge = self.bridge = None
        if width != channels:
            self.token_bridge = nn.Conv1d(tokens, length, 1) if settings.bridge == "published" else None
            self.bridge = nn.Linear(width, channels)
        self.latents = nn.Parameter(torch.rand(settings.latents, channels))
        self.latent_gate = nn.Parameter(torch.zeros(1))
        self.gate = nn.Parameter(torch.zeros(1))
        self.before = nn.LayerNorm(channels) if settings.layer_norm else nn.Identity()
        self.down = nn.Conv1d(channels, hidden, 1, groups=groups, bias=False)
        self.down_norm = nn.BatchNorm1d(hidden) if settings.batch_norm else nn.Identity()
        self.up = nn.Conv1d(hidden, channels, 1, groups=groups, bias=False)
        self.up_norm = nn.BatchNorm1d(channels) if settings.batch_norm else nn.Identity()
        self.behind = nn.LayerNorm(channels) if settings.layer_norm else nn.Identity()

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """What the target tokens ``[N, L, C]`` gain from the source tokens ``[N, L', C']``."""
        if self.token_bridge is not None:
            source = self.token_bridge(source)
        if self.bridge is not None:
            source = self.bridge(source)
        latents = self.latents.to(source.dtype).expand(source.shape[0], -1, -1)
        latents = latents + gather(latents, source)
        tokens = self.before(target + self.latent_gate * gather(target, latents.to(target.dtype)))
        hidden = F.relu(self.down_norm(self.down(tokens.transpose(-1, -2))))
        return self.gate * self.behind(self.up_norm(self.up(hidden)).transpose(-1, -2))


class Lavish(CrossModalAdapter):
    """Latent adapters in both directions, in both halves of every paired layer."""

    Settings = LavishSettings

    def __init__(self, layers: Sequence[PairedLayer], settings: LavishSettings | None = None) -> None:
        super().__init__()
        self._settings = chosen = settings or LavishSettings()
        self.layers = nn.ModuleList()
        for layer in layers:
            shapes = {"a2v": (layer.audio_shape, layer.visual_shape), "v2a": (layer.visual_shape, layer.audio_shape)}
            directions = {name: pair for name, pair in shapes.items() if getattr(chosen, name)}
            parts = nn.ModuleDict()
            for half in HALVES:
                parts[half] = nn.ModuleDict({name: LatentAdapter(*pair, chosen) for name, pair in directions.items()})
            self.layers.append(parts)

    def gates(self) -> list[nn.Parameter]:
        """See :meth:`CrossModalAdapter.gates`."""
        return [parameter for name, parameter in self.named_parameters() if name.endswith("gate")]

    def forward(self, layer: int, half: Half, visual: Tensor, audio: Tensor, segments: int) -> Pair:
        """See :meth:`CrossModalAdapter.forward`."""
        adapters: Any = cast(nn.ModuleDict, self.layers[layer])[half]
        return (
            adapters["a2v"](audio, visual) if "a2v" in adapters else None,
            adapters["v2a"](visual, audio) if "v2a" in adapters else None,
        )
