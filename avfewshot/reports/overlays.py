"""Heat maps as half-transparent pictures to lay over a frame, and which pictures a page may hold."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence

import numpy as np
from PIL import Image

# Matplotlib's "inferno" (CC0) at nine places: its lightness grows evenly, so it reads without colours as well.
_RAMP = np.array([
    (0, 0, 4), (31, 12, 72), (85, 15, 109), (136, 34, 106), (186, 54, 85), (227, 89, 51), (249, 140, 10),
    (249, 201, 50), (252, 255, 164),
], dtype=np.float64)  # fmt: skip
_FAINTEST, _STRONGEST = 0.35, 0.75
_PICTURE = re.compile(r"data:image/(?:png|jpeg|webp);base64,[A-Za-z0-9+/]+={0,2}")


def heat_source(values: Sequence[Sequence[float]]) -> tuple[str, tuple[float, float]] | None:
    """A map ``[h][w]`` as ``data:image/png;base64,...`` with transparency, and its smallest and largest value.

    The faintest and the strongest colour stand for these two; numbers that are not finite count as the smallest. None
    for a map without a finite number.
    """
    heights = np.array([list(row) for row in values], dtype=np.float64, ndmin=2)
    finite = np.isfinite(heights)
    if not finite.any():
        return None
    low, high = float(heights[finite].min()), float(heights[finite].max())
    parts = np.where(finite, heights, low) - low
    if high > low:
        parts /= high - low
    place = parts * (len(_RAMP) - 1)
    whole = np.minimum(place.astype(int), len(_RAMP) - 2)
    rest = (place - whole)[..., None]
    pixels = np.empty((*parts.shape, 4))
    pixels[..., :3] = _RAMP[whole] * (1 - rest) + _RAMP[whole + 1] * rest
    pixels[..., 3] = 255 * (_FAINTEST + (_STRONGEST - _FAINTEST) * parts)
    buffer = io.BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8), "RGBA").save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii"), (low, high)


def is_picture(address: str) -> bool:
    """Whether an address holds a picture itself: a page that stands alone shows no other."""
    return _PICTURE.fullmatch(address) is not None
