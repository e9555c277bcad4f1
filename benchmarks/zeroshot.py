"""Clips a second of the `base` architecture against a plain script, in the same run, on the same files.

    python benchmarks/zeroshot.py --output zeroshot.json
    python benchmarks/zeroshot.py --profile bf16

It writes a few ten-second clips (320 x 240, H.264 and AAC) and embeds them with random weights in three ways, each in a
process of its own, by turns and several times over:

* ``plain``: one file after another; pictures with decord, sound with PyAV; open_clip's own preprocessing and vision
  transformer; the HTS-AT class's own forward on ten seconds, each repeated to ten seconds. As the READMEs of these
  libraries do it.
* ``fp32`` and ``bf16``: `iter_clips` and `Embedder` of this package, as `avfs zeroshot` runs them, with the seconds
  that a clip waits for decoders, spends in the towers, and on the rest, and their shares of the time.
* ``fp32-clip`` and ``bf16-clip``: the same with `--audio-context clip`, ten seconds of sound in one pass.

Both sides build the same weights from the same seed and hold the two towers, no text encoders. Printed is one JSON
object: the median of the repetitions, the ratios to ``plain`` (above 1 is faster), peak memory, and the smallest cosine
between the embeddings of the two sides for the same second.

``--profile`` prints instead what the towers of this package take on one thread for 20 pictures, for 20 seconds of sound
each alone, and for the same in two windows: processor seconds, and the shares of matrix products, the attention kernel
and the most expensive other operations.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SECONDS = 10
VARIANTS = ("plain", "fp32", "bf16", "fp32-clip", "bf16-clip")


def main() -> None:
    """Read the arguments, compare, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=12, help="clips to embed")
    parser.add_argument("--repeats", type=int, default=3, help="processes for each variant")
    parser.add_argument("--cores", type=int, default=2, help="processor cores to use")
    parser.add_argument(
        "--batch-size", type=int, help="segments in a tower at once; by default what the package chooses"
    )
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=list(VARIANTS))
    parser.add_argument("--profile", choices=("fp32", "bf16"), help="where the towers' time goes, and nothing else")
    parser.add_argument("--output", type=Path, help="also write the JSON to this file")
    parser.add_argument("--worker", choices=VARIANTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(work(arguments.worker, arguments.folder, arguments.batch_size)))
        return
    if arguments.profile:
        print(json.dumps(profile(arguments.profile), indent=2))
        return
    with tempfile.TemporaryDirectory(prefix="avfs-benchmark-") as folder:
        text = json.dumps(compare(arguments, Path(folder)), indent=2)
    print(text)
    if arguments.output:
        arguments.output.write_text(text + "\n", encoding="utf-8")


