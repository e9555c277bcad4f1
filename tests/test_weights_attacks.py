"""Weight files that somebody with ill intent made: read, or refused in a sentence; in bounded memory and time."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

STATE = {"a.weight": torch.arange(12.0).reshape(3, 4), "b": torch.ones(5, dtype=torch.float16), "c": torch.tensor(3)}

# A process of its own, so that a crash, a hang and memory are seen: 300 MB more than torch takes.
READ_ALL = """
import resource, signal, sys
from pathlib import Path
from avfewshot.encoders.weights.load import read_tensors
from avfewshot.errors import AvfsError
taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (taken + 300_000_000,) * 2)
read = refused = 0
for path in sorted(Path(sys.argv[1]).iterdir()):
    signal.alarm(60)
    try:
        tensors = read_tensors(path)
        [tensor.sum() for tensor in tensors.values() if tensor.numel() < 1 << 30]  # touches every byte
        read += 1
    except AvfsError as error:
        assert len(str(error)) < 2000, path
        refused += 1
print(read, refused)
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded by RLIMIT_AS")


def outcome(folder: Path) -> tuple[int, int]:
    """(read, refused) of the files of a folder."""
    done = subprocess.run([sys.executable, "-c", READ_ALL, str(folder)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    read, refused = map(int, done.stdout.split())
    assert read + refused == len(list(folder.iterdir()))
    return read, refused


def with_header(header: bytes, data: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def mutations(random: np.random.Generator, count: int) -> list[bytes]:
    """Files whose headers lie, then files with flipped, cut and repeated bytes."""
    whole = save(STATE)
    size = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + size]), whole[8 + size :]

    def lying(**changes: object) -> bytes:
        return with_header(json.dumps({**header, "a.weight": {**header["a.weight"], **changes}}).encode(), data)

    made = [
        lying(shape=[1 << 40]), lying(shape=[1 << 32, 1 << 32]), lying(shape=[1 << 62, 4]), lying(shape=[-1, 4]),
        lying(shape=[0] * 10_000), lying(shape=[1.5]), lying(shape="3"), lying(dtype="F8192"), lying(dtype=None),
        lying(data_offsets=[0, 1 << 60]), lying(data_offsets=[1 << 60, 0]), lying(data_offsets=[-8, 40]),
        lying(data_offsets=[8, 56]), lying(data_offsets=[0]), lying(data_offsets=[1 << 70, 1 << 71]),
        lying(dtype="BOOL", shape=[48]), lying(dtype="F64", shape=[6]), lying(extra="x"),
        with_header(b"{" + b"[" * 100_000, data), with_header(b'{"a":' * 50_000, data), with_header(b"{}", data),
        with_header(b"{" + b" " * 50_000_000 + b"}", b""), with_header(b"\xff{}", data), with_header(b"{\x00}", data),
        *(with_header(json.dumps(header).encode(), data, size) for size in (0, 1, 99 << 20, 1 << 40, (1 << 64) - 1)),
        with_header(json.dumps({f"t{n}": header["a.weight"] for n in range(100_000)}).encode(), data),
        with_header((json.dumps(header)[:-1] + "," + json.dumps(header)[1:]).encode(), data),
        with_header(json.dumps({"__metadata__": {"x": "y" * 10_000_000}, **header}).encode(), data),
        with_header(json.dumps({"__metadata__": [1], **header}).encode(), data),
        with_header(json.dumps({"../../etc/passwd\x1b[31m": header["a.weight"]}).encode(), data[:48]),
    ]  # fmt: skip
    while len(made) < count:
        changed = bytearray(whole)
        for _ in range(random.integers(1, 5)):
            changed[random.integers(0, size + 8)] = random.integers(0, 256)
        kind = random.integers(0, 4)
        if kind == 0:
            changed = changed[: random.integers(0, len(changed))]
        elif kind == 1:
            place = random.integers(8, size)
            changed[place:place] = changed[place : place + random.integers(1, 40)]
        made.append(bytes(changed))
    return made


def test_two_hundred_hostile_safetensors_headers(tmp_path):
    for number, content in enumerate(mutations(np.random.default_rng(0), 200)):
        (tmp_path / f"{number:03}.safetensors").write_bytes(content)
    read, refused = outcome(tmp_path)
    assert refused > 100
    (tmp_path / "whole.safetensors").write_bytes(save(STATE))
    assert outcome(tmp_path)[0] == read + 1  # the whole one is read under the same bounds


def test_hostile_checkpoints(tmp_path):
    random, whole = np.random.default_rng(1), tmp_path / "whole.pt"
    torch.save({"state_dict": STATE}, whole)
    content = whole.read_bytes()
    for number in range(100):
        changed = bytearray(content)
        for _ in range(random.integers(1, 20)):
            changed[random.integers(0, len(changed))] = random.integers(0, 256)
        (tmp_path / f"{number:03}.pt").write_bytes(changed[: None if number % 3 else random.integers(0, len(changed))])
    huge = torch.zeros(1).expand(1 << 34)  # 64 GB by its strides, 4 bytes by its storage
    torch.save({"a": huge}, tmp_path / "strides.pt")
    read, _ = outcome(tmp_path)
    assert read >= 1


def test_a_zip_bomb_is_no_checkpoint(tmp_path):
    import zipfile

    torch.save(STATE, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, bytes(400 << 20) if name.endswith("/data/0") else content)
    (tmp_path / "a.pt").unlink()
    assert sum(outcome(tmp_path)) == 1  # whatever is made of it, in bounded memory
