"""One direction of DG-SCT in one half of a layer: what the tokens of one modality gain from those of the other.

The equations are those of the paper; the order of the products is not. Everything before a sigmoid is affine or a
product of two affine maps, so the work can be arranged such that the long token sequences are read once, never widened:

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

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from avfewshot.adapters.settings import GuidanceSettings


class Maps(NamedTuple):
    """Attention over the guided tokens; None where it is switched off.

    Attributes:
        channel: ``[N, C_t]`` in (0, 1).
        spatial: ``[N, L_t]`` in (0, 1).
    """

    channel: Tensor | None
    spatial: Tensor | None


class Guidance(nn.Module):
    """O_s2t of Eq. 1 and 2: target tokens, weighted by what the source tokens say.

    Args:
        source: (L_s, C_s), number and width of the guiding tokens.
        target: (L_t, C_t), number and width of the guided tokens.
        settings: Factors, switches and widths.
        temporal: Whether this layer has the temporal gate.

    Attributes:
        temporal: As given.
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
        """Channel and spatial attention (Eq. 3 and 4).

        Args:
            source: Guiding tokens ``[N, L_s, C_s]``.
            target: Guided tokens ``[N, L_t, C_t]``.
        """
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
        """Temporal gate (Eq. 5); the RNN is a GRU.

        Args:
            source_means: Attended guiding tokens, averaged ``[N, C_s]``, segments of a clip in a row.
            segments: Segments of a clip, T.

        Returns:
            ``[N, 1]`` in (0, 1).
        """
        # A recurrence of few steps on few numbers: full precision costs nothing.
        with torch.autocast(source_means.device.type, enabled=False):
            sequence = source_means.to(self.gate_out.weight.dtype).unflatten(0, (-1, segments))
            return self.gate_out(self.rnn(sequence)[0]).sigmoid().flatten(0, 1)

    def forward(self, target: Tensor, maps: Maps, gate: Tensor | None) -> Tensor:
        """What is added to the target tokens (Eq. 6 and 7, then the output map).

        Args:
            target: ``[N, L_t, C_t]``.
            maps: From :meth:`maps`.
            gate: ``[N, 1]`` from :meth:`gate`, or None.

        Returns:
            ``[N, L_t, C_t]``.
        """
        # (gamma G + 1) (alpha M_c + beta M_s + 1), split into what depends on the token and what does not.
        overall = target.new_ones(1, 1) if gate is None else 1 + self.settings.gamma * gate
        if self.settings.output == "gate":
            overall = overall * self.scale
        by_channel = overall if maps.channel is None else overall * (1 + self.settings.alpha * maps.channel)
        if maps.spatial is None:
            guided = target * by_channel.to(target.dtype).unsqueeze(1)
        else:
            size = target.shape[0], target.shape[2]
            guided = modulate(
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
        constant, weights = self._spatial_bias()[None], F.pad(self.tokens, (0, 1), value=1.0)
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
        joint = (features + self._spatial_bias().to(features.dtype)) * self.spatial_target(guided)
        return self.spatial_out(joint).squeeze(-1)

    def _spatial_bias(self) -> Tensor:
        """What the biases of psi and of Theta_s come to behind Theta_s: ``[d]``."""
        return self.spatial_source(self.channels.bias)

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


def modulate(tokens: Tensor, by_channel: Tensor, by_token: Tensor, attention: Tensor) -> Tensor:
    """``tokens * (by_channel + attention * by_token)`` without keeping the factor, which is as large as the tokens.

    Args:
        tokens: ``[N, L, C]``.
        by_channel: ``[N, C]``.
        by_token: ``[N, C]``.
        attention: ``[N, L]``.

    Returns:
        ``[N, L, C]``.
    """
    return _Modulate.apply(tokens, by_channel, by_token, attention)


class _Modulate(torch.autograd.Function):
    """The factor is computed again in the backward pass: one pass over memory instead of three, and nothing kept."""

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
