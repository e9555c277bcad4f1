"""How long the kernel ridge takes to fit, and with how much memory, on made-up embeddings of the size of a large task.

    python benchmarks/ridge.py                      # 141 classes, 16 clips each, ten seconds a clip, widths of `base`
    python benchmarks/ridge.py --classes 28 --shots 4

A clip's seconds scatter about its own centre, and that about the class's, so that hyper-parameters have something to
choose. Printed: seconds of the clock, processor seconds, peak memory, and the accuracy of left-out clips.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np

from avfewshot.methods.base import Features, LabelFeatures, Support
from avfewshot.methods.method import find_method


def main() -> None:
    """Read the arguments, make embeddings, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("classes", 141), ("shots", 16), ("seconds", 10), ("width", 512), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    asked = parser.parse_args()
    rng = np.random.default_rng(asked.seed)
    classes = rng.normal(size=(2, asked.classes + 1, asked.width))
    clips = []
    for row in range(asked.classes * asked.shots):
        centres = classes[:, row // asked.shots] + 4 * rng.normal(size=(2, asked.width))
        clips.append((str(row), *(centre + rng.normal(size=(asked.seconds, asked.width)) for centre in centres)))
    labels = np.repeat(np.eye(asked.classes, dtype=bool), asked.shots, 0)
    texts = LabelFeatures.with_background(
        [f"class {number}" for number in range(asked.classes)], *classes + 3 * rng.normal(size=classes.shape)
    )
    support = Support(Features.of(clips), labels)
    before, begun, processor = peak(), time.perf_counter(), time.process_time()
    scorer = find_method("kernel_ridge").fit(support, texts)
    print(
        f"{len(clips):,} clips of {asked.classes} classes: {time.perf_counter() - begun:.1f} s, "
        f"{time.process_time() - processor:.1f} processor seconds; peak memory {peak():,.0f} MiB, {before:,.0f} before "
        f"the fit; {100 * scorer.diagnostics['loo_accuracy']:.1f} % of left-out clips are right"
    )


def peak() -> float:
    """Largest resident memory of this process so far, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
