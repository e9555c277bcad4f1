from __future__ import annotations

import numpy as np
import pytest
from dataset_files import AVE_FILES, counts, official, write_description, write_files

from avfewshot.data.ave import load_ave
from avfewshot.data.description import load_description
from avfewshot.data.load import load_dataset
from avfewshot.errors import DataError, UsageError


@pytest.fixture
def ave(tmp_path):
    return lambda **changes: load_ave(
        load_description("ave", tmp_path), write_files(tmp_path, AVE_FILES | changes.pop("files", {}))
    )


def test_rows_become_samples_with_labels_per_second(ave):
    dataset = ave()
    assert dataset.split_sizes == {"train": 5, "val": 2, "test": 2}
    man = dataset.samples[1]
    assert (man.id, man.youtube_id, dataset.classes[man.label]) == (
        "-bbbbbbbbbb",
        "-bbbbbbbbbb",
        "Male speech, man speaking",
    )
    assert dataset.segment_labels(man).tolist() == [28, 28, 1, 1, 1, 28, 28, 28, 28, 28]
    assert [(event.onset, event.offset, event.modality) for event in man.events] == [(2, 5, "av")]
    assert dataset.classes[dataset.samples[4].label] == "Cat"  # the last line, without a newline


def test_labels_per_second_for_clips_of_other_lengths(ave):
    dataset = ave()
    man = dataset.samples[1]
    assert dataset.segment_labels(man, 4).tolist() == [28, 28, 1, 1]
    assert dataset.segment_labels(man, 12).tolist()[5:] == [28] * 7
    assert dataset.segment_labels(man).dtype == np.int64


def test_empty_event_is_all_background_and_said(ave):
    dataset = ave()
    assert set(dataset.samples[2].segments) == {28}
    assert not dataset.samples[2].has_event(28)
    assert dataset.report.find("empty-event").examples == ("ccccccccccc",)


def test_dashed_and_repeated_ids_are_said(ave):
    dataset = ave()
    assert counts(dataset.report) == {"empty-event": 1, "repeated-ids": 1, "dashed-ids": 1, "differs-from-official": 3}
    assert dataset.report.find("repeated-ids").examples == ("-bbbbbbbbbb",)


def test_a_header_and_windows_line_ends_change_nothing(ave):
    plain = ave()
    header = "Category&VideoID&Quality&StartTime&EndTime\n"
    changed = {name: (header + text).replace("\n", "\r\n").encode("utf-8-sig") for name, text in AVE_FILES.items()}
    assert ave(files=changed).samples == plain.samples


@pytest.mark.parametrize("form", ['"{}"', "'{}'", "{}.mp4", "{}.MKV", "https://youtu.be/{}", "http://x.y/watch?v={}"])
def test_ids_as_people_write_them_are_ids(ave, form):
    plain = ave()
    files = {}
    for name, text in AVE_FILES.items():
        rows = [row.split("&") for row in text.splitlines()]
        files[name] = "\n".join("&".join([row[0], form.format(row[1]), *row[2:]]) for row in rows)
    assert ave(files=files).samples == plain.samples


def test_annotations_are_cross_checked_with_the_splits(ave):
    rows = "".join(text if text.endswith("\n") else f"{text}\n" for text in AVE_FILES.values())
    assert "in-no-split" not in ave(files={"Annotations.txt": rows}).report.codes
    extra = rows.replace("Cat&eeeeeeeeeee", "Cat&xxxxxxxxxxx")
    report = ave(files={"Annotations.txt": extra}).report
    assert report.find("not-in-annotations").examples == ("eeeeeeeeeee",)
    assert report.find("in-no-split").examples == ("xxxxxxxxxxx",)


def test_bad_rows_are_left_out_and_named(ave):
    text = (
        "Church bell&aaaaaaaaaaa&good&0&10\n"
        "no ampersands here\n"
        "Unicorn&bbbbbbbbbbb&good&0&10\n"
        "Church bell&ccccccccccc&good&3&12\n"
        "Church bell&aaaaaaaaaaa&good&0&10\n"
        "Cat&ddddddddddd&good&nan&inf\n"
        "Church bell&&good&0&10\n"
    )
    dataset = ave(files={"trainSet.txt": text})
    assert [sample.id for sample in dataset.split("train")] == ["aaaaaaaaaaa", "ccccccccccc"]
    assert dataset.split("train")[1].events[0].offset == 10
    report = dataset.report
    assert report.find("malformed-rows").examples == (
        "trainSet.txt:2 no ampersands here",
        "trainSet.txt:6 Cat&ddddddddddd&good&nan&inf",
        "trainSet.txt:7 Church bell&&good&0&10",
    )
    assert report.find("unknown-classes").severity == "error"
    assert report.find("repeated-rows").examples == ("trainSet.txt:5 aaaaaaaaaaa",)
    assert report.find("event-bounds").count == 1


def test_rows_of_one_clip_and_class_are_stretches_of_one_sample(tmp_path):
    write_description(tmp_path)
    rows = "drum, snare&aaaaaaaaaaa&good&0&2\ndrum, snare&aaaaaaaaaaa&good&5&6\nred square&aaaaaaaaaaa&good&0&1\n"
    write_files(tmp_path, {"trainSet.txt": rows, "valSet.txt": rows, "testSet.txt": rows})
    train = load_ave(load_description("ave", tmp_path), tmp_path).split("train")
    assert [(sample.label, sample.segments) for sample in train] == [
        (1, (1, 1, 2, 2, 2, 1, 2, 2, 2, 2)),
        (0, (0, 2, 2, 2, 2, 2, 2, 2, 2, 2)),
    ]
    assert len(train[0].events) == 2


