"""Nearest class mean in the joint space, centred on the support (Wang et al., SimpleShot, 2019)."""

from __future__ import annotations

import numpy as np

from avfewshot.methods.base import Floats, unit
from avfewshot.methods.evidence import EvidenceMethod
from avfewshot.methods.method import register
from avfewshot.methods.rows import Head, Rows

SCALE = 10.0


def class_means(vectors: Floats, targets: Floats, weights: Floats) -> Floats:
    """Weighted means ``[C, D]`` of the rows of each class."""
    shares = targets * weights[:, None]
    return shares.T @ vectors / np.maximum(shares.sum(0), 1e-12)[:, None]


@register
class NearestMean(EvidenceMethod):
    """Cosine to the class means."""

    name = "nearest_mean"
    title = "nearest class mean"
    with_text = False

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors = rows.joint()[0]
        centre = vectors.mean(0) if len(vectors) > 1 else np.zeros(vectors.shape[1])
        return Head({"centre": centre, "means": unit(class_means(unit(vectors - centre), targets, rows.weights))})

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        return SCALE * unit(rows.joint()[0] - head.arrays["centre"]) @ head.arrays["means"].T
