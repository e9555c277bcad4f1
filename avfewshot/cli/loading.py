"""What commands load by their settings: data folders, the towers, a classifier, a store."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.cli.terminal import say
from avfewshot.config import BackboneConfig, EngineConfig, Resolved, resolve, table_settings
from avfewshot.engine import ray_map
from avfewshot.errors import UsageError

if TYPE_CHECKING:
    import torch

    from avfewshot.encoders.backbone import Backbone
    from avfewshot.inference.classifier import Classifier
    from avfewshot.inference.runs import LearnedRun
    from avfewshot.store.store import Store

_LEFT_TO_ADAPTER = ("backbone", "templates", "fusion", "pool", "audio_context")


def left_to_adapter(settings: Resolved, key: str) -> bool:
    """Whether an adapter decides it, since nobody set it."""
    return settings["adapter"] is not None and key in _LEFT_TO_ADAPTER and settings.sources[key] == "default"


def chosen(settings: Resolved, key: str) -> Any:
    """The value of a setting; None where nobody set it and the adapter's own counts."""
    return None if left_to_adapter(settings, key) else settings[key]


def open_store(folder: Path | None) -> Store | None:
    """A store of `avfs embed`, where one is named."""
    if folder is None:
        return None
    from avfewshot.store.store import Store

    return Store(folder)


def find_run(folder: Path) -> LearnedRun:
    """The fitted method of a few-shot run; a :class:`UsageError` where there is none."""
    from avfewshot.inference.runs import find_learned

    found = find_learned(folder)
    if found is None:
        here = folder.exists() or str(folder).startswith("hf:/")
        problem = "holds no fitted method" if here else "there is no such folder"
        raise UsageError(f"{folder}: {problem}.", hint="Give the folder of a run of `avfs fewshot`.")
    return found


def data_root(name: str, root: Path | None) -> Path:
    """The folder of a data set: the flag, else what ``avfs.toml`` or the environment says."""
    if root is not None:
        return root
    from avfewshot.data.description import dataset_of_task, load_description

    description = load_description(dataset_of_task(name))
    return configured_root((description.name, description.reader, "root"), description.title)


def configured_root(keys: Sequence[str], title: str) -> Path:
    """The folder that ``avfs.toml`` or the environment says for the first of these keys; a :class:`UsageError` else."""
    resolved = resolve("data").check()
    for key in keys:
        if key in table_settings("data") and resolved[key] is not None:
            return Path(resolved[key])
    raise UsageError(
        f"Where is {title}? No data folder is set.",
        hint="Give --root DIR, or set it in avfs.toml, table [data]. Without any data: avfs data toy --root toy.",
    )


def load_backbone(model: BackboneConfig, preset: Any = None, *, seed: int = 0) -> Backbone:
    """The frozen towers and text branches, of `preset` (a name, a file or a preset) instead of the one of `model`."""
    from avfewshot.encoders.backbone import build_backbone

    paths = {name: getattr(model, name) for name in ("clip_weights", "clap_weights", "roberta")}
    return build_backbone(preset or model.backbone, weights=model.weights, seed=seed, **paths)


def on_device(model: BackboneConfig, training: Any) -> tuple[torch.device, Any]:
    """The device, and the settings of a training with the number format that `auto` means on it."""
    from avfewshot.inference.devices import resolve_device, resolve_precision

    device = resolve_device(model.device)
    return device, training.replace(precision=resolve_precision(training.precision, device))


def model_arguments(settings: Resolved) -> dict[str, Any]:
    """The arguments of :func:`avfewshot.load` that settings say."""
    names = ("device", "weights", "seed", "precision", "clip_weights", "clap_weights", "roberta", "adapter")
    given = {name: getattr(settings.config.model, name) for name in names}
    own = {name: chosen(settings, name) for name in ("backbone", "templates", "audio_context")}
    return given | own | {"cache": True}


def on_ray(
    distribution: EngineConfig, model: Mapping[str, Any], work: Callable[..., Iterable[Any]], **options: Any
) -> Callable[[Classifier, Sequence[Any]], Generator[Any, None, None]]:
    """What gives ``work(classifier, files, **options)``, with classifiers that workers of a Ray cluster load."""

    def run(classifier: Classifier, files: Sequence[Any]) -> Generator[Any, None, None]:
        gpus = model["device"] == "auto" or model["device"].startswith("cuda")
        same = {**model, "precision": classifier.precision, "device": "auto" if gpus else model["device"]}
        load = functools.partial(_load_worker, same, classifier.embedding_identity, functools.partial(work, **options))
        return ray_map(load, files, address=distribution.address, gpus=gpus)

    return run


def _load_worker(
    model: Mapping[str, Any], identity: Mapping[str, str], work: Callable[..., Iterable[Any]]
) -> Callable[[Sequence[Any]], Iterable[Any]]:
    from avfewshot.inference.loading import load

    classifier = load(**model)
    if classifier.embedding_identity != identity:
        raise UsageError("A machine of the cluster has other weights than this one.")
    return functools.partial(work, classifier)


def load_classifier(settings: Resolved, store: Store | None = None) -> Classifier:
    """A classifier that takes embeddings from a store, where there is one and the adapter reads embeddings."""
    from avfewshot.inference.loading import load

    model = settings.config.model
    classifier = load(**model_arguments(settings))
    if store is not None and not classifier.look_up(store.cache):
        say(f"{model.adapter} looks at the clips themselves: --store only names them.")
    return classifier
