"""What the published methods put into frozen towers and text branches: learnt context, low-rank updates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from avfewshot.encoders.text import OpenClipTextBranch, RobertaTextBranch, TextBranch
from avfewshot.encoders.tokenizer import RobertaTokenizer
from avfewshot.errors import UsageError


class PromptedText(nn.Module):
    """Unit vectors of K wordings behind M context vectors: ``[start] c_1 .. c_M wording . [end]`` (CoOp, Eq. 2).

    The branch is frozen and is not part of the state; gradients flow through it to the context. M is `context`, or less
    where the longest wording leaves no room for so many (see the attribute `context`).

    Raises:
        UsageError: The branch is neither open_clip's nor RoBERTa's.
    """

    branch: Any
    embedding: Any
    ends: Tensor
    embedded: Tensor

    def __init__(self, branch: TextBranch, wordings: Sequence[str], context: int) -> None:
        super().__init__()
        self.__dict__["branch"] = branch  # frozen: neither its parameters nor its buffers belong to what is learned
        tokens = branch.tokenizer([f"{wording}." for wording in wordings])
        if isinstance(branch, OpenClipTextBranch) and getattr(branch.tower, "pool_type", None) == "argmax":
            ends = tokens.argmax(-1)
            limit = len(branch.tower.positional_embedding)
            self.__dict__["embedding"] = branch.tower.token_embedding
        elif isinstance(branch, RobertaTextBranch):
            ends = (tokens != RobertaTokenizer.PAD).sum(-1) - 1
            limit = branch.model.config.max_position_embeddings - 2
            self.__dict__["embedding"] = branch.model.embeddings.word_embeddings
        else:
            raise UsageError("Prompts can be tuned for text branches of CLIP's kind and for RoBERTa.")
        self.context = min(context, limit - 1 - int(ends.max()))
        self.register_buffer("ends", ends + self.context, persistent=False)
        self.length = int(self.ends.max()) + 1
        with torch.no_grad():
            tokens = tokens.to(self.embedding.weight.device)
            self.register_buffer("embedded", self.embedding(tokens).float(), persistent=False)

    @property
    def width(self) -> int:
        """Width C of a context vector."""
        return self.embedded.shape[-1]

    def embedding_of(self, text: str) -> Tensor:
        """Token embeddings ``[M, C]`` of the first M words of a text, to begin with."""
        tokens = self.branch.tokenizer([text]).to(self.embedded.device)
        return self.embedding(tokens)[0, 1 : 1 + self.context].detach().float().clone()

    def forward(self, context: Tensor, deep: Sequence[Tensor] = ()) -> Tensor:
        """Encode all wordings: unit vectors float32 ``[K, D]``.

        `context` is ``[M, C]``, or ``[K, M, C]`` for one of its own for each wording; `deep` are vectors ``[M, C]``
        that take its places again before layer 1, 2, ... (MaPLe, Eq. 4).
        """
        rows = len(self.embedded)
        context = context.expand(rows, -1, -1)
        inputs = torch.cat((self.embedded[:, :1], context, self.embedded[:, 1:]), dim=1)[:, : self.length]
        encode = self._roberta if isinstance(self.branch, RobertaTextBranch) else self._open_clip
        with torch.autocast(inputs.device.type, enabled=False):
            return F.normalize(encode(inputs, deep).float(), dim=-1)

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


class LowRank(nn.Module):
    """``W + (alpha / r) B A``, one pair of factors for each of the `stacked` maps in a weight ``[n * C, C]``.

    Dropout drops input channels of the update, the same ones for a whole batch: the update is folded into the weight,
    so that the encoder's own attention kernels stay in use. (CLIP-LoRA drops them token by token.)
    """

    def __init__(self, weight: Tensor, *, stacked: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale, self.dropout = alpha / rank, dropout
        self.learning = False  # encoders are kept in evaluation mode, whatever is called on them
        self.down = nn.Parameter(torch.empty(stacked, rank, columns))
        self.up = nn.Parameter(torch.zeros(stacked, rows // stacked, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))
        self.to(weight.device)  # drawn on the CPU: the same factors everywhere

    def forward(self, weight: Tensor) -> Tensor:
        """The updated weight."""
        down = self.down
        if self.learning and self.dropout:
            kept = torch.rand(down.shape[-1], device=down.device) >= self.dropout
            down = down * kept / (1 - self.dropout)
        return weight + self.scale * (self.up @ down).flatten(0, 1).to(weight.dtype)


def add_low_rank(module: nn.Module, *, rank: int, alpha: float, dropout: float) -> list[LowRank]:
    """Give every self-attention of an encoder (CLIP, HTS-AT, RoBERTa) low-rank updates of query, key and value.

    This is done in place; only their factors ask for a gradient.
    """
    found: list[LowRank] = []
    parts: list[Any] = list(module.modules())
    for part in parts:
        if isinstance(part, nn.MultiheadAttention) and part.in_proj_weight is not None:
            targets = [(part, "in_proj_weight", 3)]
        elif isinstance(getattr(part, "qkv", None), nn.Linear):
            targets = [(part.qkv, "weight", 3)]
        elif all(isinstance(getattr(part, name, None), nn.Linear) for name in ("query", "key", "value")):
            targets = [(linear, "weight", 1) for linear in (part.query, part.key, part.value)]
        else:
            continue
        owner: Any
        for owner, name, stacked in targets:
            update = LowRank(getattr(owner, name), stacked=stacked, rank=rank, alpha=alpha, dropout=dropout)
            parametrize.register_parametrization(owner, name, update)
            found.append(update)
    return found
