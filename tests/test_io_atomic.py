"""Files and checkpoints are on the disk before they get their names: no crash leaves one half written."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from avfewshot.io import try_lock, write_text
from avfewshot.models.checkpoint import publishing, write_tensors


@pytest.fixture
def calls(monkeypatch):
    """Files that were synced (by inode), and renames, in order."""
    events = []
    originals = {name: getattr(os, name) for name in ("fsync", "replace", "rename")}

    def fsync(handle):
        events.append(("fsync", os.fstat(handle).st_ino, os.fstat(handle).st_size))
        originals["fsync"](handle)

    def renamed(name):
        def rename(source, target):
            events.append(("rename", os.stat(source).st_ino, str(target)))
            originals[name](source, target)

        return rename

    monkeypatch.setattr(os, "fsync", fsync)
    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, renamed(name))
    return events


def test_a_text_is_synced_whole_before_it_is_renamed(tmp_path, calls):
    write_text(tmp_path / "a.json", "x" * 1000)
    assert calls == [
        ("fsync", (inode := (tmp_path / "a.json").stat().st_ino), 1000),
        ("rename", inode, str(tmp_path / "a.json")),
    ]


def test_all_files_of_a_checkpoint_are_synced_before_it_gets_its_name(tmp_path, calls):
    with publishing(tmp_path / "step-1") as unfinished:
        write_tensors(unfinished / "adapter.safetensors", {"x": torch.ones(3)})
        (unfinished / "config.json").write_text("{}")
    folder = tmp_path / "step-1"
    renamed = calls.index(("rename", folder.stat().st_ino, str(folder)))
    synced = {inode for kind, inode, *_ in calls[:renamed] if kind == "fsync"}
    assert synced >= {path.stat().st_ino for path in (*folder.iterdir(), folder)}
    assert ("fsync", tmp_path.stat().st_ino, tmp_path.stat().st_size) in calls[renamed:]  # the name itself


def test_a_lock_tells_who_has_it_from_that_there_are_none(tmp_path, monkeypatch):
    fcntl = pytest.importorskip("fcntl")
    path = tmp_path / "file"
    with open(path, "w") as first, open(path) as second:
        assert try_lock(first.fileno())
        assert not try_lock(second.fileno(), otherwise=True)

    def without_locks(handle, operation):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", without_locks)  # as on some network file systems
    with open(path) as file:
        assert [try_lock(file.fileno(), otherwise=wanted) for wanted in (False, True)] == [False, True]
