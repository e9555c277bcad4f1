"""Toy clips as mp4 files: H.264 and AAC, the same bytes from the same script."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable
from fractions import Fraction

import av.codec.context
import av.container
import numpy as np

from avfewshot.io import atomic_path
from avfewshot.toyworld.render import render_frames, render_waveform
from avfewshot.toyworld.script import ClipScript
from avfewshot.toyworld.sounds import SAMPLE_RATE

WIDTH = 160
"""Pixels of a toy clip's picture."""
HEIGHT = 120
"""Pixels of a toy clip's picture."""
FPS = 5
"""Frames per second of a toy clip."""

_AUDIO_BITS_PER_SECOND = 64_000
# libx264's macroblock-tree rate control gives other bytes from run to run (seen with core 165), so it is off. Threads
# would make the bytes depend on the machine. A key frame a second lets readers seek to a segment at once.
_X264_OPTIONS = {"preset": "superfast", "crf": "30", "threads": "1", "mbtree": "0", "g": str(FPS)}


def write_clip(script: ClipScript, path: str | os.PathLike[str]) -> None:
    """Render a script and write it as an mp4 file, atomically.

    The same script gives the same bytes on the same machine with the same library versions.

    Raises:
        OSError: The file cannot be written.
    """
    frames = render_frames(script, fps=FPS, width=WIDTH, height=HEIGHT)
    with atomic_path(path) as temporary:
        encode_mp4(temporary, frames, render_waveform(script), fps=FPS)


def encode_mp4(path: str | os.PathLike[str], frames: Iterable[np.ndarray], waveform: np.ndarray, *, fps: int) -> None:
    """Encode pictures and sound as H.264 (yuv420p) and AAC (mono, 48 kHz), without anything that varies.

    Args:
        path: File to write.
        frames: At least one uint8 ``[height, width, 3]`` RGB picture; all of one size, with even sides.
        waveform: float32 ``[samples]`` at 48 kHz in -1..1.
        fps: Frames per second.

    Raises:
        OSError: The file cannot be written.
        ValueError: No frames.
    """
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise ValueError("a clip needs at least one frame")
    # An absolute path, since FFmpeg takes what stands before a colon in a relative one for a protocol.
    with av.open(os.path.abspath(path), "w", format="mp4") as container:
        container.flags |= av.container.Flags.bitexact.value  # no time stamp and no muxer version in the header
        video = container.add_stream("libx264", rate=fps, pix_fmt="yuv420p", options=dict(_X264_OPTIONS))
        video.height, video.width = first.shape[:2]
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=_AUDIO_BITS_PER_SECOND)
        sound.options = {"aac_coder": "fast"}
        for stream in (video, sound):
            stream.codec_context.flags |= av.codec.context.Flags.bitexact.value
        for frame in itertools.chain([first], frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(np.ascontiguousarray(waveform[None], np.float32), "fltp", "mono")
        samples.sample_rate = SAMPLE_RATE
        samples.time_base = Fraction(1, SAMPLE_RATE)
        samples.pts = 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode())
