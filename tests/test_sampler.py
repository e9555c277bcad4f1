import hashlib
import itertools
import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_files import official

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.description import ClassEntry, Description, load_description
from avfewshot.data.load import load_dataset
from avfewshot.data.sampler import draw_support, draw_validation, fingerprint, support_table, with_spare_clips
from avfewshot.errors import AvfsError

CLASSES = ("cat", "dog", "bird")


def make(labels_of: list[tuple[int, ...]], multi_label: bool = False) -> Dataset:
    samples = [Sample(f"clip{row:03d}", labels, "train", row) for row, labels in enumerate(labels_of)]
    samples += [Sample(f"test{label}", (label,), "test", label) for label in range(3)]
    entries = tuple(ClassEntry(name, name) for name in CLASSES)
    description = Description("toy", "toy", "folder", ("toy",), entries, (), multi_label=multi_label)
    return Dataset(description, Path(), CLASSES, CLASSES, tuple(samples), multi_label)


@pytest.fixture
def dataset():
    return make([(row % 3,) for row in range(90)])


def ids(support) -> list[str]:
    return sorted(sample.id for sample in support.samples)


@pytest.mark.parametrize("sampler", ["nested", "first-k"])
def test_supports_are_k_training_clips_of_every_class_and_nested_over_k(dataset, sampler):
    for seed in (1, 2, 3):
        smaller = set()
        for k in range(1, 20):
            support = draw_support(dataset, k, seed, sampler=sampler)
            assert [sample.label for sample in support.samples] == sorted([0, 1, 2] * k)
            assert {sample.split for sample in support.samples} == {"train"}
            assert support.short == {}
            assert smaller < set(ids(support))
            smaller = set(ids(support))


def test_the_order_of_rows_does_not_matter_and_added_rows_change_only_what_they_displace(dataset):
    samples = list(dataset.samples)
    random.Random(0).shuffle(samples)
    shuffled = dataset.with_samples(replace(sample, row=row) for row, sample in enumerate(samples))
    for k in (1, 5, 16):
        assert ids(draw_support(shuffled, k, 1)) == ids(draw_support(dataset, k, 1))
    first = [f"clip{row:03d}" for row in range(6)]
    assert ids(draw_support(dataset, 2, sampler="first-k")) == first
    assert ids(draw_support(shuffled, 2, sampler="first-k")) != first
    added = [Sample(f"new{number}", (0,), "train", 1000 + number) for number in range(30)]
    before, after = (
        set(ids(draw_support(data, 10, 1))) for data in (dataset, dataset.with_samples([*samples, *added]))
    )
    assert before - after <= {s.id for s in dataset.samples if s.labels == (0,)}
    assert len(before - after) == len([name for name in after if name.startswith("new")]) > 0


def test_seeds_and_classes_are_independent_draws(dataset):
    assert ids(draw_support(dataset, 5, 1)) == ids(draw_support(dataset, 5, 1))
    assert ids(draw_support(dataset, 5, 1)) != ids(draw_support(dataset, 5, 2))
    same_ids = dataset.with_samples(
        Sample(f"clip{row}", (label,), "train", row) for label in range(3) for row in range(30)
    )
    drawn = draw_support(same_ids, 5, 1).samples
    assert len({tuple(s.id for s in drawn if s.label == label) for label in range(3)}) == 3


def test_the_draw_is_about_even():
    dataset = make([(row % 3,) for row in range(30)])
    hits = Counter(name for seed in range(300) for name in ids(draw_support(dataset, 5, seed)))
    assert len(hits) == 30
    # Each of ten clips is drawn with probability 1/2: 150 +- 8.7 of 300; five standard deviations.
    assert 106 < min(hits.values()) <= max(hits.values()) < 194


