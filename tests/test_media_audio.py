"""Sound: placed by timestamps, mixed down, resampled to 48 kHz, the same however it is cut."""

import wave as wave_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torchaudio
from media_factory import clicks, counter, make_hour, tone, write_audio, write_media

from avfewshot.media import resample
from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.media.probe import probe
from avfewshot.media.reader import ClipReader, read_clip
from avfewshot.media.waveform import Waveform

REAL_SOUND = Path(__file__).parents[2] / "shared/data/media/FwVYUHKoLtQ_000034.wav"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("audio")


def reference(samples: np.ndarray, rate: int) -> torch.Tensor:
    return torchaudio.functional.resample(torch.from_numpy(samples), rate, SAMPLE_RATE)


def lag(heard: torch.Tensor, expected: torch.Tensor) -> int:
    """Samples by which `heard` comes after `expected`, by cross-correlation."""
    n = 1 << 18
    a, b = (torch.fft.rfft(x[: n // 2], n) for x in (heard, expected))
    peak = int(torch.fft.irfft(a * b.conj(), n).argmax())
    return peak - n if peak > n // 2 else peak


def onsets(waveform: torch.Tensor) -> list[float]:
    """Times of loud bursts in seconds."""
    loud = (waveform.abs() > 0.3).nonzero().flatten()
    starts = [int(at) for at, before in zip(loud, [-SAMPLE_RATE, *loud[:-1]], strict=True) if at - before > 4800]
    return [at / SAMPLE_RATE for at in starts]


@pytest.mark.parametrize(
    ("name", "rate", "codec", "tolerance"),
    [
        ("8k.wav", 8000, "pcm_u8", 0.01),
        ("16k.wav", 16000, "pcm_s16le", 1e-4),
        ("44k.wav", 44100, "pcm_s24le", 1e-5),
        ("48k.wav", 48000, "pcm_s32le", 1e-5),
        ("22k.wav", 22050, "pcm_f32le", 1e-5),
        ("96k.wav", 96000, "pcm_f64le", 1e-6),
        ("44k.flac", 44100, "flac", 1e-4),
        ("11k.mkv", 11025, "pcm_s16le", 1e-4),
    ],
)
def test_lossless_sound_equals_the_resampled_original(tmp_path, name, rate, codec, tolerance):
    original = tone(2.0, rate)[0]
    clip = read_clip(write_audio(tmp_path / name, original[None], rate, codec))
    assert clip.frames is None
    assert clip.waveform.dtype == torch.float32
    assert clip.waveform.shape == (2 * SAMPLE_RATE,)
    assert (clip.waveform - reference(original, rate)).abs().max() < tolerance


@pytest.mark.parametrize(
    ("name", "rate"),
    [("sound.mp3", 44100), ("sound.m4a", 44100), ("sound.ogg", 48000), ("video.mp4", 16000), ("video.mkv", 44100)],
)
def test_lossy_sound_is_not_shifted(tmp_path, name, rate):
    original = tone(2.0, rate)
    seen = name.startswith("video")
    path = tmp_path / name
    write_media(path, audio=original, rate=rate, size=(32, 32)) if seen else write_audio(path, original, rate)
    expected = reference(original[0], rate)
    heard = read_clip(path, modality="audio").waveform
    early = round(-probe(path).zero * SAMPLE_RATE) if seen else 0  # FFmpeg before 8.1 keeps what an encoder prepends
    late = lag(heard, expected)
    assert abs(late - early) <= 48  # a millisecond
    heard = heard.roll(-late)
    assert (heard[9600:86400] - expected[9600:86400]).abs().mean() < 0.06  # ten samples off would be 0.2


def test_channels_are_averaged_and_planar_and_interleaved_samples_told_apart(tmp_path):
    left = tone(1.0)[0]
    clip = read_clip(write_audio(tmp_path / "stereo.flac", np.stack([left, np.zeros_like(left)])))
    assert (clip.waveform - torch.from_numpy(left) / 2).abs().max() < 1e-4
    assert clip.warnings == ("no video track",)  # nothing about channels
    six = np.stack([left * weight for weight in (1.0, 0.5, 0.25, 0, 0, -0.25)])
    heard = read_clip(write_audio(tmp_path / "six.wav", six)).waveform
    assert (heard - torch.from_numpy(left) * 0.25).abs().max() < 1e-4
    both = np.concatenate([tone(1.0, frequency=300), -0.2 * tone(1.0, frequency=900)])
    for name in ("interleaved.wav", "planar.mp3"):  # s16 and fltp
        heard = read_clip(write_audio(tmp_path / name, both)).waveform
        assert (heard - torch.from_numpy(both.mean(0)))[:40000].abs().mean() < 0.02


CUT = {
    "cut.wav": {"codec": None, "rate": 16000, "audio_codec": "pcm_s16le"},
    "cut.flac": {"codec": None, "rate": 44100, "audio_codec": "flac"},
    "cut.mp3": {"codec": None, "rate": 44100, "audio_codec": "libmp3lame"},
    "cut.m4a": {"codec": None, "rate": 8000, "audio_codec": "aac"},
    "cut.ogg": {"codec": None, "rate": 48000, "audio_codec": "libopus"},
    "odd-rate.wav": {"codec": None, "rate": 44056, "audio_codec": "pcm_s16le"},
    "cut.mp4": {"rate": 44100},
    "cut.mkv": {"rate": 44100},
    "cut.ts": {"rate": 48000},
    "cut.avi": {"rate": 44100, "codec": "mpeg4", "audio_codec": "libmp3lame"},
    "late.mkv": {"rate": 48000, "audio_start": 1.5},
    "gap.mp4": {"rate": 44100, "audio_gap": (3.0, 1.5)},
}


@pytest.mark.parametrize("name", CUT)
def test_sound_does_not_depend_on_how_it_is_cut(folder, name, monkeypatch):
    # So that the short file is seeked in as a long one is.
    monkeypatch.setattr("avfewshot.media.waveform._FAR_SECONDS", 1)
    options = {"seconds": 6.0, "size": (32, 32), "fps": 4, **CUT[name]}
    path = write_media(folder / name, audio=tone(6.0, options["rate"]), **options)
    whole = read_clip(path, modality="audio").waveform
    total = len(whole) // SAMPLE_RATE
    with ClipReader(path, modality="audio") as reader:
        pieces = [reader.read(start, min(start + 2, total)).waveform for start in range(0, total, 2)]
        assert (torch.cat(pieces) - whole).abs().max() < 1e-4
    with ClipReader(path, modality="audio") as reader:
        for start in (5, 0, 3, 1):
            piece = reader.read(start, start + 1).waveform
            assert (piece - whole[start * SAMPLE_RATE : (start + 1) * SAMPLE_RATE]).abs().max() < 1e-4


def test_sound_keeps_its_place_when_its_track_starts_late_or_has_a_gap(tmp_path):
    times = [0.25, 1.25, 2.25]
    for suffix in (".mp4", ".mkv"):
        late = write_media(tmp_path / f"late{suffix}", seconds=5.0, audio=clicks(times, 3.0), audio_start=1.5)
        assert onsets(read_clip(late).waveform) == pytest.approx([t + 1.5 for t in times], abs=0.002)
        gap = write_media(tmp_path / f"gap{suffix}", seconds=5.0, audio=clicks(times, 3.0), audio_gap=(1.0, 1.5))
        clip = read_clip(gap)
        assert onsets(clip.waveform) == pytest.approx([0.25, 2.75, 3.75], abs=0.025)  # a gap begins at a packet
        assert any("1.5 s of the audio are missing" in warning for warning in clip.warnings)


def test_sight_and_sound_stay_together_whatever_the_clock_says(tmp_path):
    sound = clicks([2.0], 4.0)
    for name, video, audio in (("a.ts", 0.05, 0), ("b.mkv", 7.55, 7.5), ("c.mp4", 0.55, 0), ("d.mkv", 0.05, 0.7)):
        path = write_media(tmp_path / name, seconds=4.0, audio=sound, video_start=video, audio_start=audio)
        clip = read_clip(path, frame_size=None)
        sooner = min(video, audio)
        assert onsets(clip.waveform) == pytest.approx([2.0 + audio - sooner], abs=0.025)
        # Due by the middle of the third second; audio codecs begin up to 21 ms early, which the 50 ms take up.
        assert counter(clip.frames[2].permute(1, 2, 0).numpy()) == int((2.5 - (video - sooner)) * 10)


def test_of_several_tracks_the_first_is_taken_and_said(tmp_path):
    path = write_media(tmp_path / "two.mp4", seconds=2.0, audio=[tone(2.0), tone(2.0, frequency=3000.0)])
    clip = read_clip(path, modality="audio")
    assert abs(lag(clip.waveform, torch.from_numpy(tone(2.0)[0]))) <= 48
    assert clip.warnings == ("2 audio tracks: number 1 is used",)


def test_longer_and_shorter_sound_is_zero_filled_to_whole_segments(tmp_path):
    short = read_clip(write_media(tmp_path / "short.mp4", seconds=4.0, audio=tone(1.5)))
    assert short.num_segments == 4
    assert short.audio_segments.shape == (4, SAMPLE_RATE)
    assert short.waveform[:SAMPLE_RATE].abs().max() > 0.3
    assert not short.waveform[2 * SAMPLE_RATE :].any()
    assert any("audio ends at 1.5 s" in warning for warning in short.warnings)
    longer = read_clip(write_media(tmp_path / "long.mp4", seconds=1.0, audio=tone(3.0)), frame_size=32)
    assert longer.num_segments == 3
    assert torch.equal(longer.frames[1], longer.frames[2])
    assert any("video ends at 1.0 s" in warning for warning in longer.warnings)
    tiny = read_clip(write_audio(tmp_path / "tiny.wav", tone(0.2)))
    assert tiny.num_segments == 1
    assert tiny.waveform[:9000].any()
    assert not tiny.waveform[9700:].any()


def test_samples_that_are_not_numbers_become_zero_and_those_beyond_full_scale_are_clipped(tmp_path):
    samples = tone(2.0)
    samples[0, 1000:1010] = np.nan
    samples[0, 2000] = np.inf
    samples[0, 3000] = -np.inf
    clip = read_clip(write_audio(tmp_path / "nan.wav", samples, codec="pcm_f32le"))
    assert torch.isfinite(clip.waveform).all()
    assert not clip.waveform[1000:1010].any()
    assert any("12 samples that are not numbers" in warning for warning in clip.warnings)
    assert (clip.waveform[5000:] - torch.from_numpy(samples[0, 5000:])).abs().max() < 1e-6
    loud = read_clip(write_audio(tmp_path / "loud.wav", 1000 * tone(1.0), codec="pcm_f32le"))
    assert any("exceeds full scale (peak 500)" in warning for warning in loud.warnings)
    slightly = read_clip(write_audio(tmp_path / "slightly.wav", 2.4 * tone(1.0), codec="pcm_f32le"))
    assert slightly.warnings == ("no video track",)
    assert loud.waveform.abs().max() == slightly.waveform.abs().max() == 1


def test_digital_silence_is_said_where_it_is(tmp_path):
    quiet = write_audio(tmp_path / "quiet.wav", 0 * tone(3.0))
    assert "audio is silent: every sample is zero" in read_clip(quiet).warnings
    with ClipReader(quiet) as reader:
        assert "audio is silent: every sample is zero from 1 s to 2 s" in reader.read(1, 2).warnings
    # Beyond the end of the audio there is nothing to call silent.
    ends = write_media(tmp_path / "ends.mp4", seconds=4.0, audio=tone(1.0))
    with ClipReader(ends) as reader:
        assert not any("silent" in warning for warning in reader.read(3, 4).warnings)


@pytest.mark.parametrize("rate", [11025, 8000, 44100, 96000, 44056])
def test_the_filter_is_torchaudios(rate):
    samples = np.random.default_rng(0).uniform(-1, 1, 3 * rate).astype(np.float32)
    extra = resample.margin(rate)
    got = resample.to_model_rate(samples[rate - extra : 2 * rate + extra], rate, SAMPLE_RATE)
    whole = reference(samples.astype(np.float64), rate)[SAMPLE_RATE : 2 * SAMPLE_RATE].numpy()
    assert np.abs(got - whole).max() < 1e-6


def test_a_rate_that_does_not_reduce_takes_no_giant_filter():
    rate = 48001  # a table of all phases would take 8.5 GB
    samples = np.pad(tone(1.0, rate)[0], resample.margin(rate))
    got = resample.to_model_rate(samples, rate, SAMPLE_RATE)
    assert np.abs(got - tone(1.0)[0])[100:-100].max() < 2e-3


def test_an_hour_is_read_by_the_minute_and_held_no_longer(tmp_path):
    path = make_hour(tmp_path / "hour.mkv")
    found = probe(path)
    assert float(found.duration) == pytest.approx(3600, abs=4)
    sound = Waveform(path, found.audio, found.zero)
    for start in (3000, 3060, 120, 600):
        heard = torch.from_numpy(sound.read(start, start + 60).waveform)
        assert onsets(heard) == pytest.approx([0.0], abs=0.002)
        held = sum(len(block) for _, block in sound._blocks)
        assert held <= 2 * sound.rate
    sound.close()


@pytest.mark.skipif(not REAL_SOUND.exists(), reason=f"{REAL_SOUND} is not there")
def test_a_real_recording_equals_its_resampled_samples():
    with wave_module.open(str(REAL_SOUND)) as stream:
        rate = stream.getframerate()
        samples = np.frombuffer(stream.readframes(stream.getnframes()), "<i2").astype(np.float32) / 32768
    clip = read_clip(REAL_SOUND)
    expected = reference(samples, rate)[: 10 * SAMPLE_RATE]
    assert clip.waveform.shape == (10 * SAMPLE_RATE,)
    assert (clip.waveform[: len(expected)] - expected).abs().max() < 1e-4
