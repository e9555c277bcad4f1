"""Any number of channels: each layout that an encoder takes, mixed to one channel of the right loudness and pitch."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from avfewshot.media.stream import read_isolated

LAYOUTS = (
    "mono stereo 2.1 3.0 3.0(back) 4.0 quad quad(side) 3.1 5.0 5.0(side) 4.1 5.1 5.1(side) 6.0 6.0(front) 3.1.2 "
    "hexagonal 6.1 6.1(back) 6.1(front) 7.0 7.0(front) 7.1 7.1(wide) 7.1(wide-side) 5.1.2 octagonal cube 5.1.4 7.1.2 "
    "7.1.4 7.2.3 9.1.4 9.1.6 hexadecagonal downmix 22.2"
).split()


def write(path: Path, channels: np.ndarray, codec: str, layout: str, late: int = 0) -> bool:
    """Write sound [channels, samples] at 48 kHz; False where the encoder does not take the layout.

    The second half of it comes `late` samples later than the first one ends.
    """
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=48000, layout=layout, options={"strict": "-2"})
        context = stream.codec_context
        try:
            context.open()
        except av.error.FFmpegError:
            return False
        step = context.frame_size or 1024
        for at in range(0, channels.shape[1] - step + 1, step):
            block = np.ascontiguousarray(channels[:, at : at + step].T.reshape(1, -1))
            frame = av.AudioFrame.from_ndarray(block, "flt", layout)
            frame.sample_rate, frame.pts, frame.time_base = 48000, at, Fraction(1, 48000)
            for part in av.AudioResampler(format=context.format, layout=layout, rate=48000).resample(frame):
                part.pts = at + (late if 2 * at >= channels.shape[1] else 0)
                out.mux(stream.encode(part))
        out.mux(stream.encode(None))
    return True


def sine(level: float = 0.3, channels: int = 1) -> np.ndarray:
    wave = (level * np.sin(2 * np.pi * 440 * np.arange(48000) / 48000)).astype(np.float32)
    return np.tile(wave, (channels, 1))


def loudness(wave: np.ndarray) -> float:
    """As a part of that of `sine()`."""
    return np.sqrt((wave**2).mean()) / (0.3 / np.sqrt(2))


@pytest.mark.parametrize(
    ("codec", "suffix", "layouts", "least"),
    [
        ("pcm_s16le", "wav", LAYOUTS, 38),
        ("aac", "m4a", LAYOUTS[::2], 10),
        ("flac", "flac", LAYOUTS[1::2], 10),
        ("libopus", "ogg", "mono stereo 3.0 quad 5.1 7.1".split(), 4),
        ("vorbis", "ogg", ["stereo"], 1),
    ],
)
def test_every_layout_has_the_loudness_and_pitch_of_its_tone(tmp_path, codec, suffix, layouts, least):
    tried = 0
    for number, layout in enumerate(layouts):
        path = tmp_path / f"{number}.{suffix}"
        if not write(path, sine(channels=av.AudioLayout(layout).nb_channels), codec, layout):
            continue
        tried += 1
        wave = read_isolated(path).waveform.numpy()[9600:38400]
        assert abs(np.abs(np.fft.rfft(wave)).argmax() * 48000 / len(wave) - 440) < 2, layout
        # Encoders cut the deep-tone channels off at 120 Hz: these count as channels, and are silent here.
        assert 0.6 < loudness(wave) < 1.1, layout
    assert tried >= least


@pytest.mark.parametrize(
    ("codec", "suffix", "layout", "signs"),
    [
        ("pcm_s16le", "wav", "stereo", (1, -1)),
        ("flac", "flac", "stereo", (0.5, -0.5)),
        ("aac", "m4a", "stereo", (1, -1)),
        ("pcm_s16le", "wav", "quad", (1, -1, 1, -1)),
        ("aac", "m4a", "7.1", (1, -1, 0, 0, 1, -1, 1, -1)),
        ("pcm_s16le", "wav", "stereo", (-0.3, 0.31)),
    ],
)
def test_channels_that_cancel_each_other_are_heard_and_it_is_said(tmp_path, codec, suffix, layout, signs):
    path = tmp_path / f"opposed.{suffix}"
    assert write(path, np.array(signs, np.float32)[:, None] * sine(), codec, layout)
    clip = read_isolated(path)
    assert 0.8 < loudness(clip.waveform.numpy()[9600:38400]) / max(map(abs, signs)) < 1.2
    assert any("channels cancel each other" in warning for warning in clip.warnings)
    assert not any("silent" in warning for warning in clip.warnings)


@pytest.mark.parametrize(("codec", "suffix"), [("pcm_s32be", "aiff"), ("pcm_s16le", "mov"), ("pcm_s16be", "caf")])
@pytest.mark.parametrize("layout", ["7.1", "hexagonal", "downmix"])
def test_channels_in_an_order_of_the_files_own_are_read(tmp_path, codec, suffix, layout):
    path = tmp_path / f"order.{suffix}"
    assert write(path, sine(channels=av.AudioLayout(layout).nb_channels), codec, layout)
    assert loudness(read_isolated(path).waveform.numpy()[4800:43200]) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(("codec", "layout"), [("aac", "7.1"), ("pcm_s64le", "stereo"), ("pcm_s16le", "stereo")])
def test_a_gap_is_a_gap_whatever_the_samples_are(tmp_path, codec, layout):
    path = tmp_path / "gap.nut"
    twice = np.tile(sine(channels=av.AudioLayout(layout).nb_channels), 2)
    assert write(path, twice, codec, layout, late=96_000)
    clip = read_isolated(path)
    loud = np.sqrt((clip.waveform.numpy()[: 4 * 48_000].reshape(8, -1) ** 2).mean(-1)) > 0.1
    assert loud.tolist() == [True, True, False, False, False, False, True, True]
    assert "2.0 s of the audio are missing: silence stands for them" in clip.warnings


def test_a_channel_that_is_no_number_costs_no_other_channel(tmp_path):
    path = tmp_path / "nan.mkv"
    assert write(path, np.concatenate([np.full((1, 48_000), np.inf, np.float32), sine()]), "pcm_f32le", "stereo")
    clip = read_isolated(path)
    assert abs(clip.waveform.numpy()[:46_000] - sine(0.15)[0, :46_000]).max() < 1e-6
    assert any("samples that are not numbers" in warning for warning in clip.warnings)
