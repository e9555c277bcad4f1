"""The combined contrastive loss (Eq. 9-11 of Duan et al., NeurIPS 2023, arXiv 2311.05152).

Everything works on logits, scaled cosine similarities of N samples (rows) and M candidate texts (columns), and on a
bool matrix of which texts are true for which samples. The arithmetic is done in float32 at least.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avfewshot.encoders.tower import Pair
from avfewshot.models.fusion import modality_weights

OBJECTIVES = ("contrastive", "classes")
"""Candidates: the texts of the batch, matched in both directions as printed; or the texts of all classes."""


@dataclass(frozen=True)
class CombinedLoss:
    """What one batch cost."""

    total: Tensor  # what to minimise, a scalar
    visual: Tensor  # mean loss by sight over the samples that have a picture, without gradient; 0 where none has
    audio: Tensor  # mean loss by hearing over the samples that have sound, without gradient
    weights: Tensor  # weights of sight and hearing [N, 2] (Eq. 11), without gradient


def shared_labels(labels: Tensor, candidates: Tensor | None = None) -> Tensor:
    """Which texts are true for which samples, bool ``[N, M]``: those that share a label with them.

    Clips of one batch that share a label are positives of each other; as negatives they would be pushed apart from
    their own class. Labels are class numbers ``[N]``, or a bool multi-hot matrix ``[N, K]``; `candidates` those of the
    texts, in the same form ``[M]`` or ``[M, K]`` (None: one text for each sample, with the sample's own labels).
    """
    candidates = labels if candidates is None else candidates
    if labels.ndim == 1:
        return labels[:, None] == candidates[None, :]
    # float: integer matrix products are slow on GPUs and bool ones do not exist.
    return labels.float() @ candidates.float().T > 0


def matching_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of each row of logits ``[N, M]`` against the uniform distribution over its positives: ``[N]``.

    With one positive a row this is the loss of CLIP in one direction; with several, that of Khosla et al. (NeurIPS
    2020, Eq. 2): every positive is drawn near, not only the nearest. A row without positives has 0.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    count = positives.sum(-1)
    own = logits.masked_fill(~positives, 0).sum(-1) / count.clamp(min=1)
    return torch.where(count > 0, logits.logsumexp(-1) - own, logits.new_zeros(()))


def contrastive_loss(logits: Tensor, positives: Tensor) -> Tensor:
    """The symmetric loss of CLIP, ``[N]``: half that of finding texts, half that of finding samples (Eq. 9 and 10).

    Row i of the logits ``[N, N]`` is sample i, column i the text of sample i; `positives` are :func:`shared_labels`.

    Raises:
        ValueError: There are more or fewer texts than samples.
    """
    if logits.shape[0] != logits.shape[1]:
        raise ValueError(f"{logits.shape[0]} samples need as many texts, not {logits.shape[1]}.")
    return (matching_loss(logits, positives) + matching_loss(logits.T, positives.T)) / 2


def combined_loss(
    visual_logits: Tensor | None,
    audio_logits: Tensor | None,
    positives: Tensor,
    *,
    objective: str = "contrastive",
    present: Pair = (None, None),
    weights: Tensor | None = None,
    **options: Any,
) -> CombinedLoss:
    """``L = w1 L_v + w2 L_a`` (Eq. 11), the weights per sample and detached.

    Args:
        visual_logits: ``[N, M]``, or None when no sample has a picture.
        audio_logits: ``[N, M]``, or None when no sample has sound.
        positives: Bool ``[N, M]``: which texts are true for which samples. A sample with none does not count.
        objective: ``"contrastive"``: M = N, text i belongs to sample i, both directions. ``"classes"``: M classes, only
            from samples to texts.
        present: Bool ``[N]``, False where a sample has no picture, or no sound: it is then neither sample nor candidate
            of that loss.
        weights: Weights of the modalities ``[N, 2]`` that the prediction takes; None: those of the logits.
        options: `matching` and scales of :func:`~avfewshot.models.fusion.modality_weights`.

    Raises:
        ValueError: Both logits are None, `objective` or `matching` is unknown, or the shapes do not fit.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"Unknown objective {objective!r}; choose from {', '.join(OBJECTIVES)}.")
    if weights is None:
        weights = modality_weights(visual_logits, audio_logits, present=present, **options)
    counts = positives.any(-1)
    total = weights.new_zeros(())
    parts = []
    for column, (logits, mask) in enumerate(zip((visual_logits, audio_logits), present, strict=True)):
        if logits is None:
            parts.append(weights.new_zeros(()))
            continue
        counted = counts if mask is None else counts & mask
        losses = _losses(logits, positives, objective, mask)
        total = total + (weights[:, column] * losses).sum()
        parts.append(losses.detach().sum() / counted.sum().clamp(min=1))
    return CombinedLoss(total / counts.sum().clamp(min=1), parts[0], parts[1], weights)


def _losses(logits: Tensor, positives: Tensor, objective: str, present: Tensor | None) -> Tensor:
    """``[N]``; samples that are not present are left out before anything is computed of them, and lose nothing."""
    loss = contrastive_loss if objective == "contrastive" else matching_loss
    if present is None:
        return loss(logits, positives)
    kept = present.nonzero().squeeze(-1)
    logits, positives = logits[kept], positives[kept]
    if objective == "contrastive":
        logits, positives = logits[:, kept], positives[:, kept]
    losses = loss(logits, positives)
    return losses.new_zeros(len(present)).index_put((kept,), losses)
