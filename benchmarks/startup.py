"""How long `avfs --help` and its kind take, in a fresh process each time; one clip, as a multiple of `import torch`.

Prints JSON. Run: python benchmarks/startup.py [--repeat 9]
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
from pathlib import Path

COMMANDS = (
    ["--version"],
    ["--help"],
    ["zeroshot", "--help"],
    ["fewshot", "--help"],
    ["pretrain", "--help"],
    ["weights", "--help"],
    ["data", "--help"],
    ["config", "--help"],
    ["config"],
    ["zeroshot", "--labels", "no-such-file.txt"],
    ["fewshot", "--shots", "0"],
    ["pretrain", "no-such-list"],
)
HEAVY = ("torch", "transformers", "sklearn", "open_clip", "decord", "av", "numpy", "jinja2")
RUN = "import sys; from avfewshot.cli.app import run; run(sys.argv[1:])"
LIST_HEAVY = f"{RUN}; print(*[name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr, sep=',')"


def once(arguments: list[str], code: str = RUN) -> tuple[float, float, str]:
    """Seconds by the clock, seconds of processor time, and the last line of stderr of one run."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=os.environ
    )
    wall = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    work = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, work, (done.stderr.strip().splitlines() or [""])[-1]


def one_clip() -> list[str]:
    """Arguments of a classification of one made-up clip of four seconds with the packaged backbone."""
    import numpy as np
    import soundfile

    folder = Path(tempfile.mkdtemp())
    soundfile.write(folder / "tone.wav", 0.1 * np.sin(np.arange(4 * 48000) * 0.06), 48000)
    (folder / "labels.txt").write_text("dog barking\ncar honking\n")
    return ["zeroshot", "--labels", str(folder / "labels.txt"), str(folder / "tone.wav"), "--backbone", "tiny"]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeat", type=int, default=9, help="runs of each command; the first warm-up does not count")
    repeat = parser.parse_args().repeat
    results = []
    for arguments in COMMANDS:
        heavy = once(arguments, LIST_HEAVY)[2]
        times = [once(arguments) for _ in range(repeat)]
        results.append(
            {
                "command": " ".join(["avfs", *arguments]),
                "wall_s": round(statistics.median(wall for wall, _, _ in times), 3),
                "work_s": round(statistics.median(work for _, work, _ in times), 3),
                "heavy_imports": [name for name in heavy.split(",") if name in HEAVY],
            }
        )
    torch, clip = (
        statistics.median(once(arguments, code)[1] for _ in range(repeat))
        for arguments, code in (([], "import torch"), (one_clip(), RUN))
    )
    one = {"import_torch_s": round(torch, 2), "zeroshot_s": round(clip, 2), "ratio": round(clip / torch, 2)}
    print(
        json.dumps(
            {"one_clip_with_tiny": one, "repeat": repeat, "python": sys.version.split()[0], "median": results}, indent=1
        )
    )


if __name__ == "__main__":
    main()
