"""Methods that add evidence from the support to the text: ``w_e e(x) + w_t log p_text(x)``.

Their papers search w_e on a validation split, or on the test split. Here both weights minimise the log-loss of clips
that were left out: the support is cut into folds by clip, every class keeping clips in each training part. With one
clip a class there is nothing to leave out, and the weights are fixed.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from avfewshot.methods.base import Floats, log_softmax
from avfewshot.methods.method import Method
from avfewshot.methods.rows import Head, Rows, countable
from avfewshot.methods.stacking import stack, text_is_useful


class EvidenceMethod(Method):
    """A method in two parts; subclasses give :meth:`fit_evidence` and :meth:`evidence`."""

    fixed: ClassVar[tuple[float, float]] = (1.0, 1.0)  # weights of evidence and text where nothing can be left out
    folds: ClassVar[int] = 4
    with_text: ClassVar[bool] = True  # False: the text is inside the evidence, or has no part

    def fit_evidence(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """Fit the part that learns."""
        raise NotImplementedError

    def evidence(self, head: Head, rows: Rows) -> Floats:
        """Its logits ``[n, C]``."""
        raise NotImplementedError

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`Method.fit_head`."""
        head = self.fit_evidence(rows, targets, seed=seed)
        use_text = self.with_text and text_is_useful(rows.text["fused"], targets)
        weights = np.array([self.fixed[0], self.fixed[1] * use_text])
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
        judged = countable(targets, rows.groups)
        out = np.zeros_like(targets)
        if (targets[judged] > 0).any(0).mean() < 0.5 or not judged.any():
            return out, np.zeros(len(targets), dtype=bool)
        folds = fold_numbers(targets, rows.groups, self.folds)
        folds[~judged] = -1
        for fold in range(folds.max() + 1):
            inside, outside = folds != fold, folds == fold
            if not outside.any():
                continue
            columns = np.flatnonzero((targets[inside] > 0).any(0))
            if len(columns) < targets.shape[1]:  # clips of several classes: a class may leave with the others
                judged = judged & ~outside
                continue
            out[outside] = self.evidence(
                self.fit_evidence(rows.take(inside), targets[inside], seed=seed), rows.take(outside)
            )
        return out, judged


def fold_numbers(targets: Floats, groups: npt.NDArray[Any], number: int) -> npt.NDArray[np.int64]:
    """The fold of each row, one of `number`: the clips of each class are dealt out in turn."""
    folds: dict[int, int] = {}
    for column in targets.T:
        members = [group for group in dict.fromkeys(groups[column > 0].tolist()) if group not in folds]
        folds |= {group: index % number for index, group in enumerate(members)}
    return np.array([folds.get(group, 0) for group in groups.tolist()], dtype=np.int64)
