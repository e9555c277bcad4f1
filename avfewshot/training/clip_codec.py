"""A decoded clip as the bytes of one small file, and back.

A ZIP archive, so that every part carries a checksum and can be looked at with ordinary tools: ``clip.json``, one
picture a second, ``audio.flac``. Pictures are kept losslessly as WebP: a 224 x 224 picture takes 42 KiB, where JPEG at
quality 95 takes 17 and raw pixels 147. Sound takes 20 to 75 KiB a second either way, so JPEG would save a quarter of a
file, and have the model train on other pictures than it is tested on. Sound is rounded to 16 bits, as audio files
mostly are and as LAION CLAP's own preparation does; from then on it is lossless.
"""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image, features

from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.flac import decode_flac, encode_flac, to_floats, to_integers


class DamagedError(ValueError):
    """The bytes are not those of a stored clip."""


@dataclass(frozen=True)
class _Layout:
    key: str
    duration: float
    segments: int
    has_frames: bool
    has_audio: bool
    warnings: list[str]


def encode_clip(clip: Clip, key: str) -> bytes:
    """Store a whole clip.

    Args:
        clip: The clip; its path is not stored.
        key: What the clip is, checked by :func:`decode_clip`.

    Returns:
        The file's content.
    """
    layout = _Layout(
        key=key,
        duration=clip.duration,
        segments=clip.num_segments,
        has_frames=clip.frames is not None,
        has_audio=clip.waveform is not None,
        warnings=list(clip.warnings),
    )
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("clip.json", json.dumps(layout.__dict__))
        if clip.frames is not None:
            for number, frame in enumerate(clip.frames):
                archive.writestr(_frame_name(number), _encode_picture(frame))
        if clip.waveform is not None:
            archive.writestr("audio.flac", encode_flac(to_integers(clip.waveform)))
    return stream.getvalue()


def decode_clip(content: bytes, key: str, path: Path) -> Clip:
    """Give back what :func:`encode_clip` stored.

    Args:
        content: The file's content.
        key: The key given when it was stored.
        path: The clip's path, to be put into the result.

    Returns:
        The clip; its frames to the bit, its waveform as :func:`rounded`.

    Raises:
        DamagedError: The content is damaged or of another clip.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            layout = _Layout(**json.loads(archive.read("clip.json")))
            if layout.key != key:
                raise DamagedError("it belongs to another clip")
            frames = waveform = None
            if layout.has_frames:
                pictures = [_decode_picture(archive.read(_frame_name(i))) for i in range(layout.segments)]
                frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
            if layout.has_audio:
                waveform = to_floats(decode_flac(archive.read("audio.flac"), layout.segments * SAMPLE_RATE))
        return Clip(path, float(layout.duration), 0, frames, waveform, tuple(layout.warnings))
    except (
        # What zipfile, json, Pillow and PyAV make of bytes that are not theirs.
        *(zipfile.BadZipFile, KeyError, TypeError, ValueError, EOFError, OSError, IndexError),
        *(NotImplementedError, RuntimeError, SyntaxError, OverflowError, av.error.FFmpegError),
    ) as error:
        raise DamagedError(str(error)) from error


def _frame_name(number: int) -> str:
    return f"{number:06d}.img"


def _encode_picture(frame: torch.Tensor) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    if features.check("webp") and max(image.size) <= 16383:  # the largest that WebP can hold
        image.save(stream, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _decode_picture(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("WEBP", "PNG")) as image:
        return np.asarray(image.convert("RGB"))
