"""What each adapter can be told, checked by the types of its fields, all of it at once; without importing torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from typing_extensions import Self

from avfewshot.errors import UsageError, collect, raise_faults

VARIANTS = ("paper", "compact")
"""Eq. 3 as printed, or with all its maps in the `hidden` space, as checkpoints were before there was a choice."""
OUTPUTS = ("gate", "bottleneck")
"""How guidance ends, zero at first: a factor for each channel, or a small two-layer MLP."""
BRIDGES = ("linear", "published")
"""Between towers of unequal widths: a linear map of channels, or behind a convolution over tokens as in DG-SCT's
comparison (98 M parameters between Swin-V2-L and HTS-AT)."""


@dataclass(frozen=True)
class AdapterSettings:
    """What an adapter can be told, checked by the types of its fields.

    A float is a finite number, an int a whole number from 1 on, a bool a switch; a text is one of :attr:`CHOICES`.
    """

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {}

    a2v: bool = True  # whether sound guides sight
    v2a: bool = True  # whether sight guides sound

    def __post_init__(self) -> None:
        raise_faults([UsageError(fault) for fault in self._faults()])

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Check settings by name; what is missing has its default.

        Raises:
            UsageError: Names or values are wrong; all of them at once.
        """
        names = [field.name for field in fields(cls)]
        faults = [
            UsageError(f"The adapter has no setting {name!r}.", hint=f"Choose from: {', '.join(names)}.")
            for name in values
            if name not in names
        ]
        settings = collect(faults, lambda: cls(**{name: values[name] for name in names if name in values}))
        raise_faults(faults)
        assert settings is not None
        return settings

    def _faults(self) -> list[str]:
        faults = []
        for field in fields(self):
            value, choices = getattr(self, field.name), self.CHOICES.get(field.name)
            if choices is None:
                fits, wanted = _KINDS[str(field.type)]
            else:
                fits, wanted = choices.__contains__, f"one of {', '.join(choices)}"
            if not fits(value):
                faults.append(f"The adapter's {field.name} must be {wanted}, not {value!r}.")
        if self.a2v is False and self.v2a is False:
            faults.append("With a2v and v2a both off there is no adapter: leave it out instead.")
        return faults


@dataclass(frozen=True)
class GuidanceSettings(AdapterSettings):
    """Factors, switches and widths (Eq. 1-7 of arXiv 2311.05152; factors of its few-shot classification tasks)."""

    CHOICES = {"variant": VARIANTS, "output": OUTPUTS}  # noqa: RUF012

    alpha: float = 0.2  # factor of the channel attention (Eq. 6)
    beta: float = 0.05  # factor of the spatial attention (Eq. 6)
    gamma: float = 0.05  # factor of the temporal gate (Eq. 7)
    channel: bool = True  # whether there is channel attention (Eq. 3)
    spatial: bool = True  # whether there is spatial attention (Eq. 4)
    temporal: bool = True  # whether there is a temporal gate in the last layer (Eq. 5)
    variant: str = "paper"  # the channel attention keeps the width of the guided modality, or "compact": is in `hidden`
    hidden: int = 256  # width d of the joint space in which attention maps are computed
    output: str = "gate"
    bottleneck: int = 64  # width of the bottleneck, for that output


@dataclass(frozen=True)
class LavishSettings(AdapterSettings):
    """Latent tokens and bottlenecks of LAVISH (arXiv 2212.07983, section 3), as released for Swin-V2.

    For a ViT its author gives 8 latents and 4 groups without norms.
    """

    CHOICES = {"bridge": BRIDGES}  # noqa: RUF012

    latents: int = 2  # tokens that gather the other modality
    reduction: int = 8  # of the width, in the bottleneck
    groups: int = 2  # of the bottleneck's maps
    batch_norm: bool = True  # behind both maps of the bottleneck
    layer_norm: bool = True  # before and behind the bottleneck
    bridge: str = "linear"


@dataclass(frozen=True)
class StgCmaSettings(AdapterSettings):
    """Steps and widths of STG-CMA (Wang et al., CVPR workshops 2024)."""

    temporal: bool = True  # whether there is a step along time
    spatial: bool = True  # whether attention is adapted
    global_step: bool = True  # whether the MLP is adapted
    exchange: bool = True  # whether the modalities speak to each other; without it each is adapted alone
    reduction: int | tuple[int, ...] = 8  # of the visual width, in the bottlenecks; one number, or one for each stage
    positions: int = 10  # segments that are told apart in time; later ones share the last position
    drop_path: float = 0.2  # share of rows in the last layer whose step along time is left out in training

    def _faults(self) -> list[str]:
        faults = super()._faults()
        if not faults and not 0 <= self.drop_path < 1:
            faults.append(f"The adapter's drop_path must be at least 0 and below 1, not {self.drop_path!r}.")
        if not faults and not (self.temporal or self.spatial or self.global_step):
            faults.append("With temporal, spatial and global_step all off there is no adapter: leave it out instead.")
        return faults


SETTINGS: Mapping[str, type[AdapterSettings]] = {
    "dgsct": GuidanceSettings,
    "lavish": LavishSettings,
    "stg_cma": StgCmaSettings,
}


def _is_width(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


_KINDS: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "float": (
        lambda value: isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value),
        "a finite number",
    ),
    "bool": (lambda value: isinstance(value, bool), "true or false"),
    "int": (_is_width, "a whole number from 1 on"),
    "int | tuple[int, ...]": (
        lambda value: bool(value) and all(map(_is_width, value if isinstance(value, list | tuple) else [value])),
        "a whole number from 1 on, or one for each stage",
    ),
    "str": (lambda value: isinstance(value, str), "a text"),
}
