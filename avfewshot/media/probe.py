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

from avfewshot.errors import MediaError
from avfewshot.media import container as media
from avfewshot.media.track import READ_ERRORS, Track, mend

MAX_GAP = 60
"""Seconds without any packet that are believed; twelve in formats whose clock may start anew."""

LONG_GAP, LONG_GAPS = 12, 600
"""Gaps of more than twelve seconds are believed up to ten minutes of them in a file."""

ANEW = frozenset({"mpegts", "mpeg"})
"""Formats that may be joined byte by byte, with clocks that start anew."""

FULL_SCAN_SECONDS = 120
"""Files up to this length are read through once (well under a millisecond for each second of media); of longer ones
only the end is, so that opening a film does not read gigabytes."""

_TAIL_SECONDS = 5
_LEAST_BYTES = 2_000  # a second: a file that has less is read through, since the length that it declares may be made up
_MOST_BYTES = 2_000_000_000  # of a file that is read through because its clock may start anew
_MAX_READ_ERRORS = 100
_BACK = 2  # seconds by which a packet may be stored after its turn


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
    with media.open_media(path) as container:
        scan = _Scan(container)
        if not scan.stretches:
            raise MediaError(path, _why_nothing(container))
        declared = container.duration or 0
        size = os.path.getsize(path)
        believed = declared and size > _LEAST_BYTES * declared / av.time_base
        anew = scan.anew and size < _MOST_BYTES
        if believed and not anew and declared > FULL_SCAN_SECONDS * av.time_base and scan.read_tail():
            return _conclude(path, container, scan)
    # Anew: seeking back to the beginning loses what precedes the first keyframe.
    with media.open_media(path) as container:
        scan = _Scan(container)
        scan.whole = True
        scan.read()
        return _conclude(path, container, scan)


def _conclude(path: Path, container: InputContainer, scan: _Scan) -> Probe:
    video, audio = scan.track("video"), scan.track("audio")
    present = [track for track in (video, audio) if track is not None]
    if not present:
        if any(stretch.encrypted for stretch in scan.stretches.values()):
            raise MediaError(path, "is encrypted, and cannot be decoded without its key")
        media.refuse_truncated(path)
        raise MediaError(path, "holds no pictures and no sound: its tracks are empty")
    zero = min(t.start for t in present)
    duration = max(t.end for t in present) - zero
    result = Probe(path, container.format.name, video, audio, zero, duration)
    result.warnings += _absent(container, result, scan)
    result.warnings += scan.jumped(zero) or _short(path, container, scan, zero, duration)
    result.warnings += _apart(result)
    result.warnings += scan.hole(zero)
    return result


class _Stretch:
    """What is known of a stream from its packets so far."""

    def __init__(self, stream: Any) -> None:
        self.stream, self.index, self.kind = stream, stream.index, stream.type
        self.base: Fraction = stream.time_base or Fraction(1)
        self.rate: Fraction | None = (stream.average_rate or stream.guessed_rate or None) if self.is_video else None
        # Ticks that a picture stands where its packet does not say.
        self.usual = round(min(1 / self.rate, LONG_GAP) / self.base) if self.rate else 0
        self.encrypted = "enc_key_id" in stream.metadata  # of Matroska
        self.count = 0
        self.first: int | None = None
        self.end: int | None = None
        # Of pictures.
        self.stamps: list[int] = []
        self.lengths: dict[int, int] = {}  # by timestamp
        self.stamped = self.closed = True
        self.keyframe: int | None = None
        # For the clock.
        self.number = 0  # of the next packet
        self.shifts: dict[int, int] = {}
        self.last: Fraction | None = None  # seconds
        self.offset = Fraction(0)

    @property
    def is_video(self) -> bool:
        return self.kind == "video"

    def note(self, packet: Packet) -> None:
        """Take account of the next packet."""
        pts = packet.pts
        if packet.is_discard:  # cut away by an edit list: decoded for the sake of others, never shown
            self.stamped = False
            return
        self.encrypted = self.encrypted or packet.has_sidedata("encryption_info")
        self.count += 1
        if self.is_video:
            if pts is None:
                self.stamped = False
            else:
                self.stamps.append(pts)
                self.keyframe = pts if packet.is_keyframe else self.keyframe
                self.closed = self.closed and (self.keyframe is None or pts >= self.keyframe)
        stamp = pts if pts is not None else packet.dts
        if stamp is not None:
            self.first = stamp if self.first is None else min(stamp, self.first)
            self.lengths[stamp] = length = min(packet.duration or self.usual, int(MAX_GAP / self.base))
            self.end = stamp + length if self.end is None else max(stamp + length, self.end)

    def must_count(self, container: InputContainer) -> bool:
        """Whether pictures have no timestamps that are of use."""
        if 2 * len(self.stamps) < self.count:
            return True
        # AVI numbers pictures in the order they are stored; FFmpeg passes that on as the order they are shown.
        reordered = any(a > b for a, b in itertools.pairwise(self.stamps))
        return container.format.name == "avi" and bool(self.stream.codec_context.has_b_frames) and not reordered


