"""Small towers that follow the tower protocol, in plain PyTorch, for tests of what stands between and upon them."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from avfewshot.encoders.tower import Tower


class StandInTower(Tower):
    """Blocks of token mixing and an MLP; the last tokens are averaged.

    Args:
        shapes: (tokens, channels) entering each block. Where the shape changes, a fixed map follows the block before.
        input_size: Numbers in one input segment, after flattening.
        output_dim: Width of the embedding.
    """

    image_size = 8

    def __init__(self, shapes: list[tuple[int, int]], input_size: int, output_dim: int) -> None:
        super().__init__()
        self.token_shapes = list(shapes)
        self.depth = len(shapes)
        self.output_dim = output_dim
        length, width = shapes[0]
        self.stem = nn.Linear(input_size, length * width)
        self.norm0 = nn.BatchNorm1d(input_size)
        self.mix = nn.ModuleList(nn.Linear(length, length) for length, _ in shapes)
        self.norm1 = nn.ModuleList(nn.LayerNorm(width) for _, width in shapes)
        self.norm2 = nn.ModuleList(nn.LayerNorm(width) for _, width in shapes)
        self.mlp = nn.ModuleList(nn.Linear(width, width) for _, width in shapes)
        self.down = nn.ModuleDict(
            {
                str(i): nn.Linear(before[0] * before[1], after[0] * after[1])
                for i, (before, after) in enumerate(itertools.pairwise(shapes))
                if before != after
            }
        )
        self.head = nn.Linear(shapes[-1][1], output_dim)
        self._freeze()

    def patch_embed(self, inputs: Tensor) -> Tensor:
        flat = inputs.flatten(1)
        if inputs.dtype == torch.uint8:
            flat = flat.to(self.stem.weight.dtype) / 255
        flat = self.norm0(flat.to(self.stem.weight.dtype))
        return self.stem(flat).view(inputs.shape[0], *self.token_shapes[0])

    def attn_block(self, i: int, tokens: Tensor) -> Tensor:
        return tokens + self.attn_branch(i, tokens)

    def mlp_block(self, i: int, tokens: Tensor) -> Tensor:
        return tokens + self.mlp_branch(i, tokens)

    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        return self.mix[i](self.norm1[i](tokens).transpose(-1, -2)).transpose(-1, -2)

    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        return torch.tanh(self.mlp[i](self.norm2[i](tokens)))

    def downsample(self, i: int, tokens: Tensor) -> Tensor:
        if str(i) not in self.down:
            return tokens
        return self.down[str(i)](tokens.flatten(1)).view(tokens.shape[0], *self.token_shapes[i + 1])

    def forward_head(self, tokens: Tensor) -> Tensor:
        return self.head(tokens.mean(1))


@dataclass
class StandInBackbone:
    """The part of a backbone that the model needs."""

    visual: StandInTower
    audio: StandInTower
    visual_scale: float = 20.0
    audio_scale: float = 10.0
    recipe: str = ""


VISUAL_SHAPES = [(5, 12)] * 4
AUDIO_SHAPES = [(16, 4), (16, 4), (4, 8), (4, 8)]


def make_backbone(
    visual: list[tuple[int, int]] | None = None, audio: list[tuple[int, int]] | None = None, seed: int = 0
) -> StandInBackbone:
    """Two towers with random weights: images 3 x 8 x 8, sounds of 48 samples, embeddings of 6 and 7 numbers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = StandInTower(visual or VISUAL_SHAPES, 3 * 8 * 8, 6), StandInTower(audio or AUDIO_SHAPES, 48, 7)
        for tower in towers:  # statistics that would visibly drift
            tower.norm0.running_mean.normal_(std=0.1)
            tower.norm0.running_var.uniform_(0.5, 1.5)
    return StandInBackbone(*towers)


def make_inputs(clips: int, segments: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """uint8 frames [B, T, 3, 8, 8] and waveforms [B, T, 48]."""
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (clips, segments, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return frames, torch.randn(clips, segments, 48, generator=generator)


def stirred(module: nn.Module, std: float = 0.4) -> nn.Module:
    """The module with random values everywhere, also where a fresh adapter has zeros."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for values in module.parameters():
            values.copy_(std * torch.randn(values.shape, generator=generator, dtype=values.dtype))
    return module
