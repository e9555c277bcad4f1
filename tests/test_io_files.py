"""Files are on the disk before they get their names; what strangers may write; what is said about a wrong name."""

import errno
import os
import time

import av
import pytest
import torch

from avfewshot.errors import AvfsError, UsageError, did_you_mean
from avfewshot.io import atomic_path, try_lock, write_text
from avfewshot.models.checkpoint import publishing, write_tensors
from avfewshot.safe_yaml import load_yaml


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


@pytest.mark.parametrize("kind", [OSError, av.error.FileNotFoundError])
def test_errors_without_a_place_get_one(tmp_path, kind):
    with pytest.raises(OSError, match="No room") as caught, atomic_path(tmp_path / "a.mp4"):
        raise kind(errno.ENOSPC, "No room")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "a.mp4"))
    with pytest.raises(TimeoutError) as caught, atomic_path(tmp_path / "a.mp4"):
        raise TimeoutError
    assert caught.value.filename is None
    assert list(tmp_path.iterdir()) == []


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


def read(tmp_path, text):
    path = tmp_path / "file.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return load_yaml(path)


def test_plain_data_and_a_few_aliases(tmp_path):
    assert read(tmp_path, "\ufeffa: &x [1, two]\nb: *x\nc: {<<: {d: 1}, e: 2024-01-02}\n")["b"] == [1, "two"]
    assert read(tmp_path, "") is None


BOMB = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"a{n}: &a{n} [{','.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (BOMB, "more than 100,000 values"),
        ("a: " + "[" * 5000 + "]" * 5000, "nested more than 50 deep"),
        ("a: &a [*a]", "stands for itself"),
        ("a: 1\nb: 2\na: 3\n", "given twice: a"),
        ("a: [", "not valid YAML at line"),
        ("a: *nothing", "not valid YAML"),
        ("a: 2026-99-99", "not valid YAML"),
        ("a: !!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: \x00", "not valid YAML"),
        (b"\xff\xfea", "not UTF-8"),
        ("a" * (1 << 20) + "aa", "too large"),
    ],
)
def test_what_strangers_may_write_is_refused_in_no_time(tmp_path, text, reason):
    began = time.process_time()
    with pytest.raises(UsageError, match=reason) as caught:
        read(tmp_path, text)
    assert time.process_time() - began < 5
    assert str(tmp_path / "file.yaml") in caught.value.message
    assert len(caught.value.message) < 500


def test_pipes_and_folders_are_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(AvfsError, match=str(path)):
            load_yaml(path)


def test_the_nearest_name_is_suggested_where_one_is_near():
    for name, valid, nearest in (
        ("ave_class", ["ave", "ave_cls"], "ave_cls"),
        ("shotz", ["val_shots", "shots"], "shots"),  # the whole name before one of its words
        ("rigde", ["logistic", "kernel_ridge"], "kernel_ridge"),
        ("TINY", ["base", "tiny"], "tiny"),
    ):
        assert did_you_mean(name, valid) == f" Did you mean {nearest!r}?"
    assert did_you_mean("zebra", ["kernel_ridge", "gda"]) == ""
