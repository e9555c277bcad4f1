"""avfewshot: zero-shot and few-shot classification of video clips by sight and sound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.loading import load
    from avfewshot.store.store import Store

    __version__: str

__all__ = ["Classifier", "Store", "__version__", "load"]


def __getattr__(name: str) -> Any:
    # torch is imported when the classifier is first asked for, so that `import avfewshot` and `avfs --help` stay quick.
    if name == "Classifier":
        from avfewshot.inference.classifier import Classifier

        return Classifier
    if name == "load":
        from avfewshot.inference.loading import load

        return load
    if name == "Store":
        from avfewshot.store.store import Store

        return Store
    if name == "__version__":
        from avfewshot.version import __version__

        return __version__
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
