import json

import pytest
from dataset_files import counts, official, write_description, write_files

from avfewshot.data.clip_lists import parse_bits, read_clip_list
from avfewshot.data.dataset import DatasetReport
from avfewshot.data.description import load_description
from avfewshot.data.load import load_dataset
from avfewshot.data.vggsound import load_vggsound, with_vggsounder
from avfewshot.errors import AvfsError, DataError

AVEL_LABELS = (
    "category,video_id,split,label\n"
    'playing cello,000000,train,"[1, 1, 0, 0, 0, 0, 0, 0, 0, 1]"\n'
    'skiing,000001,val,"[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"\n'
    '"race car, auto racing",000002,test,"[0, 1, 1, 1, 1, 1, 1, 1, 1, 1]"\n'
)
AVEL = "category,video_id,split\nskiing,aaaaaaaaaaa,train\nplaying cello,-bbbbbbbbbb,test\n"
OFFICIAL_LIST = '---aaaaaaaa,1,skiing,train\nbbbbbbbbbbb,170,"race car, auto racing",test\n'
TEST_LIST = 'glLQrEijrKg_000300.mp4,skiing\r\nLDoXsip0BEQ_000177.mp4,"race car, auto racing"\r\n'
OVAVE_CSV = "split,cls_name,cls_type,vid_name\ntrain,race car,close,aaaaaaaaaaa\ntest,dog barking,open,bbbbbbbbbbb\n"
OVAVE_JSON = json.dumps(
    {
        "aaaaaaaaaaa": {"category": "race car", "label": "[0, 1, 1, 0, 0, 0, 0, 0, 0, 0]"},
        "bbbbbbbbbbb": {"category": "dog barking", "label": "[0, 0, 0, 0, 0, 0, 0, 0, 0, 0]"},
    }
)
VGGSOUNDER = (
    "video_id,label,modality,background_music,static_image,voice_over\n"
    "glLQrEijrKg_000300,skiing,AV,False,False,True\n"
    "glLQrEijrKg_000300,wind noise,A,False,False,True\n"
    "zzzzzzzzzzz_000000,skiing,V,False,False,True\n"
)


def load(tmp_path, name, files, **options):
    return load_vggsound(load_description(name), write_files(tmp_path, files), **options)


@pytest.mark.parametrize(
    ("content", "form", "ids"),
    [
        (AVEL_LABELS, "avel-labels", "000000 000001 000002"),
        (AVEL, "avel", "aaaaaaaaaaa -bbbbbbbbbb"),
        ("split,video_id,category\ntrain,aaaaaaaaaaa,skiing\n", "avel", "aaaaaaaaaaa"),
        (OFFICIAL_LIST, "vggsound", "---aaaaaaaa_000001 bbbbbbbbbbb_000170"),
        ("youtube_id,start,label,split\n" + OFFICIAL_LIST, "vggsound", "---aaaaaaaa_000001 bbbbbbbbbbb_000170"),
        ("# YouTube ID,start seconds,label,train/test split\na,7,skiing,test", "vggsound", "a_000007"),
        ("split,label,start,ytid,n\ntest,skiing,7,aaaaaaaaaaa,1\n", "vggsound", "aaaaaaaaaaa_000007"),
        (TEST_LIST, "vggsound-split", "glLQrEijrKg_000300 LDoXsip0BEQ_000177"),
        (OVAVE_CSV, "ovave-csv", "aaaaaaaaaaa bbbbbbbbbbb"),
        (OVAVE_JSON, "ovave-json", "aaaaaaaaaaa bbbbbbbbbbb"),
        (VGGSOUNDER, "vggsounder", "glLQrEijrKg_000300 glLQrEijrKg_000300 zzzzzzzzzzz_000000"),
        (TEST_LIST.replace("mp4", "webm"), "vggsound-split", "glLQrEijrKg_000300 LDoXsip0BEQ_000177"),
        (OVAVE_CSV.replace("bbb\n", "bbb.MKV\n"), "ovave-csv", "aaaaaaaaaaa bbbbbbbbbbb"),
        (AVEL.replace("\n", "\r\n").encode("utf-8-sig"), "avel", "aaaaaaaaaaa -bbbbbbbbbb"),
        (TEST_LIST.replace("glL", "clips/test/glL"), "vggsound-split", "glLQrEijrKg_000300 LDoXsip0BEQ_000177"),
        (AVEL.replace("aaaaaaaaaaa", "C:\\clips\\aaaaaaaaaaa.mp4"), "avel", "aaaaaaaaaaa -bbbbbbbbbb"),
    ],
)
def test_every_form_is_recognised_by_itself(tmp_path, content, form, ids):
    report, name = DatasetReport(), "a.json" if form == "ovave-json" else "a.csv"
    result = read_clip_list(write_files(tmp_path, {name: content}) / name, report)
    assert (result.form, [row.id for row in result.rows], report.findings) == (form, ids.split(), [])
    assert result.total == len(result.rows)


