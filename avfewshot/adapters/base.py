"""What every cross-modal adapter is given and gives back."""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from avfewshot.adapters.settings import AdapterSettings
from avfewshot.encoders.presets import require_walkable
from avfewshot.encoders.tower import Encoder, Pair, Tower

Half = Literal["attend", "feed"]
HALVES: tuple[Half, Half] = ("attend", "feed")  # also part of the names of tensors in checkpoints
TOWER_STEPS = {"attend": "attn_block", "feed": "mlp_block"}  # the method of a tower that takes each half
TOWER_BRANCHES = {"attend": "attn_branch", "feed": "mlp_branch"}  # what it adds to the tokens


@dataclass(frozen=True)
class PairedLayer:
    """A block of the visual tower and the block of the audio tower that it exchanges guidance with."""

    visual_block: int  # index in the visual tower
    audio_block: int
    visual_shape: tuple[int, int]  # (tokens, channels) entering the visual block
    audio_shape: tuple[int, int]
    visual_time: int | None = None  # how the block serves along time, see Tower.time_heads
    audio_time: int | None = None


def pair_layers(
    visual_shapes: Sequence[tuple[int, int]], audio_shapes: Sequence[tuple[int, int]]
) -> tuple[PairedLayer, ...]:
    """Pair the blocks of two towers: stage by stage where both have equally many, else by relative depth.

    The shapes are (tokens, channels) entering each block; a stage is a run of blocks whose tokens have one shape. With
    equal depths block i meets block i. Otherwise block i of the shorter tower, or stage, (n blocks) meets the block of
    the longer one (m blocks) whose end lies nearest to the same fraction of the depth, ``(i + 1) / n``: block k of 6
    meets 3k + 2 of 18, the last blocks always meet, and each block occurs once at most.
    """
    stages = [[len(list(run)) for _, run in itertools.groupby(map(tuple, s))] for s in (visual_shapes, audio_shapes)]
    if len(stages[0]) != len(stages[1]):
        stages = [[len(visual_shapes)], [len(audio_shapes)]]
    pairs: list[PairedLayer] = []
    begin = [0, 0]
    for depths in zip(*stages, strict=True):
        count = min(depths)
        # floor(x + 1/2) of x = (i + 1) m / n in whole numbers; it grows by at least 1 with i, because m >= n.
        blocks = [
            [start + (2 * (i + 1) * depth + count) // (2 * count) - 1 for i in range(count)]
            for start, depth in zip(begin, depths, strict=True)
        ]
        pairs += [
            PairedLayer(v, a, tuple(visual_shapes[v]), tuple(audio_shapes[a])) for v, a in zip(*blocks, strict=True)
        ]
        begin = [start + depth for start, depth in zip(begin, depths, strict=True)]
    return tuple(pairs)


def pair_towers(visual: Encoder, audio: Encoder) -> tuple[PairedLayer, ...]:
    """Pair the blocks of two towers, see :func:`pair_layers`; and note how they serve along time.

    Raises:
        UsageError: One of them cannot be walked.
    """
    require_walkable("An adapter (DG-SCT, LAVISH, STG-CMA)", visual, audio)
    assert isinstance(visual, Tower)
    assert isinstance(audio, Tower)
    return tuple(
        replace(
            layer,
            visual_time=visual.time_heads[layer.visual_block],
            audio_time=audio.time_heads[layer.audio_block],
        )
        for layer in pair_layers(visual.token_shapes, audio.token_shapes)
    )


class TemporalStep(nn.Module, abc.ABC):
    """What an adapter makes of the attention of a block along time."""

    def bias(self, segments: int) -> Tensor | None:
        """What is added to the scaled products of that attention, ``[1, heads, T, T]``."""
        return None

    @abc.abstractmethod
    def forward(self, attended: Tensor) -> Tensor:
        """What to add to the tokens; ``[rows, T, C]`` both."""


class CrossModalAdapter(nn.Module, abc.ABC):
    """Guidance between two towers that are walked in lockstep; a fresh one changes nothing.

    The model calls :meth:`forward` twice in every paired layer, unless a modality is absent. What it is given depends
    on :attr:`reads`: with ``"tokens"`` those that enter the block, and then those that enter the MLP, its result being
    added after self-attention, and after the MLP; with ``"branch"`` what self-attention, and then the MLP, would add,
    its result being added beside it. Where both blocks attend within windows of one layout, attention then gives ``[N *
    windows, area, C]``.
    """

    Settings: ClassVar[type[AdapterSettings]]  # of an adapter that keeps one as `_settings`
    _settings: AdapterSettings
    reads: ClassVar[Literal["tokens", "branch"]] = "tokens"
    draws: bool = False  # whether it draws random numbers in training

    @classmethod
    def build(cls, layers: Sequence[PairedLayer], settings: Mapping[str, Any]) -> CrossModalAdapter:
        """Build a fresh adapter; settings that are missing have their defaults.

        Raises:
            UsageError: A setting is unknown or out of range; all faults are reported at once.
        """
        make: Any = cls
        return make(layers, cls.Settings.from_mapping(settings))

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain data, such that ``build(layers, settings)`` gives a module of the same form."""
        return asdict(self._settings)

    def gates(self) -> list[nn.Parameter]:
        """Parameters that are zero in a fresh adapter and hold its guidance back; ``gate_lr`` is theirs."""
        return []

    def mean_gate(self) -> float:
        """Mean absolute value of the gates: how far the adapter has opened; 0 for a fresh one."""
        values = [gate.detach().abs().flatten() for gate in self.gates()]
        return torch.cat(values).mean().item() if values else 0.0

    def position(self, modality: str, segments: int) -> Tensor | None:
        """Added to all tokens of each segment where they enter a tower: ``[T, C]``, zero at first; None: nothing."""
        return None

    def temporal(self, layer: int, modality: str) -> TemporalStep | None:
        """A step of one modality before the others of a paired layer, on attention along time; None: there is none."""
        return None

    @abc.abstractmethod
    def forward(self, layer: int, half: Half, visual: Tensor, audio: Tensor, segments: int) -> Pair:
        """Guidance in one half of a paired layer: what to add to the visual and to the audio tokens; None for nothing.

        Args:
            layer: Index of the paired layer.
            half: ``"attend"`` or ``"feed"``.
            visual: Visual tokens ``[N, L_v, C_v]``, N = clips x segments, segments of a clip in a row.
            audio: Audio tokens ``[N, L_a, C_a]``.
            segments: Segments of each clip, T.
        """
