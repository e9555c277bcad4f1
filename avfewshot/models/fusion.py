"""From logits to predictions: matching scores, modality weights, fusion and pooling over segments.

Pure functions on tensors (design: Eq. 11 and Fig. 6 of Duan et al., NeurIPS 2023, arXiv 2311.05152). A *logit* is the
cosine similarity of an embedding and a label's text features times the modality's temperature scale. Whatever the
dtype that comes in, the arithmetic is done in float32 at least, since bfloat16 cannot even hold a probability of 0.999.

The leading dimensions ``...`` are free: a single clip ``[T, K]`` and a batch ``[N, T, K]`` work alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FUSIONS = ("weighted", "product")
"""How the modalities are joined: the published weighted sum, or the normalised product of the probabilities."""

POOLS = ("mean", "event")
"""How segments are pooled: the published mean, or a mean that discounts segments without an event."""

MATCHINGS = ("softmax", "cosine")
"""What a matching score is: the best label's softmax probability, or its cosine similarity."""

_LARGEST = 1e30  # keeps infinities out, so that differences of logits stay defined
_SMALLEST_COSINE = 1e-3


@dataclass(frozen=True)
class ClipPrediction:
    """What the logits of one or many clips say. Every distribution sums to 1.

    Attributes:
        probabilities: Fused, per clip, ``[..., K]``.
        visual: By sight alone, per clip, ``[..., K]``, or None.
        audio: By hearing alone, per clip, ``[..., K]``, or None.
        weights: Share of sight and hearing, per clip, ``[..., 2]``.
        segment_probabilities: Fused, per segment, ``[..., T, K]``.
        segment_weights: Share of sight and hearing, per segment, ``[..., T, 2]``.
    """

    probabilities: Tensor
    visual: Tensor | None
    audio: Tensor | None
    weights: Tensor
    segment_probabilities: Tensor
    segment_weights: Tensor


def matching_score(logits: Tensor, *, matching: str = "softmax", scale: float | Tensor = 1.0) -> Tensor:
    """How well a sample matches the text that it matches best: y of Eq. 11.

    Args:
        logits: ``[..., K]``.
        matching: ``"softmax"``: the probability of the best text, in [1/K, 1]. ``"cosine"``: its cosine similarity,
            not less than 0.001, since a negative one would turn the weights' signs.
        scale: The temperature scale inside `logits`; only ``"cosine"`` needs it.

    Returns:
        Positive scores ``[...]``, float32 or float64.
    """
    logits = _wide(logits)
    if matching == "softmax":
        return logits.softmax(-1).amax(-1)
    if matching == "cosine":
        return (logits.amax(-1) / scale).clamp(min=_SMALLEST_COSINE)
    raise ValueError(f"Unknown matching {matching!r}; choose from {', '.join(MATCHINGS)}.")


def modality_weights(
    visual_logits: Tensor | None,
    audio_logits: Tensor | None,
    *,
    matching: str = "softmax",
    visual_scale: float | Tensor = 1.0,
    audio_scale: float | Tensor = 1.0,
    visual_present: Tensor | None = None,
    audio_present: Tensor | None = None,
) -> Tensor:
    """Weights of sight and hearing: ``w1 = y_v / (y_v + y_a)``, ``w2 = 1 - w1`` (Eq. 11).

    One weight for a whole sample, never one per class: per class the weighted scores collapse.

    Args:
        visual_logits: ``[..., K_v]``, or None when no sample has a picture.
        audio_logits: ``[..., K_a]``, or None when no sample has sound.
        matching: See :func:`matching_score`.
        visual_scale: Temperature scale inside `visual_logits`.
        audio_scale: Temperature scale inside `audio_logits`.
        visual_present: Bool ``[...]``, False where a sample has no picture (its logits are ignored); None: all have.
        audio_present: The same for sound.

    Returns:
        ``[..., 2]``, sums to 1. Both are positive where both modalities are present; where one is missing, the other
        has 1. A sample with neither gets one half each. Detached: the weights steer, they are not learned through.

    Raises:
        ValueError: Both are None, or `matching` is unknown.
    """
    if visual_logits is None and audio_logits is None:
        raise ValueError("There are neither visual nor audio logits.")
    if audio_logits is None or visual_logits is None:
        logits = visual_logits if audio_logits is None else audio_logits
        one = torch.ones(logits.shape[:-1], dtype=_wide_type(logits), device=logits.device)
        zero = torch.zeros_like(one)
        return torch.stack((one, zero) if audio_logits is None else (zero, one), dim=-1)
    with torch.no_grad():
        visual_score = matching_score(visual_logits, matching=matching, scale=visual_scale)
        audio_score = matching_score(audio_logits, matching=matching, scale=audio_scale)
        share = visual_score / (visual_score + audio_score)
        if visual_present is not None or audio_present is not None:
            sighted = torch.ones_like(share, dtype=torch.bool) if visual_present is None else visual_present
            hearing = torch.ones_like(share, dtype=torch.bool) if audio_present is None else audio_present
            share = torch.where(sighted & hearing, share, 0.5 + 0.5 * (sighted.to(share) - hearing.to(share)))
        return torch.stack((share, 1 - share), dim=-1)


