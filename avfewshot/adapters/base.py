"""What every cross-modal adapter is given and gives back."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

Half = Literal["attend", "feed"]
HALVES: tuple[Half, Half] = ("attend", "feed")  # also part of the names of tensors in checkpoints
TOWER_STEPS = {"attend": "attn_block", "feed": "mlp_block"}  # the method of a tower that takes each half


@dataclass(frozen=True)
class PairedLayer:
    """A block of the visual tower and the block of the audio tower that it exchanges guidance with.

    Attributes:
        visual_block: Index of the visual tower's block.
        audio_block: Index of the audio tower's block.
        visual_shape: (tokens, channels) entering the visual block.
        audio_shape: (tokens, channels) entering the audio block.
    """

    visual_block: int
    audio_block: int
    visual_shape: tuple[int, int]
    audio_shape: tuple[int, int]


def pair_layers(
    visual_shapes: Sequence[tuple[int, int]], audio_shapes: Sequence[tuple[int, int]]
) -> tuple[PairedLayer, ...]:
    """Pair the blocks of two towers by relative depth.

    With equal depths block i meets block i. Otherwise block i of the shorter tower (n blocks) meets the block of the
    longer one (m blocks) whose end lies nearest to the same fraction of the depth, ``(i + 1) / n``; the last blocks
    always meet.

    Args:
        visual_shapes: (tokens, channels) entering each block of the visual tower.
        audio_shapes: The same for the audio tower.

    Returns:
        As many pairs as the shorter tower has blocks, in order; each block occurs once at most.
    """
    depths = len(visual_shapes), len(audio_shapes)
    count = min(depths)
    # floor(x + 1/2) of x = (i + 1) m / n in whole numbers; it grows by at least 1 with i, because m >= n.
    blocks = [[(2 * (i + 1) * depth + count) // (2 * count) - 1 for i in range(count)] for depth in depths]
    return tuple(
        PairedLayer(v, a, tuple(visual_shapes[v]), tuple(audio_shapes[a])) for v, a in zip(*blocks, strict=True)
    )


class CrossModalAdapter(nn.Module, abc.ABC):
    """Guidance between two towers that are walked in lockstep.

    The model calls :meth:`forward` twice in every paired layer: with the tokens that enter the block, whose result is
    added after self-attention, and with the tokens that enter the MLP, whose result is added after the MLP. Where a
    modality is absent the adapter is not called at all.

    A fresh adapter must change nothing: its guidance is zero (exactly) until it has been trained.
    """

    @classmethod
    @abc.abstractmethod
    def build(cls, layers: Sequence[PairedLayer], settings: Mapping[str, Any]) -> CrossModalAdapter:
        """Build a fresh adapter.

        Args:
            layers: The paired layers.
            settings: Values by name; what is missing has its default.

        Raises:
            UsageError: A setting is unknown or out of range; all faults are reported at once.
        """

    @property
    @abc.abstractmethod
    def settings(self) -> dict[str, Any]:
        """All settings as plain data, such that ``build(layers, settings)`` gives a module of the same form."""

    def gates(self) -> list[nn.Parameter]:
        """Parameters that are zero in a fresh adapter and hold its guidance back; ``gate_lr`` is theirs."""
        return []

    def mean_gate(self) -> float:
        """Mean absolute value of the gates: how far the adapter has opened; 0 for a fresh one."""
        values = [gate.detach().abs().flatten() for gate in self.gates()]
        return torch.cat(values).mean().item() if values else 0.0

    @abc.abstractmethod
    def forward(
        self, layer: int, half: Half, visual: Tensor, audio: Tensor, segments: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Guidance in one half of a paired layer.

        Args:
            layer: Index of the paired layer.
            half: ``"attend"`` or ``"feed"``.
            visual: Visual tokens ``[N, L_v, C_v]``, N = clips x segments, segments of a clip in a row.
            audio: Audio tokens ``[N, L_a, C_a]``.
            segments: Segments of each clip, T.

        Returns:
            What to add to the visual tokens and what to add to the audio tokens; None for nothing.
        """
