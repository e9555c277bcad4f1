"""Methods that add evidence from the support to the text: ``w_e e(x) + w_t log p_text(x)``.

Their papers search w_e on a validation split, or on the test split. Here both weights minimise the log-loss of clips
that were left out: the support is cut into folds by clip, every class keeping clips in each training part. With one
clip a class there is nothing to leave out, and the weights are fixed. All learn on the *joint* vectors of sight and
sound: a head a modality falls below zero-shot wherever a look or a sound belongs to several classes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from avfewshot.methods.base import Floats, log_softmax
from avfewshot.methods.calibration import stack, text_is_useful
from avfewshot.methods.method import Method
from avfewshot.methods.rows import Head, Rows, countable

STEPS = 200  # of full-batch training


class EvidenceMethod(Method):
    """A method in two parts; subclasses give :meth:`fit_evidence`, and :meth:`evidence` where it is not linear."""

    folds: ClassVar[int] = 4
    with_text: ClassVar[bool] = True  # False: the text is inside the evidence, or has no part

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """Fit the part that learns."""
        raise NotImplementedError

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """Its logits ``[n, C]``: here of ``weights`` ``[C, D]`` and ``bias`` ``[C]``."""
        return rows.joint()[0] @ head.arrays["weights"].T + head.arrays["bias"]

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`Method.fit_head`."""
        head = self.fit_evidence(rows, targets, seed=seed)
        use_text = self.with_text and text_is_useful(rows.text["fused"], targets)
        weights = np.array([1.0, float(use_text)])
        out, judged = self._cross_fit(rows, targets, seed)
        if judged.any():
            experts = [out] + [rows.text["fused"]] * use_text
            chosen = stack([e[judged] for e in experts], targets[judged], rows.weights[judged])
            weights = np.array([*chosen, *[0.0] * (not use_text)])
            loo = log_softmax(weights[0] * out + weights[1] * rows.text["fused"])
            # A clip that is the only one of its class cannot be left out: nothing is known of it.
            head.loo = np.where(judged[:, None], loo, -np.log(targets.shape[1]))
        head.params["weights"] = weights.tolist()
        rule = "cross-fitting" if judged.any() else "fixed: one clip a class"
        head.diagnostics |= {"rule": rule, "weights": weights.tolist(), "text gate": use_text}
        return head

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        weights = head.params["weights"]
        return log_softmax(weights[0] * self.evidence(head, rows) + weights[1] * rows.text["fused"])

    def _cross_fit(self, rows: Rows, targets: Floats, seed: int) -> tuple[Floats, npt.NDArray[np.bool_]]:
        """Evidence of each row from parts without its clip, and which rows could be left out."""
        judged, out = countable(targets, rows.groups), np.zeros_like(targets)
        if (targets[judged] > 0).any(0).mean() < 0.5 or not judged.any():
            return out, np.zeros(len(targets), dtype=bool)
        of_group: dict[int, int] = {}
        for column in targets.T:  # the clips of each class are dealt out in turn
            members = [group for group in dict.fromkeys(rows.groups[column > 0].tolist()) if group not in of_group]
            of_group |= {group: index % self.folds for index, group in enumerate(members)}
        folds = np.array([of_group.get(group, 0) for group in rows.groups.tolist()])
        folds[~judged] = -1
        for fold in range(folds.max() + 1):
            inside, outside = folds != fold, folds == fold
            if not (targets[inside] > 0).any(0).all():  # clips of several classes: a class may leave with the others
                judged = judged & ~outside
            elif outside.any():
                head = self.fit_evidence(rows.take(inside), targets[inside], seed=seed)
                out[outside] = self.evidence(head, rows.take(outside))
        return out, judged


def class_means(vectors: Floats, targets: Floats, weights: Floats) -> Floats:
    """Weighted means ``[C, D]`` of the rows of each class."""
    shares = targets * weights[:, None]
    return shares.T @ vectors / np.maximum(shares.sum(0), 1e-12)[:, None]


def train(rows: Rows, targets: Floats, optimizer: Any, logits: Any, *, steps: int = STEPS, penalty: Any = None):
    """Minimise the cross-entropy of ``logits()`` plus ``penalty()`` over full-batch steps with a cosine schedule."""
    import torch

    truth, weights = torch.from_numpy(targets), torch.from_numpy(rows.weights)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        loss = -(weights * (truth * logits().log_softmax(-1)).sum(-1)).sum() / weights.sum()
        optimizer.zero_grad()
        (loss if penalty is None else loss + penalty()).backward()
        optimizer.step()
        schedule.step()
