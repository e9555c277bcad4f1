"""A clip as the members of a WebDataset sample, and back.

``KEY.0.jpg`` to ``KEY.9.jpg`` are the pictures, one a second; ``KEY.flac`` is the sound, 48 kHz, mono, 16 bit;
``KEY.json`` says what the clip is. Sound is lossless up to the rounding to 16 bits. Pictures lose what JPEG loses; the
colours are stored at full resolution (4:4:4), since halving it would save an eighth and blur saturated edges.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from avfewshot.data.shards.record import ClipRecord, DamagedClipError
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.clip_cache import DamagedError, decode_pictures, decode_sound, encode_picture, encode_sound

DEFAULT_QUALITY = 95
SOUND = "flac"
RECORD = "json"


def picture_name(second: int) -> str:
    """Name of the member that holds the picture of a second, without the key."""
    return f"{second}.jpg"


def encode_members(clip: Clip, record: ClipRecord, *, quality: int = DEFAULT_QUALITY) -> dict[str, bytes]:
    """Bytes of a clip by member name without the key.

    Frames are uint8 ``[T, 3, S, S]``, the waveform float32 ``[T * 48000]``; either may be None. `quality` of JPEG: 1 to
    100.
    """
    members = {RECORD: record.to_json()}
    if clip.frames is not None:
        for second, frame in enumerate(clip.frames):
            members[picture_name(second)] = encode_picture(frame, quality)
    if clip.waveform is not None:
        members[SOUND] = encode_sound(clip.waveform)
    return members


def decode_members(members: Mapping[str, bytes], path: Path) -> tuple[Clip, ClipRecord]:
    """Decode what :func:`encode_members` gave; `path` becomes the clip's path.

    Raises:
        DamagedClipError: Members are missing, damaged, or of another size than the record says.
    """
    try:
        record = ClipRecord.parse(members[RECORD])
        frames = waveform = None
        if record.frame_side is not None:
            pictures = [members[picture_name(second)] for second in range(record.seconds)]
            frames = decode_pictures(pictures, ("JPEG",), record.frame_side)
        if record.has_sound:
            waveform = decode_sound(members[SOUND], record.seconds * SAMPLE_RATE)
        return Clip(path, record.duration, 0, frames, waveform, record.warnings, last=record.whole), record
    except KeyError as error:
        raise DamagedClipError(f"it has no member {error}") from error
    except (DamagedError, ValueError) as error:
        raise DamagedClipError(" ".join(str(error).split())) from error
