"""What follows the towers: projectors into the two matching spaces, and temperatures."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.errors import check_choice

MAX_SCALE = 100.0
"""Largest temperature scale that training may reach, as for CLIP (Radford et al., ICML 2021, section 2.5)."""

PROJECTORS = ("residual", "mlp")
"""``residual`` starts as the identity; ``mlp`` is the plain map as printed, which forgets the zero-shot model."""


class Projector(nn.Module):
    """A two-layer MLP with ReLU from an embedding space into a matching space of the same width `dim` (Eq. 8).

    A `residual` one adds the MLP's output to its input, and has zeros in its last layer at first.
    """

    def __init__(self, dim: int, *, residual: bool = True) -> None:
        super().__init__()
        self.residual = residual
        self.enter = nn.Linear(dim, dim)
        self.leave = nn.Linear(dim, dim)
        if residual:
            nn.init.zeros_(self.leave.weight)
            nn.init.zeros_(self.leave.bias)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Unit vectors ``[..., D]`` to unit vectors; a fresh residual projector changes nothing but rounding."""
        # Small matrices at the very end, where a rounding to bfloat16 would cost accuracy and save nothing.
        with torch.autocast(embeddings.device.type, enabled=False):
            embeddings = embeddings.to(self.enter.weight.dtype)
            projected = self.leave(F.relu(self.enter(embeddings)))
            return F.normalize(embeddings + projected if self.residual else projected, dim=-1)


class Projectors(nn.Module):
    """One projector for each of the four encoders: the two towers, and the text branch that belongs to each.

    `visual_dim` and `audio_dim` are the widths of the two spaces.

    Raises:
        UsageError: `kind` is none of :data:`PROJECTORS`.
    """

    def __init__(self, visual_dim: int, audio_dim: int, *, kind: str = "residual") -> None:
        super().__init__()
        check_choice("projector", kind, PROJECTORS)
        self.visual, self.audio, self.visual_text, self.audio_text = (
            Projector(dim, residual=kind == "residual") for dim in (visual_dim, audio_dim, visual_dim, audio_dim)
        )


class Temperatures(nn.Module):
    """Learnable temperature scales of the two matching spaces, positive, kept as logarithms.

    Their bound is :data:`MAX_SCALE`, or an initial scale that is larger.
    """

    def __init__(self, visual: float, audio: float) -> None:
        super().__init__()
        self._limits = {"visual": math.log(max(MAX_SCALE, visual)), "audio": math.log(max(MAX_SCALE, audio))}
        self.visual = nn.Parameter(torch.tensor(math.log(visual)))
        self.audio = nn.Parameter(torch.tensor(math.log(audio)))

    def scale(self, modality: str) -> Tensor:
        """What cosines are multiplied with; at the limit its value stops, its gradient does not: it can come back."""
        logarithm = getattr(self, modality)
        return (logarithm - F.relu(logarithm - self._limits[modality]).detach()).exp()
