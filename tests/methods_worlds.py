"""Made-up embeddings for the tests of few-shot methods."""

import numpy as np

from avfewshot.methods.base import Features, LabelFeatures, Support

CLASSES, WIDTH = 4, 12


def world(clips=3, *, seconds=4, classes=CLASSES, noise=0.35, seed=0, text_noise=0.3, bias=2):
    """Clips of classes that have a direction of their own in both modalities, and texts near those directions."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(2, CLASSES, WIDTH))[:, :classes]
    labels = np.repeat(np.eye(classes, dtype=bool), clips, 0)
    items = []
    for row, label in enumerate(labels.argmax(1)):
        pair = [
            centre[label] + noise * rng.normal(size=(1, WIDTH)) * 1.5 + noise * rng.normal(size=(seconds, WIDTH))
            for centre in centres
        ]
        items.append((f"clip-{seed}-{row}", *pair))
    rng = np.random.default_rng(7)
    rows = [np.concatenate((c + text_noise * rng.normal(size=c.shape), rng.normal(size=(1, WIDTH)))) for c in centres]
    texts = LabelFeatures.with_background([f"c{i}" for i in range(classes)], *rows, scales=(8.0, 8.0))
    return Support(Features.of(items), labels), texts


def world_of_seconds(clips, seed, noise=0.5):
    """Clips of eight seconds whose event fills four; the others show noise of their own kind."""
    centres = np.random.default_rng(99).normal(size=(2, CLASSES + 1, WIDTH))
    rng = np.random.default_rng(seed)
    items, segments = [], []
    labels = np.repeat(np.eye(CLASSES, dtype=bool), clips, 0)
    for row, label in enumerate(labels.argmax(1)):
        shown = np.full(8, CLASSES)
        start = rng.integers(0, 5)
        shown[start : start + 4] = label
        items.append((f"{seed}-{row}", *(centre[shown] + noise * rng.normal(size=(8, WIDTH)) for centre in centres)))
        segments.append(np.eye(CLASSES + 1, dtype=bool)[shown])
    names = [f"c{i}" for i in range(CLASSES)]
    texts = LabelFeatures.with_background(names, *centres, scales=(8.0, 8.0))
    return Support(Features.of(items), labels, tuple(segments)), texts


def accuracy(scores, labels):
    return labels[np.arange(len(labels)), scores.argmax(1)].mean()
