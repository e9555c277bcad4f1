"""A frozen text branch that reads learned context vectors before the label: the text side of prompt tuning."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avfewshot.encoders.text import OpenClipTextBranch, RobertaTextBranch, TextBranch
from avfewshot.encoders.tokenizer import RobertaTokenizer
from avfewshot.errors import UsageError


class PromptedText(nn.Module):
    """Unit vectors of K wordings behind M context vectors: ``[start] c_1 .. c_M wording . [end]`` (CoOp, Eq. 2).

    The branch is frozen and is not part of the state; gradients flow through it to the context.

    Args:
        branch: open_clip's or RoBERTa's text branch.
        wordings: K texts.
        context: M; less where the longest wording leaves no room for so many (see the attribute `context`).

    Raises:
        UsageError: The branch is of another kind.
    """

    branch: Any
    ends: Tensor
    embedded: Tensor

    def __init__(self, branch: TextBranch, wordings: Sequence[str], context: int) -> None:
        super().__init__()
        self.__dict__["branch"] = branch  # frozen: neither its parameters nor its buffers belong to what is learned
        tokens = branch.tokenizer([f"{wording}." for wording in wordings])
        self.register_buffer("tokens", tokens, persistent=False)
        if isinstance(branch, OpenClipTextBranch) and getattr(branch.tower, "pool_type", None) == "argmax":
            ends = tokens.argmax(-1)
            limit = len(branch.tower.positional_embedding)
        elif isinstance(branch, RobertaTextBranch):
            ends = (tokens != RobertaTokenizer.PAD).sum(-1) - 1
            limit = branch.model.config.max_position_embeddings - 2
        else:
            raise UsageError("Prompts can be tuned for text branches of CLIP's kind and for RoBERTa.")
        self.context = min(context, limit - 1 - int(ends.max()))
        self.register_buffer("ends", ends + self.context, persistent=False)
        self.length = int(self.ends.max()) + 1
        with torch.no_grad():
            self.register_buffer("embedded", self._embedding()(tokens).float(), persistent=False)

    @property
    def width(self) -> int:
        """Width C of a context vector."""
        return self.embedded.shape[-1]

    def embedding_of(self, text: str) -> Tensor:
        """Token embeddings ``[M, C]`` of the first M words of a text, to begin with."""
        tokens = self.branch.tokenizer([text]).to(self.embedded.device)
        return self._embedding()(tokens)[0, 1 : 1 + self.context].detach().float().clone()

    def forward(self, context: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Encode all wordings.

        Args:
            context: ``[M, C]``, or ``[K, M, C]`` for a context of its own for each wording.
            deep: Vectors ``[M, C]`` that take the context's places again before layer 1, 2, ... (MaPLe, Eq. 4).

        Returns:
            Unit vectors float32 ``[K, D]``.
        """
        rows = len(self.embedded)
        context = context.expand(rows, -1, -1)
        inputs = torch.cat((self.embedded[:, :1], context, self.embedded[:, 1:]), dim=1)[:, : self.length]
        encode = self._roberta if isinstance(self.branch, RobertaTextBranch) else self._open_clip
        with torch.autocast(inputs.device.type, enabled=False):
            return F.normalize(encode(inputs, deep).float(), dim=-1)

    def _embedding(self) -> Any:
        if isinstance(self.branch, RobertaTextBranch):
            return self.branch.model.embeddings.word_embeddings
        return self.branch.tower.token_embedding

    def _replaced(self, tokens: Tensor, prompts: Tensor) -> Tensor:
        prompts = prompts.expand(len(tokens), -1, -1).to(tokens.dtype)
        return torch.cat((tokens[:, :1], prompts, tokens[:, 1 + self.context :]), dim=1)

    def _open_clip(self, inputs: Tensor, deep: Sequence[Tensor]) -> Tensor:
        tower = self.branch.tower
        tokens = inputs + tower.positional_embedding[: self.length]
        mask = tower.attn_mask[: self.length, : self.length]
        for index, block in enumerate(tower.transformer.resblocks):
            if 0 < index <= len(deep):
                tokens = self._replaced(tokens, deep[index - 1])
            tokens = block(tokens, attn_mask=mask)
        pooled = tower.ln_final(tokens)[torch.arange(len(tokens)), self.ends]
        projection = tower.text_projection
        if projection is not None:
            pooled = projection(pooled) if isinstance(projection, nn.Module) else pooled @ projection
        return self.branch.projection(pooled)

    def _roberta(self, inputs: Tensor, deep: Sequence[Tensor]) -> Tensor:
        model = self.branch.model
        mask = torch.arange(self.length, device=inputs.device) <= self.ends[:, None]
        tokens = model.embeddings(inputs_embeds=inputs)
        bias = torch.zeros_like(mask, dtype=tokens.dtype).masked_fill(~mask, torch.finfo(tokens.dtype).min)
        for index, layer in enumerate(model.encoder.layer):
            if 0 < index <= len(deep):
                tokens = self._replaced(tokens, deep[index - 1])
            tokens = layer(tokens, bias[:, None, None, :])
            tokens = tokens[0] if isinstance(tokens, tuple) else tokens
        return self.branch.projection(model.pooler(tokens))
