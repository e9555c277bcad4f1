"""How adapters weigh the places of pictures and sounds, as maps to lay over them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from avfewshot.adapters.dgsct import DGSCT
from avfewshot.models.audio_visual import AudioVisualModel


@contextlib.contextmanager
def weighing(towers: AudioVisualModel) -> Iterator[dict[str, Tensor]]:
    """Keep, of a forward pass inside, how the last pair of layers weighs the places of each modality.

    Of DG-SCT that is the spatial attention (Eq. 4); of other adapters, how long what they add to a token is beside the
    token. Filled with maps ``[B * T, rows, columns]`` of ``visual`` and ``audio``, float32 on the CPU.
    """
    maps: dict[str, Tensor] = {}
    adapters: Any = towers.adapters
    last = len(towers.layers) - 1
    blocks = {"visual": towers.layers[last].visual_block, "audio": towers.layers[last].audio_block}
    with contextlib.ExitStack() as stack:
        records = stack.enter_context(adapters.recording()) if isinstance(adapters, DGSCT) else []

        def note(_: Any, inputs: tuple[Any, ...], added: tuple[Tensor | None, Tensor | None]) -> None:
            layer, half, *tokens = inputs[:4]
            if (layer, half) != (last, "feed"):
                return
            spatial = {record.direction: record.spatial for record in records[-2:] if record.layer == last}
            for modality, direction, own, extra in zip(blocks, ("a2v", "v2a"), tokens, added, strict=True):
                weights = spatial.get(direction)
                if weights is None and extra is not None:
                    weights = extra.float().norm(dim=-1) / own.float().norm(dim=-1).clamp(min=1e-6)
                if weights is not None:
                    tower = getattr(towers, f"{modality}_tower")
                    maps[modality] = tower.place_map(blocks[modality], weights.float().cpu())

        stack.callback(adapters.register_forward_hook(note).remove)
        yield maps
