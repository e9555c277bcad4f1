"""Results made up for tests of reports and of the command line."""

import math
import random

from avfewshot.inference.results import ClipResult, Failure, RunInfo, SegmentResult

LABELS = ("dog barking", "violin", "background")


def softmax(logits):
    exponentials = [math.exp(value - max(logits)) for value in logits]
    return [value / sum(exponentials) for value in exponentials]


def clip(path="a.mp4", seconds=10, *, labels=LABELS, visual=True, audio=True, seed=0, warnings=()):
    """A clip whose label changes now and then; scores are unrounded, as a model gives them."""
    chance = random.Random(f"{seed}{path!r}")
    segments, current = [], 0
    for second in range(seconds):
        if chance.random() < 0.3:
            current = chance.randrange(len(labels))
        logits = [chance.gauss(0, 1) for _ in labels]
        logits[current] += 5
        scores = softmax(logits)
        best = max(range(len(labels)), key=scores.__getitem__)
        share = chance.random() if visual and audio else float(visual)
        weights = {"visual": share, "audio": 1 - share}
        segments.append(SegmentResult(second, second + 1.0, labels[best], scores[best], weights, scores))
    mean = [sum(segment.scores[index] for segment in segments) / seconds for index in range(len(labels))]
    fused = dict(zip(labels, mean, strict=True))
    best = max(fused, key=fused.__getitem__)

    def alone():
        return dict(zip(labels, softmax([math.log(p + 1e-9) + chance.gauss(0, 1) for p in mean]), strict=True))

    share = sum(segment.weights["visual"] for segment in segments) / seconds
    return ClipResult(
        path=path,
        duration=float(seconds),
        label=best,
        score=fused[best],
        scores=fused,
        visual=alone() if visual else None,
        audio=alone() if audio else None,
        weights={"visual": share, "audio": 1 - share},
        segments=segments,
        warnings=list(warnings),
    )


def failure(path="broken.mp4"):
    return Failure(path, f"{path}: is damaged")


def run_info(labels=LABELS, **changes):
    values = {
        "backbone": "tiny",
        "adapter": None,
        "labels": list(labels),
        "wordings": [f"the sound and sight of {label}" for label in labels],
        "device": "cpu",
        "precision": "fp32",
        "fusion": "weighted",
        "pool": "mean",
        "warnings": [],
    }
    return RunInfo(**(values | changes))
