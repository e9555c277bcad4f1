"""From embeddings to predictions: logits, ensembles, matching scores, modality weights, fusion, pooling over segments.

Pure functions on tensors (Eq. 11 and Fig. 6 of Duan et al., NeurIPS 2023, arXiv 2311.05152); classifier, evaluator and
training all call these. A *logit* is the cosine similarity of an embedding and a label's text features times the
modality's temperature scale. Whatever the dtype that comes in, the arithmetic is done in float32 at least, since
bfloat16 cannot even hold a probability of 0.999.

The leading dimensions ``...`` are free: a single clip ``[T, K]`` and a batch ``[N, T, K]`` work alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avfewshot.encoders.tower import Pair

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
    """What the logits of one or many clips say. Every distribution sums to 1."""

    log_probabilities: Tensor  # fused, per clip, [..., K]
    visual_log_probabilities: Tensor | None  # visual alone, per clip, [..., K]
    audio_log_probabilities: Tensor | None  # audio alone, per clip, [..., K]
    weights: Tensor  # of visual and audio, per clip, [..., 2]
    segment_probabilities: Tensor  # fused, per segment, [..., T, K]
    segment_weights: Tensor  # of visual and audio, per segment, [..., T, 2]

    @property
    def probabilities(self) -> Tensor:
        """Fused, per clip, ``[..., K]``."""
        return self.log_probabilities.exp()

    @property
    def visual(self) -> Tensor | None:
        """By the visual modality alone, per clip, ``[..., K]``."""
        return None if self.visual_log_probabilities is None else self.visual_log_probabilities.exp()

    @property
    def audio(self) -> Tensor | None:
        """By the audio modality alone, per clip, ``[..., K]``."""
        return None if self.audio_log_probabilities is None else self.audio_log_probabilities.exp()


def both_ways(fusion: str) -> tuple[str, str]:
    """A fusion, and the other one."""
    return fusion, FUSIONS[1 - FUSIONS.index(fusion)]


def logits(embeddings: Tensor, texts: Tensor, scale: float | Tensor) -> Tensor:
    """Scaled cosine similarities ``[..., K]`` of unit vectors ``[..., D]`` with those of texts ``[K, D]``.

    They are float32 at least, in the wider of both dtypes; also under autocast.
    """
    dtype = torch.promote_types(_wide_type(embeddings), texts.dtype)
    with torch.autocast(embeddings.device.type, enabled=False):
        return scale * (embeddings.to(dtype) @ texts.to(dtype).T)


def ensemble(zero_shot: Tensor | None, trained: Tensor | None, alpha: float) -> Tensor | None:
    """Join the logits of the frozen towers and of a trained model: ``(1 - alpha) zero_shot + alpha trained``.

    Both are of one shape. `alpha` is the ``blend`` of a run (cf. Wortsman et al., CVPR 2022); None where the modality
    is missing.
    """
    if zero_shot is None or trained is None:
        return None
    return torch.lerp(zero_shot, trained, alpha)


def matching_score(logits: Tensor, *, matching: str = "softmax", scale: float | Tensor = 1.0) -> Tensor:
    """How well a sample matches the text that it matches best: y of Eq. 11, positive, ``[..., K]`` to ``[...]``.

    With ``"softmax"`` the probability of the best text, in [1/K, 1]; with ``"cosine"`` its cosine similarity (`scale`
    is that inside `logits`), not less than 0.001, since a negative one would turn the weights' signs. Another
    `matching` is a ValueError.
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
    scales: tuple[float | Tensor, float | Tensor] = (1.0, 1.0),
    present: Pair = (None, None),
) -> Tensor:
    """Weights of sight and hearing ``[..., 2]``: ``w1 = y_v / (y_v + y_a)``, ``w2 = 1 - w1`` (Eq. 11).

    One weight for a whole sample, never one per class: per class the weighted scores collapse. Both are positive where
    both modalities are present; where one is missing, the other has 1. A sample with neither gets one half each.
    Detached: the weights steer, they are not learned through.

    Args:
        visual_logits: ``[..., K_v]``, or None when no sample has a picture.
        audio_logits: ``[..., K_a]``, or None when no sample has sound.
        matching: See :func:`matching_score`.
        scales: Temperature scales inside both logits.
        present: Bool ``[...]``, False where a sample has no picture, or no sound (its logits are ignored); None: all
            have.

    Raises:
        ValueError: Both are None, or `matching` is unknown.
    """
    if audio_logits is None or visual_logits is None:
        logits = visual_logits if audio_logits is None else audio_logits
        if logits is None:
            raise ValueError("There are neither visual nor audio logits.")
        one = torch.ones(logits.shape[:-1], dtype=_wide_type(logits), device=logits.device)
        zero = torch.zeros_like(one)
        return torch.stack((one, zero) if audio_logits is None else (zero, one), dim=-1)
    with torch.no_grad():
        visual_score = matching_score(visual_logits, matching=matching, scale=scales[0])
        audio_score = matching_score(audio_logits, matching=matching, scale=scales[1])
        share = visual_score / (visual_score + audio_score)
        if any(mask is not None for mask in present):
            all_ = torch.ones_like(share, dtype=torch.bool)
            sighted, hearing = (all_ if mask is None else mask for mask in present)
            share = torch.where(sighted & hearing, share, 0.5 + 0.5 * (sighted.to(share) - hearing.to(share)))
        return torch.stack((share, 1 - share), dim=-1)


