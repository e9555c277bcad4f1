"""Shards that somebody with ill intent made: every member is named as a failure, and nothing else happens."""

from __future__ import annotations

import io
import json
import tarfile
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from shards_support import prepared

from avfewshot.data.shards.reader import ShardSet
from avfewshot.media.clip import Failure
from avfewshot.media.clip_cache import encode_sound

SHARD = "small-set-val-000000"


def plain(name: str, content: bytes) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, target: str = "") -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def claimed(name: str, size: int) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = size
    return info, b"x"


def picture(side: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.zeros((side, side, 3), np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


def hostile(tmp_path, make, *, fmt: int = tarfile.PAX_FORMAT):
    """The val split of the small set whose second clip has the members that `make(key, members)` gives."""
    folder = prepared(tmp_path / "shards")
    entry_path, shard = folder / f"{SHARD}.json", folder / f"{SHARD}.tar"
    entry = json.loads(entry_path.read_text())
    with tarfile.open(shard) as tar:
        old = [(info.name, tar.extractfile(info).read()) for info in tar.getmembers()]
    keys = [clip["key"] for clip in entry["clips"]]
    stream = io.BytesIO()
    for number, key in enumerate(keys):
        members = {name.partition(".")[2]: content for name, content in old if name.startswith(f"{key}.")}
        made = make(key, members) if number == 1 else [plain(f"{key}.{name}", data) for name, data in members.items()]
        entry["clips"][number]["offset"] = stream.tell()
        for info, content in made:
            stream.write(info.tobuf(fmt) + content + b"\0" * (-len(content) % 512))
    stream.write(b"\0" * 1024)
    shard.write_bytes(stream.getvalue())
    entry["bytes"] = shard.stat().st_size
    entry_path.write_text(json.dumps(entry))
    tracemalloc.start()
    items = list(ShardSet.open(folder).split("val", threads=0).stream(seed=None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60e6
    assert len(items) == 3
    assert not isinstance(items[0], Failure)
    return items[1]


def record(members: dict[str, bytes], **changes: object) -> bytes:
    return json.dumps(json.loads(members["json"]) | changes).encode()


@pytest.mark.parametrize(
    "kind",
    [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE, b"S", b"V"],
)
def test_members_that_are_no_plain_files(tmp_path, kind):
    made = hostile(tmp_path, lambda key, members: [special(f"{key}.json", kind, "/etc/hostname")])
    assert isinstance(made, Failure)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "..", "a/b.json", "000000_other.json", ""])
def test_members_with_other_names(tmp_path, name):
    failure = hostile(tmp_path, lambda key, members: [plain(name, members["json"])])
    assert "another clip in its place" in failure.error or "ends before it" in failure.error


@pytest.mark.parametrize("suffix", ["/../../x", "x", "jpg/../0.jpg"])
def test_names_behind_the_key_open_no_file(tmp_path, suffix):
    failure = hostile(tmp_path, lambda key, members: [plain(f"{key}.{suffix}", members["json"])])
    assert "no member" in failure.error


@pytest.mark.parametrize("size", [1 << 30, 1 << 50, 5_000])
def test_members_larger_than_the_shard(tmp_path, size):
    assert hostile(tmp_path, lambda key, members: [claimed(f"{key}.json", size)], fmt=tarfile.GNU_FORMAT).error


def test_a_sparse_member_is_not_blown_up(tmp_path):
    def make(key, members):
        info = tarfile.TarInfo(f"{key}.json")
        info.pax_headers = {
            "GNU.sparse.major": "0",
            "GNU.sparse.minor": "1",
            "GNU.sparse.map": "0,0",
            "GNU.sparse.size": str(1 << 40),
            "GNU.sparse.realsize": str(1 << 40),
        }
        return [(info, b"")]

    assert "not a plain file" in hostile(tmp_path, make).error


def test_thousands_of_headers_and_members(tmp_path):
    empty = tarfile.TarInfo("pax")
    empty.type = tarfile.XHDTYPE
    assert hostile(tmp_path, lambda key, members: [(empty, b"")] * 5000).error
    made = hostile(tmp_path / "2", lambda key, members: [plain(f"{key}.{n}.jpg", b"x") for n in range(5000)])
    assert "larger than that of a clip" in made.error


def test_a_compressed_shard_is_not_unpacked(tmp_path):
    import gzip

    folder = prepared(tmp_path / "shards")
    shard = folder / f"{SHARD}.tar"
    data = gzip.compress(b"\0" * (200 << 20))
    shard.write_bytes(data)
    entry = json.loads((folder / f"{SHARD}.json").read_text())
    (folder / f"{SHARD}.json").write_text(json.dumps(entry | {"bytes": len(data)}))
    assert all(isinstance(item, Failure) for item in ShardSet.open(folder).split("val", threads=0).stream(seed=0))


def test_a_picture_larger_than_the_index_says_is_not_decoded(tmp_path):
    def make(key, members):
        large = {"0.jpg": picture(2000), "1.jpg": picture(2000)}
        members |= large | {"json": record(members, frame_side=32, seconds=2, has_sound=False)}
        return [plain(f"{key}.{name}", content) for name, content in members.items()]

    assert "2000 x 2000 instead of 32 x 32" in hostile(tmp_path, make).error


def test_a_small_file_of_long_silence_is_not_decoded(tmp_path):
    def make(key, members):
        silence = encode_sound(torch.zeros(12 * 48_000))
        claim = record(members, seconds=12, frame_side=None, has_sound=True, segments=None)
        return [plain(f"{key}.json", claim), plain(f"{key}.flac", silence)]

    assert "not of the size that the index says" in hostile(tmp_path, make).error


@pytest.mark.parametrize(
    "changes",
    [
        {"seconds": 10**9},
        {"seconds": -1},
        {"seconds": True},
        {"frame_side": 10**6},
        {"labels": ["../x"]},
        {"segments": ["dog, barking"] * 10**5},
        {"id": "other"},
        {"duration": float("nan")},
        {"duration": "1"},
        {"events": [{"label": "rain"}]},
        {"labels": "rain"},
        {"version": 2},
    ],
)
def test_descriptions_that_claim_too_much_are_failures(tmp_path, changes):
    def make(key, members):
        return [plain(f"{key}.{name}", data) for name, data in (members | {"json": record(members, **changes)}).items()]

    made = hostile(tmp_path, make)
    if "segments" not in changes:
        assert isinstance(made, Failure)


def test_descriptions_that_are_no_json_are_failures(tmp_path):
    for number, content in enumerate([b"", b"[" * 10**5, b"{", b"null", b"\xff\xfe", b"1" * 10**5]):
        made = hostile(tmp_path / str(number), lambda key, members, content=content: [plain(f"{key}.json", content)])
        assert "description is not valid" in made.error
