"""One track of a media file: what is known of it, and its packets decoded in the order of the file."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av.error
import av.stream
from av.packet import Packet

from avfewshot.media.container import open_media

READ_ERRORS = (av.error.FFmpegError, IndexError)
"""What reading a packet may raise; IndexError: PyAV meets a stream that turned up in the middle of a damaged file."""

_MAX_ERRORS = 1000  # in reading a track
_REORDER = 60  # seconds between the decoding and the presentation of a picture


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
            if stream.index != self._track.index:
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
