import shutil
from dataclasses import replace
from functools import partial
from itertools import chain
from pathlib import Path

import pytest
import torch
from shards_support import SIDE, make_dataset, names, prepared, train_source

from avfewshot.data.clip_source import RawSource, read_start
from avfewshot.data.shards import reader
from avfewshot.data.shards.reader import ShardSet
from avfewshot.data.shards.record import ClipRecord
from avfewshot.media.clip import Failure
from avfewshot.media.clip_bytes import rounded
from avfewshot.media.stream import ordered_map

READ = partial(read_start, frame_size=SIDE)


def raw_source(**options) -> RawSource:
    dataset = make_dataset()
    return RawSource(dataset, dataset.split("train"), READ, **{"threads": 0, **options})


SOURCES = pytest.mark.parametrize("make", [train_source, raw_source], ids=["shards", "raw"])
EVERY_CLIP = sorted((sample.id, sample.labels[0]) for sample in make_dataset().split("train"))


@SOURCES
def test_all_ranks_together_see_every_clip_exactly_once_from_any_place(make):
    source = make()
    for world in (1, 2, 3, 6):
        seen = [names(source.stream(seed=1, epoch=2, rank=rank, world=world)) for rank in range(world)]
        assert sorted(chain.from_iterable(seen)) == EVERY_CLIP
        assert [len(part) for part in seen] == [source.count(rank, world) for rank in range(world)]
        assert max(map(len, seen)) - min(map(len, seen)) <= 1
    whole = names(source.stream(seed=3, epoch=1, rank=1, world=2))
    for start in (0, 1, 4, len(whole), len(whole) + 1):
        assert names(source.stream(seed=3, epoch=1, rank=1, world=2, start=start)) == whole[start:]


@SOURCES
def test_the_order_follows_from_seed_and_epoch_and_is_otherwise_that_of_the_files(make):
    source = make()
    orders = {key: names(source.stream(seed=key[0], epoch=key[1])) for key in [(1, 0), (1, 1), (2, 0)]}
    assert names(make(threads=3).stream(seed=1, epoch=0)) == orders[1, 0]
    assert len({tuple(order) for order in orders.values()}) == 3
    assert all(sorted(order) == EVERY_CLIP for order in orders.values())
    filed = [sample.id for sample in source.samples] if make is raw_source else list(source.ids)
    for epoch in (0, 7):
        assert [name for name, _ in names(source.stream(seed=None, epoch=epoch))] == filed


def test_a_small_buffer_still_gives_every_clip_and_mixes_less():
    wide, narrow = (names(train_source(buffer=size).stream(seed=1)) for size in (200, 2))
    assert sorted(narrow) == sorted(wide) == EVERY_CLIP
    assert narrow != wide


def test_used_clips_are_not_decoded(monkeypatch):
    decoded, real = [], ClipRecord.parse
    monkeypatch.setattr(ClipRecord, "parse", lambda content: decoded.append(content) or real(content))
    names(train_source().stream(seed=1, start=10))
    assert len(decoded) == 3


def test_shards_give_the_tensors_of_raw_decoding():
    raw = {(item.id, item.labels): item for item in raw_source().stream(seed=0)}
    for item in train_source().stream(seed=0):
        other = raw[item.id, item.labels]
        assert item.segments == other.segments
        clip, other = item.clip, other.clip
        assert (clip.duration, clip.start, clip.last) == (other.duration, other.start, other.last)
        assert (clip.frames is None, clip.waveform is None) == (other.frames is None, other.waveform is None)
        if clip.frames is not None:
            assert (clip.frames.dtype, clip.frames.shape) == (torch.uint8, other.frames.shape)
            assert (clip.frames.float() - other.frames.float()).abs().mean() < 3
        if clip.waveform is not None:
            assert torch.equal(clip.waveform, rounded(other.waveform))


def test_a_raw_file_that_cannot_be_read_is_named_and_the_rest_goes_on():
    dataset = make_dataset(broken=("val/a.b/1.mp4",))
    items = list(RawSource(dataset, dataset.split("val"), READ, threads=2).stream(seed=0))
    (failure,) = [item for item in items if isinstance(item, Failure)]
    assert (failure.id, Path(failure.path).name) == ("val/a.b/1.mp4", "none.mp4")
    assert failure.error
    assert len(items) == 3


@pytest.mark.parametrize("damage", ["overwritten", "cut off", "gone"])
def test_a_shard_damaged_after_it_was_opened_costs_only_clips_behind_the_damage(tmp_path, damage):
    folder = prepared(tmp_path / "shards")
    source = ShardSet.open(folder).split("val", threads=0)
    path = folder / "small-set-val-000000.tar"
    data = path.read_bytes()
    at = data.index(b"000001_")  # the header of the second clip
    path.write_bytes(data[:at] + (b"\xff" * 512 + data[at + 512 :]) * (damage == "overwritten"))
    if damage == "gone":
        path.unlink()
    items = list(source.stream(seed=None))
    assert [isinstance(item, Failure) for item in items] == [damage == "gone", True, True]
    assert damage != "gone" or all("No such file" in item.error for item in items)
    assert [item.id for item in items] == list(source.ids)
    assert "small-set-val-000000.tar" in str(items[1].path)


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


def test_work_ahead_keeps_the_order_and_a_bound_and_an_error_comes_in_its_place():
    taken = []
    results = ordered_map(lambda number: taken.append(number) or number * number, range(20), workers=2)
    assert next(results) == 0
    assert len(taken) <= 4
    assert list(results) == [number**2 for number in range(1, 20)]
    results = ordered_map(lambda number: 1 // number, [1, 0, 1], workers=1)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)
