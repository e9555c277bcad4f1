"""Makes small media files with PyAV: pictures that carry their own frame number, and tones whose time can be told.

Nothing here but :func:`strike` knows the package under test. The picture of frame ``n`` is a moving coloured gradient
below a row of black and white blocks that spell ``n`` in binary: a test can read from the pixels which frame it is.
"""

import math
import os
import struct
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

COUNTER_BITS = 10


def picture(number: int, width: int = 96, height: int = 64) -> np.ndarray:
    """RGB picture [height, width, 3] of frame `number`."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    phase = 0.35 * number
    channels = [
        127 + 110 * np.sin(x / width * 5 + phase),
        127 + 110 * np.sin(y / height * 4 - phase),
        127 + 110 * np.sin((x + y) / (width + height) * 6 + 2 * phase),
    ]
    image = np.stack(channels, -1).clip(0, 255).astype(np.uint8)
    top = height // 4
    edges = np.linspace(0, width, COUNTER_BITS + 1).round().astype(int)
    for bit in range(COUNTER_BITS):
        image[:top, edges[bit] : edges[bit + 1]] = 235 if number >> bit & 1 else 16
    # Another shade in the lower corners tells left from right and top from bottom.
    image[-top:, : width // 4] = (220, 30, 30)
    image[-top:, -(width // 4) :] = (30, 30, 220)
    return image


def counter(image: np.ndarray) -> int:
    """The number that :func:`picture` wrote into an RGB picture [height, width, 3]."""
    height, width = image.shape[:2]
    edges = np.linspace(0, width, COUNTER_BITS + 1)
    row = image[height // 8].astype(int).sum(-1)
    middles = ((edges[:-1] + edges[1:]) / 2).astype(int)
    return sum(1 << bit for bit, x in enumerate(middles) if row[x] > 384)


def tone(
    seconds: float, rate: int = 48000, frequency: float = 440.0, channels: int = 1, level: float = 0.5
) -> np.ndarray:
    """Sine [channels, samples] in float32; its frequency rises steadily, so that its time can be told."""
    t = np.arange(round(seconds * rate)) / rate
    wave = level * np.sin(2 * math.pi * (frequency * t + 40 * t**2))
    return np.repeat(wave[None].astype(np.float32), channels, 0)


def clicks(times: Iterable[float], seconds: float, rate: int = 48000) -> np.ndarray:
    """Silence [1, samples] with a loud two-millisecond burst at each of `times`."""
    wave = np.zeros((1, round(seconds * rate)), np.float32)
    burst = 0.9 * np.sign(np.sin(np.arange(round(0.002 * rate)) * 1.2))
    for time in times:
        at = round(time * rate)
        wave[0, at : at + len(burst)] = burst
    return wave


def write_media(
    path: Path,
    *,
    seconds: float = 2.0,
    fps: int = 10,
    size: tuple[int, int] = (96, 64),
    times: Sequence[float] | None = None,
    codec: str | None = "libx264",
    codec_options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    colour: tuple[int, int] | None = None,
    video_start: float = 0.0,
    audio: np.ndarray | Sequence[np.ndarray] | None = None,
    audio_codec: str = "aac",
    rate: int = 48000,
    audio_start: float = 0.0,
    audio_gap: tuple[float, float] | None = None,
    container_options: dict[str, str] | None = None,
    rotation: int = 0,
    mirrored: bool = False,
) -> Path:
    """Write a file.

    Args:
        path: Where; the suffix chooses the container.
        seconds: Length of the video at `fps`.
        fps: Frames a second.
        size: Width and height.
        times: Timestamps of the frames instead of `seconds` and `fps` (variable frame rate).
        codec: Video encoder, or None for no video.
        codec_options: Its options; a keyframe every 10 frames unless ``g`` is given.
        pix_fmt: Pixel format.
        colour: FFmpeg's numbers for (colour space, colour range) to tag the frames with.
        video_start: Added to all timestamps of the video.
        audio: Waveform [channels, samples] in float32, several for several tracks, None for no audio.
        audio_codec: Audio encoder.
        rate: Sampling rate of `audio`.
        audio_start: Added to all timestamps of the audio.
        audio_gap: (time, length): from `time` on the timestamps jump ahead by `length`.
        container_options: Options of the muxer.
        rotation: Degrees that a player has to turn the picture counter-clockwise (mp4 and mov only).
        mirrored: A player has to mirror the picture left-right (mp4 and mov only).
    """
    tracks = [] if audio is None else [audio] if isinstance(audio, np.ndarray) else list(audio)
    with av.open(str(path), "w", options=container_options or {}) as out:
        video = None
        if codec:
            video = out.add_stream(codec, rate=fps)
            video.width, video.height = size
            video.pix_fmt = pix_fmt
            video.options = {"g": "10", **(codec_options or {})}
            video.codec_context.time_base = Fraction(1, 1000 if times else fps * (1 if path.suffix == ".avi" else 100))
            video.codec_context.thread_count = 1
            if colour:
                video.codec_context.colorspace, video.codec_context.color_range = colour
        sounds = []
        for wave in tracks:
            # Noise substitution would make decoded sound depend on where decoding began.
            options = {"aac_pns": "0"} if audio_codec == "aac" else {}
            stream = out.add_stream(audio_codec, rate=rate, options=options)
            stream.layout = {1: "mono", 2: "stereo", 6: "5.1"}[wave.shape[0]]
            sounds.append(stream)
        pending = []
        if video is not None:
            stamps = list(times) if times else [n / fps for n in range(round(seconds * fps))]
            for number, stamp in enumerate(stamps):
                frame = av.VideoFrame.from_ndarray(picture(number, *size), "rgb24").reformat(format=pix_fmt)
                if colour:
                    frame.colorspace, frame.color_range = colour
                frame.time_base = video.codec_context.time_base
                frame.pts = round((stamp + video_start) / frame.time_base)
                pending += video.encode(frame)
            pending += video.encode()
        for stream, wave in zip(sounds, tracks, strict=True):
            pending += _encode_audio(stream, wave, rate, audio_start, audio_gap)
        # Interleaved by time as a recorder would write them.
        for packet in sorted(pending, key=lambda p: (p.dts if p.dts is not None else p.pts) * p.time_base):
            out.mux(packet)
    if rotation or mirrored:
        _set_matrix(path, rotation, mirrored)
    if codec == "libsvtav1" and hasattr(os, "sched_setscheduler"):
        # As root, SVT-AV1 gives its process real-time priority, and all that is started later inherits it.
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def _encode_audio(
    stream, wave: np.ndarray, rate: int, start: float, gap: tuple[float, float] | None
) -> list[av.Packet]:
    context = stream.codec_context
    context.open()
    step = context.frame_size or 1024
    resampler = av.AudioResampler(format=context.format, layout=context.layout, rate=rate)
    packets = []
    for at in range(0, wave.shape[1], step):
        layout = "mono" if wave.shape[0] == 1 else stream.layout.name
        frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(wave[:, at : at + step]), "fltp", layout)
        frame.sample_rate = rate
        frame.time_base = Fraction(1, rate)
        late = start + (gap[1] if gap and at / rate >= gap[0] else 0.0)
        stamp = at + round(late * rate)
        (converted,) = resampler.resample(frame) if context.format.name != "fltp" else [frame]
        converted.pts = stamp
        converted.time_base = Fraction(1, rate)
        packets += stream.encode(converted)
    return packets + stream.encode()


def _set_matrix(path: Path, rotation: int, mirrored: bool) -> None:
    """Write a display matrix into the first video track header (`tkhd`) of an mp4."""
    data = bytearray(path.read_bytes())
    a, b, c, d = {0: (1, 0, 0, 1), 90: (0, -1, 1, 0), 180: (-1, 0, 0, -1), 270: (0, 1, -1, 0)}[rotation]
    if mirrored:
        a, c = -a, -c
    position = data.find(b"tkhd")
    while position >= 0:
        version = data[position + 4]
        matrix = position + 4 + (4 + 20 if version == 0 else 4 + 32) + 16
        width = struct.unpack(">I", data[matrix + 36 : matrix + 40])[0]
        if width:  # an audio track has none
            one = 1 << 16
            data[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
            break
        position = data.find(b"tkhd", position + 4)
    path.write_bytes(data)


def write_audio(path: Path, wave: np.ndarray, rate: int = 48000, codec: str | None = None, **options) -> Path:
    """Write an audio-only file; the encoder follows from the suffix unless named."""
    by_suffix = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".m4a": "aac", ".ogg": "libopus"}
    return write_media(path, codec=None, audio=wave, audio_codec=codec or by_suffix[path.suffix], rate=rate, **options)


def write_two_classes(folder: Path) -> Path:
    """Six clips of a second in the class folders ``dog`` and ``rain``."""
    for number in range(6):
        path = folder / ("dog", "rain")[number % 2] / f"{number}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_media(path, seconds=1.0, audio=tone(1.0, frequency=200 + 100 * number))
    return folder


def write_cover_art(path: Path, wave: np.ndarray, rate: int = 48000) -> Path:
    """Write an mp3 or m4a with an attached picture."""
    plain = write_audio(path.with_name("plain-" + path.name), wave, rate)
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 64, 64, "yuvj420p", Fraction(1, 25)
    image = av.VideoFrame.from_ndarray(picture(1, 64, 64), "rgb24").reformat(format="yuvj420p")
    image.pts, image.time_base = 0, Fraction(1, 25)
    jpeg = [*encoder.encode(image), *encoder.encode()]
    muxer = {".m4a": "mp4", ".mp3": "mp3"}[path.suffix]
    with av.open(str(plain)) as source, av.open(str(path), "w", format=muxer) as out:
        sound = out.add_stream_from_template(source.streams.audio[0])
        cover = out.add_stream("mjpeg", rate=25)
        cover.width = cover.height = 64
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic.value
        for packet in source.demux(audio=0):
            if packet.dts is not None:
                packet.stream = sound
                out.mux(packet)
        for packet in jpeg:
            packet.stream = cover
            out.mux(packet)
    plain.unlink()
    return path


def truncated(source: Path, path: Path, keep: float) -> Path:
    """Copy the first part `keep` (0 to 1) of a file's bytes."""
    data = source.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


