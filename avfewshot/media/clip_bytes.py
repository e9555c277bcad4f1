"""Clips and their parts as bytes, and back: pictures as WebP or JPEG, sound as 16-bit FLAC, both by safe decoders.

A clip is a ZIP archive, so that every part carries a checksum and can be looked at with ordinary tools: ``clip.json``,
one picture a second, ``audio.flac``. Pictures are kept losslessly as WebP: a 224 x 224 picture takes 42 KiB, where JPEG
at quality 95 takes 17 and raw pixels 147. Sound takes 20 to 75 KiB a second either way, so JPEG would save a quarter of
a file, and have the model train on other pictures than it is tested on. Sound is rounded to 16 bits, as audio files
mostly are and as LAION CLAP's own preparation does; from then on it is lossless.
"""

from __future__ import annotations

import functools
import io
import json
import os
import zipfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, features

from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.container import MAX_PIXELS

_FULL_SCALE = 32768.0


class DamagedError(ValueError):
    """The bytes are not those of a stored clip, or of a part of one."""


def rounded(waveform: torch.Tensor) -> torch.Tensor:
    """A waveform ``[samples]`` in [-1, 1] as it comes back from FLAC: float32, rounded to 16 bits."""
    return _to_floats(_to_integers(waveform))


def _to_integers(waveform: torch.Tensor) -> np.ndarray:
    return np.clip(np.rint(waveform.numpy() * _FULL_SCALE), -_FULL_SCALE, _FULL_SCALE - 1).astype(np.int16)


def _to_floats(integers: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(integers.astype(np.float32) / np.float32(_FULL_SCALE))


def encode_sound(waveform: torch.Tensor) -> bytes:
    """Float32 ``[samples]`` in [-1, 1] as a FLAC file of 48 kHz, mono, 16 bit."""
    import soundfile

    stream = io.BytesIO()
    _callbacks().submit(soundfile.write, stream, _to_integers(waveform), SAMPLE_RATE, "PCM_16", format="FLAC").result()
    return stream.getvalue()


@functools.cache
def _callbacks() -> ThreadPoolExecutor:
    """Where soundfile's callbacks run, which swallow Ctrl-C: not in the main thread, which alone gets signals."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_callbacks.cache_clear)  # threads do not come along
    return ThreadPoolExecutor(1, thread_name_prefix="soundfile")


def decode_sound(content: bytes, samples: int) -> torch.Tensor:
    """What :func:`encode_sound` gave, as :func:`rounded`; of bytes that need not be trusted.

    Raises:
        DamagedError: It is of another form, or does not have `samples` samples (no more than these are decoded: a small
            file of silence may hold hours).
    """
    import soundfile

    try:
        integers = _callbacks().submit(_read_flac, content, samples + 1).result()
    except (soundfile.SoundFileError, RuntimeError) as error:
        raise DamagedError(f"its sound is damaged: {error}") from error
    if len(integers) != samples:
        raise DamagedError(f"its sound does not have {samples} samples")
    return _to_floats(integers)


def _read_flac(content: bytes, most: int) -> Any:
    import soundfile

    with soundfile.SoundFile(io.BytesIO(content)) as file:
        if (file.format, file.samplerate, file.channels, file.subtype) != ("FLAC", SAMPLE_RATE, 1, "PCM_16"):
            raise DamagedError("its sound is not FLAC of 48 kHz, mono, 16 bit")
        return file.read(most, dtype="int16")


def encode_picture(frame: torch.Tensor, quality: int | None = None) -> bytes:
    """Encode uint8 ``[3, H, W]``: as JPEG of a quality from 1 to 100, or without loss (WebP, else PNG)."""
    stream = io.BytesIO()
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    if quality is not None:  # colours at full resolution: halving it would save an eighth and blur saturated edges
        image.save(stream, "JPEG", quality=quality, subsampling=0)
    elif features.check("webp") and max(image.size) <= 16383:  # the largest that WebP can hold
        image.save(stream, "WEBP", lossless=True, quality=0, method=0)
    else:
        image.save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def decode_pictures(contents: Sequence[bytes], formats: tuple[str, ...], side: int | None = None) -> torch.Tensor:
    """Pictures of one size as uint8 ``[T, 3, H, W]``; of bytes that need not be trusted.

    Raises:
        DamagedError: One is damaged, of another format, or not of `side` x `side` (any one size if None).
    """
    size = None if side is None else (side, side)
    pictures = []
    try:
        for content in contents:
            with Image.open(io.BytesIO(content), formats=formats) as image:
                size = size or image.size
                # Looked at before a picture of unknown size is given memory.
                if image.size != size or image.width * image.height > MAX_PIXELS:
                    raise DamagedError(f"a picture is {image.width} x {image.height} instead of {size[0]} x {size[1]}")
                pictures.append(np.asarray(image if image.mode == "RGB" else image.convert("RGB")))
    except DamagedError:
        raise
    except Exception as error:  # Pillow raises many kinds of bytes that are not its own
        raise DamagedError(f"a picture is damaged: {' '.join(str(error).split())}") from error
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def encode_clip(clip: Clip, key: str) -> bytes:
    """Store a whole clip, without its path, under a key that :func:`decode_clip` checks."""
    about = {
        "key": key, "duration": clip.duration, "segments": clip.num_segments, "has_frames": clip.frames is not None,
        "has_audio": clip.waveform is not None, "warnings": list(clip.warnings),
    }  # fmt: skip
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("clip.json", json.dumps(about))
        if clip.frames is not None:
            for number, frame in enumerate(clip.frames):
                archive.writestr(f"{number:06d}.img", encode_picture(frame))
        if clip.waveform is not None:
            archive.writestr("audio.flac", encode_sound(clip.waveform))
    return stream.getvalue()


def decode_clip(content: bytes, key: str, path: Path) -> Clip:
    """What :func:`encode_clip` stored, with this path: its frames to the bit, its waveform as :func:`rounded`.

    Raises:
        DamagedError: It is damaged, compressed, or stored under another key.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            if any(part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()):
                raise DamagedError("it is compressed")  # a few bytes may unpack to any size
            about = json.loads(archive.read("clip.json"))
            if about["key"] != key:
                raise DamagedError("it belongs to another clip")
            frames = waveform = None
            segments = int(about["segments"])
            if about["has_frames"]:
                names = [name for name in archive.namelist() if name.endswith(".img")]
                if len(names) != segments or names != [f"{number:06d}.img" for number in range(len(names))]:
                    raise DamagedError("it lacks pictures")
                frames = decode_pictures([archive.read(name) for name in names], ("WEBP", "PNG"))
            if about["has_audio"]:
                waveform = decode_sound(archive.read("audio.flac"), segments * SAMPLE_RATE)
        return Clip(path, float(about["duration"]), 0, frames, waveform, tuple(map(str, about["warnings"])))
    except DamagedError:
        raise
    except Exception as error:  # zipfile and json raise many kinds of bytes that are not theirs
        raise DamagedError(str(error)) from error
