"""How a second of sound becomes a picture for an image transformer; those of the papers by name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Picture:
    """``[frames, mels]``: Kaldi's filter bank, normalised, then padded."""

    mels: int
    shift_ms: float  # between frames
    frames: int
    mean: float = -4.1426  # of AVE, as the papers' code has them
    std: float = 3.2001  # twice this divides
    channels: Literal["sum", "mean", "repeat"] = "sum"  # one channel by the summed or averaged kernel, or three alike


STG_CMA_CLIP = Picture(128, 10.0, 102)
STG_CMA_SWIN = Picture(224, 4.4, 224, channels="mean")
LAVISH_SWIN = Picture(192, 5.2, 192, -4.9848, 3.7080, channels="repeat")
PICTURES = {"stg-cma-clip": STG_CMA_CLIP, "stg-cma-swin": STG_CMA_SWIN, "lavish-swin": LAVISH_SWIN}
"""By the names that presets give them."""
