import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dataset_files import AVE_FILES, LLP_FILES, official, touch, write_description, write_files
from media_factory import write_audio, write_media

from avfewshot.data.check import check_dataset, probe_file
from avfewshot.data.folder import load_folder
from avfewshot.data.leaks import find_other_datasets, shared_videos, without_leaks, youtube_ids
from avfewshot.data.load import load_dataset

ALL_AVE = ("aaaaaaaaaaa", "-bbbbbbbbbb", "ccccccccccc", "ddddddddddd", "eeeeeeeeeee", "fffffffffff", "ggggggggggg")


@pytest.fixture
def data(tmp_path) -> Path:
    """AVE and LLP side by side, all but one AVE clip and no LLP clip with a file."""
    write_files(tmp_path / "AVE", AVE_FILES)
    write_files(tmp_path / "LLP", LLP_FILES)
    for number, name in enumerate(ALL_AVE):
        touch(tmp_path / "AVE" / "AVE", [f"{name}.mp4"], content=bytes([number]) * (number + 1))
    return tmp_path


def test_coverage_and_label_counts(data):
    result = check_dataset(load_dataset("ave", data))
    assert [(split, *row.values()) for split, row in result.splits.items()] == [
        ("train", 5, 5, 0, 3339),
        ("val", 2, 2, 0, 402),
        ("test", 2, 1, 1, 402),
    ]
    classes = {row["name"]: row for row in result.classes}
    assert classes["Church bell"].items() >= {"train": 2, "val": 1, "test": 1, "found": 3}.items()
    assert classes["Mandolin"].items() >= {"train": 0, "val": 0, "test": 0}.items()
    assert result.usable
    assert result.report.find("split-size").message == "The train split has 5 clips instead of 3339."
    assert result.report.find("classes-without-clips").count == 23


def test_leakage_within_and_between_data_sets(data):
    dataset = load_dataset("ave", data)
    [other] = find_other_datasets(dataset, [data])
    assert other.name == "llp"
    result = check_dataset(dataset, others=[other])
    assert {(o.first, o.second): o.count for o in result.overlaps} == {
        ("ave/train", "ave/test"): 1,
        ("ave/train", "llp/train"): 4,
        ("ave/train", "llp/val"): 1,
        ("ave/val", "llp/test"): 2,
        ("ave/test", "llp/train"): 1,
    }
    assert result.report.find("cross-split-leakage").examples == ("-bbbbbbbbbb",)
    # a, c, d are trained on in both; f and g are held out in both: neither is a leak.
    assert result.report.find("cross-dataset-leakage").examples == ("-bbbbbbbbbb", "eeeeeeeeeee")


@pytest.mark.parametrize(("split", "kept"), [("train", 0), ("val", 0), ("test", 1)])
def test_leaking_clips_are_removed_counted_and_named(data, split, kept):
    ave, llp = (load_dataset(name, data, find_media=False) for name in ("ave", "llp"))
    llp = llp.with_samples(replace(s, split=split) if s.youtube_id == "-bbbbbbbbbb" else s for s in llp.samples)
    result = without_leaks(llp, [ave])
    # The test split of a pretraining list teaches nothing: its clips may stay.
    assert result.removed == (() if kept else ("-bbbbbbbbbb_101.8_111.8",))
    assert result.by_source == ({} if kept else {"ave/test": 1})
    assert len(result.dataset.samples) == len(llp.samples) - 1 + kept
    assert without_leaks(llp, []).dataset.samples == llp.samples


def test_identical_files_in_two_splits_or_classes_are_a_warning(tmp_path):
    touch(tmp_path, ["train/a/1.mp4", "test/a/9.mp4"], b"same")
    touch(tmp_path, ["train/b/1.mp4", "train/b/2.mp4"], b"twin")
    touch(tmp_path, ["train/a/3.mp4", "train/b/3.mp4"], b"copy")
    touch(tmp_path, ["val/b/1.mp4"], b"")
    report = check_dataset(load_folder(tmp_path)).report
    assert report.find("identical-across-splits").examples == ("test/a/9.mp4 = train/a/1.mp4",)
    assert report.find("identical-across-classes").examples == ("train/a/3.mp4 = train/b/3.mp4",)
    assert report.find("identical-files").severity == "info"
    assert report.find("empty-files").count == 1


def test_json_has_the_documented_keys_and_is_valid(avfs, data):
    told = avfs.json("data", "check", "ave", "--root", data)
    assert list(told) == [
        "version", "dataset", "title", "description", "root", "form", "usable", "files", "splits", "classes",
        "compared_with", "overlaps", "probe", "supports", "findings",
    ]  # fmt: skip
    assert told["splits"]["test"] == {"listed": 2, "found": 1, "missing": 1, "expected": 402}
    bell = {"name": "Church bell", "wording": "church bell", "train": 2, "val": 1, "test": 1, "found": 3}
    assert told["classes"][0] == bell
    assert (told["compared_with"], told["probe"]) == (["llp"], None)
    assert {finding["severity"] for finding in told["findings"]} <= {"info", "warning", "error"}


def test_the_table_names_what_is_wrong_and_where_to_get_what_is_not_there(avfs, data):
    out, err = avfs("data", "check", "ave_cls", "--root", data, "--missing", "missing.txt")
    assert err.endswith("missing.txt (1 id)\n")
    text = " ".join(out.split())
    assert "missing official" in text
    parts = ("AVE: 9 clips, 28 classes", "Frying (food)", "ave/train ave/test 1", "1 of 9 clips have no media file")
    for part in (*parts, "88.9 % of 9 clips have media."):
        assert part in text
    assert (data / "missing.txt").read_text() == "hhhhhhhhhhh\n"
    out, _ = avfs("data", "check", "llp", "--root", "LLP", status=1)
    text = " ".join(out.split())
    assert "No clip of LLP has media below" in text
    assert "The annotation files are in data/ of the source repository" in text


