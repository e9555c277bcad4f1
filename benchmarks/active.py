"""Does active labelling pay? Accuracy after 1 to 10 labels a class, clips chosen by `avfs suggest` or drawn at random.

    avfs data toy --root toy
    python benchmarks/active.py --root toy --output active.json --chart docs/active.svg

The training clips of the toy world's AVE are a folder of clips without labels, its test clips are judged on. In each
round as many clips are labelled as there are classes, and a kernel ridge is fitted on all labels so far. Class names
mean nothing here (`class_a`, ...), so that what is learnt comes from clips. The first round of both strategies is the
same random draw of a seed; a strategy gets whatever classes its clips happen to have.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from methods import Task

from avfewshot.encoders.backbone import build_backbone
from avfewshot.methods.active import margins, suggest
from avfewshot.methods.base import Features, Support
from avfewshot.methods.method import find_method

STRATEGIES = ("suggest", "random")


def labelled(task: Task, split: str) -> tuple[Features, np.ndarray]:
    """Embeddings of the clips of a split, and which class each is of ``[N, K]``."""
    samples = [sample for sample in task.dataset.split(split) if sample.path in task.embedded]
    files = [task.embedded[sample.path] for sample in samples]
    features = Features.of((s.id, f.visual, f.audio) for s, f in zip(samples, files, strict=True))
    return features, task.dataset.multi_hot(samples).astype(bool)


def curve(
    strategy: str,
    pool: tuple[Features, np.ndarray],
    test: tuple[Features, np.ndarray],
    texts: Any,
    rounds: int,
    seed: int,
) -> list[float]:
    """Accuracy on the test clips after each round."""
    (features, labels), (judged, truth) = pool, test
    rng = np.random.default_rng(seed)
    count = labels.shape[1]
    chosen = list(rng.permutation(len(features))[:count])
    accuracies = []
    for number in range(rounds):
        scorer = find_method("kernel_ridge").fit(Support(features.take(chosen), labels[chosen]), texts, seed=seed)
        answers = scorer.logits(judged).argmax(1)
        accuracies.append(float(truth[np.arange(len(truth)), answers].mean()))
        free = np.setdiff1d(np.arange(len(features)), chosen)
        if number == rounds - 1:
            break
        if strategy == "random":
            chosen += list(rng.permutation(free)[:count])
        else:
            part = features.take(free)
            chosen += list(free[suggest(margins(np.exp(scorer.scores(part).joined)), part.take, count)])
    return accuracies


def draw(report: dict[str, Any], path: Path) -> None:
    """The mean of each strategy, and its seeds as thin lines."""
    import matplotlib as mpl

    mpl.use("svg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6.4, 3.8))
    for strategy, colour in zip(STRATEGIES, ("#1668b8", "#b5541c"), strict=True):
        curves = 100 * np.array(report["accuracy"][strategy])
        labels = np.arange(1, curves.shape[1] + 1)
        axes.plot(labels, curves.T, color=colour, alpha=0.25, linewidth=1)
        axes.plot(labels, curves.mean(0), color=colour, marker="o", markersize=4, label=strategy)
    axes.set_xlabel("labels a class, on average")
    axes.set_ylabel(f"test clips right of {report['test_clips']}, %")
    axes.set_xticks(labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path)


def main() -> None:
    """Run both strategies for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--chart", type=Path)
    asked = parser.parse_args()
    seeds = [int(seed) for seed in asked.seeds.split(",")]
    task = Task("ave_cls", asked.root / "AVE", build_backbone("tiny"), [10_000], [1])  # the whole training split
    pool, test = labelled(task, "train"), labelled(task, "test")
    texts = task.texts["meaningless"]
    report: dict[str, Any] = {"pool": len(pool[0]), "test_clips": len(test[0]), "classes": pool[1].shape[1]}
    report |= {"seeds": seeds, "accuracy": {}}
    for strategy in STRATEGIES:
        report["accuracy"][strategy] = [curve(strategy, pool, test, texts, asked.rounds, seed) for seed in seeds]
        print(strategy, np.round(100 * np.mean(report["accuracy"][strategy], 0), 1), flush=True)
    if asked.output:
        asked.output.write_text(json.dumps(report, indent=1))
    if asked.chart:
        draw(report, asked.chart)


if __name__ == "__main__":
    main()
