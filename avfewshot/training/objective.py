"""From labelled clips to their loss (Eq. 8-11 of Duan et al., NeurIPS 2023, arXiv 2311.05152)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.config import TrainerConfig
from avfewshot.inference.logits import ClassTexts
from avfewshot.media.clip import Clip
from avfewshot.models import fusion
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.fusion import event_weights, pool_segments
from avfewshot.models.losses import CombinedLoss, combined_loss, shared_labels
from avfewshot.training.gradcache import joined


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
        """A stretch of a decoded clip, at most `seconds` long.

        Labels of seconds beyond the annotated ones are background.
        """
        part = slice(start, start + seconds)
        frames, audio = clip.frames, clip.audio_segments
        return cls(
            None if frames is None else frames[part],
            None if audio is None else audio[part],
            labels if labels.ndim == 1 else _fitting(labels, clip.num_segments)[part],
            row,
        )

    @property
    def num_segments(self) -> int:
        """T."""
        part = self.frames if self.frames is not None else self.audio
        assert part is not None
        return len(part)


@dataclass(frozen=True, eq=False)
class ClipEmbeddings:
    """Unit vectors of one clip, with gradient."""

    visual: Tensor | None  # ``[T, D_v]``, or None
    audio: Tensor | None  # ``[T, D_a]``, or None
    row: int | None = None  # of the clip, see TrainingClip


Parts = tuple[Tensor | None, Tensor | None]
Forward = Callable[..., Parts]
"""What takes the arguments of :meth:`avfewshot.models.audio_visual.AudioVisualModel.forward` and gives its results."""


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
        self._config = config
        self._texts = texts
        self._per_second = per_second

    def samples(self, clips: Sequence[TrainingClip]) -> int:
        """How many samples clips give: the weight of their loss in that of a larger batch."""
        return sum(clip.num_segments for clip in clips) if self._per_second else len(clips)

    def __call__(
        self, model: AudioVisualModel, embeddings: Sequence[ClipEmbeddings], labels: Sequence[Tensor]
    ) -> CombinedLoss:
        """The loss of embedded clips, a mean over samples; text projectors and temperatures of the model take part."""
        weights = None
        truth = torch.cat(list(labels)) if self._per_second else torch.stack(list(labels))
        if not self._per_second and self._config.objective == "classes":
            predictions = self.predict(model, embeddings)
            weights = torch.stack([prediction.weights for prediction in predictions])
            visual, sighted = _rows([prediction.visual_log_probabilities for prediction in predictions])
            audio, audible = _rows([prediction.audio_log_probabilities for prediction in predictions])
        else:
            segments = self._segment_logits(model, embeddings)
            visual, sighted = _rows([self._sample_logits(pair[0]) for pair in segments], list(map(len, labels)))
            audio, audible = _rows([self._sample_logits(pair[1]) for pair in segments], list(map(len, labels)))
        return matched_loss(
            self._config, model, visual, audio, truth, visual_present=sighted, audio_present=audible, weights=weights
        )

    def predict(self, model: AudioVisualModel, embeddings: Sequence[ClipEmbeddings]) -> list[fusion.ClipPrediction]:
        """What the classifier would say of embedded clips, with gradient."""
        return [
            fusion.predict_events(
                visual,
                audio,
                fusion=self._config.fusion,
                pool=self._config.pool,
                matching=self._config.matching,
                visual_scale=model.temperatures.scale("visual").detach(),
                audio_scale=model.temperatures.scale("audio").detach(),
            )
            for visual, audio in self._segment_logits(model, embeddings)
        ]

    def _segment_logits(
        self, model: AudioVisualModel, embeddings: Sequence[ClipEmbeddings]
    ) -> list[tuple[Tensor | None, Tensor | None]]:
        """``[T, K + 1]`` of each clip's modalities."""
        texts = self._texts.projected(model, anchored=False)
        left_out = [clip.row for clip in embeddings]
        parts = []
        for name in ("visual", "audio"):
            scale, words = model.temperatures.scale(name), getattr(texts, name) + model.class_means(name, left_out)
            clips = zip((getattr(clip, name) for clip in embeddings), words, strict=True)
            parts.append([None if clip is None else fusion.logits(clip, rows, scale) for clip, rows in clips])
        return list(zip(*parts, strict=True))

    def _sample_logits(self, logits: Tensor | None) -> Tensor | None:
        """Those of the seconds as they are, or pooled to ``[K]`` of the clip."""
        if logits is None or self._per_second:
            return logits
        weights = None
        if self._config.pool == "event":
            weights = event_weights(logits[:, :-1], logits[:, -1])
        return pool_segments(logits[:, :-1], weights)


def _rows(parts: Sequence[Tensor | None], lengths: Sequence[int] = ()) -> tuple[Tensor | None, Tensor | None]:
    """Rows ``[K]``, or ``[T, K]`` of so many seconds, in one matrix, zeros for absent ones; and which are present.

    None where all are absent; no mask where none is.
    """
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
    *,
    visual_present: Tensor | None = None,
    audio_present: Tensor | None = None,
    weights: Tensor | None = None,
) -> CombinedLoss:
    """The loss of samples with logits of all texts, ``[N, K]``; a sample without a true class does not count."""
    if config.objective == "contrastive":
        # The text of a sample: that of its class; of several classes their mean, as the mean of the logits.
        shares = F.normalize(truth.float(), p=1, dim=-1)
        visual, audio = (None if logits is None else logits @ shares.T.to(logits) for logits in (visual, audio))
        truth = shared_labels(truth)
    return combined_loss(
        visual,
        audio,
        truth,
        objective=config.objective,
        matching=config.matching,
        visual_scale=model.temperatures.scale("visual").detach(),
        audio_scale=model.temperatures.scale("audio").detach(),
        visual_present=visual_present,
        audio_present=audio_present,
        weights=weights,
    )


def _fitting(labels: Tensor, seconds: int) -> Tensor:
    """Labels ``[T, K + 1]`` for a clip of another length: cut, or filled up with background."""
    if len(labels) >= seconds:
        return labels[:seconds]
    background = torch.zeros(seconds - len(labels), labels.shape[1], dtype=torch.bool)
    background[:, -1] = True
    return torch.cat((labels, background))


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
