"""`avfs doctor` and `avfs cache`: what is here, what would go wrong, what is kept."""

from __future__ import annotations

import json
import os
import sys
import time
from importlib import metadata

import pytest

from avfewshot.cli.app import run


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AVFS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for kind, age in (("clips", 40), ("clips", 1), ("embeddings", 40), ("weights", 40)):
        path = tmp_path / "cache" / kind / f"{age:064x}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - age * 86400,) * 2)
    return tmp_path


def kept(folder):
    return sorted(path.relative_to(folder / "cache").as_posix() for path in (folder / "cache").rglob("*.json"))


def test_cache_lists_and_clears_what_it_is_asked_for(folder, capsys):
    assert run(["cache", "list", "--format", "json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kinds"]["clips"] == {"files": 2, "bytes": 2000}
    assert run(["cache", "clear", "--older-than", "30"]) == 0
    assert "removed 2 files" in capsys.readouterr().out
    # Digests of first downloads are no cache: whoever removes them lets another file in.
    assert kept(folder) == [f"clips/{1:064x}.json", f"weights/{40:064x}.json"]
    assert run(["cache", "clear", "labels"]) == 0
    assert "removed 0 files" in capsys.readouterr().out
    assert run(["cache", "clear"]) == 0
    assert kept(folder) == [f"weights/{40:064x}.json"]


def test_cache_does_not_follow_links_out_of_its_folder(folder):
    (folder / "mine.txt").write_text("mine")
    (folder / "cache" / "clips" / f"{2:064x}.json").symlink_to(folder / "mine.txt")
    (folder / "cache" / "labels").symlink_to(folder)
    assert run(["cache", "clear"]) == 0
    assert (folder / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("arguments", [["clear", "clip"], ["list", "--format", "csv"], ["clear", "--older-than", "-1"]])
def test_cache_refuses_misuse(folder, arguments, capsys):
    assert run(["cache", *arguments]) == 2
    assert "error:" in capsys.readouterr().err
    assert len(kept(folder)) == 4


def look(capsys) -> dict[str, dict]:
    return {one["what"]: one for one in json.loads(capsys.readouterr().out)}


def test_doctor_finds_everything_in_order(folder, capsys):
    assert run(["doctor", "--format", "json"]) == 0
    found = look(capsys)
    assert found["weights tiny"]["status"] == "ok"
    assert found["weights base"]["status"] in {"ok", "note"}
    assert "clips 0 MB" in found["cache"]["detail"]
    assert run(["doctor"]) == 0
    assert "avfewshot" in capsys.readouterr().out


def test_doctor_tells_faults_and_what_is_missing(folder, capsys, monkeypatch):
    (folder / "avfs.toml").write_text('fusion = "sum"\n')
    original = metadata.version

    def version(name):
        if name in {"decord", "laion_clap"}:
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # it cannot be imported
    assert run(["doctor", "--format", "json"]) == 1
    found = look(capsys)
    assert found["settings"]["status"] == "fault"
    assert "sum" in found["settings"]["detail"]
    assert found["laion_clap"]["status"] == "fault"
    assert found["torchvision"]["status"] == "fault"
    assert "does not fit this torch" in found["torchvision"]["detail"]
    assert found["decord"]["status"] == "note"
    assert "PyAV" in found["decord"]["detail"]
