"""AVE and LLP, and the spellings of their classes."""

import os

import numpy as np
import pytest
from dataset_files import AVE_FILES, LLP_FILES, counts, official, write_description, write_files

from avfewshot.data.ave import load_ave
from avfewshot.data.class_names import ClassNames
from avfewshot.data.description import load_description
from avfewshot.data.llp import load_llp
from avfewshot.data.load import load_dataset
from avfewshot.errors import DataError, UsageError


@pytest.fixture
def ave(tmp_path):
    return lambda files=None: load_ave(load_description("ave"), write_files(tmp_path, AVE_FILES | (files or {})))


@pytest.fixture
def llp(tmp_path):
    return lambda files=None: load_llp(load_description("llp"), write_files(tmp_path, LLP_FILES | (files or {})))


@pytest.mark.parametrize(
    ("dataset", "spellings", "name"),
    [
        ("ave", ["Frying_(food)", "frying (food)"], "Frying (food)"),
        ("ave", ["Violin_fiddle", "violin"], "Violin, fiddle"),
        ("ave", ["Male speech"], "Male speech, man speaking"),
        ("ave", ["  Toilet   flush "], "Toilet flush"),
        ("llp", ["Frying (food)"], "Frying_(food)"),
        ("llp", ["Violin, fiddle", "violin"], "Violin_fiddle"),
        ("llp", ["Chicken, rooster", "chicken"], "Chicken_rooster"),
        ("llp", ["Baby cry, infant cry", "Baby cry"], "Baby_cry_infant_cry"),
        ("llp", ["Telephone bell"], "Telephone_bell_ringing"),
        ("vggsound", ["playing violin"], "playing violin, fiddle"),
        ("vggsound", ["electric blender running"], "eletric blender running"),
    ],
)
def test_classes_are_known_by_their_other_spellings(dataset, spellings, name):
    classes = load_description(dataset).class_names
    assert {classes[ClassNames(classes).index(spelling)] for spelling in spellings} == {name}


def test_what_is_not_a_class_or_could_be_two_is_no_match():
    names = ClassNames(["dog, big", "dog, small", "cat"])
    assert [names.index(name) for name in ("dog", "Dog big", "horse", "")] == [None, 0, None, None]
    assert names.respelt() == ["Dog big"]
    names = ClassNames(["犬", "猫", "!", "?"])
    assert [names.index(name) for name in ("犬", "猫", "!", "?")] == [0, 1, 2, 3]
    names = ClassNames(load_description("vggsound").class_names)
    assert all(names.index(name) is not None for name in load_description("ovave").class_names)


# -- AVE ---------------------------------------------------------------------------------------------------------------


def test_rows_become_samples_with_labels_per_second(ave):
    dataset = ave()
    assert dataset.split_sizes == {"train": 5, "val": 2, "test": 2}
    _, man, empty, _, last = dataset.split("train")
    assert (man.id, man.youtube_id, man.label) == ("-bbbbbbbbbb", "-bbbbbbbbbb", 1)
    assert dataset.segment_labels(man).tolist() == [28, 28, 1, 1, 1, 28, 28, 28, 28, 28]
    assert dataset.segment_labels(man, 4).tolist() == [28, 28, 1, 1]
    assert dataset.segment_labels(man, 12).tolist()[5:] == [28] * 7
    assert [(event.onset, event.offset, event.modality) for event in man.events] == [(2, 5, "av")]
    assert dataset.classes[last.label] == "Cat"  # without a newline
    assert set(empty.segments) == {28}
    assert not empty.has_event(28)
    assert counts(dataset.report) == {"empty-event": 1, "repeated-ids": 1, "dashed-ids": 1, "differs-from-official": 3}
    assert dataset.report.find("repeated-ids").examples == ("-bbbbbbbbbb",)


