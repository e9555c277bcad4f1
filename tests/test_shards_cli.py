import re
import shutil
from pathlib import Path

import pytest
from shards_support import media_folder

from avfewshot.data.shards.reader import ShardSet
from avfewshot.encoders.presets import load_preset
from avfewshot.errors import DataError, UsageError


@pytest.fixture
def clips(tmp_path, monkeypatch) -> Path:
    """Two classes of three clips, in the current folder."""
    monkeypatch.chdir(tmp_path)
    for name in ("dog/1", "dog/2", "dog/3", "rain/1", "rain/2", "rain/3"):
        path = tmp_path / "clips" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(media_folder() / "both.mp4", path)
    return tmp_path / "clips"


@pytest.fixture
def prepare(avfs):
    """What `avfs data prepare` says on stdout."""
    given = "data prepare folder --root clips --out shards --backbone tiny --workers 1".split()
    return lambda *options, status=0: avfs(*given, *options, status=status)[0]


def test_prepare_says_what_it_did_and_a_second_run_that_all_is_there(clips, prepare):
    out = prepare()
    assert "6 clips (train 2, val 2, test 2) in 3 shards, pictures of 64 x 64" in out
    assert re.search(r"To write: 6 clips in 3 shards with 1 process; about [\d.]+ .B, .* are free", out)
    assert "Everything is there: 6 clips in 3 shards" in out
    out = prepare()
    assert "Finished before, verified and kept: 3 shards." in out
    assert "Everything is there already: 6 clips in 3 shards" in out
    assert "To write" not in out
    assert ShardSet.open("shards", verify=True).splits == {"train": 2, "val": 2, "test": 2}


def test_rejected_clips_are_told_and_change_the_exit_status(clips, prepare):
    (clips / "dog" / "2.mp4").write_bytes(b"no video")
    out = prepare(status=1)
    assert "Rejected: 1 clip, listed in shards/rejected.csv." in out
    assert "clips/dog/2.mp4: " in out
    assert "dog/2.mp4" in Path("shards/rejected.csv").read_text()
    prepare(status=1)
    shutil.copy(media_folder() / "both.mp4", clips / "dog" / "2.mp4")
    prepare("--retry")


def test_parts_splits_seconds_and_quality(clips, prepare):
    for part in ("0/2", "3/2", "1", "a/b", "1/0"):
        prepare("--part", part, status=2)
        assert not Path("shards").exists()
    options = ("--splits", "train,val", "--seconds", "1", "--quality", "50")
    out = prepare("--part", "1/2", *options)
    assert "B with the other parts, " in out
    assert "Part 1 of 2: 1 shard." in out
    assert "Still to come from other parts: 1 shard." in out
    with pytest.raises(DataError, match="missing"):
        ShardSet.open("shards")
    assert "Everything is there" in prepare("--part", "2/2", *options)
    shards = ShardSet.open("shards")
    assert shards.splits == {"train": 2, "val": 2}
    assert (shards.index.seconds, shards.index.quality) == (1, 50)
    (item,) = shards.split("val", threads=0).stream(seed=None, rank=0, world=2)
    assert item.clip.num_segments == 1


def test_side_of_pictures_by_backbone():
    assert [load_preset(name).image_size() for name in ("tiny", "base")] == [64, 224]
    with pytest.raises(UsageError, match="no backbone 'tinny'"):
        load_preset("tinny")
