"""What commands load by their settings: the towers, a classifier, a store."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.cli.terminal import say
from avfewshot.config import BackboneConfig, Resolved

if TYPE_CHECKING:
    from avfewshot.encoders.backbone import Backbone
    from avfewshot.inference.classifier import Classifier
    from avfewshot.store.store import Store

_LEFT_TO_ADAPTER = ("backbone", "templates", "fusion", "pool")


def left_to_adapter(settings: Resolved, key: str) -> bool:
    """Whether an adapter decides it, since nobody set it."""
    return settings["adapter"] is not None and key in _LEFT_TO_ADAPTER and settings.source(key) == "default"


def chosen(settings: Resolved, key: str) -> Any:
    """The value of a setting; None where nobody set it and the adapter's own counts."""
    return None if left_to_adapter(settings, key) else settings[key]


def open_store(folder: Path | None) -> Store | None:
    """A store of `avfs embed`, where one is named.

    Raises:
        AvfsError: It is none, or damaged.
    """
    if folder is None:
        return None
    from avfewshot.store.store import Store

    return Store(folder)


def load_backbone(model: BackboneConfig, preset: Any = None, *, seed: int = 0) -> Backbone:
    """The frozen towers and text branches, of `preset` (a name, a file or a preset) instead of the one of `model`."""
    from avfewshot.encoders.backbone import build_backbone

    return build_backbone(
        preset or model.backbone,
        weights=model.weights,
        seed=seed,
        clip_weights=model.clip_weights,
        clap_weights=model.clap_weights,
        roberta=model.roberta,
    )


def load_classifier(settings: Resolved, store: Store | None = None) -> Classifier:
    """A classifier that takes embeddings from a store, where there is one and the adapter reads embeddings."""
    from avfewshot.inference.loading import load

    model = settings.config.model
    classifier = load(
        chosen(settings, "backbone"),
        device=model.device,
        weights=model.weights,
        seed=model.seed,
        precision=model.precision,
        clip_weights=model.clip_weights,
        clap_weights=model.clap_weights,
        roberta=model.roberta,
        templates=chosen(settings, "templates"),
        adapter=model.adapter,
        cache=True,
    )
    if store is not None and not classifier.look_up(store.cache):
        say(f"{model.adapter} looks at the clips themselves: --store only names them.")
    return classifier
