from __future__ import annotations

import pytest
from dataset_files import touch, write_description, write_files

from avfewshot.data.folder import load_folder
from avfewshot.errors import DataError, UsageError


def clips(name: str, count: int) -> list[str]:
    return [f"{name}/{number:03d}.mp4" for number in range(count)]


def test_class_folders_become_classes(tmp_path):
    touch(tmp_path, [*clips("dog_barking", 5), *clips("Rain", 5), "Rain/sub/folder/deep.mkv", ".git/x.mp4"])
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("dog_barking", "Rain")
    assert dataset.wordings == ("dog barking", "rain")
    assert len(dataset.samples) == 11
    assert dataset.missing() == ()
    assert "Rain/sub/folder/deep.mkv" in {sample.id for sample in dataset.samples}
    assert all(sample.path.is_file() for sample in dataset.samples)


def test_a_drawn_split_is_stratified_seeded_and_leaves_nothing_out(tmp_path):
    touch(tmp_path, [*clips("a", 20), *clips("b", 5), *clips("c", 2), *clips("d", 1)])
    dataset = load_folder(tmp_path, seed=3)
    table = {
        name: [sum(s.label == label for s in dataset.split(split)) for split in ("train", "val", "test")]
        for label, name in enumerate(dataset.classes)
    }
    assert table == {"a": [12, 4, 4], "b": [3, 1, 1], "c": [1, 0, 1], "d": [1, 0, 0]}
    assert load_folder(tmp_path, seed=3).samples == dataset.samples
    assert load_folder(tmp_path, seed=4).samples != dataset.samples
    assert "seed 3: 20 % for test, 20 % for val" in dataset.report.find("drawn-splits").message


def test_most_clips_stay_in_their_split_when_others_are_added(tmp_path):
    touch(tmp_path, [*clips("a", 50), *clips("b", 50)])
    before = {sample.id: sample.split for sample in load_folder(tmp_path).samples}
    touch(tmp_path, ["a/new.mp4", "b/new.mp4"])
    after = {sample.id: sample.split for sample in load_folder(tmp_path).samples}
    assert sum(before[name] != after[name] for name in before) <= 4


def test_given_splits_are_kept_and_only_missing_ones_drawn(tmp_path):
    touch(
        tmp_path, [f"{split}/{clip}" for split in ("train", "valid", "test") for clip in clips("a", 4) + clips("b", 4)]
    )
    dataset = load_folder(tmp_path)
    assert dataset.split_sizes == {"train": 8, "val": 8, "test": 8}
    assert dataset.form == "folder with splits"
    assert dataset.report.findings == []
    touch(
        tmp_path / "two", [f"{split}/{clip}" for split in ("train", "test") for clip in clips("a", 5) + clips("b", 5)]
    )
    dataset = load_folder(tmp_path / "two")
    assert dataset.split_sizes == {"train": 8, "val": 2, "test": 10}
    assert "20 % for val." in dataset.report.find("drawn-splits").message


def test_a_class_may_be_called_test(tmp_path):
    touch(tmp_path, [*clips("test", 3), *clips("drive", 3)])
    assert load_folder(tmp_path).classes == ("drive", "test")


def test_stray_clips_and_folders_are_said(tmp_path):
    touch(tmp_path, ["stray.mp4", *clips("a", 3), *clips("b", 3)])
    assert load_folder(tmp_path).report.find("stray-files").examples == ("stray.mp4",)
    touch(tmp_path / "s", ["train/stray.mp4", *clips("train/a", 3), *clips("train/b", 3), *clips("extra/c", 3)])
    report = load_folder(tmp_path / "s").report
    assert report.find("stray-files").examples == (
        "extra/c/000.mp4",
        "extra/c/001.mp4",
        "extra/c/002.mp4",
        "train/stray.mp4",
    )
    assert report.find("stray-folders").examples == ("extra",)


def test_a_class_that_is_only_tested_is_said(tmp_path):
    touch(tmp_path, [*clips("train/a", 3), *clips("train/b", 3), *clips("test/a", 1), *clips("test/c", 1)])
    assert load_folder(tmp_path).report.find("classes-not-in-train").examples == ("c",)


def test_a_description_gives_order_and_wordings(tmp_path):
    classes = [{"name": "rain", "wording": "heavy rain"}, {"name": "Dog barking", "wording": "a barking dog"}]
    write_description(tmp_path, name="mine", reader="folder", tasks=["folder"], classes=classes, files=None)
    touch(tmp_path, [*clips("dog_barking", 3), *clips("rain", 3), *clips("other", 2)])
    dataset = load_folder(tmp_path)
    assert dataset.classes == ("rain", "Dog barking")
    assert dataset.wordings == ("heavy rain", "a barking dog")
    assert dataset.report.find("unknown-classes").examples == ("other (2)",)
    write_description(tmp_path)
    with pytest.raises(UsageError, match="describes mine, not a folder"):
        load_folder(tmp_path)


def test_too_little_or_nonsense_is_one_clear_error(tmp_path):
    with pytest.raises(UsageError, match="does not exist"):
        load_folder(tmp_path / "absent")
    with pytest.raises(DataError, match=r"no class folder with clips.*FOLDER/rain/2\.mp4"):
        load_folder(write_files(tmp_path / "empty", {"notes.txt": "x"}))
    touch(tmp_path / "one", clips("a", 3))
    with pytest.raises(DataError, match="only the class 'a'"):
        load_folder(tmp_path / "one")
    with pytest.raises(UsageError, match="leave nothing to train on"):
        load_folder(tmp_path, val_fraction=0.5, test_fraction=0.5)
