"""The log-mel front end of HTS-AT, with the library's result at a fraction of its cost.

The library repeats a short waveform to the native length, computes the spectrogram by a convolution with a Fourier
matrix, and stretches it to the length of the tower's image. Here the spectrogram is a fast Fourier transform; frames of
a repeated waveform that see the same samples are computed once; and repetition and stretching, both linear in time, are
one matrix.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.htsat import HtsatConfig


class MelFrontEnd(nn.Module):
    """Waveforms to normalised log-mel spectrograms, always in float32.

    The Slaney filters, the analysis window and the normalisation are those of the HTS-AT that is passed to
    :meth:`forward`, so that a state dict is in effect at once. The HTK filters belong to no state dict: LAION computes
    them in its data pipeline, for checkpoints with feature fusion; of the four spectrograms stacked there the tower
    reads the first unless a clip is longer than the native length, which is cut here.

    Args:
        config: Sizes; ``front_end`` chooses the filters.
    """

    htk_filters: Tensor | None

    def __init__(self, config: HtsatConfig) -> None:
        super().__init__()
        self.config = config
        filters = _htk_filters(config) if config.front_end == "htk" else None
        self.register_buffer("htk_filters", filters, persistent=False)
        self._stretching: dict[tuple[int, torch.device], Tensor] = {}

    def forward(self, waveforms: Tensor, branch: Any) -> Tensor:
        """Compute the spectrograms.

        Args:
            waveforms: float ``[N, S]``. Shorter ones than the native length are repeated as often as they fit and then
                padded with zeros, longer ones cut.
            branch: The HTS-AT.

        Returns:
            float32 ``[N, spec_size * spec_size / mel_bins, mel_bins]``.
        """
        with torch.autocast(waveforms.device.type, enabled=False):
            waveforms, repeats = self._fit(waveforms.float())
            # The row of the Fourier matrix for frequency zero is the window itself.
            window = branch.spectrogram_extractor.stft.conv_real.weight[0, 0]
            power = self._power(waveforms, window, repeats)
            filters = branch.logmel_extractor.melW if self.htk_filters is None else self.htk_filters
            decibels = 10 * torch.log10(torch.clamp(power.transpose(1, 2) @ filters, min=1e-10))
            norm = branch.bn0
            scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
            mels = torch.addcmul(norm.bias, decibels - norm.running_mean, scale)
            stretching = self._stretching_matrix(waveforms.shape[1], repeats, mels.device)
            return stretching @ mels

    def _fit(self, waveforms: Tensor) -> tuple[Tensor, int]:
        """Cut or pad to a whole fraction of the native length; the number of times that it must be repeated."""
        native, samples = self.config.native_samples, waveforms.shape[1]
        if samples >= native:
            return waveforms[:, :native], 1
        repeats = native // samples
        if samples * repeats == native and self._is_periodic(samples):
            return waveforms, repeats
        waveforms = waveforms.repeat(1, repeats)
        return F.pad(waveforms, (0, native - waveforms.shape[1])), 1

    def _is_periodic(self, samples: int) -> bool:
        """Whether frames recur from repetition to repetition, and the ends of one do not share any."""
        return samples % self.config.hop == 0 and samples // self.config.hop >= 2 * self._edge - 1

    @property
    def _edge(self) -> int:
        """Frames at each end that see samples beyond it."""
        return -(-(self.config.n_fft // 2) // self.config.hop)

    def _power(self, waveforms: Tensor, window: Tensor, repeats: int) -> Tensor:
        """Power spectra ``[N, n_fft / 2 + 1, frames]`` of each distinct frame.

        Of a repeated waveform these are the frames of the waveform by itself, then those at a seam between two
        repetitions, which see the end of one and the beginning of the next.
        """
        power = self._frame_power(waveforms, window, center=True)
        if repeats == 1:
            return power
        reach = (self._edge - 1) * self.config.hop + self.config.n_fft // 2
        seam = torch.cat([waveforms[:, -reach:], waveforms[:, :reach]], dim=1)
        return torch.cat([power, self._frame_power(seam, window, center=False)], dim=2)

    def _frame_power(self, waveforms: Tensor, window: Tensor, *, center: bool) -> Tensor:
        n_fft, hop = self.config.n_fft, self.config.hop
        if torch.onnx.is_in_onnx_export():  # which knows no complex numbers: a convolution with a Fourier matrix
            if center:
                waveforms = F.pad(waveforms, (n_fft // 2, n_fft // 2), mode="reflect")
            times = torch.arange(n_fft)
            angles = torch.outer(times[: n_fft // 2 + 1], times).remainder(n_fft).double() * (2 * torch.pi / n_fft)
            kernels = torch.cat([angles.cos(), angles.sin()]) * window.double()
            spectra = F.conv1d(waveforms[:, None], kernels.to(waveforms)[:, None], stride=hop)
            return spectra.square().unflatten(1, (2, -1)).sum(1)
        spectra = torch.stft(
            waveforms, n_fft, hop, window=window, center=center, pad_mode="reflect", return_complex=True
        )
        return spectra.real.square() + spectra.imag.square()

    def _frame_order(self, samples: int, repeats: int) -> Tensor:
        """Which of the frames of :meth:`_power` stands at each time of the repeated waveform."""
        period, edge = samples // self.config.hop, self._edge
        if repeats == 1:
            return torch.arange(period + 1)
        seam = torch.arange(period + 1, period + 2 * edge)
        first, last = torch.arange(edge), torch.arange(period - edge + 1, period + 1)
        middle = torch.arange(edge, period - edge + 1)
        return torch.cat([first, middle, *[seam, middle] * (repeats - 1), last])

    def _stretching_matrix(self, samples: int, repeats: int, device: torch.device) -> Tensor:
        """``[columns of the image, distinct frames]``: repetition, then the library's bicubic interpolation in time."""
        key = (samples, device)
        if key not in self._stretching:
            # Not an inference tensor: it may be met again where gradients flow.
            with torch.inference_mode(False), torch.no_grad():
                order = self._frame_order(samples, repeats)
                frames = torch.eye(int(order.max()) + 1)[order]
                columns = self.config.spec_size * (self.config.spec_size // self.config.mel_bins)
                if columns > len(frames):
                    size = (columns, frames.shape[1])
                    frames = F.interpolate(frames[None, None], size, mode="bicubic", align_corners=True)[0, 0]
                self._stretching[key] = frames.to(device)
        return self._stretching[key]


def _htk_filters(config: HtsatConfig) -> Tensor:
    """Triangular filters on the HTK mel scale, not normalised by area: ``[n_fft / 2 + 1, mel_bins]``."""
    from torchaudio.functional import melscale_fbanks

    return melscale_fbanks(
        config.n_fft // 2 + 1, config.fmin, config.fmax, config.mel_bins, config.sample_rate, norm=None, mel_scale="htk"
    )
