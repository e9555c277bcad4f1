"""What a clip tells about its file, and one clear reason for each file that cannot be read."""

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_factory import (
    counter,
    damaged,
    make_video,
    picture,
    tone,
    truncated,
    write_audio,
    write_cover_art,
    write_media,
)
from PIL import Image

from avfewshot.errors import MediaError, UsageError
from avfewshot.media import container
from avfewshot.media import frames as frames_module
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.frames import PyavFrames
from avfewshot.media.picture import fit
from avfewshot.media.reader import ClipReader, read_clip
from avfewshot.media.stream import read_isolated

REAL_CLIP = Path(__file__).parents[2] / "shared/data/media/BjCEufrlXm4_20_30.mp4"
HAS_DECORD = importlib.util.find_spec("decord") is not None
needs_decord = pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("reader")


@pytest.fixture(scope="module")
def ten_seconds(folder) -> dict[str, Path]:
    """Ten seconds in several formats; the mp4 can be played before it has arrived whole."""
    options = {"container_options": {"movflags": "+faststart"}}
    videos = [
        write_media(folder / f"ten.{kind}", seconds=10.0, audio=tone(10.0), **(options if kind == "mp4" else {}))
        for kind in ("mp4", "mkv", "ts")
    ]
    sounds = [write_audio(folder / f"ten.{kind}", tone(10.0)) for kind in ("mp3", "wav", "flac")]
    return {path.suffix[1:]: path for path in (*videos, *sounds)}


# Clips.


def test_a_clip_knows_its_segments():
    frames = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    waveform = torch.arange(3.0 * SAMPLE_RATE)
    clip = Clip(Path("a.mp4"), 3.0, 0, frames, waveform)
    assert (clip.num_segments, clip.last) == (3, True)
    assert torch.equal(clip.audio_segments[1], waveform[SAMPLE_RATE : 2 * SAMPLE_RATE])
    assert Clip(Path("a.wav"), 3.0, 0, None, waveform).num_segments == 3
    assert Clip(Path("a.mp4"), 3.0, 0, frames, None).audio_segments is None
    with pytest.raises(ValueError, match="needs frames or a waveform"):
        Clip(Path("a.mp4"), 1.0, 0, None, None)
    with pytest.raises(ValueError, match="must have 2 x 48000 samples"):
        Clip(Path("a.mp4"), 2.0, 0, frames[:2], torch.zeros(SAMPLE_RATE))


# Reading.


def test_both_modalities_are_read_or_one_or_a_stretch(folder):
    path = make_video(folder, "plain.mp4")
    with ClipReader(path, frame_size=64) as reader:
        info = reader.info
        assert (info.num_segments, info.has_video, info.has_audio, info.warnings) == (3, True, True, ())
        assert info.duration == pytest.approx(3.05, abs=0.03)
        whole = reader.read()
        part = reader.read(1, 2)
        assert (part.start, part.num_segments, part.last) == (1, 1, False)
        assert part.duration == whole.duration
        assert torch.equal(part.frames[0], whole.frames[1])
        assert torch.equal(part.waveform, whole.audio_segments[1])
        assert reader.read(2, 3).last
        for start, stop in ((0, 0), (2, 1), (-1, 1), (0, 4), (3, 4)):
            with pytest.raises(ValueError, match=r"has the segments \[0, 3\)"):
                reader.read(start, stop)
    assert (whole.frames.shape, whole.frames.dtype) == ((3, 3, 64, 64), torch.uint8)
    assert (whole.waveform.shape, whole.waveform.dtype) == ((3 * SAMPLE_RATE,), torch.float32)
    assert (whole.path, whole.start, whole.warnings, whole.last) == (info.path, 0, (), True)
    seen = read_clip(path, modality="visual", frame_size=16)
    assert (seen.frames.shape, seen.waveform, seen.warnings) == ((3, 3, 16, 16), None, ())
    heard = read_clip(path, modality="audio")
    assert (heard.frames, heard.waveform.shape) == (None, (3 * SAMPLE_RATE,))


