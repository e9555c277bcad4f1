"""Image encoders of open_clip that are run whole: timm's trunks (PE-Core, SigLIP 2) and ResNets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from avfewshot.encoders.tower import Encoder
from avfewshot.errors import UsageError


class PixelScaling(nn.Module):
    """uint8 pixels as an encoder was trained on them: ``(x / 255 - mean) / std``, one multiplication and one addition.

    Args:
        mean: Channel means (red, green, blue) for pixels in [0, 1].
        std: Channel deviations, likewise.
    """

    pixel_scale: Tensor
    pixel_shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        deviation = torch.tensor(std, dtype=torch.float64)
        shift = -torch.tensor(mean, dtype=torch.float64) / deviation
        self.register_buffer("pixel_scale", (1 / (255 * deviation)).float()[:, None, None], persistent=False)
        self.register_buffer("pixel_shift", shift.float()[:, None, None], persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """``[..., 3, S, S]`` in float32; floating-point images are normalised already and pass."""
        if images.dtype != torch.uint8:
            return images
        return torch.addcmul(self.pixel_shift, images.to(self.pixel_scale.dtype), self.pixel_scale)


def square_side(size: int | tuple[int, int]) -> int:
    """The side of the square images that an encoder reads.

    Raises:
        UsageError: They are not square.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise UsageError(f"The image encoder reads {width} x {height} images; only square ones can be used.")
    return height


class PlainTower(Encoder):
    """Runs an image encoder of open_clip as it stands, with its own pooling and projection.

    Args:
        visual: The vision tower of an open_clip model.
        mean: As for :class:`PixelScaling`.
        std: Likewise.
        output_dim: Width of its embedding.

    Attributes:
        visual: The wrapped module.
        image_size: Side ``S`` of the square images.
    """

    def __init__(self, visual: Any, *, mean: Sequence[float], std: Sequence[float], output_dim: int) -> None:
        super().__init__()
        self.visual = visual
        self.image_size = square_side(visual.image_size)
        self.output_dim = output_dim
        self.scaling = PixelScaling(mean, std)
        self._freeze()

    def forward(self, inputs: Tensor) -> Tensor:
        """Embed ``[N, 3, S, S]``, uint8 RGB or floating point and already normalised: ``[N, output_dim]``."""
        dtype = next(self.visual.parameters()).dtype
        return self.visual(self.scaling(inputs).to(dtype))
