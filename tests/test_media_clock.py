"""Timestamps that cannot be: files end where their packets do, and joined ones are read to their end."""

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import counter, picture, tone, write_audio, write_media

from avfewshot.errors import MediaError
from avfewshot.media.reader import ClipReader, read_clip


def with_stamps(path: Path, stamps: list[float], size=(96, 64)) -> Path:
    """Pictures at any times, however far apart."""
    with av.open(str(path), "w") as out:
        video = out.add_stream("mjpeg", rate=1)
        video.width, video.height, video.pix_fmt = *size, "yuvj420p"
        encoder = av.CodecContext.create("mjpeg", "w")
        encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = *size, "yuvj420p", Fraction(1, 1000)
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), "rgb24").reformat(format="yuvj420p")
            frame.pts = number
            for packet in encoder.encode(frame):
                packet.stream, packet.time_base = video, Fraction(1, 1000)
                packet.pts = packet.dts = round(stamp * 1000)
                out.mux(packet)
    return path


def numbers(path: Path) -> list[int]:
    return [counter(frame.permute(1, 2, 0).numpy()) for frame in read_clip(path, frame_size=None).frames]


def length_and_jump(path: Path, word: str = "timestamps jump") -> tuple[int, bool]:
    """Segments, and whether a warning about the timestamps is given; everything is read as well."""
    with ClipReader(path, frame_size=None) as reader:
        assert reader.read().num_segments == reader.info.num_segments
        return reader.info.num_segments, any(word in warning for warning in reader.info.warnings)


@pytest.mark.parametrize("far", [1e9, 1e6, 11_933.0, 100.0])
def test_a_picture_that_claims_to_be_far_away_adds_no_seconds(tmp_path, far):
    segments, jumps = length_and_jump(with_stamps(tmp_path / "bomb.mkv", [0.0, 0.5, 1.0, 1.5, far]))
    assert segments <= 4
    assert jumps


def test_a_single_wrong_stamp_moves_nothing_behind_it(tmp_path):
    path = write_media(tmp_path / "one.flv", seconds=4.0)
    data, at, pictures = bytearray(path.read_bytes()), 13, 0
    while at < len(data):
        pictures += data[at] == 9
        if pictures == 20 and data[at] == 9:
            data[at + 7] = 1  # the highest byte of its time in milliseconds: 16,777 s
        at += 11 + int.from_bytes(data[at + 1 : at + 4], "big") + 4
    path.write_bytes(data)
    assert length_and_jump(path, "timestamps jump by +16") == (4, True)
    assert numbers(path) == [5, 15, 25, 35]


def test_slides_that_stand_for_long_are_believed_and_many_small_jumps_do_not_make_a_long_file(tmp_path):
    slides = length_and_jump(with_stamps(tmp_path / "slides.mkv", [0.0, 30.0, 60.0, 61.0]), "timestamps")
    assert slides in ((61, False), (62, False))
    many = with_stamps(tmp_path / "many.mkv", [59.0 * number for number in range(300)])
    with ClipReader(many) as reader:
        assert reader.info.num_segments < 1000


def test_joined_streams_whose_clock_starts_anew_are_read_to_their_end(tmp_path):
    sound = {"audio": tone(3.0, frequency=300), "audio_codec": "mp2"}
    one = write_media(tmp_path / "one.ts", seconds=3.0, **sound)
    path = tmp_path / "joined.ts"
    path.write_bytes(one.read_bytes() * 3)
    with ClipReader(path, frame_size=None) as reader:
        assert reader.info.num_segments == 9
        assert any("timestamps jump" in warning for warning in reader.info.warnings)
        clip = reader.read()
    seen = [counter(frame.permute(1, 2, 0).numpy()) for frame in clip.frames]
    assert all(abs(a - b) <= 2 for a, b in zip(seen, [5, 15, 25] * 3, strict=True)), seen
    loud = clip.waveform.view(9, -1).square().mean(1)
    assert (loud > 0.05).all()