def damaged(source: Path, path: Path, start: float, stop: float, seed: int = 0) -> Path:
    """Copy a file with the bytes between two fractions of its length overwritten by noise."""
    data = bytearray(source.read_bytes())
    a, b = int(len(data) * start), int(len(data) * stop)
    data[a:b] = np.random.default_rng(seed).integers(0, 256, b - a, np.uint8).tobytes()
    path.write_bytes(data)
    return path


def with_negative_times(path: Path, shift: float) -> Path:
    """Make the pictures of an mp4 without edit list begin `shift` seconds before zero, by its composition offsets."""
    data = bytearray(path.read_bytes())
    box = data.index(b"ctts")
    timescale = struct.unpack(">I", data[data.index(b"mdhd") + 16 : data.index(b"mdhd") + 20])[0]
    data[box + 4] = 1  # version 1: signed offsets
    for entry in range(struct.unpack(">I", data[box + 8 : box + 12])[0]):
        at = box + 12 + 8 * entry + 4
        (offset,) = struct.unpack(">i", data[at : at + 4])
        data[at : at + 4] = struct.pack(">i", offset - round(shift * timescale))
    path.write_bytes(data)
    return path


# Codecs may begin up to 23 ms early, which moves the beginning of the timeline; no picture changes within that time of
# the middle of a second when the pictures start 50 ms late.
_TONE = {"audio": tone(3.0), "video_start": 0.05}
_FAST_VP9 = {"codec": "libvpx-vp9", "codec_options": {"deadline": "realtime", "cpu-used": "8"}}

