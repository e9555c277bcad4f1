"""What `avfs zeroshot` takes as clips, their seconds and labels grow: processor seconds and peak memory.

    python benchmarks/cost.py --csv docs/cost.csv --chart docs/cost.svg

One command a point, in a process of its own with an empty cache, on `tiny`: 10, 100 and 1,000 clips of two seconds;
one clip of 10, 100 and 1,000 seconds; one clip and 10, 1,000 and 10,000 labels. Seconds are those of the processor
(user and system, decoders included), so that other programs disturb them little; memory is the largest resident size
of the process. What it costs to start is in every point.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from zeroshot import write_clip

AXES = {"clips": (10, 100, 1000), "seconds": (10, 100, 1000), "labels": (10, 1000, 10_000)}


def main() -> None:
    """Read the arguments, measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--backbone", default="tiny")
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--csv", type=Path)
    parser.add_argument("--chart", type=Path)
    asked = parser.parse_args()
    if (
        sys.platform == "linux"
    ):  # processes whose parents have ended become children of this one: PR_SET_CHILD_SUBREAPER
        ctypes.CDLL(None).prctl(36, 1)
    rows = []
    with tempfile.TemporaryDirectory(prefix="avfs-benchmark-") as folder:
        for row in measured(asked, Path(folder)):
            rows.append(row)
            print("{axis:8} {number:6}  {processor_seconds:8.2f} s  {peak_mib:6.0f} MiB".format(**row), flush=True)
    for axis in asked.axes:
        ends = [(r["number"], r["processor_seconds"]) for r in rows if r["axis"] == axis]
        (low, first), *_, (high, last) = ends
        per = (last - first) / (high - low)
        print(f"{axis}: {per:.4f} processor seconds for each more")
    if asked.csv:
        with asked.csv.open("w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    if asked.chart:
        draw(rows, asked.chart)


def measured(asked: argparse.Namespace, folder: Path) -> Iterator[dict[str, Any]]:
    """A row for each point."""
    write_clip(folder / "ten.mp4", 0)
    write_clip(folder / "two.mp4", 0, seconds=2)
    for axis in asked.axes:
        for number in AXES[axis]:
            clips = folder / f"{axis}-{number}"
            clips.mkdir()
            copies = number if axis == "clips" else 1
            source = folder / ("two.mp4" if axis == "clips" else "ten.mp4")
            if axis == "seconds" and number > 10:
                source = clips / "long.mp4"
                repeat(folder / "ten.mp4", source, number // 10)
            else:
                for copy in range(copies):
                    os.link(source, clips / f"{copy:04d}.mp4")
            labels = clips / "labels.txt"
            count = number if axis == "labels" else 10
            labels.write_text("".join(f"sound number {label}\n" for label in range(count)), encoding="utf-8")
            command = ["zeroshot", str(clips), "--labels", str(labels), "--backbone", asked.backbone]
            command += ["--precision", asked.precision, "--topk", "3", "--format", "jsonl"]
            seconds, peak = run([*command, "--output", str(clips / "out.jsonl")], clips / "cache")
            lines = (clips / "out.jsonl").read_text(encoding="utf-8").splitlines()
            if len(lines) < copies:
                sys.exit(f"{axis} {number}: {len(lines)} results instead of {copies}")
            yield {"axis": axis, "number": number, "processor_seconds": round(seconds, 2), "peak_mib": round(peak)}


def repeat(source: Path, target: Path, times: int) -> None:
    """Join copies of a file, packet by packet."""
    import av

    with av.open(str(source)) as once:
        # Pictures out of order are decoded before they are shown: a tenth of a second keeps these times ascending.
        length = max(float(stream.duration * stream.time_base) for stream in once.streams) + 0.1
    with av.open(str(target), "w") as whole:
        streams: dict[int, Any] = {}
        for number in range(times):
            with av.open(str(source)) as part:
                for stream in part.streams if not streams else ():  # all of them before the first packet is written
                    streams[stream.index] = whole.add_stream_from_template(stream)
                for packet in part.demux():
                    if packet.dts is None or packet.pts is None:
                        continue
                    index, base = packet.stream.index, packet.time_base
                    shift = round(number * length / base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[index]
                    whole.mux(packet)


def run(arguments: list[str], cache: Path) -> tuple[float, float]:
    """Processor seconds of one command and of the decoders that it leaves behind, and its peak memory (MiB)."""
    root = str(Path(__file__).resolve().parents[1])
    environment = {**os.environ, "AVFS_CACHE": str(cache), "PYTHONPATH": root}
    process = subprocess.Popen(
        [sys.executable, "-m", "avfewshot", *arguments], env=environment, stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"avfs {' '.join(arguments)} ended with {process.returncode}")
    seconds = used.ru_utime + used.ru_stime
    with contextlib.suppress(ChildProcessError):
        while True:
            _, _, left = os.wait4(-1, 0)
            seconds += left.ru_utime + left.ru_stime
    return seconds, used.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Both figures over each axis, from zero: what is linear is a straight line."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "cost"
    import matplotlib.pyplot as plt

    axes = list(dict.fromkeys(row["axis"] for row in rows))
    figure, plots = plt.subplots(2, len(axes), figsize=(2.7 * len(axes), 4.4), squeeze=False, sharey="row")
    for column, axis in enumerate(axes):
        own = [row for row in rows if row["axis"] == axis]
        numbers = [row["number"] for row in own]
        for plot, key in zip(plots[:, column], ("processor_seconds", "peak_mib"), strict=True):
            plot.plot(numbers, [row[key] for row in own], color="#1668b8", marker="o", markersize=4)
            plot.grid(alpha=0.25)
            plot.spines[["top", "right"]].set_visible(False)
            plot.set_ylim(0, 1.1 * max(row[key] for row in rows))
        plots[1, column].set_xlabel({"seconds": "seconds of a clip"}.get(axis, axis))
    plots[0, 0].set_ylabel("processor seconds")
    plots[1, 0].set_ylabel("peak memory, MiB")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
