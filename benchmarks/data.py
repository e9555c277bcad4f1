"""Preparing data and reading it back, against plain ways of doing the same, in the same run and on the same files.

    python benchmarks/data.py --output data.json

It writes a few ten-second clips (320 x 240, H.264 and AAC) as a folder of two classes and measures, each in a process
of its own, by turns and several times over:

* ``prepare``: `avfs data prepare` with one process, into shards.
* ``plain``: the same pictures and sound as loose JPEG and FLAC files, one clip after another: by the ``ffmpeg`` program
  where it is installed, else by a PyAV script that decodes every frame (the report says which).
* ``read_shards`` and ``read_raw``: the clips of one epoch as a training gets them, from shards and from the videos.

Each works on one core. Printed are one JSON object and, on stderr, a table: the median of the repetitions in clips a
second, by the clock and by processor time (which other programs on the machine disturb less), the ratios, and what
follows for 16 cores that must feed a GPU: a step of 50 ms on 32 clips takes 640 clips a second.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zeroshot import SECONDS, machine, reported, write_clip

VARIANTS = ("plain", "prepare", "read_raw", "read_shards")
STEP_CLIPS, STEP_SECONDS, GPU_CORES = 32, 0.05, 16


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=12, help="clips in the data set, an even number")
    parser.add_argument("--epochs", type=int, default=3, help="times that each process reads all of them")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each variant")
    parser.add_argument("--side", type=int, default=224, help="side of the pictures in pixels")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments.folder, arguments.side, arguments.epochs)))
        return
    with tempfile.TemporaryDirectory(prefix="avfs-benchmark-") as folder:
        report = compare(arguments, Path(folder))
    text = json.dumps(report, indent=2)
    print(text)
    print(table(report), file=sys.stderr)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every variant by turns and join what they report."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])
    for number in range(arguments.clips):
        path = folder / "clips" / "train" / ("stripes", "chirps")[number % 2] / f"clip{number:02d}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_clip(path, number)
    load = os.getloadavg()
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in VARIANTS}
    for _ in range(arguments.repeats):
        for variant in VARIANTS:
            runs[variant].append(start_worker(variant, folder, arguments))
            rates = runs[variant][-1].values()
            print(f"{variant}: {' '.join(f'{rate:.2f}' for rate in rates)}", file=sys.stderr)
    report: dict[str, Any] = {
        "benchmark": "data",
        "command": "python benchmarks/data.py " + " ".join(sys.argv[1:]),
        "clips": arguments.clips,
        "seconds_of_each": SECONDS,
        "side": arguments.side,
        "repeats": arguments.repeats,
        "plain_is": "the ffmpeg program" if shutil.which("ffmpeg") else "a PyAV script; there is no ffmpeg on PATH",
        "machine": {**machine(), "cores_used": 1, "load_before": [round(value, 2) for value in load]},
        **{variant: summary(results) for variant, results in runs.items()},
    }
    source, shards = (
        sum(path.stat().st_size for path in folder.glob(name)) for name in ("clips/*/*/*", "shards/*.tar")
    )
    report["bytes_per_clip"] = {"video": source // arguments.clips, "shard": shards // arguments.clips}
    for ours, plain in (("prepare", "plain"), ("read_shards", "read_raw")):
        for measure in ("clips_per_second", "clips_per_processor_second"):
            report[ours][f"times_{plain}_in_{measure}"] = round(report[ours][measure] / report[plain][measure], 2)
    report["feeding_a_gpu"] = arithmetic(report)
    return report


def arithmetic(report: dict[str, Any]) -> dict[str, Any]:
    """What the figures of one core mean for a GPU, if every core does as well as this one."""
    needed = STEP_CLIPS / STEP_SECONDS
    result: dict[str, Any] = {"clips_per_second_needed": needed}
    for variant in ("read_raw", "read_shards"):
        each = report[variant]["clips_per_processor_second"]
        result[variant] = {
            f"clips_per_second_of_{GPU_CORES}_cores": round(GPU_CORES * each),
            "keeps_up": GPU_CORES * each >= needed,
            "cores_needed": round(needed / each, 1),
        }
    return result


def table(report: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [f"{'':12} {'clips/s':>9} {'clips/s of processor time':>26}"]
    for variant in VARIANTS:
        figures = report[variant]
        lines.append(f"{variant:12} {figures['clips_per_second']:9.2f} {figures['clips_per_processor_second']:26.2f}")
    for variant in ("read_raw", "read_shards"):
        feeding = report["feeding_a_gpu"][variant]
        verdict = "keeps up" if feeding["keeps_up"] else "does not keep up"
        rate = feeding[f"clips_per_second_of_{GPU_CORES}_cores"]
        lines.append(
            f"{variant}: {GPU_CORES} cores give {rate} clips/s, "
            f"{report['feeding_a_gpu']['clips_per_second_needed']:g} are needed: {verdict} "
            f"({feeding['cores_needed']} cores needed)"
        )
    return "\n".join(lines)


def start_worker(variant: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in a process of its own."""
    options = ["--folder", str(folder), "--side", str(arguments.side), "--epochs", str(arguments.epochs)]
    return reported(__file__, variant, options, threads=1)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions, and the extent of the rates."""
    rates = [run["clips_per_second"] for run in runs]
    return {
        **{key: round(statistics.median(run[key] for run in runs), 3) for key in runs[0]},
        "slowest_and_fastest": [round(min(rates), 3), round(max(rates), 3)],
    }


# What runs in the processes of their own.


def work(variant: str, folder: Path, side: int, epochs: int) -> dict[str, float]:
    """Do one variant's work and report its rate."""
    import torch

    torch.set_num_threads(1)
    run = {"plain": plain, "prepare": prepare, "read_raw": read_raw, "read_shards": read_shards}[variant]
    job = run(folder, side, epochs)
    start, processor = time.perf_counter(), processor_seconds()
    count = job()
    return {
        "clips_per_second": count / (time.perf_counter() - start),
        "clips_per_processor_second": count / (processor_seconds() - processor),
    }