# Name -> what it is made of, and the numbers of the pictures due in the middle of each second.
VIDEOS: dict[str, tuple[dict, list[int]]] = {
    "plain.mp4": (_TONE, [4, 14, 24]),
    "plain.mkv": (_TONE, [4, 14, 24]),
    "plain.mov": ({**_TONE, "codec": "mjpeg", "pix_fmt": "yuvj420p", "audio_codec": "pcm_s16le"}, [4, 14, 24]),
    "plain.webm": ({**_TONE, **_FAST_VP9, "audio_codec": "libopus"}, [4, 14, 24]),
    "plain.flv": ({"fps": 10, "seconds": 3}, [5, 15, 25]),
    "plain.ts": ({"fps": 10, "seconds": 3}, [5, 15, 25]),
    "plain.avi": ({"codec": "mpeg4"}, [5, 15, 25]),
    "silent.mp4": ({}, [5, 15, 25]),
    "one-keyframe.mp4": ({"codec_options": {"g": "1000"}}, [5, 15, 25]),
    "open-groups.mp4": ({"codec_options": {"x264-params": "open-gop=1:keyint=8:bframes=3"}}, [5, 15, 25]),
    "hevc.mp4": (
        {"codec": "libx265", "codec_options": {"x265-params": "keyint=8:bframes=3:log-level=none:pools=none"}},
        [5, 15, 25],
    ),
    "av1.mp4": ({"codec": "libsvtav1", "codec_options": {"preset": "11"}}, [5, 15, 25]),
    "vp8.webm": (
        {"codec": "libvpx", "codec_options": {"auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "5"}},
        [5, 15, 25],
    ),
    "fragmented.mp4": ({"container_options": {"movflags": "+frag_keyframe+empty_moov"}}, [5, 15, 25]),
    "refresh.mp4": ({"codec_options": {"x264-params": "intra-refresh=1"}}, [5, 15, 25]),
    "mpeg4-b.mp4": ({"codec": "mpeg4", "codec_options": {"bf": "2", "g": "9"}}, [5, 15, 25]),
    "unreliable.avi": ({"codec": "libx264"}, [5, 15, 25]),  # H.264 with B-frames in AVI: its timestamps are wrong
    "raw.h264": ({"fps": 25}, [12, 37, 62]),  # no timestamps at all
    "variable.mp4": ({"times": [0, 0.1, 0.45, 0.5, 0.7, 1.2, 1.49, 1.51, 2.9]}, [3, 6, 7]),
    "variable.mkv": ({"times": [0, 0.1, 0.45, 0.5, 0.7, 1.2, 1.49, 1.51, 2.9]}, [3, 6, 7]),
    "slow.mp4": ({"times": [0, 2.0, 2.45]}, [0, 0, 2]),
    "short.mp4": ({"seconds": 0.3}, [2]),
    "late-video.mp4": ({**_TONE, "video_start": 0.75, "seconds": 2.25}, [0, 7, 17]),
    "late-audio.mp4": ({**_TONE, "audio_start": 0.4}, [5, 15, 25]),
    "late-both.mkv": ({**_TONE, "video_start": 3.05, "audio_start": 2.5}, [0, 9, 19, 29]),
    "late-both.mp4": ({**_TONE, "video_start": 3.05, "audio_start": 2.5}, [0, 9, 19, 29]),
    "long-audio.mp4": ({**_TONE, "seconds": 1.0}, [4, 9, 9]),
    "short-audio.mp4": ({**_TONE, "audio": tone(1.0)}, [4, 14, 24]),
    "other-size.mp4": ({"size": (98, 62)}, [5, 15, 25]),
    "odd-both.mkv": ({"size": (97, 63), "codec": "ffv1"}, [5, 15, 25]),
    "odd-444.mp4": ({"size": (97, 63), "pix_fmt": "yuv444p"}, [5, 15, 25]),
    "ten-bit.mp4": ({"pix_fmt": "yuv420p10le"}, [5, 15, 25]),
    "hd-colours.mp4": ({"colour": (1, 1)}, [5, 15, 25]),
    "full-range.mp4": ({"colour": (1, 2)}, [5, 15, 25]),
}


def make_video(folder: Path, name: str) -> Path:
    """Write one of :data:`VIDEOS` unless it is there."""
    path = folder / name
    if not path.exists():
        write_media(path, **{"seconds": 3.0, **VIDEOS[name][0]})
    return path


def strike(monkeypatch, file: str, number: int) -> None:
    """Let a signal meet every decoder that is asked to open a file of that name."""
    from avfewshot.media import decoders

    ask = decoders._Worker.ask

    def ask_and_strike(worker, request, seconds):
        if request.get("path", "").endswith(file):
            os.kill(worker._process.pid, number)
        return ask(worker, request, seconds)

    monkeypatch.setattr(decoders._Worker, "ask", ask_and_strike)


def make_hour(path: Path) -> Path:
    """Write an hour of a picture every four seconds, a keyframe every forty, and of a click at every full minute."""
    silence, click = bytes(16000), (clicks([0.0], 1.0, 8000)[0] * 32767).astype("<i2").tobytes()
    with av.open(str(path), "w") as out:
        video = out.add_stream("libx264", rate=1)
        video.width, video.height, video.pix_fmt = 80, 32, "yuv420p"
        video.options = {"g": "10", "preset": "ultrafast", "bf": "2"}
        video.codec_context.time_base = Fraction(1, 1)
        video.codec_context.thread_count = 1
        sound = out.add_stream("pcm_s16le", rate=8000, layout="mono")
        packets = []
        for number in range(900):
            frame = av.VideoFrame.from_ndarray(picture(number, 80, 32), "rgb24")
            frame.time_base, frame.pts = Fraction(1, 1), 4 * number
            packets += video.encode(frame)
        packets += video.encode()
        for second in range(3600):
            packet = av.Packet(silence if second % 60 else click)
            packet.stream, packet.time_base = sound, Fraction(1, 8000)
            packet.pts = packet.dts = second * 8000
            packet.duration = 8000
            packets.append(packet)
        for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
            out.mux(packet)
    return path
