"""How many processes train together, and which of them this one is."""

from __future__ import annotations

import torch.distributed as dist


def world_size(group: dist.ProcessGroup | None = None) -> int:
    """Number of ranks that train together; 1 where torch.distributed is not in use.

    Args:
        group: Some of them; None: all.
    """
    return dist.get_world_size(group) if dist.is_available() and dist.is_initialized() else 1


def rank(group: dist.ProcessGroup | None = None) -> int:
    """Number of this rank, from 0, within `group`; 0 where torch.distributed is not in use.

    Args:
        group: Some of the ranks; None: all.
    """
    return dist.get_rank(group) if dist.is_available() and dist.is_initialized() else 0
