from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import typer
from shards_support import media_folder
from typer.testing import CliRunner

from avfewshot.cli.data import prepare
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


def run(*options: str):
    app = typer.Typer()
    app.command()(prepare)
    given = ["folder", "--root", "clips", "--out", "shards", "--backbone", "tiny", "--workers", "1", *options]
    return CliRunner().invoke(app, given)


def test_prepare_says_what_it_did_and_a_second_run_that_all_is_there(clips):
    first = run()
    assert first.exit_code == 0, first.output
    assert "6 clips (train 2, val 2, test 2) in 3 shards, pictures of 64 x 64" in first.output
    assert re.search(r"To write: 6 clips in 3 shards with 1 process; about .* of .* free", first.output)
    assert "Everything is there: 6 clips in 3 shards" in first.output
    second = run()
    assert second.exit_code == 0
    assert "Finished before, verified and kept: 3 shards." in second.output
    assert "Everything is there already: 6 clips in 3 shards" in second.output
    assert "To write" not in second.output
    assert ShardSet.open("shards", verify=True).splits == {"train": 2, "val": 2, "test": 2}


def test_rejected_clips_are_told_and_change_the_exit_status(clips):
    (clips / "dog" / "2.mp4").write_bytes(b"no video")
    result = run()
    assert result.exit_code == 1
    assert "Rejected: 1 clip, listed in shards/rejected.csv." in result.output
    assert "clips/dog/2.mp4: " in result.output
    assert "dog/2.mp4" in Path("shards/rejected.csv").read_text()
    assert run().exit_code == 1
    shutil.copy(media_folder() / "both.mp4", clips / "dog" / "2.mp4")
    assert run("--retry").exit_code == 0


def test_parts_and_splits(clips):
    first = run("--part", "1/2", "--splits", "train,val")
    assert first.exit_code == 0, first.output
    assert "Part 1 of 2: 1 shard." in first.output
    assert "Still to come from other parts: 1 shard." in first.output
    with pytest.raises(DataError, match="missing"):
        ShardSet.open("shards")
    assert "Everything is there" in run("--part", "2/2", "--splits", "train,val").output
    assert ShardSet.open("shards").splits == {"train": 2, "val": 2}


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0"])
def test_parts_that_make_no_sense(clips, part):
    result = run("--part", part)
    assert isinstance(result.exception, UsageError)
    assert not Path("shards").exists()


def test_seconds_and_quality_are_heeded(clips):
    assert run("--seconds", "1", "--quality", "50").exit_code == 0
    index = ShardSet.open("shards").index
    assert (index.seconds, index.quality) == (1, 50)
    (item,) = ShardSet.open("shards").split("val", threads=0).stream(seed=None, rank=0, world=2)
    assert item.clip.num_segments == 1


def test_side_of_pictures_by_backbone(tmp_path):
    assert [load_preset(name).image_size() for name in ("tiny", "base")] == [64, 224]
    with pytest.raises(UsageError, match="no backbone 'tinny'"):
        load_preset("tinny")
