"""What the toy world sounds like: twenty synthesised sounds and noises to hide them in."""

from __future__ import annotations

import numpy as np

SAMPLE_RATE = 48_000  # samples per second of everything that is synthesised

_TAU = 2 * np.pi


class _Synth:
    """`count` samples at pitch factor `pitch`: building blocks, then a method for each sound; chance is `rng`'s."""

    def __init__(self, count: int, pitch: float, rng: np.random.Generator) -> None:
        self.count, self.pitch, self.rng = count, pitch, rng
        self.time = np.arange(count) / SAMPLE_RATE
        self.seconds = count / SAMPLE_RATE

    def between(self, low: float, high: float) -> float:
        return float(self.rng.uniform(low, high))

    def noise(self, count: int | None = None) -> np.ndarray:
        return self.rng.standard_normal(self.count if count is None else count)

    def grain(self, seconds: float) -> np.ndarray:
        """Time axis of a short sound that is repeated."""
        return np.arange(int(seconds * SAMPLE_RATE)) / SAMPLE_RATE

    def beats(self, period: float, jitter: float = 0.05) -> np.ndarray:
        """Onsets about `period` seconds apart, in a random phase."""
        onsets = np.arange(-self.between(0, period), self.seconds, period)
        return onsets + self.rng.normal(0, jitter * period, len(onsets))

    def repeat(self, onsets: np.ndarray, grain: np.ndarray) -> np.ndarray:
        """Place `grain` at each onset; what began before the first sample is heard from there on."""
        out = np.zeros(self.count + len(grain))
        for onset in onsets:
            start = int(onset * SAMPLE_RATE)
            skip = max(0, -start)
            if skip < len(grain) and start < self.count:
                out[start + skip : start + len(grain)] += grain[skip:]
        return out[: self.count]

    def sweep(self, frequency: np.ndarray) -> np.ndarray:
        """Phase in radians of a tone whose frequency (Hz) changes from sample to sample."""
        return _TAU * np.cumsum(frequency) / SAMPLE_RATE

    @staticmethod
    def saw(phase: np.ndarray) -> np.ndarray:
        return 2 * (phase / _TAU % 1) - 1

    def honking(self) -> np.ndarray:
        tone = sum(
            np.sin(_TAU * 360 * self.pitch * ratio * k * self.time) / k for ratio in (1, 1.26) for k in range(1, 6)
        )
        return tone * (np.sin(_TAU * self.between(0.8, 1.6) * self.time + self.between(0, 6)) > -0.5)

    def rumbling(self) -> np.ndarray:
        t = self.grain(0.03)
        thump = np.exp(-t * 160) * np.sin(_TAU * 90 * self.pitch * t)
        return self.repeat(self.beats(1 / (38 * self.pitch), 0.03), thump) + 0.15 * band(
            self.noise(), 40, 300 * self.pitch
        )

    def wailing(self) -> np.ndarray:
        rate = self.between(0.5, 1.2)
        phase = self.sweep(900 * self.pitch * (1 + 0.35 * np.sin(_TAU * rate * self.time + self.between(0, 6))))
        return np.sin(phase) + 0.4 * np.sin(2 * phase) + 0.2 * np.sin(3 * phase)

    def beeping(self) -> np.ndarray:
        return np.sin(_TAU * 1500 * self.pitch * self.time) * (
            (self.time * self.between(2.5, 4.5) + self.between(0, 1)) % 1 < 0.45
        )

    def whistling(self) -> np.ndarray:
        phase = self.sweep(2200 * self.pitch * (1 + 0.02 * np.sin(_TAU * 6 * self.time)))
        return np.sin(phase) + 0.12 * band(self.noise(), 1800 * self.pitch, 3000 * self.pitch)

    def ringing(self) -> np.ndarray:
        t = self.grain(0.9)
        partials = (
            (0.5, 0.5, 2),
            (1, 1, 3),
            (1.19, 0.8, 4),
            (1.5, 0.5, 5),
            (2, 0.6, 6),
            (2.74, 0.4, 8),
            (3.76, 0.3, 10),
        )
        strike = sum(loud * np.exp(-t * decay) * np.sin(_TAU * 620 * self.pitch * r * t) for r, loud, decay in partials)
        return self.repeat(self.beats(self.between(0.35, 0.7)), strike)  # pyright: ignore[reportArgumentType]

    def buzzing(self) -> np.ndarray:
        drift = 1 + 0.04 * np.cumsum(self.noise()) / SAMPLE_RATE**0.5
        return self.saw(self.sweep(190 * self.pitch * drift)) * (1 + 0.3 * np.sin(_TAU * 23 * self.time))

    def ticking(self) -> np.ndarray:
        t = self.grain(0.02)
        return self.repeat(
            self.beats(self.between(0.22, 0.4), 0.01), np.exp(-t * 500) * np.sin(_TAU * 3200 * self.pitch * t)
        )

    def chirping(self) -> np.ndarray:
        t = self.grain(0.09)
        chirp = np.hanning(len(t)) * np.sin(self.sweep(np.linspace(4800, 3000, len(t)) * self.pitch))
        return self.repeat(self.beats(self.between(0.13, 0.25), 0.15), chirp)

    def barking(self) -> np.ndarray:
        t = self.grain(0.16)
        voice = self.saw(self.sweep(np.linspace(520, 300, len(t)) * self.pitch))
        bark = np.hanning(len(t)) ** 0.5 * (voice + 0.5 * self.noise(len(t)))
        return band(self.repeat(self.beats(self.between(0.35, 0.55), 0.1), bark), 250 * self.pitch, 1800 * self.pitch)

    def meowing(self) -> np.ndarray:
        t = self.grain(0.65)
        phase = self.sweep((620 + 260 * np.sin(np.pi * np.linspace(0, 1, len(t)))) * self.pitch)
        meow = sum(np.sin(k * phase) * loud for k, loud in ((1, 0.6), (2, 1), (3, 0.7), (4, 0.4), (5, 0.2)))
        return self.repeat(self.beats(0.8), np.hanning(len(t)) * meow)

    def hissing(self) -> np.ndarray:
        return band(self.noise(), 4500 * self.pitch, 9000 * self.pitch) * (
            1 + 0.2 * np.sin(_TAU * self.between(0.5, 2) * self.time)
        )

    def drumming(self) -> np.ndarray:
        t = self.grain(0.22)
        skin = np.exp(-t * 18) * np.sin(self.sweep(70 * self.pitch + 80 * self.pitch * np.exp(-t * 40)))
        return self.repeat(self.beats(self.between(0.18, 0.35)), skin + 0.1 * np.exp(-t * 80) * self.noise(len(t)))

    def strumming(self) -> np.ndarray:
        t = self.grain(0.8)
        onsets = self.beats(self.between(0.4, 0.7))
        out = np.zeros(self.count)
        for string, ratio in enumerate((1, 1.26, 1.5, 2)):
            overtones = sum(np.sin(_TAU * 147 * self.pitch * ratio * k * t) / k * np.exp(-t * k) for k in range(1, 6))
            out += self.repeat(onsets + 0.02 * string, np.exp(-t * 4) * overtones)
        return out

    def croaking(self) -> np.ndarray:
        t = self.grain(0.28)
        croak = np.hanning(len(t)) * band((t * 52 % 1 < 0.25) * self.noise(len(t)), 300 * self.pitch, 900 * self.pitch)
        return self.repeat(self.beats(self.between(0.4, 0.6)), croak)

    def crackling(self) -> np.ndarray:
        t = self.grain(0.006)
        onsets = self.rng.uniform(0, self.seconds, int(45 * self.seconds))
        pops = self.repeat(onsets, np.exp(-t * 900) * self.noise(len(t)))
        return band(pops, 900 * self.pitch, 5000 * self.pitch) + 0.02 * band(self.noise(), 80, 500)

    def pattering(self) -> np.ndarray:
        t = self.grain(0.004)
        onsets = self.rng.uniform(0, self.seconds, int(260 * self.seconds))
        drops = self.repeat(onsets, np.exp(-t * 1200) * np.sin(_TAU * 2600 * self.pitch * t))
        return drops + 0.12 * band(self.noise(), 1500 * self.pitch, 6000 * self.pitch)

    def clapping(self) -> np.ndarray:
        t = self.grain(0.05)
        onsets = self.beats(self.between(0.25, 0.45))
        hands = np.concatenate([onsets, onsets + 0.006, onsets + 0.011])
        return band(self.repeat(hands, np.exp(-t * 90) * self.noise(len(t))), 800 * self.pitch, 2600 * self.pitch)

    def humming(self) -> np.ndarray:
        partials = ((1, 1), (2, 0.7), (3, 0.3), (4, 0.15))
        tone = sum(loud * np.sin(_TAU * 110 * self.pitch * k * self.time + self.between(0, 6)) for k, loud in partials)
        return tone * (1 + 0.15 * np.sin(_TAU * 2 * self.time))

    def howling(self) -> np.ndarray:
        rate = self.between(0.25, 0.5)
        phase = self.sweep(430 * self.pitch * (1 + 0.25 * np.sin(_TAU * rate * self.time + self.between(0, 6))))
        return np.sin(phase) + 0.5 * np.sin(2 * phase) + 0.08 * np.sin(3 * phase)


