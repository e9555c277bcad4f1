"""Few classes with few clips each: top-1 and log-loss of the methods over many draws, and how unknown clips are told.

    avfs data toy --root toy
    python benchmarks/few_classes.py --root toy

K classes of the toy AVE (and of VGG-Sound) are drawn, and of each k clips to learn from; it is judged by twelve others
of each. Names mean nothing to the text branches (random directions instead of texts), or with `--names real` what they
say. `--unknown` measures --reject: the share of false accepts that the support states, and what is accepted of classes
that were not drawn. Draws are seeded; embeddings are kept, so a second run takes seconds.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from avfewshot import load
from avfewshot.data.load import load_dataset
from avfewshot.methods.base import Features, LabelFeatures, Support, log_loss
from avfewshot.methods.living import LivingRidge, learn_to_reject
from avfewshot.methods.method import find_method

TESTED = 12  # clips of a class
SIZES = ((2, 1, 30), (2, 2, 30), (2, 4, 20), (3, 1, 20), (3, 2, 20), (5, 1, 14), (5, 2, 14), (5, 4, 10),
         (10, 1, 8), (10, 2, 8), (10, 4, 5), (24, 1, 4), (24, 2, 4), (24, 4, 3), (24, 8, 2))  # fmt: skip


class Draw(NamedTuple):
    """What is learnt from, and what it is judged by."""

    support: Support
    texts: LabelFeatures
    others: Features
    truth: np.ndarray  # [N, K]
    unseen: Features | None  # clips of classes that were not drawn


class Clips:
    """The embedded clips of a task by class."""

    def __init__(self, task: str, root: Path) -> None:
        dataset, classifier, paths = load_dataset(task, root), load("tiny"), defaultdict(list)
        for sample in dataset.samples:
            if sample.path is not None:
                paths[sample.label].append(sample.path)
        self.by_class = {label: classifier.embed(clips) for label, clips in sorted(paths.items())}
        self.texts = [side.numpy() for side in classifier.embed_labels(dataset.wordings)]

    def draw(self, classes: int, shots: int, seed: int, *, real: bool = False) -> Draw:
        """A seeded one."""
        random = np.random.default_rng([seed, classes, shots])
        order = random.permutation(len(self.by_class))
        texts = [side[order[:classes]] if real else random.normal(size=(classes, side.shape[1])) for side in self.texts]
        learnt: list[Any] = []
        others: list[Any] = []
        for label in order[:classes]:
            clips = self.by_class[label]
            chosen = [clips[index] for index in random.permutation(len(clips))]
            learnt += chosen[:shots]
            others += chosen[shots : shots + TESTED]
        unseen = [clip for label in order[classes:] for clip in self.by_class[label][:5]]
        names = tuple(f"class_{number}" for number in range(classes))
        support = Support(features(learnt), np.repeat(np.eye(classes, dtype=bool), shots, 0))
        truth = np.repeat(np.eye(classes, dtype=bool), len(others) // classes, 0)
        return Draw(
            support, LabelFeatures(names, *texts), features(others), truth, features(unseen) if unseen else None
        )


def features(clips: list[Any]) -> Features:
    """As methods take them."""
    return Features.of((str(clip.path), clip.visual, clip.audio) for clip in clips)


def methods_table(clips: Clips, names: list[str], *, real: bool) -> Iterator[str]:
    """A row a size, top-1 in percent and log-loss of each method; the last row is their mean."""
    yield "classes  clips  " + "  ".join(f"{name:>14}" for name in names)
    rows = []
    for classes, shots, draws in SIZES:
        if classes > len(clips.by_class):
            continue
        found = defaultdict(list)
        for seed in range(draws):
            draw = clips.draw(classes, shots, seed, real=real)
            for name in names:
                said = find_method(name).fit(draw.support, draw.texts, seed=seed).logits(draw.others)
                right = draw.truth[np.arange(len(said)), said.argmax(1)].mean()
                found[name].append((100 * right, log_loss(np.maximum(said, -20), draw.truth).mean()))
        rows.append([np.mean(found[name], 0) for name in names])
        yield f"{classes:7}  {shots:5}  " + "  ".join(f"{right:7.1f} {loss:6.2f}" for right, loss in rows[-1])
    yield "mean            " + "  ".join(f"{right:7.1f} {loss:6.2f}" for right, loss in np.mean(rows, 0))


def unknown_table(clips: Clips) -> Iterator[str]:
    """How many clips of classes that were not learnt are accepted, and how many of others rejected."""
    yield "classes  clips  stated  accepted  rejected"
    for classes, shots, draws in SIZES:
        if shots == 1 or classes >= len(clips.by_class):
            continue
        found = []
        for seed in range(draws):
            draw = clips.draw(classes, shots, seed)
            scorer = find_method("kernel_ridge").fit(draw.support, draw.texts, seed=seed)
            learn_to_reject(scorer, draw.support, seed=seed)
            stated, ridge = scorer.diagnostics["reject"]["false_accepts"], LivingRidge(scorer)
            stated = np.nan if stated is None else stated  # of two classes
            found.append((stated, 1 - ridge.unknown(draw.unseen).mean(), ridge.unknown(draw.others).mean()))
        stated, accepted, rejected = 100 * np.mean(found, 0)
        yield f"{classes:7}  {shots:5}  {stated:6.1f}  {accepted:8.1f}  {rejected:8.1f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", default=["ave_cls", "vggsound_cls"])
    parser.add_argument("--methods", default="zero_shot,kernel_ridge,nearest_mean,logistic,gda,timo,auto")
    parser.add_argument("--names", choices=("meaningless", "real"), default="meaningless")
    parser.add_argument("--unknown", action="store_true")
    options = parser.parse_args()
    for task in options.tasks:
        clips = Clips(task, options.root)
        print(f"{task}, {options.names} names")
        table = methods_table(clips, options.methods.split(","), real=options.names == "real")
        for line in unknown_table(clips) if options.unknown else table:
            print(line, flush=True)


if __name__ == "__main__":
    main()
