"""Gaussian discriminant analysis, and TIMO's text-guided form."""

from __future__ import annotations

import numpy as np

from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Floats, unit
from avfewshot.methods.evidence import EvidenceMethod, class_means
from avfewshot.methods.rows import Head, Rows


class GDA(EvidenceMethod):
    """Gaussian discriminant analysis as a training-free classifier (Wang et al., ICLR 2024).

    Class means mu_c, covariance S of the centred support: ``P = D pinv((n - 1) S + tr(S) I)``, ``W = P mu``, ``b_c =
    -log C - mu_c' P mu_c / 2``. Where a class has one clip its scatter is not known: that about the common mean takes
    its place.
    """

    name = "gda"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        return _discriminant(rows.joint()[0], targets, rows.weights)


def _discriminant(vectors: Floats, targets: Floats, weights: Floats) -> Head:
    """Weights ``[C, D]`` and biases ``[C]``, scaled such that the support's evidence has a spread of one."""
    means = class_means(vectors, targets, weights)
    centred = vectors - targets @ means
    if (centred**2).sum() < 1e-6 * (vectors**2).sum():
        centred = vectors - vectors.mean(0)
    rows, width = vectors.shape
    scatter = centred.T @ (centred * weights[:, None])
    trace = max(np.trace(scatter) / max(rows - 1, 1), 1e-9)
    # D pinv(scatter + trace I) mu, in the space of the rows where those are fewer than the dimensions.
    weighted = width * np.linalg.solve(scatter + trace * np.eye(width), means.T).T
    bias = -np.log(len(means)) - (weighted * means).sum(1) / 2
    evidence = vectors @ weighted.T + bias
    spread = max(float((evidence - evidence.mean(1, keepdims=True)).std()), 1e-9)
    return Head({"weights": weighted / spread, "bias": bias / spread})


class TIMO(GDA):
    """GDA with the texts as further samples; prompts weighted by the support (Li et al., AAAI 2025).

    ``q_{c,p} = m_c . u_{c,p}`` divided by the norm of ``q_c``, weights ``softmax(gamma q_c)``: prompts that lie near
    the class's clips stand for it. Without single prompts their mean stands for each.
    """

    name = "timo"
    gamma = 50.0

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors, texts, _ = rows.joint()
        means = class_means(vectors, targets, rows.weights)
        total, end = sum(rows.scales), 0
        parts = []
        for modality, scale in zip(MODALITIES, rows.scales, strict=True):
            columns = slice(end, end := end + rows.labels[modality].shape[1])
            prompts = rows.templates.get(modality)  # as many in each modality as it has templates
            if prompts is None:
                parts.append(texts[:, columns])
                continue
            near = np.einsum("cd,cpd->cp", means[:, columns], prompts)
            near = self.gamma * near / np.maximum(np.linalg.norm(near, axis=1, keepdims=True), 1e-9)
            shares = np.exp(near - near.max(1, keepdims=True))
            weighted = np.einsum("cp,cpd->cd", shares / shares.sum(1, keepdims=True), prompts)
            parts.append(np.sqrt(scale / total) * weighted)
        texts = np.concatenate(parts, -1)
        # Texts and clips lie in different cones: the texts are moved to where the clips are before they join them.
        moved = unit(texts - texts.mean(0) + vectors.mean(0))
        return _discriminant(
            np.concatenate((vectors, moved)),
            np.concatenate((targets, np.eye(len(texts)))),
            np.concatenate((rows.weights, np.ones(len(texts)))),
        )