def band(signal: np.ndarray, low: float, high: float) -> np.ndarray:
    """Keep roughly the frequencies between `low` and `high` Hz."""
    spectrum = np.fft.rfft(signal)
    frequency = np.fft.rfftfreq(len(signal), 1 / SAMPLE_RATE)
    spectrum *= 1 / (1 + (low / np.maximum(frequency, 1)) ** 4) / (1 + (frequency / high) ** 4)
    return np.fft.irfft(spectrum, len(signal))


def loudness(signal: np.ndarray) -> float:
    """Root mean square of a signal."""
    return float(np.sqrt(np.mean(np.square(signal)))) if len(signal) else 0.0


def synthesise(sound: str, count: int, pitch: float, rng: np.random.Generator) -> np.ndarray:
    """Synthesise one of :data:`~avfewshot.toyworld.vocabulary.SOUNDS` in a random phase and tempo, around its pitch.

    `count` samples at 48 kHz, float64, of root mean square 1; `pitch` is a factor on all frequencies.
    """
    signal = getattr(_Synth(count, pitch * rng.uniform(0.92, 1.08), rng), sound)()
    return signal / (loudness(signal) + 1e-6)


def background_noise(count: int, rng: np.random.Generator) -> np.ndarray:
    """White to brown noise, sometimes with a mains hum: float64 ``[count]`` at 48 kHz, of root mean square 1."""
    frequency = np.maximum(np.fft.rfftfreq(count, 1 / SAMPLE_RATE), 20)
    slope = rng.choice([0, 0.5, 1.0]) * rng.uniform(0.7, 1.2)
    noise = np.fft.irfft(np.fft.rfft(rng.standard_normal(count)) / frequency**slope, count)
    noise /= loudness(noise) + 1e-9
    if rng.random() < 0.3:
        time = np.arange(count) / SAMPLE_RATE
        noise += rng.uniform(0.2, 1) * np.sin(_TAU * rng.choice([50, 60, 120]) * time)
    return noise / (loudness(noise) + 1e-9)
