"""Weight files that somebody with ill intent made: read, or refused in a sentence; in bounded memory and time."""

import json
import struct
import subprocess
import sys
import zipfile
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
for path in sorted(Path(sys.argv[1]).iterdir()):
    signal.alarm(60)
    try:
        tensors = read_tensors(path)
        [tensor.sum() for tensor in tensors.values() if tensor.numel() < 1 << 30]  # touches every byte
        print(path.name)
    except AvfsError as error:
        assert len(str(error)) < 2000, path
"""

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is bounded by RLIMIT_AS")


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


def write_checkpoints(folder: Path, random: np.random.Generator) -> None:
    """One that is whole, many with changed bytes or cut, one of 64 GB by its strides, and a ZIP bomb."""
    whole = folder / "whole.pt"
    torch.save({"state_dict": STATE}, whole)
    content = whole.read_bytes()
    for number in range(100):
        changed = bytearray(content)
        for _ in range(random.integers(1, 20)):
            changed[random.integers(0, len(changed))] = random.integers(0, 256)
        (folder / f"{number:03}.pt").write_bytes(changed[: None if number % 3 else random.integers(0, len(changed))])
    torch.save({"a": torch.zeros(1).expand(1 << 34)}, folder / "strides.pt")
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(folder / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as bomb:
        for name in archive.namelist():
            bomb.writestr(name, bytes(400 << 20) if name.endswith("/data/0") else archive.read(name), compresslevel=1)


def test_two_hundred_hostile_safetensors_headers(tmp_path):
    """And a hundred checkpoints: read, or refused in a sentence."""
    for number, content in enumerate(mutations(np.random.default_rng(0), 200)):
        (tmp_path / f"{number:03}.safetensors").write_bytes(content)
    (tmp_path / "whole.safetensors").write_bytes(save(STATE))
    write_checkpoints(tmp_path, np.random.default_rng(1))
    command = [sys.executable, "-c", READ_ALL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    read = done.stdout.split()
    assert {"whole.safetensors", "whole.pt"} <= set(read)  # under the same bounds
    assert 200 - sum(name[:3].isdigit() and name.endswith(".safetensors") for name in read) > 100
