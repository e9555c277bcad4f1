"""Clips to embeddings, logits of samples and a loss: Eq. 8-11 of Duan et al., NeurIPS 2023, arXiv 2311.05152."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.config import TrainerConfig
from avfewshot.encoders.tower import Pair
from avfewshot.inference.logits import ClassTexts
from avfewshot.media.clip import MODALITIES, Clip
from avfewshot.models import fusion
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.losses import CombinedLoss, combined_loss, shared_labels
from avfewshot.training.gradcache import joined

Forward = Callable[..., Pair]  # as :meth:`avfewshot.models.audio_visual.AudioVisualModel.forward`


@dataclass(frozen=True, eq=False)
class TrainingClip:
    """A clip with what is true of it."""

    frames: Tensor | None  # uint8 ``[T, 3, S, S]``, or None
    audio: Tensor | None  # float32 ``[T, samples]``, or None
    # bool ``[K]``, the classes of the clip; bool ``[T, K + 1]``, background last, for tasks that label seconds
    labels: Tensor
    row: int | None = None  # in the support that the model's anchors are made of

    @classmethod
    def of(cls, clip: Clip, labels: Tensor, start: int, seconds: int, row: int | None = None) -> TrainingClip:
        """A stretch of a decoded clip, at most `seconds` long; seconds beyond the annotated ones are background."""
        part = slice(start, min(start + seconds, clip.num_segments))
        frames, audio = clip.frames, clip.audio_segments
        if labels.ndim == 2:
            labels = F.pad(labels, (0, 0, 0, max(0, part.stop - len(labels))))[part]
            labels[:, -1] |= ~labels.any(1)
        return cls(None if frames is None else frames[part], None if audio is None else audio[part], labels, row)

    @property
    def num_segments(self) -> int:
        """T."""
        part = self.frames if self.frames is not None else self.audio
        assert part is not None
        return len(part)


class ClipEmbeddings(NamedTuple):
    """Unit vectors of one clip, with gradient."""

    visual: Tensor | None  # ``[T, D_v]``, or None
    audio: Tensor | None  # ``[T, D_a]``, or None
    row: int | None = None  # of the clip, see TrainingClip


def embed_batch(model: Forward, clips: Sequence[TrainingClip], device: torch.device) -> list[ClipEmbeddings]:
    """Run clips through a model (or what Fabric or a runner has made of it), those of equal length together."""
    groups: dict[int, list[int]] = defaultdict(list)
    for index, clip in enumerate(clips):
        groups[clip.num_segments].append(index)
    result: dict[int, ClipEmbeddings] = {}
    for rows in groups.values():
        frames, seen = _stack([clips[row].frames for row in rows], device)
        audio, heard = _stack([clips[row].audio for row in rows], device)
        visual, sound = model(frames, audio, visual_present=_mask(seen, device), audio_present=_mask(heard, device))
        for position, row in enumerate(rows):
            result[row] = ClipEmbeddings(
                visual[position] if visual is not None and seen[position] else None,
                sound[position] if sound is not None and heard[position] else None,
                clips[row].row,
            )
    return [result[row] for row in range(len(clips))]


class Objective:
    """The loss of a batch.

    For tasks that label clips, ``objective: classes`` takes the loss of each modality on its distribution of the clip
    and weights the two as the prediction does (:meth:`predict`), so what is trained is what is predicted with;
    ``contrastive``, the paper's, compares clips by the pooled logits of their seconds. For tasks that label seconds,
    every second is a sample of its own and the background text is a class.
    """

    def __init__(self, config: TrainerConfig, texts: ClassTexts, *, per_second: bool) -> None:
        self._config, self.texts, self.per_second = config, texts, per_second

    def __call__(
        self, model: AudioVisualModel, embeddings: Sequence[ClipEmbeddings], labels: Sequence[Tensor]
    ) -> CombinedLoss:
        """The loss of embedded clips, a mean over samples; text projectors and temperatures of the model take part."""
        weights = None
        truth = torch.cat(list(labels)) if self.per_second else torch.stack(list(labels))
        if not self.per_second and self._config.objective == "classes":
            predictions = self.predict(model, embeddings)
            weights = torch.stack([prediction.weights for prediction in predictions])
            sides = [_rows([getattr(one, f"{name}_log_probabilities") for one in predictions]) for name in MODALITIES]
        else:
            segments, lengths = zip(*self._segment_logits(model, embeddings), strict=True), list(map(len, labels))
            sides = [_rows([self._sample_logits(clip) for clip in clips], lengths) for clips in segments]
        (visual, sighted), (audio, audible) = sides
        options = {"present": (sighted, audible), "weights": weights}
        return matched_loss(self._config, model, visual, audio, truth, **options)

    def predict(self, model: AudioVisualModel, embeddings: Sequence[ClipEmbeddings]) -> list[fusion.ClipPrediction]:
        """What the classifier would say of embedded clips, with gradient."""
        return [
            fusion.predict_events(
                visual,
                audio,
                fusion=self._config.plain_fusion,
                pool=self._config.pool,
                **_matching(self._config, model),
            )
            for visual, audio in self._segment_logits(model, embeddings)
        ]

    def _segment_logits(self, model: AudioVisualModel, embeddings: Sequence[ClipEmbeddings]) -> list[Pair]:
        """``[T, K + 1]`` of each clip's modalities."""
        texts = self.texts.projected(model, anchored=False)
        left_out = [clip.row for clip in embeddings]
        parts = []
        for name in MODALITIES:
            scale, words = model.temperatures.scale(name), getattr(texts, name) + model.class_means(name, left_out)
            clips = zip((getattr(clip, name) for clip in embeddings), words, strict=True)
            parts.append([None if clip is None else fusion.logits(clip, rows, scale) for clip, rows in clips])
        return list(zip(*parts, strict=True))

    def _sample_logits(self, logits: Tensor | None) -> Tensor | None:
        """Those of the seconds as they are, or pooled to ``[K]`` of the clip."""
        if logits is None or self.per_second:
            return logits
        event = self._config.pool == "event"
        weights = fusion.event_weights(logits[:, :-1], logits[:, -1]) if event else None
        return fusion.pool_segments(logits[:, :-1], weights)


