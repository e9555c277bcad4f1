"""Picks pictures out of a video, exactly those asked for, by PyAV, which decodes as little as it can, or by decord.

decord 0.6 carries an FFmpeg of 2018. Compared picture by picture with PyAV it is identical in 8-bit mp4, mov, Matroska
and WebM files of even height, rotated ones included. It differs where it

* miscounts pictures that are stored behind a keyframe but shown before it (open groups: HEVC by default, MPEG-4),
* replaces pictures that it cannot seek to by others, silently (MPEG-TS),
* orders pictures by timestamps that are wrong (AVI with B-frames),
* takes a mirrored picture for one that is turned,
* places the chroma samples of 4:2:0 pictures elsewhere when it has to interpolate them (odd heights, more than 8 bits).

Such files are left to PyAV. Opening a file makes decord read all of it, in order to index it: of no account for a clip,
but the whole of an hour-long file, of which one minute may be wanted.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter

from avfewshot.errors import UsageError
from avfewshot.media.container import DECODED_PIXELS, MAX_PIXELS
from avfewshot.media.picture import upright
from avfewshot.media.probe import Probe
from avfewshot.media.track import Track, TrackDecoder

_FAR_SECONDS = 10
"""A jump ahead beyond this is made by seeking, a shorter one by reading on."""

_REORDER_SECONDS = 2
"""How far a picture may be stored after its turn, where packets do not tell (no decoding timestamp)."""

# Of files that are not left to PyAV.
_FORMATS = frozenset({"mov", "matroska"})
_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"})
_BATCH = 8  # pictures of full size held at a time


class PyavFrames(TrackDecoder):
    """Pictures of one video track, asked for by time.

    Packets are read ahead up to the time asked for, which costs little, and only then decoded: from the last keyframe
    that is early enough, leaving out pictures that no other one depends on. Times that ascend, within a call and from
    call to call, are served in one pass over the file. Decoding uses one thread: files are decoded side by side, and
    FFmpeg's frame threads can lock up when pictures are left out.

    A track without usable timestamps is decoded from its beginning and its pictures are counted.
    """

    def __init__(self, path: Path, track: Track) -> None:
        self.taken = 0  # packets read from the file so far, for tests and benchmarks
        self.sent = 0  # those of them that were given to the decoder
        self._start = round(track.start / track.time_base)
        self._to_rgb = VideoReformatter()
        self._chosen: VideoFrame | None = None
        self._image: np.ndarray | None = None
        self._may_skip = True
        super().__init__(path, track)

    def at(self, limits: Iterable[int]) -> Iterator[np.ndarray | None]:
        """For each of ascending times (in ticks of the track, on the file's own clock) the last picture not after it.

        It is uint8 ``[H, W, 3]``, RGB, upright; the first picture of all where none is that early; the very same array
        while the picture stays the same; None while nothing could be decoded.
        """
        for limit in limits:
            frame = self._find(limit)
            if frame is not None and frame is not self._chosen:
                self._chosen, self._image = frame, self._convert(frame)
            yield self._image

    # Finding the picture.

    def _find(self, limit: int) -> VideoFrame | None:
        self._approach(limit)
        target, stamp, frame = self._run_to(limit)
        if stamp != target and target is not None and self._skipped and not self.errors:
            # Some decoders show nothing until some pictures after a keyframe (periodic intra refresh): skip no more.
            self._may_skip = False
            self._open()
            _, _, frame = self._run_to(limit)
        return frame

    def _run_to(self, limit: int) -> tuple[int | None, int | None, VideoFrame | None]:
        """Go forward to `limit`, in strides that bound the packets held; see :meth:`_stride`."""
        far = self._ticks(_FAR_SECONDS)
        for stop in range(self._reached() + far, limit, far):
            self._stride(stop)
        return self._stride(limit)

    def _stride(self, limit: int) -> tuple[int | None, int | None, VideoFrame | None]:
        """Find the picture due at `limit`: the timestamp it should have, if known; the one it has; the picture."""
        self._advance(limit)
        target = self._look_ahead(limit)
        while not self._ahead and not self._drained and (target is None or self._shown_at != target):
            self._decode_next(target)
            self._advance(limit)
        if self._shown_at is None and self._ahead:
            return target, *self._ahead[0]
        return target, self._shown_at, self._shown

    def _approach(self, limit: int) -> None:
        """Seek where reading on does not lead to `limit`, or not soon."""
        behind = self._shown_at is not None and limit < self._shown_at
        if self._track.counted or self._track.shifts or not self._may_skip:
            if behind:
                self._open()
            return
        if not behind and limit - self._reached() < self._ticks(_FAR_SECONDS):
            return
        for seconds in (0, 1, 4, 16, 64):
            goal = limit - self._ticks(seconds)
            if goal <= self._start:
                break
            try:
                self._container.seek(goal, stream=self._stream)
            except av.error.FFmpegError:
                break
            self._forget()
            self._skipped = True
            self._look_ahead(limit)
            if self._queue:
                stamp, packet = self._queue[0]
                if packet.is_keyframe and stamp is not None and stamp <= limit:
                    return
        self._open()

    def _look_ahead(self, limit: int) -> int | None:
        """Read packets until no later one can be due at `limit`; the timestamp of the picture due, if known."""
        if self._track.counted:
            return None
        while not self._ended and (self._horizon is None or self._horizon <= limit):
            waiting = bool(self._queue)
            if not self._read():
                break
            stamp, packet = self._queue[-1]
            if self._may_skip and waiting and packet.is_keyframe and stamp is not None and stamp <= limit:
                # Nothing before this keyframe is needed any more.
                self._queue = deque([(stamp, packet)])
                self._known = [stamp]
                self._flush = self._skipped = True
        due = [stamp for stamp in self._known if stamp <= limit]
        if due:
            return max(due)
        return self._shown_at if self._shown_at is not None else min(self._known, default=None)

    def _advance(self, limit: int) -> None:
        """Of the pictures decoded, show the last one that is due."""
        while self._ahead and self._ahead[0][0] <= limit:
            self._shown_at, self._shown = self._ahead.popleft()
        if self._shown_at is not None:
            self._known = [stamp for stamp in self._known if stamp > self._shown_at]

    # Reading and decoding.

    def _open(self) -> None:
        self._shown: VideoFrame | None = None
        self._skipped = False
        super()._open()
        self._decoder.thread_type = "NONE"
        self._decoder.thread_count = 1

    def _forget(self) -> None:
        """Begin anew at the container's present position; the picture shown stays, to stand in for damaged ones."""
        super()._forget()
        self._queue: deque[tuple[int | None, Packet]] = deque()  # read, not decoded
        self._known: list[int] = []  # timestamps read that lie after the picture shown
        self._ahead: deque[tuple[int, VideoFrame]] = deque()  # decoded, not due yet
        self._horizon: int | None = None  # no packet to come is due before this
        self._latest: int | None = None  # timestamp of the last picture decoded
        self._ended = self._drained = False
        self._flush = True
        self._number = 0
        self._shown_at: int | None = None

    def _read(self) -> bool:
        """Append a packet to the queue; False at the end of the file."""
        packet = self._next_packet()
        if packet is None:
            self._ended = True
            return False
        self.taken += 1
        pts, horizon = packet.pts, packet.dts
        if pts is not None:
            if not packet.is_discard:
                self._known.append(pts)
            if horizon is None:
                horizon = pts - self._ticks(_REORDER_SECONDS)
        if horizon is not None:
            self._horizon = horizon if self._horizon is None else max(horizon, self._horizon)
        self._queue.append((pts, packet))
        return True

    def _decode_next(self, target: int | None) -> None:
        packet = None
        if self._queue or (not self._ended and self._read()):
            stamp, packet = self._queue.popleft()
            # Asked of every packet: a picture that is no reference may be left out, unless it is the one that is due.
            # Not of the first one: some decoders (dav1d) take the answer for good.
            spare = not self._flush and target is not None and stamp is not None and stamp < target
            if self._flush:
                self._decoder.flush_buffers()
                self._latest, self._flush = None, False
            self._decoder.skip_frame = "NONREF" if spare else "DEFAULT"
            self.sent += 1
        else:
            self._drained = True
        for frame in self._decode(packet):
            self.errors += frame.is_corrupt
            stamp = self._stamp(frame)
            if stamp is not None and (self._latest is None or stamp >= self._latest):
                self._latest = stamp
                self._ahead.append((stamp, frame))

    def _stamp(self, frame: VideoFrame) -> int | None:
        if not self._track.counted:
            return frame.pts if frame.pts is not None else frame.dts
        ticks = self._number / (self._track.rate or Fraction(25)) / self._track.time_base
        self._number += 1
        return self._start + round(ticks)

    def _reached(self) -> int:
        """The time up to which packets were read."""
        return self._start if self._horizon is None else self._horizon

    def _ticks(self, seconds: int) -> int:
        return round(seconds / self._track.time_base)

    def _convert(self, frame: VideoFrame) -> np.ndarray | None:
        width, height, how = frame.width, frame.height, "BILINEAR"
        if width * height > DECODED_PIXELS:  # larger than its header says
            self.errors += 1
            return None
        if width * height > MAX_PIXELS:
            shrink, how = math.sqrt(MAX_PIXELS / (width * height)), "AREA"
            width, height = max(1, int(width * shrink)), max(1, int(height * shrink))
        try:
            # Bilinear is FFmpeg's way with chroma here, and decord's. Threads would be started anew for every file.
            image = self._to_rgb.reformat(frame, width, height, "rgb24", interpolation=how, threads=1).to_ndarray()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return None
        return upright(image, frame.side_data.get("DISPLAYMATRIX"))


class DecordUnfitError(Exception):
    """decord cannot read this file, or not with certainty the same pictures as PyAV; the message says why."""


class DecordFrames:
    """Pictures of one video track, asked for by time, with the interface of ``PyavFrames``."""

    def __init__(self, probe: Probe) -> None:
        decord, track = load_decord(), probe.video
        assert track is not None
        assert track.pixels is not None
        pixels, height = track.pixels
        if not _FORMATS & set(probe.format.split(",")):
            raise DecordUnfitError(f"decord is not reliable for {probe.format} files")
        if pixels not in _PIXELS or height % 2:
            raise DecordUnfitError(f"decord renders {pixels} pictures of {height} lines differently")
        if not track.closed:
            raise DecordUnfitError("decord takes wrong pictures from files with open groups of pictures")
        if track.stamps is None:
            raise DecordUnfitError("the file is long or its timestamps are not simple")
        self._stamps = stamps = track.stamps
        try:
            self._reader: Any = decord.VideoReader(os.path.abspath(probe.path), num_threads=1, fault_tol=1e-9)
            starts = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        except Exception as error:  # decord raises many kinds
            raise DecordUnfitError("decord cannot open it") from error
        # decord numbers pictures by their order in time; its own timestamps, in single precision, must agree.
        mine = np.array([float((stamp - stamps[0]) * track.time_base) for stamp in stamps])
        if len(starts) != len(mine) or np.abs(starts - starts[0] - mine).max() > 1e-3:
            raise DecordUnfitError("decord sees another timeline in it")
        # One picture decoded by both is proof against mirroring and against whatever else was not foreseen.
        with contextlib.closing(PyavFrames(probe.path, track)) as reference:
            expected = next(reference.at(stamps[:1]))
        if expected is None or not np.array_equal(expected, self._decode([0])[0]):
            raise DecordUnfitError("decord shows another picture")

    def close(self) -> None:
        """Close the file."""
        self._reader = None

    def at(self, limits: Iterable[int]) -> Iterator[np.ndarray]:
        """Pick pictures, see :meth:`PyavFrames.at`."""
        numbers = iter([max(0, bisect.bisect_right(self._stamps, limit) - 1) for limit in limits])
        last: int | None = None
        image: Any = None
        while batch := list(itertools.islice(numbers, _BATCH)):
            new = sorted(set(batch) - {last})
            images: dict[Any, Any] = dict(zip(new, self._decode(new), strict=True)) if new else {}
            images.setdefault(last, image)
            for number in batch:
                yield images[number]
            last, image = batch[-1], images[batch[-1]]

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            pictures: Any = self._reader.get_batch(numbers)
            # A program that set decord's bridge to torch gets tensors.
            return pictures.asnumpy() if hasattr(pictures, "asnumpy") else np.asarray(pictures)
        except Exception as error:
            raise DecordUnfitError("decord cannot decode a part of it") from error


def load_decord() -> Any:
    """The module; a :class:`UsageError` if it is not installed (it has wheels for x86-64 only)."""
    # decord has to be imported after torch: the other way round both crash.
    import torch  # noqa: F401

    # Damaged files go to PyAV (fault_tol); decord need not report them on standard error.
    os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        message = f"The frame backend 'decord' cannot be used: {error}."
        raise UsageError(message, hint="Install it (pip install decord), or choose 'auto' or 'pyav'.") from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord
