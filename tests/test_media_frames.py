"""Which pictures are picked, and that they are the same whatever decodes them."""

import importlib.util
import math
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media_factory import VIDEOS, counter, make_hour, make_video, picture, with_negative_times, write_media
from PIL import Image
from torchvision.transforms import CenterCrop, InterpolationMode, Resize

from avfewshot.media.frames import PyavFrames
from avfewshot.media.picture import fit, upright
from avfewshot.media.probe import probe
from avfewshot.media.reader import ClipReader, read_clip

REAL_CLIP = Path(__file__).parents[2] / "shared/data/media/BjCEufrlXm4_20_30.mp4"
HAS_DECORD = importlib.util.find_spec("decord") is not None
BACKENDS = ("pyav", "decord") if HAS_DECORD else ("pyav",)

# What decord renders otherwise, or cannot be trusted with.
LEFT_TO_PYAV = set(
    "plain.flv plain.ts plain.avi unreliable.avi raw.h264 odd-both.mkv odd-444.mp4 hevc.mp4 mpeg4-b.mp4 av1.mp4 "
    "refresh.mp4 ten-bit.mp4".split()
)
READ_IN_ANY_ORDER = set("plain.mp4 plain.mkv plain.ts plain.flv plain.avi raw.h264 slow.mp4".split())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("frames")


def native(path: Path, backend: str = "pyav") -> np.ndarray:
    """Pictures of all segments at their own size, [T, H, W, 3]."""
    return read_clip(path, frame_size=None, modality="visual", frame_backend=backend).frames.permute(0, 2, 3, 1).numpy()


def limits_of(found) -> list[int]:
    """The middles of all segments in ticks of the video."""
    base = found.video.time_base
    return [math.floor((found.zero + t + Fraction(1, 2)) / base) for t in range(found.num_segments)]


@pytest.mark.parametrize("name", VIDEOS)
def test_the_last_picture_before_the_middle_of_each_second_is_picked(folder, name):
    path = make_video(folder, name)
    whole = native(path)
    assert [counter(image) for image in whole] == VIDEOS[name][1]
    if name not in {"unreliable.avi", "raw.h264"}:  # leaving pictures out does not change those picked
        with av.open(str(path)) as container:
            everything = [(f.pts, f.to_ndarray(format="rgb24")) for f in container.decode(video=0)]
        everything.sort(key=lambda one: one[0])
        for limit, got in zip(limits_of(probe(path)), whole, strict=True):
            due = [image for pts, image in everything if pts <= limit] or [everything[0][1]]
            assert np.array_equal(got, due[-1])
    if name in READ_IN_ANY_ORDER:
        with ClipReader(path, frame_size=None, modality="visual") as reader:
            for segment in (2, 0, 1, 1, 0, 2):
                one = reader.read(segment, segment + 1).frames[0].permute(1, 2, 0).numpy()
                assert np.array_equal(one, whole[segment])
    if HAS_DECORD:
        with ClipReader(path, frame_size=None, frame_backend="decord", modality="visual") as reader:
            clip = reader.read()
            assert reader.frame_backend == ("pyav" if name in LEFT_TO_PYAV else "decord")
        assert any("PyAV" in warning for warning in clip.warnings) == (name in LEFT_TO_PYAV)
        assert np.array_equal(clip.frames.permute(0, 2, 3, 1).numpy(), whole)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_pictures_are_turned_upright(tmp_path, rotation, mirrored):
    path = write_media(tmp_path / "turned.mp4", seconds=1.0, rotation=rotation, mirrored=mirrored)
    with av.open(str(path)) as container:
        stored = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)][5]
    shown = np.rot90(stored, rotation // 90)[:, :: -1 if mirrored else 1]
    for backend in BACKENDS:
        assert np.array_equal(native(path, backend)[0], shown), backend


def test_a_matrix_that_is_no_quarter_turn_counts_as_upright():
    image, one, half = picture(5), 1 << 16, round((1 << 16) * 0.7071)
    turned = upright(image, np.array([0, -one, 0, one, 0, 0, 0, 0, 1 << 30], np.int32).tobytes())
    assert np.array_equal(turned, np.rot90(image))
    for odd in (
        [half, half, 0, -half, half, 0, 0, 0, 1 << 30],
        [one, one, 0, 0, one, 0, 0, 0, 1 << 30],
        [0] * 9,
        [one],
    ):
        assert np.array_equal(upright(image, np.array(odd, np.int32).tobytes()), image)


def test_times_before_zero_begin_the_timeline(tmp_path):
    options = {"avoid_negative_ts": "disabled", "use_editlist": "0"}
    path = write_media(tmp_path / "negative.mp4", seconds=3.0, container_options=options)
    with_negative_times(path, 1.3)
    with av.open(str(path)) as container:
        first = next(container.decode(video=0)).pts
    assert first < 0
    found = probe(path)
    assert found.zero == first * found.video.time_base
    for backend in BACKENDS:
        assert [counter(image) for image in native(path, backend)] == [5, 15, 25], backend


def test_colours_follow_the_file(folder):
    names = ("silent.mp4", "hd-colours.mp4", "full-range.mp4")
    plain, hd, full = (native(make_video(folder, name))[0].astype(int) for name in names)
    assert np.abs(plain - hd).mean() > 2
    assert np.abs(hd - full).mean() > 2


def test_a_picture_that_changes_its_size_on_the_way_is_brought_to_the_first_size(tmp_path):
    path, parts = tmp_path / "sizes.h264", ((96, 64), (64, 48))
    written = [write_media(tmp_path / f"{n}.h264", seconds=1.0, fps=25, size=size) for n, size in enumerate(parts)]
    path.write_bytes(b"".join(part.read_bytes() for part in written))
    assert native(path).shape == (2, 64, 96, 3)
    assert read_clip(path, frame_size=32).frames.shape == (2, 3, 32, 32)


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (97, 63), (224, 224), (225, 224), (64, 48), (301, 999)])
def test_resizing_equals_torchvision_to_the_bit(size):
    image = Image.fromarray(picture(5, *size))
    for side in (224, 64):
        expected = CenterCrop(side)(Resize(side, interpolation=InterpolationMode.BICUBIC)(image))
        got = fit(np.asarray(image), side)
        assert got.dtype == np.uint8
        assert np.array_equal(got.transpose(1, 2, 0), np.asarray(expected))


