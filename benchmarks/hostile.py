"""Hostile files beside good ones in one batch: what does each cost, and whom?

    python benchmarks/hostile.py --files 250

makes so many bad files of every kind below (cut short, bits flipped, wrong suffixes, headers that claim the impossible,
timestamp bombs, links to themselves, pipes, ...) and a good one for every ten, classifies them all in one run of
`avfs zeroshot --backbone tiny --modality av`, and checks: every good file has the result that it has alone; every bad
one has a result or is named as failed (those that cannot possibly be read must be named); the exit status is 1; the
memory of the run and its decoders stays below 2 GB; no file takes longer than its time limit. Prints JSON; exits with
status 1 where a check fails. Needs no ffmpeg and no network.
"""

from __future__ import annotations

import argparse
import json
import os
import struct
import subprocess
import sys
import tempfile
import threading
import time
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

MEMORY = 2_000_000_000
LIMIT_SECONDS = 60.0


def _picture(number: int, size: tuple[int, int] = (96, 64)) -> np.ndarray:
    width, height = size
    image = np.full((height, width, 3), (40 * number % 256, 80, 255 - 30 * number % 256), np.uint8)
    image[: height // 2, : width // 2] = 255
    return image


def _write(
    path: Path,
    *,
    seconds: float = 3.0,
    codec: str | None = "libx264",
    size: tuple[int, int] = (96, 64),
    pix_fmt: str = "yuv420p",
    sound: str | None = "aac",
    rate: int = 48000,
    layout: str = "mono",
    format: str | None = None,
    signs: tuple[float, ...] = (1.0,),
) -> Path:
    """An ordinary file: pictures that change, and a tone."""
    with av.open(str(path), "w", format=format) as out:
        packets = []
        if codec:
            video = out.add_stream(codec, rate=10)
            video.width, video.height, video.pix_fmt = *size, pix_fmt
            video.codec_context.thread_count = 1
        if sound:
            audio = out.add_stream(sound, rate=rate, layout=layout, options={"strict": "-2"})
        if codec:
            for number in range(round(seconds * 10)):
                frame = av.VideoFrame.from_ndarray(_picture(number, size), "rgb24").reformat(format=pix_fmt)
                frame.pts, frame.time_base = number, Fraction(1, 10)
                packets += video.encode(frame)
            packets += video.encode()
        if sound:
            context = audio.codec_context
            context.open()
            step = context.frame_size or 1024
            wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate)) / rate).astype(np.float32)
            channels = context.layout.nb_channels
            block = np.stack([wave * signs[number % len(signs)] for number in range(channels)])
            for at in range(0, len(wave), step):
                part = np.ascontiguousarray(block[:, at : at + step].T.reshape(1, -1))
                frame = av.AudioFrame.from_ndarray(part, "flt", context.layout.name)
                frame.sample_rate, frame.pts, frame.time_base = rate, at, Fraction(1, rate)
                for ready in av.AudioResampler(format=context.format, layout=context.layout, rate=rate).resample(frame):
                    ready.pts, ready.time_base = at, Fraction(1, rate)
                    packets += audio.encode(ready)
            packets += audio.encode()
        for packet in sorted(packets, key=lambda p: (p.dts if p.dts is not None else p.pts or 0) * p.time_base):
            out.mux(packet)
    return path


