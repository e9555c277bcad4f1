"""What each packaged backbone takes for a clip of ten seconds: seconds with random weights, memory, computation.

Prints a row a backbone, in a process of its own; those whose weights do not fit into memory are named and left out.
Run: OMP_NUM_THREADS=2 python benchmarks/backbones.py [NAME]... [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


def measure(name: str, repeat: int) -> dict[str, float]:
    """The fastest of some runs of both towers over ten seconds, and the peak memory of the process."""
    import torch

    from avfewshot.encoders.backbone import build_backbone
    from avfewshot.media.clip import SAMPLE_RATE

    backbone = build_backbone(name, weights="random")
    size = backbone.visual.image_size
    frames = torch.zeros(10, 3, size, size, dtype=torch.uint8)
    sound = torch.rand(10, SAMPLE_RATE) * 0.1
    seconds = []
    with torch.inference_mode():
        for _ in range(repeat):
            begun = time.perf_counter()
            backbone.visual(frames)
            backbone.audio(sound)
            seconds.append(time.perf_counter() - begun)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"seconds": min(seconds), "peak_bytes": peak, "threads": torch.get_num_threads()}


def main() -> None:
    """Measure and print a table in Markdown."""
    from avfewshot.encoders.presets import load_preset, preset_names
    from avfewshot.models.complexity import backbone_cost

    parser = argparse.ArgumentParser(description="Seconds, memory and computation of each backbone.")
    parser.add_argument("names", nargs="*", default=preset_names())
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(arguments.names[0], arguments.repeat)))
        return
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    print("| backbone | M parameters | GB in float32 | GFLOPs a clip | seconds a clip | peak GB |")
    print("|---|---|---|---|---|---|")
    for name in arguments.names:
        cost = backbone_cost(load_preset(name))
        row = f"{cost['parameters'] / 1e6:.0f} | {cost['memory_bytes'] / 1e9:.2f} | {cost['flops_per_clip'] / 1e9:.0f}"
        if 2 * cost["memory_bytes"] > free:
            print(f"| `{name}` | {row} | does not fit into {free / 1e9:.1f} GB free | |", flush=True)
            continue
        command = [sys.executable, __file__, name, "--worker", "--repeat", str(arguments.repeat)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1])
        found = json.loads(done.stdout.splitlines()[-1])
        print(f"| `{name}` | {row} | {found['seconds']:.2f} | {found['peak_bytes'] / 1e9:.1f} |", flush=True)


if __name__ == "__main__":
    main()
