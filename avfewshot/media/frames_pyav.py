"""Picks pictures out of a video with PyAV: exactly those asked for, decoding as little as the format allows."""

from __future__ import annotations

import math
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

from avfewshot.media.clock import Mender
from avfewshot.media.container import DECODED_PIXELS, MAX_PIXELS, READ_ERRORS, open_media, read_only
from avfewshot.media.picture import orientation, turn
from avfewshot.media.probe import Track

_FAR_SECONDS = 10
"""A jump ahead beyond this is made by seeking, a shorter one by reading on."""

_REORDER_SECONDS = 2
"""How far a picture may be stored after its turn, where packets do not tell (no decoding timestamp)."""

_MAX_ERRORS = 1000


class PyavFrames:
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
        self.errors = 0  # packets that could not be read or decoded so far
        self._path = path
        self._track = track
        self._start = round(track.start / track.time_base)
        self._to_rgb = VideoReformatter()
        self._chosen: VideoFrame | None = None
        self._image: np.ndarray | None = None
        self._may_skip = True
        self._container: Any = None
        self._open()

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def at(self, limits: Iterable[int]) -> Iterator[np.ndarray | None]:
        """Pick pictures.

        Args:
            limits: Ascending times in ticks of the track's time base, on the file's own clock.

        Yields:
            For each, the last picture whose timestamp is not after it, uint8 ``[H, W, 3]``, RGB, upright; the first
            picture of all where none is that early; the very same array while the picture stays the same; None while
            nothing could be decoded.
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
        if self._container is not None:
            self._container.close()
        self._container = open_media(self._path)
        self._stream = read_only(self._container, self._track.index)
        self._decoder: Any = self._stream.codec_context
        self._mend = Mender(self._track.shifts, self._track.time_base)
        self._decoder.thread_type = "NONE"
        self._decoder.thread_count = 1
        self._shown: VideoFrame | None = None
        self._skipped = False
        self._forget()

    def _forget(self) -> None:
        """Begin anew at the container's present position; the picture shown stays, to stand in for damaged ones."""
        self._packets = self._container.demux(self._stream)
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
        while True:
            try:
                packet = next(self._packets)
            except StopIteration:
                break
            except READ_ERRORS:
                self.errors += 1
                if self.errors > _MAX_ERRORS:
                    break
                self._packets = self._container.demux(self._stream)
                continue
            if packet.size:
                self.taken += 1
                self._mend(packet)
                self._queue.append((self._note(packet), packet))
                return True
            if packet.dts is None:  # the mark that ends every stream
                break
        self._ended = True
        return False

    def _note(self, packet: Packet) -> int | None:
        pts, horizon = packet.pts, packet.dts
        if pts is not None:
            if not packet.is_discard:
                self._known.append(pts)
            if horizon is None:
                horizon = pts - self._ticks(_REORDER_SECONDS)
        if horizon is not None:
            self._horizon = horizon if self._horizon is None else max(horizon, self._horizon)
        return pts

    def _decode_next(self, target: int | None) -> None:
        if not self._queue and not (not self._ended and self._read()):
            self._drained = True
            self._decode(None)
            return
        stamp, packet = self._queue.popleft()
        # Asked of every packet: a picture that is no reference may be left out, unless it is the one that is due.
        # Not of the first one: some decoders (dav1d) take the answer for good.
        spare = not self._flush and target is not None and stamp is not None and stamp < target
        if self._flush:
            self._decoder.flush_buffers()
            self._latest, self._flush = None, False
        self._decoder.skip_frame = "NONREF" if spare else "DEFAULT"
        self.sent += 1
        self._decode(packet)

    def _decode(self, packet: Packet | None) -> None:
        try:
            frames = self._decoder.decode(packet)
        except av.error.EOFError:
            return
        except MemoryError:  # no damage, but a bound of this process
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return
        for frame in frames:
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
        matrix = frame.side_data.get("DISPLAYMATRIX")
        try:
            # Bilinear is FFmpeg's way with chroma here, and decord's. Threads would be started anew for every file.
            image = self._to_rgb.reformat(frame, width, height, "rgb24", interpolation=how, threads=1).to_ndarray()
        except MemoryError:
            raise
        except av.error.FFmpegError:
            self.errors += 1
            return None
        return turn(image, orientation(None if matrix is None else bytes(matrix)))
