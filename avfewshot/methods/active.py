"""Which clips to label next."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Features, Floats

POOL_ROWS = 2000
"""Clips that are looked at: of more, the most doubtful."""


def margins(fused: Floats) -> Floats:
    """How far the best class of each clip is above the second best, ``[N]`` from posteriors ``[N, K]``."""
    order = np.sort(fused, axis=1)
    return order[:, -1] - order[:, -2] if fused.shape[1] > 1 else np.zeros(len(fused))


def suggest(margin: Floats, features: Callable[[Sequence[int]], Features], count: int) -> npt.NDArray[np.int64]:
    """Which clips to label next: doubtful ones (small margin), among many alike (density), spread over clusters.

    Args:
        margin: Of each clip, ``[N]``.
        features: Gives the embeddings of some of them.
        count: How many at most.
    """
    from sklearn.cluster import KMeans

    rows = np.sort(np.argsort(margin, kind="stable")[:POOL_ROWS])
    if not len(rows):
        return rows
    part, margin = features(rows.tolist()), margin[rows]
    pairs = zip(*(_means(getattr(part, name), part.width(name)) for name in MODALITIES), strict=True)
    vectors = np.array([np.concatenate(pair) for pair in pairs])
    gaps = (1 - vectors @ vectors.T / 2).clip(0)
    density = np.exp(-gaps / max(float(np.median(gaps)), 1e-9)).mean(1)
    worth = np.maximum(1 - margin, 1e-6) * density  # where nothing is in doubt, density decides
    if len(rows) <= count:
        return rows[np.argsort(-worth)]
    count = min(count, len(np.unique(vectors, axis=0)))  # copies of one clip are one
    clusters = KMeans(count, random_state=0).fit_predict(vectors, sample_weight=worth)
    best = [np.flatnonzero(clusters == cluster) for cluster in range(count)]
    chosen = np.array([members[worth[members].argmax()] for members in best if len(members)])
    return rows[chosen[np.argsort(-worth[chosen])]]


def _means(clips: Sequence[Floats | None], width: int) -> list[Floats]:
    means = [np.zeros(width) if clip is None else clip.mean(0) for clip in clips]
    return [mean / max(float(np.linalg.norm(mean)), 1e-12) for mean in means]
