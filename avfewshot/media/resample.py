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

_PIECE = SAMPLE_RATE // 10  # output samples computed at once


def margin(rate: int) -> int:
    """Input samples needed on either side of a piece that begins and ends on whole seconds.

    A multiple of the period after which input and output samples coincide, so that the piece stays in phase.
    """
    if rate == SAMPLE_RATE:
        return 0
    period = rate // math.gcd(rate, SAMPLE_RATE)
    return period * math.ceil((_reach(rate) + 1) / period)


def to_model_rate(samples: np.ndarray, rate: int, count: int) -> np.ndarray:
    """Resample a piece of sound to 48 kHz, as `torchaudio.functional.resample` does the whole recording (within 1e-6).

    Samples are float32 ``[margin + n + margin]``, with :func:`margin` of context on either side; `count` of the result
    is ``n / rate * 48000``.
    """
    if rate == SAMPLE_RATE:
        return samples[:count]
    common = math.gcd(rate, SAMPLE_RATE)
    old, new = rate // common, SAMPLE_RATE // common
    # Whole periods at once where they are short: all pieces then have the same filters.
    piece = new * (_PIECE // new) or _PIECE
    windows = sliding_window_view(samples, 2 * _reach(rate) + 2)
    out = np.empty(count, np.float32)
    for first in range(0, count, piece):
        starts, weights = _filters(rate, first % new, min(piece, count - first))
        rows = windows[starts + (margin(rate) + first // new * old)]
        np.einsum("ok,ok->o", rows, weights, out=out[first : first + piece])
    return out


def _reach(rate: int) -> int:
    """Input samples that the filter sees on either side of an output sample."""
    return math.ceil(_CROSSINGS * rate / (min(rate, SAMPLE_RATE) * _ROLLOFF))


@functools.lru_cache(16)
def _filters(rate: int, phase: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """For `count` output samples, the `phase`-th of a period first: where the filter begins, and its weights there."""
    # Not a table of all phases: where rates have no short period, as 44,056 Hz, that would take up to gigabytes.
    cutoff = min(rate, SAMPLE_RATE) * _ROLLOFF / rate
    places = np.arange(phase, phase + count) * (rate / SAMPLE_RATE)
    starts = np.floor(places).astype(np.int64) - _reach(rate)
    distances = (starts[:, None] + np.arange(2 * _reach(rate) + 2) - places[:, None]) * cutoff
    distances = distances.clip(-_CROSSINGS, _CROSSINGS)
    weights = np.sinc(distances) * np.cos(distances * (math.pi / _CROSSINGS / 2)) ** 2 * cutoff
    return starts, weights.astype(np.float32)
