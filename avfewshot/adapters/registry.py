"""The cross-modal adapters by name. Names are known without importing torch.

Other packages bring adapters of their own by an entry point of the group ``avfewshot.adapters``; see docs/extending.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from avfewshot.adapters.base import CrossModalAdapter, PairedLayer

_ADAPTERS = {
    "dgsct": "avfewshot.adapters.dgsct:DGSCT",
    "lavish": "avfewshot.adapters.lavish:Lavish",
    "stg_cma": "avfewshot.adapters.stg_cma:StgCma",
}


def adapter_names() -> tuple[str, ...]:
    """Names that :func:`build_adapter` knows."""
    return tuple(sorted(_targets()))


def _targets() -> dict[str, str]:
    """Target by name; what is registered in the program takes precedence over what other packages bring."""
    return {entry.name: entry.value for entry in entry_points(group="avfewshot.adapters")} | _ADAPTERS


def register_adapter(name: str, target: str) -> None:
    """Make another adapter known.

    Args:
        name: How settings and checkpoints call it.
        target: ``"package.module:Class"``, a subclass of :class:`~avfewshot.adapters.base.CrossModalAdapter`; imported
            when it is first built.

    Raises:
        ValueError: The name is taken by another target, or the target has another form.
    """
    module, separator, attribute = target.partition(":")
    if not (separator and module and attribute):
        raise ValueError(f"An adapter's target is 'package.module:Class', not {target!r}.")
    if _ADAPTERS.get(name, target) != target:
        raise ValueError(f"The adapter name {name!r} is taken by {_ADAPTERS[name]}.")
    _ADAPTERS[name] = target


def adapter_class(name: str) -> type[CrossModalAdapter]:
    """The class of an adapter.

    Raises:
        UsageError: The name is unknown.
    """
    targets = _targets()
    if name not in targets:
        raise UsageError(f"There is no adapter {name!r}.", hint=f"Choose from: {', '.join(adapter_names())}.")
    module, _, attribute = targets[name].partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"The adapter {name!r} cannot be imported: {error}.",
            hint=f"Install the package that brings {targets[name]}.",
        ) from error


def build_adapter(
    name: str, layers: Sequence[PairedLayer], settings: Mapping[str, Any] | None = None
) -> CrossModalAdapter:
    """Build a fresh adapter by name.

    Args:
        name: One of :func:`adapter_names`.
        layers: The paired layers of the two towers, from :func:`~avfewshot.adapters.base.pair_layers`.
        settings: The adapter's own settings; None for its defaults.

    Raises:
        UsageError: The name or a setting is wrong.
    """
    return adapter_class(name).build(layers, settings or {})
