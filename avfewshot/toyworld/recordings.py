"""What a clip was recorded with: clean studio equipment, or the worn equipment of found footage.

The packaged `tiny` backbone learnt from studio recordings alone. Data sets that were shot with other equipment leave
few-shot training something to learn, as real benchmarks do: their cameras and microphones are not those of the data
that a backbone was pretrained on. The shift is systematic, nearly the same for every clip of every class, so that what
is learnt from a few clips holds for others, and what is learnt on one class for the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image

from avfewshot.toyworld.sounds import SAMPLE_RATE, loudness

_TAU = 2 * np.pi
_HUM_HERTZ = 100  # what a mains of 50 Hz makes a bad cable hum; its period is a whole number of samples
_HUM_PARTIALS = 8
_QUIETEST = 1e-9

Film = Callable[[np.ndarray], np.ndarray]
"""Turns a clean frame, uint8 ``[height, width, 3]``, into the recorded one of the same form."""


@dataclass(frozen=True)
class Lens:
    """A camera that is held askew, with few lines and faded colours."""

    tilt: float  # degrees by which the picture is turned about its middle
    tilt_spread: float  # largest deviation of a clip from it, degrees
    cast: float  # share of its neighbour that each colour channel takes up: red of green, green of blue, blue of red
    contrast: float  # factor on the distance from middle grey
    lines: float  # share of the lines, and of the dots on each, that are resolved
    spread: float  # largest deviation of a clip's contrast and lines, as a natural logarithm
    noise: float  # standard deviation of the sensor's noise, of 255

    def film(self, rng: np.random.Generator) -> Film:
        """The camera of one clip."""
        tilt = self.tilt + rng.uniform(-1, 1) * self.tilt_spread
        contrast = self.contrast * np.exp(rng.uniform(-1, 1) * self.spread)
        lines = min(1.0, self.lines * np.exp(rng.uniform(-1, 1) * self.spread))
        mix = ((1 - self.cast) * np.eye(3) + self.cast * np.roll(np.eye(3), 1, axis=1)).astype(np.float32)

        def record(frame: np.ndarray) -> np.ndarray:
            picture = Image.fromarray(frame)
            # The corners that a turned picture leaves empty take the mean colour: black ones would be a thing to see.
            around = tuple(int(value) for value in frame.mean((0, 1)))
            picture = picture.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=around)
            few = (max(1, round(picture.width * lines)), max(1, round(picture.height * lines)))
            picture = picture.resize(few, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
            values = (np.asarray(picture, dtype=np.float32) @ mix.T - 128) * np.float32(contrast) + 128
            values += rng.standard_normal(values.shape, dtype=np.float32) * self.noise
            return np.clip(values, 0, 255).astype(np.uint8)

        return record


@dataclass(frozen=True)
class Microphone:
    """A small microphone in an echoing room, on a bad cable."""

    low: float  # frequency below which it loses 6 dB per octave, Hz
    high: float  # frequency above which it loses 6 dB per octave, Hz
    spread: float  # largest deviation of a clip's frequencies and of its echo's delay, as a natural logarithm
    echo: float  # gain of the echo, which is itself echoed
    delay: float  # of the echo, seconds
    hiss: float  # level of a steady white noise, dB of the clip's loudness
    hum: float  # level of the mains hum, dB of the clip's loudness
    level_spread: float  # largest deviation of a clip's hiss and hum, dB

    def record(self, waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Record a whole clip, float32 ``[samples]`` at 48 kHz in -1..1, as loud as it was.

        `rng` is the source of what is particular about the clip, and of the noise.
        """
        low, high, delay = np.array([self.low, self.high, self.delay]) * np.exp(rng.uniform(-1, 1, 3) * self.spread)
        hiss, hum = 10 ** ((np.array([self.hiss, self.hum]) + rng.uniform(-1, 1, 2) * self.level_spread) / 20)
        count, before = len(waveform), loudness(waveform)
        frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
        response = 1 / np.sqrt((1 + (low / np.maximum(frequency, 1)) ** 2) * (1 + (frequency / high) ** 2))
        echoes = 1 - self.echo * np.exp(-1j * _TAU * frequency * delay)
        heard = np.fft.irfft(np.fft.rfft(waveform) * response / echoes, count)
        heard /= loudness(heard) + _QUIETEST
        heard += hiss * rng.standard_normal(count)
        heard += hum * _hum(count, rng)
        return np.clip(heard / loudness(heard) * before, -1, 1).astype(np.float32)


def _hum(count: int, rng: np.random.Generator) -> np.ndarray:
    """Mains hum of root mean square 1, float64 ``[count]``."""
    turns = _TAU * _HUM_HERTZ * np.arange(SAMPLE_RATE // _HUM_HERTZ) / SAMPLE_RATE
    phases = rng.uniform(0, _TAU, _HUM_PARTIALS)
    period = sum(np.sin(turns * (k + 1) + phase) / (k + 1) for k, phase in enumerate(phases))
    return np.resize(period / loudness(period), count)  # pyright: ignore[reportArgumentType]


@dataclass(frozen=True)
class Recording:
    """Equipment."""

    name: str  # what scripts call it
    lens: Lens | None = None  # of the camera; None: pictures stay as they were rendered
    microphone: Microphone | None = None  # none: the sound stays as it was rendered

    def film(self, seed: int) -> Film:
        """What the camera does to the frames of the clip of that seed, called once a frame in their order."""
        # Streams of their own, so that what is before the camera does not depend on the camera.
        return _unchanged if self.lens is None else self.lens.film(np.random.default_rng([seed, 3]))

    def record(self, waveform: np.ndarray, seed: int) -> np.ndarray:
        """Record a whole clip, float32 ``[samples]`` at 48 kHz in -1..1, as loud as it was.

        `rng` is the source of what is particular about the clip, and of the noise.
        """
        if self.microphone is None:
            return waveform
        return self.microphone.record(waveform, np.random.default_rng([seed, 4]))


def _unchanged(frame: np.ndarray) -> np.ndarray:
    return frame


# Strong enough that the untouched tiny backbone errs on every fifth to eighth clip, weak enough that a handful of clips
# shows what the equipment does; docs/toy-world.md has the figures.
_FOUND = Recording(
    name="found",
    lens=Lens(tilt=24.0, tilt_spread=3.0, cast=0.3, contrast=0.75, lines=0.35, spread=0.1, noise=4.0),
    microphone=Microphone(
        low=250.0, high=6000.0, spread=0.1, echo=0.3, delay=0.09, hiss=-20.0, hum=-20.0, level_spread=2.0
    ),
)

RECORDINGS: dict[str, Recording] = {recording.name: recording for recording in (Recording("studio"), _FOUND)}
"""All equipment by name."""
