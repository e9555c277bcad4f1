"""Writes a part of a clip as a file of its own: pictures encoded anew, written on if wanted, sound as it is.

What does so for a person asks a decoding process for it: :meth:`avfewshot.media.decoders.IsolatedReader.write`.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.video.frame import VideoFrame
from PIL import Image, ImageDraw, ImageFont

from avfewshot.errors import MediaError
from avfewshot.io import atomic_path
from avfewshot.media.container import beyond_bounds, open_media, pick_streams
from avfewshot.media.picture import upright
from avfewshot.text import printable

_IN_MP4 = frozenset({"aac", "mp3", "ac3", "eac3", "alac", "flac", "opus"})
SUFFIXES = (".mp4", ".mkv", ".mka")
"""Of the files that are written."""


class Bar(NamedTuple):
    """A text on a coloured bar."""

    text: str
    fill: str  # #rrggbb
    ink: str


def transcode(
    source: Path,
    folder: Path,
    stem: str,
    *,
    start: float = 0.0,
    end: float | None = None,
    above: Bar | None = None,
    below: Sequence[Bar] = (),
) -> Path:
    """Write the seconds ``[start, end)`` of a clip, atomically: H.264, and the sound as it is; gives the file.

    Its suffix is ``.mp4``, or ``.mkv`` for sound that has no place in one; ``.mka`` without pictures. `above` stands
    above all the time, `below` has a bar a second, the last one to the end.

    Raises:
        MediaError: The clip cannot be read, or holds nothing of that time.
    """
    with open_media(source) as media:
        video, audio = pick_streams(media)
        if video is not None and (problem := beyond_bounds(video)):
            raise MediaError(source, problem)
        mp4, mkv, mka = SUFFIXES
        suffix = mka if video is None else mp4 if audio is None or audio.codec_context.name in _IN_MP4 else mkv
        target, written = folder / f"{stem}{suffix}", 0
        zero = Fraction(media.start_time or 0, av.time_base)
        begin = start or float("-inf")  # sound may begin a little early, with what a decoder drops
        with atomic_path(target) as temporary, av.open(str(temporary), "w") as out:
            sound: Any = None if audio is None else out.add_stream_from_template(audio)
            pictures = None if video is None else _Pictures(out, video, above, below)
            waiting: list[Any] = []  # sound before the first picture, whose size the head of the file needs
            for packet in media.demux([stream for stream in (video, audio) if stream is not None]):
                if packet.stream is audio:
                    if packet.pts is None or packet.dts is None:
                        continue
                    time = packet.pts * packet.time_base - zero
                    if begin <= time and (end is None or time < end):
                        shift = round((zero + Fraction(start)) / packet.time_base)
                        packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, sound
                        waiting.append(packet)
                        written += 1
                elif pictures is not None:
                    for frame in packet.decode():
                        if frame.pts is None or frame.time_base is None:
                            continue
                        time = frame.pts * frame.time_base - zero
                        if begin <= time and (end is None or time < end):
                            pictures.add(frame, float(time), time - Fraction(start))
                            written += 1
                if pictures is None or pictures.size:
                    out.mux(waiting)
                    waiting = []
            if not written or (pictures is not None and not pictures.size):
                raise MediaError(source, f"holds nothing from {start:g} s on")
            if pictures is not None:
                pictures.close()
    return target


class _Pictures:
    """Encodes the pictures of one clip; the first one gives the size, cut to even numbers."""

    def __init__(self, out: Any, video: Any, above: Bar | None, below: Sequence[Bar]) -> None:
        self._out, self._above, self._below = out, above, below
        # mpeg4 where this FFmpeg has no x264; never an encoder that changes how the whole process is scheduled.
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        rate = min(max(video.average_rate or Fraction(25), Fraction(1)), Fraction(120))
        self._stream = out.add_stream(codec, rate=rate.limit_denominator(60000))
        self._stream.pix_fmt = "yuv420p"
        self._stream.codec_context.time_base = Fraction(1, 90_000)
        self._stream.codec_context.thread_count = 2  # each holds pictures, and memory is bounded
        self._stream.options = {"preset": "veryfast", "crf": "20"} if codec == "libx264" else {"qscale": "3"}
        self.size: tuple[int, int] | None = None  # of the first picture
        self._last = -1

    def add(self, frame: VideoFrame, time: float, moved: Fraction) -> None:
        """Write on a picture of a time, and encode it at the time that it has in the new file."""
        image = Image.fromarray(upright(frame.to_ndarray(format="rgb24"), frame.side_data.get("DISPLAYMATRIX")))
        if self.size is None:
            self.size = max(2, image.width // 2 * 2), max(2, image.height // 2 * 2)
            self._stream.width, self._stream.height = self.size
        if image.size != self.size:
            image = image.resize(self.size)
        if self._above is not None:
            _write(image, self._above, top=True)
        if self._below:
            _write(image, self._below[min(max(int(time), 0), len(self._below) - 1)], top=False)
        new = VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
        new.time_base, new.pts = Fraction(1, 90_000), round(moved * 90_000)
        if new.pts > self._last:  # two pictures of one time cannot be stored
            self._last = new.pts
            self._out.mux(self._stream.encode(new))

    def close(self) -> None:
        """Encode what is waiting."""
        if self.size is not None:
            self._out.mux(self._stream.encode(None))


def _write(image: Image.Image, bar: Bar, *, top: bool) -> None:
    """A bar over the whole width; text that is too long for it is cut."""
    height = max(12, image.height // 10)
    font = ImageFont.load_default(size=max(8, round(0.65 * height)))
    pen, edge = ImageDraw.Draw(image), 0 if top else image.height - height
    text, room = printable(bar.text), image.width - height
    while pen.textlength(text, font) > room and len(text) > 1:
        text = f"{text.removesuffix('…')[:-1]}…"
    pen.rectangle((0, edge, image.width, edge + height), fill=bar.fill)
    pen.text((height // 2, edge + height / 2), text, fill=bar.ink, font=font, anchor="lm")
