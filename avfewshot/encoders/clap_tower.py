"""CLAP's audio transformer HTS-AT, walked block by block."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.attention import self_attention
from avfewshot.encoders.htsat import FRONT_ENDS, HtsatConfig
from avfewshot.encoders.tower import WindowTower, whole_seconds, window_order
from avfewshot.errors import UsageError


class ClapTower(WindowTower):
    """Walks laion_clap's ``HTSAT_Swin_Transformer`` and the projection behind it, into the space of the texts.

    `front_end` is ``"slaney"`` or ``"htk"``; None: as the branch was built
    (:func:`~avfewshot.encoders.htsat.build_htsat`). Waveforms have `sample_rate` samples a second; it was trained on
    `native_samples` of them.

    Raises:
        UsageError: No such front end.
    """

    def __init__(self, audio_branch: Any, audio_projection: nn.Module, front_end: str | None = None) -> None:
        super().__init__()
        config: HtsatConfig = audio_branch.config.htsat
        if front_end is not None:
            if front_end not in FRONT_ENDS:
                raise UsageError(f"There is no mel front end {front_end!r}.", hint=f"Valid: {', '.join(FRONT_ENDS)}.")
            config = replace(config, front_end=front_end)
        self.config = config
        self.native_samples = config.native_samples
        self.sample_rate = config.sample_rate
        self.audio_branch: Any = audio_branch  # with the projection it holds the parameters
        self.audio_projection = audio_projection
        self.front_end = MelFrontEnd(config)
        layers = list(audio_branch.layers)
        self._walk(layers, [layer.downsample for layer in layers])
        self.windows_attention = nn.ModuleList(map(WindowAttention, self._blocks))
        self.token_shapes = [(math.prod(block.input_resolution), block.dim) for block in self._blocks]
        widths = [module.out_features for module in audio_projection.modules() if isinstance(module, nn.Linear)]
        self.output_dim = widths[-1] if widths else audio_branch.num_features
        self._freeze()

    def extra_repr(self) -> str:
        """The configuration, sizes that no tensor tells included."""
        return str(self.config)

    def patch_embed(self, inputs: Tensor) -> Tensor:
        """Compute spectrograms of waveforms, fold them into square images and embed their patches.

        Waveforms are float ``[N, S]`` in [-1, 1], else a ValueError. Shorter ones than :attr:`native_samples` are
        repeated as often as they fit and padded with zeros (laion_clap's "repeatpad"), longer ones cut.
        """
        if inputs.ndim != 2 or not inputs.shape[1]:
            raise ValueError(f"Waveforms of shape [N, samples] are needed, not {list(inputs.shape)}.")
        stem = self.audio_branch.patch_embed
        kernel = stem.proj.weight
        patches = self._patches(self.front_end(inputs, self.audio_branch)).to(kernel.dtype)
        # A convolution whose stride is its kernel is a linear map of patches.
        return stem.norm(F.linear(patches, kernel.flatten(1), stem.proj.bias))

    def _patches(self, mels: Tensor) -> Tensor:
        """Spectrograms ``[N, time, mels]``, cut into stretches that an image stacks, to patches ``[N, L, P * P]``."""
        size, patch, bins = self.config.spec_size, self.config.patch_size, self.config.mel_bins
        blocks = mels.view(-1, size // bins, size // patch, patch, bins // patch, patch)
        return blocks.permute(0, 1, 4, 2, 5, 3).reshape(-1, (size // patch) ** 2, patch * patch)

    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.attn_branch`."""
        return self.windows_attention[i](self._blocks[i].norm1(tokens), self._blocks[i])

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """What the tower sees of waveforms ``[N, samples]``: ``[N, mels, time]``, high frequencies first."""
        return self.front_end(waveforms, self.audio_branch).mT.flip(1)

    def place_map(self, i: int, values: Tensor) -> Tensor:
        """See :meth:`Tower.place_map`; the stretches that the image stacks stand side by side again."""
        stretches, side = self.config.spec_size // self.config.mel_bins, round(values.shape[1] ** 0.5)
        return values.view(-1, stretches, side // stretches, side).transpose(1, 2).flatten(2).flip(1)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.final_norm`."""
        return self.audio_branch.norm(tokens)

    def downsample(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.downsample`."""
        merging = self._mergings.get(i)
        if merging is None:
            return tokens
        height, width = merging.input_resolution
        grid = tokens.view(-1, height // 2, 2, width // 2, 2, tokens.shape[-1])
        # The library joins squares of 2 x 2 tokens column by column.
        squares = grid.permute(0, 1, 3, 4, 2, 5).reshape(-1, height * width // 4, 4 * tokens.shape[-1])
        return merging.reduction(merging.norm(squares))

    def forward_head(self, tokens: Tensor) -> Tensor:
        """The library's ``embedding``, the mean of the normalised tokens, through the projection."""
        return self.audio_projection(self.audio_branch.norm(tokens).mean(dim=1))

    @property
    def window_seconds(self) -> int:
        """Whole seconds that the tower hears at once."""
        return max(1, self.native_samples // self.sample_rate)

    def forward_windows(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Embed windows in one pass, ``[N, D]`` as :meth:`forward`, and each of their seconds, ``[N, T, D]``.

        Waveforms are ``[N, T * sample_rate]`` with T from 1 to :attr:`window_seconds`, else a ValueError. The time grid
        of the last stage (8 x 8 tokens for LAION's towers, four stretches of time stacked, two bands each) is 32 steps
        over ten seconds: the head, on its mean over a second and the repetitions of that second, gives the second.
        """
        seconds = whole_seconds(waveforms, self.sample_rate, self.window_seconds)
        tokens = self.audio_branch.norm(self.final_tokens(waveforms))
        stretches = self.config.spec_size // self.config.mel_bins
        side = round(tokens.shape[1] ** 0.5)
        steps = tokens.view(-1, stretches, side // stretches, side, tokens.shape[2]).mean(2).flatten(1, 2)
        weights = self._second_weights(seconds, steps.shape[1]).to(steps)
        return self.audio_projection(tokens.mean(1)), self.audio_projection(weights @ steps)

    def _second_weights(self, seconds: int, steps: int) -> Tensor:
        """``[seconds, steps]``, rows that sum to 1: how much of each second, in all its repetitions, a step holds."""
        edges = torch.arange(steps + 1) * (self.native_samples / self.sample_rate / steps)
        starts = torch.arange(self.native_samples // (seconds * self.sample_rate) * seconds)[:, None]
        shared = torch.minimum(edges[1:], starts + 1) - torch.maximum(edges[:-1], starts)
        held = shared.clamp(min=0).view(-1, seconds, steps).sum(0)
        return held / held.sum(1, keepdim=True)

    def _keeps_float32(self, name: str) -> bool:
        branch = "bn0.", "spectrogram_extractor.", "logmel_extractor."
        return name.startswith(("front_end.", *(f"audio_branch.{part}" for part in branch)))


class MelFrontEnd(nn.Module):
    """Waveforms to normalised log-mel spectrograms, always in float32, by a fast Fourier transform.

    The Slaney filters, the analysis window and the normalisation are those of the HTS-AT that is passed to
    :meth:`forward`, so that a state dict is in effect at once. The HTK filters belong to no state dict: LAION computes
    them in its data pipeline, for checkpoints with feature fusion; of the four spectrograms stacked there the tower
    reads the first unless a clip is longer than the native length, which is cut here.
    """

    htk_filters: Tensor | None

    def __init__(self, config: HtsatConfig) -> None:
        super().__init__()
        self.config = config
        filters = None
        if config.front_end == "htk":
            from torchaudio.functional import melscale_fbanks

            frequencies, band = config.n_fft // 2 + 1, (config.fmin, config.fmax)
            filters = melscale_fbanks(frequencies, *band, config.mel_bins, config.sample_rate, mel_scale="htk")
        self.register_buffer("htk_filters", filters, persistent=False)

    def forward(self, waveforms: Tensor, branch: Any) -> Tensor:
        """Spectrograms ``[N, columns, mel_bins]`` of waveforms ``[N, S]`` of any length, for the HTS-AT `branch`."""
        native, columns = self.config.native_samples, self.config.columns
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms = waveforms.float()[:, :native]
            samples, hop = waveforms.shape[1], self.config.hop
            repeats = native // samples
            recurs = repeats > 3 and samples % hop == 0 and samples * repeats == native and samples >= self.config.n_fft
            waveforms = waveforms.repeat(1, 3 if recurs else repeats)
            if not recurs:
                waveforms = F.pad(waveforms, (0, native - waveforms.shape[1]))
            # The row of the Fourier matrix for frequency zero is the window itself.
            power = self._power(waveforms, branch.spectrogram_extractor.stft.conv_real.weight[0, 0])
            filters = branch.logmel_extractor.melW if self.htk_filters is None else self.htk_filters
            decibels = 10 * torch.log10(torch.clamp(power.transpose(1, 2) @ filters, min=1e-10))
            norm = branch.bn0
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            mels = torch.addcmul(norm.bias, decibels - norm.running_mean, scale)
            if recurs:  # between the first and the last repetition frames are those of the second
                frames = samples // hop
                first, middle, last = mels.tensor_split((frames, 2 * frames), dim=1)
                mels = torch.cat([first, *[middle] * (repeats - 2), last], dim=1)
            if mels.shape[1] == columns:
                return mels
            size = (columns, mels.shape[2])
            return F.interpolate(mels[:, None], size, mode="bicubic", align_corners=True)[:, 0]

    def _power(self, waveforms: Tensor, window: Tensor) -> Tensor:
        """Power spectra ``[N, n_fft / 2 + 1, frames]``."""
        n_fft, hop = self.config.n_fft, self.config.hop
        if torch.onnx.is_in_onnx_export():  # which knows no complex numbers: a convolution with a Fourier matrix
            waveforms = F.pad(waveforms, (n_fft // 2, n_fft // 2), mode="reflect")
            times = torch.arange(n_fft)
            angles = torch.outer(times[: n_fft // 2 + 1], times).remainder(n_fft).double() * (2 * torch.pi / n_fft)
            kernels = torch.cat([angles.cos(), angles.sin()]) * window.double()
            spectra = F.conv1d(waveforms[:, None], kernels.to(waveforms)[:, None], stride=hop)
            return spectra.square().unflatten(1, (2, -1)).sum(1)
        spectra = torch.stft(waveforms, n_fft, hop, window=window, pad_mode="reflect", return_complex=True)
        return spectra.real.square() + spectra.imag.square()


class WindowAttention(nn.Module):
    """Self-attention within the (shifted) windows of one Swin block (Liu et al., ICCV 2021, arXiv 2103.14030).

    It holds no parameters: the block keeps them. The cyclic shift and the partition into windows are one reordering of
    the tokens, and the relative position bias and the mask of the shift are added inside the attention kernel.
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

    def forward(self, tokens: Tensor, block: Any) -> Tensor:
        """What the block, laion_clap's ``SwinTransformerBlock``, adds to its normalised tokens ``[N, L, C]``."""
        attn = block.attn
        if self.order is not None:
            tokens = _Reorder.apply(tokens, self.order, self.inverse)
        area = attn.window_size[0] * attn.window_size[1]
        joined = attn.qkv(tokens).view(-1, area, 3 * tokens.shape[-1])
        bias = attn.relative_position_bias_table[attn.relative_position_index.view(-1)]
        bias = bias.view(1, area, area, -1).permute(0, 3, 1, 2)
        bias = bias.contiguous() if block.attn_mask is None else bias + block.attn_mask[:, None]
        mixed = self_attention(joined, attn.num_heads, bias.to(joined.dtype), scale=attn.scale)
        result = attn.proj(mixed.view_as(tokens))
        return result if self.order is None else _Reorder.apply(result, self.inverse, self.order)


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
