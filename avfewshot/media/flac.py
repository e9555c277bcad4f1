"""Sound as 16-bit FLAC, 48 kHz, mono: what is kept on disk of waveforms."""

from __future__ import annotations

import io

import av
import numpy as np
import numpy.typing as npt
import torch

from avfewshot.media.clip import SAMPLE_RATE

_FULL_SCALE = 32768.0
_BLOCK = 4096  # samples handed to the encoder at once

Integers = npt.NDArray[np.int16]


def to_integers(waveform: torch.Tensor) -> Integers:
    """A float32 waveform in [-1, 1] as 16-bit integers."""
    return np.clip(np.rint(waveform.numpy() * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def to_floats(integers: Integers) -> torch.Tensor:
    """16-bit integers as a float32 waveform."""
    return torch.from_numpy(integers.astype(np.float32) / np.float32(_FULL_SCALE))


def rounded(waveform: torch.Tensor) -> torch.Tensor:
    """A waveform as it comes back from FLAC: float32, rounded to 16 bits."""
    return to_floats(to_integers(waveform))


def encode_flac(integers: Integers) -> bytes:
    """The content of a FLAC file."""
    stream = io.BytesIO()
    with av.open(stream, "w", format="flac") as container:
        track = container.add_stream("flac", rate=SAMPLE_RATE, layout="mono", format="s16")
        for start in range(0, len(integers), _BLOCK):
            block = np.ascontiguousarray(integers[None, start : start + _BLOCK])
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            container.mux(track.encode(frame))
        container.mux(track.encode(None))
    return stream.getvalue()


def decode_flac(content: bytes, expected: int) -> Integers:
    """Give back what :func:`encode_flac` was given.

    Args:
        content: The file's content, which need not be trusted.
        expected: How many samples it must have; decoding stops where there are more.

    Returns:
        int16 ``[expected]``.

    Raises:
        ValueError: It is of another form or length.
        av.error.FFmpegError: It is no FLAC file.
    """
    blocks: list[Integers] = []
    count = 0
    with av.open(io.BytesIO(content), format="flac") as container:
        track = container.streams.audio[0]
        if (track.rate, track.channels, track.format.name) != (SAMPLE_RATE, 1, "s16"):
            raise ValueError("its sound is not 48 kHz, mono, 16 bit")
        for frame in container.decode(track):
            blocks.append(frame.to_ndarray()[0])
            count += len(blocks[-1])
            if count > expected:  # a small file of silence may hold hours
                break
    if count != expected:
        raise ValueError(f"its sound does not have {expected} samples")
    return np.concatenate(blocks)
