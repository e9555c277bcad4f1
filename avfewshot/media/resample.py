"""Resampling to 48 kHz, piece by piece without seams."""

from __future__ import annotations

import math

import numpy as np
import torch
import torchaudio

from avfewshot.media.clip import SAMPLE_RATE

# torchaudio's defaults: zero crossings of the sinc on either side, and the cut-off as a part of the Nyquist frequency.
_CROSSINGS = 6
_ROLLOFF = 0.99

_MAX_KERNEL = 1 << 22  # elements of torchaudio's filter bank, 16 MiB


def margin(rate: int) -> int:
    """Input samples needed on either side of a piece that begins and ends on whole seconds.

    A multiple of the period after which input and output samples coincide, so that the piece stays in phase.
    """
    if rate == SAMPLE_RATE:
        return 0
    period = rate // math.gcd(rate, SAMPLE_RATE)
    return period * math.ceil((_reach(rate) + 1) / period)


def to_model_rate(samples: np.ndarray, rate: int, count: int) -> torch.Tensor:
    """Resample a piece of sound to 48 kHz.

    Args:
        samples: float32 ``[margin + n + margin]``, with :func:`margin` samples of context on either side.
        rate: Their sampling rate in Hz.
        count: Number of output samples, ``n / rate * 48000``.

    Returns:
        float32 ``[count]``: what :func:`torchaudio.functional.resample` makes of the whole recording there.
    """
    wave = torch.from_numpy(samples)
    if rate == SAMPLE_RATE:
        return wave[:count]
    common = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // common, SAMPLE_RATE // common
    if new * (old + 2 * _reach(rate)) > _MAX_KERNEL:
        return _interpolate(wave, rate, count)
    skip = margin(rate) // old * new
    return torchaudio.functional.resample(wave, rate, SAMPLE_RATE, lowpass_filter_width=_CROSSINGS, rolloff=_ROLLOFF)[
        skip : skip + count
    ]


def _reach(rate: int) -> int:
    """Input samples that the filter sees on either side of an output sample."""
    return math.ceil(_CROSSINGS * rate / (min(rate, SAMPLE_RATE) * _ROLLOFF))


def _interpolate(wave: torch.Tensor, rate: int, count: int) -> torch.Tensor:
    """The same filter evaluated sample by sample.

    For rates such as 44,056 Hz, whose ratio to 48,000 does not reduce: torchaudio's table of all phases of the filter
    would take up to gigabytes.
    """
    cutoff = min(rate, SAMPLE_RATE) * _ROLLOFF
    taps = torch.arange(-_reach(rate), _reach(rate) + 2)
    pieces = []
    for first in range(0, count, SAMPLE_RATE):
        place = torch.arange(first, min(first + SAMPLE_RATE, count), dtype=torch.float64) * rate / SAMPLE_RATE
        index = place.floor().long()[:, None] + taps
        distance = (((index - place[:, None]) * (cutoff / rate)).clamp(-_CROSSINGS, _CROSSINGS)).float()
        window = torch.cos(distance * (math.pi / _CROSSINGS / 2)) ** 2
        weights = torch.sinc(distance) * window * (cutoff / rate)
        pieces.append((wave[(index + margin(rate)).clamp_(0, wave.numel() - 1)] * weights).sum(-1))
    return torch.cat(pieces)
