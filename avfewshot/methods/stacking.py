"""How much each of several experts counts: weights by the log-loss of clips that the experts have not seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avfewshot.methods.base import Floats, log_loss, log_softmax

PENALTY = 0.01


def text_is_useful(text: Floats, targets: Floats) -> bool:
    """Whether the text beats chance on the support: by two standard errors, and not by luck (binomial, 1 %)."""
    rows = len(text)
    if text.shape[1] < 2 or not rows:
        return False
    chance = float((targets > 0).mean())
    hits = int((targets[np.arange(rows), text.argmax(1)] > 0).sum())
    error = np.sqrt(chance * (1 - chance) / rows)
    if hits / rows <= chance + 2 * error:
        return False
    from scipy.special import bdtrc

    return bool(bdtrc(hits - 1, rows, chance) < 0.01)


def stack(experts: Sequence[Floats], targets: Floats, row_weights: Floats, start: Floats | None = None) -> Floats:
    """Weights >= 0 of logits ``[n, C]`` that minimise the log-loss of their sum, with a slight pull to zero."""
    from scipy.optimize import minimize

    logits, total = np.stack(experts), row_weights.sum()

    def loss(weights: Floats) -> tuple[float, Floats]:
        log_posterior = log_softmax(np.tensordot(weights, logits, 1))
        error = (np.exp(log_posterior) - targets) * row_weights[:, None]
        value = (row_weights * log_loss(log_posterior, targets)).sum() / total
        slope = np.tensordot(logits, error, ((1, 2), (0, 1))) / total
        return (value + PENALTY * (weights**2).sum() / total, slope + 2 * PENALTY * weights / total)

    first = np.ones(len(logits)) if start is None else start
    return minimize(loss, first, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(logits)).x
