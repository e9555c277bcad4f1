"""What a clip was recorded with: clean studio equipment, or the worn equipment of found footage.

The packaged `tiny` backbone learnt from studio recordings alone. Data sets that were shot with other equipment leave
few-shot training something to learn, as real benchmarks do: their cameras and microphones are not those of the data
that a backbone was pretrained on. The shift is systematic, nearly the same for every clip of every class, so that what
is learnt from a few clips holds for others, and what is learnt on one class for the next.

It is strong enough that the untouched tiny backbone errs on every fifth to eighth clip, weak enough that a handful of
clips shows what the equipment does; docs/toy-world.md has the figures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image

from avfewshot.toyworld.sounds import SAMPLE_RATE, loudness

# The camera is held askew, with few lines and faded colours.
_TILT, _TILT_SPREAD = 24.0, 3.0  # degrees by which the picture is turned about its middle; a clip's largest deviation
_CAST = 0.3  # share of its neighbour that each colour channel takes up: red of green, green of blue, blue of red
_CONTRAST = 0.75  # factor on the distance from middle grey
_LINES = 0.35  # share of the lines, and of the dots on each, that are resolved
_NOISE = 4.0  # standard deviation of the sensor's noise, of 255

# The microphone is a small one in an echoing room, on a bad cable.
_LOW, _HIGH = 250.0, 6000.0  # frequencies below and above which it loses 6 dB per octave, Hz
_ECHO, _DELAY = 0.3, 0.09  # gain of the echo, which is itself echoed, and its delay in seconds
_HISS, _HUM = -20.0, -20.0  # levels of a steady white noise and of the mains hum, dB of the clip's loudness
_LEVEL_SPREAD = 2.0  # a clip's largest deviation from them, dB
_HUM_HERTZ, _HUM_PARTIALS = 100, 8  # what a mains of 50 Hz makes of it; its period is a whole number of samples

_SPREAD = 0.1  # a clip's largest deviation of contrast, lines, frequencies and delay, as a natural logarithm
_TAU = 2 * np.pi
_QUIETEST = 1e-9

Film = Callable[[np.ndarray], np.ndarray]
"""Turns a clean frame, uint8 ``[height, width, 3]``, into the recorded one of the same form."""


def film(recording: str, seed: int) -> Film:
    """What the camera does to the frames of the clip of that seed, called once a frame in their order.

    Raises:
        KeyError: There is no such recording.
    """
    # Streams of their own, so that what is before the camera does not depend on the camera.
    return {"studio": lambda rng: lambda frame: frame, "found": _askew}[recording](np.random.default_rng([seed, 3]))


def record(recording: str, waveform: np.ndarray, seed: int) -> np.ndarray:
    """Record a whole clip, float32 ``[samples]`` at 48 kHz in -1..1, as loud as it was; see :func:`film`."""
    microphones = {"studio": lambda waveform, rng: waveform, "found": _echoing}
    return microphones[recording](waveform, np.random.default_rng([seed, 4]))


def _askew(rng: np.random.Generator) -> Film:
    tilt = _TILT + rng.uniform(-1, 1) * _TILT_SPREAD
    contrast = _CONTRAST * np.exp(rng.uniform(-1, 1) * _SPREAD)
    lines = min(1.0, _LINES * np.exp(rng.uniform(-1, 1) * _SPREAD))
    mix = ((1 - _CAST) * np.eye(3) + _CAST * np.roll(np.eye(3), 1, axis=1)).astype(np.float32)

    def take(frame: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(frame)
        # The corners that a turned picture leaves empty take the mean colour: black ones would be a thing to see.
        around = tuple(int(value) for value in frame.mean((0, 1)))
        picture = picture.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=around)
        few = (max(1, round(picture.width * lines)), max(1, round(picture.height * lines)))
        picture = picture.resize(few, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
        values = (np.asarray(picture, dtype=np.float32) @ mix.T - 128) * np.float32(contrast) + 128
        values += rng.standard_normal(values.shape, dtype=np.float32) * _NOISE
        return np.clip(values, 0, 255).astype(np.uint8)

    return take


def _echoing(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high, delay = np.array([_LOW, _HIGH, _DELAY]) * np.exp(rng.uniform(-1, 1, 3) * _SPREAD)
    hiss, hum = 10 ** ((np.array([_HISS, _HUM]) + rng.uniform(-1, 1, 2) * _LEVEL_SPREAD) / 20)
    count, before = len(waveform), loudness(waveform)
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    response = 1 / np.sqrt((1 + (low / np.maximum(frequency, 1)) ** 2) * (1 + (frequency / high) ** 2))
    echoes = 1 - _ECHO * np.exp(-1j * _TAU * frequency * delay)
    heard = np.fft.irfft(np.fft.rfft(waveform) * response / echoes, count)
    heard /= loudness(heard) + _QUIETEST
    heard += hiss * rng.standard_normal(count)
    turns = _TAU * _HUM_HERTZ * np.arange(SAMPLE_RATE // _HUM_HERTZ) / SAMPLE_RATE
    partials = (
        np.sin(turns * (k + 1) + phase) / (k + 1) for k, phase in enumerate(rng.uniform(0, _TAU, _HUM_PARTIALS))
    )
    period = np.sum(list(partials), axis=0)
    heard += hum * np.resize(period / loudness(period), count)
    return np.clip(heard / loudness(heard) * before, -1, 1).astype(np.float32)
