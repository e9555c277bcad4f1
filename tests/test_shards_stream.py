from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from shards_support import SIDE, make_dataset, names, prepared, train_source

from avfewshot.data.clip_source import LabelledClip, RawSource, read_start, share
from avfewshot.data.shards import reader
from avfewshot.data.shards.reader import ShardSet
from avfewshot.errors import UsageError
from avfewshot.media.clip import Failure
from avfewshot.media.clip_cache import rounded
from avfewshot.media.stream import ordered_map

READ = partial(read_start, frame_size=SIDE)


def raw_source(**options) -> RawSource:
    dataset = make_dataset()
    return RawSource(dataset, dataset.split("train"), READ, **{"threads": 0, **options})


SOURCES = pytest.mark.parametrize("make", [train_source, raw_source], ids=["shards", "raw"])
EVERY_CLIP = sorted((sample.id, sample.labels[0]) for sample in make_dataset().split("train"))


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Decodes nothing unless a test asks for it: what is tested here is the order."""
    monkeypatch.setattr(reader, "decode_members", _only_record)
    monkeypatch.setattr(
        RawSource, "_decode", lambda self, row: LabelledClip(self.samples[row].id, self.samples[row].labels, None)
    )


REAL_DECODE = reader.decode_members
REAL_READ = RawSource._decode


def _only_record(members, path):
    from avfewshot.data.shards.record import ClipRecord

    return None, ClipRecord.parse(members["json"])


@SOURCES
@pytest.mark.parametrize("world", [1, 2, 3, 6])
def test_all_ranks_together_see_every_clip_exactly_once(make, world):
    source = make()
    seen = [names(source.stream(seed=1, epoch=2, rank=rank, world=world)) for rank in range(world)]
    assert sorted(chain.from_iterable(seen)) == EVERY_CLIP
    assert [len(part) for part in seen] == [source.count(rank, world) for rank in range(world)]
    assert max(map(len, seen)) - min(map(len, seen)) <= 1


@SOURCES
def test_a_stream_can_be_entered_anywhere(make):
    source = make()
    whole = names(source.stream(seed=3, epoch=1, rank=1, world=2))
    for start in range(len(whole) + 2):
        assert names(source.stream(seed=3, epoch=1, rank=1, world=2, start=start)) == whole[start:]


@SOURCES
def test_the_order_follows_from_seed_and_epoch(make):
    source = make()
    orders = {key: names(source.stream(seed=key[0], epoch=key[1])) for key in [(1, 0), (1, 1), (2, 0)]}
    assert names(make().stream(seed=1, epoch=0)) == orders[1, 0]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert all(sorted(order) == EVERY_CLIP for order in orders.values())


@SOURCES
def test_without_a_seed_the_order_is_that_of_the_files(make):
    source = make()
    order = names(source.stream(seed=None))
    assert order == names(source.stream(seed=None, epoch=7))
    assert [name for name, _ in order] == [item.id if make is raw_source else item for item in _filed(source)]


def _filed(source):
    return source.samples if isinstance(source, RawSource) else source.ids


@SOURCES
def test_threads_change_nothing(make):
    assert names(make(threads=3).stream(seed=1)) == names(make().stream(seed=1))


def test_a_small_buffer_still_gives_every_clip_and_mixes_less():
    wide, narrow = (names(train_source(buffer=size).stream(seed=1)) for size in (200, 2))
    assert sorted(narrow) == sorted(wide) == EVERY_CLIP
    assert narrow != wide


def test_used_clips_are_not_decoded(monkeypatch):
    decoded = []
    monkeypatch.setattr(
        reader, "decode_members", lambda members, path: (decoded.append(path), _only_record(members, path))[1]
    )
    names(train_source().stream(seed=1, start=10))
    assert len(decoded) == 3


@SOURCES
@pytest.mark.parametrize("place", [{"rank": 2, "world": 2}, {"rank": -1}, {"start": -1}])
def test_a_place_that_does_not_exist_is_refused_at_once(make, place):
    with pytest.raises(UsageError):
        make().stream(seed=0, **place)


def test_shares_are_even_and_complete():
    for total in range(7):
        for world in range(1, 5):
            shares = [share(total, rank, world) for rank in range(world)]
            assert sum(shares) == total
            assert max(shares) - min(shares) <= 1


def test_shards_give_the_tensors_of_raw_decoding(monkeypatch):
    monkeypatch.setattr(reader, "decode_members", REAL_DECODE)
    monkeypatch.setattr(RawSource, "_decode", REAL_READ)
    raw = {(item.id, item.labels): item for item in raw_source().stream(seed=0, world=3)}
    for item in train_source().stream(seed=0, world=2):
        if (item.id, item.labels) not in raw:
            continue
        clip, other = item.clip, raw[item.id, item.labels].clip
        assert item.segments == raw[item.id, item.labels].segments
        assert (clip.duration, clip.start, clip.last) == (other.duration, other.start, other.last)
        assert (clip.frames is None, clip.waveform is None) == (other.frames is None, other.waveform is None)
        if clip.frames is not None:
            assert clip.frames.dtype == torch.uint8
            assert clip.frames.shape == other.frames.shape
            assert (clip.frames.float() - other.frames.float()).abs().mean() < 3
        if clip.waveform is not None:
            assert torch.equal(clip.waveform, rounded(other.waveform))


def test_labels_and_segments_are_indices_again():
    samples = {(s.id, s.row): s for s in make_dataset().split("train")}
    for item in train_source().stream(seed=0):
        candidates = [s for s in samples.values() if s.id == item.id]
        assert (item.labels, item.segments) in [(s.labels, s.segments) for s in candidates]


def test_a_raw_file_that_cannot_be_read_is_named_and_the_rest_goes_on(monkeypatch):
    monkeypatch.setattr(RawSource, "_decode", REAL_READ)
    dataset = make_dataset(broken=("val/a.b/1.mp4",))
    items = list(RawSource(dataset, dataset.split("val"), READ, threads=2).stream(seed=0))
    (failure,) = [item for item in items if isinstance(item, Failure)]
    assert (failure.id, Path(failure.path).name) == ("val/a.b/1.mp4", "none.mp4")
    assert failure.error
    assert len(items) == 3


@pytest.mark.parametrize("cut", [False, True], ids=["overwritten", "cut off"])
def test_a_shard_damaged_after_it_was_opened_costs_only_clips_behind_the_damage(tmp_path, cut):
    folder = prepared(tmp_path / "shards")
    source = ShardSet.open(folder).split("val", threads=0)
    path = folder / "small-set-val-000000.tar"
    data = path.read_bytes()
    at = data.index(b"000001_")  # the header of the second clip
    path.write_bytes(data[:at] if cut else data[:at] + b"\xff" * 512 + data[at + 512 :])
    items = list(source.stream(seed=None))
    assert [isinstance(item, Failure) for item in items] == [False, True, True]
    assert [item.id for item in items] == list(source.ids)
    assert "small-set-val-000000.tar" in str(items[1].path)


def test_a_shard_that_vanished_is_told_for_each_clip(tmp_path):
    folder = prepared(tmp_path / "shards")
    source = ShardSet.open(folder).split("val", threads=0)
    (folder / "small-set-val-000000.tar").unlink()
    items = list(source.stream(seed=0))
    assert len(items) == 3
    assert all("No such file" in item.error for item in items)


def test_two_shards_that_were_exchanged_are_noticed(tmp_path):
    folder = prepared(tmp_path / "shards")
    source = ShardSet.open(folder).split("train", threads=0)
    shutil.copy(folder / "small-set-val-000000.tar", folder / "small-set-train-000000.tar")
    failures = [item for item in source.stream(seed=0) if isinstance(item, Failure)]
    assert {Path(failure.path).parent.name for failure in failures} == {"small-set-train-000000.tar"}
    assert len(failures) == 4


@pytest.mark.parametrize(
    ("change", "text"),
    [({"frame_side": 64}, "not of the size"), ({"classes": ("dog", "rain", "cat")}, "not in the index")],
)
def test_clips_that_contradict_the_index_are_failures(change, text):
    source = train_source()
    spoilt = reader.ShardSource(source._folder, replace(source._index, **change), source._entries, threads=0, buffer=1)
    failures = [item for item in spoilt.stream(seed=None) if isinstance(item, Failure)]
    assert failures
    assert all(text in failure.error for failure in failures)


def test_a_clip_under_another_name_is_a_failure():
    source = train_source()
    first = source._entries[0]
    renamed = replace(first, clips=(replace(first.clips[0], id="other"), *first.clips[1:]))
    spoilt = reader.ShardSource(source._folder, source._index, [renamed], threads=0, buffer=1)
    items = list(spoilt.stream(seed=None))
    assert [isinstance(item, Failure) for item in items] == [True, False, False, False]


def test_work_ahead_keeps_the_order_and_a_bound():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    results = ordered_map(lambda number: number * number, items(), workers=2)
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == [number**2 for number in range(1, 20)]


def test_an_error_in_work_ahead_comes_in_its_place():
    results = ordered_map(lambda number: 1 // number, [1, 0, 1], workers=1)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
