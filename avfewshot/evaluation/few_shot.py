"""Few-shot methods on the clips of a task: from samples and cached embeddings to scorers and predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.evaluation.background import BackgroundRule
from avfewshot.evaluation.evaluator import TaskBench
from avfewshot.evaluation.measures import choose_label_threshold
from avfewshot.evaluation.targets import Predictions
from avfewshot.methods.base import Features, LabelFeatures, Support
from avfewshot.methods.method import Scorer


def label_features(bench: TaskBench) -> LabelFeatures:
    """The texts of a task as methods take them."""
    return LabelFeatures.with_background(
        bench.dataset.classes,
        bench.texts.visual.double().numpy(),
        bench.texts.audio.double().numpy(),
        scales=(bench.backbone.visual_scale, bench.backbone.audio_scale),
        fusion=bench.decision.fusion,
        pool=bench.decision.pool,
    )


def method_support(bench: TaskBench, clips: str | Sequence[Sample]) -> Support:
    """Labelled clips as methods take them; seconds have labels of their own where the task labels seconds."""
    samples, features = bench.features(clips)
    return labelled_support(bench.dataset, samples, features, per_second=bench.decision.per_second)


def labelled_support(
    dataset: Dataset, samples: Sequence[Sample], features: Features, *, per_second: bool = False
) -> Support:
    """Samples with their embeddings as methods take them."""
    labels = dataset.multi_hot(samples) if samples else np.zeros((0, len(dataset.classes)), dtype=bool)
    segments = None
    if per_second:
        marks = np.eye(len(dataset.classes) + 1, dtype=bool)
        pairs = zip(samples, features.seconds, strict=True)
        segments = tuple(marks[dataset.segment_labels(sample, int(seconds))] for sample, seconds in pairs)
    return Support(features, labels, segments)


def method_predictions(
    bench: TaskBench, scorer: Scorer, features: Features, support: Support, *, tuned: np.ndarray | None = None
) -> Predictions:
    """What a fitted method says about clips.

    Args:
        bench: The task.
        scorer: Fitted on `support`.
        features: N clips.
        support: For the threshold from which on a clip carries a class, where clips carry several.
        tuned: Log-posteriors ``[N, K]`` of a tuned part that was joined.
    """
    if bench.decision.per_second:
        classes = len(scorer.texts.names)
        probabilities = np.zeros((len(features), bench.decision.seconds, classes + 1))
        probabilities[..., classes] = 1
        for row, logits in enumerate(scorer.segment_logits(features)):
            known = np.exp(logits[: bench.decision.seconds])
            probabilities[row, : len(known)] = known / known.sum(-1, keepdims=True)
        return Predictions(probabilities, background=BackgroundRule("prompt"))
    probabilities = np.exp(scorer.logits(features, tuned=tuned))
    threshold = None
    if bench.dataset.multi_label and (left_out := scorer.loo(support)) is not None:
        threshold = choose_label_threshold(np.exp(left_out), support.labels)
    return Predictions(probabilities / probabilities.sum(-1, keepdims=True), label_threshold=threshold)


def with_validation(dataset: Dataset, chosen: Sequence[Sample]) -> Dataset:
    """The same data set with these clips as its val split; those of other splits that are among them are moved."""
    taken = {id(sample) for sample in chosen}
    kept = [sample for sample in dataset.samples if sample.split != "val" and id(sample) not in taken]
    return dataset.with_samples([*kept, *(replace(sample, split="val") for sample in chosen)])
