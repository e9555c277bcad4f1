"""A *tuned* text posterior (adapters trained through the towers on the same support) beside a light method.

On its own support the tuned part is always right, so its weight is chosen on clips whose labels it has not seen. Both
ways to join its modalities take part: a sum hears the one that is surer, a product asks both to agree. The clips are
few, so the weights are drawn to :data:`START`, which was chosen on clips of the toy world that no run had learnt from.

For tasks that label seconds two things are joined: which event a second shows, by a product of the same kind, and
whether there is one, by a logistic regression on both parts' odds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from avfewshot.errors import UsageError
from avfewshot.methods.base import Floats, Support, log_loss, log_softmax
from avfewshot.methods.calibration import stack, text_is_useful
from avfewshot.methods.method import Scorer
from avfewshot.methods.seconds import PARTS, background_odds

ROWS = 8  # fewer clips that the tuned part has not seen: it is not trusted
START = 1 / 3, 1.0, 1.0  # weights of PARTS
PULL = 5.0  # to these


def join_tuned(
    scorer: Scorer,
    unseen: Support,
    tuned: Sequence[Floats],
    seconds: Sequence[Sequence[Floats]] | None = None,
) -> dict[str, Any]:
    """Choose how much a tuned text posterior counts beside a scorer; kept in the scorer, saved with it.

    Args:
        scorer: Fitted on frozen embeddings.
        unseen: N labelled clips whose labels neither has been trained with.
        tuned: Log-posteriors of these clips by the tuned part, two times ``[N, K]``: see :meth:`Scorer.scores`.
        seconds: The same of their seconds, two times N ``[T_i, K + 1]``: see :meth:`Scorer.segment_logits`; where
            seconds are labelled.

    Returns:
        The weights (`light`; `tuned` and `other` of the tuned part; those of `seconds`), the log-losses, and why.

    Raises:
        UsageError: The posteriors are not those of the clips.
    """
    if np.shape(tuned) != (2, *unseen.labels.shape):
        raise UsageError(f"The tuned part's posteriors must be {(2, *unseen.labels.shape)}, not {np.shape(tuned)}.")
    labelled = unseen.labels.any(1)
    targets = unseen.labels[labelled] / unseen.labels[labelled].sum(1, keepdims=True)
    said = [scorer.logits(unseen.features), *np.asarray(tuned, dtype=np.float64)]
    parts = [log_softmax(one)[labelled] for one in said]
    result: dict[str, Any] = {**dict.fromkeys(PARTS, 0.0), "light": 1.0, "clips": len(targets)}
    if len(targets) < ROWS:
        result["why"] = "too few clips that it has not seen"
    elif not text_is_useful(parts[1], targets):
        result["why"] = "no better than chance on clips that it has not seen"
    else:
        result |= _weights(parts, targets, np.ones(len(targets)))
        result["why"] = "lowest log-loss on unseen clips"
        if seconds is not None and scorer.second is not None:
            result["seconds"] = _fit_seconds(scorer, unseen, seconds)
    scorer.tuned = result
    scorer.diagnostics["tuned"] = result
    return result


def _weights(parts: Sequence[Floats], targets: Floats, row_weights: Floats) -> dict[str, Any]:
    """Of :data:`PARTS`, with the log-losses of the first one alone and of all."""
    found = stack(parts, targets, row_weights, np.array(START), pull=PULL)
    alone = stack(parts[:1], targets, row_weights)[0] * parts[0]
    losses = (log_loss(log_softmax(one), targets) for one in (alone, np.tensordot(found, np.stack(parts), 1)))
    light, joined = (float(np.average(loss, weights=row_weights)) for loss in losses)
    return {"log_loss_light": light, "log_loss_joined": joined, **dict(zip(PARTS, found.tolist(), strict=True))}


def _fit_seconds(scorer: Scorer, unseen: Support, tuned: Sequence[Sequence[Floats]]) -> dict[str, Any]:
    """What :func:`join_seconds` takes."""
    from sklearn.linear_model import LogisticRegression

    assert unseen.segments is not None
    labels = np.concatenate(unseen.segments).astype(np.float64)
    parts = [np.concatenate(one) for one in (scorer.segment_logits(unseen.features), *tuned)]
    lengths = unseen.features.seconds
    weights, event = np.repeat(1 / lengths, lengths), labels[:, :-1].any(1)
    result: dict[str, Any] = dict.fromkeys(PARTS, 1.0)
    if event.any():
        targets = labels[event, :-1] / labels[event, :-1].sum(1, keepdims=True)
        result = _weights([log_softmax(one[event, :-1]) for one in parts], targets, weights[event])
    # ``bias + odds @ presence``: of the light method alone where seconds of one kind are all there is.
    result |= {"bias": 0.0, "presence": [1.0, 0.0]}
    if 0 < event.sum() < len(event):
        odds = np.stack([-background_odds(one) for one in parts[:2]], 1)
        mean, scale = odds.mean(0), odds.std(0) + 1e-9
        fitted = LogisticRegression(C=1.0).fit((odds - mean) / scale, event)
        presence = fitted.coef_[0] / scale
        result |= {"bias": float(fitted.intercept_[0] - mean @ presence), "presence": presence.tolist()}
    return result