def processor_seconds() -> float:
    """Of this process and those it has waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(part.ru_utime + part.ru_stime for part in used)


def prepare(folder: Path, side: int, epochs: int) -> Callable[[], int]:
    """All clips into new shards; without the estimate of the disk need, which decodes four clips of however many."""
    from avfewshot.data.folder import load_folder
    from avfewshot.data.shards.plan import plan_shards
    from avfewshot.data.shards.prepare import prepare as look

    shutil.rmtree(folder / "shards", ignore_errors=True)
    dataset = load_folder(folder / "clips", val_fraction=0, test_fraction=0)
    todo = look(plan_shards(dataset, frame_side=side, seconds=SECONDS), folder / "shards", workers=1)

    def job() -> int:
        outcome = todo.run()
        if outcome.rejected:
            sys.exit(str(outcome.rejected))
        return outcome.written

    return job


def read_shards(folder: Path, side: int, epochs: int) -> Callable[[], int]:
    """Epochs from the shards."""
    from avfewshot.data.shards.reader import ShardSet

    return reading(ShardSet.open(folder / "shards").split("train", threads=0), epochs)


def read_raw(folder: Path, side: int, epochs: int) -> Callable[[], int]:
    """Epochs from the videos."""
    from functools import partial

    from avfewshot.data.clip_source import RawSource, read_start
    from avfewshot.data.folder import load_folder

    dataset = load_folder(folder / "clips", val_fraction=0, test_fraction=0)
    read = partial(read_start, frame_size=side, seconds=SECONDS)
    return reading(RawSource(dataset, dataset.split("train"), read, threads=0), epochs)


def reading(source: Any, epochs: int) -> Callable[[], int]:
    """Read a source several times over; its first clip pays for what is set up once."""
    from avfewshot.data.clip_source import LabelledClip

    next(source.stream(seed=0))

    def job() -> int:
        count = 0
        for epoch in range(epochs):
            for item in source.stream(seed=0, epoch=epoch):
                if not isinstance(item, LabelledClip) or item.clip.frames is None or item.clip.waveform is None:
                    sys.exit(str(item))
                count += 1
        return count

    return job


def plain(folder: Path, side: int, epochs: int) -> Callable[[], int]:
    """One file after another into loose files."""
    target = folder / "loose"
    target.mkdir(exist_ok=True)
    convert = by_ffmpeg if shutil.which("ffmpeg") else by_pyav

    def job() -> int:
        paths = sorted((folder / "clips").rglob("*.mp4"))
        for path in paths:
            convert(path, target, side)
        return len(paths)

    return job


def by_ffmpeg(path: Path, target: Path, side: int) -> None:
    """A picture a second and the sound of a file, by the program, on one thread."""
    scale = f"fps=1,scale={side}:{side}:force_original_aspect_ratio=increase:flags=bicubic,crop={side}:{side}"
    command = ["ffmpeg", "-v", "error", "-y", "-threads", "1", "-i", str(path), "-t", str(SECONDS)]
    command += ["-vf", scale, "-q:v", "2", str(target / f"{path.stem}.%d.jpg")]
    command += ["-t", str(SECONDS), "-ac", "1", "-ar", "48000", str(target / f"{path.stem}.flac")]
    subprocess.run(command, check=True)


def by_pyav(path: Path, target: Path, side: int) -> None:
    """The same by PyAV: decode every frame, keep those of the middle of each second."""
    import av
    from PIL import Image, ImageOps

    with av.open(str(path)) as container:
        last, second = None, 0
        for frame in container.decode(video=0):
            while second < SECONDS and frame.time > second + 0.5:
                image = (last or frame).to_image()
                fitted = ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)
                fitted.save(target / f"{path.stem}.{second}.jpg", quality=95, subsampling=0)
                second += 1
            last = frame
    with av.open(str(path)) as container, av.open(str(target / f"{path.stem}.flac"), "w") as out:
        track = out.add_stream("flac", rate=48_000, layout="mono", format="s16")
        resampler = av.AudioResampler(format="s16", layout="mono", rate=48_000, frame_size=4096)
        for frame in container.decode(audio=0):
            for block in resampler.resample(frame):
                out.mux(track.encode(block))
        for block in resampler.resample(None):
            out.mux(track.encode(block))
        out.mux(track.encode(None))


if __name__ == "__main__":
    main()
