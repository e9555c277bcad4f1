"""A clip as the members of a WebDataset sample, and back.

``KEY.0.jpg`` to ``KEY.9.jpg`` are the pictures, one a second; ``KEY.flac`` is the sound, 48 kHz, mono, 16 bit;
``KEY.json`` says what the clip is. Sound is lossless up to the rounding to 16 bits. Pictures lose what JPEG loses; the
colours are stored at full resolution (4:4:4), since halving it would save an eighth and blur saturated edges.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import av
import numpy as np
import torch
from PIL import Image

from avfewshot.data.shards.record import ClipRecord, RecordError
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.flac import decode_flac, encode_flac, to_floats, to_integers

DEFAULT_QUALITY = 95
SOUND = "flac"
RECORD = "json"


class DamagedClipError(ValueError):
    """Members that are damaged or not those of a clip."""


def picture_name(second: int) -> str:
    """Name of the member that holds the picture of a second, without the key."""
    return f"{second}.jpg"


def encode_members(clip: Clip, record: ClipRecord, *, quality: int = DEFAULT_QUALITY) -> dict[str, bytes]:
    """Encode a clip.

    Args:
        clip: The clip; frames uint8 ``[T, 3, S, S]``, waveform float32 ``[T * 48000]``, either may be None.
        record: What it is.
        quality: Of JPEG, 1 to 100.

    Returns:
        Bytes by member name without the key.
    """
    members = {RECORD: record.to_json()}
    if clip.frames is not None:
        for second, frame in enumerate(clip.frames):
            members[picture_name(second)] = _encode_picture(frame, quality)
    if clip.waveform is not None:
        members[SOUND] = encode_flac(to_integers(clip.waveform))
    return members


def decode_members(members: Mapping[str, bytes], path: Path) -> tuple[Clip, ClipRecord]:
    """Decode what :func:`encode_members` gave.

    Args:
        members: Bytes by member name without the key.
        path: Becomes the clip's path.

    Returns:
        The clip and its record.

    Raises:
        DamagedClipError: Members are missing, damaged, or of another size than the record says.
    """
    try:
        record = ClipRecord.parse(members[RECORD])
        frames = waveform = None
        if record.frame_side is not None:
            pictures = [
                _decode_picture(members[picture_name(second)], record.frame_side) for second in range(record.seconds)
            ]
            frames = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()
        if record.has_sound:
            waveform = to_floats(decode_flac(members[SOUND], record.seconds * SAMPLE_RATE))
        return Clip(path, record.duration, 0, frames, waveform, record.warnings, last=record.whole), record
    except KeyError as error:
        raise DamagedClipError(f"it has no member {error}") from error
    except RecordError as error:
        raise DamagedClipError(f"its description is not valid: {error}") from error
    except (
        # What Pillow and PyAV make of bytes that are not theirs.
        *(AttributeError, TypeError, ValueError, EOFError, OSError, IndexError, SyntaxError, OverflowError),
        *(av.error.FFmpegError, Image.DecompressionBombError),
    ) as error:
        raise DamagedClipError(" ".join(str(error).split()) or type(error).__name__) from error


def _encode_picture(frame: torch.Tensor, quality: int) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
    image.save(stream, "JPEG", quality=quality, subsampling=0)
    return stream.getvalue()


def _decode_picture(content: bytes, side: int) -> np.ndarray:
    with Image.open(io.BytesIO(content), formats=("JPEG",)) as image:
        if image.size != (side, side):  # looked at before a picture of unknown size is given memory
            raise DamagedClipError(f"a picture is {image.width} x {image.height} instead of {side} x {side}")
        return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))  # convert copies in any case
