from __future__ import annotations

import os
from pathlib import Path

import pytest
from dataset_files import AVE_FILES, touch, write_files

from avfewshot.data.dataset import Sample
from avfewshot.data.load import MediaIndex, load_dataset
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


def cases(table):
    return [(sample, file) for sample, files in table.items() for file in files]


@pytest.mark.parametrize(("sample", "file"), cases(KNOWN))
def test_the_usual_layouts_are_known(tmp_path, sample, file):
    assert find(tmp_path, [file], sample) == file


@pytest.mark.parametrize(("sample", "file"), cases(OTHER))
def test_other_files_are_not_taken(tmp_path, sample, file):
    assert find(tmp_path, [file], sample) is None


def test_the_most_telling_name_wins(tmp_path):
    files = ["aaaaaaaaaaa.mp4", "b/aaaaaaaaaaa_000020.mp4", "c/aaaaaaaaaaa_20_30.mp4", "aaaaaaaaaaa_40_50.mp4"]
    assert find(tmp_path, files, LLP_SAMPLE) == "c/aaaaaaaaaaa_20_30.mp4"


def test_video_goes_before_audio_and_the_folder_of_the_split_or_class_before_others(tmp_path):
    classes = ("Church bell", "Frying (food)")
    for number, (other, file) in enumerate(
        [
            ("-aaaaaaaaaa.wav", "x/-aaaaaaaaaa.mp4"),
            ("train/-aaaaaaaaaa.mp4", "test/-aaaaaaaaaa.mp4"),
            ("Church bell/-aaaaaaaaaa.mp4", "Frying_(food)/-aaaaaaaaaa.mp4"),
        ]
    ):
        assert find(tmp_path / str(number), [other, file], AVE_SAMPLE, classes) == file


def test_links_are_followed_once(tmp_path):
    touch(tmp_path / "disk", ["-aaaaaaaaaa.mp4"])
    (tmp_path / "root").mkdir()
    os.symlink(tmp_path / "disk", tmp_path / "root" / "videos")
    os.symlink(tmp_path / "root", tmp_path / "disk" / "loop")
    index = MediaIndex([tmp_path / "root", tmp_path / "disk", tmp_path / "root"])
    assert len(index) == 1
    assert index.find(AVE_SAMPLE).path == tmp_path / "root" / "videos" / "-aaaaaaaaaa.mp4"


def test_a_missing_media_folder_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match=r"media folder .*absent does not exist"):
        MediaIndex([tmp_path / "absent"])


def test_coverage_is_reported(tmp_path):
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


def test_media_may_lie_elsewhere(tmp_path):
    write_files(tmp_path / "lists", AVE_FILES)
    touch(tmp_path / "disk", ["aaaaaaaaaaa.mp4"])
    dataset = load_dataset("ave_cls", tmp_path / "lists", media=[tmp_path / "disk"])
    assert len(dataset.available()) == 1


def test_clips_of_one_video_that_share_a_file_are_said(tmp_path):
    rows = "aaaaaaaaaaa,0,skiing,train\naaaaaaaaaaa,30,skiing,test\n"
    write_files(tmp_path, {"vggsound.csv": rows})
    touch(tmp_path, ["aaaaaaaaaaa.mp4"])
    dataset = load_dataset("vggsound", tmp_path)
    assert dataset.report.find("shared-media").examples == ("aaaaaaaaaaa.mp4: aaaaaaaaaaa_000000, aaaaaaaaaaa_000030",)


def test_names_that_nobody_knows_are_shown_beside_the_known_forms(tmp_path):
    write_files(tmp_path, {"vggsound.csv": "aaaaaaaaaa1,5,horse neighing,train\naaaaaaaaaa2,7,rain,test\n"})
    touch(tmp_path, ["video/clip one.mp4", "video/clip two.mp4"])
    message = load_dataset("vggsound", tmp_path).report.find("no-media").message
    for part in ("clip one.mp4, clip two.mp4", "aaaaaaaaaa1_000005", "Title [ID].mp4"):
        assert part in message


def test_of_two_starts_of_a_video_an_avel_list_means_the_larger(tmp_path):
    rows = "category,video_id,split\nhorse neighing,aaaaaaaaaa1,train\npeople marching,aaaaaaaaaa2,train\n"
    write_files(tmp_path, {"vggsound-avel40k.csv": rows})
    touch(
        tmp_path, [f"video/{name}.mp4" for name in ("aaaaaaaaaa1_000017", "aaaaaaaaaa1_000046", "aaaaaaaaaa2_000005")]
    )
    dataset = load_dataset("vggsound40k", tmp_path)
    assert [s.path.name for s in dataset.samples] == ["aaaaaaaaaa1_000046.mp4", "aaaaaaaaaa2_000005.mp4"]
    assert "larger start is used" in dataset.report.find("larger-start").message
    assert dataset.report.find("ambiguous-media") is None


@pytest.mark.parametrize("name", ["../../secret", "/etc/hostname", "..", "x/../../secret", "a\\b", "\x1b[2Jaaaaaaa"])
def test_ids_that_are_paths_reach_no_file(tmp_path, name):
    touch(tmp_path, ["secret.mp4", "data/inside.mp4"])
    write_files(tmp_path / "data", AVE_FILES | {"trainSet.txt": f"Cat&{name}&good&0&10\nCat&eeeeeeeeeee&good&0&10\n"})
    dataset = load_dataset("ave", tmp_path / "data")
    assert dataset.available() == ()
