from __future__ import annotations

import numpy as np
import pytest
from dataset_files import LLP_FILES, counts, official, write_files

from avfewshot.data.description import load_description
from avfewshot.data.llp import load_llp
from avfewshot.errors import DataError


@pytest.fixture
def llp(tmp_path):
    return lambda files=None: load_llp(load_description("llp"), write_files(tmp_path, LLP_FILES | (files or {})))


def test_rows_become_samples_with_several_labels(llp):
    dataset = llp()
    assert dataset.split_sizes == {"train": 4, "val": 1, "test": 2}
    assert dataset.multi_label
    first = dataset.samples[0]
    assert [dataset.classes[label] for label in first.labels] == ["Speech", "Dog"]
    assert (first.youtube_id, first.start, first.end) == ("aaaaaaaaaaa", 20, 30)
    hot = dataset.multi_hot(dataset.split("train"))
    assert hot.shape == (4, 25)
    assert hot.sum() == 5
    assert hot[0, [0, 3]].all()


def test_decimals_in_file_names_are_times(llp):
    dataset = llp()
    assert (dataset.samples[1].youtube_id, dataset.samples[1].start) == ("-bbbbbbbbbb", 101.8)
    assert dataset.report.find("decimal-names").examples == ("-bbbbbbbbbb_101.8_111.8",)


def test_file_names_with_a_suffix_are_the_same_clips(llp):
    plain = llp()
    suffixed = {name: text.replace("_0_10\t", "_0_10.mp4\t") for name, text in LLP_FILES.items()}
    assert llp(suffixed).samples == plain.samples


def test_the_published_target_is_the_lowest_index(llp):
    assert llp().split("test")[1].label == 0


def test_events_per_modality(llp):
    dataset = llp()
    clapping, speech = dataset.split("test")
    label = dataset.classes.index("Clapping")
    assert dataset.event_matrix(clapping, "audio")[:, label].nonzero()[0].tolist() == [3, 4]
    assert dataset.event_matrix(clapping, "visual")[:, label].nonzero()[0].tolist() == [4, 5, 6, 7]
    assert dataset.event_matrix(clapping, "av")[:, label].nonzero()[0].tolist() == [4]
    assert dataset.event_matrix(speech, "audio").shape == (10, 25)
    assert dataset.event_matrix(speech, "audio").sum() == 10  # the events that end early are not counted
    assert dataset.event_matrix(dataset.samples[0], "audio").sum() == 0


def test_every_defect_of_the_evaluation_files_is_said(llp):
    report = llp().report
    audio = [finding for finding in report.findings if finding.message.startswith("AVVP_eval_audio")]
    found = {finding.code: finding.count for finding in audio}
    assert found == {
        "repeated-rows": 1,
        "empty-event": 2,
        "malformed-names": 2,
        "in-no-split": 3,
        "differs-from-official": 1,
    }
    assert report.find("malformed-names").examples[0] == "AVVP_eval_audio.csv:8 Baby_cry_infant_cry 0 4 Speech"
    assert report.find("repeated-labels").examples == ("AVVP_test_pd.csv:2 fffffffffff_0_10 Clapping,Clapping",)
    assert "Speech" in report.find("no-single-label-clips").examples


def test_rows_that_cannot_be_read_are_left_out_and_named(llp):
    rows = ("filename\tevent_labels", "aaaaaaaaaaa_0_10\tDog", "just one cell")
    rows += ("bbbbbbbbbbb_0_10\tUnicorn", "aaaaaaaaaaa_0_10\tCat")
    dataset = llp({"AVVP_train.csv": "\n".join(rows)})
    assert [sample.id for sample in dataset.split("train")] == ["aaaaaaaaaaa_0_10"]
    assert [dataset.classes[label] for label in dataset.samples[0].labels] == ["Dog"]
    report = dataset.report
    assert report.find("malformed-rows").examples == ("AVVP_train.csv:3 just one cell",)
    assert report.find("unknown-classes").examples == ("AVVP_train.csv:4 bbbbbbbbbbb_0_10 Unicorn",)
    assert report.find("repeated-ids").examples == ("AVVP_train.csv:5 aaaaaaaaaaa_0_10",)


def test_events_with_odd_numbers_or_labels_are_left_out_and_named(llp):
    rows = "filename\tonset\toffset\tevent_labels\neeeeeeeeeee_0_10\tx\t4\tCat\neeeeeeeeeee_0_10\t0\t4\tUnicorn\n"
    dataset = llp({"AVVP_eval_visual.csv": rows})
    visual = [finding for finding in dataset.report.findings if finding.message.startswith("AVVP_eval_visual")]
    assert [(finding.code, finding.severity) for finding in visual] == [
        ("malformed-rows", "warning"),
        ("unknown-classes", "error"),
        ("differs-from-official", "warning"),
    ]
    assert dataset.split("val")[0].events[0].modality == "audio"


def test_an_unknown_label_behind_a_known_one_is_named(llp):
    dataset = llp({"AVVP_val_pd.csv": "filename\tevent_labels\neeeeeeeeeee_0_10\tDog,Unicorn\n"})
    assert [dataset.classes[label] for label in dataset.split("val")[0].labels] == ["Dog"]
    assert dataset.report.find("unknown-classes").examples == ("AVVP_val_pd.csv:2 eeeeeeeeeee_0_10 Unicorn",)


def test_class_names_that_hold_a_comma_are_read_as_one_label(llp):
    dataset = llp({"AVVP_val_pd.csv": "filename\tevent_labels\neeeeeeeeeee_0_10\tViolin, fiddle\n"})
    assert [dataset.classes[label] for label in dataset.split("val")[0].labels] == ["Violin_fiddle"]
    assert "unknown-classes" not in dataset.report.codes


def test_evaluation_files_are_not_needed(tmp_path):
    files = {name: text for name, text in LLP_FILES.items() if "eval" not in name}
    dataset = load_llp(load_description("llp"), write_files(tmp_path, files))
    assert not any(sample.events for sample in dataset.samples)
    assert counts(dataset.report)["no-events"] == 2


def test_a_clip_in_two_splits_is_said(llp):
    dataset = llp({"AVVP_val_pd.csv": "filename\tevent_labels\naaaaaaaaaaa_20_30\tCat\n"})
    assert dataset.report.find("cross-split-ids").examples == ("aaaaaaaaaaa_20_30",)


def test_a_file_of_another_kind_is_one_clear_error(llp):
    with pytest.raises(DataError, match=r"AVVP_train\.csv: no row of the form filename"):
        llp({"AVVP_train.csv": "a,b,c\n1,2,3\n"})
    with pytest.raises(DataError, match=r"AVVP_train\.csv: no row of the form filename"):
        llp({"AVVP_train.csv": ""})


def test_official_files():
    dataset = load_llp(load_description("llp"), official("LLP"))
    assert dataset.split_sizes == {"train": 10000, "val": 649, "test": 1200}
    assert counts(dataset.report) == {
        "repeated-labels": 1,
        "repeated-rows": 8,
        "empty-event": 6,
        "malformed-names": 17,
        "in-no-split": 15,
        "decimal-names": 5,
        "labels-differ-from-events": 84,
        "no-single-label-clips": 1,
        "official-files": 5,
    }
    assert sum(dataset.classes[sample.label] == "Speech" for sample in dataset.split("test")) == 625
    singles = [sample.label for sample in dataset.split("train") if len(sample.labels) == 1]
    assert singles.count(dataset.classes.index("Cat")) == 16
    assert singles.count(dataset.classes.index("Banjo")) == 17
    assert singles.count(dataset.classes.index("Speech")) == 0
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
