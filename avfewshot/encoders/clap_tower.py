"""CLAP's audio transformer HTS-AT, walked block by block."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.htsat import FRONT_ENDS, HtsatConfig
from avfewshot.encoders.mel import MelFrontEnd
from avfewshot.encoders.swin import WindowAttention, merge_patches, plain_attention
from avfewshot.encoders.tower import Tower
from avfewshot.errors import UsageError


class ClapTower(Tower):
    """Walks laion_clap's ``HTSAT_Swin_Transformer`` and the projection behind it.

    Args:
        audio_branch: The HTS-AT, as :func:`avfewshot.encoders.htsat.build_htsat` builds it.
        audio_projection: From its embedding to the space that is shared with the texts.
        front_end: ``"slaney"`` or ``"htk"``; None: as the branch was built.

    Attributes:
        audio_branch: The wrapped module; with the projection it holds the parameters.
        audio_projection: The wrapped projection.
        config: The configuration of the branch.
        native_samples: Length of the waveforms that the tower was trained on.
        sample_rate: Their samples a second.

    Raises:
        UsageError: No such front end.
    """

    def __init__(self, audio_branch: Any, audio_projection: nn.Module, front_end: str | None = None) -> None:
        super().__init__()
        config: HtsatConfig = audio_branch.config.htsat
        if front_end is not None:
            if front_end not in FRONT_ENDS:
                raise UsageError(f"There is no mel front end {front_end!r}.", hint=f"Valid: {', '.join(FRONT_ENDS)}.")
            config = replace(config, front_end=front_end)
        self.config = config
        self.native_samples = config.native_samples
        self.sample_rate = config.sample_rate
        self.audio_branch: Any = audio_branch
        self.audio_projection = audio_projection
        self.front_end = MelFrontEnd(config)
        # Each block with the merging that follows it, in the order of the walk.
        self._walk = [
            (block, layer.downsample if block is layer.blocks[-1] else None)
            for layer in audio_branch.layers
            for block in layer.blocks
        ]
        self.windows_attention = nn.ModuleList(WindowAttention(block) for block, _ in self._walk)
        self.depth = len(self._walk)
        self.token_shapes = [
            (block.input_resolution[0] * block.input_resolution[1], block.dim) for block, _ in self._walk
        ]
        widths = [module.out_features for module in audio_projection.modules() if isinstance(module, nn.Linear)]
        self.output_dim = widths[-1] if widths else audio_branch.num_features
        self._freeze()

    def extra_repr(self) -> str:
        """The configuration, sizes that no tensor tells included."""
        return str(self.config)

    def patch_embed(self, inputs: Tensor) -> Tensor:
        """Compute the spectrograms, fold them into square images and embed their patches.

        Args:
            inputs: Waveforms, float ``[N, S]`` in [-1, 1] at :attr:`sample_rate`, usually one second each. Shorter ones
                than :attr:`native_samples` are repeated as often as they fit and then padded with zeros (laion_clap's
                "repeatpad"), longer ones cut at the end.

        Returns:
            Tokens ``[N, L, C]``.

        Raises:
            ValueError: Another shape, or no sample.
        """
        if inputs.ndim != 2 or not inputs.shape[1]:
            raise ValueError(f"Waveforms of shape [N, samples] are needed, not {list(inputs.shape)}.")
        stem = self.audio_branch.patch_embed
        kernel = stem.proj.weight
        patches = self._patches(self.front_end(inputs, self.audio_branch)).to(kernel.dtype)
        # A convolution whose stride is its kernel is a linear map of patches.
        return stem.norm(F.linear(patches, kernel.flatten(1), stem.proj.bias))

    def _patches(self, mels: Tensor) -> Tensor:
        """Spectrograms ``[N, time, mels]`` to flattened patches ``[N, L, patch_size ** 2]``.

        The image stacks consecutive stretches of the spectrogram, each `spec_size` columns long, frequency downwards.
        """
        size, patch, bins = self.config.spec_size, self.config.patch_size, self.config.mel_bins
        blocks = mels.view(-1, size // bins, size // patch, patch, bins // patch, patch)
        return blocks.permute(0, 1, 4, 2, 5, 3).reshape(-1, (size // patch) ** 2, patch * patch)

    @property
    def time_heads(self) -> list[int | None]:
        """See :attr:`Tower.time_heads`: blocks whose windows are not shifted serve, every other one of a stage."""
        return [
            block.attn.num_heads if i % 2 == 0 else None
            for layer in self.audio_branch.layers
            for i, block in enumerate(layer.blocks)
        ]

    def mlp_width(self, i: int) -> int:
        """See :meth:`Tower.mlp_width`."""
        return self._walk[i][0].mlp.fc1.out_features

    def attn_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.attn_branch`."""
        block, _ = self._walk[i]
        return self.windows_attention[i](block.norm1(tokens), block)

    def mlp_branch(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.mlp_branch`."""
        block, _ = self._walk[i]
        mlp = block.mlp
        return mlp.fc2(mlp.act(mlp.fc1(block.norm2(tokens))))

    def time_branch(self, i: int, tokens: Tensor, bias: Tensor | None = None) -> Tensor:
        """See :meth:`Tower.time_branch`."""
        block, _ = self._walk[i]
        return plain_attention(block.attn, block.norm1(tokens), bias)

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """What the tower sees of waveforms ``[N, samples]``: ``[N, mels, time]``, high frequencies first."""
        return self.front_end(waveforms, self.audio_branch).mT.flip(1)

    def place_map(self, i: int, values: Tensor) -> Tensor:
        """See :meth:`Tower.place_map`; the stretches that the image stacks stand side by side again."""
        stretches, side = self.config.spec_size // self.config.mel_bins, round(values.shape[1] ** 0.5)
        return values.view(-1, stretches, side // stretches, side).transpose(1, 2).flatten(2).flip(1)

    def final_norm(self, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.final_norm`."""
        return self.audio_branch.norm(tokens)

    def downsample(self, i: int, tokens: Tensor) -> Tensor:
        """See :meth:`Tower.downsample`."""
        _, merging = self._walk[i]
        return tokens if merging is None else merge_patches(merging, tokens)

    def forward_head(self, tokens: Tensor) -> Tensor:
        """The library's ``embedding``, the mean of the normalised tokens, through the projection."""
        return self.audio_projection(self.audio_branch.norm(tokens).mean(dim=1))

    @property
    def window_seconds(self) -> int:
        """Whole seconds that the tower hears at once."""
        return max(1, self.native_samples // self.sample_rate)

    def forward_windows(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Embed windows in one pass, and each of their seconds from the time grid of the last stage.

        The grid of the last stage (8 x 8 tokens for LAION's towers, four stretches of time stacked, two bands each) is
        32 steps over ten seconds. The head, on its mean over a second and the repetitions of that second, gives the
        second; on its mean over all time, the tower's own embedding.

        Args:
            waveforms: ``[N, T * sample_rate]`` with T from 1 to :attr:`window_seconds`; shorter ones than
                :attr:`native_samples` are repeated and padded as :meth:`patch_embed` does.

        Returns:
            The tower's own embedding ``[N, D]``, as from :meth:`forward`, and the seconds ``[N, T, D]``.

        Raises:
            ValueError: No whole seconds, or too many.
        """
        seconds, rest = divmod(waveforms.shape[-1], self.sample_rate)
        if rest or not 1 <= seconds <= self.window_seconds:
            raise ValueError(f"1 to {self.window_seconds} whole seconds are needed, not {list(waveforms.shape)}.")
        tokens = self.audio_branch.norm(self.final_tokens(waveforms))
        stretches = self.config.spec_size // self.config.mel_bins
        side = round(tokens.shape[1] ** 0.5)
        steps = tokens.view(-1, stretches, side // stretches, side, tokens.shape[2]).mean(2).flatten(1, 2)
        weights = self._second_weights(seconds, steps.shape[1]).to(steps)
        return self.audio_projection(tokens.mean(1)), self.audio_projection(weights @ steps)

    def _second_weights(self, seconds: int, steps: int) -> Tensor:
        """``[seconds, steps]``, rows that sum to 1: how much of each second, in all its repetitions, a step holds."""
        edges = torch.arange(steps + 1) * (self.native_samples / self.sample_rate / steps)
        starts = torch.arange(self.native_samples // (seconds * self.sample_rate) * seconds)[:, None]
        shared = torch.minimum(edges[1:], starts + 1) - torch.maximum(edges[:-1], starts)
        held = shared.clamp(min=0).view(-1, seconds, steps).sum(0)
        return held / held.sum(1, keepdim=True)

    def _keeps_float32(self, name: str) -> bool:
        branch = "bn0.", "spectrogram_extractor.", "logmel_extractor."
        return name.startswith(("front_end.", *(f"audio_branch.{part}" for part in branch)))