def test_length_is_rounded_to_the_nearest_second_and_at_least_one(tmp_path):
    for seconds, segments in ((0.1, 1), (0.4, 1), (1.4, 1), (1.5, 2), (2.5, 3)):
        sound = write_audio(tmp_path / "a.wav", tone(seconds, 8000), 8000)
        film = write_media(tmp_path / "a.mp4", seconds=seconds, size=(32, 32))
        assert [read_clip(path, frame_size=8).num_segments for path in (sound, film)] == [segments] * 2, seconds


@pytest.mark.parametrize("name", ["sound.wav", "sound.flac", "sound.mp3", "sound.m4a"])
def test_sound_alone_gives_sound_and_a_warning(tmp_path, name):
    path = write_audio(tmp_path / name, tone(2.0, 16000), 16000)
    clip = read_clip(path)
    assert clip.waveform.abs().max() > 0.3
    assert (clip.frames, clip.warnings) == (None, ("no video track",))
    assert read_clip(path, modality="audio").warnings == ()
    assert reason(path, modality="visual") == "has no video track"
    if name in ("sound.mp3", "sound.m4a"):  # cover art is no video
        clip = read_clip(write_cover_art(path, tone(2.0, 44100), 44100))
        assert (clip.frames, clip.num_segments, clip.warnings) == (None, 2, ("no video track",))


def test_warnings_concern_what_was_asked_for(folder):
    path = make_video(folder, "silent.mp4")
    clip = read_clip(path, frame_size=16)
    assert (clip.waveform, clip.warnings) == (None, ("no audio track",))
    assert read_clip(path, frame_size=16, modality="visual").warnings == ()
    assert reason(path, modality="audio") == "has no audio track"
    path = make_video(folder, "short-audio.mp4")
    assert any(w.startswith("audio ends at 1.0 s") for w in read_clip(path, frame_size=8).warnings)
    assert read_clip(path, frame_size=8, modality="visual").warnings == ()
    path = make_video(folder, "long-audio.mp4")
    assert any(w.startswith("video ends at 1.") for w in read_clip(path, frame_size=8).warnings)
    assert read_clip(path, modality="audio").warnings == ()


def test_a_track_that_starts_much_later_is_said(tmp_path):
    late = write_media(tmp_path / "late.mkv", seconds=1.0, video_start=2.05, audio=tone(3.0))
    clip = read_clip(late, frame_size=None)
    assert any("video starts at 2." in warning for warning in clip.warnings)
    assert [counter(image.permute(1, 2, 0).numpy()) for image in clip.frames] == [0, 0, 4]


