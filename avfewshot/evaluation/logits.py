"""From the logits of clips of any length and modality to arrays of probabilities."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfewshot.inference.logits import ClipLogits
from avfewshot.models.fusion import fuse, predict_events

Floats = npt.NDArray[np.float64]

_LACKING = -1e6


def clip_probabilities(clips: Sequence[ClipLogits], num_classes: int, *, fusion: str, pool: str) -> Floats:
    """A distribution over the classes for each clip, ``[N, K]``; uniform without picture and sound."""
    result = np.full((len(clips), num_classes), 1 / num_classes)
    for rows, visual, audio in _alike(clips):
        result[rows] = predict_events(visual, audio, fusion=fusion, pool=pool).probabilities.numpy()
    return result


def second_probabilities(clips: Sequence[ClipLogits], num_classes: int, seconds: int, *, fusion: str) -> Floats:
    """A distribution over the classes and the background for each second of each clip, ``[N, T, K + 1]``.

    Longer clips are cut to T `seconds`; seconds that a shorter one lacks are background.
    """
    result = np.zeros((len(clips), seconds, num_classes + 1))
    result[..., num_classes] = 1
    for rows, visual, audio in _alike(clips):
        probabilities, _ = fuse(visual, audio, fusion=fusion)
        known = min(seconds, probabilities.shape[1])
        result[rows, :known] = probabilities[:, :known].numpy()
    return result


def second_salience(clips: Sequence[ClipLogits], answers: npt.NDArray[np.int64]) -> Floats:
    """How sure it is, in each second, that the answered class (``[N, T]``) happens, and not nothing: ``[N, T]``.

    An audio-visual event is both seen and heard (Tian et al., ECCV 2018). So each modality that is there compares the
    logit of the answer with that of its background text, and the one that is less sure counts: an object that stays in
    the picture while it is silent is no event, however sure the eyes are. Seconds that a clip lacks are far below all.
    """
    result = np.full(answers.shape, _LACKING)
    seconds = answers.shape[1]
    for rows, visual, audio in _alike(clips):
        present = [logits for logits in (visual, audio) if logits is not None]
        known = min(seconds, present[0].shape[1])
        index = torch.from_numpy(answers[rows, :known])[..., None]
        sureness = [logits[:, :known].gather(-1, index)[..., 0] - logits[:, :known, -1] for logits in present]
        result[rows, :known] = torch.stack(sureness).amin(0).numpy()
    return result


def _alike(clips: Sequence[ClipLogits]) -> list[tuple[list[int], Tensor | None, Tensor | None]]:
    """Clips of the same length and modalities, stacked: numbers of the clips and ``[n, T, K + 1]``."""
    groups: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.num_segments:
            groups[clip.num_segments, clip.visual is not None, clip.audio is not None].append(index)
    stacked = []
    for rows in groups.values():
        pairs = zip(*((clips[row].visual, clips[row].audio) for row in rows), strict=True)
        stacked.append((rows, *(None if part[0] is None else torch.stack(part) for part in pairs)))
    return stacked
