"""Gradients of one optimizer step, in pieces that fit into memory."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from avfewshot.errors import AvfsError
from avfewshot.inference.devices import free_memory, is_out_of_memory
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.losses import CombinedLoss
from avfewshot.training.cuda_graphs import Passes
from avfewshot.training.gradcache import cached_backward
from avfewshot.training.objective import ClipEmbeddings, Objective, TrainingClip, embed_batch

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepLoss:
    """What a step cost, means over its samples.

    Attributes:
        total: The loss.
        visual: The part of sight.
        audio: The part of hearing.
        visual_weight: Mean weight of sight (Eq. 11).
    """

    total: float
    visual: float
    audio: float
    visual_weight: float


class GradientSteps:
    """Computes gradients of batches; when memory runs out the pieces are halved and the step begins again.

    Args:
        fabric: Runs the backward pass.
        passes: Runs the model.
        model: The model itself.
        objective: The loss.
        contrastive: Whether the clips of a batch are each other's candidates, so that it cannot simply be cut.
        micro_batch: Clips that go through the model at once.

    Attributes:
        micro_batch: The current number.
    """

    def __init__(
        self,
        fabric: Fabric,
        passes: Passes,
        model: AudioVisualModel,
        objective: Objective,
        *,
        contrastive: bool,
        micro_batch: int,
    ) -> None:
        self._fabric = fabric
        self._passes = passes
        self._model = model
        self._objective = objective
        self._contrastive = contrastive
        self.micro_batch = micro_batch

    def accumulate(self, batches: Sequence[Sequence[TrainingClip]]) -> StepLoss:
        """Leave the mean gradient of batches in the model's parameters.

        Args:
            batches: One, or several that make one step together.

        Returns:
            Their mean loss.

        Raises:
            AvfsError: Not even one clip fits into the device's memory, or the loss is not finite.
        """
        while True:
            self._passes.prepare()
            losses = self._attempt(batches)
            if losses is not None:
                break
            self._shrink()
        parts = [
            sum(getattr(loss, name) for loss in losses) / len(losses)
            for name in ("total", "visual", "audio", "visual_weight")
        ]
        loss = StepLoss(*parts)
        if not torch.isfinite(torch.tensor(loss.total)):
            raise AvfsError(
                "The loss is not a finite number any more.", hint="Use --precision fp32, or a smaller --lr."
            )
        return loss

    def _attempt(self, batches: Sequence[Sequence[TrainingClip]]) -> list[StepLoss] | None:
        # The error, whose traceback holds the activations, is gone when this returns: their memory is free again.
        self._model.zero_grad(set_to_none=True)
        try:
            return [self._batch(batch, 1 / len(batches)) for batch in batches]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _batch(self, batch: Sequence[TrainingClip], share: float) -> StepLoss:
        device = self._fabric.device
        pieces = [batch[start : start + self.micro_batch] for start in range(0, len(batch), self.micro_batch)]
        if self._contrastive and len(pieces) > 1:
            return self._cached(pieces, share)
        total = self._objective.samples(batch)
        done = []
        for piece in pieces:
            embeddings = embed_batch(self._passes, piece, device)
            loss = self._objective(self._model, embeddings, [clip.labels.to(device) for clip in piece])
            weight = self._objective.samples(piece) / total
            self._fabric.backward(loss.total * (share * weight))
            done.append((weight, _told(loss)))
        return StepLoss(
            *(
                sum(weight * getattr(loss, name) for weight, loss in done)
                for name in ("total", "visual", "audio", "visual_weight")
            )
        )

    def _cached(self, pieces: Sequence[Sequence[TrainingClip]], share: float) -> StepLoss:
        """The whole batch as candidates, and only a piece of it in memory."""
        device = self._fabric.device
        clips = [clip for piece in pieces for clip in piece]
        labels = [clip.labels.to(device) for clip in clips]
        lengths = [clip.num_segments for clip in clips]

        def run(piece: Sequence[TrainingClip]) -> tuple[torch.Tensor | None, torch.Tensor | None]:
            embedded = embed_batch(self._passes, piece, device)
            seconds = [clip.num_segments for clip in piece]
            return _joined([clip.visual for clip in embedded], seconds), _joined(
                [clip.audio for clip in embedded], seconds
            )

        def loss(parts: tuple[torch.Tensor | None, ...]) -> CombinedLoss:
            visual, audio = ([None] * len(clips) if part is None else part.split(lengths) for part in parts)
            embeddings = [
                ClipEmbeddings(v if clip.frames is not None else None, a if clip.audio is not None else None, clip.row)
                for clip, v, a in zip(clips, visual, audio, strict=True)
            ]
            return self._objective(self._model, embeddings, labels)

        chunks = [lambda piece=piece: run(piece) for piece in pieces]
        return _told(cached_backward(chunks, loss, scale=share, backward=self._fabric.backward))

    def _shrink(self) -> None:
        if self.micro_batch == 1:
            raise AvfsError(
                f"{self._fabric.device} has not enough memory for a training step of a single clip.",
                hint="Use --checkpointing, --precision bf16, a smaller --window or a smaller --backbone.",
            )
        tried, self.micro_batch = self.micro_batch, self.micro_batch // 2
        self._passes.release()
        free_memory(self._fabric.device)
        _LOG.warning(
            "%s ran out of memory with %d clips at once; going on with %d.",
            self._fabric.device,
            tried,
            self.micro_batch,
        )


def _told(loss: CombinedLoss) -> StepLoss:
    return StepLoss(loss.total.item(), loss.visual.item(), loss.audio.item(), loss.weights[:, 0].mean().item())


def _joined(parts: Sequence[torch.Tensor | None], seconds: Sequence[int]) -> torch.Tensor | None:
    """Embeddings of all seconds of clips ``[sum T, D]``, zeros for clips that have none; None where all have none."""
    present = [part for part in parts if part is not None]
    if not present:
        return None
    width = present[0].shape[-1]
    return torch.cat(
        [present[0].new_zeros(n, width) if part is None else part for part, n in zip(parts, seconds, strict=True)]
    )