def test_other_spellings_are_matched_and_said(ave):
    text = "frying_(food)&aaaaaaaaaaa&good&0&10\nviolin&bbbbbbbbbbb&good&0&10\n"
    dataset = ave(files={"trainSet.txt": text})
    assert [dataset.classes[sample.label] for sample in dataset.split("train")] == ["Frying (food)", "Violin, fiddle"]
    assert dataset.report.find("respelt-classes").examples == ("frying_(food)", "violin")


def test_files_are_found_in_the_usual_sub_folders(tmp_path):
    write_files(tmp_path / "AVE_Dataset" / "data", AVE_FILES)
    assert load_ave(load_description("ave"), tmp_path).root == tmp_path / "AVE_Dataset" / "data"


def test_a_missing_folder_file_or_archive_is_one_clear_error(tmp_path):
    description = load_description("ave")
    with pytest.raises(UsageError, match=r"does not exist.*--root.*avfs data toy"):
        load_ave(description, tmp_path / "absent")
    with pytest.raises(
        DataError, match=r"No annotation files of AVE below .*trainSet.txt, valSet.txt, testSet.txt.*github"
    ):
        load_ave(description, tmp_path)
    write_files(tmp_path, {"trainSet.txt": AVE_FILES["trainSet.txt"]})
    with pytest.raises(DataError, match=r"lacks valSet\.txt, testSet\.txt of AVE"):
        load_ave(description, tmp_path)
    write_files(tmp_path, AVE_FILES)
    (tmp_path / "videos").mkdir()
    with pytest.raises(DataError, match=f"its parent does: give {tmp_path}"):
        load_ave(description, tmp_path / "videos")
    with pytest.raises(UsageError, match="is a file, not a folder"):
        load_ave(description, tmp_path / "trainSet.txt")


def test_a_file_of_another_kind_is_one_clear_error(ave):
    with pytest.raises(DataError, match=r"trainSet.txt: no row of the form class&id"):
        ave(files={"trainSet.txt": "hello\n"})
    with pytest.raises(DataError, match="byte 0 is not UTF-8"):
        ave(files={"trainSet.txt": b"\xff\xfe\x00"})
    with pytest.raises(DataError, match=r"none of its classes belongs to AVE.*dataset.yaml"):
        ave(files={"trainSet.txt": "Unicorn&aaaaaaaaaaa&good&0&10\n"})


def test_official_files():
    dataset = load_ave(load_description("ave"), official("AVE"))
    assert dataset.split_sizes == {"train": 3339, "val": 402, "test": 402}
    found = counts(dataset.report)
    assert found == {"empty-event": 1, "repeated-ids": 45, "dashed-ids": 1012, "official-files": 4}
    assert dataset.report.find("empty-event").examples == ("VWi2ENBuTbw",)
    train = [dataset.classes[sample.label] for sample in dataset.split("train")]
    assert train.count("Cat") == 48
    assert min(train.count(name) for name in dataset.classes) == 48
    test = np.stack([dataset.segment_labels(sample) for sample in dataset.split("test")])
    assert np.mean(test == dataset.background) == pytest.approx(0.178, abs=5e-4)


def test_official_files_with_a_header_or_other_line_ends_or_rows_less(tmp_path):
    source = official("AVE")
    files = {name: (source / name).read_bytes() for name in AVE_FILES}
    files["trainSet.txt"] = files["trainSet.txt"].replace(b"\n", b"\r\n").rstrip()
    files["valSet.txt"] = b"Category&VideoID&Quality&StartTime&EndTime\n" + files["valSet.txt"]
    files["testSet.txt"] = files["testSet.txt"].split(b"\n", 1)[1]
    dataset = load_ave(load_description("ave"), write_files(tmp_path, files))
    assert dataset.split_sizes == {"train": 3339, "val": 402, "test": 401}
    assert dataset.report.find("official-files").examples == ("trainSet.txt (with other line ends)",)
    messages = [finding.message for finding in dataset.report.findings if finding.code == "differs-from-official"]
    assert messages == [
        "valSet.txt is not as published: its rows are as many, but not the same.",
        "testSet.txt is not as published: it has 401 rows; the official file has 402.",
    ]


def test_a_layout_may_lack_a_split(tmp_path):
    files = [{"role": split, "names": [f"{split}Set.txt"]} for split in ("train", "test")]
    write_description(tmp_path, classes=["Church bell", "Cat"], files=files)
    rows = "Church bell&aaaaaaaaaaa&good&0&10\nCat&bbbbbbbbbbb&good&0&5\n"
    write_files(tmp_path, {"trainSet.txt": rows, "testSet.txt": rows.replace("aaa", "ccc")})
    assert load_dataset("ave", tmp_path, find_media=False).split_sizes == {"train": 2, "test": 2}
    write_description(tmp_path, classes=["Church bell"], files=[{"role": "list", "names": ["trainSet.txt"]}])
    with pytest.raises(DataError, match="no file of mine lists a clip"):
        load_dataset("ave", tmp_path)


def test_a_file_without_an_end_is_not_read(tmp_path):
    write_files(tmp_path, AVE_FILES)
    with open(tmp_path / "trainSet.txt", "r+b") as stream:
        stream.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(DataError, match="too many for an annotation file"):
        load_dataset("ave", tmp_path)