def test_ids_and_starts_are_taken_apart(tmp_path):
    write_files(tmp_path, {"a.csv": OFFICIAL_LIST, "b.csv": AVEL_LABELS, "c.csv": TEST_LIST})
    first = read_clip_list(tmp_path / "a.csv", DatasetReport()).rows[0]
    assert (first.youtube_id, first.start, first.split, first.category) == ("---aaaaaaaa", 1.0, "train", "skiing")
    numbered = read_clip_list(tmp_path / "b.csv", DatasetReport()).rows[0]
    assert (numbered.youtube_id, numbered.start, numbered.bits) == (None, None, (1, 1, 0, 0, 0, 0, 0, 0, 0, 1))
    tested = read_clip_list(tmp_path / "c.csv", DatasetReport(), split="test").rows[1]
    assert (tested.youtube_id, tested.start, tested.split) == ("LDoXsip0BEQ", 177.0, "test")
    assert tested.category == "race car, auto racing"


def test_segment_labels_are_parsed_not_evaluated():
    assert {parse_bits(form) for form in ("[0, 1]", "[0 1]", "0,1", "[0. 1.]", [0, 1])} == {(0, 1)}
    assert not any(map(parse_bits, ("[0, 2]", "__import__('os')", "[]", "[0.5]", None, [0.5])))


def test_a_list_with_labels_per_second_and_what_it_lacks(tmp_path):
    dataset = load(tmp_path, "vggsound40k", {"vggsound-avel40k_labels.csv": AVEL_LABELS})
    assert dataset.form == "avel-labels"
    assert dataset.classes == ("playing cello", "race car, auto racing", "skiing")
    assert dataset.wordings == ("playing cello", "race car", "skiing")
    assert dataset.split_sizes == {"train": 1, "val": 1, "test": 1}
    cello = dataset.split("train")[0]
    assert cello.segments == (0, 0, 3, 3, 3, 3, 3, 3, 3, 0)
    assert [(event.onset, event.offset) for event in cello.events] == [(0, 2), (9, 10)]
    report = dataset.report
    assert report.find("empty-event").examples == ("000001",)
    assert "has 3 classes; VGG-Sound(40K) has 141" in report.find("class-count").message
    assert "3 clips; fewer than 30000" in report.find("few-rows").message
    assert report.find("classes-absent").count == 9
    assert report.find("no-youtube-ids").examples == ("000000",)
    assert report.find("row-count").message == "vggsound-avel40k_labels.csv has 3 rows; the official file has 40801."


def test_a_categories_file_gives_the_order(tmp_path):
    files = {"vggsound-avel40k.csv": AVEL, "VggsoundAVEL40kCategories.txt": "skiing\nplaying cello\nrope skipping\n"}
    dataset = load(tmp_path, "vggsound40k", files)
    assert dataset.classes == ("skiing", "playing cello", "rope skipping")
    files["VggsoundAVEL40kCategories.txt"] = "rope skipping\n"
    dataset = load(tmp_path, "vggsound40k", files)
    assert dataset.classes == ("rope skipping", "playing cello", "skiing")
    assert dataset.report.find("unknown-classes").examples == ("playing cello", "skiing")


def test_the_official_list_and_the_lists_of_splits(tmp_path):
    dataset = load(tmp_path / "one", "vggsound", {"vggsound.csv": OFFICIAL_LIST, "test.csv": TEST_LIST})
    assert (dataset.form, dataset.split_sizes) == ("vggsound", {"train": 1, "test": 1})
    assert dataset.num_classes == 309
    assert dataset.samples[0].end == 11.0
    train = "aaaaaaaaaaa_000001.mp4,skiing\n"
    dataset = load(tmp_path / "two", "vggsound", {"train.csv": train, "test.csv": TEST_LIST})
    assert (dataset.form, dataset.split_sizes) == ("vggsound-split", {"train": 1, "test": 2})


def test_open_vocabulary_list_with_and_without_its_json(tmp_path):
    dataset = load(tmp_path, "ovave", {"ovave_dataset_meta.csv": OVAVE_CSV})
    assert dataset.samples[0].segments is None
    dataset = load(tmp_path, "ovave", {"ovavel_dataset_anno.json": OVAVE_JSON})
    assert dataset.form == "ovave-csv + ovave-json"
    assert dataset.classes[dataset.samples[0].label] == "race car"
    assert dataset.samples[0].segments == (67, *[dataset.samples[0].label] * 2, *[67] * 7)
    assert not dataset.samples[1].has_event(67)


