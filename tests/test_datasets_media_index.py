import os
from pathlib import Path

import pytest
from dataset_files import AVE_FILES, touch, write_files

from avfewshot.data.dataset import Sample
from avfewshot.data.load import load_dataset
from avfewshot.data.media_index import MediaIndex
from avfewshot.errors import UsageError

LLP_SAMPLE = Sample("aaaaaaaaaaa_20_30", (0,), "train", youtube_id="aaaaaaaaaaa", start=20.0, end=30.0)
DECIMAL_SAMPLE = Sample("AP0061o0Nvk_101.8_111.8", (0,), "train", youtube_id="AP0061o0Nvk", start=101.8, end=111.8)
VGG_SAMPLE = Sample("aaaaaaaaaaa_000020", (0,), "train", youtube_id="aaaaaaaaaaa", start=20.0, end=30.0)
AVE_SAMPLE = Sample("-aaaaaaaaaa", (1,), "test", youtube_id="-aaaaaaaaaa")
NUMBERED_SAMPLE = Sample("000012", (0,), "train")


def find(tmp_path: Path, files: list[str], sample: Sample, classes: tuple[str, ...] = ()) -> str | None:
    touch(tmp_path, files)
    path = MediaIndex([tmp_path], {sample.youtube_id} - {None}).find(sample, classes).path
    return path and path.relative_to(tmp_path).as_posix()


KNOWN = {
    LLP_SAMPLE: [
        "aaaaaaaaaaa_20_30.mp4", "aaaaaaaaaaa.mp4", "videos/train/aaaaaaaaaaa_20.0_30.0.MKV",
        "aaaaaaaaaaa_000020.webm", "audio/aaaaaaaaaaa_20_30.wav",
    ],
    DECIMAL_SAMPLE: [
        "AP0061o0Nvk_101.8_111.8.mp4", "AP0061o0Nvk_101.80_111.80.mp4", "AP0061o0Nvk.mp4",
        "AP0061o0Nvk_101800_111800.mp4",
    ],
    VGG_SAMPLE: [
        "aaaaaaaaaaa_000020.mp4", "aaaaaaaaaaa_20_30.mp4", "some class/aaaaaaaaaaa.mp4",
        "aaaaaaaaaaa_20000_30000.mp4", "aaaaaaaaaaa_20-30.mp4", "Yaaaaaaaaaaa.mp4", "Yaaaaaaaaaaa_20_30.wav",
        "A horse (1080p) [aaaaaaaaaaa].mp4", "A horse-aaaaaaaaaaa.mkv", "A horse [aaaaaaaaaaa]_20.0_30.0.mp4",
    ],
    AVE_SAMPLE: [
        "AVE/-aaaaaaaaaa.mp4", "-aaaaaaaaaa_000030.mp4", "-aaaaaaaaaa_30_40.mp4", "Title [-aaaaaaaaaa].mp4",
    ],
    NUMBERED_SAMPLE: ["000012.mp4", "0000000012.mp4", "12.mp4"],
}  # fmt: skip
OTHER = {
    LLP_SAMPLE: [
        "aaaaaaaaaaa_40_50.mp4", "aaaaaaaaaab_20_30.mp4", "aaaaaaaaaaa_40000_50000.mp4",
        "Title [aaaaaaaaaaa]_40_50.mp4", "xaaaaaaaaaaa.mp4", "aaaaaaaaaaaa_20_30.mp4", "AAAAAAAAAAA_20_30.mp4",
        "aaaaaaaaaaa_20_30.txt", "aaaaaaaaaaa_20_30.mp4.part", ".cache/aaaaaaaaaaa_20_30.mp4",
        "._aaaaaaaaaaa_20_30.mp4",
    ],
    AVE_SAMPLE: ["x-aaaaaaaaaa.mp4"],
    NUMBERED_SAMPLE: ["13.mp4"],
}  # fmt: skip


@pytest.mark.parametrize(("table", "known"), [(KNOWN, True), (OTHER, False)])
def test_the_usual_layouts_are_known_and_other_files_not_taken(tmp_path, table, known):
    cases = [(sample, file) for sample, files in table.items() for file in files]
    for number, (sample, file) in enumerate(cases):
        assert find(tmp_path / str(number), [file], sample) == (file if known else None), file


