"""The contrastive loss of a batch that is larger than memory and spread over ranks (Eq. 9-11, GradCache)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.config import TrainingConfig
from avfewshot.inference.logits import ClassTexts
from avfewshot.models import fusion
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.fusion import event_weights
from avfewshot.models.losses import CombinedLoss
from avfewshot.training.gather import gather_batch
from avfewshot.training.gradcache import cached_backward
from avfewshot.training.objective import Forward, TrainingClip, embed_batch, matched_loss

Parts = tuple[Tensor | None, Tensor | None]


class PretrainObjective:
    """Gradients of a contrastive batch.

    Each clip is one sample: the mean of its seconds' embeddings (with ``pool: event`` weighted by how likely something
    happens in them, the weights without gradient), scaled to length one.

    Args:
        config: Objective, matching and pooling.
        texts: Features of the K classes and of the background, on the training's device.
        device: Where the model is.
    """

    def __init__(self, config: TrainingConfig, texts: ClassTexts, device: torch.device) -> None:
        self._config = config
        self._texts = texts
        self._device = device

    def backward(
        self,
        module: Forward,
        model: AudioVisualModel,
        clips: Sequence[TrainingClip],
        *,
        micro_batch: int,
        backward: Callable[[Tensor], Any],
        no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    ) -> CombinedLoss:
        """Add the gradients of a batch to those of the model's parameters.

        Args:
            module: The model as it is called: wrapped for several ranks, replayed, or as it is.
            model: The model itself.
            clips: Of this rank; a rank without any takes part all the same.
            micro_batch: Clips that go through the model at once.
            backward: Runs a backward pass.
            no_sync: For several ranks: makes the context in which gradients stay on their rank.

        Returns:
            The loss of the batch of all ranks.
        """
        clips = list(clips) or [self._nobody(model)]
        labels = torch.stack([clip.labels for clip in clips]).to(self._device)
        known = labels.any(1)
        seen = torch.tensor([clip.frames is not None for clip in clips], device=self._device) & known
        heard = torch.tensor([clip.audio is not None for clip in clips], device=self._device) & known
        pieces = [clips[start : start + micro_batch] for start in range(0, len(clips), micro_batch)]
        chunks = [lambda piece=piece: self._embedded(module, model, piece) for piece in pieces]

        def loss(parts: Parts) -> CombinedLoss:
            return self._loss(model, parts, labels, seen, heard)

        parameters = [p for p in model.parameters() if p.requires_grad] if no_sync is not None else []
        return cached_backward(chunks, loss, backward=backward, no_sync=no_sync, parameters=parameters)

    def _loss(self, model: AudioVisualModel, parts: Parts, labels: Tensor, seen: Tensor, heard: Tensor) -> CombinedLoss:
        batch = gather_batch(*parts, labels, visual_present=seen, audio_present=heard)
        texts = self._texts.projected(model)
        visual, audio = model.logits(batch.visual, batch.audio, texts.visual[:-1], texts.audio[:-1])
        return matched_loss(
            self._config,
            model,
            visual,
            audio,
            batch.labels,
            visual_present=batch.visual_present,
            audio_present=batch.audio_present,
        )

    def _embedded(self, module: Forward, model: AudioVisualModel, clips: Sequence[TrainingClip]) -> Parts:
        """One unit vector a clip and modality, ``[n, D]``; zeros where a clip lacks the modality."""
        embeddings = embed_batch(module, clips, self._device)
        with torch.no_grad():
            texts = self._texts.projected(model)
        parts = []
        for name in ("visual", "audio"):
            seconds = [getattr(clip, name) for clip in embeddings]
            given = [clip for clip in seconds if clip is not None]
            if not given:
                parts.append(None)
                continue
            words, scale = getattr(texts, name), model.temperatures.scale(name).detach()
            blank = given[0].new_zeros(given[0].shape[-1])
            parts.append(torch.stack([blank if clip is None else self._pooled(clip, words, scale) for clip in seconds]))
        return parts[0], parts[1]

    def _pooled(self, seconds: Tensor, words: Tensor, scale: Tensor) -> Tensor:
        if self._config.pool == "mean":
            return F.normalize(seconds.mean(0), dim=-1)
        logits = fusion.logits(seconds.detach(), words, scale)
        weights = event_weights(logits[:, :-1], logits[:, -1])
        return F.normalize((weights[:, None].to(seconds.dtype) * seconds).sum(0), dim=-1)

    def _nobody(self, model: AudioVisualModel) -> TrainingClip:
        """Stands in where a rank has no clip left: it has no label, so that it counts for nothing."""
        size = model.visual_tower.image_size
        frames = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        return TrainingClip(frames, None, torch.zeros(self._texts.num_classes, dtype=torch.bool))
