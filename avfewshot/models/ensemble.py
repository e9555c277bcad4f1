"""A trained model beside the frozen towers that it was built on; :func:`.fusion.ensemble` joins their logits."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avfewshot.adapters.base import CrossModalAdapter
from avfewshot.models.audio_visual import AudioVisualModel


class EnsembleModel(nn.Module):
    """Embeddings of the frozen towers alone, and beside them those of the trained model, from one decoded clip."""

    def __init__(self, plain: AudioVisualModel, trained: AudioVisualModel) -> None:
        super().__init__()
        self.plain = plain
        self.trained = trained

    @property
    def adapters(self) -> CrossModalAdapter | None:
        """Those of the trained model."""
        return self.trained.adapters

    def forward(
        self, frames: Tensor | None, audio: Tensor | None, **present: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Embed clips; see :meth:`avfewshot.models.audio_visual.AudioVisualModel.forward`.

        Returns:
            ``[B, T, 2 D_v]`` and ``[B, T, 2 D_a]``: unit vectors of the towers, then those of the trained model; None
            where the input is None.
        """
        before = self.plain(frames, audio)
        if frames is None or audio is None or self.adapters is None:
            after = self._projected(*before)  # nothing guides the towers: they need not run twice
        else:
            after = self.trained(frames, audio, **present)
        return _joined(before[0], after[0]), _joined(before[1], after[1])

    def _projected(self, visual: Tensor | None, audio: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        projectors = self.trained.projectors
        if projectors is None:
            return visual, audio
        return (
            None if visual is None else projectors.visual(visual),
            None if audio is None else projectors.audio(audio),
        )


def _joined(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    return None if before is None or after is None else torch.cat((before, after), dim=-1)
