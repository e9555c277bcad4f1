"""`avfs config`, `cache` and `doctor`: what is set, what is kept, what is here and what would go wrong."""

import os
import sys
import time
from importlib import metadata

import pytest

from avfewshot.config import table_settings


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("AVFS_CACHE", str(tmp_path / "cache"))
    for kind, age in (("clips", 40), ("clips", 1), ("embeddings", 40), ("weights", 40)):
        path = tmp_path / "cache" / kind / f"{age:064x}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 1000)
        os.utime(path, (time.time() - age * 86400,) * 2)
    return tmp_path


def kept(folder):
    return sorted(path.relative_to(folder / "cache").as_posix() for path in (folder / "cache").rglob("*.json"))


def test_cache_lists_and_clears_what_it_is_asked_for(folder, avfs):
    for misuse in ("clear clip", "list --format csv", "clear --older-than -1"):
        assert "error:" in avfs.refused("cache", *misuse.split())
    assert avfs.json("cache", "list")["kinds"]["clips"] == {"files": 2, "bytes": 2000}
    assert "removed 2 files" in avfs("cache", "clear", "--older-than", "30")[0]
    # Digests of first downloads are no cache: whoever removes them lets another file in.
    assert kept(folder) == [f"clips/{1:064x}.json", f"weights/{40:064x}.json"]
    assert "removed 0 files" in avfs("cache", "clear", "labels")[0]
    avfs("cache", "clear")
    assert kept(folder) == [f"weights/{40:064x}.json"]
    # Links are not followed out of its folder.
    (folder / "mine.txt").write_text("mine")
    (folder / "cache" / "clips" / f"{2:064x}.json").symlink_to(folder / "mine.txt")
    (folder / "cache" / "labels").symlink_to(folder)
    avfs("cache", "clear")
    assert (folder / "mine.txt").read_text() == "mine"


def look(avfs, status) -> dict[str, dict]:
    return {one["what"]: one for one in avfs.json("doctor", status=status)}


def test_doctor_finds_everything_in_order(folder, avfs):
    found = look(avfs, 0)
    assert found["weights tiny"]["status"] == "ok"
    assert found["weights base"]["status"] in {"ok", "note"}
    assert "clips 0 MB" in found["cache"]["detail"]
    assert ("allocator" in found) == os.path.isfile("/proc/self/maps")
    assert "avfewshot" in avfs("doctor")[0]


def test_doctor_tells_faults_and_what_is_missing(folder, avfs, monkeypatch):
    (folder / "avfs.toml").write_text('fusion = "sum"\n')
    original = metadata.version

    def version(name):
        if name in {"decord", "laion_clap"}:
            raise metadata.PackageNotFoundError(name)
        return original(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setitem(sys.modules, "torchvision", None)  # it cannot be imported
    found = look(avfs, 1)
    for what, status, detail in (
        ("settings", "fault", "sum"),
        ("laion_clap", "fault", ""),
        ("torchvision", "fault", "does not fit this torch"),
        ("decord", "note", "PyAV"),
    ):
        assert found[what]["status"] == status
        assert detail in found[what]["detail"]


def test_every_setting_with_its_source(avfs, tmp_path, monkeypatch):
    monkeypatch.setenv("AVFS_DEVICE", "cpu")
    (tmp_path / "avfs.toml").write_text('backbone = "tiny"\n[zeroshot]\ntopk = 3\n')
    rows = {(row["table"], row["name"]): row for row in avfs.json("config")}
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
    shown, _ = avfs("config", "zeroshot")
    assert "tiny" in shown
    assert "avfs.toml [zeroshot]" in shown
    assert "root" not in shown


def test_a_misspelt_variable_is_pointed_out_and_a_token_not_shown(avfs, monkeypatch):
    monkeypatch.setenv("AVFS_BACKBON", "tiny")
    monkeypatch.setenv("AVFS_DEBUG", "0")
    monkeypatch.setenv("AVFS_TOKEN", "my-secret-word")
    told = "warning: AVFS_BACKBON is set, but there is no such setting. Did you mean 'AVFS_BACKBONE'?\n"
    assert avfs("config")[1] == told
    for form in ("table", "json"):
        out, _ = avfs("config", "serve", "--format", form)
        assert "my-secret-word" not in out
        assert "not shown" in out