def test_headers_line_ends_and_forms_of_ids_change_nothing(ave):
    plain = ave()
    header = "Category&VideoID&Quality&StartTime&EndTime\n"
    changed = {name: (header + text).replace("\n", "\r\n").encode("utf-8-sig") for name, text in AVE_FILES.items()}
    assert ave(changed).samples == plain.samples
    assert ave({"trainSet.txt": AVE_FILES["trainSet.txt"].encode("utf-16-le")}).samples == plain.samples
    for form in ('"{}"', "'{}'", "{}.mp4", "{}.MKV", "AVE/{}.mp4", "https://youtu.be/{}", "http://x.y/watch?v={}"):
        files = {}
        for name, text in AVE_FILES.items():
            rows = [row.split("&") for row in text.splitlines()]
            files[name] = "\n".join("&".join([row[0], form.format(row[1]), *row[2:]]) for row in rows)
        assert ave(files).samples == plain.samples, form


def test_annotations_are_cross_checked_with_the_splits(ave):
    rows = "".join(text if text.endswith("\n") else f"{text}\n" for text in AVE_FILES.values())
    assert ave({"Annotations.txt": rows}).report.find("in-no-split") is None
    extra = rows.replace("Cat&eeeeeeeeeee", "Cat&xxxxxxxxxxx")
    report = ave({"Annotations.txt": extra}).report
    assert report.find("not-in-annotations").examples == ("eeeeeeeeeee",)
    assert report.find("in-no-split").examples == ("xxxxxxxxxxx",)


def test_bad_rows_are_left_out_and_named(ave):
    text = (
        "Church bell&aaaaaaaaaaa&good&0&10\n"
        "no ampersands here\n"
        "Unicorn&bbbbbbbbbbb&good&0&10\n"
        "church_BELL&ccccccccccc&good&3&12\n"
        "Church bell&aaaaaaaaaaa&good&0&10\n"
        "Cat&ddddddddddd&good&nan&inf\n"
        "Church bell&&good&0&10\n"
    )
    dataset = ave({"trainSet.txt": text})
    assert dataset.report.find("respelt-classes").examples == ("church_BELL",)
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


def test_a_missing_folder_file_or_archive_is_one_clear_error(tmp_path):
    lists = r"No annotation files of AVE below .*trainSet.txt, valSet.txt, testSet.txt.*github"
    (tmp_path / "videos").mkdir()
    for files, root, error, message in (
        ((), "absent", UsageError, r"does not exist.*--root.*avfs data toy"),
        ((), ".", DataError, lists),
        (("trainSet.txt",), ".", DataError, r"lacks valSet\.txt, testSet\.txt of AVE"),
        (AVE_FILES, "videos", DataError, f"its parent does: give {tmp_path}"),
        (AVE_FILES, "trainSet.txt", UsageError, "is a file, not a folder"),
    ):
        write_files(tmp_path, {name: AVE_FILES[name] for name in files})
        with pytest.raises(error, match=message):
            load_ave(load_description("ave"), tmp_path / root)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("hello\n", r"trainSet.txt: no row of the form class&id.*It begins with hello; take"),
        (" \n", r"trainSet.txt: no row of the form class&id.*It is empty; take"),
        (b"\xff\xfe\x00", "byte 0 is not UTF-8"),
        ("Unicorn&aaaaaaaaaaa&good&0&10\n", r"none of its classes belongs to AVE.*dataset.yaml"),
    ],
)
def test_a_file_of_another_kind_is_one_clear_error(ave, content, message):
    with pytest.raises(DataError, match=message):
        ave({"trainSet.txt": content})


def test_a_file_without_an_end_is_not_read(ave, tmp_path):
    ave()
    os.truncate(tmp_path / "trainSet.txt", 1 << 40)  # takes no room on the disk
    with pytest.raises(DataError, match="too many for an annotation file"):
        load_dataset("ave", tmp_path)


def test_official_files_of_ave():
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


# -- LLP ---------------------------------------------------------------------------------------------------------------


