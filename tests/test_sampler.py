from __future__ import annotations

import hashlib
import itertools
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from dataset_files import official

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.description import load_description
from avfewshot.data.load import load_dataset
from avfewshot.data.sampler import draw_support, fingerprint, support_table
from avfewshot.data.schema import ClassEntry, Description
from avfewshot.errors import DataError, UsageError

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


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_k_clips_of_every_class_and_only_from_training(dataset, shots):
    support = draw_support(dataset, shots, seed=1)
    assert [sample.label for sample in support.samples] == sorted([0, 1, 2] * shots)
    assert {sample.split for sample in support.samples} == {"train"}
    assert support.short == {}


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("sampler", ["nested", "first-k"])
def test_supports_are_nested_over_k(dataset, seed, sampler):
    drawn = [set(ids(draw_support(dataset, k, seed, sampler=sampler))) for k in range(1, 20)]
    assert all(small < large for small, large in itertools.pairwise(drawn))


def test_the_order_of_rows_does_not_matter(dataset):
    samples = list(dataset.samples)
    random.Random(0).shuffle(samples)
    shuffled = dataset.with_samples(
        Sample(sample.id, sample.labels, sample.split, row) for row, sample in enumerate(samples)
    )
    for k in (1, 5, 16):
        assert ids(draw_support(shuffled, k, 1)) == ids(draw_support(dataset, k, 1))
    assert ids(draw_support(shuffled, 5, sampler="first-k")) != ids(draw_support(dataset, 5, sampler="first-k"))


def test_rows_added_elsewhere_change_only_what_they_displace(dataset):
    before = set(ids(draw_support(dataset, 10, 1)))
    added = [Sample(f"new{number}", (0,), "train", 1000 + number) for number in range(30)]
    after = set(ids(draw_support(dataset.with_samples([*dataset.samples, *added]), 10, 1)))
    assert before - after <= {s.id for s in dataset.samples if s.labels == (0,)}
    new = {name for name in after if name.startswith("new")}
    assert len(before - after) == len(new) > 0


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
    hits = {f"clip{row:03d}": 0 for row in range(30)}
    for seed in range(300):
        for name in ids(draw_support(dataset, 5, seed)):
            hits[name] += 1
    # Each of ten clips is drawn with probability 1/2: 150 +- 8.7 of 300; five standard deviations.
    assert min(hits.values()) > 106
    assert max(hits.values()) < 194


def test_first_k_takes_the_first_rows(dataset):
    support = draw_support(dataset, 2, sampler="first-k")
    assert ids(support) == [f"clip{row:03d}" for row in range(6)]


def test_a_class_with_fewer_clips_is_used_whole_and_said():
    support = draw_support(make([(0,)] * 5 + [(1,)] * 2), 4)
    assert support.short == {"dog": 2, "bird": 0}
    assert len(support.samples) == 6
    text = " ".join(support.describe())
    assert "Classes without any clip to draw: bird." in text
    assert "Classes with fewer than 4 clips, used whole: dog (2)." in text


def test_long_lists_of_classes_are_cut_short_for_people():
    names = tuple(f"class {number}" for number in range(20))
    support = draw_support(replace(make([(0,)]), classes=names, wordings=names), 1)
    assert "class 8 and 11 more." in " ".join(support.describe())


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
    silent = [
        Sample(s.id, s.labels, s.split, s.row, segments=(3,) * 10 if s.row % 2 else (s.label,) * 10)
        for s in dataset.samples
    ]
    support = draw_support(dataset.with_samples(silent), 2)
    assert ids(support) == ["clip000", "clip002", "clip004"]
    assert support.short == dict.fromkeys(CLASSES, 1)


def test_missing_media_are_replaced_by_the_next_in_rank(dataset, tmp_path):
    official_draw = draw_support(dataset, 4, 1)
    lost = {official_draw.samples[0].id, official_draw.samples[5].id}
    present = dataset.with_samples(
        Sample(s.id, s.labels, s.split, s.row, path=None if s.id in lost else tmp_path) for s in dataset.samples
    )
    support = draw_support(present, 4, 1, only_available=True)
    assert set(support.replaced) == lost
    assert set(ids(official_draw)) - set(ids(support)) == lost
    assert len(support.samples) == 12
    assert set(ids(support)) < set(ids(draw_support(dataset, 6, 1)))
    assert ids(draw_support(present, 4, 1)) == ids(official_draw)
    assert "2 clips of the support have no media" in " ".join(support.describe())


def test_a_fingerprint_is_the_digest_of_the_sorted_ids(dataset):
    assert fingerprint(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()
    assert fingerprint(["a"]) != fingerprint(["a", "a"])
    support = draw_support(dataset, 3, 1)
    assert support.fingerprint == fingerprint(ids(support))
    assert support.pinned is None
    assert support.matches_pinned is None


def test_a_support_can_be_stored(dataset):
    stored = json.loads(json.dumps(draw_support(dataset, 2, 7).to_dict()))
    assert stored["ids"] == ids(draw_support(dataset, 2, 7))
    assert (stored["shots"], stored["seed"], stored["sampler"], stored["algorithm"]) == (2, 7, "nested", "nested-1")


def test_nonsense_is_one_clear_error(dataset):
    with pytest.raises(UsageError, match=r"at least 1 shot per class, not 0.*avfs zeroshot"):
        draw_support(dataset, 0)
    with pytest.raises(UsageError, match="nested, first-k"):
        draw_support(dataset, 1, sampler="random")
    with pytest.raises(DataError, match="no training clip to draw"):
        draw_support(make([]), 1)


@pytest.mark.parametrize(("name", "folder"), [("ave", "AVE"), ("llp", "LLP"), ("ovave", "OV-AVEBench")])
def test_pinned_fingerprints_are_those_of_the_official_files(name, folder):
    dataset = load_dataset(name, official(folder), find_media=False)
    pinned = load_description(name).supports
    assert set(pinned["nested"]) == {1, 2, 3}
    assert set(pinned["nested"][1]) == {1, 2, 4, 8, 16}
    assert support_table(dataset) == pinned
    support = draw_support(dataset, 16, 2)
    assert support.matches_pinned
    assert "(the published one)" in support.describe()[0]


def test_official_llp_support_of_sixteen_has_384_clips_and_no_speech():
    support = draw_support(load_dataset("llp", official("LLP"), find_media=False), 16, 1)
    assert len(support.samples) == 384
    assert support.short == {"Speech": 0}
