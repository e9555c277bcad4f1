"""Few clips of classes with meaningless names: what a temperature from left-out clips does to the answers of others.

    avfs data toy --root toy
    python benchmarks/calibration.py --root toy

Classes of the toy AVE are drawn, and of each a few clips to learn from; log-loss and ECE are those of the class's
other clips, "unseen" is the mean probability of the best answer on clips of classes that were not learnt. Beside the
method's temperature stand none at all, and that of least log-loss without the share of other answers.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path
from unittest import mock

import numpy as np
from scipy.optimize import minimize_scalar

from avfewshot import load
from avfewshot.data.load import load_dataset
from avfewshot.methods import method as methods
from avfewshot.methods.base import Features, LabelFeatures, Support, log_loss, log_softmax
from avfewshot.methods.calibration import expected_calibration_error, temperature

CLIPS = 12  # of a class


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
    parser.add_argument("--draws", type=int, default=8)
    options = parser.parse_args()
    dataset = load_dataset("ave_cls", options.root)
    samples = defaultdict(list)
    for sample in dataset.samples:
        if len(samples[sample.label]) < CLIPS:
            samples[sample.label].append(sample.path)
    classifier = load("tiny")
    embedded = {label: classifier.embed(paths) for label, paths in sorted(samples.items())[:14]}
    widths = [classifier.backbone.visual.output_dim, classifier.backbone.audio.output_dim]
    print("classes  clips  rule             log-loss   ECE  unseen  temperature")
    for classes in (2, 4, 8):
        for shots in (2, 4, 8):
            rows = defaultdict(list)
            for draw in range(options.draws):
                random = np.random.default_rng(draw)
                order = random.permutation(list(embedded))
                texts = [random.normal(size=(classes, width)) for width in widths]
                labels = LabelFeatures(tuple(f"class_{number}" for number in range(classes)), *texts)
                shuffled = [random.permutation(np.array(embedded[one], dtype=object)) for one in order[:classes]]
                learnt, others = (
                    [clip for c in shuffled for clip in c[part]] for part in (np.s_[:shots], np.s_[shots:])
                )
                unseen = features([clip for one in order[classes:] for clip in embedded[one][:6]])
                truth = np.repeat(np.eye(classes, dtype=bool), CLIPS - shots, 0)
                support = Support(features(learnt), np.repeat(np.eye(classes, dtype=bool), shots, 0))
                for rule, function in RULES.items():
                    with mock.patch.object(methods, "temperature", function):
                        scorer = methods.find_method(options.method).fit(support, labels, seed=draw)
                    said = scorer.logits(features(others))
                    best = np.exp(scorer.logits(unseen).max(1)).mean()
                    error = expected_calibration_error(said, truth)
                    rows[rule].append((log_loss(np.maximum(said, -20), truth).mean(), error, best, scorer.temperature))
            for rule, found in rows.items():
                loss, error, best, divisor = np.mean(found, 0)
                print(f"{classes:7}{shots:7}  {rule:15}{loss:10.3f}{error:6.3f}{best:8.3f}{divisor:13.2f}")


def features(clips) -> Features:
    """As methods take them."""
    return Features.of((str(clip.path), clip.visual, clip.audio) for clip in clips)


if __name__ == "__main__":
    main()
