"""Labels for seconds: which event, and whether there is one, for tasks such as AVE.

Two heads of the same method: one on whole clips, one on seconds with the background as a class. Which event a second
shows is a product of both (a clip seldom holds two). Whether there is one is a logistic regression on what the text and
the head of seconds say about the second and its neighbours, fitted on left-out predictions. A tuned part joins both
decisions by :func:`join_seconds`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Floats, LabelFeatures, Support, log_softmax, unit
from avfewshot.methods.calibration import expected_calibration_error, stack
from avfewshot.methods.rows import Head, Rows, second_rows, within_clip_scatter

MAX_ROWS = 800
"""More seconds than this: neighbours with one label become one row, so that the largest matrix stays small."""
_FIXED = (0.5, 1.0)  # weights of the seconds' head and the clip's where neither can be judged
_LEAST = -30.0


class HeadMethod(Protocol):
    """What fits and scores the head; every :class:`~avfewshot.methods.method.Method` does."""

    def fit_head(self, rows: Rows, targets: Floats, *, seed: int) -> Head: ...  # noqa: D102
    def score_head(self, head: Head, rows: Rows) -> Floats: ...  # noqa: D102


def fit_seconds(
    method: HeadMethod,
    support: Support,
    texts: LabelFeatures,
    trained: npt.NDArray[np.bool_],
    clip_loo: Floats | None,
    seed: int,
) -> Head | None:
    """The head of seconds, with the weights of both heads and of the signs of an event in its parameters.

    `clip_loo`: left-out log-posteriors of the clips by the clips' head, where it has them.
    """
    from sklearn.linear_model import LogisticRegression

    assert support.segments is not None
    features, lengths = support.features, support.features.seconds
    columns = np.append(np.flatnonzero(trained), support.num_classes)
    labels = np.concatenate(support.segments)[:, columns].astype(np.float64)
    labels[~labels.any(1), -1] = 1
    targets = labels / labels.sum(1, keepdims=True)
    every, salience = second_rows(features, texts, support.groups, np.flatnonzero(trained))
    clip_of = np.repeat(np.arange(len(features)), lengths)
    chunk = chunks(labels, clip_of)
    rows, row_targets = merge(every, targets, chunk)
    present = row_targets.any(0)
    if present.sum() < 2 or not len(columns) > 1:
        return None
    rows.within.update({modality: within_clip_scatter(getattr(features, modality)) for modality in MODALITIES})
    kept = np.flatnonzero(present)
    head = method.fit_head(rows.take(np.arange(len(rows)), kept), row_targets[:, kept], seed=seed)
    head.params["columns"] = kept.tolist()
    known = (
        log_softmax(method.score_head(head, every.take(np.arange(len(every)), kept)))
        if head.loo is None
        else head.loo[chunk]
    )
    seconds = _spread(known, kept, len(columns), _LEAST)
    event = labels[:, :-1].any(1)
    judged = head.loo is not None
    clip = None if clip_loo is None else clip_loo[:, : len(columns) - 1][clip_of]
    # Which event: both heads' left-out predictions.
    weights: Any = _FIXED
    if judged and clip is not None and event.any() and len(columns) > 2:
        experts = [log_softmax(seconds[:, :-1]), log_softmax(clip)]
        wanted = targets[event, :-1] / targets[event, :-1].sum(1, keepdims=True)
        weights = stack([expert[event] for expert in experts], wanted, every.weights[event]).tolist()
    head.params["event weights"] = [float(weight) for weight in weights]
    # Whether there is one.
    signs = presence_signs(seconds if judged else None, salience, lengths)
    if event.all() or not event.any():
        head.params["presence"] = {"mean": [], "scale": [], "weights": [], "bias": 30.0 if event.all() else -30.0}
    else:
        mean, scale = signs.mean(0), signs.std(0) + 1e-9
        fitted = LogisticRegression(C=1.0, max_iter=200).fit((signs - mean) / scale, event)
        head.params["presence"] = {
            "mean": mean.tolist(),
            "scale": scale.tolist(),
            "weights": fitted.coef_[0].tolist(),
            "bias": float(fitted.intercept_[0]),
        }
    head.params["with odds"] = judged
    if judged and clip is not None:
        posterior = _posterior(head.params, log_softmax(seconds[:, :-1]), log_softmax(clip), signs)
        ends = {"before": log_softmax(seconds), "after": posterior}
        head.params["calibration"] = {f"ece_{k}": expected_calibration_error(v, labels > 0) for k, v in ends.items()}
    head.loo = None
    return head


def score_rows(
    method: HeadMethod,
    head: Head,
    trained: npt.NDArray[np.bool_],
    rows: Rows,
    salience: Floats,
    clips: Floats,
    lengths: npt.NDArray[np.int64],
) -> Floats:
    """Log-posteriors ``[n, K + 1]`` of seconds, the background last.

    `clips` ``[n, K]`` or ``[1, K]`` are those of the clip of each, `lengths` the seconds of each clip.
    """
    kept, events, total = np.array(head.params["columns"]), np.flatnonzero(trained), clips.shape[1]
    known = log_softmax(method.score_head(head, rows.take(slice(None), kept)))
    seconds = _spread(known, kept, len(events) + 1, _LEAST)
    if head.params.get("alone"):  # what its method says, without the weights that left-out clips gave
        return log_softmax(_spread(seconds, np.append(events, total), total + 1, _LEAST))
    signs = presence_signs(seconds if head.params["with odds"] else None, salience, lengths)
    return _posterior(head.params, _spread(log_softmax(seconds[:, :-1]), events, total, 0.0), clips, signs)


PARTS = ("light", "tuned", "other")
"""What is joined: a light method, and a tuned part by its own way to join its modalities and by the other way."""


def join_seconds(parts: Sequence[Floats], weights: Mapping[str, Any]) -> Floats:
    """Log-posteriors ``[n, K + 1]`` of seconds, the background last, by :data:`PARTS`, which are of the same form.

    Which event is a product of experts; whether there is one depends on the odds of the first two (the third compares
    with the same background texts as the second). `weights` are as :func:`~avfewshot.methods.joining.join_tuned` gives
    them.
    """
    light, own, other = (weights[name] * log_softmax(part[:, :-1]) for name, part in zip(PARTS, parts, strict=True))
    first, second = (share * background_odds(part) for share, part in zip(weights["presence"], parts, strict=False))
    return _with_background(log_softmax(light + own + other), first + second - weights["bias"])


def background_odds(log_posteriors: Floats) -> Floats:
    """Log-odds ``[n]`` that nothing happens, of ``[n, K + 1]``, within 30 of even."""
    return np.clip(log_posteriors[:, -1] - np.logaddexp.reduce(log_posteriors[:, :-1], axis=1), _LEAST, -_LEAST)


def _with_background(events: Floats, odds: Floats) -> Floats:
    """Log-posteriors ``[n, K + 1]`` of events, ``[n, K]`` where there is one, and of none, of log-odds ``[n]``."""
    there, nothing = -np.logaddexp(0, odds)[:, None], -np.logaddexp(0, -odds)[:, None]
    return np.concatenate((events + there, nothing), 1)


def _posterior(params: dict[str, Any], seconds: Floats, clips: Floats, signs: Floats) -> Floats:
    """Which event, by both heads, and whether there is one: log-posteriors ``[n, C + 1]``, the background last."""
    weights, presence = params["event weights"], params["presence"]
    odds = 0.0 * signs[:, 0] + presence["bias"]
    if presence["weights"]:
        odds = odds + (signs - presence["mean"]) / presence["scale"] @ np.array(presence["weights"])
    return _with_background(log_softmax(weights[0] * seconds + weights[1] * clips), -odds)


def presence_signs(seconds: Floats | None, salience: Floats, lengths: npt.NDArray[np.int64]) -> Floats:
    """Signs of an event in each second, ``[n, S]``: salience, the head's odds, their means over the neighbours."""
    signs = [salience]
    if seconds is not None:
        signs.append(-background_odds(seconds))
    signs = [np.clip(sign, _LEAST, -_LEAST) for sign in signs]
    around = []
    for sign in signs:
        clips = [sign] if len(lengths) == 1 else np.split(sign, np.cumsum(lengths)[:-1])
        parts = [(np.concatenate((clip[:1], clip[:-1])) + np.concatenate((clip[1:], clip[-1:]))) / 2 for clip in clips]
        around.append(np.concatenate(parts))
    return np.stack([*signs, *around], 1)


