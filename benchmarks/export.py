"""An export read in an environment without torch: how far its answers are from those of `avfs zeroshot`.

    python benchmarks/export.py --root toy [--adapter RUN]

Makes a virtual environment with av, numpy, onnxruntime and pillow (by pip, from the index that it is set up with), runs
examples/onnx_classify.py there on the toy world's sample clips, and compares.
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
    parser.add_argument("--adapter", help="a run; without it zero-shot by `tiny`")
    options = parser.parse_args()
    clips = sorted((options.root / "samples").glob("*.mp4"))
    classifier = load(None if options.adapter else "tiny", adapter=options.adapter, device="cpu", precision="fp32")
    labels = classifier.own_labels or parse_labels(options.root / "labels.txt")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export_onnx(classifier, labels, folder / "onnx")
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "-q", "av", "numpy", "onnxruntime", "pillow"], check=True)
        lacks = subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode
        lines = subprocess.run(
            [python, EXAMPLE, folder / "onnx", *clips], check=True, stdout=subprocess.PIPE, text=True
        )
    found = [json.loads(line) for line in lines.stdout.splitlines()]
    results = classifier.classify(clips, labels, workers=0)
    worst = [max(abs(f["scores"][k] - r.scores[k]) for k in r.scores) for f, r in zip(found, results, strict=True)]
    print(f"torch can be imported there: {not lacks}")
    print(f"{len(clips)} clips, {sum(f['label'] == r.label for f, r in zip(found, results, strict=True))} labels agree")
    print(f"largest difference of a probability: {max(worst):.1e}")
    sys.exit(max(worst) > 1e-4)


if __name__ == "__main__":
    main()
