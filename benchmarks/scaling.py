"""What a pretraining costs: floating-point operations, bytes on disk and between GPUs, and what follows for time.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --media my_clips/1.mp4 my_clips/2.mp4
    python benchmarks/scaling.py --train toy/VGGSound --backbone tiny --workers 1 2

Counted on `base` with random weights and one clip of ten seconds: the operations of a forward pass, and of a forward
and a backward pass with and without checkpointing. Measured, with ``--media``: bytes of each file and of the same clip
in a prepared shard at 224 x 224. Measured instead of all else, with ``--train`` and the folder of a VGG-Sound (the toy
world's will do): `avfs pretrain` from prepared shards at each number of ``--workers``, in clips a second from shards to
the end of a step, the share of the time that it waited for clips, and processor seconds a clip, over all steps but the
first. The rest is arithmetic, shown with its factors; peak rates are those of NVIDIA's data sheets; the share of them
that is reached (``--utilisation``) was seen on one H100.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from avfewshot.config import PretrainingConfig
from avfewshot.data.folder import load_folder
from avfewshot.data.shards.plan import plan_shards
from avfewshot.data.shards.prepare import prepare
from avfewshot.encoders.backbone import build_backbone
from avfewshot.models.build import build_model
from avfewshot.models.complexity import count_flops, count_parameters

PEAKS = {"A100 80GB SXM": 312e12, "H100 SXM": 989e12}
"""Dense bfloat16 operations a second on tensor cores, by NVIDIA's data sheets; for H100 half of what sparsity gives."""

SECONDS, SAMPLE_RATE = 10, 48_000


def main() -> None:
    """Read the arguments, count, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--clips", type=int, default=40_801, help="clips of the list")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="clips of a batch on each GPU")
    parser.add_argument("--classes", type=int, default=141)
    parser.add_argument("--utilisation", type=float, default=0.05, help="share of the peak that is reached")
    parser.add_argument("--gpus", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--shard-bytes", type=float, default=600e3, help="bytes of a clip in a shard")
    parser.add_argument("--media", type=Path, nargs="*", default=[], help="clips whose bytes are measured")
    parser.add_argument("--train", type=Path, help="folder of a VGG-Sound to pretrain on from shards")
    parser.add_argument("--backbone", default="base", help="of --train, with random weights")
    parser.add_argument("--steps", type=int, default=8, help="of --train, of --batch-size clips")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="of --train")
    arguments = parser.parse_args()
    if arguments.train:
        with tempfile.TemporaryDirectory(prefix="avfs-benchmark-") as folder:
            print(json.dumps(trained(arguments, Path(folder)), indent=2))
        return
    counted = count()
    report = {"counted": counted, "arithmetic": arithmetic(counted, arguments)}
    if arguments.media:
        report["measured"] = measure(arguments.media)
    print(json.dumps(report, indent=2))


def count() -> dict[str, Any]:
    """Operations of one clip, and what is trained."""
    backbone = build_backbone("base", weights="random")
    side = backbone.visual.image_size
    frames = torch.zeros(1, SECONDS, 3, side, side, dtype=torch.uint8)
    audio = torch.zeros(1, SECONDS, SAMPLE_RATE)
    result: dict[str, Any] = {}
    for checkpointing in (False, True):
        config = PretrainingConfig(checkpointing=checkpointing)
        model = build_model(backbone, config)
        if not checkpointing:
            result["forward"] = count_flops(model.eval(), frames, audio)
            result["trainable"] = next(e.trainable for e in count_parameters(model) if e.component == "all")
        name = "with checkpointing" if checkpointing else "without checkpointing"
        result[f"forward and backward, {name}"] = _trained(model.train(), frames, audio)
    result["embedding_widths"] = [backbone.visual.output_dim, backbone.audio.output_dim]
    return result


def _trained(model: torch.nn.Module, frames: torch.Tensor, audio: torch.Tensor) -> int:
    # torch's counter does not know the attention kernels of the CPU.
    kernels = {
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *_, **__: (
            sdpa_backward_flop_count(g, q, k, v)
        ),
    }
    with FlopCounterMode(display=False, custom_mapping=kernels) as counter:
        visual, sound = model(frames, audio)
        (visual.sum() + sound.sum()).backward()
    model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def arithmetic(counted: dict[str, Any], arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, storage and traffic for each number of GPUs."""
    forward = counted["forward"]["all"]
    step = {
        "one pass": counted["forward and backward, without checkpointing"],
        "checkpointing": counted["forward and backward, with checkpointing"],
        "GradCache and checkpointing": forward + counted["forward and backward, with checkpointing"],
    }
    rows = []
    for gpu, peak in PEAKS.items():
        for gpus in arguments.gpus:
            rate = gpus * peak * arguments.utilisation / step["GradCache and checkpointing"]
            batch = arguments.batch_size
            rows.append(
                {
                    "gpu": gpu,
                    "gpus": gpus,
                    "clips_per_second": round(rate),
                    "minutes_an_epoch": round(arguments.clips / rate / 60, 2),
                    "gpu_hours_in_all": round(arguments.clips * arguments.epochs * gpus / rate / 3600, 1),
                    "seconds_a_step": round(batch * gpus / rate, 2),
                    "reads_MB_per_second": round(rate * arguments.shard_bytes / 1e6),
                    "reading_cores_at_45.7_clips_per_second": round(rate / 45.7, 1),
                    "decoding_cores_at_4.9_clips_per_second": round(rate / 4.9, 1),
                    **traffic(counted, gpus, batch, arguments.classes),
                }
            )
    return {
        "operations_per_clip": step,
        "times_the_forward_pass": {name: round(value / forward, 2) for name, value in step.items()},
        "shards_GB": round(arguments.clips * arguments.shard_bytes / 1e9, 1),
        "rows": rows,
    }


