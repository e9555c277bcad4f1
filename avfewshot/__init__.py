"""avfewshot: zero-shot and few-shot classification of video clips by sight and sound."""

from __future__ import annotations

from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.loading import load
    from avfewshot.store.store import Store

    __version__: str

__all__ = ["Classifier", "Store", "__version__", "load"]
_HOMES = {"Classifier": "inference.classifier", "load": "inference.loading", "Store": "store.store"}


def __getattr__(name: str) -> Any:
    # torch is imported when the classifier is first asked for, so that `import avfewshot` and `avfs --help` stay quick.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return resolve_name(f"avfewshot.{_HOMES.get(name, 'version')}:{name}")