def compare(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run every variant by turns and join what they report."""
    cores = sorted(os.sched_getaffinity(0))[: arguments.cores] if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, cores)
    for number in range(arguments.clips):
        write_clip(folder / f"clip{number:02d}.mp4", number)
    variants = list(dict.fromkeys(["plain", *arguments.variants]))
    runs: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    load = os.getloadavg()
    for _ in range(arguments.repeats):
        for variant in variants:
            runs[variant].append(start_worker(variant, folder, arguments))
            print(f"{variant}: {runs[variant][-1]['seconds_per_clip']:.2f} s a clip", file=sys.stderr)
    report: dict[str, Any] = {
        "benchmark": "zeroshot",
        "command": "python benchmarks/zeroshot.py " + " ".join(sys.argv[1:]),
        "clips": arguments.clips,
        "seconds_of_each": SECONDS,
        "repeats": arguments.repeats,
        "machine": {**machine(), "cores_used": len(cores) or None, "load_before": [round(value, 2) for value in load]},
    }
    for variant in variants:
        report[variant] = summary(runs[variant])
    plain = report["plain"]
    for variant in variants[1:]:
        ours = report[variant]
        ours["times_faster_than_plain"] = round(plain["seconds_per_clip"] / ours["seconds_per_clip"], 2)
        ours["peak_memory_of_plain"] = round(ours["peak_rss_mib"] / plain["peak_rss_mib"], 2)
        parts = {key: ours[f"{key}_seconds_per_clip"] for key in ("waiting", "towers", "rest")}
        ours["share_of_time"] = {key: round(value / ours["seconds_per_clip"], 3) for key, value in parts.items()}
        ours |= agreement(folder / "plain.npz", folder / f"{variant}.npz")
    return report


def start_worker(variant: str, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Run one variant in a process of its own, so that its memory and its caches are its own."""
    options = ["--folder", str(folder)]
    if arguments.batch_size:
        options += ["--batch-size", str(arguments.batch_size)]
    return reported(__file__, variant, options, threads=arguments.cores)


def reported(script: str, variant: str, options: list[str], *, threads: int) -> dict[str, Any]:
    """What a benchmark's own worker prints as its last line, JSON; this checkout is what it measures."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    root = str(Path(__file__).resolve().parents[1])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    command = [sys.executable, script, "--worker", variant, *options]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{variant} failed ({done.returncode}; -9: killed, most often for want of memory):\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the repetitions, and the extent of the times."""
    times = [run["seconds_per_clip"] for run in runs]
    keys = [key for key in runs[0] if key != "seconds_per_clip"]
    return {
        "clips_per_second": round(1 / statistics.median(times), 3),
        "seconds_per_clip": round(statistics.median(times), 3),
        "fastest_and_slowest": [round(min(times), 3), round(max(times), 3)],
        **{key: round(statistics.median(run[key] for run in runs), 3) for key in keys},
    }


def agreement(plain: Path, ours: Path) -> dict[str, dict[str, float]]:
    """How well embeddings of the same second agree: the smallest cosine over all seconds, for each modality.

    Embeddings by random weights share a large constant part, which makes any two of them look alike. So the mean cosine
    is given, too, with the mean embedding of all seconds taken off.
    """
    import numpy as np

    result: dict[str, dict[str, float]] = {"cosine_to_plain": {}, "mean_cosine_without_the_constant_part": {}}
    one, other = np.load(plain), np.load(ours)
    for name in ("visual", "audio"):
        a, b = unit(one[name]), unit(other[name])
        mean = a.mean((0, 1))
        result["cosine_to_plain"][name] = round(float((a * b).sum(-1).min()), 6)
        centred = (unit(a - mean) * unit(b - mean)).sum(-1).mean()
        result["mean_cosine_without_the_constant_part"][name] = round(float(centred), 6)
    return result


def unit(vectors):
    """Vectors of length 1, in double precision."""
    import numpy as np

    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


# What runs in the processes of their own.


def work(variant: str, folder: Path, batch_size: int | None) -> dict[str, Any]:
    """Embed the clips of `folder` once, write the embeddings beside them and report the cost."""
    import numpy as np
    import torch

    paths = sorted(folder.glob("*.mp4"))
    modules = build()
    run = prepare_plain(*modules) if variant == "plain" else prepare_ours(*modules, variant, batch_size)
    loaded = memory()
    run(paths[:2])  # the first clips pay for what is set up once
    start, processor = time.perf_counter(), time.process_time()
    visual, audio, extra = run(paths)
    seconds, processor = time.perf_counter() - start, time.process_time() - processor
    np.savez(folder / f"{variant}.npz", visual=torch.stack(visual).numpy(), audio=torch.stack(audio).numpy())
    return {
        "seconds_per_clip": seconds / len(paths),
        "processor_seconds_per_clip": processor / len(paths),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        / (2**20 if sys.platform == "darwin" else 2**10),
        "rss_after_loading_mib": loaded,
        **{key: value / len(paths) for key, value in extra.items()},
    }


def build():
    """The vision transformer, the HTS-AT and its projection, with random weights that are the same in every process.

    Biases and position tables begin at zero in these libraries; they are given values, so that nothing is equal only
    because it vanishes.
    """
    import logging

    import open_clip
    import torch
    from torch import nn

    from avfewshot.encoders.htsat import build_htsat

    logging.disable(logging.WARNING)  # open_clip warns that the weights are random
    torch.manual_seed(0)
    visual = open_clip.create_model("ViT-B-32-quickgelu").visual.eval()
    branch = build_htsat("HTSAT-tiny")
    projection = nn.Sequential(nn.Linear(branch.num_features, 512), nn.ReLU(), nn.Linear(512, 512)).eval()
    with torch.no_grad():
        for module in (visual, branch, projection):
            for name, parameter in module.named_parameters():
                if name.endswith("bias") or "bias_table" in name:
                    parameter.normal_(0, 0.1)
                elif parameter.ndim == 2 and "extractor" not in name:
                    parameter.normal_(0, parameter.shape[1] ** -0.5)
        branch.bn0.running_mean.fill_(-40)
        branch.bn0.running_var.fill_(200)
    return visual, branch, projection


def prepare_plain(visual, branch, projection) -> Callable:
    """The plain script."""
    import av
    import decord
    import numpy as np
    import open_clip
    import torch
    from PIL import Image
    from torchaudio.functional import resample

    preprocess = open_clip.image_transform(visual.image_size, is_train=False)

    def pictures(path: Path) -> torch.Tensor:
        reader = decord.VideoReader(str(path))
        times = reader.get_frame_timestamp(np.arange(len(reader)))[:, 0]
        numbers = np.searchsorted(times, np.arange(SECONDS) + 0.5, "right") - 1
        frames = reader.get_batch(numbers.clip(min=0)).asnumpy()
        return torch.stack([preprocess(Image.fromarray(frame)) for frame in frames])

    def sound(path: Path) -> torch.Tensor:
        with av.open(str(path)) as container:
            stream = container.streams.audio[0]
            samples = np.concatenate([frame.to_ndarray() for frame in container.decode(stream)], axis=1).mean(0)
            waveform = resample(torch.from_numpy(samples), stream.rate, 48_000)[: SECONDS * 48_000]
        waveform = torch.nn.functional.pad(waveform, (0, SECONDS * 48_000 - len(waveform)))
        return waveform.view(SECONDS, 48_000).repeat(1, 10)

    @torch.no_grad()
    def run(paths: list[Path]):
        seen, heard, parts = [], [], {"decoding": 0.0, "visual": 0.0, "audio": 0.0}
        for path in paths:
            start = time.perf_counter()
            images, waveforms = pictures(path), sound(path)
            decoded = time.perf_counter()
            seen.append(visual(images))
            looked = time.perf_counter()
            heard.append(projection(branch({"waveform": waveforms})["embedding"]))
            for key, value in zip(
                parts, (decoded - start, looked - decoded, time.perf_counter() - looked), strict=True
            ):
                parts[key] += value
        return seen, heard, {f"{key}_seconds_per_clip": value for key, value in parts.items()}

    return run


def towers_of(visual, branch, projection, precision: str) -> Any:
    """Both towers of this package, as far as a model needs a backbone."""
    from types import SimpleNamespace

    from open_clip import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD

    from avfewshot.encoders.clap_tower import ClapTower
    from avfewshot.encoders.clip_tower import ClipTower
    from avfewshot.inference.devices import PRECISIONS

    return SimpleNamespace(
        visual=ClipTower(visual, mean=OPENAI_DATASET_MEAN, std=OPENAI_DATASET_STD).to(PRECISIONS[precision]),
        audio=ClapTower(branch, projection).to(PRECISIONS[precision]),
        visual_scale=100.0,
        audio_scale=100.0,
    )


def prepare_ours(visual, branch, projection, variant: str, batch_size: int | None) -> Callable:
    """The way of `avfs zeroshot`, up to the embeddings."""
    import torch

    from avfewshot.inference.features import EmbeddedFile, Embedder
    from avfewshot.media.stream import iter_clips
    from avfewshot.models.audio_visual import AudioVisualModel

    precision, _, context = variant.partition("-")
    towers = towers_of(visual, branch, projection, precision)
    parts = {"waiting": 0.0, "towers": 0.0}

    class Timed(Embedder):
        def _embeddings(self, *inputs, **named):
            start = time.perf_counter()
            try:
                return super()._embeddings(*inputs, **named)
            finally:
                parts["towers"] += time.perf_counter() - start

    def waited(clips):
        while True:
            start = time.perf_counter()
            clip = next(clips, None)
            parts["waiting"] += time.perf_counter() - start
            if clip is None:
                return
            yield clip

    model = AudioVisualModel(towers)
    embedder = Timed(model, torch.device("cpu"), batch_size, audio_context=context or "second")

    def run(paths: list[Path]):
        parts.update(waiting=0.0, towers=0.0)
        begun = time.perf_counter()
        clips = iter_clips(paths, frame_size=towers.visual.image_size, modality="av", workers=2)
        files = list(embedder.embed(waited(clips)))
        rest = time.perf_counter() - begun - sum(parts.values())
        if broken := [file for file in files if not isinstance(file, EmbeddedFile)]:
            sys.exit(str(broken))
        shares = {f"{key}_seconds_per_clip": value for key, value in {**parts, "rest": rest}.items()}
        return [file.visual for file in files], [file.audio for file in files], shares

    return run


def profile(precision: str) -> dict[str, Any]:
    """Processor seconds of each tower on one thread, and the shares of its operations."""
    import torch
    from torch.profiler import ProfilerActivity

    torch.set_num_threads(1)
    towers = towers_of(*build(), precision)
    pictures = torch.randint(256, (20, 3, towers.visual.image_size, towers.visual.image_size), dtype=torch.uint8)
    sounds = 0.1 * torch.randn(20, 48_000)
    passes = {
        "20 pictures": lambda: towers.visual(pictures),
        "20 seconds, each alone": lambda: towers.audio(sounds),
        "20 seconds, two windows": lambda: towers.audio.forward_windows(sounds.view(2, -1)),
    }
    report: dict[str, Any] = {"precision": precision, "machine": machine()}
    with torch.inference_mode():
        for name, run in passes.items():
            run()  # what is set up once
            start = time.process_time()
            run()
            seconds = time.process_time() - start
            with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as seen:
                run()
            spent = {event.key.removeprefix("aten::"): event.self_cpu_time_total for event in seen.key_averages()}
            total, groups = sum(spent.values()), {"matrix products": 0.0, "attention": 0.0}
            for key in list(spent):
                group = "attention" if "attention" in key else "matrix products"
                if group == "attention" or key in ("addmm", "mm", "bmm", "baddbmm"):
                    groups[group] += spent.pop(key)
            groups |= dict(sorted(spent.items(), key=lambda item: -item[1])[:6])
            shares = {key: round(value / total, 3) for key, value in groups.items()}
            report[name] = {"processor_seconds": round(seconds, 3), "shares": shares}
    return report


def memory() -> float:
    """Resident memory now, in MiB."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return float("nan")
    return pages * resource.getpagesize() / 2**20


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    import torch

    facts: dict[str, str] = {}
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), value.strip())
    flags = set(facts.get("flags", "").split())
    return {
        "processor": facts.get("model name"),
        "cores": os.cpu_count(),
        **{flag: flag in flags for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16")},
        "torch": torch.__version__,
        "python": sys.version.split()[0],
    }


def write_clip(path: Path, seed: int, seconds: int = SECONDS) -> None:
    """Write seconds of moving stripes and a chirp in noise, all of them different for each `seed`."""
    import av
    import numpy as np

    generator = np.random.default_rng(seed)
    width, height, fps, rate = 320, 240, 25, 44_100
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    waves = generator.uniform(-0.15, 0.15, (3, 2))
    speed, texture = generator.uniform(0.02, 0.3, 3), generator.normal(0, 12, (height, width, 1)).astype(np.float32)
    times = np.arange(seconds * rate) / rate
    pitch = generator.uniform(150, 1500)
    tone = 0.3 * np.sin(2 * np.pi * (pitch * times + generator.uniform(-30, 60) * times**2))
    sound = (tone * (np.sin(generator.uniform(1, 9) * times) > 0) + 0.03 * generator.normal(size=len(times))).clip(
        -1, 1
    )
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=fps, options={"preset": "veryfast"})
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        audio = container.add_stream("aac", rate=rate, layout="stereo")
        for number in range(seconds * fps):
            channels = [128 + 90 * np.sin(a * x + b * y + s * number) for (a, b), s in zip(waves, speed, strict=True)]
            picture = (np.stack(channels, -1) + texture).clip(0, 255).astype(np.uint8)
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode())
        frame = av.AudioFrame.from_ndarray(np.stack([sound, sound]).astype(np.float32), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = rate, 0
        container.mux(audio.encode(frame))
        container.mux(audio.encode())


if __name__ == "__main__":
    main()
