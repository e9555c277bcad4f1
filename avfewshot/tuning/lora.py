"""Low-rank updates of attention weights (Hu et al., ICLR 2022) on copies of frozen encoders."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class LowRank(nn.Module):
    """``W + (alpha / r) B A``, one pair of factors for each of the stacked maps in a weight ``[n * C, C]``.

    Dropout drops input channels of the update, the same ones for a whole batch: the update is folded into the weight,
    so that the encoder's own attention kernels stay in use. (CLIP-LoRA drops them token by token.)

    Args:
        stacked: n, the maps stacked in the weight (query, key and value: 3).
        alpha: Scale of the update, divided by the rank.
    """

    def __init__(self, weight: Tensor, *, stacked: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        rows, columns = weight.shape
        self.scale, self.dropout = alpha / rank, dropout
        self.learning = False  # encoders are kept in evaluation mode, whatever is called on them
        self.down = nn.Parameter(torch.empty(stacked, rank, columns))
        self.up = nn.Parameter(torch.zeros(stacked, rows // stacked, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

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
