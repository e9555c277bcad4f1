"""Projectors on the four encoder outputs (Eq. 8 of Duan et al., arXiv 2311.05152)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.errors import UsageError

PROJECTORS = ("residual", "mlp")
"""``residual`` starts as the identity; ``mlp`` is the plain map as printed, which forgets the zero-shot model."""


class Projector(nn.Module):
    """A two-layer MLP with ReLU from an embedding space into a matching space of the same width.

    Args:
        dim: Width D of the embeddings.
        hidden: Width of the layer between; D by default.
        residual: Add the MLP's output to its input, and start with zeros in its last layer.
    """

    def __init__(self, dim: int, hidden: int | None = None, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.enter = nn.Linear(dim, hidden or dim)
        self.leave = nn.Linear(hidden or dim, dim)
        if residual:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Project unit vectors.

        Args:
            embeddings: ``[..., D]``, of length one.

        Returns:
            ``[..., D]`` of length one. A fresh residual projector gives back what it was given, within rounding.
        """
        # Small matrices at the very end, where a rounding to bfloat16 would cost accuracy and save nothing.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.enter.weight.dtype)
            projected = self.leave(F.relu(self.enter(embeddings)))
            return F.normalize(embeddings + projected if self.residual else projected, dim=-1)


class Projectors(nn.Module):
    """One projector for each of the four encoders.

    Args:
        visual_dim: Width of the space that the visual tower shares with its text branch.
        audio_dim: The same for sound.
        kind: ``"residual"`` or ``"mlp"``.
        hidden: Width between the two layers; that of the embeddings by default.

    Attributes:
        visual: For the visual tower.
        audio: For the audio tower.
        visual_text: For the text branch that belongs to the visual tower.
        audio_text: For the text branch that belongs to the audio tower.

    Raises:
        UsageError: `kind` is unknown.
    """

    def __init__(self, visual_dim: int, audio_dim: int, *, kind: str = "residual", hidden: int | None = None) -> None:
        super().__init__()
        if kind not in PROJECTORS:
            raise UsageError(f"There is no projector {kind!r}.", hint=f"Choose from: {', '.join(PROJECTORS)}.")
        residual = kind == "residual"
        self.visual = Projector(visual_dim, hidden, residual=residual)
        self.audio = Projector(audio_dim, hidden, residual=residual)
        self.visual_text = Projector(visual_dim, hidden, residual=residual)
        self.audio_text = Projector(audio_dim, hidden, residual=residual)
