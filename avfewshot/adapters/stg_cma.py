"""STG-CMA: temporal, spatial and global adapters on the branches of frozen attention and MLP.

Wang, Tian, Hatzinakos, CVPR workshops 2024. ``A(x) = U gelu(D x)`` is a bottleneck whose U begins at zero. In each
paired layer, with attention and MLP of both towers frozen and without their residuals:

    1 temporal    x += drop_path(A_T(attention of x along time))                  each modality alone
    2 spatial     s = attention(x);  z = gelu(D_S s);  x += s + U_S z'
    3 global      m = MLP(x);        z = gelu(D_G m);  x += m + U_G z'
    exchange      z_v' = z_v + g_v softmax(z_v z_a^T) z_a;   z_a' = z_a + g_a softmax(z_a z_v^T) z_v

The bottlenecks of both modalities have one width, so that their tokens compare without further maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.adapters.base import CrossModalAdapter, Half, PairedLayer, TemporalStep
from avfewshot.adapters.settings import StgCmaSettings
from avfewshot.encoders.attention import gather
from avfewshot.encoders.tower import Pair
from avfewshot.media.clip import MODALITIES

_STEPS = {"attend": "spatial", "feed": "global_step"}


class _Bottleneck(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.up(F.gelu(self.down(tokens)))


class Temporal(TemporalStep):
    """Step 1 of one modality in one layer, for tokens of `width` C.

    `heads` are those of the table of relative positions (0: none), which tells clips of up to `segments` apart; `drop`
    is the share of rows that are left out in training.
    """

    table: nn.Parameter | None

    def __init__(self, width: int, hidden: int, heads: int, segments: int, drop: float) -> None:
        super().__init__()
        self.adapter = _Bottleneck(width, hidden)
        self.drop = drop
        self.register_parameter("table", nn.Parameter(torch.zeros(2 * segments - 1, heads)) if heads else None)

    def bias(self, segments: int) -> Tensor | None:
        """See :meth:`TemporalStep.bias`."""
        if self.table is None:
            return None
        reach = len(self.table) // 2
        times = torch.arange(segments, device=self.table.device)
        distance = (times[:, None] - times).clamp(-reach, reach) + reach
        return self.table[distance].permute(2, 0, 1)[None]

    def forward(self, attended: Tensor) -> Tensor:
        """See :meth:`TemporalStep.forward`."""
        update = self.adapter(attended)
        if not (self.training and self.drop):
            return update
        kept = torch.rand(len(update), 1, 1, device=update.device) >= self.drop
        return update * kept / (1 - self.drop)


class StgCma(CrossModalAdapter):
    """All steps of all paired layers."""

    Settings = StgCmaSettings
    reads = "branch"

    def __init__(self, layers: Sequence[PairedLayer], settings: StgCmaSettings | None = None) -> None:
        super().__init__()
        self._settings = chosen = settings or StgCmaSettings()
        self.draws = chosen.temporal and chosen.drop_path > 0
        shapes = list(dict.fromkeys(layer.visual_shape for layer in layers))  # of the stages
        self.layers = nn.ModuleList()
        for index, layer in enumerate(layers):
            stage, reduction = shapes.index(layer.visual_shape), chosen.reduction
            if not isinstance(reduction, int):
                reduction = reduction[min(stage, len(reduction) - 1)]
            hidden = max(1, layer.visual_shape[1] // reduction)
            drop = chosen.drop_path * index / max(1, len(layers) - 1)
            parts = nn.ModuleDict()
            sides = (layer.visual_shape[1], layer.visual_time), (layer.audio_shape[1], layer.audio_time)
            for modality, (width, heads) in zip(MODALITIES, sides, strict=True):
                steps = nn.ModuleDict({s: _Bottleneck(width, hidden) for s in _STEPS.values() if getattr(chosen, s)})
                if chosen.temporal and heads is not None:
                    steps["temporal"] = Temporal(width, hidden, heads, chosen.positions, drop)
                parts[modality] = steps
            self.layers.append(parts)
        speaks = chosen.exchange and (chosen.spatial or chosen.global_step)
        self.exchange = nn.ParameterList(nn.Parameter(torch.zeros(2)) for _ in layers if speaks)  # g_v, g_a
        self.positions = nn.ParameterDict()
        first = layers[0]
        sides = (first.visual_shape[1], first.visual_time), (first.audio_shape[1], first.audio_time)
        for modality, (width, heads) in zip(MODALITIES, sides, strict=True):
            if chosen.temporal and heads == 0:
                self.positions[modality] = nn.Parameter(torch.zeros(chosen.positions, width))

    def gates(self) -> list[nn.Parameter]:
        """See :meth:`CrossModalAdapter.gates`: the last maps of the bottlenecks, and what weighs the exchange."""
        return [p for name, p in self.named_parameters() if ".up." in name or name.startswith("exchange.")]

    def position(self, modality: str, segments: int) -> Tensor | None:
        """See :meth:`CrossModalAdapter.position`."""
        if modality not in self.positions:
            return None
        table = self.positions[modality]
        return table[torch.arange(segments, device=table.device).clamp(max=len(table) - 1)]

    def temporal(self, layer: int, modality: str) -> TemporalStep | None:
        """See :meth:`CrossModalAdapter.temporal`."""
        return next((step for step in self._steps(layer, modality).values() if isinstance(step, Temporal)), None)

    def _steps(self, layer: int, modality: str) -> Any:
        return cast(nn.ModuleDict, self.layers[layer])[modality]

    def forward(self, layer: int, half: Half, visual: Tensor, audio: Tensor, segments: int) -> Pair:
        """See :meth:`CrossModalAdapter.forward`: step 2 after attention, step 3 after the MLP."""
        step, chosen = _STEPS[half], self._settings
        if not getattr(chosen, step):
            return None, None
        adapters = [self._steps(layer, modality)[step] for modality in MODALITIES]
        seen, heard = (F.gelu(one.down(tokens)) for one, tokens in zip(adapters, (visual, audio), strict=True))
        new_seen, new_heard = seen, heard
        if self.exchange:
            gates = self.exchange[layer]
            if chosen.a2v:
                new_seen = seen + gates[0] * gather(seen, heard)
            if chosen.v2a:
                new_heard = heard + gates[1] * gather(heard, seen)
        return adapters[0].up(new_seen), adapters[1].up(new_heard)