def test_frames_equal_what_open_clip_feeds_its_tower(folder):
    from open_clip.transform import image_transform

    path = make_video(folder, "plain.mp4")
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    transform = image_transform(224, is_train=False, mean=mean, std=std)
    expected = torch.stack([transform(Image.fromarray(image)) for image in native(path)])
    frames = read_clip(path).frames.float() / 255
    got = (frames - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("suffix", [".mkv", ".mov"])
def test_a_stretch_of_a_long_file_is_found_by_seeking(tmp_path, suffix):
    path = make_hour(tmp_path / f"hour{suffix}")
    found = probe(path)
    assert found.num_segments == 3600
    assert found.video.stamps is None  # the file was not read through
    frames = PyavFrames(path, found.video)
    limits = [math.floor((t + Fraction(1, 2)) / found.video.time_base) for t in range(3600)]
    assert [counter(image) for image in frames.at(limits[3000:3020])] == [750 + n // 4 for n in range(20)]
    assert frames.sent <= 20  # of 900: from a keyframe on, at most ten pictures early, and the reordered ones after
    assert [counter(image) for image in frames.at(limits[100:104])] == [25] * 4
    assert frames.sent <= frames.taken <= 60
    frames.close()


def test_pictures_that_nothing_depends_on_and_whole_groups_are_left_out(tmp_path):
    path = write_media(tmp_path / "groups.mp4", seconds=10.0, fps=30, codec_options={"g": "15", "bf": "3"})
    found = probe(path)
    frames = PyavFrames(path, found.video)
    assert len(list(frames.at(limits_of(found)))) == 10
    # Every half second begins a group, and the picture asked for stands right at its beginning.
    assert frames.sent < 150 < len(found.video.stamps) == 300
    frames.close()


@pytest.mark.skipif(not REAL_CLIP.exists(), reason=f"{REAL_CLIP} is not there")
@pytest.mark.skipif(not HAS_DECORD, reason="decord is not installed")
def test_a_real_clip_gives_the_same_pictures_by_both_backends():
    with ClipReader(REAL_CLIP, frame_backend="decord") as reader:
        by_decord = reader.read()
        assert reader.frame_backend == "decord"
    by_pyav = read_clip(REAL_CLIP, frame_backend="pyav")
    assert by_pyav.frames.shape == (10, 3, 224, 224)
    assert torch.equal(by_decord.frames, by_pyav.frames)
    assert by_pyav.warnings == by_decord.warnings == ()
