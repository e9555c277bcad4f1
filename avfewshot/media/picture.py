"""Turns decoded pictures the right way up and brings them to the size that the towers take."""

from __future__ import annotations

import numpy as np
from PIL import Image

_UPRIGHT = (1, 0, 0, 1)

# (a, b, c, d) of a display matrix, by signs -> (swap rows and columns, then top and bottom, then left and right)
_TURNS = {
    (1, 0, 0, 1): (False, False, False),
    (-1, 0, 0, 1): (False, False, True),
    (1, 0, 0, -1): (False, True, False),
    (-1, 0, 0, -1): (False, True, True),
    (0, 1, 1, 0): (True, False, False),
    (0, 1, -1, 0): (True, False, True),
    (0, -1, 1, 0): (True, True, False),
    (0, -1, -1, 0): (True, True, True),
}


def orientation(matrix: bytes | None) -> tuple[int, int, int, int]:
    """The turn that a display matrix asks for.

    Args:
        matrix: Nine native 32-bit integers as FFmpeg gives them (3 x 3, row-major), or None.

    Returns:
        Signs (-1, 0, 1) of its upper left 2 x 2 part (a, b, c, d), which maps a stored point (x, y) to
        (a x + c y, b x + d y) on the screen, y downwards. (1, 0, 0, 1) is upright; a matrix that is no multiple of a
        quarter turn counts as upright.
    """
    if matrix is None or len(matrix) != 36:
        return _UPRIGHT
    values = np.frombuffer(matrix, np.int32)[[0, 1, 3, 4]].astype(np.int64)
    largest = np.abs(values).max()
    if largest == 0:
        return _UPRIGHT
    a, b, c, d = (int(v) for v in np.sign(values) * (np.abs(values) * 2 > largest))
    return (a, b, c, d) if (a, b, c, d) in _TURNS else _UPRIGHT


def turn(image: np.ndarray, how: tuple[int, int, int, int]) -> np.ndarray:
    """Turn and mirror a picture.

    Args:
        image: ``[H, W, 3]``.
        how: What :func:`orientation` returned.

    Returns:
        ``[H, W, 3]`` or ``[W, H, 3]``, contiguous.
    """
    swap, top_bottom, left_right = _TURNS[how]
    if swap:
        image = image.transpose(1, 0, 2)
    if top_bottom:
        image = image[::-1]
    if left_right:
        image = image[:, ::-1]
    return np.ascontiguousarray(image)


def fit(image: np.ndarray, size: int | None) -> np.ndarray:
    """Bring a picture to the size of a tower's input as CLIP's evaluation transform does.

    Equals torchvision's ``Resize(size, BICUBIC)`` and ``CenterCrop(size)`` on a PIL image, to the bit: the shorter
    side is resized to `size` (bicubic, antialiased), then the middle is cut out.

    Args:
        image: uint8 ``[H, W, 3]``, RGB.
        size: Side of the square, or None to keep the picture as it is.

    Returns:
        uint8 ``[3, size, size]`` or ``[3, H, W]``.
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
