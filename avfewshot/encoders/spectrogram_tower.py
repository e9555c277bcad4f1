"""An image transformer that hears: spectrograms as pictures, through the very modules that see the frames.

One frozen transformer then serves both modalities (LAVISH, arXiv 2212.07983; STG-CMA, CVPR 2024 workshops): the tower
here holds nothing but the patch embedding of the pictures and walks the blocks of the image tower.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.encoders.picture import Picture
from avfewshot.encoders.swin import SwinTower
from avfewshot.encoders.tower import Tower
from avfewshot.errors import UsageError

_RATE = 16_000  # samples a second that the spectrograms are made of
RELEASED_HEADS = 8  # of ViT-B/16 in STG-CMA's released code


def _of_image(name: str) -> Any:
    """A method of the image tower, which does not care what its tokens show."""
    return lambda self, *args: getattr(self.image, name)(*args)


class SpectrogramTower(Tower):
    """Walks an image tower over spectrograms of one-second waveforms, whose modules are shared, not copied."""

    mlp_block, attn_branch, mlp_branch = map(_of_image, ("mlp_block", "attn_branch", "mlp_branch"))
    time_branch, windows, downsample = map(_of_image, ("time_branch", "windows", "downsample"))
    final_norm, forward_head = map(_of_image, ("final_norm", "forward_head"))

    def __init__(self, image: ClipTower | SwinTower, picture: Picture, *, sample_rate: int = 48_000) -> None:
        super().__init__()
        self.image, self.picture = image, picture
        self.kernel: nn.Parameter | None = None
        self.sample_rate = sample_rate
        self.native_samples = sample_rate
        self.depth = image.depth
        self.output_dim = image.output_dim
        if isinstance(image, ClipTower):
            self._begin_clip(image)
        else:
            self._begin_swin(image)
        self._freeze()

    def extra_repr(self) -> str:
        """What the image tower is shown."""
        return f"{self.picture}, sample_rate={self.sample_rate}"

    def _begin_clip(self, image: ClipTower) -> None:
        visual: Any = image.visual
        (down, across), (height, width) = visual.grid_size, visual.patch_size
        rows, columns = self.picture.frames // height, self.picture.mels // width
        if not (0 < rows <= down and 0 < columns <= across):
            raise UsageError(
                f"A picture of {rows} x {columns} patches does not fit the image encoder's grid of {down} x {across}.",
                hint=f"At most {down * height} frames and {across * width} mels.",
            )
        kernel = visual.conv1.weight.detach()
        self.kernel = nn.Parameter(self._one_channel(kernel))
        places = visual.positional_embedding.detach()
        grid = places[1:].unflatten(0, (down, across))
        top, left = (down - rows) // 2, (across - columns) // 2  # the middle, laid out as the tokens are: time, mel
        middle = grid[top : top + rows, left : left + columns].flatten(0, 1)
        self.places = nn.Parameter(torch.cat([places[:1], middle]))
        self.token_shapes = [(1 + rows * columns, image.token_shapes[0][1])] * self.depth
        self.grids = [(rows, columns)] * self.depth

    def _begin_swin(self, image: SwinTower) -> None:
        side = image.image_size
        if (self.picture.frames, self.picture.mels) != (side, side):
            raise UsageError(
                f"A picture of {self.picture.frames} x {self.picture.mels} does not fit an image encoder of {side} x"
                f" {side}.",
                hint=f"Give {side} frames and {side} mels.",
            )
        stem = image.swin.patch_embed
        self.bias: nn.Parameter | None = None
        self.norm: nn.Module = stem.norm
        if self.picture.channels != "repeat":
            self.kernel = nn.Parameter(self._one_channel(stem.proj.weight.detach()))
            self.bias = nn.Parameter(stem.proj.bias.detach().clone())
            if isinstance(stem.norm, nn.LayerNorm):
                self.norm = nn.LayerNorm(list(stem.norm.normalized_shape), eps=stem.norm.eps)
                self.norm.load_state_dict(stem.norm.state_dict())
        self.token_shapes = image.token_shapes
        self.grids = image.grids

    def _one_channel(self, kernel: Tensor) -> Tensor:
        """RGB kernel ``[C, 3, h, w]`` to the one of a single channel."""
        return kernel.mean(1, keepdim=True) if self.picture.channels == "mean" else kernel.sum(1, keepdim=True)

    @property
    def time_heads(self) -> list[int | None]:
        """See :attr:`Tower.time_heads`."""
        return self.image.time_heads

    def pictures(self, waveforms: Tensor) -> Tensor:
        """Spectrograms of waveforms ``[N, samples]``: ``[N, frames, mels]``, float32."""
        import torchaudio
        from torchaudio.compliance.kaldi import fbank

        picture, sound = self.picture, waveforms.float()
        if self.sample_rate != _RATE:
            sound = torchaudio.functional.resample(sound, self.sample_rate, _RATE)
        sound = sound - sound.mean(1, keepdim=True)
        banks = torch.stack([
            fbank(
                wave[None], htk_compat=True, sample_frequency=_RATE, use_energy=False, window_type="hanning",
                num_mel_bins=picture.mels, dither=0.0, frame_shift=picture.shift_ms,
            )
            for wave in sound
        ])  # fmt: skip
        banks = (banks - picture.mean) / (2 * picture.std)
        return F.pad(banks, (0, 0, 0, picture.frames - banks.shape[1]))  # a negative width cuts

    def patch_embed(self, inputs: Tensor, position: Tensor | None = None) -> Tensor:
        """Make pictures of waveforms ``[N, samples]``, in [-1, 1] at :attr:`sample_rate`: tokens ``[N, L, C]``.

        `position` ``[N, 1, C]`` is added to all tokens before the first norm; CLIP only. Inputs of another shape or
        shorter than 40 ms are a ValueError.
        """
        if inputs.ndim != 2 or inputs.shape[1] < self.sample_rate // 25:
            raise ValueError(f"Waveforms of shape [N, samples], 40 ms at least, are needed, not {list(inputs.shape)}.")
        pictures = self.pictures(inputs)[:, None]
        image, kernel = self.image, self.kernel
        if kernel is None:
            return image.patch_embed(pictures.expand(-1, 3, -1, -1))
        if isinstance(image, ClipTower):
            patches = F.conv2d(pictures.to(kernel.dtype), kernel, stride=kernel.shape[2:])
            return image.enter(patches.flatten(2).mT, self.places, position)
        patches = F.conv2d(pictures.to(kernel.dtype), kernel, self.bias, stride=kernel.shape[2:])
        return self.norm(patches.flatten(2).mT)

    def spectrogram(self, waveforms: Tensor) -> Tensor:
        """What the tower sees of waveforms ``[N, samples]``: ``[N, mels, time]``, high frequencies first."""
        return self.pictures(waveforms).mT.flip(1)

    def place_map(self, i: int, values: Tensor) -> Tensor:
        """See :meth:`Tower.place_map`; the picture's rows are time."""
        rows, columns = self.grids[i]
        return values[:, -rows * columns :].unflatten(1, (rows, columns)).mT.flip(1)


def with_released_heads(towers: Any) -> Any:
    """A backbone whose towers are as the released code of STG-CMA runs ViT-B/16: 8 heads, on weights trained with 12.

    The published B/16 figures come from that. The image tower's weights are shared with `towers`, a dataclass. An image
    encoder of another kind, or of another width than a multiple of 8, is a :class:`UsageError`.
    """
    image, audio = towers.visual, towers.audio
    if not isinstance(image, ClipTower) or image.token_shapes[0][1] % RELEASED_HEADS:
        raise UsageError(
            f"Variant released-8-heads needs a CLIP vision transformer whose width is a multiple of {RELEASED_HEADS}.",
            hint="Choose such a --backbone, or leave --variant out.",
        )
    image = image.with_heads(RELEASED_HEADS)
    if isinstance(audio, SpectrogramTower):
        audio = SpectrogramTower(image, audio.picture, sample_rate=audio.sample_rate)
    return replace(towers, visual=image, audio=audio)