@pytest.mark.skipif(os.name == "nt", reason="names that Windows does not allow")
def test_odd_file_names_are_plain_names(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("caf\udce9.mp4", "ünï 漢.mp4", "-x.mp4", "a:b.mp4", "concat:x|y.mp4", "n%03d'[1]*.mp4"):
        Path(name).write_bytes(make_video(folder, "short.mp4").read_bytes())
        assert read_clip(name, frame_size=8).num_segments == 1


# Options.


def test_unknown_options_list_the_valid_ones(folder):
    for options, message in (
        ({"modality": "both"}, r"modality 'both'.*av, visual, audio"),
        ({"frame_backend": "opencv"}, r"backend 'opencv'.*auto, decord, pyav"),
        ({"frame_size": 0}, "at least 1, not 0"),
    ):
        with pytest.raises(UsageError, match=message):
            ClipReader(make_video(folder, "short.mp4"), **options)


def test_without_decord_auto_works_and_decord_is_a_clear_error(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)  # import decord raises ImportError
    path = make_video(folder, "short.mp4")
    with ClipReader(path) as reader:
        assert reader.frame_backend == "pyav"
        assert reader.read().warnings == ("no audio track",)
    with pytest.raises(UsageError, match=r"'decord' cannot be used.*'auto' or 'pyav'"):
        ClipReader(path, frame_backend="decord")


@needs_decord
def test_when_decord_fails_on_the_way_pyav_goes_on(folder, monkeypatch):
    path = make_video(folder, "plain.mp4")
    expected = read_clip(path, frame_size=32).frames
    with ClipReader(path, frame_size=32, frame_backend="decord") as reader:
        assert reader.frame_backend == "decord"
        monkeypatch.setattr(frames_module, "_BATCH", 1)
        decode, calls = reader._frames._decode, []

        def fail_second(numbers):
            calls.append(numbers)
            if len(calls) > 1:
                raise frames_module.DecordUnfitError("decord cannot decode a part of it")
            return decode(numbers)

        monkeypatch.setattr(reader._frames, "_decode", fail_second)
        clip = reader.read()
        assert reader.frame_backend == "pyav"
    assert torch.equal(clip.frames, expected)
    assert clip.warnings == ("decord cannot decode a part of it: its pictures were decoded by PyAV",)


# Files that cannot be read.


def reason(path: Path | str, **options) -> str:
    with pytest.raises(MediaError) as caught:
        read_clip(path, **options)
    assert caught.value.path == str(path)
    assert "\n" not in str(caught.value)
    return caught.value.reason


def test_missing_files_folders_and_the_like(tmp_path):
    assert reason(tmp_path / "missing.mp4") == "no such file"
    assert reason(tmp_path) == "is a folder, not a file"
    assert reason("null\0byte.mp4") == "cannot be opened: embedded null byte"
    (tmp_path / "empty.mp4").touch()
    assert reason(tmp_path / "empty.mp4") == "is empty (0 bytes)"
    if os.name == "posix":
        os.mkfifo(tmp_path / "pipe.mp4")
        assert reason(tmp_path / "pipe.mp4") == "is not a regular file"  # opening it would wait for ever


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="needs a user whom permissions bind")
def test_unreadable_files(tmp_path):
    path = write_audio(tmp_path / "secret.wav", tone(0.5))
    path.chmod(0)
    assert reason(path) == "cannot be opened: permission denied"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("notes.mp4", b"these are notes\nof several lines\n" * 40),
        ("notes.txt", b"these are notes\nof several lines\n" * 40),
        ("table.mp4", b"[1, 2, 3]" * 300),
        ("zeros.mp4", bytes(50_000)),
        ("noise.mp4", np.random.default_rng(1).bytes(50_000)),
        ("noise.mp3", np.random.default_rng(2).bytes(50_000)),
        ("page.webm", b"<!DOCTYPE html><html><body>404 Not Found</body></html>"),
        ("lines.srt", b"1\n00:00:01,000 --> 00:00:02,000\nHello\n"),
    ],
)
def test_files_that_are_not_media(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert re.search("not a media file|nothing in it can be decoded", reason(tmp_path / name))


def test_playlists_do_not_open_other_files(tmp_path):
    target = write_audio(tmp_path / "target.wav", tone(1.0))
    lists = {
        "list.m3u8": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{target}\n#EXT-X-ENDLIST\n",
        "list.mp4": f"ffconcat version 1.0\nfile '{target}'\n",
        "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 5004 RTP/AVP 0\n",
    }
    for name, content in lists.items():
        (tmp_path / name).write_text(content)
        assert "not a media file" in reason(tmp_path / name)


def test_an_mp4_whose_end_is_missing_is_called_truncated_and_one_with_bytes_behind_its_end_not(folder, tmp_path):
    path = make_video(folder, "plain.mp4")
    for keep in (0.02, 0.5, 0.95):
        assert "truncated" in reason(truncated(path, tmp_path / f"cut-{keep}.mp4", keep))
    (tmp_path / "appended.mp4").write_bytes(path.read_bytes() + b"\xff\xff\xff\xffJUNK and more")
    assert read_clip(tmp_path / "appended.mp4", frame_size=8).warnings == ()


@pytest.mark.parametrize(
    ("backend", "kinds"),
    [("pyav", "mp4 mkv mp3 wav flac"), pytest.param("decord", "mp4 mkv", marks=needs_decord)],  # sound is not decord's
)
def test_what_has_arrived_of_a_truncated_file_is_read_with_a_warning(ten_seconds, tmp_path, backend, kinds, capfd):
    for kind in kinds.split():
        source = ten_seconds[kind]
        clip = read_clip(truncated(source, tmp_path / source.name, 0.55), frame_size=32, frame_backend=backend)
        assert 4 <= clip.num_segments <= 7
        assert any("truncated" in warning for warning in clip.warnings)
        assert clip.waveform[: SAMPLE_RATE * 4].abs().max() > 0.3
        if kind in {"mp4", "mkv"}:
            assert torch.equal(clip.frames[:4], read_clip(source, frame_size=32).frames[:4])
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("backend", "kinds"), [("pyav", "mp4 mkv ts flac"), pytest.param("decord", "mp4 mkv", marks=needs_decord)]
)
def test_what_is_whole_of_a_damaged_file_is_read_with_a_warning(ten_seconds, tmp_path, backend, kinds, capfd):
    for kind in kinds.split():
        source = ten_seconds[kind]
        path = damaged(source, tmp_path / source.name, 0.4, 0.6)
        clip, whole = read_clip(path, frame_size=32, frame_backend=backend), read_clip(source, frame_size=32)
        assert clip.num_segments == 10
        assert [w for w in clip.warnings if "damaged" in w or "missing" in w or "no pictures" in w], kind
        for part in (slice(0, 3), slice(8, 10)):
            assert (clip.audio_segments[part] - whole.audio_segments[part]).abs().mean() < 0.01
            if clip.frames is not None:
                assert torch.equal(clip.frames[part], whole.frames[part])
    assert capfd.readouterr() == ("", "")


