"""Few clips of classes with meaningless names: what a temperature from left-out clips does to the answers of others.

    avfs data toy --root toy
    python benchmarks/calibration.py --root toy

Draws are those of `benchmarks/few_classes.py`, of the toy AVE; "unseen" is the mean probability of the best answer on
clips of classes that were not learnt. Beside the method's temperature stand none at all, and that of least log-loss
without the share of other answers.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
from few_classes import Clips
from scipy.optimize import minimize_scalar

from avfewshot.methods import method as methods
from avfewshot.methods.base import log_loss, log_softmax
from avfewshot.methods.calibration import expected_calibration_error, temperature


def least_log_loss(said, labels):
    """The temperature of least log-loss, and nothing else."""
    found = minimize_scalar(lambda x: log_loss(log_softmax(said / np.exp(x)), labels).mean(), bounds=(-2.3, 2.3))
    return {"temperature": float(np.exp(found.x)), "ece_before": 0.0, "ece_after": 0.0}


RULES = {
    "no temperature": lambda said, labels: {"temperature": 1.0, "ece_before": 0.0, "ece_after": 0.0},
    "least log-loss": least_log_loss,
    "the method's": temperature,
}


def main() -> None:
    """Print a table of rules for each number of classes and clips."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--method", default="kernel_ridge")
    parser.add_argument("--draws", type=int, default=12)
    options = parser.parse_args()
    clips = Clips("ave_cls", options.root)
    print("classes  clips  rule             log-loss   ECE  unseen  temperature")
    for classes, shots in ((2, 2), (2, 4), (2, 8), (4, 2), (4, 4), (4, 8), (8, 4), (24, 4)):
        rows = defaultdict(list)
        for seed in range(options.draws):
            draw = clips.draw(classes, shots, seed)
            for rule, function in RULES.items():
                with mock.patch.object(methods, "temperature", function):
                    scorer = methods.find_method(options.method).fit(draw.support, draw.texts, seed=seed)
                said, best = scorer.logits(draw.others), np.exp(scorer.logits(draw.unseen).max(1)).mean()
                error = expected_calibration_error(said, draw.truth)
                rows[rule].append((log_loss(np.maximum(said, -20), draw.truth).mean(), error, best, scorer.temperature))
        for rule, found in rows.items():
            loss, error, best, divisor = np.mean(found, 0)
            print(f"{classes:7}{shots:7}  {rule:15}{loss:10.3f}{error:6.3f}{best:8.3f}{divisor:13.2f}", flush=True)


if __name__ == "__main__":
    main()
