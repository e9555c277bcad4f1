import csv
import json
import tarfile
from dataclasses import replace
from types import SimpleNamespace

import pytest
from shards_support import CLASSES, make_dataset, make_plan, names, prepared
from webdataset.writer import TarWriter

from avfewshot.data.shards import prepare as module
from avfewshot.data.shards.plan import plan_shards
from avfewshot.data.shards.prepare import prepare
from avfewshot.data.shards.reader import ShardSet
from avfewshot.data.shards.record import ClipRecord, ShardEntry, ShardIndex
from avfewshot.errors import DataError, UsageError
from avfewshot.io import atomic_path

ALL = [f"small-set-train-00000{number}" for number in range(4)] + ["small-set-val-000000"]


def shards_in(folder):
    return sorted(path.stem for path in folder.glob("*.tar"))


def read_members(folder, pattern="*.tar"):
    """Header and content of the members of the shards of a folder."""
    for path in sorted(folder.glob(pattern)):
        with tarfile.open(path) as tar:
            for member in tar.getmembers():
                yield member, tar.extractfile(member).read()


def test_every_clip_is_planned_once_and_shards_mix_the_order_of_the_list():
    plan = make_plan()
    planned = [clip.sample for shard in plan.shards for clip in shard.clips]
    assert sorted((s.id, s.row) for s in planned) == sorted((s.id, s.row) for s in make_dataset().samples)
    rows = [clip.sample.row for shard in plan.shards if shard.split == "train" for clip in shard.clips]
    assert rows != sorted(rows)
    assert [shard.name.removesuffix(".tar") for shard in plan.shards] == ALL
    keys = [clip.key for shard in plan.shards if shard.split == "train" for clip in shard.clips]
    assert len(set(keys)) == len(keys)
    assert all(not set(key) & set("./\\ ") and key[0].isdigit() for key in keys)


def test_the_plan_does_not_depend_on_the_order_of_rows_or_where_media_lie(tmp_path):
    dataset = make_dataset()
    other = make_dataset(root=tmp_path).with_samples(reversed(dataset.samples))
    assert make_plan(other).index == make_plan(dataset).index
    assert make_plan(seed=1).index.plan != make_plan().index.plan


def test_some_splits_clips_without_media_and_default_size_of_shards():
    dataset = make_dataset()
    samples = [sample if sample.row else replace(sample, path=None) for sample in dataset.samples]
    plan = make_plan(dataset.with_samples(samples), splits=["val"])
    assert (plan.clips, len(plan.missing)) == (2, 1)
    with pytest.raises(UsageError, match="no split 'test'"):
        make_plan(splits=["test"])
    many = dataset.with_samples(replace(dataset.samples[0], id=str(number)) for number in range(1001))
    sizes = [len(plan_shards(many, frame_side=w, seconds=s).shards[0].clips) for w, s in ((16, 1), (224, 10))]
    assert sizes[0] == 1000
    assert 200 < sizes[1] < 1000


def test_prepared_shards_are_plain_webdataset_and_a_record_holds_all_that_is_known_of_a_sample(tmp_path):
    folder = prepared(tmp_path / "shards")
    assert shards_in(folder) == ALL
    members = [member for member, _ in read_members(folder)]
    assert all("/" not in m.name and m.isreg() for m in members)  # no way out of a folder
    assert sum(m.name.endswith(".json") for m in members) == 16
    found = {}
    for member, content in read_members(folder, "small-set-train*.tar"):
        key, _, name = member.name.partition(".")
        found.setdefault(key, {})[name] = content
    members = {ClipRecord.parse(own["json"]).row: own for own in found.values()}
    both, seen, heard = members[3], members[4], members[2]
    assert [set(one) for one in (both, seen, heard)] == [
        {"0.jpg", "1.jpg", "flac", "json"}, {"0.jpg", "1.jpg", "json"}, {"flac", "json"},
    ]  # fmt: skip
    assert json.loads(heard["json"]) == {
        "version": 1, "id": "train/a.b/2.mp4", "labels": ["violin/fiddle"], "split": "train", "row": 2,
        "duration": 2.0, "seconds": 2, "whole": True, "frame_side": None, "has_sound": True,
        "segments": ["violin/fiddle", None],
        "events": [{"label": "violin/fiddle", "onset": 0.0, "offset": 1.0, "modality": "audio"}],
        "youtube_id": "-bbbbbbbbbb", "start": 20.0, "end": 22.0, "warnings": ["no video track"],
    }  # fmt: skip


