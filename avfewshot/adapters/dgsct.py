"""DG-SCT: dual-guided spatial-channel-temporal attention (Duan et al., NeurIPS 2023, arXiv 2311.05152, Eq. 1-7).

Each modality guides the other: which channels matter (Eq. 3), which places or time-frequency patches matter (Eq. 4),
and in the last layer which segments matter (Eq. 5). The equations are those of the paper; the order of the products is
not. Everything before a sigmoid is affine or a product of two affine maps, so the work can be arranged such that the
long token sequences are read once, never widened:

- Channel attention (Eq. 3) multiplies one pooled source vector with every target token and then averages over tokens.
  The source factor is the same for all tokens, so the average moves inside: one pooled vector a side. The pooled
  source, the mean of psi's output, is a weighted pooling of the raw source tokens.
- psi(s) = (P s + p) W + b: a convolution over tokens with weights P and bias p, then a linear map of channels. P and W
  commute, and so do the maps that follow in Eq. 4. psi's output itself is never formed; p and b are more source tokens.
- Spatial attention (Eq. 4) is a bilinear form in a source and a target token. With few source tokens it is evaluated as
  a [source x channels] matrix applied to the target, which skips the d-wide features of the many target tokens; with
  few target tokens, as the product of two d-wide features.
- The factors of Eq. 6 and 7 meet the tokens in a single multiplication.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from avfewshot.adapters.base import HALVES, CrossModalAdapter, Half, PairedLayer
from avfewshot.adapters.settings import GuidanceSettings
from avfewshot.encoders.tower import Pair

DIRECTIONS = ("a2v", "v2a")


class Maps(NamedTuple):
    """Attention over the guided tokens in (0, 1); None where it is switched off."""

    channel: Tensor | None  # [N, C_t]
    spatial: Tensor | None  # [N, L_t]


class Guidance(nn.Module):
    """O_s2t of Eq. 1 and 2: target tokens, weighted by what the source tokens say.

    `source` and `target` are (L, C), number and width of the guiding and of the guided tokens.
    """

    def __init__(
        self, source: tuple[int, int], target: tuple[int, int], settings: GuidanceSettings, *, temporal: bool
    ) -> None:
        super().__init__()
        (source_length, source_width), (target_length, target_width) = source, target
        width = settings.hidden
        compact = settings.variant == "compact"
        self.settings = settings
        self.token_bias: nn.Parameter | None
        self.channel_out: nn.Module
        self.temporal = temporal
        if settings.channel or settings.spatial:
            # psi. Rows of the token map start as means, a little different from each other.
            self.tokens = nn.Parameter(torch.rand(target_length, source_length) * (2 / source_length))
            self.register_parameter("token_bias", None if compact else nn.Parameter(torch.zeros(target_length)))
            self.channels = nn.Linear(source_width, target_width)
        if settings.channel and compact:
            self.channel_source = nn.Linear(target_width, width)
            self.channel_target = nn.Linear(target_width, width)
            self.channel_out = nn.Linear(width, target_width)
        elif settings.channel:
            # Theta^c keeps the width of the guided modality; Phi is a bottleneck of two layers.
            self.channel_source = nn.Linear(target_width, target_width)
            self.channel_target = nn.Linear(target_width, target_width)
            self.channel_out = nn.Sequential(nn.Linear(target_width, width), nn.ReLU(), nn.Linear(width, target_width))
        if settings.spatial:
            self.spatial_source = nn.Linear(target_width, width)
            self.spatial_target = nn.Linear(target_width, width)
            self.spatial_out = nn.Linear(width, 1)
        if temporal:
            self.rnn = nn.GRU(source_width, width, batch_first=True)
            self.gate_out = nn.Linear(width, 1)
        # Zero at first, so that a fresh adapter leaves the towers as they are.
        if settings.output == "gate":
            self.scale = nn.Parameter(torch.zeros(target_width))
        else:
            self.down = nn.Linear(target_width, settings.bottleneck)
            self.up = nn.Linear(settings.bottleneck, target_width)
            nn.init.zeros_(self.up.weight)
            nn.init.zeros_(self.up.bias)

    def maps(self, source: Tensor, target: Tensor) -> Maps:
        """Channel and spatial attention (Eq. 3 and 4) of guiding tokens ``[N, L_s, C_s]``, guided ``[N, L_t, C_t]``."""
        settings = self.settings
        if not (settings.channel or settings.spatial):
            return Maps(None, None)
        if settings.spatial and target.shape[1] < source.shape[1]:
            # Few target tokens: P s is short, and both maps can start from it.
            adapted = torch.bmm(self.tokens.to(source.dtype).expand(source.shape[0], -1, -1), source)
            if self.token_bias is not None:
                adapted = adapted + self.token_bias.to(source.dtype)[:, None]
            channel = self._channel(adapted.mean(1), target) if settings.channel else None
            return Maps(channel, self._spatial_by_target(adapted, target, channel).sigmoid())
        # mean(psi(s)) over target tokens = ((mean of P's rows) s + mean of p) W + b.
        pooled = self.tokens.mean(0).to(source.dtype) @ source
        if self.token_bias is not None:
            pooled = pooled + self.token_bias.mean().to(source.dtype)
        channel = self._channel(pooled, target) if settings.channel else None
        return Maps(channel, self._spatial_by_source(source, target, channel).sigmoid() if settings.spatial else None)

    def attended_mean(self, target: Tensor, maps: Maps) -> Tensor:
        """Mean over tokens of ``(alpha M_c + beta M_s + 1) * target`` (Eq. 6), without forming it: ``[N, C_t]``."""
        mean = target.mean(1)
        result = mean if maps.channel is None else mean * (1 + self.settings.alpha * maps.channel)
        if maps.spatial is not None:
            weighted = (maps.spatial.unsqueeze(1).to(target.dtype) @ target).squeeze(1) / target.shape[1]
            result = result + self.settings.beta * weighted
        return result

    def gate(self, source_means: Tensor, segments: int) -> Tensor:
        """Temporal gate (Eq. 5; a GRU) ``[N, 1]`` in (0, 1), of attended guiding tokens, averaged ``[N, C_s]``."""
        # A recurrence of few steps on few numbers: full precision costs nothing.
        with torch.autocast(source_means.device.type, enabled=False):
            sequence = source_means.to(self.gate_out.weight.dtype).unflatten(0, (-1, segments))
            return self.gate_out(self.rnn(sequence)[0]).sigmoid().flatten(0, 1)

    def forward(self, target: Tensor, maps: Maps, gate: Tensor | None) -> Tensor:
        """What is added to the target tokens ``[N, L_t, C_t]`` (Eq. 6 and 7, then the output map)."""
        # (gamma G + 1) (alpha M_c + beta M_s + 1), split into what depends on the token and what does not.
        overall = target.new_ones(1, 1) if gate is None else 1 + self.settings.gamma * gate
        if self.settings.output == "gate":
            overall = overall * self.scale
        by_channel = overall if maps.channel is None else overall * (1 + self.settings.alpha * maps.channel)
        if maps.spatial is None:
            guided = target * by_channel.to(target.dtype).unsqueeze(1)
        else:
            size = target.shape[0], target.shape[2]
            guided = _Modulate.apply(
                target,
                by_channel.to(target.dtype).expand(size),
                (self.settings.beta * overall).to(target.dtype).expand(size),
                maps.spatial.to(target.dtype),
            )
        return guided if self.settings.output == "gate" else self.up(F.relu(self.down(guided)))

    def _channel(self, pooled: Tensor, target: Tensor) -> Tensor:
        """Eq. 3 from source tokens that are pooled, but not yet brought to the target's width: ``[N, C_s]``."""
        joint = self.channel_source(self.channels(pooled)) * self.channel_target(target.mean(1))
        return self.channel_out(joint).sigmoid()

    def _spatial_by_source(self, source: Tensor, target: Tensor, channel: Tensor | None) -> Tensor:
        """Eq. 4 before its sigmoid, for few source tokens: contract the d-wide space first."""
        features = self._widen(source)
        # The bias is one more source token, which all targets see with weight 1; p is the weight of a token of ones.
        constant, weights = self.spatial_source(self.channels.bias)[None], F.pad(self.tokens, (0, 1), value=1.0)
        if self.token_bias is not None:
            ones = self.spatial_source.weight @ self.channels.weight.sum(1)
            constant = torch.stack([constant[0], ones.to(constant.dtype)])
            weights = torch.cat([weights, self.token_bias[:, None]], dim=1)
        features = torch.cat([features, constant.to(features.dtype).expand(features.shape[0], -1, -1)], dim=1)
        features = features * self.spatial_out.weight[0].to(features.dtype)
        matrix = features @ self.spatial_target.weight
        if channel is not None:  # (M_c + 1) * v meets the matrix instead of the tokens
            matrix = matrix * (1 + channel).to(matrix.dtype).unsqueeze(1)
        offset = features @ self.spatial_target.bias
        similarity = torch.baddbmm(offset.unsqueeze(1), target, matrix.transpose(-1, -2).to(target.dtype))
        return (similarity * weights.to(similarity.dtype)).sum(-1) + self.spatial_out.bias

    def _spatial_by_target(self, adapted: Tensor, target: Tensor, channel: Tensor | None) -> Tensor:
        """Eq. 4 before its sigmoid, for few target tokens: multiply d-wide features; `adapted` is P s + p."""
        guided = target if channel is None else target * (1 + channel).to(target.dtype).unsqueeze(1)
        features = self._widen(adapted)
        joint = (features + self.spatial_source(self.channels.bias).to(features.dtype)) * self.spatial_target(guided)
        return self.spatial_out(joint).squeeze(-1)

    def _widen(self, tokens: Tensor) -> Tensor:
        """Theta_s W without their biases: ``[N, L, C_s]`` to ``[N, L, d]``, by the cheaper of two orders."""
        first, second = self.channels.weight, self.spatial_source.weight
        (target_width, source_width), width = first.shape, second.shape[0]
        rows = tokens.shape[0] * tokens.shape[1]
        one_by_one = rows * target_width * (source_width + width)
        merged = (rows + target_width) * source_width * width
        if merged < one_by_one:
            return F.linear(tokens, second @ first)
        return F.linear(F.linear(tokens, first), second)


