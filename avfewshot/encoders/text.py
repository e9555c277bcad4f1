"""Text branches: from wordings to unit vectors in the space of the images, or of the sounds; and those of labels."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfewshot.cache import DiskCache
from avfewshot.encoders.tokenizer import RobertaTokenizer, TextTokenizer
from avfewshot.encoders.weights.locate import combined
from avfewshot.errors import UsageError, some
from avfewshot.io import cache_dir

_REMEMBERED = 32  # label sets kept in memory by each text branch
_MAX_BYTES = 1_000_000_000


class TextBranch(nn.Module):
    """A frozen text encoder with its tokenizer.

    It always works in float32, whatever the precision of the towers: texts are encoded once and remembered, and the
    same labels have the same features everywhere. `output_dim` is the width of the vectors; `fingerprint` a hash of the
    weights and of all else that determines them, which keys the caches of label features.
    """

    def __init__(self, tokenizer: TextTokenizer, output_dim: int, fingerprint: str, **parts: nn.Module) -> None:
        super().__init__()
        self.tokenizer, self.output_dim, self.fingerprint = tokenizer, output_dim, fingerprint
        for name, part in parts.items():  # the attributes of a subclass
            self.add_module(name, part)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> TextBranch:
        """Stay in evaluation mode: with dropout the features of a label would differ at every call."""
        return super().train(False)

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Unit vectors of texts, float32 [N, D], on the device of the weights, without gradient; long texts are cut."""
        device = next(self.parameters()).device
        # Texts of like length go together, so that little of the work is padding.
        order = sorted(range(len(texts)), key=lambda index: (len(texts[index]), index))
        features = torch.empty(len(texts), self.output_dim, device=device)
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for start in range(0, len(order), batch_size):
                chunk = order[start : start + batch_size]
                tokens = self.tokenizer([texts[index] for index in chunk]).to(device)
                features[chunk] = F.normalize(self.project(tokens).float(), dim=-1)
        return features

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Vectors of the token rows `tokens` [N, L], not normalised: [N, D]."""

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """Words of `texts` that the model never met in training, where that is known (``tiny``); else empty."""
        return self.tokenizer.unknown_words(texts)


class OpenClipTextBranch(TextBranch):
    """open_clip's ``TextTransformer`` or ``HFTextEncoder``, and what follows it (CLAP's ``text_projection``)."""

    tower: Any
    projection: Any

    def __init__(
        self, tower: Any, tokenizer: TextTokenizer, output_dim: int, fingerprint: str, projection: Any = None
    ) -> None:
        projection = nn.Identity() if projection is None else projection
        super().__init__(tokenizer, output_dim, fingerprint, tower=tower, projection=projection)
        # With a causal mask, and the vector read at the end-of-text token (as in OpenAI's CLIP), padding behind that
        # changes nothing and need not be computed.
        self._trims = (
            getattr(tower, "pool_type", None) == "argmax"
            and getattr(tower, "attn_mask", None) is not None
            and getattr(tower, "cls_emb", None) is None
            and not getattr(tower, "use_pad_mask", False)
        )

    def project(self, tokens: Tensor) -> Tensor:
        """See :meth:`TextBranch.project`."""
        mask = {}
        if self._trims and len(tokens):
            length = int((tokens != 0).sum(1).max())
            tokens = tokens[:, :length]
            # The tower adds its mask whole, so for shorter rows it is given a smaller one.
            mask = {"attn_mask": self.tower.attn_mask[:length, :length]}
        out = torch.func.functional_call(self.tower, mask, (tokens,))
        return self.projection(out[0] if isinstance(out, tuple) else out)


class RobertaTextBranch(TextBranch):
    """CLAP's text side: RoBERTa's pooled output, then a Linear-ReLU-Linear projection (Wu et al., ICASSP 2023)."""

    model: Any
    projection: Any

    def project(self, tokens: Tensor) -> Tensor:
        """See :meth:`TextBranch.project`."""
        mask = (tokens != RobertaTokenizer.PAD).long()
        return self.projection(self.model(input_ids=tokens, attention_mask=mask).pooler_output)


class NoTexts(TextBranch):
    """Stands for a text branch where a backbone has towers alone; `refusal` makes the error for who asks it."""

    def __init__(self, refusal: Callable[[], UsageError]) -> None:
        nn.Module.__init__(self)
        self.refusal, self.output_dim, self.fingerprint = refusal, 0, ""

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Raise the error."""
        raise self.refusal()

    def project(self, tokens: Tensor) -> Tensor:
        """Likewise."""
        raise self.refusal()

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """It knows none and misses none."""
        return []


def label_features(branch: TextBranch, wordings: Sequence[str], templates: Sequence[str]) -> Tensor:
    """Features of labels: the unit vectors of all wordings in a label's templates, averaged and scaled to length one.

    The averaging of templates is that of Radford et al. (ICML 2021, section 3.1.4). Results are remembered in the
    process and on disk, keyed by the weights, the templates and the wordings; a damaged file is computed again. Gives
    float32 ``[K, D]`` on the device of the branch, without gradient; without any template a ValueError is raised.
    """
    if not templates:
        raise ValueError("at least one template is needed")
    device = next(branch.parameters()).device
    key = combined(branch.fingerprint, json.dumps([list(templates), list(wordings)]))
    remembered: dict[str, Tensor] = branch.__dict__.setdefault("_label_features", {})
    if key in remembered:
        remembered[key] = remembered.pop(key)  # most recently used last
        return remembered[key].to(device, copy=True)
    shape = (len(wordings), branch.output_dim)
    disk = DiskCache(cache_dir("labels"), ".safetensors", _MAX_BYTES)
    features = _read(disk, key, shape)
    if features is None:
        # str.replace, not str.format: a wording may hold braces of its own.
        texts = [template.replace("{}", wording) for wording in wordings for template in templates]
        features = branch.encode(texts).reshape(len(wordings), len(templates), branch.output_dim)
        features = F.normalize(features.mean(1), dim=-1).cpu()
        disk.put(key, _bytes(key, features))
    remembered[key] = features
    while len(remembered) > _REMEMBERED:
        remembered.pop(next(iter(remembered)))
    return features.to(device, copy=True)  # a caller may write into its own


def lost_texts(
    branch: TextBranch, names: Sequence[str], wordings: Sequence[str], templates: Sequence[str]
) -> list[str]:
    """Warnings about labels (`names`) whose texts do not reach the encoder whole, or do not differ there.

    A sentence about labels that are cut at the context of the tokenizer, and one for each group of labels that have the
    same tokens in every template; empty when nothing is lost.
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
