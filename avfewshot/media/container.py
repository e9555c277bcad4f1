"""Opens media files with FFmpeg (PyAV), says in plain words why one cannot be opened, and decodes single tracks."""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import av.stream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from avfewshot.errors import MediaError

# Demuxers that accept text or lists of other files. A file from a stranger must not make FFmpeg open its neighbours,
# and a text file is not a video although FFmpeg can render one.
_NOT_MEDIA = frozenset({"tty", "hls", "dash", "concat", "concatf", "sdp", "imf", "ffmetadata", "lavfi", "vapoursynth"})

READ_ERRORS = (av.error.FFmpegError, IndexError)
"""What reading a packet may raise; IndexError: PyAV meets a stream that turned up in the middle of a damaged file."""

_MAX_ERRORS = 1000  # in reading a track
_REORDER = 60  # seconds between the decoding and the presentation of a picture
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
        if is_cut_short(path):
            raise truncated(path) from error
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


def truncated(path: Path) -> MediaError:
    """The error for a file of which a part is missing without which it cannot be read."""
    return MediaError(path, "is truncated: a part that the format needs is missing.", hint="Copy or download it again.")


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


@dataclass
class Track:
    """One stream, its times in seconds on the file's own clock."""

    index: int
    time_base: Fraction  # seconds in one tick of its timestamps
    start: Fraction  # when its first picture or sample is due
    end: Fraction  # when its last one ends
    rate: Fraction | None = None  # pictures a second on average; None where the file does not say, and for audio
    # Sorted timestamps (ticks) of all pictures; None unless every packet was read and each has one of its own.
    stamps: tuple[int, ...] | None = None
    counted: bool = False  # the pictures have no usable timestamps and can only be counted, at `rate`
    closed: bool = True  # every keyframe is followed by later pictures only: none depends on an earlier group
    pixels: tuple[str | None, int] | None = None  # FFmpeg's pixel format and the height: ("yuv420p", 240)
    # Number of a packet, from which on so many ticks are added to its timestamps; with any, the file cannot be sought.
    shifts: dict[int, int] = field(default_factory=dict)


def mend(packet: Packet, shift: int, time_base: Fraction, *, first: bool = False) -> None:
    """Move a packet; where its two timestamps lie far apart, only one of them is believed."""
    pts, dts = packet.pts, packet.dts
    if pts is not None and dts is not None and abs(pts - dts) * time_base > _REORDER:
        pts = dts = pts if first else dts
        packet.pts = packet.dts = pts
    if shift:
        packet.pts = None if pts is None else pts + shift
        packet.dts = None if dts is None else dts + shift


class TrackDecoder:
    """Decodes the packets of one track in the order of the file, with timestamps as `Track.shifts` has them."""

    def __init__(self, path: Path, track: Track) -> None:
        self.errors = 0  # packets that could not be read or decoded so far
        self._path, self._track = path, track
        self._container: Any = None
        self._open()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def _open(self) -> None:
        """Begin at the beginning of the file."""
        if self._container is not None:
            self._container.close()
        self._container = open_media(self._path)
        for stream in self._container.streams:  # the demuxer need not read the bytes of the others
            if stream.index != self._track.index and hasattr(stream, "discard"):  # an older PyAV is only slower
                stream.discard = av.stream.Discard.all
        self._stream = self._container.streams[self._track.index]
        self._decoder: Any = self._stream.codec_context
        self._shift = self._packet = 0
        self._forget()

    def _forget(self) -> None:
        """Begin anew at the container's present position."""
        self._packets = self._container.demux(self._stream)

    def _next_packet(self) -> Packet | None:
        """The next packet; None at the end of the track."""
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                return None
            except READ_ERRORS:
                self.errors += 1
                if self.errors > _MAX_ERRORS:
                    return None
                self._packets = self._container.demux(self._stream)
                continue
            if packet.size:
                self._shift = self._track.shifts.get(self._packet, self._shift)
                mend(packet, self._shift, self._track.time_base, first=not self._packet)
                self._packet += 1
                return packet
            if packet.dts is None:  # the mark that ends every stream
                return None

    def _decode(self, packet: Packet | None) -> list[Any]:
        """The frames of a packet, or what the decoder still holds; none of a damaged one."""
        try:
            return self._decoder.decode(packet)
        except av.error.EOFError:
            return []
        except MemoryError:  # no damage, but a bound of this process
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return []
