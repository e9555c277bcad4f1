"""Opens media files with FFmpeg (PyAV), and says in plain words why one cannot be opened."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import Any

import av
import av.error
import av.stream
from av.container import InputContainer
from av.stream import Stream

from avfewshot.errors import MediaError

# Demuxers that accept text or lists of other files. A file from a stranger must not make FFmpeg open its neighbours,
# and a text file is not a video although FFmpeg can render one.
_NOT_MEDIA = frozenset({"tty", "hls", "dash", "concat", "concatf", "sdp", "imf", "ffmetadata", "lavfi", "vapoursynth"})

_MP4_BOXES = frozenset({b"ftyp", b"mdat", b"moov", b"free", b"skip", b"wide", b"moof", b"styp", b"sidx", b"pnot"})
_MAX_BOXES = 100_000
_MOST_INDEX = 4_000_000  # bytes behind the last packet that are looked through


def open_media(path: Path) -> InputContainer:
    """Open a regular file for reading; the caller closes the container.

    Raises:
        MediaError: Missing, a folder, empty, truncated or not a media file.
    """
    _check_file(path)
    try:
        # An absolute path cannot be taken for a protocol ("a:b.mp4"). Tags in a foreign encoding are no reason to fail.
        container = av.open(
            os.path.abspath(path), container_options={"protocol_whitelist": "file"}, metadata_errors="replace"
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        refuse_truncated(path)
        raise MediaError(path, "is not a media file, or is damaged beyond recognition") from error
    if _NOT_MEDIA & set(container.format.name.split(",")):
        name = container.format.name
        container.close()
        raise MediaError(path, f"is not a media file (FFmpeg takes it for {name!r})")
    return container


RATES = range(1_000, 768_001)
"""Sampling rates in Hz that are read: memory grows with the rate, whatever a damaged header says."""

DECODED_PIXELS = 250_000_000
"""Pixels of the largest picture that is decoded, which is about what FFmpeg takes (16K video has 133 million)."""

MAX_PIXELS = 40_000_000
"""Pixels of the largest picture that is held in RGB (8K video has 33 million): larger ones are scaled down to that."""


def beyond_bounds(stream: Stream) -> str | None:
    """Why a stream is not decoded although it could be, or None."""
    codec: Any = stream.codec_context
    if stream.type == "audio" and codec is not None and codec.sample_rate and codec.sample_rate not in RATES:
        return f"a sampling rate of {codec.sample_rate:,} Hz is not read ({RATES[0]:,} to {RATES[-1]:,} Hz are)"
    if stream.type == "video" and codec is not None and codec.width * codec.height > DECODED_PIXELS:
        size = f"{codec.width:,} x {codec.height:,}"
        return f"pictures of {size} pixels are not decoded (up to {DECODED_PIXELS:,} pixels are)"
    return None


def pick_streams(container: InputContainer) -> tuple[Stream | None, Stream | None]:
    """The video and the audio stream that FFmpeg considers best, each None where there is none that can be decoded.

    Attached pictures (cover art) are no video.
    """
    chosen = []
    for kind in ("video", "audio"):
        stream = container.streams.best(kind)
        if stream is None or stream.codec_context is None or is_picture(stream) or beyond_bounds(stream):
            stream = None
        chosen.append(stream)
    return chosen[0], chosen[1]


def is_picture(stream: Stream) -> bool:
    """Whether a video stream is an attached picture."""
    return bool(stream.disposition & av.stream.Disposition.attached_pic)


def refuse_truncated(path: Path) -> None:
    """Raise the :class:`MediaError` of a file of which a part is missing without which it cannot be read."""
    if is_cut_short(path):
        reason = "is truncated: a part that the format needs is missing."
        raise MediaError(path, reason, hint="Copy or download it again.")


def is_cut_short(path: Path) -> bool:
    """Whether an mp4/mov or RIFF (wav, avi) file is shorter than its own headers say, or lacks the index of an mp4."""
    return _is_cut_mp4(path) or _is_cut_riff(path)


_HEADS = re.compile(rb"RIFF....(?:WAVE|AVI )|ftyp(?:iso|mp4|M4|qt|avc|3g|dash)|FLV\x01[\x00-\x05]\0\0\0\x09", re.DOTALL)


def joined_behind(path: Path, end: int) -> bool:
    """Whether behind the last packet, which ends at byte `end`, another file of a kind begins that is read as one."""
    with open(path, "rb") as stream:
        stream.seek(end)
        return _HEADS.search(stream.read(_MOST_INDEX)) is not None


def _check_file(path: Path) -> None:
    try:
        status = os.stat(path)
    except FileNotFoundError as error:
        raise MediaError(path, "no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        raise MediaError(path, f"cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(path, "is a folder, not a file")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(path, "is not a regular file")
    if status.st_size == 0:
        raise MediaError(path, "is empty (0 bytes)")
    if not os.access(path, os.R_OK):
        raise MediaError(path, "cannot be opened: permission denied")


def _is_cut_riff(path: Path) -> bool:
    with open(path, "rb") as stream:
        head = stream.read(8)
    length = int.from_bytes(head[4:8], "little")
    # Recorders that could not go back to fill the length in leave the largest number.
    return head[:4] == b"RIFF" and length < 0xFFFFFFF0 and length + 8 > os.path.getsize(path) + 1


def _is_cut_mp4(path: Path) -> bool:
    """Walk over the boxes at the top: is the index missing, or does the last box reach past the end?"""
    size = os.path.getsize(path)
    position, seen = 0, set()
    with open(path, "rb") as stream:
        for _ in range(_MAX_BOXES):
            if position + 8 > size:
                break
            stream.seek(position)
            header = stream.read(16)
            length, kind = int.from_bytes(header[:4], "big"), header[4:8]
            if kind not in _MP4_BOXES and not seen:
                return False
            if length == 1:
                length = int.from_bytes(header[8:16], "big")
            elif length == 0:  # to the end of the file
                length = size - position
            # Behind the last box there may be anything: it is no promise of more.
            if length < 8 or (kind not in _MP4_BOXES and position + length > size):
                break
            seen.add(kind)
            position += length
        else:
            return False
    return bool(seen) and (b"moov" not in seen or position > size)
