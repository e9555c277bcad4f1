from __future__ import annotations

import os
import time

import pytest

from avfewshot.errors import AvfsError, UsageError
from avfewshot.io import load_yaml


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
