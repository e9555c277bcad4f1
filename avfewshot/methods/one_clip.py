"""Kernel ridge's rule for one clip a class, where nothing is left of a class whose clip is left out.

The evidence of a modality is Fisher's z of the cosine (``artanh``: two cuts of one recording, near 1, say far more than
a likeness) in units of its spread between different classes, and of its spread among the classes for the clip at hand:
what is like several is like none. Three posteriors are *averaged*: of sight, of sound, and (counted three times) of
their product. A modality that carries nothing then spoils the product, and no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Floats, log_softmax
from avfewshot.methods.calibration import stack
from avfewshot.methods.metric import Arrays, Metric, keep_metric, metric_of, text_experts
from avfewshot.methods.rows import Head, Rows

BETA = 0.4  # of the metric
SCALE = 2.0  # of a modality's evidence in its posterior
COSINE = 0.9  # that of identical clips in Fisher's z, which stays finite
PRODUCT = 3.0  # how often the product of sight and sound counts
NULL_CLASSES = 15.0  # that the spread between different classes counts for against a clip's own
SHARE = 0.2  # of the evidence of single clips, where the text is of use
PAIR_SPREAD = 0.25  # of nearness between classes, where two clips are all there is: about that of four classes


def fit_one_clip(rows: Rows, targets: Floats, within: Any, arrays: Arrays, *, use_text: bool) -> Head:
    """The spread of nearness between classes, and weights of what the text says."""
    params: dict[str, Any] = {"rule": "one-shot", "null": {}, "text": {}}
    params |= {"beta": BETA, "fisher": COSINE, "product": PRODUCT, "null classes": NULL_CLASSES}
    different = ~((targets @ targets.T) > 0)
    for (view, modality), raw in rows.vectors.items():
        metric = Metric.fit(raw, within[modality], BETA)
        vectors, present = metric(raw), rows.present(modality)
        between = _nearness(vectors, vectors, COSINE)[different & present[:, None] & present[None]]
        spread = float(between.std()) if between.size else 0.0
        null = [float(between.mean()), spread if spread > 1e-9 else PAIR_SPREAD] if between.size else None
        params["null"][f"{view}.{modality}"] = null
        keep_metric(arrays, f"{view}.{modality}.{BETA}", metric)
    if use_text:
        experts = text_experts(rows, arrays)
        weights = stack(list(experts.values()), targets, rows.weights, np.eye(len(experts))[0])
        params["text"] = dict(zip(experts, weights.tolist(), strict=True))
    diagnostics = {"rule": "one clip a class: cosines against those of different classes", "text": params["text"]}
    return Head(arrays, params, diagnostics=diagnostics)


def _nearness(left: Floats, right: Floats, fisher: float) -> Floats:
    """Fisher's z of cosines ``[n, m]`` times `fisher`."""
    return np.arctanh(fisher * (left @ right.T))


def one_clip_evidence(head: Head, rows: Rows, text: Mapping[str, Floats]) -> Floats:
    """Logits ``[n, C]`` of clips; `text` is empty, or what :func:`~.metric.text_experts` gives."""
    params, targets = head.params, head.arrays["targets"]
    classes, fisher = targets.shape[1], params["fisher"]
    share = classes / (classes + params["null classes"])
    scores: dict[str, list[Floats]] = {modality: [] for modality in MODALITIES}
    for name, null in params["null"].items():
        view, _, modality = name.partition(".")
        if null is None or (view, modality) not in rows.vectors:
            continue
        metric, raw = metric_of(head, f"{name}.{params['beta']}"), head.arrays[name]
        near = _nearness(metric(rows.vectors[view, modality]), metric(raw), fisher)
        near = np.where(raw.any(-1)[None], (near - null[0]) / null[1], 0.0)
        best = np.stack([near[:, targets[:, column] > 0].max(1) for column in range(classes)], 1)
        if "not of" in head.arrays:  # nearer to one than to the class's own clips: against the class
            raw = head.arrays[f"counter.{name}"]
            near = _nearness(metric(rows.vectors[view, modality]), metric(raw), fisher)
            near = (near - null[0]) / null[1]
            for column in np.flatnonzero(head.arrays["not of"].any(0)):
                own = head.arrays["not of"][:, column] & raw.any(-1)
                nearest = near[:, own].max(1, initial=-np.inf)
                best[:, column] = np.where(nearest > best[:, column], -np.maximum(nearest, 0), best[:, column])
        scores[modality].append(best)
    sight, sound = (
        sum(scores[m]) / len(scores[m]) if scores[m] else np.zeros((len(rows), classes)) for m in MODALITIES
    )
    sight, sound = (near / np.sqrt(1 - share + share * near.var(1, keepdims=True)) for near in (sight, sound))
    has = [rows.present(modality)[:, None] * 1.0 for modality in MODALITIES]
    sight, sound = sight * has[0], sound * has[1]
    shares = (has[0], has[1], params["product"] * has[0] * has[1])
    parts = zip(shares, (sight, sound, sight + sound), strict=True)
    total = sum(often * np.exp(log_softmax(SCALE * part)) for often, part in parts)
    result = np.log(np.where(sum(shares) > 0, total / np.maximum(sum(shares), 1), 1 / classes))
    result = (SHARE if params["text"] else 1.0) * result
    return result + sum((weight * text[name] for name, weight in params["text"].items()), np.zeros_like(result))
