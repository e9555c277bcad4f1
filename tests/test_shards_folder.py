import json

import pytest
from shards_support import prepared, rewrite_index

from avfewshot.data.shards.reader import ShardSet
from avfewshot.errors import DataError, UsageError

FIRST = "small-set-train-000000"


NAMES = (
    "../other.tar",
    "/etc/passwd",
    "sub/a.tar",
    "..",
    "pipe:touch owned.tar",
    ".hidden.tar",
    "a.tgz",
    "a\n.tar",
    "",
)


def shard(name: str = f"{FIRST}.tar", split: str = "train", **more: object) -> dict[str, object]:
    return {"name": name, "split": split, "clips": 4} | more


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        *(({"shards": [shard(name)]}, "is not the name of a shard") for name in NAMES),
        ({"version": 99}, "version 1"),
        ({"format": "other"}, "avfewshot-shards"),
        ({"classes": "dog"}, "classes must be a list"),
        ({"wordings": []}, "different lengths"),
        ({"frame_side": "224"}, "whole number"),
        ({"seconds": 0}, "whole number"),
        ({"seconds": 10**9}, "whole number from 1 to 10000"),
        ({"frame_side": 10**6}, "whole number from 1 to 10000"),
        ({"shards": [{"name": f"{FIRST}.tar", "split": "train"}]}, r"shards\[0\].clips is missing"),
        ({"shards": [shard(split="hidden")]}, "split must be one of .train"),
        ({"shards": [shard()] * 2}, "repeated"),
    ],
)
def test_an_index_that_is_not_valid_is_told(tmp_path, changes, text):
    folder = prepared(tmp_path / "shards")
    rewrite_index(folder, **changes)
    with pytest.raises(DataError, match=text):
        ShardSet.open(folder)


def test_a_folder_without_an_index_is_told(tmp_path):
    for content in (None, "", "[1, 2]", "[" * 100_000, '{"format": "avfewshot-shards"}'):
        if content is not None:
            (tmp_path / "index.json").write_text(content)
        with pytest.raises(DataError, match="no such file" if content is None else r"index\.json"):
            ShardSet.open(tmp_path)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"plan": "0" * 64}, "another a small set than the index"),
        ({"split": "val"}, "than the index"),
        ({"name": "other.tar"}, "not the entry of"),
        ({"sha256": "x"}, "SHA-256"),
        ({"clips": [{"id": "a", "key": "../a", "offset": 0}]}, "not a key"),
        ({"clips": [{"id": "a", "key": "0_a", "offset": -1}]}, "whole number"),
        ({"clips": [{"id": "a", "key": "0_a", "offset": 0}] * 2}, "not in order"),
    ],
)
def test_an_entry_that_is_not_valid_is_told(tmp_path, changes, text):
    folder = prepared(tmp_path / "shards")
    path = folder / f"{FIRST}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    with pytest.raises(DataError, match=text):
        ShardSet.open(folder)


def test_missing_and_damaged_shards_are_named(tmp_path):
    folder = prepared(tmp_path / "shards")
    path = folder / f"{FIRST}.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    assert ShardSet.open(folder).splits["train"] == 13
    with pytest.raises(DataError, match=rf"damaged: {FIRST}\.tar"):
        ShardSet.open(folder, verify=True)  # checksums are compared when asked, sizes always
    path.write_bytes(data + b"more")
    with pytest.raises(DataError, match=rf"damaged: {FIRST}\.tar"):
        ShardSet.open(folder)
    path.unlink()
    with pytest.raises(DataError, match=rf"1 of 5 shards are missing: {FIRST}\.tar\. The same"):
        ShardSet.open(folder)


def test_what_does_not_exist_or_fit(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        ShardSet.open(tmp_path / "shards")
    shards = ShardSet.open(prepared(tmp_path / "shards"))
    with pytest.raises(UsageError, match="It holds: train, val"):
        shards.split("test")
    shards.check_frame_side(32)
    with pytest.raises(DataError, match="32 pixels wide; this backbone needs 224"):
        shards.check_frame_side(224)
