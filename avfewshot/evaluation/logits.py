"""Logits of clips: from embeddings, joined with those of another model, and as probabilities.

The last of the K + 1 columns belongs to the background text. Tasks that label clips use it to find the seconds that
count, tasks that label seconds as one more answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfewshot.evaluation.texts import ClassTexts
from avfewshot.models.fusion import fuse, predict_clips

Floats = npt.NDArray[np.float64]

_LACKING = -1e6


@dataclass(frozen=True, eq=False)
class ClipLogits:
    """Scaled cosine similarities of the T seconds of a clip with K + 1 texts.

    Attributes:
        visual: Float64 ``[T, K + 1]`` on the CPU, or None without a picture.
        audio: The same of the sound.
    """

    visual: Tensor | None
    audio: Tensor | None

    @property
    def num_segments(self) -> int:
        """T; 0 for a clip with neither."""
        present = self.visual if self.visual is not None else self.audio
        return 0 if present is None else len(present)

    def only(self, modality: str) -> ClipLogits:
        """What one modality says alone.

        Args:
            modality: ``"visual"`` or ``"audio"``.
        """
        return ClipLogits(self.visual if modality == "visual" else None, self.audio if modality == "audio" else None)


def score_clip(
    visual: Tensor | None, audio: Tensor | None, texts: ClassTexts, scales: tuple[float, float]
) -> ClipLogits:
    """Compare the embeddings of a clip with texts.

    Args:
        visual: Unit vectors ``[T, D_v]`` on the CPU, or None.
        audio: Unit vectors ``[T, D_a]``, or None.
        texts: Features in the same spaces, on the CPU.
        scales: Temperature scales of sight and hearing.

    Returns:
        The logits.
    """
    # Float64 from here on: these are small matrices, and results should not hang on how they were batched.
    return ClipLogits(
        None if visual is None else scales[0] * (visual.double() @ texts.visual.double().T),
        None if audio is None else scales[1] * (audio.double() @ texts.audio.double().T),
    )


def blend(zero_shot: ClipLogits, trained: ClipLogits, share: float) -> ClipLogits:
    """Join what the untrained and the trained model say: ``(1 - share) * zero_shot + share * trained``.

    Args:
        zero_shot: Logits of the frozen towers alone.
        trained: Logits of the trained model on the same clip.
        share: Share of the trained logits in [0, 1].

    Returns:
        The joined logits.
    """

    def mix(before: Tensor | None, after: Tensor | None) -> Tensor | None:
        return None if before is None or after is None else torch.lerp(before, after, share)

    return ClipLogits(mix(zero_shot.visual, trained.visual), mix(zero_shot.audio, trained.audio))


def clip_probabilities(clips: Sequence[ClipLogits], num_classes: int, *, fusion: str, pool: str) -> Floats:
    """One distribution over the classes for each clip.

    Args:
        clips: N clips.
        num_classes: K.
        fusion: See :func:`avfewshot.models.fusion.fuse`.
        pool: ``"mean"`` or ``"event"``, see :func:`avfewshot.models.fusion.predict_clips`.

    Returns:
        ``[N, K]``; uniform for a clip with neither picture nor sound.
    """
    result = np.full((len(clips), num_classes), 1 / num_classes)
    for rows, visual, audio in _alike(clips):
        prediction = predict_clips(
            None if visual is None else visual[..., :-1],
            None if audio is None else audio[..., :-1],
            fusion=fusion,
            pool=pool,
            visual_background=None if visual is None else visual[..., -1],
            audio_background=None if audio is None else audio[..., -1],
        )
        result[rows] = prediction.probabilities.numpy()
    return result


def second_probabilities(clips: Sequence[ClipLogits], num_classes: int, seconds: int, *, fusion: str) -> Floats:
    """A distribution over the classes and the background for each second of each clip.

    Args:
        clips: N clips.
        num_classes: K.
        seconds: T: longer clips are cut, seconds that a shorter one lacks are background.
        fusion: See :func:`avfewshot.models.fusion.fuse`.

    Returns:
        ``[N, T, K + 1]``.
    """
    result = np.zeros((len(clips), seconds, num_classes + 1))
    result[..., num_classes] = 1
    for rows, visual, audio in _alike(clips):
        probabilities, _ = fuse(visual, audio, fusion=fusion)
        known = min(seconds, probabilities.shape[1])
        result[rows, :known] = probabilities[:, :known].numpy()
    return result


def second_salience(clips: Sequence[ClipLogits], answers: npt.NDArray[np.int64]) -> Floats:
    """How sure it is that the answered class happens in each second, and not nothing.

    An audio-visual event is both seen and heard (Tian et al., ECCV 2018). So each modality that is there compares the
    logit of the answer with that of its background text, and the one that is less sure counts: an object that stays in
    the picture while it is silent is no event, however sure the eyes are.

    Args:
        clips: N clips.
        answers: Class of each second, ``[N, T]``.

    Returns:
        ``[N, T]``; a value far below all others for seconds that a clip lacks.
    """
    result = np.full(answers.shape, _LACKING)
    seconds = answers.shape[1]
    for rows, visual, audio in _alike(clips):
        known = min(seconds, (visual if visual is not None else audio).shape[1])
        index = torch.from_numpy(answers[rows, :known])[..., None]
        sureness = [
            logits[:, :known].gather(-1, index)[..., 0] - logits[:, :known, -1]
            for logits in (visual, audio)
            if logits is not None
        ]
        result[rows, :known] = torch.stack(sureness).amin(0).numpy()
    return result


def _alike(clips: Sequence[ClipLogits]) -> list[tuple[list[int], Tensor | None, Tensor | None]]:
    """Clips of the same length and modalities, stacked: numbers of the clips and ``[n, T, K + 1]``."""
    groups: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        if clip.num_segments:
            groups[clip.num_segments, clip.visual is not None, clip.audio is not None].append(index)
    return [
        (
            rows,
            torch.stack([clips[row].visual for row in rows]) if seen else None,
            torch.stack([clips[row].audio for row in rows]) if heard else None,
        )
        for (_, seen, heard), rows in groups.items()
    ]
