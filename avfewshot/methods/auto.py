"""The default: light methods side by side, kernel ridge with text unless another is clearly better.

What is compared is the log-loss of the support's clips, each without itself. Kernel ridge joined with the text stays
unless another method's is lower by more than three standard errors of the difference: with two clips a class, those
left out are judged by what a single one teaches, and fewer errors made it leave where it was better on test clips.
Where nothing can be left out (one clip a class) it stays too.

A part that was tuned through the towers then joins: see :mod:`avfewshot.methods.joining`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np

from avfewshot.methods.base import Floats, log_loss, log_softmax
from avfewshot.methods.calibration import stack
from avfewshot.methods.method import Method, find_method
from avfewshot.methods.rows import Head, Rows, countable

DEFAULT = "kernel_ridge"
LIGHT = ("zero_shot", "nearest_mean", "logistic", "gda", "tip_adapter", DEFAULT)
SECONDS = (DEFAULT, "timo")


class Auto(Method):
    """The best of :data:`LIGHT` by left-out clips, leaning towards :data:`DEFAULT`."""

    name = "auto"
    uses_counter_examples = True

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`Method.fit_head`."""
        judged = countable(targets, rows.groups)
        heads = {}
        for name in LIGHT:
            begun = time.perf_counter()
            heads[name] = find_method(name).fit_head(rows, targets, seed=seed)
            heads[name].diagnostics["seconds"] = time.perf_counter() - begun
        losses: dict[str, Floats] = {}
        table: dict[str, Any] = {}
        for name, head in heads.items():
            table[name] = {"log_loss": None, "accuracy": None}
            if head.loo is None or not judged.any():
                continue
            losses[name] = log_loss(head.loo, targets)[judged]
            hits = targets[np.arange(len(targets)), head.loo.argmax(1)][judged] > 0
            table[name] = {"log_loss": float(losses[name].mean()), "accuracy": float(hits.mean())}
        chosen, why = DEFAULT, "one clip a class: nothing can be left out"
        if DEFAULT in losses:
            why = "no other method is better by more than three standard errors"
            best = min(losses, key=lambda name: losses[name].mean())
            gap = losses[DEFAULT] - losses[best]
            if best != DEFAULT and gap.mean() > 3 * gap.std() / np.sqrt(len(gap)):
                chosen, why = best, f"log-loss lower by {gap.mean():.3f}, more than three standard errors"
        head = heads[chosen]
        return replace(
            head,
            params={"auto": chosen, "params": head.params},
            diagnostics={**head.diagnostics, "methods": table, "choice": chosen, "why": why},
            parts=heads,
        )

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        return find_method(head.params["auto"]).score_head(replace(head, params=head.params["params"]), rows)

    def for_seconds(self) -> Method:
        """See :class:`JoinedHeads`."""
        return JoinedHeads()


class JoinedHeads(Method):
    """The heads of seconds: kernel ridge and TIMO's, a product whose weights minimise the log-loss of left-out clips.

    With one clip a class, where nothing can be left out, kernel ridge alone.
    """

    name = "joined"

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head:
        """See :meth:`Method.fit_head`."""
        heads = {name: find_method(name).fit_head(rows, targets, seed=seed) for name in SECONDS}
        left_out = [log_softmax(head.loo) for head in heads.values() if head.loo is not None]
        weights, loo = np.eye(len(heads))[0], None
        if len(left_out) == len(heads):
            weights = stack(left_out, targets, rows.weights)
            loo = log_softmax(np.tensordot(weights, np.stack(left_out), 1))
        kept = {name: weight for name, weight in zip(heads, weights.tolist(), strict=True) if weight > 0}
        return Head(
            {f"{name}/{key}": values for name in kept for key, values in heads[name].arrays.items()},
            {"weights": kept, "params": {name: heads[name].params for name in kept}},
            loo,
            parts=heads,
        )

    def score_head(self, head: Head, rows: Rows) -> Floats:
        """See :meth:`Method.score_head`."""
        if "rule" in head.params:  # of a run from when kernel ridge labelled seconds alone
            return find_method(DEFAULT).score_head(head, rows)
        joined = 0.0 * rows.text["fused"]  # where neither says anything, all are alike
        for name, weight in head.params["weights"].items():
            if name not in head.kept:
                arrays = {key.partition("/")[2]: v for key, v in head.arrays.items() if key.startswith(f"{name}/")}
                head.kept[name] = Head(arrays, head.params["params"][name])
            joined = joined + weight * log_softmax(find_method(name).score_head(head.kept[name], rows))
        return log_softmax(joined)