class _Modulate(torch.autograd.Function):
    """``tokens * (by_channel + attention * by_token)`` of ``[N, L, C]``, ``[N, C]``, ``[N, L]`` and ``[N, C]``.

    The factor, as large as the tokens, is computed again in the backward pass: one pass over memory, nothing kept.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, by_channel: Tensor, by_token: Tensor, attention: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, by_channel, by_token, attention)
        return _factor(by_channel, by_token, attention).mul_(tokens)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        tokens, by_channel, by_token, attention = ctx.saved_tensors
        to_tokens = _factor(by_channel, by_token, attention).mul_(gradient) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return to_tokens, None, None, None
        product = gradient * tokens
        to_by_token = (attention.unsqueeze(1) @ product).squeeze(1)
        to_attention = (product @ by_token.unsqueeze(-1)).squeeze(-1)
        return to_tokens, product.sum(1), to_by_token, to_attention


def _factor(by_channel: Tensor, by_token: Tensor, attention: Tensor) -> Tensor:
    return torch.addcmul(by_channel.unsqueeze(1), attention.unsqueeze(-1), by_token.unsqueeze(1))


@dataclass(frozen=True)
class RecordedMaps:
    """Where one direction looked in one half of a layer."""

    layer: int  # index of the paired layer
    half: Half
    direction: str  # "a2v": sound guides sight; "v2a": sight guides sound
    channel: Tensor | None  # attention [N, C] of the guided tokens; None where it is off
    spatial: Tensor | None  # attention over the guided tokens [N, L], or None
    temporal: Tensor | None  # gate over segments [N, 1]; None where it is off and in all layers but the last


class DGSCT(CrossModalAdapter):
    """Guidance in both directions, in both halves of every paired layer."""

    Settings = GuidanceSettings

    def __init__(self, layers: Sequence[PairedLayer], settings: GuidanceSettings | None = None) -> None:
        super().__init__()
        self._settings = settings or GuidanceSettings()
        self._records: list[RecordedMaps] | None = None
        directions = [name for name in DIRECTIONS if getattr(self._settings, name)]
        self.layers = nn.ModuleList()
        for index, layer in enumerate(layers):
            shapes = {"a2v": (layer.audio_shape, layer.visual_shape), "v2a": (layer.visual_shape, layer.audio_shape)}
            options = {"settings": self._settings, "temporal": self._settings.temporal and index == len(layers) - 1}
            parts = nn.ModuleDict()
            for half in HALVES:
                parts[half] = nn.ModuleDict({name: Guidance(*shapes[name], **options) for name in directions})
            self.layers.append(parts)

    def gates(self) -> list[nn.Parameter]:
        """See :meth:`CrossModalAdapter.gates`: the factors of channels, or the last maps of the bottlenecks."""
        return [p for name, p in self.named_parameters() if name.endswith(".scale") or ".up." in name]

    def forward(self, layer: int, half: Half, visual: Tensor, audio: Tensor, segments: int) -> Pair:
        """See :meth:`CrossModalAdapter.forward`."""
        tokens = {"a2v": visual, "v2a": audio}  # what each direction guides
        others = {"a2v": "v2a", "v2a": "a2v"}
        pair: Any = self.layers[layer]
        guides = pair[half]
        maps = {name: guide.maps(tokens[others[name]], tokens[name]) for name, guide in guides.items()}
        updates: dict[str, Tensor] = {}
        for name, guide in guides.items():
            gate = None
            if guide.temporal:
                # Eq. 5 listens to the guiding tokens after they have been attended to themselves.
                other = others[name]
                source = tokens[other]
                means = guides[other].attended_mean(source, maps[other]) if other in guides else source.mean(1)
                gate = guide.gate(means, segments)
            updates[name] = guide(tokens[name], maps[name], gate)
            if self._records is not None:
                kept = (None if values is None else values.detach().float().cpu() for values in (*maps[name], gate))
                self._records.append(RecordedMaps(layer, half, name, *kept))
        return updates.get("a2v"), updates.get("v2a")

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[RecordedMaps]]:
        """Keep the attention maps of all calls inside the block, in their order, on the CPU in float32."""
        previous = self._records
        # A block inside of another one fills the same list.
        records: list[RecordedMaps] = [] if previous is None else previous
        self._records = records
        try:
            yield records
        finally:
            self._records = previous
