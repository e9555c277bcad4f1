"""Settings of the DG-SCT adapters, checked all at once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from avfewshot.errors import UsageError, raise_faults

VARIANTS = ("paper", "compact")
"""Eq. 3 as printed, or with all its maps in the `hidden` space, as checkpoints were before there was a choice."""
OUTPUTS = ("gate", "bottleneck")
"""How guidance ends, zero at first: a factor for each channel, or a small two-layer MLP."""


@dataclass(frozen=True)
class GuidanceSettings:
    """Factors, switches and widths (Eq. 1-7 of arXiv 2311.05152; factors of its few-shot classification tasks).

    Attributes:
        alpha: Factor of the channel attention (Eq. 6).
        beta: Factor of the spatial attention (Eq. 6).
        gamma: Factor of the temporal gate (Eq. 7).
        channel: Whether there is channel attention (Eq. 3).
        spatial: Whether there is spatial attention (Eq. 4).
        temporal: Whether there is a temporal gate in the last layer (Eq. 5).
        a2v: Whether sound guides sight.
        v2a: Whether sight guides sound.
        variant: ``"paper"``: channel attention (Eq. 3) keeps the width of the guided modality and ends in a bottleneck
            of width `hidden`, and psi's convolution has a bias; ``"compact"``: channel attention in the `hidden` space.
        hidden: Width d of the joint space in which attention maps are computed.
        output: ``"gate"`` or ``"bottleneck"``.
        bottleneck: Width of the bottleneck, for that output.
    """

    alpha: float = 0.2
    beta: float = 0.05
    gamma: float = 0.05
    channel: bool = True
    spatial: bool = True
    temporal: bool = True
    a2v: bool = True
    v2a: bool = True
    variant: str = "paper"
    hidden: int = 256
    output: str = "gate"
    bottleneck: int = 64

    def __post_init__(self) -> None:
        raise_faults([UsageError(fault) for fault in self._faults()])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> GuidanceSettings:
        """Check settings that came from a file or a flag.

        Args:
            values: By name; what is missing has its default.

        Raises:
            UsageError: Names or values are wrong; all of them at once.
        """
        names = [field.name for field in fields(cls)]
        faults = [
            UsageError(f"The adapter has no setting {name!r}.", hint=f"Choose from: {', '.join(names)}.")
            for name in values
            if name not in names
        ]
        settings = None
        try:
            settings = cls(**{name: value for name, value in values.items() if name in names})
        except UsageError as error:
            faults.append(error)
        raise_faults(faults)
        return settings

    def _faults(self) -> list[str]:
        faults = [
            f"The adapter's {name} must be {wanted}, not {getattr(self, name)!r}."
            for names, fits, wanted in (
                (("alpha", "beta", "gamma"), _is_number, "a finite number"),
                (("channel", "spatial", "temporal", "a2v", "v2a"), _is_switch, "true or false"),
                (("hidden", "bottleneck"), _is_width, "a whole number from 1 on"),
            )
            for name in names
            if not fits(getattr(self, name))
        ]
        for name, choices in (("variant", VARIANTS), ("output", OUTPUTS)):
            if getattr(self, name) not in choices:
                faults.append(f"The adapter's {name} must be one of {', '.join(choices)}, not {getattr(self, name)!r}.")
        if self.a2v is False and self.v2a is False:
            faults.append("With a2v and v2a both off there is no adapter: leave it out instead.")
        return faults


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
