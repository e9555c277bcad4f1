"""One unit vector a label: the mean over prompt templates on the sphere, computed once and remembered."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from avfewshot.cache import DiskCache
from avfewshot.encoders.text import TextBranch
from avfewshot.encoders.weights.identity import combined
from avfewshot.errors import some
from avfewshot.io import cache_dir

_REMEMBERED = 32  # label sets kept in memory by each text branch
_MAX_BYTES = 1_000_000_000


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
    disk = DiskCache(cache_dir("labels"), ".safetensors", _MAX_BYTES)
    features = _read(disk, key, shape) if cache else None
    if features is None:
        features = _compute(branch, wordings, templates).cpu()
        if cache:
            disk.put(key, _bytes(key, features))
    if cache:
        remembered[key] = features
        while len(remembered) > _REMEMBERED:
            remembered.pop(next(iter(remembered)))
    return features.to(device, copy=True)  # a caller may write into its own


def lost_texts(
    branch: TextBranch, names: Sequence[str], wordings: Sequence[str], templates: Sequence[str]
) -> list[str]:
    """Warnings about labels whose texts do not reach the encoder whole, or do not differ there.

    Args:
        branch: Its tokenizer cuts texts at its context (77 tokens for CLIP and CLAP).
        names: The labels, for the messages.
        wordings: What stands for each of them in the templates.
        templates: Texts with one ``{}`` each.

    Returns:
        A sentence about labels that are cut and one for each group of labels that have the same tokens in every
        template; empty when nothing is lost.
    """

    def rows(template: str, chosen: Sequence[int]) -> dict[tuple[int, ...], list[int]]:
        texts = [template.replace("{}", wordings[index]) for index in chosen]
        groups: dict[tuple[int, ...], list[int]] = {}
        for index, row in zip(chosen, branch.tokenizer(texts).tolist() if texts else [], strict=True):
            groups.setdefault(tuple(row), []).append(index)
        return groups

    longest = max(templates, key=len)
    cut = [
        name
        for name, wording in zip(names, wordings, strict=True)
        if branch.tokenizer.is_cut(longest.replace("{}", wording))
    ]
    warnings = []
    if cut:
        warnings.append(f"Too long for the text encoder, the end is not read: {_shortened(cut)}.")
    groups = [group for group in rows(longest, range(len(names))).values() if len(group) > 1]
    for template in templates:
        groups = [part for group in groups for part in rows(template, group).values() if len(part) > 1]
    for group in groups:
        same = [names[index] for index in group]
        warnings.append(f"The text encoder cannot tell these labels apart, they are the same text: {_shortened(same)}.")
    return warnings


def _shortened(names: Sequence[str]) -> str:
    return some([name if len(name) <= 60 else f"{name[:57]}..." for name in names])


def _compute(branch: TextBranch, wordings: Sequence[str], templates: Sequence[str]) -> Tensor:
    # str.replace, not str.format: a wording may hold braces of its own.
    texts = [template.replace("{}", wording) for wording in wordings for template in templates]
    features = branch.encode(texts).reshape(len(wordings), len(templates), branch.output_dim)
    return F.normalize(features.mean(1), dim=-1)


def _key(branch: TextBranch, wordings: Sequence[str], templates: Sequence[str]) -> str:
    return combined(branch.fingerprint, json.dumps([list(templates), list(wordings)]))


def _read(disk: DiskCache, key: str, shape: tuple[int, int]) -> Tensor | None:
    from safetensors.torch import load

    content = disk.get(key)
    if content is None:
        return None
    try:
        tensors = load(content)
        features = tensors["features"]
        if bytes(tensors["key"].tolist()).decode() != key or (features.shape, features.dtype) != (shape, torch.float32):
            return None
    except Exception:  # damaged, in whatever way
        return None
    # A bit that was flipped in the numbers shows in their length.
    return features if torch.allclose(features.norm(dim=-1), torch.ones(shape[0]), atol=1e-3) else None


def _bytes(key: str, features: Tensor) -> bytes:
    from safetensors.torch import save

    return save(
        {"features": features.contiguous(), "key": torch.frombuffer(bytearray(key.encode()), dtype=torch.uint8)}
    )
