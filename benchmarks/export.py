"""An export read in an environment without torch: how far its answers are from those of `avfs zeroshot`.

    python benchmarks/export.py --root toy [--adapter RUN]...

Makes a virtual environment with av, onnxruntime and pillow (by pip, from the index that it is set up with), runs
examples/onnx_classify.py there on the toy world's sample clips, for zero-shot by `tiny` and for each run, and compares.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

from avfewshot.inference.export_onnx import export_onnx
from avfewshot.inference.loading import load
from avfewshot.labels import parse_labels

EXAMPLE = Path(__file__).parents[1] / "examples" / "onnx_classify.py"


def main() -> None:
    """Export, run, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="a toy world")
    parser.add_argument("--adapter", action="append", default=[], help="a run; may be repeated")
    options = parser.parse_args()
    clips = sorted((options.root / "samples").glob("*.mp4"))
    differ = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "av", "onnxruntime", "pillow"], check=True)
        lacks = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode
        print(f"{len(clips)} clips; torch can be imported there: {not lacks}")
        for adapter in (None, *options.adapter):
            classifier = load(None if adapter else "tiny", adapter=adapter, device="cpu", precision="fp32")
            labels = classifier.own_labels or parse_labels(options.root / "labels.txt")
            export_onnx(classifier, labels, folder / "onnx")
            command = [python, EXAMPLE, folder / "onnx", *clips]
            lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()
            pairs = [*zip(map(json.loads, lines), classifier.classify(clips, labels, segments=True), strict=True)]
            differ.append(max(abs(found["scores"][k] - r.scores[k]) for found, r in pairs for k in r.scores))
            seconds = [a == b.label for found, r in pairs for a, b in zip(found["seconds"], r.segments, strict=True)]
            print(
                f"{adapter or 'zero-shot by tiny'}: largest difference of a probability {differ[-1]:.1e}, "
                f"{sum(seconds)} of {len(seconds)} seconds have the same label",
                flush=True,
            )
    sys.exit(max(differ) > 1e-4)


if __name__ == "__main__":
    main()
