"""Text branches: from wordings to unit vectors in the space of the images, or of the sounds."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avfewshot.encoders.kinds.base import no_texts
from avfewshot.encoders.tokenizer import RobertaTokenizer, TextTokenizer


class TextBranch(nn.Module):
    """A frozen text encoder with its tokenizer.

    It always works in float32, whatever the precision of the towers: texts are encoded once and remembered, and the
    same labels have the same features everywhere.

    Args:
        tokenizer: Turns texts into tokens.
        output_dim: Width of the vectors.
        fingerprint: Hash of the weights and of all else that determines the vectors.

    Attributes:
        tokenizer: As given.
        output_dim: As given.
        fingerprint: As given; keys the caches of label features.
    """

    def __init__(self, tokenizer: TextTokenizer, output_dim: int, fingerprint: str) -> None:
        super().__init__()
        self.tokenizer = tokenizer
        self.output_dim = output_dim
        self.fingerprint = fingerprint

    def train(self, mode: bool = True) -> TextBranch:
        """Stay in evaluation mode: with dropout the features of a label would differ at every call."""
        return super().train(False)

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Encode texts.

        Args:
            texts: Any number of texts; those longer than the context are cut.
            batch_size: Texts that go through the model at once.

        Returns:
            Unit vectors, float32 [N, D], on the device of the weights, without gradient.
        """
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
    """open_clip's text tower.

    Args:
        tower: open_clip's ``TextTransformer`` or ``HFTextEncoder``: int64 [N, L] to [N, D].
        tokenizer: The tokenizer of the tower.
        output_dim: Width of the vectors.
        fingerprint: See :class:`TextBranch`.
        projection: What follows the tower (CLAP's ``text_projection``); nothing by default.
    """

    def __init__(
        self,
        tower: nn.Module,
        tokenizer: TextTokenizer,
        output_dim: int,
        fingerprint: str,
        projection: nn.Module | None = None,
    ) -> None:
        super().__init__(tokenizer, output_dim, fingerprint)
        self.tower: Any = tower
        self.projection = projection if projection is not None else nn.Identity()
        self._trims = _ignores_what_follows(tower)
        self.eval().requires_grad_(False)

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
    """CLAP's text side: RoBERTa's pooled output, then a Linear-ReLU-Linear projection (Wu et al., ICASSP 2023).

    Args:
        model: transformers' ``RobertaModel`` with pooling layer.
        projection: CLAP's ``text_projection``.
        tokenizer: RoBERTa's tokenizer; 1 is the token that pads.
        output_dim: Width of the vectors.
        fingerprint: See :class:`TextBranch`.
    """

    def __init__(
        self, model: nn.Module, projection: nn.Module, tokenizer: TextTokenizer, output_dim: int, fingerprint: str
    ) -> None:
        super().__init__(tokenizer, output_dim, fingerprint)
        self.model: Any = model
        self.projection = projection
        self.eval().requires_grad_(False)

    def project(self, tokens: Tensor) -> Tensor:
        """See :meth:`TextBranch.project`."""
        mask = (tokens != RobertaTokenizer.PAD).long()
        return self.projection(self.model(input_ids=tokens, attention_mask=mask).pooler_output)


def _ignores_what_follows(tower: nn.Module) -> bool:
    """Whether padding behind the end-of-text token changes nothing, so that it need not be computed.

    It is so with a causal mask when the vector is read at the end-of-text token, as in OpenAI's CLIP.
    """
    return (
        getattr(tower, "pool_type", None) == "argmax"
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and not getattr(tower, "use_pad_mask", False)
    )


class NoTexts(TextBranch):
    """In the place of a text branch where a backbone has towers alone.

    Args:
        backbone: Its name.
    """

    def __init__(self, backbone: str) -> None:
        nn.Module.__init__(self)
        self.backbone, self.output_dim, self.fingerprint = backbone, 0, ""

    def encode(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        """Refuse.

        Raises:
            UsageError: Always.
        """
        raise no_texts(self.backbone)

    def project(self, tokens: Tensor) -> Tensor:
        """Refuse likewise."""
        return self.encode(())

    def unknown_words(self, texts: Iterable[str]) -> list[str]:
        """It knows none and misses none."""
        return []
