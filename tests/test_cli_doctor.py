"""`avfs config`, `cache` and `doctor`: what is set, what is kept, what is here and what would go wrong."""

import json
import os
import sys
import time
from importlib import metadata

import pytest

from avfewshot.cli.app import run
from avfewshot.config import table_settings


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
    for misuse in (["clear", "clip"], ["list", "--format", "csv"], ["clear", "--older-than", "-1"]):
        assert run(["cache", *misuse]) == 2
        assert "error:" in capsys.readouterr().err
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
    # Links are not followed out of its folder.
    (folder / "mine.txt").write_text("mine")
    (folder / "cache" / "clips" / f"{2:064x}.json").symlink_to(folder / "mine.txt")
    (folder / "cache" / "labels").symlink_to(folder)
    assert run(["cache", "clear"]) == 0
    assert (folder / "mine.txt").read_text() == "mine"


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
    for what, status, detail in (
        ("settings", "fault", "sum"),
        ("laion_clap", "fault", ""),
        ("torchvision", "fault", "does not fit this torch"),
        ("decord", "note", "PyAV"),
    ):
        assert found[what]["status"] == status
        assert detail in found[what]["detail"]


def test_every_setting_with_its_source(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AVFS_DEVICE", "cpu")
    (tmp_path / "avfs.toml").write_text('backbone = "tiny"\n[zeroshot]\ntopk = 3\n')
    assert run(["config", "--format", "json"]) == 0
    rows = {(row["table"], row["name"]): row for row in json.loads(capsys.readouterr().out)}
    assert {name for table, name in rows if table == "zeroshot"} == set(table_settings("zeroshot"))
    assert {name for table, name in rows if table == "data"} == set(table_settings("data"))
    for name, value, source in (
        ("backbone", "tiny", "avfs.toml"),
        ("topk", "3", "avfs.toml [zeroshot]"),
        ("device", "cpu", "AVFS_DEVICE"),
        ("seed", "0", "default"),
        ("templates", None, "default"),
    ):
        assert (rows["zeroshot", name]["value"], rows["zeroshot", name]["source"]) == (value, source)
    assert rows["", "cache"]["source"] == "AVFS_CACHE"
    assert run(["config", "zeroshot"]) == 0
    shown = capsys.readouterr().out
    assert "tiny" in shown
    assert "avfs.toml [zeroshot]" in shown
    assert "root" not in shown


def test_a_misspelt_variable_is_pointed_out(monkeypatch, capsys):
    monkeypatch.setenv("AVFS_BACKBON", "tiny")
    monkeypatch.setenv("AVFS_DEBUG", "0")
    assert run(["config"]) == 0
    told = "AVFS_BACKBON is set, but there is no such setting. Did you mean 'AVFS_BACKBONE'?"
    assert capsys.readouterr().err == f"warning: {told}\n"


def test_a_token_is_not_shown(monkeypatch, capsys):
    monkeypatch.setenv("AVFS_TOKEN", "my-secret-word")
    for form in ("table", "json"):
        assert run(["config", "serve", "--format", form]) == 0
        out = capsys.readouterr().out
        assert "my-secret-word" not in out
        assert "not shown" in out
