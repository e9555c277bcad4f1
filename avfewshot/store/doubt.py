"""The clips of a store that a few-shot run would learn most from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.errors import UsageError
from avfewshot.inference.runs import LearnedRun
from avfewshot.methods.active import margins, suggest
from avfewshot.methods.base import Features
from avfewshot.store.store import Store

_BATCH = 1000  # clips scored at once


def doubtful_clips(store: Store, run: LearnedRun, count: int) -> list[dict[str, Any]]:
    """Clips to label next (not those trained on), the most useful first: :func:`~avfewshot.methods.active.suggest`.

    Each has ``path``, ``label``, ``score``, ``second`` (the next best label) and ``margin``.

    Raises:
        UsageError: The store was embedded by other towers than those of the run.
        DataError: Its embeddings have other dimensions, or are no unit vectors.
    """
    wrong = [role for role, digest in run.config.identity.items() if store.identity.get(f"file {role}") != digest]
    wrong += ["audio context"] if run.audio_context != store.audio_context else []
    if wrong:
        raise UsageError(
            f"{run.path}: was trained with {run.config.backbone}, {store.folder} embedded with "
            f"{store.model['backbone']}: they differ in {', '.join(wrong)}.",
            hint="Embed the clips with the backbone of the run.",
        )
    store.check_dims((run.scorer.texts.visual.shape[1], run.scorer.texts.audio.shape[1]))
    embedded = store.of if run.scorer.second else store.by_clip
    learnt = set(map(str, run.config.support.get("ids", ())))
    free = [clip for clip in store.embedded if not _names(clip.path) & learnt]
    names = [*run.scorer.texts.names, *([run.none or "none"] if run.scorer.negatives else [])]
    scored = []
    for start in range(0, len(free), _BATCH):
        part = free[start : start + _BATCH]
        features = Features.of((clip.path, *embedded(clip)) for clip in part)
        scored.append(np.exp(run.scorer.scores(features).joined))
    if not free:
        return []
    fused = np.concatenate(scored)
    margin = margins(fused)
    rows = []
    for row in suggest(margin, lambda rows: Features.of((free[r].path, *embedded(free[r])) for r in rows), count):
        best = np.argsort(-fused[row], kind="stable")
        rows.append(
            {
                "path": free[row].path,
                "label": names[best[0]],
                "score": round(float(fused[row, best[0]]), 4),
                "second": names[best[1]] if len(best) > 1 else "",
                "margin": round(float(margin[row]), 4),
            }
        )
    return rows


def _names(path: str) -> set[str]:
    """What a support may call a file: its path from any folder above on, with its suffix and without."""
    parts = Path(path).parts
    tails = {"/".join(parts[start:]) for start in range(1, len(parts))}
    return tails | {os.path.splitext(tail)[0] for tail in tails}