def test_a_folder_of_clips_can_be_checked_and_brackets_in_its_names_are_no_markup(avfs, tmp_path):
    touch(tmp_path, [f"[bold]{name}/{number}.mp4" for name in "ab" for number in range(5)])
    out, _ = avfs("data", "check", "folder", "--root", tmp_path)
    assert "[bold]a" in out
    assert "official" not in out  # nobody says how many there should be
    told = avfs.json("data", "check", "folder", "--root", tmp_path)
    assert (told["splits"]["train"]["found"], told["usable"]) == (6, True)


def test_the_root_may_come_from_the_settings(avfs, data, monkeypatch):
    (data / "avfs.toml").write_text('[data]\nroot = "."\nave = "AVE"\n')
    avfs("data", "check", "ave")
    monkeypatch.setenv("AVFS_DATA_AVE", "nowhere")
    assert "nowhere does not exist" in avfs.refused("data", "check", "ave")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("ave", "Where is AVE.*--root DIR"),
        ("av", "no task 'av'"),
        ("ave --root . --format xml", "table, json"),
        ("folder", "needs --root"),
        ("folder --root . --list x", "not for a folder"),
        ("ave --root AVE --against absent", "no such folder"),
        ("ave --root AVE --media absent", "media folder absent does not exist"),
    ],
)
def test_misuse_is_one_clear_error(avfs, data, arguments, message):
    assert re.search(message, " ".join(avfs.refused("data", "check", *arguments.split()).split()))


def test_a_data_set_elsewhere_can_be_compared_with(avfs, tmp_path):
    write_files(tmp_path / "elsewhere" / "AVVP", LLP_FILES)
    write_files(tmp_path / "alone" / "deep", AVE_FILES | {"aaaaaaaaaaa.mp4": b"x"})
    asked = ("data", "check", "ave", "--root", "alone/deep")
    assert avfs.json(*asked)["compared_with"] == []
    assert avfs.json(*asked, "--against", "elsewhere")["compared_with"] == ["llp"]


def test_official_supports_are_checked():
    result = check_dataset(load_dataset("ave", official("AVE")))
    assert result.supports == "match"
    assert check_dataset(load_dataset("vggsound", official("VGGSound"))).supports is None


def test_real_files_are_opened(tmp_path):
    sound = 0.3 * np.sin(np.arange(2 * 48000) / 20)[None].astype(np.float32)
    ids = {name: name.rjust(11, "_") for name in ("good", "silent", "mute", "short", "blind", "broken")}
    write_description(tmp_path, segments=2, classes=["Bark", "Cat"], files=[{"role": "train", "names": ["train.txt"]}])
    write_files(tmp_path, {"train.txt": "".join(f"Bark&{name}&good&0&2\n" for name in ids.values())})
    files = {name: tmp_path / f"{written}.{'wav' if name == 'blind' else 'mp4'}" for name, written in ids.items()}
    write_media(files["good"], seconds=2, audio=sound)
    write_media(files["silent"], seconds=2, audio=0 * sound)
    write_media(files["mute"], seconds=2)
    write_media(files["short"], seconds=1, audio=sound[:, :48000])
    write_audio(files["blind"], sound)
    files["broken"].write_bytes(files["good"].read_bytes()[:300])
    done = []
    result = check_dataset(load_dataset("ave", tmp_path), probe=True, progress=done.append)
    problems = {"silent": ("silent",), "mute": ("no-audio",), "short": ("short",), "blind": ("no-video",)}
    problems |= {"good": (), "broken": ("broken",)}
    assert {probe.path.stem.strip("_"): probe.problems for probe in result.probes} == problems
    assert done == [1] * 6
    assert result.report.find("media-broken").examples[0].startswith(f"{files['broken']}: ")
    assert result.report.find("media-short").message == "Files shorter than the 2 seconds that are annotated."
    told = result.to_dict()["probe"]
    assert (told["files"], told["good"], told["short"]["count"]) == (6, 1, 1)
    assert not probe_file(files["short"], None).problems


def test_names_that_a_terminal_would_obey_are_escaped_in_text_and_json(avfs, tmp_path):
    names = ("1\x1b]0;x\x07", "2\x9b31m", "\u202e3", "4\u72ac")
    clips = [f"{folder}/{name}.mp4" for folder in ("a", "b") for name in names]
    touch(tmp_path, [*clips, os.fsdecode(b"a/\xff.mp4"), "\x1b[2Jstray.mp4"])
    for form in ("table", "json"):
        said, _ = avfs("data", "check", "folder", "--root", tmp_path, "--format", form)
        assert "stray.mp4" in said
        assert all(letter.isprintable() or letter == "\n" for letter in said)
    assert json.loads(said)["findings"][0]["examples"] == ["\x1b[2Jstray.mp4"]


def test_official_overlaps():
    root = official("AVE").parent
    official("LLP"), official("OV-AVEBench")
    ave, llp, ovave = (load_dataset(name, root, find_media=False) for name in ("ave", "llp", "ovave"))
    within = {(o.first, o.second): o.count for o in shared_videos(ave, ave)}
    assert within == {("ave/train", "ave/val"): 10, ("ave/train", "ave/test"): 8}
    assert len(youtube_ids(ave) & youtube_ids(llp)) == 394
    pairs = {(o.first, o.second): o.count for o in shared_videos(ave, llp)}
    assert (pairs["ave/test", "llp/train"], pairs["ave/train", "llp/test"]) == (36, 26)
    by_source = without_leaks(ovave, [ave, llp]).by_source
    assert by_source == {"ave/val": 20, "ave/test": 12, "llp/val": 10, "llp/test": 15}
