"""Probes that start at the texts: LP++, class-adaptive, CLIP-Adapter."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avfewshot.methods.base import Floats, unit
from avfewshot.methods.evidence import STEPS, EvidenceMethod, class_means, train
from avfewshot.methods.rows import Head, Rows

if TYPE_CHECKING:
    import torch


class Probe(EvidenceMethod):
    """A probe that starts at the texts, trained full-batch with published settings."""

    with_text = False
    folds = 2  # they train for seconds


class LPPlusPlus(Probe):
    """LP++ (Huang et al., CVPR 2024): ``f.w_c + alpha_c f.t_c``, step sizes from Lipschitz bounds."""

    name = "lp_plus_plus"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        vectors, texts, _ = rows.joint()
        weights = class_means(vectors, targets, rows.weights)
        shots = max(targets.sum() / targets.shape[1], 1.0)
        alpha = np.full(len(texts), max(250 / shots * float((weights * texts).sum(1).mean()), 0.0))
        number = len(vectors)
        rate = 4 * number / max(np.linalg.eigvalsh(vectors @ vectors.T)[-1], 1e-9)
        alpha_rate = number / (4 * max(float(((vectors @ texts.T) ** 2).sum(0).max()), 1e-9))
        bias, momentum = np.zeros(len(texts)), [0.0, 0.0, 0.0]
        cosines, total = vectors @ texts.T, rows.weights.sum()
        for step in range(STEPS):
            logits = vectors @ weights.T + bias + alpha * cosines
            logits -= logits.max(1, keepdims=True)
            error = np.exp(logits)
            error = (error / error.sum(1, keepdims=True) - targets) * rows.weights[:, None] / total
            for index, slope in enumerate((error.T @ vectors, error.sum(0), (error * cosines).sum(0))):
                momentum[index] = 0.9 * momentum[index] + slope
            weights, bias = weights - rate * momentum[0] * 0.1, bias - rate * momentum[1] * 0.1
            if step % 10 == 0:
                alpha = alpha - alpha_rate * momentum[2]
        return Head({"weights": weights, "bias": bias, "alpha": alpha}, trainable=weights.size + bias.size + alpha.size)

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        vectors, texts, _ = rows.joint()
        return super().evidence(head, rows) + head.arrays["alpha"] * (vectors @ texts.T)


class ClassAdaptive(Probe):
    """CLAP (Silva-Rodriguez et al., CVPR 2024): prototypes that start at the texts and are held to them.

    Penalty ``lambda_c |w_c - t_c|^2``, lambda_c the mean zero-shot probability of the class on its own clips: classes
    that the text knows move little.
    """

    name = "class_adaptive"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch
        from torch.nn.functional import normalize

        vectors, texts, scale = rows.joint()
        shares = targets * rows.weights[:, None]
        trust = (shares * np.exp(rows.text["fused"])).sum(0) / np.maximum(shares.sum(0), 1e-12)
        features, start, held = map(torch.from_numpy, (vectors, texts, trust))
        prototypes = start.clone().requires_grad_()
        train(
            rows, targets, torch.optim.SGD([prototypes], lr=0.1, momentum=0.9),
            lambda: scale * features @ normalize(prototypes, dim=-1).T,
            penalty=lambda: (held * (prototypes - start).square().sum(-1)).mean(),
        )  # fmt: skip
        return Head({"prototypes": prototypes.detach().numpy()}, {"scale": scale}, trainable=prototypes.numel())

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        return head.params["scale"] * rows.joint()[0] @ unit(head.arrays["prototypes"]).T


class ClipAdapter(Probe):
    """CLIP-Adapter (Gao et al., IJCV 2024): ``f' = 0.2 ReLU(W2 ReLU(W1 f)) + 0.8 f`` against the texts."""

    name = "clip_adapter"
    share = 0.2

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch

        vectors, texts, scale = rows.joint()
        generator = torch.Generator().manual_seed(seed)
        width, inner = vectors.shape[1], max(vectors.shape[1] // 4, 1)
        down, up = (
            ((torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1) / shape[1] ** 0.5).requires_grad_()
            for shape in ((inner, width), (width, inner))
        )
        features, labels = torch.from_numpy(vectors), torch.from_numpy(texts)

        def logits() -> torch.Tensor:
            moved = (features @ down.T).relu() @ up.T
            adapted = self.share * moved.relu() + (1 - self.share) * features
            return scale * torch.nn.functional.normalize(adapted, dim=-1) @ labels.T

        train(rows, targets, torch.optim.Adam([down, up], lr=1e-3), logits)
        arrays = {"down": down.detach().numpy(), "up": up.detach().numpy()}
        return Head(arrays, {"scale": scale}, trainable=down.numel() + up.numel())

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        vectors, texts, _ = rows.joint()
        moved = np.maximum(np.maximum(vectors @ head.arrays["down"].T, 0) @ head.arrays["up"].T, 0)
        return head.params["scale"] * unit(self.share * moved + (1 - self.share) * vectors) @ texts.T