def test_ids_that_are_not_valid_utf8_and_lower_quality_survive(tmp_path):
    dataset = make_dataset()
    dataset = dataset.with_samples([replace(dataset.samples[0], id="na\udcefve.mp4")])
    sizes = []
    for name, options in (("shards", {"quality": 40}), ("usual", {})):
        prepare(make_plan(dataset, seconds=1, **options), tmp_path / name).run()
        sizes.append(next(len(data) for member, data in read_members(tmp_path / name) if member.name.endswith("0.jpg")))
    [item] = ShardSet.open(tmp_path / "shards").split("train", threads=0).stream(seed=0)
    assert (item.id, item.clip.num_segments, item.clip.last) == ("na\udcefve.mp4", 1, False)
    assert sizes[0] < sizes[1]


def test_a_second_run_keeps_everything(tmp_path):
    folder = prepared(tmp_path / "shards")
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("small*")}
    todo = prepare(make_plan(), folder)
    assert (len(todo.finished), todo.pending, todo.damaged) == (5, (), ())
    summary = todo.run()
    assert (summary.clips, summary.written, summary.elsewhere) == (16, 0, 0)
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("small*")} == before


@pytest.mark.parametrize("spoil", ["bit", "tar", "json", "half-json"])
def test_a_flipped_bit_or_missing_half_is_found_and_mended(tmp_path, spoil):
    folder = prepared(tmp_path / "shards")
    shard, entry = folder / f"{ALL[1]}.tar", folder / f"{ALL[1]}.json"
    whole = shard.read_bytes()
    match spoil:
        case "bit":
            shard.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
        case "half-json":
            entry.write_text('{"version": 1')
        case _:
            (folder / f"{ALL[1]}.{spoil}").unlink()
    todo = prepare(make_plan(), folder)
    assert todo.damaged == (() if spoil == "json" else (shard.name,))
    assert [pending.name for pending in todo.pending] == [shard.name]
    todo.run()
    assert shard.read_bytes() == whole
    assert len(ShardSet.open(folder, verify=True).split("train")) == 13


def test_parts_share_a_folder_and_make_the_whole(tmp_path):
    folder = tmp_path / "shards"
    first = prepare(make_plan(), folder, part=(1, 2)).run()
    assert shards_in(folder) == ALL[::2]
    assert (first.clips, first.elsewhere) == (4 + 4 + 3, 2)
    with pytest.raises(DataError, match=r"2 of 5 shards are missing: small-set-train-000001.tar"):
        ShardSet.open(folder)
    assert ShardSet.open(folder, splits=["val"]).splits == {"val": 3}  # complete, and used before the others
    second = prepare(make_plan(), folder, part=(2, 2)).run()
    assert second.elsewhere == 0
    assert ShardSet.open(folder).splits == {"train": 13, "val": 3}


