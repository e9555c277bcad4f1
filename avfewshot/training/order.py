"""The order of clips in each epoch: a function of seed and epoch alone, so there is nothing to store for a resume."""

from __future__ import annotations

import hashlib

import numpy as np


def epoch_order(count: int, *, seed: int, epoch: int) -> list[int]:
    """A permutation of ``range(count)``.

    Args:
        count: Number of clips.
        seed: Seed of the training.
        epoch: From 0.

    Returns:
        The order.
    """
    return _generator("order", seed, epoch).permutation(count).tolist()


def window_start(length: int, window: int, *, seed: int, epoch: int, key: str) -> int:
    """Where the part of a long clip begins that is trained on in an epoch.

    Args:
        length: Seconds of the clip.
        window: Seconds that are trained on.
        seed: Seed of the training.
        epoch: From 0.
        key: Name of the clip.

    Returns:
        The first second; 0 for a clip that is not longer than the window.
    """
    return 0 if length <= window else int(_generator("window", seed, epoch, key).integers(0, length - window + 1))


def _generator(*parts: object) -> np.random.Generator:
    text = "\0".join(map(str, parts)).encode("utf-8", "surrogateescape")
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text).digest()[:16], "big"))
