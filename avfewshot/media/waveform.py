"""Reads any stretch of an audio track as mono 48 kHz, placed by its timestamps."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import av.error
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler

from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.media.container import RATES
from avfewshot.media.resample import margin, to_model_rate
from avfewshot.media.track import Track, TrackDecoder

_ROUNDING, _JITTER = 0.002, 0.04  # seconds by which a timestamp may miss the count of samples before that means a gap

_PREROLL_SECONDS = 1
"""Decoding starts this much early after a seek: codecs need some packets until their output is exact."""

_FAR_SECONDS = 10
"""A jump ahead beyond this is made by seeking, a shorter one by decoding on."""

_READ_TO_SEEK = frozenset({"mp3", "aac", "ac3", "eac3", "dts", "truehd", "mp2", "amr", "avi", "loas", "tta"})
"""Formats whose timestamps after a seek are estimates: packets are counted from the beginning instead, undecoded."""

_OPPOSED = 0.01
"""Channels cancel each other where the energy of their mean is below this part of the mean of their energies."""


@dataclass(frozen=True)
class Sound:
    """A stretch of sound."""

    waveform: np.ndarray  # float32 [seconds * 48000] in [-1, 1]
    heard: bool  # whether any of it came from the file (the rest is zero-filled)
    gap: float  # seconds within it for which the track, before its end, has no sound
    peak: float  # largest magnitude before clipping to [-1, 1]


class Waveform(TrackDecoder):
    """One audio track, read by the second.

    Stretches that follow each other are served in one pass over the file; the samples do not depend on how the track
    is cut into stretches. Channels are averaged; in a packet in which they cancel each other the loudest one is taken
    instead. Gaps and a late start are filled with zeros. A rate outside of :data:`RATES` counts as undecodable.

    `zero` is the beginning of the file's timeline in seconds on its own clock.
    """

    def __init__(self, path: Path, track: Track, zero: Fraction) -> None:
        self.rate = 0  # of the track in Hz; 0 if nothing in it can be decoded
        self.opposed = 0  # packets so far in which the channels cancelled each other
        self.nonfinite = 0  # samples of all channels so far that were NaN or infinite, and set to zero
        self._packer: tuple[tuple, AudioResampler] | None = None
        self._zero = zero
        self._grid: tuple[int, int] | None = None
        super().__init__(path, track)
        self._learn_grid()

    def read(self, start: int, stop: int) -> Sound:
        """Read the seconds ``[start, stop)`` of the file's timeline."""
        extra = margin(self.rate)
        first, last = start * self.rate, stop * self.rate
        samples = self._samples(first - extra, last + extra)
        heard = any(at < last and at + len(block) > first for at, block in self._blocks)
        gap = sum(max(0, min(last, b) - max(first, a)) for a, b in self._gaps) / self.rate
        while self._blocks and self._blocks[0][0] + len(self._blocks[0][1]) <= last - extra:
            self._blocks.popleft()
        while self._gaps and self._gaps[0][1] <= last - extra:
            self._gaps.popleft()
        self._kept_from = max(self._kept_from, last - extra)
        peak = float(np.abs(samples[extra : len(samples) - extra]).max(initial=0.0))
        waveform = to_model_rate(samples, self.rate, (stop - start) * SAMPLE_RATE)
        return Sound(waveform.clip(-1.0, 1.0), heard, gap, peak)

    # Samples by number: sample n is due n / rate seconds after the beginning of the timeline.

    def _samples(self, first: int, last: int) -> np.ndarray:
        """The samples ``[first, last)``, float32, zero where there are none."""
        out = np.zeros(last - first, np.float32)
        if first > (self._track.end - self._zero + 1) * self.rate:
            return out
        behind = first < self._kept_from
        far = self._position is not None and first - self._position > _FAR_SECONDS * self.rate
        if behind or far:
            self._seek(first)
        while (self._position is None or self._position < last) and self._decode_next():
            pass
        for at, block in self._blocks:
            a, b = max(first, at), min(last, at + len(block))
            if a < b:
                out[a - first : b - first] = block[a - at : b - at]
        return out

    def _seek(self, first: int) -> None:
        goal = self._zero + Fraction(first, self.rate) - _PREROLL_SECONDS
        ticks = int(goal / self._track.time_base)
        by_counting = self._track.shifts or _READ_TO_SEEK & set(self._container.format.name.split(","))
        if goal > self._track.start and not by_counting:
            try:
                self._container.seek(ticks, stream=self._stream)
                self._forget()
                while not self._blocks and self._decode_next():
                    pass
                if self._blocks and self._blocks[0][0] <= first:
                    self._kept_from = first
                    return
            except av.error.FFmpegError:
                pass
        self._open()
        self._skip_until = ticks
        self._kept_from = first

    # Reading and decoding.

    def _open(self) -> None:
        super()._open()
        layout = self._decoder.layout
        if " channels (" in layout.name:
            # Channels in an order of the file's own (mov, caf, aiff). PyAV gives the memory that describes it free
            # with every frame, and once more with the decoder: let it hold the usual order, which changes no sample.
            self._decoder.layout = f"{layout.nb_channels}c"
        self._kept_from = -(1 << 62)

    def _forget(self) -> None:
        super()._forget()
        self._blocks: deque[tuple[int, np.ndarray]] = deque()
        self._gaps: deque[tuple[int, int]] = deque()
        self._position: int | None = None  # number of the sample after the last one decoded
        self._skip_until: int | None = None
        self._ended = False

    def _learn_grid(self) -> None:
        """Decode the beginning; note the raster of packets: timestamps may be rounded, or a little off."""
        while len(self._blocks) < 3 and self._decode_next():
            pass
        # Uncompressed sound is read from any sample on, Vorbis packets differ in length: neither has a raster.
        if len(self._blocks) == 3 and not self._decoder.name.startswith(("pcm", "vorbis")):
            (at, first), (_, second), (_, third) = self._blocks
            if len(second) == len(third):
                self._grid = (at + len(first), len(second))

    def _decode_next(self) -> bool:
        """Decode a packet; False at the end of the track."""
        while not self._ended:
            packet = self._next_packet()
            if packet is not None and self._skip_until is not None and packet.pts is not None:
                if packet.pts + (packet.duration or 0) < self._skip_until:
                    continue
                self._skip_until = None
            self._ended = packet is None
            for frame in self._decode(packet):
                self._append(frame)
            return True
        return False

    def _append(self, frame: AudioFrame) -> None:
        if frame.sample_rate not in RATES:
            self.errors += 1
            return
        if not self.rate:
            self.rate = frame.sample_rate
            self._scale = float(self._track.time_base * self.rate)
            self._offset = float(self._zero * self.rate)
        if not frame.samples:
            return
        at = self._place(frame)
        block = self._mono(frame)
        if self._position is not None and at < self._position:  # it repeats what is there
            block = block[self._position - at :]
            at = self._position
        elif self._position is not None and at > self._position:
            self._gaps.append((self._position, at))
        if len(block):
            self._blocks.append((at, block))
            self._position = at + len(block)

    def _place(self, frame: AudioFrame) -> int:
        """Number of a frame's first sample."""
        if frame.pts is None:
            return self._position or 0
        told = round(frame.pts * self._scale - self._offset)
        if self._position is not None:
            # Containers round timestamps; but one lost packet must not shift all that follows.
            jitter = max(_ROUNDING * self.rate, min(_JITTER * self.rate, 0.75 * frame.samples))
            if abs(told - self._position) <= jitter:
                return self._position
            if frame.sample_rate != self.rate:  # raw streams count on at the first rate
                return max(told, self._position)
        if self._grid is not None and (frame.samples, frame.sample_rate) == (self._grid[1], self.rate):
            origin, step = self._grid
            near = origin + round((told - origin) / step) * step
            if abs(near - told) <= step // 4:
                return near
        return told

    def _mono(self, frame: AudioFrame) -> np.ndarray:
        """Mean of the channels, or the loudest one where that would be silence; float32 ``[samples]``."""
        channels = frame.layout.nb_channels
        wide = frame.format.name.startswith("s64")  # which NumPy is not given
        if wide or (frame.format.is_planar and channels >= 8) or frame.sample_rate != self.rate:
            # PyAV runs past the planes of eight or more channels: let swresample interleave them, which changes no bit.
            # A recording may be joined to one of another rate: that is brought to the rate of the first.
            key = (frame.format.name, frame.layout.name, channels, frame.sample_rate)
            if self._packer is None or self._packer[0] != key:
                resampler = AudioResampler(
                    format="dbl" if wide else frame.format.packed, layout=frame.layout, rate=self.rate
                )
                self._packer = (key, resampler)
            frame.pts = None
            parts = [part.to_ndarray() for part in self._packer[1].resample(frame)]
            samples = np.concatenate([np.zeros((1, 0)), *parts], axis=1).reshape(-1, channels).T
        else:
            samples = frame.to_ndarray()
            if not frame.format.is_planar:
                samples = samples.reshape(-1, channels).T
        if samples.dtype == np.uint8:
            samples = (samples.astype(np.float32) - 128) / 128
        elif samples.dtype.kind == "i":
            samples = samples.astype(np.float32) / 2.0 ** (8 * samples.dtype.itemsize - 1)
        with np.errstate(over="ignore", invalid="ignore"):
            samples = samples.astype(np.float32, copy=False)
            energies = np.einsum("cs,cs->c", samples, samples)
            if not np.isfinite(energies).all():
                finite = np.isfinite(samples)
                self.nonfinite += int(samples.size - np.count_nonzero(finite))
                samples = np.where(finite, samples, np.float32(0))
            if channels == 1:
                return samples[0]
            mean = np.add.reduce(samples) * np.float32(1 / channels)
            if np.vdot(mean, mean) >= _OPPOSED * energies.mean() or not np.isfinite(energies).all():
                return mean
        self.opposed += 1
        loudest = int(energies.argmax())
        return samples[0 if 2 * energies[0] >= energies[loudest] else loudest]