def test_rows_become_samples_with_several_labels(llp):
    dataset = llp()
    assert dataset.split_sizes == {"train": 4, "val": 1, "test": 2}
    assert dataset.multi_label
    first, decimal = dataset.samples[:2]
    assert [dataset.classes[label] for label in first.labels] == ["Speech", "Dog"]
    assert (first.youtube_id, first.start, first.end) == ("aaaaaaaaaaa", 20, 30)
    assert (decimal.youtube_id, decimal.start) == ("-bbbbbbbbbb", 101.8)
    assert dataset.report.find("decimal-names").examples == ("-bbbbbbbbbb_101.8_111.8",)
    hot = dataset.multi_hot(dataset.split("train"))
    assert (hot.shape, hot.sum(), hot[0].nonzero()[0].tolist()) == ((4, 25), 5, [0, 3])
    assert dataset.split("test")[1].label == 0  # the published target is the lowest index
    suffixed = {name: text.replace("_0_10\t", "_0_10.mp4\t") for name, text in LLP_FILES.items()}
    assert llp(suffixed).samples == dataset.samples
    twice = llp({"AVVP_val_pd.csv": "filename\tevent_labels\naaaaaaaaaaa_20_30\tCat\n"})
    assert twice.report.find("cross-split-ids").examples == ("aaaaaaaaaaa_20_30",)


def test_evaluation_files_are_not_needed(tmp_path):
    files = {name: text for name, text in LLP_FILES.items() if "eval" not in name}
    dataset = load_llp(load_description("llp"), write_files(tmp_path, files))
    assert not any(sample.events for sample in dataset.samples)
    assert counts(dataset.report)["no-events"] == 2


def test_events_per_modality(llp):
    dataset = llp()
    clapping, speech = dataset.split("test")
    label = dataset.classes.index("Clapping")
    for modality, seconds in (("audio", [3, 4]), ("visual", [4, 5, 6, 7]), ("av", [4])):
        assert dataset.event_matrix(clapping, modality)[:, label].nonzero()[0].tolist() == seconds
    assert dataset.event_matrix(speech, "audio").shape == (10, 25)
    assert dataset.event_matrix(speech, "audio").sum() == 10  # the events that end early are not counted
    assert dataset.event_matrix(dataset.samples[0], "audio").sum() == 0


def test_every_defect_of_the_evaluation_files_is_said(llp):
    report = llp().report
    audio = [finding for finding in report.findings if finding.message.startswith("AVVP_eval_audio")]
    assert {finding.code: finding.count for finding in audio} == {
        "repeated-rows": 1, "empty-event": 2, "malformed-names": 2, "in-no-split": 3, "differs-from-official": 1,
    }  # fmt: skip
    assert "it has 9 rows" in next(one.message for one in audio if one.code == "differs-from-official")
    assert report.find("malformed-names").examples[0] == "AVVP_eval_audio.csv:8 Baby_cry_infant_cry 0 4 Speech"
    assert report.find("repeated-labels").examples == ("AVVP_test_pd.csv:2 fffffffffff_0_10 Clapping,Clapping",)
    assert "Speech" in report.find("no-single-label-clips").examples


def test_rows_of_llp_that_cannot_be_read_are_left_out_and_named(llp):
    rows = ("filename\tevent_labels", "aaaaaaaaaaa_0_10\tDog", "just one cell", "filename\tevent_labels")
    rows += ("bbbbbbbbbbb_0_10\tUnicorn", "aaaaaaaaaaa_0_10\tCat")
    dataset = llp({"AVVP_train.csv": "\n".join(rows)})
    assert [sample.id for sample in dataset.split("train")] == ["aaaaaaaaaaa_0_10"]
    assert [dataset.classes[label] for label in dataset.samples[0].labels] == ["Dog"]
    report = dataset.report
    assert report.find("malformed-rows").examples == ("AVVP_train.csv:3 just one cell",)
    assert report.find("unknown-classes").examples == ("AVVP_train.csv:5 bbbbbbbbbbb_0_10 Unicorn",)
    assert report.find("repeated-ids").examples == ("AVVP_train.csv:6 aaaaaaaaaaa_0_10",)