def fuse(
    visual_logits: Tensor | None,
    audio_logits: Tensor | None,
    *,
    fusion: str = "weighted",
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Join the modalities' logits over the same labels: probabilities ``[..., K]``, and :func:`modality_weights`.

    `fusion` is ``"weighted"``: ``w1 p_v + w2 p_a`` as published; or ``"product"``: the normalised product of p_v and
    p_a, which asks both modalities to agree, and does not use the weights. The arguments of `options` are those of
    :func:`modality_weights`.

    Raises:
        ValueError: Both logits are None, or a name is unknown.
    """
    logs, weights = _log_fuse(visual_logits, audio_logits, fusion, **options)
    return logs.exp(), weights


def event_weights(logits: Tensor, background: Tensor) -> Tensor:
    """Weights ``[..., T]`` of the segments of a clip by how likely something happens in them; no gradient, sum 1.

    A segment counts by ``sigmoid(max_k logit_k - background)``, the probability of its best label against "nothing
    happens". So two events in one clip both count in full, whatever the temperature scale. Logits are ``[..., T, K]``,
    those of the background text ``[..., T]``.
    """
    salience = _wide(logits.detach()).amax(-1) - _wide(background.detach())
    return torch.nn.functional.logsigmoid(salience).softmax(-1)  # normalised sigmoids, also where all of them vanish


def pool_segments(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """Pool ``[..., T, K]`` over time to ``[..., K]``, by weights ``[..., T]`` that sum to 1 or by the plain mean."""
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
    backgrounds: Pair = (None, None),
    present: Pair = (None, None),
    **options: Any,
) -> ClipPrediction:
    """Everything that is predicted from the logits of the segments of clips; training puts its loss on the same.

    Segments are fused one by one, and the clip's distributions are averages of theirs. ``pool="mean"``: all segments
    count alike (as published). ``pool="event"``: each counts by :func:`event_weights`, for the fused distribution by
    the mean of the modalities' weights, so a clip with one second of barking in ten seconds of meadow is still a dog.

    Distributions are computed as logarithms, so that the gradient of a loss on them does not vanish where a probability
    does. Weights of modalities and segments carry no gradient: they steer, they are not learned through.

    Args:
        visual_logits: ``[..., T, K]`` with T, K >= 1, or None without a picture.
        audio_logits: ``[..., T, K]``, or None without sound.
        fusion: See :func:`fuse`.
        pool: ``"mean"`` or ``"event"``.
        backgrounds: ``[..., T]`` logits of the background texts of both; for ``pool="event"``.
        present: Bool ``[...]``, False for clips of a batch without a picture, or without sound, whose logits may be
            anything finite: they are predicted as if these were None, and that distribution means nothing.
        options: `matching` and scales of :func:`modality_weights`.

    Raises:
        ValueError: Both logits are None, a name is unknown, or ``pool="event"`` lacks a background.
    """
    _check(pool, POOLS, "pool")
    masks = [None if mask is None else mask.unsqueeze(-1) for mask in present]
    segments, segment_weights = _log_fuse(visual_logits, audio_logits, fusion, present=masks, **options)
    weights: list[Tensor | None] = [None, None]
    alone: list[Tensor | None] = [None, None]
    for row, (given, background) in enumerate(zip((visual_logits, audio_logits), backgrounds, strict=True)):
        if given is None:
            continue
        if pool == "event":
            if background is None:
                raise ValueError('pool="event" needs the background logits of every modality.')
            weights[row] = event_weights(given, background)
        alone[row] = _log_pool(_wide(given).log_softmax(-1), weights[row])
    pairs = zip(weights, masks, strict=True)
    counted = [(w, torch.ones_like(w) if m is None else m.to(w).expand_as(w)) for w, m in pairs if w is not None]
    joint = None
    if counted:
        both, shares = (torch.stack(rows) for rows in zip(*counted, strict=True))
        shares = torch.where(shares.sum(0) > 0, shares, 1.0)
        joint = (both * shares).sum(0) / shares.sum(0)
    return ClipPrediction(
        log_probabilities=_log_pool(segments, joint),
        visual_log_probabilities=alone[0],
        audio_log_probabilities=alone[1],
        # Counted from the first segment: equal weights of all segments are those of the clip, to the last digit.
        weights=segment_weights[..., 0, :] + pool_segments(segment_weights - segment_weights[..., :1, :], joint),
        segment_probabilities=segments.exp(),
        segment_weights=segment_weights,
    )


def predict_events(visual_logits: Tensor | None, audio_logits: Tensor | None, **options: Any) -> ClipPrediction:
    """Predict from logits ``[..., T, K + 1]`` whose last column belongs to the background text, with its `options`.

    The one way from logits to a clip's distribution: the classifier and the evaluator take its ``probabilities``, and
    training takes a loss on its ``log_probabilities`` (or on those of each modality, and ``weights``).
    """
    given = visual_logits, audio_logits
    classes, backgrounds = ([None if one is None else one[..., part] for one in given] for part in (slice(-1), -1))
    return predict_clips(classes[0], classes[1], backgrounds=(backgrounds[0], backgrounds[1]), **options)


def predict_seconds(
    visual_logits: Tensor | None, audio_logits: Tensor | None, *, fusion: str = "weighted"
) -> tuple[Tensor, Tensor]:
    """Which event each second shows, and how sure it is that there is one, for tasks that label seconds.

    An audio-visual event is both seen and heard (Tian et al., ECCV 2018). So each modality that is there compares the
    logit of the answer with that of its background text, and the one that is less sure counts: an object that stays in
    the picture while it is silent is no event, however sure the eyes are.

    Args:
        visual_logits: ``[..., T, K + 1]``, the background text last, or None without a picture.
        audio_logits: The same of the sound.
        fusion: See :func:`fuse`.

    Returns:
        Log-probabilities of the events ``[..., T, K]``; the *salience* ``[..., T]``, the answer's logit minus that of
        the background text.
    """
    logs, _ = _log_fuse(visual_logits, audio_logits, fusion)
    events = logs[..., :-1].log_softmax(-1)
    answers = events.argmax(-1, keepdim=True)
    present = [_wide(given) for given in (visual_logits, audio_logits) if given is not None]
    return events, torch.stack([(given.gather(-1, answers) - given[..., -1:])[..., 0] for given in present]).amin(0)


def second_posteriors(visual_logits: Tensor | None, audio_logits: Tensor | None, *, fusion: str) -> Tensor:
    """:func:`predict_seconds` as log-probabilities ``[..., T, K + 1]``, the background last, by its salience."""
    events, salience = predict_seconds(visual_logits, audio_logits, fusion=fusion)
    there, nothing = (torch.nn.functional.logsigmoid(odds)[..., None] for odds in (salience, -salience))
    return torch.cat((events + there, nothing), -1)


def _log_fuse(
    visual_logits: Tensor | None,
    audio_logits: Tensor | None,
    fusion: str,
    present: Sequence[Tensor | None] = (None, None),
    **options: Any,
) -> tuple[Tensor, Tensor]:
    """Logarithms of what :func:`fuse` gives, and the weights."""
    _check(fusion, FUSIONS, "fusion")
    weights = modality_weights(visual_logits, audio_logits, present=(present[0], present[1]), **options)
    logs = [_wide(given).log_softmax(-1) for given in (visual_logits, audio_logits) if given is not None]
    if len(logs) == 1:
        return logs[0], weights
    if fusion == "product":
        both = [
            log if mask is None else torch.where(mask.unsqueeze(-1), log, 0.0)
            for log, mask in zip(logs, present, strict=True)
        ]
        return (both[0] + both[1]).log_softmax(-1), weights
    shares = weights.log().unsqueeze(-1)
    parts = shares[..., 0, :] + logs[0], shares[..., 1, :] + logs[1]
    if torch.onnx.is_in_onnx_export():  # which does not know logaddexp
        return torch.stack(parts).logsumexp(0), weights
    return torch.logaddexp(*parts), weights


def _log_pool(logs: Tensor, weights: Tensor | None) -> Tensor:
    """Logarithm of the average over segments of ``[..., T, K]`` log-probabilities."""
    if weights is None:
        steps = logs.shape[-2]  # a tensor while a graph is traced
        return logs.logsumexp(-2) - (steps.to(logs).log() if isinstance(steps, Tensor) else math.log(steps))
    return (logs + weights.log().unsqueeze(-1)).logsumexp(-2)


def _check(name: str, choices: tuple[str, ...], what: str) -> None:
    if name not in choices:
        raise ValueError(f"Unknown {what} {name!r}; choose from {', '.join(choices)}.")


def _wide_type(logits: Tensor) -> torch.dtype:
    return torch.promote_types(logits.dtype, torch.float32)


def _wide(logits: Tensor) -> Tensor:
    return logits.to(_wide_type(logits)).clamp(-_LARGEST, _LARGEST)
