"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022): a cache of the support beside the text.

``alpha exp(-beta (1 - x F^T)) Y``, Y divided by the clips of each class so that alpha does not grow with the shots;
beta = 5.5 as published, alpha by left-out clips.
"""

from __future__ import annotations

import numpy as np

from avfewshot.methods.base import Floats
from avfewshot.methods.evidence import EvidenceMethod
from avfewshot.methods.method import register
from avfewshot.methods.rows import Head, Rows

SHARPNESS = 5.5
EPOCHS, RATE = 20, 1e-3


@register
class TipAdapter(EvidenceMethod):
    """The training-free form."""

    name = "tip_adapter"
    title = "Tip-Adapter"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        shares = targets * rows.weights[:, None]
        return Head({"keys": rows.joint()[0], "values": shares / np.maximum(shares.sum(0), 1e-12)})

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`EvidenceMethod.evidence`."""
        affinity = np.exp(SHARPNESS * (rows.joint()[0] @ head.arrays["keys"].T - 1))
        return head.params.get("alpha", 1.0) * affinity @ head.arrays["values"]


@register
class TipAdapterF(TipAdapter):
    """The keys are trained: AdamW, cosine, 20 full-batch epochs, the last one kept."""

    name = "tip_adapter_f"
    title = "Tip-Adapter-F"

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`EvidenceMethod.fit_evidence`."""
        import torch

        head = super().fit_evidence(rows, targets, seed=seed)
        vectors, values, truth, text, weights = (
            torch.from_numpy(part)
            for part in (rows.joint()[0], head.arrays["values"], targets, rows.text["fused"], rows.weights)
        )
        keys = torch.from_numpy(head.arrays["keys"].copy()).requires_grad_()
        optimizer = torch.optim.AdamW([keys], lr=RATE, eps=1e-4)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
        for _ in range(EPOCHS):
            logits = text + torch.exp(SHARPNESS * (vectors @ keys.T - 1)) @ values
            loss = -(weights * (truth * logits.log_softmax(-1)).sum(-1)).sum() / weights.sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        head.arrays["keys"] = keys.detach().numpy()
        head.trainable = keys.numel()
        return head