def test_a_file_of_which_nothing_is_whole_is_one_error(ten_seconds, tmp_path, capfd):
    path = tmp_path / "header.mp4"
    data = bytearray(ten_seconds["mp4"].read_bytes())
    start = data.index(b"mdat") + 4
    data[start:] = b"\xff" * (len(data) - start)  # noise may now and then pass for sound
    path.write_bytes(data)
    for modality in ("av", "audio", "visual"):
        assert reason(path, frame_size=16, modality=modality) == "is damaged: nothing in it can be decoded"
    assert capfd.readouterr() == ("", "")


def test_one_dead_track_leaves_the_other(folder, tmp_path):
    source = write_media(folder / "two-tracks.mp4", seconds=3.0, audio=tone(3.0), audio_codec="libmp3lame")
    with av.open(str(source)) as container:
        spans = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    data = bytearray(source.read_bytes())
    for position, size in spans:
        data[position : position + size] = bytes(size)
    path = tmp_path / "blind.mp4"
    path.write_bytes(data)
    clip = read_clip(path)
    assert clip.frames is None
    assert clip.waveform.abs().max() > 0.3
    assert clip.warnings == ("the video track is damaged: nothing in it can be decoded",)
    assert reason(path, modality="visual") == "is damaged: nothing in it can be decoded"


def test_an_image_is_a_clip_of_one_segment_and_animated_webp_named_for_what_it_is(tmp_path):
    pictures = [Image.fromarray(picture(number)) for number in range(3)]
    pictures[0].save(tmp_path / "still.png")
    clip = read_clip(tmp_path / "still.png", frame_size=None)
    assert clip.num_segments == 1
    assert np.array_equal(clip.frames[0].permute(1, 2, 0).numpy(), picture(0))
    pictures[0].save(tmp_path / "a.webp", save_all=True, append_images=pictures[1:], duration=1000)
    assert reason(tmp_path / "a.webp") == "is an animated WebP picture, which this FFmpeg cannot decode."


def test_encrypted_tracks_are_named(tmp_path):
    options = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": "76a6c65c5ea762046bd749a2e632ccbb"}
    options["encryption_kid"] = "a7e61c373e219033c21091fa607bf3b8"
    path = write_media(tmp_path / "a.mp4", audio=tone(2.0), container_options=options)
    assert reason(path) == "is encrypted, and cannot be decoded without its key"


