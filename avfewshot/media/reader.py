"""Reads media files as clips: one picture and one second of sound a segment."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from PIL import Image

from avfewshot.errors import MediaError, UsageError
from avfewshot.media.clip import Clip
from avfewshot.media.frames import DecordFrames, DecordUnfitError, PyavFrames, load_decord
from avfewshot.media.picture import fit
from avfewshot.media.probe import probe
from avfewshot.media.track import Track
from avfewshot.media.waveform import Waveform

MODALITIES = ("av", "visual", "audio")
FRAME_BACKENDS = ("auto", "decord", "pyav")
_DAMAGED = "is damaged: nothing in it can be decoded"

_LOUD = 2.0
"""Peak beyond which clipping is worth a warning; lossy codecs overshoot full scale a little as a rule."""


@dataclass(frozen=True)
class MediaInfo:
    """What a file holds."""

    path: Path
    duration: float  # seconds from the earlier start to the later end of its tracks
    num_segments: int  # `duration` rounded to the nearest second, at least 1
    has_video: bool  # whether frames can be read
    has_audio: bool  # whether a waveform can be read
    warnings: tuple[str, ...]  # what is odd about the file, for people

    def stretch(self, start: int, stop: int | None) -> tuple[int, int]:
        """Segments that are asked for, to the end if `stop` is None; a ValueError where it has none such."""
        last = self.num_segments if stop is None else stop
        if not 0 <= start < last <= self.num_segments:
            raise ValueError(f"{self.path} has the segments [0, {self.num_segments}), not [{start}, {last}).")
        return start, last


def check_options(modality: str, frame_backend: str) -> None:
    """Raise :class:`~avfewshot.errors.UsageError` for a modality or a frame backend that cannot be used."""
    if modality not in MODALITIES:
        raise UsageError(f"Unknown modality {modality!r}.", hint=f"Choose one of: {', '.join(MODALITIES)}.")
    if frame_backend not in FRAME_BACKENDS:
        hint = f"Choose one of: {', '.join(FRAME_BACKENDS)}."
        raise UsageError(f"Unknown frame backend {frame_backend!r}.", hint=hint)
    if frame_backend == "decord":
        load_decord()


class ClipReader:
    """Reads any stretch of a media file; a context manager.

    Segment t is the second ``[t, t + 1)`` of the file's timeline, which begins where its earlier track begins. Its
    picture is the last one whose timestamp is not after ``t + 0.5``; where a video starts late its first picture
    stands before that, where it ends early its last one stands after that. Its sound is that second, mono, 48 kHz,
    zero where there is none. Reading seeks and decodes only what is asked for; stretches in order are served in one
    pass. A reader belongs to one thread.

    Args:
        path: The file.
        frame_size: Side S of the square pictures: the shorter side is resized to S (bicubic, antialiased), then the
            middle is cut out, to the bit as open_clip prepares images for evaluation. None: the pictures as they are.
        modality: ``"av"`` reads what there is, ``"visual"`` or ``"audio"`` only that.
        frame_backend: ``"pyav"``, ``"decord"`` (files that decord would show differently are left to PyAV, with a
            warning), or ``"auto"``, which is PyAV: the pictures are the same, and it takes a quarter to a third less
            time, since it leaves out pictures that no other depends on, which decord cannot; and it need not index
            a long file before it gives the first picture.

    Attributes:
        info: What the file holds.
        frame_backend: What decodes the pictures: ``"pyav"``, ``"decord"``, or None if nothing does.

    Raises:
        MediaError: The file cannot be read, or lacks the one modality asked for.
        UsageError: An unknown modality or backend, or decord asked for and not installed.
    """

    def __init__(
        self, path: str | Path, *, frame_size: int | None = 224, modality: str = "av", frame_backend: str = "auto"
    ) -> None:
        check_options(modality, frame_backend)
        if frame_size is not None and frame_size < 1:
            raise UsageError(f"The frame size must be at least 1, not {frame_size}.")
        self._path = Path(path)
        self._frame_size = frame_size
        self._native: tuple[int, int] | None = None
        self._frames: PyavFrames | DecordFrames | None = None
        self._sound: Waveform | None = None
        self._probe = probe(self._path)
        self._first: np.ndarray | None = None
        self._errors_told: Counter[str] = Counter()
        self._warnings: list[str] = []
        try:
            has_video, has_audio = self._open(modality, frame_backend)
        except BaseException:
            self.close()
            raise
        told = tuple(dict.fromkeys(self._warnings))
        length, segments = float(self._probe.duration), self._probe.num_segments
        self.info = MediaInfo(self._path, length, segments, has_video, has_audio, told)

    @property
    def frame_backend(self) -> str | None:
        """What decodes the pictures."""
        return {PyavFrames: "pyav", DecordFrames: "decord"}.get(type(self._frames))

    def read(self, start: int = 0, stop: int | None = None) -> Clip:
        """Read the segments ``[start, stop)`` as tensors; see :meth:`read_arrays`."""
        return as_tensors(self.read_arrays(start, stop))

    def read_arrays(self, start: int = 0, stop: int | None = None) -> Clip:
        """Read the segments ``[start, stop)``, frames and waveform as NumPy arrays; nothing here imports torch.

        The clip has the warnings about the file and about this stretch; a :class:`MediaError` where it cannot be read.
        """
        start, stop = self.info.stretch(start, stop)
        frames: Any
        waveform: Any
        try:
            frames, about_frames = self._read_frames(start, stop)
            waveform, about_waveform = self._read_waveform(start, stop)
        except (av.error.FFmpegError, OSError) as error:
            raise MediaError(self._path, f"cannot be read any further: {error}") from error
        if frames is None and waveform is None:
            raise MediaError(self._path, _DAMAGED)
        told = tuple(dict.fromkeys([*self._warnings, *about_frames, *about_waveform]))
        return Clip(self._path, self.info.duration, start, frames, waveform, told, last=stop == self.info.num_segments)

    def close(self) -> None:
        """Close the file."""
        for part in (self._frames, self._sound):
            if part is not None:
                part.close()

    def __enter__(self) -> ClipReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Opening.

    def _open(self, modality: str, frame_backend: str) -> tuple[bool, bool]:
        """Open the tracks that are wanted; whether pictures and sound can be had."""
        found = self._probe
        has_video, has_audio = found.video is not None, found.audio is not None
        lacks = {"video": _DAMAGED, "audio": _DAMAGED}
        if modality != "audio" and has_video:
            try:
                has_video = self._open_video(frame_backend)
            except MemoryError:
                if modality == "visual" or not has_audio:
                    raise
                has_video, lacks["video"] = False, "needs more memory to decode than one file may use"
            if not has_video and self._frames is not None:
                self._frames.close()
                self._frames = None
        if modality != "visual" and found.audio is not None:
            self._sound = Waveform(self._path, found.audio, found.zero)
            has_audio = self._sound.rate > 0
            if not has_audio:
                self._sound.close()
                self._sound = None
        self._warnings += [text for about, text in found.warnings if modality == "av" or about in (modality, "file")]
        tracks = [("visual", "video", found.video, has_video), ("audio", "audio", found.audio, has_audio)]
        wanted = [(name, track, has) for about, name, track, has in tracks if modality in (about, "av")]
        dead = [name for name, track, has in wanted if track is not None and not has]
        self._warnings += [f"the {name} track {lacks[name]}" for name in dead]
        if any(has for _, _, has in wanted):
            return has_video, has_audio
        if "webp" in found.format:
            problem = "is an animated WebP picture, which this FFmpeg cannot decode."
            raise MediaError(self._path, problem, hint="Convert it to an mp4 or a GIF.")
        raise MediaError(self._path, _DAMAGED if dead else f"has no {wanted[0][0]} track")

    def _open_video(self, frame_backend: str) -> bool:
        if frame_backend == "decord":
            try:
                self._frames = DecordFrames(self._probe)
            except DecordUnfitError as reason:
                self._leave_decord(reason)
        else:
            self._frames = PyavFrames(self._path, self._video)
        # Decoded anyway when reading begins at the beginning; it shows whether anything can be.
        self._first = next(self._pictures(self._limits(0, 1)))
        return self._first is not None

    def _leave_decord(self, reason: DecordUnfitError) -> None:
        self._warnings.append(f"{reason}: its pictures were decoded by PyAV")
        self._frames = PyavFrames(self._path, self._video)

    # Reading.

    @property
    def _video(self) -> Track:
        assert self._probe.video is not None
        return self._probe.video

    def _limits(self, start: int, stop: int) -> list[int]:
        """The middle of each segment in ticks of the video track, rounded down."""
        zero, base = self._probe.zero, self._video.time_base
        return [math.floor((zero + t + Fraction(1, 2)) / base) for t in range(start, stop)]

    def _pictures(self, limits: list[int]) -> Iterator[np.ndarray | None]:
        done = 0
        if isinstance(self._frames, DecordFrames):
            try:
                for image in self._frames.at(limits):
                    yield image
                    done += 1
                return
            except DecordUnfitError as reason:
                self._leave_decord(reason)
        assert self._frames is not None
        yield from self._frames.at(limits[done:])

    def _read_frames(self, start: int, stop: int) -> tuple[np.ndarray | None, list[str]]:
        if self._frames is None:
            return None, []
        out: Any = None
        last: Any = None
        fitted: Any = None
        for number, image in enumerate(self._pictures(self._limits(start, stop))):
            shown: Any = self._first if image is None else image
            if shown is not last:
                last, fitted = shown, self._fit(shown)
            if out is None:
                out = np.empty((stop - start, *fitted.shape), np.uint8)
            out[number] = fitted
        if self._new_errors("video", getattr(self._frames, "errors", 0)):
            return out, ["damaged: pictures that could not be decoded were replaced by earlier ones"]
        return out, []

    def _new_errors(self, kind: str, count: int) -> int:
        """How many errors there were since this was last asked."""
        told, self._errors_told[kind] = self._errors_told[kind], count
        return count - told

    def _fit(self, image: np.ndarray) -> np.ndarray:
        if self._frame_size is None:
            size = image.shape[0], image.shape[1]
            height, width = self._native = self._native or size
            if size != (height, width):  # the picture may change its size on the way
                image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))
        return fit(image, self._frame_size)

    def _read_waveform(self, start: int, stop: int) -> tuple[np.ndarray | None, list[str]]:
        if self._sound is None:
            return None, []
        warnings = []
        sound = self._sound.read(start, stop)
        whole = start == 0 and stop == self.info.num_segments
        where = "" if whole else f" from {start} s to {stop} s"
        if self._new_errors("audio", self._sound.errors):
            warnings.append(f"damaged: audio that could not be decoded was replaced by silence{where}")
        if self._new_errors("opposed", self._sound.opposed):
            warnings.append(f"audio channels cancel each other when they are mixed: the loudest is used there{where}")
        if sound.gap > 1:
            warnings.append(f"{sound.gap:.1f} s of the audio are missing: silence stands for them{where}")
        if nonfinite := self._new_errors("nonfinite", self._sound.nonfinite):
            warnings.append(f"audio has {nonfinite} samples that are not numbers; they were set to zero{where}")
        if sound.peak > _LOUD:
            warnings.append(f"audio exceeds full scale (peak {sound.peak:.3g}) and was clipped{where}")
        if sound.heard and sound.peak == 0:
            warnings.append(f"audio is silent: every sample is zero{where}")
        return sound.waveform, warnings


def as_tensors(clip: Clip) -> Clip:
    """The clip with tensors that share the memory of its arrays."""
    import torch

    frames, waveform = (None if a is None else torch.from_numpy(a) for a in (clip.frames, clip.waveform))
    return replace(clip, frames=frames, waveform=waveform)


def read_clip(
    path: str | Path, *, frame_size: int | None = 224, modality: str = "av", frame_backend: str = "auto"
) -> Clip:
    """Read a whole file; see :class:`ClipReader`, which reads long files piece by piece."""
    with ClipReader(path, frame_size=frame_size, modality=modality, frame_backend=frame_backend) as reader:
        return reader.read()