def traffic(counted: dict[str, Any], gpus: int, batch: int, classes: int) -> dict[str, int]:
    """Bytes of one step between GPUs, as each GPU holds them."""
    if gpus == 1:
        return {"gathered_bytes": 0, "gathered_gradient_bytes": 0, "gradient_bytes": 0}
    width = sum(counted["embedding_widths"])
    clips = gpus * batch
    return {
        # float32 embeddings, a byte for each class of the labels and one for each mark of presence.
        "gathered_bytes": clips * (4 * width + classes + 2),
        "gathered_gradient_bytes": clips * 4 * width,
        "gradient_bytes": 4 * counted["trainable"],
    }


def trained(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Steps of `avfs pretrain` from shards, at each number of workers, each in a process of its own."""
    shards, steps = str(folder / "shards"), arguments.steps
    command = [sys.executable, "-m", "avfewshot", "data", "prepare", "vggsound40k", "--backbone", arguments.backbone]
    command += ["--root", str(arguments.train), "--out", shards]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    rows = {}
    for workers in arguments.workers:
        options = ["vggsound40k", "--shards", shards, "--workers", str(workers)]
        options += ["--backbone", arguments.backbone, "--batch-size", str(arguments.batch_size), "--keep-leaks"]
        options += [*(() if arguments.backbone == "tiny" else ("--weights", "random")), "--device", "cpu"]
        options += ["--val-clips", "1", "--runs", str(folder / f"runs-{workers}")]
        told = subprocess.run([sys.executable, "-c", _STEPS, str(steps), *options], capture_output=True, text=True)
        if not told.stdout:
            sys.exit(told.stderr)
        rows[f"{workers} workers"] = json.loads(told.stdout.splitlines()[-1])
    return {"backbone": arguments.backbone, "batch": arguments.batch_size, "steps": steps, **rows}


_STEPS = """
import json, os, sys, time
from avfewshot.cli import app, progress

steps, noted, on_step = int(sys.argv[1]), [], progress.ProgressBar.on_step

def note(self, step, loss, pace):
    passed = (len(noted) + 1) * batch / pace.clips  # seconds since the training began
    noted.append((time.monotonic(), pace.waiting * passed, sum(os.times()[:2])))
    on_step(self, step, loss, pace)
    if len(noted) == steps:
        raise KeyboardInterrupt

progress.ProgressBar.on_step = note
batch = int(sys.argv[sys.argv.index("--batch-size") + 1])
status = app.run(["pretrain", *sys.argv[2:]])
if status == 130:  # interrupted, after the last step
    # The first step is left out: decoding begins in it.
    passed, waited, worked = (last - first for first, last in zip(noted[0], noted[-1]))
    clips = (len(noted) - 1) * batch
    told = {"clips_per_second": clips / passed, "share_waiting": waited / passed}
    told["processor_seconds_per_clip"] = worked / clips
    print(json.dumps({name: round(value, 3) for name, value in told.items()}))
"""


def measure(files: list[Path]) -> dict[str, Any]:
    """Bytes of clips as files and in shards."""
    with tempfile.TemporaryDirectory(prefix="avfs-benchmark-") as name:
        folder = Path(name)
        for number, label in enumerate(("a", "b")):  # a data set has two classes at least
            for path in files:
                target = folder / "clips" / "train" / label / f"{number}-{path.name}"
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(path.resolve())
        prepare(plan_shards(load_folder(folder / "clips"), frame_side=224), folder / "shards").run()
        size = sum(path.stat().st_size for path in (folder / "shards").glob("*.tar"))
    return {
        "clips": len(files),
        "bytes_per_file": sum(path.stat().st_size for path in files) // len(files),
        "bytes_per_clip_in_shards": size // (2 * len(files)),
    }


if __name__ == "__main__":
    main()