def test_broken_files_are_listed_kept_out_until_they_are_tried_again_and_the_rest_goes_on(tmp_path):
    broken = ("train/a.b/5.mp4", "val/a.b/0.mp4")
    plan = make_plan(make_dataset(broken=broken))
    folder = tmp_path / "shards"
    summary = prepare(plan, folder).run()
    assert (summary.clips, {clip.id for clip in summary.rejected}) == (14, set(broken))
    with open(folder / "rejected.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["id"], row["split"]) for row in rows} == {(broken[0], "train"), (broken[1], "val")}
    assert all(row["reason"] and row["file"].endswith("none.mp4") for row in rows)
    opened = ShardSet.open(folder)
    assert opened.splits == {"train": 12, "val": 2}
    streamed = opened.split("train", threads=0).stream(seed=0)
    assert sorted(names(streamed)) == sorted((s.id, s.labels[0]) for s in make_dataset().split("train") if s.row != 5)
    assert not prepare(plan, folder).pending
    mended = prepare(make_plan(), folder, retry=True)
    assert [shard.split for shard in mended.pending] == ["train", "val"]
    assert mended.run().rejected == ()
    assert (folder / "rejected.csv").read_text().splitlines() == ["id,split,file,reason"]


def test_the_list_of_rejected_clips_is_no_formula_and_no_command():
    cells = ["-abc_DEF-12", "=1+1", "-1+cmd|x", "@x", "+1", "a\x1b[2J\u202e", "na\udcefve", "\u72ac"]
    assert [module._cell(cell) for cell in cells] == [
        *("-abc_DEF-12", "'=1+1", "'-1+cmd|x", "'@x", "'+1", r"a\x1b[2J\u202e", r"na\udcefve", "\u72ac")
    ]


def test_an_interrupt_leaves_whole_shards_only(tmp_path):
    folder = tmp_path / "shards"
    seen = []

    def interrupt(count):
        seen.append(count)
        if len(seen) == 6:  # the second clip of the second shard
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(make_plan(), folder, workers=1).run(interrupt)
    there = ["index.json", "rejected.csv", f"{ALL[0]}.json", f"{ALL[0]}.tar"]
    assert sorted(path.name for path in folder.iterdir()) == there
    todo = prepare(make_plan(), folder)
    assert len(todo.finished) == 1
    todo.run()
    assert ShardSet.open(folder, verify=True).splits == {"train": 13, "val": 3}


@pytest.mark.parametrize("workers", [1, 2])
def test_same_clips_give_the_same_bytes_with_any_number_of_processes(tmp_path, workers):
    first, second = prepared(tmp_path / "a"), tmp_path / "b"
    ticks = []
    todo = prepare(make_plan(), second, workers=workers)
    summary = todo.run(ticks.append)
    assert (summary.clips, sum(ticks)) == (16, 16)
    assert todo.needed == pytest.approx(summary.bytes, rel=0.7)
    for name in ALL:
        assert (second / f"{name}.tar").read_bytes() == (first / f"{name}.tar").read_bytes()


def test_a_disk_that_is_too_small_or_a_folder_that_cannot_be_written_is_told_at_once(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written to"):
        prepare(make_plan(), tmp_path / "file" / "shards")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(DataError, match=r"need about .* MB, and 0.0 MB are free"):
        prepare(make_plan(), tmp_path / "shards")
    assert not shards_in(tmp_path / "shards")


def test_a_folder_of_another_plan_is_left_alone(tmp_path):
    folder = prepared(tmp_path / "shards")
    for options, text in (
        ({"frame_side": 64}, "frames of 32 pixels instead of 64"),
        ({"seconds": 5}, "10 seconds a clip instead of 5"),
        ({"shard_clips": 5}, "another --shard-clips"),
        ({"splits": ["val"]}, "16 clips, where now 3 are found"),
    ):
        with pytest.raises(DataError, match=text):
            prepare(make_plan(**options), folder)
    assert shards_in(folder) == ALL


def test_index_and_entries_say_what_there_is(tmp_path):
    folder = prepared(tmp_path / "shards")
    index = ShardIndex.read(folder)
    assert (index.dataset, index.classes, index.wordings[0]) == ("small set", CLASSES, "the sound of dog, barking")
    assert (index.frame_side, index.seconds, index.quality, index.multi_label) == (32, 10, 95, True)
    entry = ShardEntry.read(folder, f"{ALL[0]}.tar")
    data = (folder / entry.name).read_bytes()
    assert len(entry.clips) == 4
    assert all(data[clip.offset :].startswith(clip.key.encode()) for clip in entry.clips)


def test_unfinished_files_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    folder = prepared(tmp_path / "shards")
    old, entry = folder / f".{ALL[0]}-0123abcd.part.tar", folder / f".{ALL[0]}-0123abcd.part.json"
    for path in (old, entry):
        path.write_bytes(b"half")
    (folder / f"{ALL[0]}.tar").unlink()
    with atomic_path(folder / f"{ALL[0]}.tar") as fresh:  # somebody writes it right now
        prepare(make_plan(), folder).run()
        assert not old.exists()
        assert not entry.exists()
        assert fresh.exists()


def test_a_disk_that_fills_up_is_told_and_leaves_whole_shards(tmp_path, monkeypatch):
    written = []
    real = TarWriter.write

    def write(self, sample):
        written.append(sample)
        if len(written) > 5:
            raise OSError(28, "No space left on device")
        return real(self, sample)

    monkeypatch.setattr(TarWriter, "write", write)
    folder = tmp_path / "shards"
    with pytest.raises(DataError, match=r"train-000001\.tar: cannot be written: No space left"):
        prepare(make_plan(), folder).run()
    assert [path.name for path in folder.glob("*.tar")] == [f"{ALL[0]}.tar"]
    assert not list(folder.glob(".*"))
