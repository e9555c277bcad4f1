"""What the rest of the program sees of a media file: one picture and one second of sound for each segment."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

MODALITIES = ("visual", "audio")
"""Sight and sound, in the order of every pair and table."""

SAMPLE_RATE = 48_000
"""Samples a second of every waveform in this program."""

SEGMENT_SECONDS = 1.0
"""Length of a segment: the unit that is embedded, scored and reported."""


@dataclass(frozen=True)
class Failure:
    """Stands in the place of the clip, the embeddings or the result of a file that could not be used."""

    path: str  # the file as it was named, or its place in a shard
    error: str  # why, in one line, without the path
    id: str | None = None  # its name in an annotation file
    ok: ClassVar[bool] = False


@dataclass(frozen=True, eq=False)
class Clip:
    """Segments ``[start, start + T)`` of a file.

    Raises:
        ValueError: Neither frames nor waveform, or lengths that contradict each other.
    """

    path: Path | str  # as it was named: a file, or an address
    duration: float  # of the whole file in seconds, of which this may be a part
    start: int  # index of the first segment held: 0 unless this is a later part of a long file
    frames: torch.Tensor | None  # uint8 [T, 3, H, W], RGB, one picture a segment
    waveform: torch.Tensor | None  # float32 [T * 48000], mono, in [-1, 1], zero where the file has no sound
    warnings: tuple[str, ...] = ()  # what was odd about the file, for people
    last: bool = True  # False where further parts of the same file follow
    ok: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.frames is None and self.waveform is None:
            raise ValueError("A clip needs frames or a waveform.")
        if self.waveform is not None and self.waveform.shape != (self.num_segments * SAMPLE_RATE,):
            raise ValueError(
                f"The waveform must have {self.num_segments} x {SAMPLE_RATE} samples, not {tuple(self.waveform.shape)}."
            )

    @property
    def num_segments(self) -> int:
        """T, the number of seconds held."""
        if self.frames is not None:
            return self.frames.shape[0]
        return 0 if self.waveform is None else self.waveform.shape[0] // SAMPLE_RATE

    @property
    def audio_segments(self) -> torch.Tensor | None:
        """The waveform cut into seconds, float32 ``[T, 48000]`` (a view), or None without audio."""
        return None if self.waveform is None else self.waveform.reshape(-1, SAMPLE_RATE)