def test_a_class_with_fewer_clips_is_used_whole_and_said():
    support = draw_support(make([(0,)] * 5 + [(1,)] * 2), 4)
    assert support.short == {"dog": 2, "bird": 0}
    assert len(support.samples) == 6
    text = " ".join(support.describe())
    assert "Classes without any clip to draw: bird." in text
    assert "Classes with fewer than 4 training clips, used whole: dog (2)." in text
    names = tuple(f"class {number}" for number in range(20))
    many = draw_support(replace(make([(0,)]), classes=names, wordings=names), 1)
    assert "class 8 and 11 more." in " ".join(many.describe())


def test_clips_put_aside_to_choose_by_fill_up_short_classes_where_nothing_is_chosen_by_them():
    dataset = with_val(make([(0,)] * 5 + [(1,)] * 2), 3)
    dataset = dataset.with_samples(replace(sample, path=Path(sample.id)) for sample in dataset.samples)
    supports = {}
    for shots in (2, 4, 5):
        filled = with_spare_clips(dataset, draw_support(dataset, shots))
        supports[shots] = draw_support(filled, shots)
        assert filled.split_sizes["train"] == 7 + max(0, shots - 2) + min(shots, 3)
    assert set(ids(supports[2])) < set(ids(supports[4])) < set(ids(supports[5]))
    assert supports[4].short == {"bird": 3}


def test_single_label_clips_by_default_all_on_request():
    dataset = make([(0,), (0, 1), (1,), (1, 2), (0, 1, 2)] * 4, multi_label=True)
    single = draw_support(dataset, 3, 1)
    assert all(len(sample.labels) == 1 for sample in single.samples)
    assert single.short == {"bird": 0}
    everything = draw_support(dataset, 3, 1, multi_label=True)
    assert everything.short == {}
    assert len({sample.id for sample in everything.samples}) == len(everything.samples) <= 9
    for label in range(3):
        assert sum(label in sample.labels for sample in everything.samples) >= 3


def test_clips_without_any_second_of_their_event_are_not_drawn():
    dataset = make([(0,)] * 2 + [(1,)] * 2 + [(2,)] * 2)
    silent = [replace(s, segments=(3 if s.row % 2 else s.label,) * 10) for s in dataset.samples]
    support = draw_support(dataset.with_samples(silent), 2)
    assert ids(support) == ["clip000", "clip002", "clip004"]
    assert support.short == dict.fromkeys(CLASSES, 1)


def test_missing_media_are_replaced_by_the_next_in_rank(dataset, tmp_path):
    whole = draw_support(dataset, 4, 1)
    lost = {whole.samples[0].id, whole.samples[5].id}
    present = dataset.with_samples(replace(s, path=None if s.id in lost else tmp_path / s.id) for s in dataset.samples)
    support = draw_support(present, 4, 1, only_available=True)
    assert set(support.replaced) == lost == set(ids(whole)) - set(ids(support))
    assert len(support.samples) == 12
    assert set(ids(support)) < set(ids(draw_support(dataset, 6, 1)))
    assert ids(draw_support(present, 4, 1)) == ids(whole)
    assert "2 clips of the support have no media" in " ".join(support.describe())