@pytest.mark.parametrize("suffix", ["mp4", "mov", "flv", "wav"])
def test_a_file_joined_behind_another_is_said_where_it_is_not_read(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    write_audio(path, tone(2.0)) if suffix == "wav" else write_media(path, seconds=2.0, audio=tone(2.0))
    assert not any("joined" in warning for warning in read_clip(path).warnings)
    path.write_bytes(2 * path.read_bytes())
    assert any("another file is joined behind it" in warning for warning in read_clip(path).warnings)


@pytest.mark.parametrize(("suffix", "codec"), [("aac", "aac"), ("mp3", "libmp3lame")])
def test_joined_sound_of_another_rate_is_heard_at_its_pitch(tmp_path, suffix, codec):
    parts = [write_audio(tmp_path / f"{rate}.{suffix}", tone(2.0, rate), rate, codec) for rate in (48_000, 44_100)]
    joined = tmp_path / f"joined.{suffix}"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    wave = read_clip(joined).waveform.numpy()
    for second in (0.5, 1.5, 2.5, 3.5):
        piece = wave[int(second * 48_000) :][:24_000] * np.hanning(24_000)
        assert abs(2 * np.abs(np.fft.rfft(piece)).argmax() - (440 + 80 * (second % 2 + 0.25))) < 20


def test_sound_that_is_said_to_come_a_day_later_follows_the_pictures(tmp_path):
    path = write_media(tmp_path / "late.mkv", seconds=3.0, audio=tone(3.0), audio_start=100_000.0)
    segments, jumps = length_and_jump(path)
    assert segments <= 7
    assert jumps
    assert read_clip(path, modality="audio").waveform.abs().max() > 0.3


@pytest.mark.parametrize("what", ["timescale 0", "timescale 1", "stts"])
def test_an_mp4_with_an_absurd_clock_is_short(tmp_path, what):
    path = write_media(tmp_path / "clock.mp4", seconds=3.0)
    data = bytearray(path.read_bytes())
    if what == "stts":
        at = data.index(b"stts") + 16  # of its first entry, the ticks of a picture
        data[at : at + 4] = struct.pack(">I", 1 << 31)
    else:
        at = data.index(b"mdhd") + 16
        data[at : at + 4] = struct.pack(">I", int(what[-1]))
    path.write_bytes(data)
    try:
        with ClipReader(path) as reader:
            assert reader.info.num_segments <= 60
    except MediaError:
        pass  # named, which is right, too


def test_a_transport_stream_with_flipped_bits_does_not_become_hours(tmp_path):
    path = write_media(tmp_path / "clean.ts", seconds=4.0, audio=tone(4.0), audio_codec="mp2")
    for seed in range(6):
        random = np.random.default_rng(seed)
        data = np.frombuffer(path.read_bytes(), np.uint8).copy()
        places = random.choice(len(data), len(data) // 100, replace=False)
        data[places] ^= 1 << random.integers(0, 8, len(places)).astype(np.uint8)
        damaged = tmp_path / f"flipped-{seed}.ts"
        damaged.write_bytes(data.tobytes())
        try:
            with ClipReader(damaged) as reader:
                assert reader.info.num_segments < 120
                reader.read()
        except MediaError:
            pass


@pytest.mark.parametrize("rate", [1, 100, 10_000_019, 1_000_000_000, 2_147_483_647])
def test_a_rate_beyond_all_reason_is_named(tmp_path, rate):
    path = write_audio(tmp_path / "rate.wav", tone(1.0))
    data = bytearray(path.read_bytes())
    data[24:32] = struct.pack("<II", rate, 2 * rate & 0xFFFFFFFF)
    path.write_bytes(data)
    with pytest.raises(MediaError, match=rf"sampling rate of {rate:,} Hz"):
        read_clip(path)


def test_a_guess_of_the_length_is_no_sign_of_truncation(tmp_path):
    """Of raw AAC FFmpeg guesses the length from its first bytes, which here are silence."""
    sound = np.random.default_rng(0).normal(0, 0.1, (1, 30 * 48_000)).astype(np.float32)
    sound[:, : 10 * 48_000] = 0
    write_audio(tmp_path / "a.aac", sound, codec="aac")
    assert read_clip(tmp_path / "a.aac", frame_size=8).warnings == ("no video track",)


def test_subtitles_that_last_longer_than_the_film_are_no_sign_of_truncation(tmp_path):
    film = write_media(tmp_path / "film.mkv", seconds=6.0, audio=tone(6.0))
    lines, both = tmp_path / "lines.srt", tmp_path / "a.mkv"
    lines.write_text("1\n00:00:01,000 --> 00:10:00,000\nThe end.\n")
    with av.open(str(film)) as a, av.open(str(lines)) as b, av.open(str(both), "w") as out:
        streams = {stream: out.add_stream_from_template(stream) for stream in (*a.streams, *b.streams)}
        for packet in (*a.demux(), *b.demux()):
            if packet.dts is not None:
                packet.stream = streams[packet.stream]
                out.mux(packet)
    assert read_clip(both, frame_size=8).warnings == ()
    both.write_bytes(both.read_bytes()[: both.stat().st_size // 3])
    assert any("should last 6.0 s" in warning for warning in read_clip(both, frame_size=8).warnings)
