from __future__ import annotations

from dataclasses import replace

import pytest
from dataset_files import AVE_FILES, LLP_FILES, official, write_files

from avfewshot.data.leakage import cross_dataset_overlaps, cross_split_overlaps, without_leaks, youtube_ids
from avfewshot.data.load import load_dataset


@pytest.fixture
def ave(tmp_path):
    return load_dataset("ave", write_files(tmp_path / "AVE", AVE_FILES), find_media=False)


@pytest.fixture
def llp(tmp_path):
    return load_dataset("llp", write_files(tmp_path / "LLP", LLP_FILES), find_media=False)


def test_videos_in_two_splits(ave, llp):
    overlaps = cross_split_overlaps(ave)
    assert [(o.first, o.second, o.ids) for o in overlaps] == [("ave/train", "ave/test", ("-bbbbbbbbbb",))]
    assert cross_split_overlaps(llp) == []


def test_videos_in_two_data_sets_whatever_their_times(ave, llp):
    pairs = {(o.first, o.second): o.count for o in cross_dataset_overlaps(ave, llp)}
    assert pairs[("ave/train", "llp/train")] == 4
    assert pairs[("ave/train", "llp/val")] == 1
    assert pairs[("ave/test", "llp/train")] == 1


def test_leaking_clips_are_removed_counted_and_named(ave, llp):
    result = without_leaks(llp, [ave])
    assert result.removed == ("-bbbbbbbbbb_101.8_111.8",)
    assert result.by_source == {"ave/test": 1}
    assert not youtube_ids(result.dataset, ["train", "val"]) & youtube_ids(ave, ["val", "test"])
    assert len(result.dataset.samples) == len(llp.samples) - 1


@pytest.mark.parametrize(("split", "left"), [("train", 0), ("val", 0), ("test", 1)])
def test_leaks_go_from_the_clips_learnt_from_and_from_those_that_choose_the_model(ave, llp, split, left):
    leaking = [replace(s, split=split) if s.youtube_id == "-bbbbbbbbbb" else s for s in llp.samples]
    result = without_leaks(llp.with_samples(leaking), [ave])
    # The test split of a pretraining list teaches nothing: its clips may stay.
    assert sum(sample.youtube_id == "-bbbbbbbbbb" for sample in result.dataset.samples) == left


def test_nothing_to_protect_removes_nothing(llp):
    result = without_leaks(llp, [])
    assert result.dataset.samples == llp.samples
    assert (result.removed, result.by_source) == ((), {})


def test_official_overlaps():
    root = official("AVE").parent
    official("LLP"), official("OV-AVEBench")
    ave, llp, ovave = (load_dataset(name, root, find_media=False) for name in ("ave", "llp", "ovave"))
    assert {(o.first, o.second): o.count for o in cross_split_overlaps(ave)} == {
        ("ave/train", "ave/val"): 10,
        ("ave/train", "ave/test"): 8,
    }
    assert len(youtube_ids(ave) & youtube_ids(llp)) == 394
    pairs = {(o.first, o.second): o.count for o in cross_dataset_overlaps(ave, llp)}
    assert pairs[("ave/test", "llp/train")] == 36
    assert pairs[("ave/train", "llp/test")] == 26
    removal = without_leaks(ovave, [ave, llp], from_splits=["train"], into_splits=["test"])
    assert removal.by_source == {"ave/test": 8, "llp/test": 7}
