"""Toy clips as mp4 files: H.264 and AAC, the same bytes from the same script."""

from __future__ import annotations

import itertools
import os
import wave
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path

import av.codec.context
import av.container
import numpy as np
from PIL import Image

from avfewshot.io import atomic_path
from avfewshot.toyworld.render import render_frames, render_still, render_waveform
from avfewshot.toyworld.script import ClipScript
from avfewshot.toyworld.sounds import SAMPLE_RATE, band

WIDTH = 160  # pixels of a toy clip's picture
HEIGHT = 120  # pixels of a toy clip's picture
FPS = 5  # frames per second of a toy clip
STILL_SIDE = 96  # pixels of a side of a still and of its mask
WAV_RATE = 16_000  # samples a second of a WAV file

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


def write_part(script: ClipScript, path: str | os.PathLike[str], picture: tuple[int, bool] | None) -> None:
    """Write the sound of a clip as a WAV file of 16 kHz, or a still or a mask as a PNG file, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        if picture is None:
            # 48 to 16 kHz: what lies above 8 kHz goes before every third sample is kept.
            sound = band(render_waveform(script).astype(np.float64), 0, 7000)[:: SAMPLE_RATE // WAV_RATE]
            with wave.open(os.fspath(temporary), "wb") as file:
                file.setparams((1, 2, WAV_RATE, 0, "NONE", ""))
                file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
        else:
            still, mask = render_still(script, picture[0], STILL_SIDE)
            image = Image.fromarray(mask if picture[1] else still)
            # The masks of S4 are 1-bit pictures, those of MS3 have a palette.
            image = image.convert("L").convert("P") if picture[1] and "ms3_data" in Path(path).parts else image
            image.save(temporary)


def encode_mp4(path: str | os.PathLike[str], frames: Iterable[np.ndarray], waveform: np.ndarray, *, fps: int) -> None:
    """Encode pictures and sound as H.264 (yuv420p) and AAC (mono, 48 kHz), without anything that varies.

    `frames` are uint8 ``[height, width, 3]`` RGB, all of one size with even sides, at least one; `waveform` is float32
    ``[samples]`` at 48 kHz in -1..1.

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
