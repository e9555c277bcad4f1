"""A trained model and the frozen towers that it was built on, joined in their logits.

Logits are products of embeddings and scaled texts, so a blend of two models' logits is a single product:

    (1 - s) z (v . t) + s z' (v' . t')  =  [v, v'] . [(1 - s) z t, s z' t']

with embeddings v, v', texts t, t' and temperature scales z, z' of the towers and of the trained model, and the share s.
Whoever matches embeddings with texts need not know that they are two models'.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from avfewshot.adapters.base import CrossModalAdapter
from avfewshot.models.audio_visual import AudioVisualModel


class SideBySide(nn.Module):
    """Embeddings of the frozen towers alone, and beside them those of the trained model, from one decoded clip.

    Args:
        plain: The towers, without adapters and projectors.
        trained: The model that was built on the same towers.
    """

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


def joint_texts(zero_shot: Tensor, trained: Tensor, share: float) -> Tensor:
    """What the embeddings of :class:`SideBySide` are multiplied with to give blended logits.

    Args:
        zero_shot: Texts of the towers times their temperature scale, ``[..., D]``.
        trained: Projected texts of the trained model times its temperature scale, ``[..., D]``.
        share: Share of the trained logits in [0, 1].

    Returns:
        ``[..., 2 D]``.
    """
    return torch.cat(((1 - share) * zero_shot, share * trained), dim=-1)


def _joined(before: Tensor | None, after: Tensor | None) -> Tensor | None:
    return None if before is None else torch.cat((before, after), dim=-1)