def test_a_support_can_be_stored_with_the_digest_of_its_sorted_ids(dataset):
    assert fingerprint(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()
    assert fingerprint(["a"]) != fingerprint(["a", "a"])
    support = draw_support(dataset, 2, 7)
    stored = json.loads(json.dumps(support.to_dict()))
    assert stored["ids"] == ids(support)
    assert stored["fingerprint"] == fingerprint(ids(support))
    assert (stored["shots"], stored["seed"], stored["sampler"], stored["algorithm"]) == (2, 7, "nested", "nested-1")
    assert (support.pinned, support.matches_pinned) == (None, None)


def test_without_training_clips_there_is_one_clear_error():
    with pytest.raises(AvfsError, match="no training clip to draw"):
        draw_support(make([]), 1)


@pytest.mark.parametrize(
    ("name", "folder", "clips", "short"),
    [("ave", "AVE", 448, 0), ("llp", "LLP", 384, 1), ("ovave", "OV-AVEBench", 724, 22)],
)
def test_pinned_fingerprints_are_those_of_the_official_files(name, folder, clips, short):
    dataset = load_dataset(name, official(folder), find_media=False)
    pinned = load_description(name).supports
    assert set(pinned["nested"]) == {1, 2, 3}
    assert set(pinned["nested"][1]) == {1, 2, 4, 8, 16}
    assert support_table(dataset) == pinned
    support = draw_support(dataset, 16, 2)
    assert (len(support.samples), len(support.short)) == (clips, short)
    assert name != "llp" or support.short == {"Speech": 0}
    assert support.matches_pinned
    assert "(the published one" in support.describe()[0]


def test_official_ave_test_videos_are_in_no_support_and_no_validation():
    dataset = load_dataset("ave", official("AVE"), find_media=False)
    support = draw_support(dataset, 16, 2)
    assert len(support.overlapping) == 2
    tested = {sample.youtube_id for sample in dataset.split("test")}
    assert not {sample.youtube_id for sample in support.samples} & tested
    assert "2 clips show videos that are also in the test split" in " ".join(support.describe())
    everything = draw_support(dataset, 1000, 1)
    assert len(everything.overlapping) == 8
    whole = draw_validation(dataset, 16, 1, count="all", support=everything.samples)
    assert len(whole.samples) + len(whole.overlapping) == 402
    assert not {sample.youtube_id for sample in whole.samples} & {s.youtube_id for s in everything.samples}


def with_val(dataset: Dataset, per_class: int) -> Dataset:
    val = [Sample(f"val{row:03d}", (row % 3,), "val", row) for row in range(3 * per_class)]
    return dataset.with_samples([*dataset.samples, *val])


def test_validation_clips_are_drawn_per_class_from_the_val_split_nested_and_seeded(dataset):
    for shots, count, each in ((1, None, 1), (16, None, 4), (16, 0, 0), (2, 7, 7), (2, "all", 9)):
        drawn = draw_validation(with_val(dataset, 9), shots, 1, count=count)
        assert {sample.split for sample in drawn.samples} <= {"val"}
        assert sorted(sample.label for sample in drawn.samples) == sorted([0, 1, 2] * each)
    data = with_val(dataset, 20)
    draws = [set(ids(draw_validation(data, 16, 1, count=count))) for count in range(5)]
    assert all(small < large for small, large in itertools.pairwise(draws))
    assert draws[4] != set(ids(draw_validation(data, 16, 2, count=4)))
    assert ids(draw_support(data, 4, 1)) == ids(draw_support(dataset, 4, 1))


def test_without_a_val_split_validation_is_drawn_beside_the_support(dataset):
    support = draw_support(dataset, 28, 1)
    drawn = draw_validation(dataset, 28, 1, support=support.samples)
    assert (drawn.split, drawn.short) == ("train", dict.fromkeys(CLASSES, 2))
    assert len(drawn.samples) == 6
    assert not set(ids(drawn)) & set(ids(support))
    assert "6 clips of the train split" in drawn.describe()[0]


def test_videos_of_the_test_split_are_in_neither(dataset, tmp_path):
    """The same by YouTube id and by links to one file."""
    by_id = [replace(s, youtube_id="x" * 11 if s.id in ("clip000", "test0") else None) for s in dataset.samples]
    (tmp_path / "clip000").write_bytes(b"")
    (tmp_path / "test0").symlink_to("clip000")
    by_file = [replace(s, path=tmp_path / s.id) for s in dataset.samples]
    for samples in (by_id, by_file):
        data = dataset.with_samples(samples)
        support = draw_support(data, 30, 1)
        assert support.overlapping == ("clip000",)
        assert "clip000" not in ids(support)
        assert support.short == {"cat": 29}
        assert support.fingerprint == fingerprint(ids(support)) != support.drawn
        assert "clip000" not in ids(draw_validation(data, 30, 1, count=30))
    val = dataset.with_samples(replace(s, split="val") if s.split == "train" else s for s in by_id)
    assert draw_validation(val, 1, 1, count="all").overlapping == ("clip000",)