def fuse(
    visual_logits: Tensor | None,
    audio_logits: Tensor | None,
    *,
    fusion: str = "weighted",
    matching: str = "softmax",
    visual_scale: float | Tensor = 1.0,
    audio_scale: float | Tensor = 1.0,
) -> tuple[Tensor, Tensor]:
    """Join the modalities' logits over the same labels into one distribution.

    Args:
        visual_logits: ``[..., K]``, or None without a picture.
        audio_logits: ``[..., K]``, or None without sound.
        fusion: ``"weighted"``: ``w1 p_v + w2 p_a`` as published. ``"product"``: the normalised product of p_v and p_a,
            which asks both modalities to agree.
        matching: See :func:`matching_score`.
        visual_scale: Temperature scale inside `visual_logits`.
        audio_scale: Temperature scale inside `audio_logits`.

    Returns:
        Probabilities ``[..., K]`` and the weights ``[..., 2]`` of :func:`modality_weights`. The product does not use
        the weights; they still tell which modality was the surer one.

    Raises:
        ValueError: Both logits are None, or a name is unknown.
    """
    _check(fusion, FUSIONS, "fusion")
    weights = modality_weights(
        visual_logits, audio_logits, matching=matching, visual_scale=visual_scale, audio_scale=audio_scale
    )
    if visual_logits is None or audio_logits is None:
        return _wide(visual_logits if audio_logits is None else audio_logits).softmax(-1), weights
    if fusion == "weighted":
        shares = weights.unsqueeze(-1)
        by_sight, by_hearing = _wide(visual_logits).softmax(-1), _wide(audio_logits).softmax(-1)
        return shares[..., 0, :] * by_sight + shares[..., 1, :] * by_hearing, weights
    logs = _wide(visual_logits).log_softmax(-1) + _wide(audio_logits).log_softmax(-1)
    return logs.softmax(-1), weights


def event_weights(logits: Tensor, background: Tensor) -> Tensor:
    """Weights of the segments of a clip by how likely something happens in them.

    A segment counts by ``sigmoid(max_k logit_k - background)``, the probability of its best label against "nothing
    happens". So two events in one clip both count in full, whatever the temperature scale.

    Args:
        logits: Label logits ``[..., T, K]``.
        background: Logits of the background text ``[..., T]``, of the same modality and scale.

    Returns:
        ``[..., T]``, sums to 1.
    """
    salience = _wide(logits).amax(-1) - _wide(background)
    return torch.nn.functional.logsigmoid(salience).softmax(-1)  # normalised sigmoids, also where all of them vanish


def pool_segments(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Pool over time.

    Args:
        values: ``[..., T, K]``.
        weights: ``[..., T]`` that sum to 1; None: the plain mean.

    Returns:
        ``[..., K]``.
    """
    values = _wide(values)
    if weights is None:
        return values.mean(-2)
    return (weights.unsqueeze(-1) * values).sum(-2)


def predict_clips(
    visual_logits: Tensor | None,
    audio_logits: Tensor | None,
    *,
    fusion: str = "weighted",
    pool: str = "mean",
    visual_background: Tensor | None = None,
    audio_background: Tensor | None = None,
    matching: str = "softmax",
    visual_scale: float | Tensor = 1.0,
    audio_scale: float | Tensor = 1.0,
) -> ClipPrediction:
    """Everything that is predicted from the logits of the segments of clips.

    Segments are fused one by one, and the clip's distributions are averages of theirs. ``pool="mean"``: all segments
    count alike (as published). ``pool="event"``: each counts by :func:`event_weights`, for the fused distribution by
    the mean of the modalities' weights, so a clip with one second of barking in ten seconds of meadow is still a dog.

    Args:
        visual_logits: ``[..., T, K]`` with T, K >= 1, or None without a picture.
        audio_logits: ``[..., T, K]``, or None without sound.
        fusion: See :func:`fuse`.
        pool: ``"mean"`` or ``"event"``.
        visual_background: ``[..., T]`` logits of the background text; for ``pool="event"``.
        audio_background: The same for sound.
        matching: See :func:`matching_score`.
        visual_scale: Temperature scale inside `visual_logits`.
        audio_scale: Temperature scale inside `audio_logits`.

    Returns:
        The prediction, float32 or float64.

    Raises:
        ValueError: Both logits are None, a name is unknown, or ``pool="event"`` lacks a background.
    """
    _check(pool, POOLS, "pool")
    options = {"fusion": fusion, "matching": matching, "visual_scale": visual_scale, "audio_scale": audio_scale}
    segments, segment_weights = fuse(visual_logits, audio_logits, **options)
    visual_weights = audio_weights = None
    if pool == "event":
        visual_weights = _event_weights(visual_logits, visual_background)
        audio_weights = _event_weights(audio_logits, audio_background)
    present = [weights for weights in (visual_weights, audio_weights) if weights is not None]
    joint = torch.stack(present).mean(0) if present else None
    return ClipPrediction(
        probabilities=pool_segments(segments, joint),
        visual=None if visual_logits is None else pool_segments(_wide(visual_logits).softmax(-1), visual_weights),
        audio=None if audio_logits is None else pool_segments(_wide(audio_logits).softmax(-1), audio_weights),
        # Counted from the first segment: equal weights of all segments are those of the clip, to the last digit.
        weights=segment_weights[..., 0, :] + pool_segments(segment_weights - segment_weights[..., :1, :], joint),
        segment_probabilities=segments,
        segment_weights=segment_weights,
    )


def _event_weights(logits: Tensor | None, background: Tensor | None) -> Tensor | None:
    if logits is None:
        return None
    if background is None:
        raise ValueError('pool="event" needs the background logits of every modality.')
    return event_weights(logits, background)


def _check(name: str, choices: tuple[str, ...], what: str) -> None:
    if name not in choices:
        raise ValueError(f"Unknown {what} {name!r}; choose from {', '.join(choices)}.")


def _wide_type(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(_wide_type(logits)).clamp(-_LARGEST, _LARGEST)
