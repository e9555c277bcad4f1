"""Shards that somebody with ill intent made: every member is named as a failure, and nothing else happens."""

import io
import json
import shutil
import tarfile
import tracemalloc

import numpy as np
import torch
from PIL import Image
from shards_support import prepared

from avfewshot.data.shards.reader import ShardSet
from avfewshot.media.clip import Failure
from avfewshot.media.clip_bytes import encode_sound

SHARD = "small-set-val-000000"


def member(name: str, content: bytes = b"", size: int | None = None, kind: bytes = tarfile.REGTYPE, target: str = ""):
    """A header, of a size that may be a lie, and its content."""
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content) if size is None else size, kind, target
    return info, content


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
    stream = io.BytesIO()
    for number, key in enumerate([clip["key"] for clip in entry["clips"]]):
        members = {name.partition(".")[2]: content for name, content in old if name.startswith(f"{key}.")}
        made = make(key, members) if number == 1 else members
        if isinstance(made, dict):
            made = [member(f"{key}.{name}", content) for name, content in made.items()]
        entry["clips"][number]["offset"] = stream.tell()
        for info, content in made:
            stream.write(info.tobuf(fmt) + content + b"\0" * (-len(content) % 512))
    shard.write_bytes(stream.getvalue() + b"\0" * 1024)
    entry_path.write_text(json.dumps(entry | {"bytes": shard.stat().st_size}))
    tracemalloc.start()
    items = list(ShardSet.open(folder).split("val", threads=0).stream(seed=None))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    shutil.rmtree(folder)
    assert peak < 60e6
    assert len(items) == 3
    assert not isinstance(items[0], Failure)
    return items[1]


def record(members: dict[str, bytes], **changes: object) -> bytes:
    return json.dumps(json.loads(members["json"]) | changes).encode()


def test_members_that_are_no_plain_files(tmp_path):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE)
    for kind in (*kinds, b"S", b"V"):
        made = hostile(tmp_path, lambda key, _, kind=kind: [member(f"{key}.json", kind=kind, target="/etc/hostname")])
        assert isinstance(made, Failure), kind


def test_members_with_other_names(tmp_path):
    for name in ("../../etc/passwd", "/etc/passwd", "..", "a/b.json", "000000_other.json", ""):
        failure = hostile(tmp_path, lambda key, members, name=name: [member(name, members["json"])])
        assert "another clip in its place" in failure.error or "ends before it" in failure.error, name
    for suffix in ("/../../x", "x", "jpg/../0.jpg"):
        assert "no member" in hostile(tmp_path, lambda _, members, suffix=suffix: {suffix: members["json"]}).error


def test_members_larger_than_the_shard(tmp_path):
    for size in (1 << 30, 1 << 50, 5_000):
        failure = hostile(
            tmp_path, lambda key, _, size=size: [member(f"{key}.json", b"x", size)], fmt=tarfile.GNU_FORMAT
        )
        assert failure.error, size


def test_a_sparse_member_is_not_blown_up(tmp_path):
    def make(key, members):
        sizes = dict.fromkeys(("GNU.sparse.size", "GNU.sparse.realsize"), str(1 << 40))
        made = member(f"{key}.json")
        made[0].pax_headers = {"GNU.sparse.major": "0", "GNU.sparse.minor": "1", "GNU.sparse.map": "0,0", **sizes}
        return [made]

    assert "not a plain file" in hostile(tmp_path, make).error


def test_thousands_of_headers_and_members(tmp_path):
    assert hostile(tmp_path, lambda key, members: [member("pax", kind=tarfile.XHDTYPE)] * 5000).error
    made = hostile(tmp_path, lambda key, members: {f"{number}.jpg": b"x" for number in range(5000)})
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


def test_pictures_and_silence_larger_than_the_index_says_are_not_decoded(tmp_path):
    def pictures(key, members):
        claim = record(members, frame_side=32, seconds=2, has_sound=False)
        return members | {"0.jpg": picture(2000), "1.jpg": picture(2000), "json": claim}

    def silence(key, members):
        claim = record(members, seconds=12, frame_side=None, has_sound=True, segments=None)
        return {"json": claim, "flac": encode_sound(torch.zeros(12 * 48_000))}

    assert "2000 x 2000 instead of 32 x 32" in hostile(tmp_path, pictures).error
    assert "not of the size that the index says" in hostile(tmp_path, silence).error


def test_descriptions_that_claim_too_much_are_failures(tmp_path):
    for changes in (
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
    ):
        made = hostile(tmp_path, lambda _, members, new=changes: members | {"json": record(members, **new)})
        assert isinstance(made, Failure) or "segments" in changes, changes


def test_descriptions_that_are_no_json_are_failures(tmp_path):
    for content in (b"", b"[" * 10**5, b"{", b"null", b"\xff\xfe", b"1" * 10**5):
        assert "description is not valid" in hostile(tmp_path, lambda *_, content=content: {"json": content}).error
