"""Nearest class mean in the joint space (Wang et al., SimpleShot, 2019)."""

from __future__ import annotations

import numpy as np

from avfewshot.methods.base import Floats, unit
from avfewshot.methods.evidence import EvidenceMethod, class_means
from avfewshot.methods.rows import Head, Rows


class NearestMean(EvidenceMethod):
    """Cosine to the class means in the joint space, centred on the support (Wang et al., SimpleShot, 2019)."""

    name = "nearest_mean"
    with_text = False

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors = rows.joint()[0]
        centre = vectors.mean(0) if len(vectors) > 1 else np.zeros(vectors.shape[1])
        return Head({"centre": centre, "means": unit(class_means(unit(vectors - centre), targets, rows.weights))})

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        return 10.0 * unit(rows.joint()[0] - head.arrays["centre"]) @ head.arrays["means"].T
