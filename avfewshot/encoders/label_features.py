"""One unit vector a label: the mean over prompt templates on the sphere, computed once and remembered."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from avfewshot.encoders.text import TextBranch
from avfewshot.encoders.weights.identity import combined
from avfewshot.io import atomic_path, cache_dir

_REMEMBERED = 32  # label sets kept in memory by each text branch
_KEY = "avfewshot"


def label_features(
    branch: TextBranch, wordings: Sequence[str], templates: Sequence[str], *, cache: bool = True
) -> Tensor:
    """Features of labels: the unit vectors of all wordings in a label's templates, averaged and scaled to length one.

    The averaging of templates is that of Radford et al. (ICML 2021, section 3.1.4). Results are remembered in the
    process and on disk, under the cache folder, keyed by the weights, the templates and the wordings. A damaged cache
    file is computed again.

    Args:
        branch: Encodes the texts.
        wordings: What stands for each of K labels in the templates.
        templates: Texts with one ``{}`` each; at least one.
        cache: Whether to remember.

    Returns:
        Unit vectors, float32 [K, D], on the device of the branch, without gradient.

    Raises:
        ValueError: There is no template.
    """
    if not templates:
        raise ValueError("at least one template is needed")
    device = next(branch.parameters()).device
    key = _key(branch, wordings, templates)
    remembered: dict[str, Tensor] = branch.__dict__.setdefault("_label_features", {})
    if cache and key in remembered:
        remembered[key] = remembered.pop(key)  # most recently used last
        return remembered[key].to(device, copy=True)
    shape = (len(wordings), branch.output_dim)
    path = cache_dir("labels", f"{key}.safetensors")
    features = _read(path, key, shape) if cache else None
    if features is None:
        features = _compute(branch, wordings, templates).cpu()
        if cache:
            _write(path, key, features)
    if cache:
        remembered[key] = features
        while len(remembered) > _REMEMBERED:
            remembered.pop(next(iter(remembered)))
    return features.to(device, copy=True)  # a caller may write into its own


def _compute(branch: TextBranch, wordings: Sequence[str], templates: Sequence[str]) -> Tensor:
    # str.replace, not str.format: a wording may hold braces of its own.
    texts = [template.replace("{}", wording) for wording in wordings for template in templates]
    features = branch.encode(texts).reshape(len(wordings), len(templates), branch.output_dim)
    return F.normalize(features.mean(1), dim=-1)


def _key(branch: TextBranch, wordings: Sequence[str], templates: Sequence[str]) -> str:
    return combined(branch.fingerprint, json.dumps([list(templates), list(wordings)]))


def _read(path: Path, key: str, shape: tuple[int, int]) -> Tensor | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as stored:
            metadata = stored.metadata() or {}
            features = stored.get_tensor("features")
    except (OSError, SafetensorError, ValueError):
        return None  # absent or damaged
    whole = metadata.get(_KEY) == key and features.shape == shape and features.dtype == torch.float32
    if not whole or not torch.allclose(features.norm(dim=-1), torch.ones(shape[0]), atol=1e-3):
        return None
    return features


def _write(path: Path, key: str, features: Tensor) -> None:
    from safetensors.torch import save_file

    # A cache that cannot be written costs time, not the result.
    with contextlib.suppress(OSError), atomic_path(path) as temporary:
        save_file({"features": features.contiguous()}, temporary, metadata={_KEY: key})
