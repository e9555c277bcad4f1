"""The decoder of AVSBench: masks of what sounds, from maps of four scales and the sound (Zhou et al., ECCV 2022).

Frames are numbered through clips, ``N = B * T``. Two things are not as in the released code: its in-place ReLU makes
the skips of :class:`Refine` add ``relu(x)`` instead of ``x``, and it holds a unit for the coarsest map that it never
calls.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STAGE_WIDTHS = (64, 128, 320, 512)
"""Channels of the maps, from fine to coarse, that the decoder reads: those of PVT-v2."""
AUDIO_WIDTH = 128
"""Channels of a second of sound that the decoder reads: those of VGGish."""
MATCH_WEIGHT = 0.5
"""Weight of the audio-visual matching term beside the masks' loss, where there are several sources."""


class TPAVI(nn.Module):
    """Temporal pixel-wise audio-visual interaction: every place of every second attends to the sound of all seconds.

    With no softmax, ``y_p = sum_q (theta_p . phi_q) g_q / (T H W)`` over places and seconds q. phi is the same all
    over a picture, so that the sum over q is an ``inner x inner`` matrix (:meth:`attend`), not a ``THW x THW`` one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = channels // 2
        self.audio = nn.Linear(AUDIO_WIDTH, channels)
        self.theta = nn.Conv2d(channels, inner, 1)
        self.phi = nn.Linear(channels, inner)
        self.g = nn.Conv2d(channels, inner, 1)
        self.out = nn.Conv2d(inner, channels, 1)
        self.batch_norm = nn.BatchNorm2d(channels)
        self.layer_norm = nn.LayerNorm(channels)
        nn.init.zeros_(self.batch_norm.weight)
        nn.init.zeros_(self.batch_norm.bias)

    def forward(self, maps: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
        """``[N, C, H, W]`` and ``[B, T, 128]`` to maps of the same shape, and the sound as ``[N, C]``."""
        sound = self.audio(audio)
        attended = self.attend(self.theta(maps), self.phi(sound), self.g(maps))
        maps = maps + self.batch_norm(self.out(attended))
        return self.layer_norm(maps.movedim(1, -1)).movedim(-1, 1), sound.flatten(0, 1)

    @staticmethod
    def attend(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """The sum above for ``[N, D, H, W]``, ``[B, T, D]`` and ``[N, D, H, W]``."""
        clips, seconds, _ = phi.shape
        sums = g.sum((-2, -1)).unflatten(0, (clips, seconds))
        matrix = torch.einsum("btc,btd->bcd", phi, sums) / (seconds * g.shape[-2] * g.shape[-1])
        return torch.einsum("btchw,bcd->btdhw", theta.unflatten(0, (clips, seconds)), matrix).flatten(0, 1)


class Refine(nn.Module):
    """``x + conv(relu(conv(relu(x))))``."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, maps: Tensor) -> Tensor:
        """``[N, C, H, W]`` to the same shape."""
        return maps + self.second(F.relu(self.first(F.relu(maps))))