def chunks(labels: Floats, clip_of: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The row that each second becomes part of: runs of one label in one clip, cut to equal lengths."""
    size = -(-len(labels) // MAX_ROWS)
    begins = np.ones(len(labels), dtype=bool)
    begins[1:] = (clip_of[1:] != clip_of[:-1]) | (labels[1:] != labels[:-1]).any(1)
    run = begins.cumsum() - 1
    within = np.arange(len(labels)) - np.flatnonzero(begins)[run]
    return (begins | (within % size == 0)).cumsum() - 1


def merge(rows: Rows, targets: Floats, chunk: npt.NDArray[np.int64]) -> tuple[Rows, Floats]:
    """Seconds of one chunk as one row: mean vectors, mean log-probabilities, summed weights."""
    first = np.unique(chunk, return_index=True)[1]
    if len(first) == len(chunk):
        return rows, targets
    number = np.bincount(chunk)[:, None]
    merged = rows.take(first)
    for key, values in rows.vectors.items():
        merged.vectors[key] = unit(np.add.reduceat(values, first))
    for name, values in rows.text.items():
        merged.text[name] = log_softmax(np.add.reduceat(values, first) / number)
    merged.weights[:] = np.add.reduceat(rows.weights, first)
    return merged, targets[first]


def _spread(known: Floats, columns: npt.NDArray[np.int64], total: int, rest: float) -> Floats:
    """``[n, total]`` with what is known in these columns, and `rest` in the others."""
    places = np.full(total, len(columns))
    places[columns] = np.arange(len(columns))
    return np.concatenate((known, 0.0 * known[:, :1] + rest), 1)[:, places]
