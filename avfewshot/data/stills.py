"""Pictures, masks and sound of clips whose seconds are files of their own, as those of AVSBench.

What cannot be read is a :class:`~avfewshot.errors.MediaError`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from avfewshot.data.avsbench import SECONDS, MaskedClip
from avfewshot.errors import MediaError
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.media.reader import ClipReader

if TYPE_CHECKING:
    import torch


def read_picture(path: str | Path) -> Image.Image:
    """Decode a picture; a :class:`MediaError` where it cannot be read."""
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise MediaError(path, f"cannot be read as a picture: {error}") from error


def read_mask(path: str | Path, size: int) -> np.ndarray:
    """Read a mask of two values, bool ``[size, size]``: 1-bit, grey or palette, foreground being what is light.

    A :class:`MediaError` where it cannot be read or has more values.
    """
    picture = read_picture(path)
    values = np.asarray(picture if picture.mode in ("1", "L", "P") else picture.convert("L"))
    palette = picture.getpalette("RGB") if picture.mode == "P" else None
    kinds = np.unique(values)
    if len(kinds) > 2:
        raise MediaError(path, f"is no mask: it has {len(kinds)} values instead of two")
    # Indices of a palette say nothing by themselves; without a light colour in it, all but index 0 is foreground.
    light = {int(k): max(palette[3 * int(k) : 3 * int(k) + 3], default=0) for k in kinds} if palette else {}
    if any(level > 127 for level in light.values()):
        values = np.isin(values, [index for index, level in light.items() if level > 127])
    mask = Image.fromarray((values > 0).astype(np.uint8) * 255).resize((size, size), Image.Resampling.NEAREST)
    return np.asarray(mask) > 0


@functools.lru_cache(maxsize=1024)
def read_masks(clip: MaskedClip, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Masks of a clip, bool ``[5, size, size]``, and which of its seconds have one, bool ``[5]``."""
    import torch

    masks = [np.zeros((size, size), bool) if path is None else read_mask(path, size) for path in clip.masks]
    return torch.from_numpy(np.stack(masks)), torch.tensor([path is not None for path in clip.masks])


def read_stills(frames: Sequence[Path], audio: Path | None, size: int) -> Clip:
    """Read the pictures and the sound of a clip.

    Pictures are brought to ``size x size`` whole, as their masks are, with nothing cut off.
    """
    import torch

    pictures = [read_picture(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC) for path in frames]
    waveform = None
    if audio is not None:
        with ClipReader(audio, modality="audio") as reader:
            sound = reader.read(0, min(SECONDS, reader.info.num_segments)).waveform
        assert sound is not None
        waveform = torch.zeros(SECONDS * SAMPLE_RATE)
        waveform[: len(sound)] = sound
    stills = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).movedim(-1, 1).contiguous()
    return Clip(Path(audio or frames[0]), float(SECONDS), 0, stills, waveform)