class MaskDecoder(nn.Module):
    """The head.

    Args:
        widths: Channels of the four maps, from fine to coarse. Where they are not :data:`STAGE_WIDTHS`, linear maps
            stand before all else.
        audio_width: Channels of a second of sound, likewise.
        channels: Width of everything inside; 256 as published.
        size: Side of the masks.
    """

    def __init__(self, widths: Sequence[int], audio_width: int, *, channels: int = 256, size: int = 224) -> None:
        super().__init__()
        same = tuple(widths) == STAGE_WIDTHS
        self.size = size
        self.project = nn.ModuleList(
            nn.Identity() if same else nn.Conv2d(width, own, 1) for width, own in zip(widths, STAGE_WIDTHS, strict=True)
        )
        self.audio = nn.Identity() if audio_width == AUDIO_WIDTH else nn.Linear(audio_width, AUDIO_WIDTH)
        self.context = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(width, channels, 3, padding=d, dilation=d) for d in (3, 6, 12, 18))
            for width in STAGE_WIDTHS
        )
        for conv in (conv for convs in self.context for conv in convs):  # pyright: ignore[reportGeneralTypeIssues]
            nn.init.normal_(conv.weight, std=0.01)
        self.interact = nn.ModuleList(TPAVI(channels) for _ in STAGE_WIDTHS)
        self.skip = nn.ModuleList(Refine(channels) for _ in STAGE_WIDTHS[:-1])
        self.path = nn.ModuleList(Refine(channels) for _ in STAGE_WIDTHS)
        self.near = nn.Conv2d(channels, channels // 2, 3, padding=1)
        self.last = nn.Sequential(nn.Conv2d(channels // 2, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 1, 1))

    def forward(self, maps: Sequence[Tensor], audio: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Draw masks.

        Args:
            maps: ``[B, T, C_i, H_i, W_i]`` from fine to coarse, of any size; they are brought to a quarter, an eighth,
                a sixteenth and a 32nd of `size`.
            audio: ``[B, T, C_a]``.

        Returns:
            Logits ``[B, T, size, size]``, and maps and sound of each scale for :func:`mask_loss`.
        """
        clips, coarsest = len(audio), max(1, self.size // 32)
        sound = self.audio(audio)
        stages = []
        for index, stage in enumerate(maps):
            own = _resize(self.project[index](stage.flatten(0, 1)), coarsest * 2 ** (len(maps) - 1 - index))
            context = sum(conv(own) for conv in self.context[index])  # pyright: ignore[reportGeneralTypeIssues]
            stages.append(self.interact[index](context, sound))
        out = _double(self.path[-1](stages[-1][0]))
        for index in reversed(range(len(self.skip))):
            out = _double(self.path[index](out + self.skip[index](stages[index][0])))
        logits = self.last(F.interpolate(self.near(out), scale_factor=2, mode="bilinear"))
        if logits.shape[-1] != self.size:
            logits = F.interpolate(logits, (self.size, self.size), mode="bilinear")
        return logits[:, 0].unflatten(0, (clips, -1)), stages


def mask_loss(
    logits: Tensor, truth: Tensor, labelled: Tensor, stages: Sequence[tuple[Tensor, Tensor]], match_weight: float = 0.0
) -> Tensor:
    """Binary cross-entropy of the labelled frames, plus the audio-visual matching term.

    The term is the divergence of ``softmax(sound)`` from ``softmax(masked maps)`` summed over frames and channels, as
    published, and averaged over the scales; masked maps are those under the predicted mask, averaged over places.

    Args:
        logits: ``[B, T, S, S]``.
        truth: Bool, of the same shape.
        labelled: Bool ``[B, T]``: frames whose mask is known (the first alone, in training with a single source).
        stages: From :class:`MaskDecoder`.
        match_weight: Of the term: 0, or :data:`MATCH_WEIGHT` with several sources.
    """
    loss = F.binary_cross_entropy_with_logits(logits[labelled], truth[labelled].to(logits.dtype))
    if not match_weight:
        return loss
    terms = []
    for maps, sound in stages:
        mask = torch.sigmoid(F.adaptive_avg_pool2d(logits.flatten(0, 1)[:, None], maps.shape[-1]))
        masked = (maps * mask).mean((-2, -1))
        terms.append(F.kl_div(masked.log_softmax(-1), sound.softmax(-1), reduction="sum"))
    return loss + match_weight * torch.stack(terms).mean()


def _double(maps: Tensor) -> Tensor:
    return F.interpolate(maps, scale_factor=2, mode="bilinear", align_corners=True)


def _resize(maps: Tensor, side: int) -> Tensor:
    if maps.shape[-2:] == (side, side):
        return maps
    return F.interpolate(maps, (side, side), mode="bicubic", antialias=True)
