"""Resampling to 48 kHz, piece by piece without seams: the windowed sinc of torchaudio, in NumPy (which starts fast)."""

from __future__ import annotations

import functools
import math

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from avfewshot.media.clip import SAMPLE_RATE

# torchaudio's defaults: zero crossings of the sinc on either side, and the cut-off as a part of the Nyquist frequency.
_CROSSINGS = 6
_ROLLOFF = 0.99

_MAX_KERNEL = 1 << 22  # elements of the table of all phases of the filter, 16 MiB
_WINDOWS = 1 << 21  # input samples of the windows that are multiplied at once, 8 MiB
_PIECE = SAMPLE_RATE // 10  # output samples computed at once without that table


def margin(rate: int) -> int:
    """Input samples needed on either side of a piece that begins and ends on whole seconds.

    A multiple of the period after which input and output samples coincide, so that the piece stays in phase.
    """
    if rate == SAMPLE_RATE:
        return 0
    period = rate // math.gcd(rate, SAMPLE_RATE)
    return period * math.ceil((_reach(rate) + 1) / period)


def to_model_rate(samples: np.ndarray, rate: int, count: int) -> np.ndarray:
    """Resample a piece of sound to 48 kHz.

    Args:
        samples: float32 ``[margin + n + margin]``, with :func:`margin` samples of context on either side.
        rate: Their sampling rate in Hz.
        count: Number of output samples, ``n / rate * 48000``.

    Returns:
        float32 ``[count]``: what `torchaudio.functional.resample` makes of the whole recording there (within 1e-6).
    """
    if rate == SAMPLE_RATE:
        return samples[:count]
    common = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // common, SAMPLE_RATE // common
    if new * (old + 2 * _reach(rate)) > _MAX_KERNEL:
        return _interpolate(samples, rate, count)
    taps = _taps(old, new)
    skip = margin(rate) - _reach(rate)  # the first window; `old` samples later begins the next one
    windows = sliding_window_view(samples[skip:], taps.shape[1])[::old][: -(-count // new)]
    out = np.empty((len(windows), new), np.float32)
    rows = max(1, _WINDOWS // taps.shape[1])
    for first in range(0, len(windows), rows):  # the product copies the windows, which overlap many times over
        np.matmul(windows[first : first + rows], taps.T, out=out[first : first + rows])
    return out.reshape(-1)[:count]


def _reach(rate: int, new: int = SAMPLE_RATE) -> int:
    """Input samples that the filter sees on either side of an output sample."""
    return math.ceil(_CROSSINGS * rate / (min(rate, new) * _ROLLOFF))


def _filter(distance: np.ndarray, gain: float) -> np.ndarray:
    """The windowed sinc at distances from its middle, in zero crossings."""
    distance = distance.clip(-_CROSSINGS, _CROSSINGS)
    return np.sinc(distance) * np.cos(distance * (math.pi / _CROSSINGS / 2)) ** 2 * gain


@functools.lru_cache(4)
def _taps(old: int, new: int) -> np.ndarray:
    """Filter ``[new, old + 2 reach]``: one row for each output sample of a period of `old` input samples."""
    reach = _reach(old, new)
    cutoff = min(old, new) * _ROLLOFF
    places = np.arange(-reach, old + reach)[None] / old - np.arange(new)[:, None] / new
    return _filter(places * cutoff, cutoff / old).astype(np.float32)


def _interpolate(wave: np.ndarray, rate: int, count: int) -> np.ndarray:
    """The same filter evaluated sample by sample.

    For rates such as 44,056 Hz, whose ratio to 48,000 does not reduce: the table of all phases of the filter would
    take up to gigabytes.
    """
    cutoff = min(rate, SAMPLE_RATE) * _ROLLOFF / rate
    taps = np.arange(-_reach(rate), _reach(rate) + 2)
    out = np.empty(count, np.float32)
    for first in range(0, count, _PIECE):
        place = np.arange(first, min(first + _PIECE, count)) * (rate / SAMPLE_RATE)
        index = np.floor(place).astype(np.int64)[:, None] + taps
        weights = _filter((index - place[:, None]) * cutoff, cutoff).astype(np.float32)
        out[first : first + len(place)] = (wave[(index + margin(rate)).clip(0, wave.size - 1)] * weights).sum(-1)
    return out