def _wav_header(rate: int, channels: int, bits: int, data: bytes, length: int | None = None) -> bytes:
    size = len(data) if length is None else length
    align = max(1, channels * bits // 8)
    head = struct.pack("<HHIIHH", 1, channels, rate & 0xFFFFFFFF, rate * align & 0xFFFFFFFF, align & 0xFFFF, bits)
    riff = b"RIFF" + struct.pack("<I", (36 + size) & 0xFFFFFFFF) + b"WAVEfmt " + struct.pack("<I", 16) + head
    return riff + b"data" + struct.pack("<I", size & 0xFFFFFFFF) + data


def _stamped(path: Path, stamps: list[float]) -> Path:
    """Pictures at any times."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 96, 64, "yuvj420p", Fraction(1, 1000)
    with av.open(str(path), "w") as out:
        video = out.add_stream("mjpeg", rate=1)
        video.width, video.height, video.pix_fmt = 96, 64, "yuvj420p"
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(_picture(number), "rgb24").reformat(format="yuvj420p")
            frame.pts = number
            for packet in encoder.encode(frame):
                packet.stream, packet.time_base = video, Fraction(1, 1000)
                packet.pts = packet.dts = round(stamp * 1000)
                out.mux(packet)
    return path


class Maker:
    """Makes bad files in turn, one of each kind, then again with other numbers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.random = np.random.default_rng(0)
        base = folder.parent / "base"
        base.mkdir()
        self.whole = {
            suffix: _write(base / f"base.{suffix}", **options).read_bytes()
            for suffix, options in {
                "mp4": {}, "mkv": {"sound": "libopus"}, "ts": {}, "webm": {"codec": "libvpx", "sound": "libopus"},
                "avi": {"codec": "mpeg4", "sound": "libmp3lame"}, "flv": {"sound": "aac"},
                "mov": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
                "wav": {"codec": None, "sound": "pcm_s16le"}, "mp3": {"codec": None, "sound": "libmp3lame"},
                "flac": {"codec": None, "sound": "flac"}, "ogg": {"codec": None, "sound": "libopus"},
                "m4a": {"codec": None},
            }.items()
        }  # fmt: skip
        self.kinds = [getattr(self, name) for name in dir(Maker) if name.startswith("_make_")]

    def make(self, count: int) -> list[tuple[Path, bool]]:
        """(file, whether it must fail) of so many files."""
        made: list[tuple[Path, bool]] = []
        turn = 0
        while len(made) < count:
            for kind in self.kinds:
                if len(made) < count:
                    name = f"{len(made):04d}-{kind.__name__.removeprefix('make_')}"
                    path, must_fail = kind(name, turn)
                    made.append((path, must_fail))
            turn += 1
        return made

    def _pick(self, turn: int) -> tuple[str, bytearray]:
        suffix = list(self.whole)[turn % len(self.whole)]
        return suffix, bytearray(self.whole[suffix])

    def _put(self, name: str, suffix: str, content: bytes) -> Path:
        path = self.folder / f"{name}.{suffix}"
        path.write_bytes(content)
        return path

    # Files that are damaged.

    def _make_cut_short(self, name, turn):
        suffix, data = self._pick(turn)
        return self._put(name, suffix, data[: int(len(data) * (0.1 + 0.8 * self.random.random()))]), False

    def _make_first_bytes(self, name, turn):
        suffix, data = self._pick(turn)
        return self._put(name, suffix, data[: 4 + turn]), True

    def _make_flipped_bits(self, name, turn):
        suffix, data = self._pick(turn)
        for at in self.random.integers(0, len(data), max(1, len(data) // 100)):
            data[at] ^= 1 << self.random.integers(0, 8)
        return self._put(name, suffix, data), False

    def _make_flipped_header(self, name, turn):
        suffix, data = self._pick(turn)
        for at in self.random.integers(0, min(len(data), 600), 6):
            data[at] ^= 1 << self.random.integers(0, 8)
        return self._put(name, suffix, data), False

    def _make_zeros_inside(self, name, turn):
        suffix, data = self._pick(turn)
        at = len(data) // 3
        data[at : 2 * at] = bytes(at)
        return self._put(name, suffix, data), False

    def _make_head_missing(self, name, turn):
        suffix, data = self._pick(turn)
        return self._put(name, suffix, data[len(data) // 3 :]), False

    def _make_shuffled(self, name, turn):
        suffix, data = self._pick(turn)
        parts = [data[at : at + 512] for at in range(0, len(data), 512)]
        self.random.shuffle(parts)
        return self._put(name, suffix, b"".join(map(bytes, parts))), False

    def _make_joined_with_itself(self, name, turn):
        suffix, data = self._pick(turn)
        return self._put(name, suffix, data * 2), False

    def _make_rubbish_behind(self, name, turn):
        suffix, data = self._pick(turn)
        return self._put(name, suffix, bytes(data) + self.random.bytes(20_000)), False

    # Files that are none.

    def _make_empty(self, name, turn):
        return self._put(name, "mp4", b""), True

    def _make_zero_bytes(self, name, turn):
        return self._put(name, "mp4", bytes(10_000)), True

    def _make_noise(self, name, turn):
        return self._put(name, ("mp4", "wav", "ts", "mp3")[turn % 4], b"\x00\xff" + self.random.bytes(8_000)), False

    def _make_text(self, name, turn):
        return self._put(name, "mp4", b"This is no video.\n" * 40), True

    def _make_playlist(self, name, turn):
        lists = (b"#EXTM3U\n#EXTINF:10,\n/etc/passwd\n", b"ffconcat version 1.0\nfile /etc/passwd\n")
        return self._put(name, "mp4", lists[turn % 2]), True

    def _make_picture_only(self, name, turn):
        from PIL import Image

        path = self.folder / f"{name}.mp4"
        Image.fromarray(_picture(turn)).save(path, "PNG")
        return path, False

    def _make_wrong_suffix(self, name, turn):
        return self._put(name, "mp3", self.whole["mkv"]), False

    def _make_link_to_itself(self, name, turn):
        path = self.folder / f"{name}.mp4"
        path.symlink_to(path.name)
        return path, True

    def _make_link_to_nothing(self, name, turn):
        path = self.folder / f"{name}.mp4"
        path.symlink_to("nowhere.mp4")
        return path, True

    def _make_pipe(self, name, turn):
        path = self.folder / f"{name}.mp4"
        os.mkfifo(path)
        return path, True

    def _make_device(self, name, turn):
        path = self.folder / f"{name}.mp4"
        path.symlink_to(("/dev/zero", "/dev/random", "/dev/tty")[turn % 3])
        return path, True

    def _make_unreadable(self, name, turn):
        path = self._put(name, "mp4", self.whole["mp4"])
        path.chmod(0)
        return path, os.geteuid() != 0

    # Claims.

    def _make_rate(self, name, turn):
        rate = (10_000_019, 1_000_000_000, 2**31 - 1, 1, 0, 767_999)[turn % 6]
        return self._put(name, "wav", _wav_header(rate, 1, 16, bytes(96_000))), rate not in (0, 767_999)

    def _make_channels(self, name, turn):
        channels = (16, 255, 64, 65_535, 0)[turn % 5]
        return self._put(name, "wav", _wav_header(48_000, channels, 16, self.random.bytes(192_000))), False

    def _make_bits(self, name, turn):
        return self._put(
            name, "wav", _wav_header(48_000, 1, (7, 64, 1, 255)[turn % 4], self.random.bytes(96_000))
        ), False

    def _make_length(self, name, turn):
        return self._put(name, "wav", _wav_header(48_000, 2, 16, self.random.bytes(96_000), 2**32 - 40)), False

    def _make_surround(self, name, turn):
        layout = ("7.1", "7.1(wide)", "octagonal", "hexadecagonal")[turn % 4]
        return _write(self.folder / f"{name}.m4a", codec=None, layout=layout), False

    def _make_opposed(self, name, turn):
        return _write(self.folder / f"{name}.wav", codec=None, sound="pcm_s16le", layout="stereo", signs=(1, -1)), False

    def _make_odd_rate(self, name, turn):
        rate = (8_001, 44_056, 48_001, 191_999, 96_001)[turn % 5]
        return _write(self.folder / f"{name}.wav", codec=None, sound="pcm_s16le", rate=rate), False

    def _make_large_picture(self, name, turn):
        size = ((7680, 4320), (12_000, 8_000), (16_000, 64), (64, 16_000))[turn % 4]
        return _write(
            self.folder / f"{name}.mkv", seconds=0.2, codec="mjpeg", pix_fmt="yuvj420p", size=size, sound=None
        ), False

    def _make_claimed_picture(self, name, turn):
        data = bytearray(self.whole["mov"])
        at = data.index(b"\xff\xc0") + 5  # height and width of the first JPEG
        data[at : at + 4] = struct.pack(">HH", 65_500, 65_500)
        return self._put(name, "mov", data), False

    def _make_claimed_size(self, name, turn):
        data = bytearray(self.whole["avi"])
        at = data.index(b"strf") + 12
        data[at : at + 8] = struct.pack("<ii", 30_000 + turn, 30_000)
        return self._put(name, "avi", data), False

    # Clocks.

    def _make_far_picture(self, name, turn):
        return _stamped(self.folder / f"{name}.mkv", [0, 0.5, 1, (1e9, 1e6, 1e4, 100)[turn % 4]]), False

    def _make_sparse_pictures(self, name, turn):
        return _stamped(self.folder / f"{name}.mkv", [(55.0, 600.0)[turn % 2] * n for n in range(100)]), False

    def _make_timescale(self, name, turn):
        data = bytearray(self.whole["mp4"])
        at = data.index(b"mdhd") + 16
        data[at : at + 4] = struct.pack(">I", turn % 3)
        return self._put(name, "mp4", data), False

    def _make_long_sample(self, name, turn):
        data = bytearray(self.whole["mp4"])
        at = data.index(b"stts") + 16
        data[at : at + 4] = struct.pack(">I", (1 << 31, (1 << 32) - 1, 1 << 24)[turn % 3])
        return self._put(name, "mp4", data), False

    def _make_many_samples(self, name, turn):
        data = bytearray(self.whole["mp4"])
        at = data.index((b"stsz", b"stts", b"stco")[turn % 3]) + (12, 8, 8)[turn % 3]
        data[at : at + 4] = struct.pack(">I", 0x0FFFFFFF)
        return self._put(name, "mp4", data), False

    def _make_clock_anew(self, name, turn):
        return self._put(name, "ts", self.whole["ts"] * 3), False


class Watch(threading.Thread):
    """The largest sum of resident memory of a process and its children."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.parts = pid, 0, (0, 0)

    def run(self) -> None:
        """Look every 50 ms."""
        while True:
            own = self._resident(self.pid)
            children = 0
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    if int((folder / "stat").read_text().rpartition(")")[2].split()[1]) == self.pid:
                        children += self._resident(int(folder.name))
                except (OSError, ValueError, IndexError):  # noqa: PERF203 - it has ended meanwhile
                    continue
            if own + children > self.peak:
                self.peak, self.parts = own + children, (own, children)
            time.sleep(0.05)

    def _resident(self, pid: int) -> int:
        try:
            return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return 0


def _classify(labels: Path, out: Path, paths: list[Path]) -> tuple[int, list[dict], float, Watch]:
    """Exit status, rows (results and failures), seconds, memory of one run."""
    command = [sys.executable, "-m", "avfewshot", "zeroshot", "--labels", str(labels), "--backbone", "tiny"]
    began = time.monotonic()
    process = subprocess.Popen([*command, "--output", str(out), *map(str, paths)], stdout=subprocess.DEVNULL,
                               stderr=subprocess.PIPE, text=True)  # fmt: skip
    watch = Watch(process.pid)
    watch.start()
    _, errors = process.communicate()
    if not out.exists():
        raise SystemExit(f"no results (status {process.returncode}):\n{errors[-3000:]}")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    return process.returncode, rows, time.monotonic() - began, watch


def main() -> int:
    """Make, classify, check, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=250, help="number of bad files")
    parser.add_argument("--keep", type=Path, help="folder for the files, which are kept")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = options.keep or Path(temporary)
        good_folder, bad_folder = root / "good", root / "bad"
        for folder in (good_folder, bad_folder):
            folder.mkdir(parents=True)
        labels = root / "labels.txt"
        labels.write_text("dog barking\ncar honking\nrain\n")
        bad = Maker(bad_folder).make(options.files)
        ordinary = (("mp4", {}), ("mkv", {"sound": "libopus"}), ("wav", {"codec": None, "sound": "pcm_s16le"}))
        good = [
            _write(good_folder / f"good-{number}.{suffix}", seconds=1 + number % 4, **kind)
            for number in range(max(1, options.files // 10))
            for suffix, kind in [ordinary[number % 3]]
        ]  # fmt: skip
        _, alone, _, _ = _classify(labels, root / "alone.jsonl", good)
        mixed = [path for path, _ in bad]
        for number, path in enumerate(good):
            mixed.insert(number * 11, path)
        status, together, seconds, watch = _classify(labels, root / "together.jsonl", mixed)
        named = {row["path"]: row for row in together if "path" in row}
        expected = {row["path"]: row for row in alone if "path" in row}
        faults = [
            f"good file changed: {path}"
            for path in map(str, good)
            if named.get(path, {}).get("scores") != expected[path]["scores"]
        ]
        for path, must_fail in bad:
            row = named.get(str(path))
            if row is None:
                faults.append(f"not mentioned: {path}")
            elif must_fail and "error" not in row:
                faults.append(f"should have failed: {path}")
            elif "Unexpected" in str(row.get("error")) or "unexpected" in str(row.get("error")):
                faults.append(f"unexplained: {path}: {row['error']}")
        if status != 1:
            faults.append(f"exit status {status} instead of 1")
        if watch.peak > MEMORY:
            faults.append(f"peak memory {watch.peak / 1e9:.2f} GB")
        failed = {path: row["error"] for path, row in named.items() if "error" in row}
        late = [path for path, error in failed.items() if "took longer" in error]
        report = {
            "bad_files": len(bad), "good_files": len(good), "failed": len(failed), "seconds": round(seconds, 1),
            "peak_memory_gb": round(watch.peak / 1e9, 2), "of_which_decoders_gb": round(watch.parts[1] / 1e9, 2),
            "given_up_after_the_time_limit": late, "crashed": [p for p, e in failed.items() if "crashed" in e],
            "longest_clip_s": max((row.get("duration") or 0 for row in together), default=0), "faults": faults,
        }  # fmt: skip
        print(json.dumps(report, indent=2))
        return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