@pytest.mark.parametrize(
    ("sample", "files"),
    [
        (LLP_SAMPLE, "c/aaaaaaaaaaa_20_30.mp4 aaaaaaaaaaa.mp4 b/aaaaaaaaaaa_000020.mp4 aaaaaaaaaaa_40_50.mp4"),
        (AVE_SAMPLE, "x/-aaaaaaaaaa.mp4 -aaaaaaaaaa.wav"),
        (AVE_SAMPLE, "test/-aaaaaaaaaa.mp4 train/-aaaaaaaaaa.mp4"),
        (AVE_SAMPLE, "Frying_(food)/-aaaaaaaaaa.mp4 church_bell/-aaaaaaaaaa.mp4"),
    ],
)
def test_the_most_telling_name_wins_video_before_audio_and_the_folder_of_the_split_or_class(tmp_path, sample, files):
    assert find(tmp_path, files.split(), sample, ("Church bell", "Frying (food)")) == files.split()[0]


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "disk", ["-aaaaaaaaaa.mp4"])
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "root" / "videos")
    os.symlink(tmp_path / "root", tmp_path / "disk" / "loop")
    index = MediaIndex([tmp_path / "root", tmp_path / "disk", tmp_path / "root"])
    assert len(index) == 1
    assert index.find(AVE_SAMPLE).path == tmp_path / "root" / "videos" / "-aaaaaaaaaa.mp4"


def test_coverage_is_reported_and_media_may_lie_elsewhere(tmp_path):
    write_files(tmp_path, AVE_FILES)
    dataset = load_dataset("ave", tmp_path)
    assert dataset.report.find("no-media").severity == "error"
    touch(tmp_path / "AVE", ["aaaaaaaaaaa.mp4", "-bbbbbbbbbb.mp4", "copy/-bbbbbbbbbb.mp4"])
    dataset = load_dataset("ave", tmp_path)
    assert [sample.id for sample in dataset.available()] == ["aaaaaaaaaaa", "-bbbbbbbbbb", "-bbbbbbbbbb"]
    assert [sample.id for sample in dataset.missing("val")] == ["fffffffffff", "ggggggggggg"]
    report = dataset.report
    assert report.find("missing-media").message == "6 of 9 clips have no media file; the others are used."
    assert report.find("splits-without-media").examples == ("val",)
    assert report.find("ambiguous-media").count == 2
    assert report.find("shared-media") is None  # one clip under two classes is no whole video
    assert dataset.samples[1].path == tmp_path / "AVE" / "-bbbbbbbbbb.mp4"
    touch(tmp_path / "disk", ["aaaaaaaaaaa.mp4"])
    write_files(tmp_path / "lists", AVE_FILES)
    assert len(load_dataset("ave_cls", tmp_path / "lists", media=[tmp_path / "disk"]).available()) == 1
    with pytest.raises(UsageError, match=r"media folder .*absent does not exist"):
        MediaIndex([tmp_path / "absent"])


def test_shared_files_and_names_that_nobody_knows_are_said(tmp_path):
    rows = "aaaaaaaaaaa,0,skiing,train\naaaaaaaaaaa,30,skiing,test\n"
    write_files(tmp_path / "shared", {"vggsound.csv": rows, "aaaaaaaaaaa.mp4": b"x"})
    report = load_dataset("vggsound", tmp_path / "shared").report
    assert report.find("shared-media").examples == ("aaaaaaaaaaa.mp4: aaaaaaaaaaa_000000, aaaaaaaaaaa_000030",)
    rows = "aaaaaaaaaa1,5,horse neighing,train\naaaaaaaaaa2,7,rain,test\n"
    write_files(tmp_path / "odd", {"vggsound.csv": rows, "video/clip one.mp4": b"x", "video/clip two.mp4": b"x"})
    message = load_dataset("vggsound", tmp_path / "odd").report.find("no-media").message
    for part in ("clip one.mp4, clip two.mp4", "aaaaaaaaaa1_000005", "Title [ID].mp4"):
        assert part in message


def test_of_two_starts_of_a_video_an_avel_list_means_the_larger(tmp_path):
    rows = "category,video_id,split\nhorse neighing,aaaaaaaaaa1,train\npeople marching,aaaaaaaaaa2,train\n"
    write_files(tmp_path, {"vggsound-avel40k.csv": rows})
    files = ("aaaaaaaaaa1_000017.mp4", "aaaaaaaaaa1_000046.mp4", "aaaaaaaaaa2_000005.mp4")
    touch(tmp_path / "video", files)
    dataset = load_dataset("vggsound40k", tmp_path)
    assert [s.path.name for s in dataset.samples] == list(files[1:])
    assert "larger start is used" in dataset.report.find("larger-start").message
    assert dataset.report.find("ambiguous-media") is None


def test_ids_that_are_paths_reach_no_file(tmp_path):
    touch(tmp_path, ["secret.mp4", "data/inside.mp4"])
    for name in ("../../secret", "/etc/hostname", "..", "x/../../secret", "a\\b", "\x1b[2Jaaaaaaa"):
        rows = f"Cat&{name}&good&0&10\nCat&eeeeeeeeeee&good&0&10\n"
        write_files(tmp_path / "data", AVE_FILES | {"trainSet.txt": rows})
        assert load_dataset("ave", tmp_path / "data").available() == (), name
