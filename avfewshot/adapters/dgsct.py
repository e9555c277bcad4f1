"""DG-SCT: dual-guided spatial-channel-temporal attention (Duan et al., NeurIPS 2023, arXiv 2311.05152, Eq. 1-7).

Each modality guides the other: which channels matter (Eq. 3), which places or time-frequency patches matter (Eq. 4),
and in the last layer which segments matter (Eq. 5). The equations are followed exactly; how the products are arranged
is told in :mod:`avfewshot.adapters.guidance`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from avfewshot.adapters.base import HALVES, CrossModalAdapter, Half, PairedLayer
from avfewshot.adapters.guidance import Guidance, Maps
from avfewshot.adapters.settings import GuidanceSettings

DIRECTIONS = ("a2v", "v2a")


@dataclass(frozen=True)
class RecordedMaps:
    """Where one direction looked in one half of a layer.

    Attributes:
        layer: Index of the paired layer.
        half: ``"attend"`` or ``"feed"``.
        direction: ``"a2v"``: sound guides sight; ``"v2a"``: sight guides sound.
        channel: Channel attention ``[N, C]`` of the guided tokens, or None where it is off.
        spatial: Attention over the guided tokens ``[N, L]``, or None.
        temporal: Gate over segments ``[N, 1]``, or None where it is off and in all layers but the last.
    """

    layer: int
    half: Half
    direction: str
    channel: Tensor | None
    spatial: Tensor | None
    temporal: Tensor | None


class DGSCT(CrossModalAdapter):
    """Guidance in both directions, in both halves of every paired layer.

    Args:
        layers: The paired layers.
        settings: Factors, switches and widths.
    """

    Settings = GuidanceSettings

    def __init__(self, layers: Sequence[PairedLayer], settings: GuidanceSettings | None = None) -> None:
        super().__init__()
        self._settings = settings or GuidanceSettings()
        self._records: list[RecordedMaps] | None = None
        directions = [name for name in DIRECTIONS if getattr(self._settings, name)]
        self.layers = nn.ModuleList()
        for index, layer in enumerate(layers):
            shapes = {
                "a2v": (layer.audio_shape, layer.visual_shape),
                "v2a": (layer.visual_shape, layer.audio_shape),
            }
            temporal = self._settings.temporal and index == len(layers) - 1
            self.layers.append(
                nn.ModuleDict(
                    {
                        half: nn.ModuleDict(
                            {name: Guidance(*shapes[name], self._settings, temporal=temporal) for name in directions}
                        )
                        for half in HALVES
                    }
                )
            )

    def gates(self) -> list[nn.Parameter]:
        """See :meth:`CrossModalAdapter.gates`: the factors of channels, or the last maps of the bottlenecks."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if name.rpartition(".")[2] == "scale" or ".up." in name
        ]

    def forward(
        self, layer: int, half: Half, visual: Tensor, audio: Tensor, segments: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """See :meth:`CrossModalAdapter.forward`."""
        tokens = {"a2v": visual, "v2a": audio}  # what each direction guides
        others = {"a2v": "v2a", "v2a": "a2v"}
        pair: Any = self.layers[layer]
        guides = pair[half]
        maps = {name: guide.maps(tokens[others[name]], tokens[name]) for name, guide in guides.items()}
        updates: dict[str, Tensor] = {}
        for name, guide in guides.items():
            gate = None
            if guide.temporal:
                # Eq. 5 listens to the guiding tokens after they have been attended to themselves.
                other = others[name]
                source = tokens[other]
                means = guides[other].attended_mean(source, maps[other]) if other in guides else source.mean(1)
                gate = guide.gate(means, segments)
            updates[name] = guide(tokens[name], maps[name], gate)
            if self._records is not None:
                self._records.append(_kept(layer, half, name, maps[name], gate))
        return updates.get("a2v"), updates.get("v2a")

    @contextlib.contextmanager
    def recording(self) -> Iterator[list[RecordedMaps]]:
        """Keep the attention maps of all calls inside the block, on the CPU in float32.

        Yields:
            A list that fills in the order of the calls.
        """
        previous = self._records
        # A block inside of another one fills the same list.
        records: list[RecordedMaps] = [] if previous is None else previous
        self._records = records
        try:
            yield records
        finally:
            self._records = previous


def _kept(layer: int, half: Half, direction: str, maps: Maps, gate: Tensor | None) -> RecordedMaps:
    kept = [None if values is None else values.detach().float().cpu() for values in (*maps, gate)]
    return RecordedMaps(layer, half, direction, *kept)
