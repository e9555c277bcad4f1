"""Turns decoded pictures the right way up and brings them to the size that the towers take."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image


def upright(image: np.ndarray, matrix: Any) -> np.ndarray:
    """Turn and mirror a picture ``[H, W, 3]`` as its display matrix asks for; the result is contiguous.

    The matrix is nine native 32-bit integers as FFmpeg gives them beside a frame (3 x 3, row-major). Its upper left
    2 x 2 part (a, b, c, d) maps a stored point (x, y) to (a x + c y, b x + d y) on the screen, y downwards; what is no
    multiple of a quarter turn counts as upright.
    """
    content = b"" if matrix is None else bytes(matrix)
    if len(content) == 36:
        values = np.frombuffer(content, np.int32)[[0, 1, 3, 4]].astype(np.int64)
        a, b, c, d = (np.sign(values) * (np.abs(values) * 2 > np.abs(values).max())).tolist()
        swapped = (abs(a), abs(b), abs(c), abs(d)) == (0, 1, 1, 0)
        if swapped or (abs(a), abs(b), abs(c), abs(d)) == (1, 0, 0, 1):
            image = image.transpose(1, 0, 2) if swapped else image
            image = image[::-1] if b + d < 0 else image
            image = image[:, ::-1] if a + c < 0 else image
    return np.ascontiguousarray(image)


def fit(image: np.ndarray, size: int | None) -> np.ndarray:
    """Bring a picture, uint8 ``[H, W, 3]``, to ``[3, size, size]`` as CLIP's evaluation transform does.

    Equals torchvision's ``Resize(size, BICUBIC)`` and ``CenterCrop(size)`` on a PIL image, to the bit: the shorter
    side is resized to `size` (bicubic, antialiased), then the middle is cut out. Without a size it stays as it is.
    """
    if size is not None:
        height, width = image.shape[:2]
        short, long = min(width, height), max(width, height)
        resized = int(size * long / short)
        new_width, new_height = (size, resized) if width <= height else (resized, size)
        if (new_width, new_height) != (width, height):
            image = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BICUBIC))
        top, left = round((new_height - size) / 2), round((new_width - size) / 2)
        image = image[top : top + size, left : left + size]
    return np.ascontiguousarray(image.transpose(2, 0, 1))
