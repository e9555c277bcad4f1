"""Finds out what a media file holds and where its timeline begins and ends, from packets, without decoding."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream

from avfewshot.errors import MediaError
from avfewshot.media.clock import ANEW, LONG_GAP, MAX_GAP, Clock, Shifts, mend
from avfewshot.media.container import (
    READ_ERRORS,
    beyond_bounds,
    is_cut_short,
    is_picture,
    joined_behind,
    open_media,
    pick_streams,
    truncated,
)

FULL_SCAN_SECONDS = 120
"""Files up to this length are read through once (well under a millisecond for each second of media); of longer ones
only the end is, so that opening a film does not read gigabytes."""

_TAIL_SECONDS = 5
_LEAST_BYTES = 2_000  # a second: a file that has less is read through, since the length that it declares may be made up
_MOST_BYTES = 2_000_000_000  # of a file that is read through because its clock may start anew
_MAX_READ_ERRORS = 100


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
    shifts: Shifts = field(default_factory=dict)  # see `clock`; where there are any, the file cannot be sought


@dataclass
class Probe:
    """What a file holds."""

    path: Path
    format: str  # FFmpeg's names of the container format, joined by commas
    video: Track | None
    audio: Track | None
    # Where the timeline begins, in seconds on the file's own clock. Tracks may start late or before zero; the earlier
    # start counts for both, which keeps sight and sound together.
    zero: Fraction
    duration: Fraction  # seconds from `zero` to the end of the longer track
    # What is odd, for people: (what it concerns: "visual", "audio" or "file"; the text).
    warnings: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_segments(self) -> int:
        """Seconds, rounded to the nearest (half up), at least 1."""
        return max(1, math.floor(self.duration + Fraction(1, 2)))


def probe(path: Path) -> Probe:
    """What a file holds.

    Raises:
        MediaError: It cannot be opened, or has neither a video nor an audio track that can be decoded.
    """
    with open_media(path) as container:
        chosen = [s for s in pick_streams(container) if s is not None]
        if not chosen:
            raise MediaError(path, _why_nothing(container))
        declared = container.duration or 0
        size = os.path.getsize(path)
        believed = declared and size > _LEAST_BYTES * declared / av.time_base
        anew = ANEW & set(container.format.name.split(",")) and size < _MOST_BYTES
        if believed and not anew and declared > FULL_SCAN_SECONDS * av.time_base:
            scan = _Scan(container, chosen)
            if scan.read_tail():
                return _conclude(path, container, scan)
    with open_media(path) as container:  # anew: seeking back to the beginning loses what precedes the first keyframe
        scan = _Scan(container, [s for s in pick_streams(container) if s is not None])
        scan.read_all()
        return _conclude(path, container, scan)


def _conclude(path: Path, container: InputContainer, scan: _Scan) -> Probe:
    tracks = {kind: scan.track(kind) for kind in ("video", "audio")}
    present = [t for t in tracks.values() if t is not None]
    if not present:
        if scan.encrypted:
            raise MediaError(path, "is encrypted, and cannot be decoded without its key")
        if is_cut_short(path):
            raise truncated(path)
        raise MediaError(path, "holds no pictures and no sound: its tracks are empty")
    zero = min(t.start for t in present)
    duration = max(t.end for t in present) - zero
    result = Probe(path, container.format.name, tracks["video"], tracks["audio"], zero, duration)
    result.warnings += _absent(container, result, scan.encrypted)
    result.warnings += scan.jumps(zero) or _short(path, container, scan, zero, duration)
    result.warnings += _apart(result)
    result.warnings += scan.hole(result.video, zero)
    return result


class _Scan:
    """Reads packets, all of them or those near the end, and notes the extent of each stream."""

    def __init__(self, container: InputContainer, streams: list[Stream]) -> None:
        self._container = container
        self._streams: dict[int, Any] = {s.index: s for s in streams}
        self._first: dict[int, int] = {}
        self._end: dict[int, int] = {}
        self._count: dict[int, int] = {}
        self._lengths: dict[int, int] = {}
        self._stamps: list[int] = []
        self._stamped = self._closed = True
        self._keyframe: int | None = None
        self.whole = False
        self._clock = Clock(streams, container.format.name)
        self._usual = {s.index: _usual_length(s) for s in streams}
        self.errors = 0
        self.encrypted = {s.index for s in streams if "enc_key_id" in s.metadata}  # of Matroska
        self.last_byte = 0  # where the packets end in the file

    def read_all(self) -> None:
        """Read the file through."""
        self.whole = True
        self._read(list(self._streams.values()))

    def read_tail(self) -> bool:
        """Read the last seconds; False if they do not show where every stream ends."""
        start, length = self._container.start_time or 0, self._container.duration or 0
        try:
            self._container.seek(start + length - _TAIL_SECONDS * av.time_base)
            self._read(list(self._streams.values()))
            for stream in self._streams.values():
                if stream.index not in self._end and stream.duration:  # it ends early
                    end = (stream.start_time or 0) + stream.duration
                    self._container.seek(max(0, end - int(_TAIL_SECONDS / stream.time_base)), stream=stream)
                    self._read([stream])
        except av.error.FFmpegError:
            return False
        latest = (start + length) / av.time_base + _TAIL_SECONDS
        plausible = all(end * self._streams[index].time_base <= latest for index, end in self._end.items())
        return not self.errors and plausible and set(self._end) == set(self._streams)

    def track(self, kind: str) -> Track | None:
        """The track of a kind, None where no packet of it was found."""
        stream = next((s for s in self._streams.values() if s.type == kind and s.index in self._count), None)
        if stream is None or stream.index in self.encrypted:
            return None
        base, index = stream.time_base, stream.index
        first = self._first.get(index, 0)
        start = first if stream.start_time is None else stream.start_time
        if self.whole and abs(start - first) * base > LONG_GAP:
            start = first
        shifts = self._clock.shifts[index] if self.whole else {}
        # A raw stream without any timestamps is as long as its pictures are many.
        end = max(start, self._end.get(index, start + self._count[index] * self._usual[index]))
        if stream.duration is not None and not shifts and stream.duration * base <= self._count[index] * MAX_GAP:
            declared = start + stream.duration
            # The container's own figure leaves out the padding that audio codecs append.
            if index not in self._end or (kind == "audio" and 0 < (end - declared) * base < Fraction(1, 10)):
                end = declared
        track = Track(index, base, start * base, end * base, shifts=shifts)
        if kind == "video":
            track.rate = _rate(stream)
            track.pixels = (stream.codec_context.pix_fmt, stream.codec_context.height)
            track.counted = self._must_count(stream)
            track.closed = self._closed
            ordered = tuple(sorted(set(self._stamps)))
            if (
                self.whole
                and not self.errors
                and self._stamped
                and not track.counted
                and len(ordered) == len(self._stamps)
            ):
                track.stamps = ordered
        return track

    def declared(self) -> Iterator[float]:
        """Seconds that each stream should last as the file says, 0 where it does not."""
        for stream in self._streams.values():
            yield float((stream.duration or 0) * stream.time_base)
            if told := re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stream.metadata.get("DURATION", "")):  # Matroska
                yield 3600 * float(told[1]) + 60 * float(told[2]) + float(told[3])

    def jumps(self, zero: Fraction) -> list[tuple[str, str]]:
        """Timestamps that were not believed."""
        if not self._clock.jumps:
            return []
        place, far = self._clock.jumps[0]
        more = f" (and {len(self._clock.jumps) - 1} times more)" if len(self._clock.jumps) > 1 else ""
        text = (
            f"timestamps jump by {float(far):+.1f} s after {float(place - zero):.1f} s{more}: what follows is put there"
        )
        return [("file", text)]

    def hole(self, video: Track | None, zero: Fraction) -> Iterator[tuple[str, str]]:
        """The longest stretch of which no picture is left, if the whole file was read."""
        if self.whole and video is not None and self._lengths:
            ordered = sorted(self._lengths)
            # A picture may stand for long on purpose; then its packet mostly says so.
            gaps = ((b - a - self._lengths[a], a, b) for a, b in itertools.pairwise(ordered))
            lost, a, b = max(gaps, default=(0, 0, 0))
            if lost * video.time_base > 1:
                start, stop = (float(x * video.time_base - zero) for x in (a, b))
                yield "visual", f"there are no pictures between {start:.1f} s and {stop:.1f} s: the one before stands"

    def _must_count(self, stream: Any) -> bool:
        if 2 * len(self._stamps) < self._count[stream.index]:
            return True
        # AVI numbers pictures in the order they are stored; FFmpeg passes that on as the order they are shown.
        reordered = any(a > b for a, b in itertools.pairwise(self._stamps))
        return self._container.format.name == "avi" and bool(stream.codec_context.has_b_frames) and not reordered

    def _read(self, streams: list[Stream]) -> None:
        while self.errors <= _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux(streams):
                    if packet.size:
                        shift = self._clock.shift(packet) if self.whole else 0
                        mend(packet, shift, self._streams[packet.stream_index].time_base)
                        self._note(packet)
                return
            except READ_ERRORS:  # noqa: PERF203 - what follows a damaged packet may be whole
                self.errors += 1

    def _note(self, packet: Packet) -> None:
        index, pts = packet.stream_index, packet.pts
        if packet.is_discard:  # cut away by an edit list: decoded for the sake of others, never shown
            self._stamped = self._stamped and self._streams[index].type != "video"
            return
        if packet.has_sidedata("encryption_info"):
            self.encrypted.add(index)
        self._count[index] = self._count.get(index, 0) + 1
        self.last_byte = max(self.last_byte, (packet.pos or 0) + packet.size)
        if self._streams[index].type == "video":
            if pts is None:
                self._stamped = False
            else:
                self._stamps.append(pts)
                self._keyframe = pts if packet.is_keyframe else self._keyframe
                self._closed = self._closed and (self._keyframe is None or pts >= self._keyframe)
        stamp = pts if pts is not None else packet.dts
        if stamp is not None:
            self._first[index] = min(stamp, self._first.get(index, stamp))
            length = min(packet.duration or self._usual[index], int(MAX_GAP / self._streams[index].time_base))
            if self._streams[index].type == "video":
                self._lengths[stamp] = length
            end = stamp + length
            self._end[index] = max(end, self._end.get(index, end))


def _rate(stream: Any) -> Fraction | None:
    return (stream.average_rate or stream.guessed_rate or None) if stream.type == "video" else None


def _usual_length(stream: Any) -> int:
    """Ticks that a picture stands where its packet does not say."""
    rate = _rate(stream)
    return round(min(1 / rate, LONG_GAP) / stream.time_base) if rate else 0


def _absent(container: InputContainer, result: Probe, encrypted: set[int]) -> Iterator[tuple[str, str]]:
    for about, kind, track in (("visual", "video", result.video), ("audio", "audio", result.audio)):
        streams = [s for s in container.streams if s.type == kind and not is_picture(s)]
        if track is None:
            bounds = next(filter(None, map(beyond_bounds, streams)), None)
            if any(s.index in encrypted for s in streams):
                bounds = f"the {kind} track is encrypted"
            empty = f"the {kind} track is empty or cannot be decoded" if streams else f"no {kind} track"
            yield about, bounds or empty
        elif len(streams) > 1:
            number = [s.index for s in streams].index(track.index) + 1
            yield about, f"{len(streams)} {kind} tracks: number {number} is used"


_GUESSED = frozenset({"aac", "loas", "ac3", "eac3", "dts", "truehd", "mlp", "mp3"})
"""Formats that do not tell their length: FFmpeg guesses it from the first bytes."""
_MP3_HEAD = 1 << 16


def _declared(path: Path, container: InputContainer, scan: _Scan) -> float:
    """Seconds that the tracks read should last as the file says, 0 where it does not."""
    if container.format.name in _GUESSED:
        with open(path, "rb") as stream:
            if container.format.name != "mp3" or not re.search(b"Xing|Info|VBRI", stream.read(_MP3_HEAD)):
                return 0.0
    if all(s.type in {"video", "audio"} for s in container.streams):
        return float((container.duration or 0) / av.time_base)
    return max(scan.declared())  # subtitles may last longer


def _short(
    path: Path, container: InputContainer, scan: _Scan, zero: Fraction, duration: Fraction
) -> Iterator[tuple[str, str]]:
    told = _declared(path, container, scan)
    # Some formats count their length from zero, some from their first timestamp.
    if max(duration, zero + duration) < told - max(1.0, 0.02 * told):
        yield "file", f"should last {told:.1f} s but ends after {float(duration):.1f} s: truncated or damaged"
    elif is_cut_short(path):
        yield "file", "truncated: the file is shorter than it says"
    elif scan.whole and joined_behind(path, scan.last_byte):
        yield "file", "another file is joined behind it, which is not read: split it, or join them with FFmpeg"
    elif scan.errors:
        yield "file", "damaged: parts of the file could not be read"


def _apart(result: Probe) -> Iterator[tuple[str, str]]:
    video, audio = result.video, result.audio
    if video is None or audio is None:
        return
    starts = [float(t.start - result.zero) for t in (video, audio)]
    ends = [float(t.end - result.zero) for t in (video, audio)]
    if ends[0] + 1 < ends[1]:
        yield "visual", f"video ends at {ends[0]:.1f} s, before the audio: its last picture stands for the rest"
    elif ends[1] + 1 < ends[0]:
        yield "audio", f"audio ends at {ends[1]:.1f} s, before the video: silence stands for the rest"
    if starts[1] + 1 < starts[0]:
        yield "visual", f"video starts at {starts[0]:.1f} s, after the audio: its first picture stands till then"
    elif starts[0] + 1 < starts[1]:
        yield "audio", f"audio starts at {starts[1]:.1f} s, after the video: silence stands till then"


def _why_nothing(container: InputContainer) -> str:
    if bounds := [text for s in container.streams if not is_picture(s) and (text := beyond_bounds(s))]:
        return bounds[0]
    if any(s.type in {"video", "audio"} and not is_picture(s) for s in container.streams):
        return "its tracks are in a format that this FFmpeg cannot decode"
    if any(s.type == "video" for s in container.streams):
        return "has neither video nor audio, only a picture"
    return "is not a media file: it has neither video nor audio"
