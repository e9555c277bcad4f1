"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022): a cache of the support beside the text."""

from __future__ import annotations

import numpy as np

from avfewshot.methods.base import Floats
from avfewshot.methods.evidence import EvidenceMethod, train
from avfewshot.methods.rows import Head, Rows


class TipAdapter(EvidenceMethod):
    """A cache of the support beside the text, without training (Zhang et al., ECCV 2022).

    ``alpha exp(-beta (1 - x F^T)) Y``, Y divided by the clips of each class so that alpha does not grow with the shots;
    beta = 5.5 as published, alpha by left-out clips.
    """

    name = "tip_adapter"
    beta = 5.5

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        shares = targets * rows.weights[:, None]
        return Head({"keys": rows.joint()[0], "values": shares / np.maximum(shares.sum(0), 1e-12)})

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        affinity = np.exp(self.beta * (rows.joint()[0] @ head.arrays["keys"].T - 1))
        return head.params.get("alpha", 1.0) * affinity @ head.arrays["values"]


class TipAdapterF(TipAdapter):
    """The keys are trained: AdamW, cosine, 20 full-batch epochs, the last one kept."""

    name = "tip_adapter_f"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch

        head = super().fit_evidence(rows, targets, seed=seed)
        vectors, values, text = map(torch.from_numpy, (rows.joint()[0], head.arrays["values"], rows.text["fused"]))
        keys = torch.from_numpy(head.arrays["keys"].copy()).requires_grad_()
        train(
            rows, targets, torch.optim.AdamW([keys], lr=1e-3, eps=1e-4),
            lambda: text + torch.exp(self.beta * (vectors @ keys.T - 1)) @ values,
            steps=20,
        )  # fmt: skip
        head.arrays["keys"] = keys.detach().numpy()
        head.trainable = keys.numel()
        return head