def test_events_with_odd_numbers_or_labels_are_left_out_and_named(llp):
    rows = "filename\tonset\toffset\tevent_labels\neeeeeeeeeee_0_10\tx\t4\tCat\neeeeeeeeeee_0_10\t0\t4\tUnicorn\n"
    rows += "eeeeeeeeeee_0_10\t20\t30\tCat\neeeeeeeeeee_0_10\t9\t11\tCat\n"
    dataset = llp({"AVVP_eval_visual.csv": rows})
    visual = [finding for finding in dataset.report.findings if finding.message.startswith("AVVP_eval_visual")]
    assert [(finding.code, finding.severity) for finding in visual] == [
        ("malformed-rows", "warning"),
        ("unknown-classes", "error"),
        ("event-bounds", "warning"),
        ("differs-from-official", "warning"),
    ]
    assert dataset.split("val")[0].events[0].modality == "audio"
    assert [(event.onset, event.offset) for event in dataset.split("val")[0].events[1:]] == [(9, 10)]


@pytest.mark.parametrize("content", ["", "filename,onset,offset,event_labels\nfffffffffff_0_10,3,5,Clapping\n"])
def test_an_evaluation_file_without_events_is_named(llp, content):
    found = llp({"AVVP_eval_audio.csv": content}).report.find("no-events")
    assert (found.severity, "AVVP_eval_audio.csv has no event" in found.message) == ("warning", True)


@pytest.mark.parametrize(
    ("cell", "name", "unknown"), [("Dog,Unicorn", "Dog", "Unicorn"), ("Violin, fiddle", "Violin_fiddle", None)]
)
def test_labels_are_parted_at_commas_unless_a_class_name_holds_one(llp, cell, name, unknown):
    dataset = llp({"AVVP_val_pd.csv": f"filename\tevent_labels\neeeeeeeeeee_0_10\t{cell}\n"})
    assert [dataset.classes[label] for label in dataset.split("val")[0].labels] == [name]
    found = dataset.report.find("unknown-classes")
    assert (found and found.examples) == (unknown and (f"AVVP_val_pd.csv:2 eeeeeeeeeee_0_10 {unknown}",))


@pytest.mark.parametrize("content", ["a,b,c\n1,2,3\n", ""])
def test_a_list_of_another_kind_is_one_clear_error(llp, content):
    with pytest.raises(DataError, match=r"AVVP_train\.csv: no row of the form filename"):
        llp({"AVVP_train.csv": content})


def test_official_files_of_llp():
    dataset = load_llp(load_description("llp"), official("LLP"))
    assert dataset.split_sizes == {"train": 10000, "val": 649, "test": 1200}
    assert counts(dataset.report) == {
        "repeated-labels": 1, "repeated-rows": 8, "empty-event": 6, "malformed-names": 17, "in-no-split": 15,
        "decimal-names": 5, "labels-differ-from-events": 84, "no-single-label-clips": 1, "official-files": 5,
    }  # fmt: skip
    assert sum(dataset.classes[sample.label] == "Speech" for sample in dataset.split("test")) == 625
    singles = [dataset.classes[sample.label] for sample in dataset.split("train") if len(sample.labels) == 1]
    assert [singles.count(name) for name in ("Cat", "Banjo", "Speech")] == [16, 17, 0]
    assert np.mean([len(sample.events) > 0 for sample in dataset.split("test")]) > 0.99


def test_the_corrupt_rows_of_a_fork_are_named(tmp_path):
    source = official("LLP")
    files = {name: (source / name).read_bytes() for name in LLP_FILES}
    files["AVVP_eval_audio.csv"] = (source / "AVVP_eval_audio.DG-SCT-fork-corrupted.csv").read_bytes()
    report = load_llp(load_description("llp"), write_files(tmp_path, files)).report
    audio = {finding.code: finding for finding in report.findings if finding.message.startswith("AVVP_eval_audio")}
    assert audio["malformed-names"].count == 10 + 3  # the three rows that the fork damaged
    assert audio["in-no-split"].count == 8 + 2
    assert audio["differs-from-official"].severity == "warning"