class _Scan:
    """Reads packets, all of them or those near the end.

    Timestamps are believed as far as they can be. A packet that lies far from all that came before it in the file (a
    flipped bit, a bomb, a recording joined to another one whose clock starts anew) is given the next time on the clock.
    So the length of a file is bounded by its packets, and joined files are read to their end.
    """

    def __init__(self, container: InputContainer) -> None:
        self._container = container
        streams = [stream for stream in media.pick_streams(container) if stream is not None]
        self.stretches = {stream.index: _Stretch(stream) for stream in streams}
        self.anew = bool(ANEW & set(container.format.name.split(",")))
        self.whole = False  # whether the file is read through
        self.errors = 0
        self.last_byte = 0  # where the packets end in the file
        # The clock, in seconds.
        self.jumps: list[tuple[Fraction, Fraction]] = []  # (when, by how much a packet was off)
        self._gap = LONG_GAP if self.anew else MAX_GAP
        self._believed = Fraction(0)
        self._begin: Fraction | None = None
        self._end: Fraction | None = None
        self._stop = Fraction(0)  # when the last packet so far ends
        self._offsets = [Fraction(0)]  # the last few, newest first

    def read(self, only: _Stretch | None = None) -> None:
        """Read on to the end of the file."""
        streams = [stretch.stream for stretch in self.stretches.values() if only in (None, stretch)]
        while self.errors <= _MAX_READ_ERRORS:
            try:
                for packet in self._container.demux(streams):
                    if packet.size:
                        stretch = self.stretches[packet.stream_index]
                        mend(packet, self._shift(packet, stretch) if self.whole else 0, stretch.base)
                        if not packet.is_discard:
                            self.last_byte = max(self.last_byte, (packet.pos or 0) + packet.size)
                        stretch.note(packet)
                return
            except READ_ERRORS:  # noqa: PERF203 - what follows a damaged packet may be whole
                self.errors += 1

    def read_tail(self) -> bool:
        """Read the last seconds; False if they do not show where every stream ends."""
        start, length = self._container.start_time or 0, self._container.duration or 0
        try:
            self._container.seek(start + length - _TAIL_SECONDS * av.time_base)
            self.read()
            for stretch in self.stretches.values():
                stream = stretch.stream
                if stretch.end is None and stream.duration:  # it ends early
                    end = (stream.start_time or 0) + stream.duration
                    self._container.seek(max(0, end - int(_TAIL_SECONDS / stretch.base)), stream=stream)
                    self.read(stretch)
        except av.error.FFmpegError:
            return False
        latest = (start + length) / av.time_base + _TAIL_SECONDS
        ends = [None if stretch.end is None else stretch.end * stretch.base for stretch in self.stretches.values()]
        return not self.errors and all(end is not None and end <= latest for end in ends)

    def _shift(self, packet: Packet, stretch: _Stretch) -> int:
        """Put the next packet of a stream on the clock; ticks to add to its timestamps."""
        base, before = stretch.base, stretch.offset
        mend(packet, 0, base, first=not stretch.number)
        stretch.number += 1
        stamp = packet.dts if packet.dts is not None else packet.pts
        if stamp is not None:
            time = stamp * base
            shown = time if packet.pts is None else packet.pts * base
            offset = next((o for o in (before, *self._offsets) if self._fits(stretch, time + o)), None)
            if offset is None:
                self.jumps.append((self._stop, shown + before - self._stop))
                offset = self._stop - shown
            if offset != self._offsets[0]:
                self._offsets = [offset, *(o for o in self._offsets if o != offset)][:4]
            now = time + offset
            if self._end is not None and now - self._end > LONG_GAP:
                self._believed += now - self._end
            stretch.last = now
            self._begin = now if self._begin is None else min(now, self._begin)
            self._end = now if self._end is None else max(now, self._end)
            self._stop = max(self._stop, shown + offset + min((packet.duration or 0) * base, 1))
            if offset != before:
                stretch.offset = offset
                stretch.shifts[stretch.number - 1] = round(offset / base)
        return round(stretch.offset / base)

    def _fits(self, stretch: _Stretch, time: Fraction) -> bool:
        if self._end is None or self._begin is None:
            return True
        if stretch.last is not None:
            if time < stretch.last - _BACK:
                return False
        elif time < self._begin - self._gap:
            # The first one of its stream; all of it may be stored behind the others.
            return False
        ahead = time - self._end
        return ahead <= LONG_GAP or (ahead <= self._gap and self._believed + ahead <= LONG_GAPS)

    def track(self, kind: str) -> Track | None:
        """The track of a kind, None where no packet of it was found."""
        stretch = next((stretch for stretch in self.stretches.values() if stretch.kind == kind), None)
        if stretch is None or not stretch.count or stretch.encrypted:
            return None
        base, stream, first = stretch.base, stretch.stream, stretch.first or 0
        start = first if stream.start_time is None else stream.start_time
        if self.whole and abs(start - first) * base > LONG_GAP:
            start = first
        # A raw stream without any timestamps is as long as its pictures are many.
        end = max(start, start + stretch.count * stretch.usual if stretch.end is None else stretch.end)
        if stream.duration is not None and not stretch.shifts and stream.duration * base <= stretch.count * MAX_GAP:
            declared = start + stream.duration
            # The container's own figure leaves out the padding that audio codecs append.
            if stretch.end is None or (kind == "audio" and 0 < (end - declared) * base < Fraction(1, 10)):
                end = declared
        track = Track(stretch.index, base, start * base, end * base, stretch.rate, shifts=stretch.shifts)
        if kind == "video":
            track.pixels = (stream.codec_context.pix_fmt, stream.codec_context.height)
            track.counted = stretch.must_count(self._container)
            track.closed = stretch.closed
            stamps = tuple(sorted(set(stretch.stamps)))
            each = self.whole and not self.errors and stretch.stamped and len(stamps) == len(stretch.stamps)
            track.stamps = stamps if each and not track.counted else None
        return track

    def declared(self) -> Iterator[float]:
        """Seconds that each stream should last as the file says, 0 where it does not."""
        for stretch in self.stretches.values():
            yield float((stretch.stream.duration or 0) * stretch.base)
            told = re.fullmatch(r"(\d+):(\d\d):(\d\d\.\d+)", stretch.stream.metadata.get("DURATION", ""))  # Matroska
            if told:
                yield 3600 * float(told[1]) + 60 * float(told[2]) + float(told[3])

    def jumped(self, zero: Fraction) -> list[tuple[str, str]]:
        """Timestamps that were not believed."""
        if not self.jumps:
            return []
        place, far = self.jumps[0]
        more = f" (and {len(self.jumps) - 1} times more)" if len(self.jumps) > 1 else ""
        jump = f"timestamps jump by {float(far):+.1f} s after {float(place - zero):.1f} s{more}"
        return [("file", f"{jump}: what follows is put there")]

    def hole(self, zero: Fraction) -> Iterator[tuple[str, str]]:
        """The longest stretch of which no picture is left, if the whole file was read."""
        for video in self.stretches.values():
            if not self.whole or not video.is_video or video.encrypted:
                continue
            # A picture may stand for long on purpose; then its packet mostly says so.
            pairs = itertools.pairwise(sorted(video.lengths))
            lost, a, b = max(((b - a - video.lengths[a], a, b) for a, b in pairs), default=(0, 0, 0))
            if lost * video.base > 1:
                start, stop = (float(x * video.base - zero) for x in (a, b))
                yield "visual", f"there are no pictures between {start:.1f} s and {stop:.1f} s: the one before stands"


def _absent(container: InputContainer, result: Probe, scan: _Scan) -> Iterator[tuple[str, str]]:
    for about, kind, track in (("visual", "video", result.video), ("audio", "audio", result.audio)):
        streams = [s for s in container.streams if s.type == kind and not media.is_picture(s)]
        if track is None:
            bounds = next(filter(None, map(media.beyond_bounds, streams)), None)
            if any(s.index in scan.stretches and scan.stretches[s.index].encrypted for s in streams):
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
    elif media.is_cut_short(path):
        yield "file", "truncated: the file is shorter than it says"
    elif scan.whole and media.joined_behind(path, scan.last_byte):
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
    if bounds := [text for s in container.streams if not media.is_picture(s) and (text := media.beyond_bounds(s))]:
        return bounds[0]
    if any(s.type in {"video", "audio"} and not media.is_picture(s) for s in container.streams):
        return "its tracks are in a format that this FFmpeg cannot decode"
    if any(s.type == "video" for s in container.streams):
        return "has neither video nor audio, only a picture"
    return "is not a media file: it has neither video nor audio"
