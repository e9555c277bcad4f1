"""Logistic regression on the joint embeddings: what anybody would try first."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np

from avfewshot.methods.base import Floats
from avfewshot.methods.evidence import EvidenceMethod
from avfewshot.methods.rows import Head, Rows


class Logistic(EvidenceMethod):
    """Multinomial logistic regression with scikit-learn, what anybody would try first; the text has no part in it."""

    name = "logistic"
    with_text = False

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        from sklearn.linear_model import LogisticRegression

        row, label = np.nonzero(targets)  # a clip with several labels counts once for each, with its share
        model: Any = LogisticRegression(C=10.0, max_iter=300)
        with warnings.catch_warnings():  # "might be a regression": one clip a class is what we are here for
            warnings.simplefilter("ignore", UserWarning)
            model.fit(rows.joint()[0][row], label, sample_weight=targets[row, label] * rows.weights[row])
        weights, bias = model.coef_, model.intercept_
        if targets.shape[1] == 2:  # scikit-learn keeps one row for two classes
            weights, bias = np.concatenate((-weights / 2, weights / 2)), np.concatenate((-bias / 2, bias / 2))
        return Head({"weights": weights, "bias": bias}, trainable=weights.size + bias.size)