# The rest of the program.


@needs_decord
def test_decord_is_imported_when_needed_after_torch_and_keeps_quiet(folder):
    path = make_video(folder, "plain.mp4")
    code = (
        "import sys; from avfewshot.media.reader import read_clip; early = 'decord' in sys.modules\n"
        f"clip = read_clip({str(path)!r}, frame_backend='decord'); print(early, len(clip.frames), clip.warnings)"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False 3 ()\n", "")


@pytest.mark.skipif(not REAL_CLIP.exists(), reason=f"{REAL_CLIP} is not there")
def test_a_real_clip_has_ten_segments_of_sight_and_sound():
    clip = read_clip(REAL_CLIP)
    assert clip.frames.shape == (10, 3, 224, 224)
    assert clip.audio_segments.shape == (10, SAMPLE_RATE)
    assert clip.duration == pytest.approx(10.03, abs=0.01)
    assert clip.audio_segments.abs().amax(1).min() > 0.01
    assert clip.warnings == ()


@pytest.mark.parametrize("size", [(96, 64), (64, 96)])
def test_pictures_beyond_the_bound_are_named_and_the_sound_is_kept(tmp_path, monkeypatch, size):
    monkeypatch.setattr(container, "DECODED_PIXELS", 96 * 64 - 1)
    path = write_media(tmp_path / "huge.mkv", seconds=0.2, size=size)
    with pytest.raises(MediaError, match=f"pictures of {size[0]:,} x {size[1]:,} pixels are not decoded"):
        read_clip(path)
    clip = read_clip(write_media(tmp_path / "both.mkv", seconds=0.2, size=size, audio=tone(1.0)))
    assert clip.frames is None
    assert any("are not decoded" in warning for warning in clip.warnings)


X265 = {"preset": "ultrafast", "x265-params": "log-level=none:bframes=0"}  # with B-frames the first dts is chance
LARGE = (
    ("libx264", "mp4", (7680, 4320), "yuv420p", {"preset": "ultrafast"}),
    ("libx265", "mkv", (7680, 4320), "yuv420p10le", X265),
    ("libsvtav1", "webm", (7680, 4320), "yuv420p", {"preset": "12"}),
    ("mjpeg", "mkv", (15360, 8640), "yuvj420p", {}),
    ("mjpeg", "mov", (4096, 30720), "yuvj444p", {}),
)


def test_pictures_of_8k_and_16k_are_decoded_within_the_memory_of_a_file(tmp_path):
    small = picture(5, 96, 64)
    for number, (codec, suffix, size, pix_fmt, options) in enumerate(LARGE):
        path = tmp_path / f"{number}.{suffix}"
        with av.open(str(path), "w") as out:
            stream = out.add_stream(codec, rate=10, options=options)
            (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
            stream.codec_context.thread_count = 1
            frame = av.VideoFrame.from_ndarray(small, "rgb24").reformat(*size, pix_fmt, interpolation="BICUBIC")
            out.mux([*stream.encode(frame), *stream.encode()])
        if codec == "libsvtav1":  # as root it gives its process real-time priority
            os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        expected = Image.fromarray(small).resize(size if size[1] < 4400 else (size[0] // 8, size[1] // 8))
        seen = read_isolated(path, frame_size=64).frames[0].numpy()  # one process after another: what is left counts
        assert np.abs(seen.astype(int) - fit(np.asarray(expected), 64)).mean() < 4, codec


def test_sound_is_kept_where_pictures_need_too_much_memory(tmp_path, monkeypatch):
    path = write_media(tmp_path / "both.mkv", seconds=0.2, audio=tone(1.0))

    def exhausted(*_):
        raise MemoryError

    monkeypatch.setattr(PyavFrames, "at", exhausted)
    clip = read_clip(path)
    assert (clip.frames, clip.waveform is not None) == (None, True)
    assert any("needs more memory" in warning for warning in clip.warnings)
    with pytest.raises(MemoryError):
        read_clip(path, modality="visual")
