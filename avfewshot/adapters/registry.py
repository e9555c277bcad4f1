"""The cross-modal adapters by name, known without importing torch.

Other packages bring adapters of their own by an entry point of the group ``avfewshot.adapters``; see docs/extending.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from avfewshot.errors import UsageError, check_choice

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
    """Make another adapter known: ``"package.module:Class"``, a subclass of ``CrossModalAdapter``, imported when built.

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
    check_choice("adapter", name, adapter_names())
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
    """Build a fresh adapter by name, with its own settings (None: its defaults).

    Raises:
        UsageError: The name or a setting is wrong.
    """
    return adapter_class(name).build(layers, settings or {})