def test_any_form_can_be_named_as_the_pretraining_list_but_not_where_it_makes_no_sense(tmp_path):
    files = {"my.csv": OFFICIAL_LIST, "ov.csv": OVAVE_CSV, "ovavel_dataset_anno.json": OVAVE_JSON, "er.csv": VGGSOUNDER}
    write_files(tmp_path, files)

    def named(file, name="vggsound40k"):
        return load_dataset(name, tmp_path, list_file=tmp_path / file, find_media=False)

    assert (named("my.csv").form, named("my.csv").num_classes) == ("vggsound", 2)
    dataset = named("ov.csv")
    assert (dataset.form, dataset.wordings) == ("ovave-csv + ovave-json", ("dog barking", "race car"))
    assert dataset.split("train")[0].segments[1] == 1
    dataset = named("ovavel_dataset_anno.json")
    assert (dataset.form, dataset.split_sizes) == ("ovave-json", {"train": 2})
    assert dataset.report.find("no-splits").severity == "warning"
    for name, file, message in (
        ("vggsound40k", "absent.csv", r"absent\.csv does not exist"),
        ("ave", "absent.csv", "a list cannot be given"),
        ("vggsound40k", "er.csv", r"no training clips.*to evaluate"),
    ):
        with pytest.raises(AvfsError, match=message):
            named(file, name)


def test_rows_that_cannot_be_read_are_left_out_and_named(tmp_path):
    rows = (
        "category,video_id,split,label\n"
        'skiing,000000,train,"[0, 1]"\n'
        "skiing,000001\n"
        'skiing,000002,holdout,"[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]"\n'
        "skiing,000003,train,all\n"
        'skiing,000004,valid,"[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]"\n'
        'skiing,000004,valid,"[0, 0, 0, 0, 0, 0, 0, 0, 0, 1]"\n'
    )
    dataset = load(tmp_path, "vggsound40k", {"vggsound-avel40k_labels.csv": rows})
    told = [(sample.id, sample.split, sample.segments is None) for sample in dataset.samples]
    assert told == [("000000", "train", True), ("000003", "train", True), ("000004", "val", False)]
    for code, *examples in (
        ("malformed-rows", ("vggsound-avel40k_labels.csv:3 skiing,000001",)),
        ("unknown-splits", ("vggsound-avel40k_labels.csv:4 holdout",)),
        ("repeated-rows", ("vggsound-avel40k_labels.csv:7 000004",)),
        ("malformed-segments", ("vggsound-avel40k_labels.csv:5 all",), ("000000 2",)),
    ):
        assert [finding.examples for finding in dataset.report.findings if finding.code == code] == examples


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "", "the file is empty"),
        ("a.csv", "hello\nworld\n", "no list of clips that avfewshot knows"),
        ("a.csv", "video_id,split\nx,train\n", "names no class column"),
        ("a.csv", "category,video_id,split\n", "no row of the form 'avel'"),
        ("a.json", "{", "not JSON.*It begins with {; take"),
        ("a.json", r'{"aaaaaaaaaaa": {"category": "\ud800"}}', "not JSON.*surrogates"),
        ("a.json", "[" * 100_000, "not JSON"),
        ("a.json", "[1, 2]", "expected"),
        ("a.json", '{"aaaaaaaaaaa": 5}', "no row of the form 'ovave-json'"),
        ("a.csv", b"\xff\xfe", "not UTF-8"),
    ],
)
def test_what_is_no_list_is_one_clear_error(tmp_path, name, content, message):
    with pytest.raises(DataError, match=message):
        read_clip_list(write_files(tmp_path, {name: content}) / name, DatasetReport())


def test_a_start_that_no_video_has_is_named(tmp_path):
    report, path = DatasetReport(), write_files(tmp_path, {"a.csv": OFFICIAL_LIST.replace("170", "1e308")}) / "a.csv"
    assert [row.id for row in read_clip_list(path, report).rows] == ["---aaaaaaaa_000001"]
    assert report.find("malformed-rows").count == 1


def test_repeated_clips_are_said(tmp_path):
    text = '{"aaaaaaaaaaa": {"category": "a", "label": "[1]"}, "aaaaaaaaaaa": {"category": "b", "label": "[0]"}}'
    report = DatasetReport()
    read_clip_list(write_files(tmp_path, {"a.json": text}) / "a.json", report)
    assert report.find("repeated-ids").examples == ("aaaaaaaaaaa",)
    rows = "aaaaaaaaaaa,0,skiing,train\naaaaaaaaaaa,0,skiing,test\n"
    dataset = load(tmp_path, "vggsound", {"vggsound.csv": rows})
    assert dataset.split_sizes == {"train": 1, "test": 1}
    assert dataset.report.find("repeated-ids").examples == ("aaaaaaaaaaa_000000",)