def _rows(parts: Sequence[Tensor | None], lengths: Sequence[int] = ()) -> tuple[Tensor | None, Tensor | None]:
    """Rows ``[K]``, or ``[T, K]`` of so many seconds, in one matrix, zeros for absent ones; and a mask if any is."""
    present = [part for part in parts if part is not None]
    if not present:
        return None, None
    lengths = lengths if present[0].ndim == 2 else [1] * len(parts)
    rows = joined([None if part is None else part.reshape(-1, part.shape[-1]) for part in parts], lengths)
    if len(present) == len(parts):
        return rows, None
    mask = torch.tensor([part is not None for part in parts], device=present[0].device)
    return rows, mask.repeat_interleave(torch.tensor(lengths, device=mask.device))


def matched_loss(
    config: TrainerConfig,
    model: AudioVisualModel,
    visual: Tensor | None,
    audio: Tensor | None,
    truth: Tensor,
    **more: Any,
) -> CombinedLoss:
    """The loss of samples with logits of all texts, ``[N, K]``; a sample without a true class does not count.

    What is given besides goes to :func:`~avfewshot.models.losses.combined_loss`.
    """
    if config.objective == "contrastive":
        # The text of a sample: that of its class; of several classes their mean, as the mean of the logits.
        shares = F.normalize(truth.float(), p=1, dim=-1)
        visual, audio = (None if logits is None else logits @ shares.T.to(logits) for logits in (visual, audio))
        truth = shared_labels(truth)
    return combined_loss(visual, audio, truth, objective=config.objective, **_matching(config, model), **more)


def _matching(config: TrainerConfig, model: AudioVisualModel) -> dict[str, Any]:
    scales = tuple(model.temperatures.scale(name).detach() for name in MODALITIES)
    return {"matching": config.matching, "scales": scales}


def _stack(parts: Sequence[Tensor | None], device: torch.device) -> tuple[Tensor | None, list[bool]]:
    """Clips of equal length on the device, zeros for those that lack the modality; None where all lack it."""
    present = [part is not None for part in parts]
    if not any(present):
        return None, present
    blank = torch.zeros_like(next(part for part in parts if part is not None))
    shape = len(parts), *blank.shape
    # From pinned memory the copy to a GPU is faster and waits for nothing.
    stacked = torch.empty(shape, dtype=blank.dtype, pin_memory=device.type == "cuda")
    torch.stack([blank if part is None else part for part in parts], out=stacked)
    return stacked.to(device, non_blocking=True), present


def _mask(present: list[bool], device: torch.device) -> Tensor | None:
    return None if all(present) or not any(present) else torch.tensor(present, device=device)