def test_classes_of_another_data_set_or_a_wrong_vggsounder_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match=r"none of its classes belongs to VGG-Sound.*'unicorn'"):
        load(tmp_path, "vggsound", {"vggsound.csv": "aaaaaaaaaaa,0,unicorn,train\n"})
    with pytest.raises(DataError, match=r"No annotation files of VGG-Sound below .*vggsound.csv, train.csv, test.csv"):
        load(tmp_path / "other" / "empty", "vggsound", {})
    dataset = load(tmp_path, "vggsound", {"vggsound.csv": OFFICIAL_LIST, "vggsounder.csv": VGGSOUNDER})
    with pytest.raises(DataError, match="no VGGSounder file"):
        with_vggsounder(dataset, tmp_path / "vggsound.csv")
    with pytest.raises(DataError, match="knows none of the test clips"):
        with_vggsounder(dataset, tmp_path / "vggsounder.csv")


def test_vggsounder_gives_test_clips_all_their_labels(tmp_path):
    train = "aaaaaaaaaaa_000001.mp4,skiing\n"
    dataset = load(tmp_path, "vggsound", {"train.csv": train, "test.csv": TEST_LIST, "vggsounder.csv": VGGSOUNDER})
    several = with_vggsounder(dataset, tmp_path / "vggsounder.csv")
    assert several.multi_label
    assert several.split_sizes == {"train": 1, "test": 1}
    ski, wind = several.classes.index("skiing"), several.classes.index("wind noise")
    clip = several.split("test")[0]
    assert clip.labels == tuple(sorted((ski, wind)))
    assert several.event_matrix(clip, "audio")[0].nonzero()[0].tolist() == sorted((ski, wind))
    assert several.event_matrix(clip, "visual")[0].nonzero()[0].tolist() == [ski]
    assert several.report.find("not-in-vggsounder").examples == ("LDoXsip0BEQ_000177",)
    assert not dataset.multi_label


def test_vggsounder_matches_lists_without_starts_by_video_where_that_is_unambiguous(tmp_path):
    rows = "category,video_id,split\nskiing,glLQrEijrKg,test\nskiing,zzzzzzzzzzz,test\n"
    twice = VGGSOUNDER + "zzzzzzzzzzz_000030,wind noise,A,False,False,True\n"
    dataset = load(tmp_path, "vggsound40k", {"vggsound-avel40k.csv": rows, "vggsounder.csv": twice})
    several = with_vggsounder(dataset, tmp_path / "vggsounder.csv")
    assert [sample.id for sample in several.samples] == ["glLQrEijrKg"]
    assert several.samples[0].labels == (0,)  # "wind noise" is not among the classes of the list


def test_a_local_description_gives_a_list_its_classes(tmp_path):
    write_description(
        tmp_path / "VGGSound",
        name="vggsound40k",
        reader="vggsound",
        tasks=["vggsound40k"],
        classes=["beep", "boop"],
        files=[{"role": "list", "names": ["vggsound-avel40k_labels.csv"]}],
    )
    rows = 'category,video_id,split,label\nboop,aaaaaaaaaaa,train,"[1, 0, 0, 0, 0, 0, 0, 0, 0, 0]"\n'
    write_files(tmp_path / "VGGSound", {"vggsound-avel40k_labels.csv": rows})
    dataset = load_dataset("vggsound_cls", tmp_path, find_media=False)
    assert (dataset.classes, dataset.samples[0].labels) == (("beep", "boop"), (1,))
    assert dataset.report.findings == []


def test_official_test_list_and_vggsounder():
    dataset = load_vggsound(load_description("vggsound"), official("VGGSound"))
    assert dataset.split_sizes == {"test": 15446}
    assert {label for sample in dataset.samples for label in sample.labels} == set(range(309))
    assert counts(dataset.report) == {"official-files": 1}
    several = with_vggsounder(dataset, official("VGGSounder") / "vggsounder.csv")
    assert several.split_sizes == {"test": 12014}
    assert sum(len(sample.labels) for sample in several.samples) == 29509


def test_official_open_vocabulary_list():
    dataset = load_vggsound(load_description("ovave"), official("OV-AVEBench"))
    assert dataset.split_sizes == {"train": 13182, "val": 5798, "test": 5820}
    assert counts(dataset.report) == {"empty-event": 6020, "official-files": 2}
    assert {label for sample in dataset.samples for label in sample.labels} == set(range(67))


def test_the_public_rows_of_vggsound40k_have_the_known_classes():
    path = official("CMG_vggsound_avel_subset") / "vggsound2ucf_12.csv"
    dataset = load_dataset("vggsound40k", path.parent, list_file=path, find_media=False)
    assert dataset.split_sizes == {"train": 2123, "val": 705, "test": 690}
    assert dataset.classes == load_description("vggsound40k").known_classes
    assert counts(dataset.report) == {"class-count": 1, "few-rows": 1}
