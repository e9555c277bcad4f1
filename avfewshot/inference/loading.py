"""From names and paths to a classifier, with or without trained adapters."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from avfewshot.config import AUDIO_CONTEXTS, read_training
from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.presets import load_preset, preset_names
from avfewshot.errors import DataError, UsageError, check_choice
from avfewshot.inference.classifier import Classifier
from avfewshot.inference.devices import resolve_device, resolve_precision
from avfewshot.inference.runs import LearnedRun, find_learned, find_tuned
from avfewshot.labels import LabelSet
from avfewshot.models.build import load_model
from avfewshot.models.checkpoint import CONFIG_NAME, AdapterCheckpoint, load_adapter
from avfewshot.models.fusion import FUSIONS, POOLS
from avfewshot.prompts import load_templates, template_names

DEFAULT_BACKBONE = "base"

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")


def load(
    backbone: str | os.PathLike[str] | None = None,
    *,
    device: str = "auto",
    weights: str = "pretrained",
    precision: str = "auto",
    seed: int = 0,
    clip_weights: str | os.PathLike[str] | None = None,
    clap_weights: str | os.PathLike[str] | None = None,
    roberta: str | os.PathLike[str] | None = None,
    templates: str | os.PathLike[str] | None = None,
    adapter: str | os.PathLike[str] | None = None,
    cache: bool = False,
    audio_context: str | None = None,
) -> Classifier:
    """Load a classifier. The network is never asked: `avfs weights fetch` brings the weights.

    Args:
        backbone: Preset (``"base"``, ``"large"``, ``"tiny"``) or a YAML file; None: the one that the adapter was
            trained with, or ``"base"`` without an adapter.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        weights: ``"pretrained"``, or ``"random"`` to try things out: meaningless results.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        seed: Of random weights.
        clip_weights: CLIP checkpoint by path, instead of the preset's.
        clap_weights: CLAP checkpoint by path, instead of the preset's.
        roberta: Folder with RoBERTa's tokenizer files, instead of those in the hub's cache.
        templates: Prompt templates: a packaged name or a file; None: those that the adapter was trained with, or those
            that fit the backbone without an adapter.
        adapter: Folder of a training run or of a checkpoint. What was learnt also serves labels that were not trained
            on. How scores become answers (share of the trained logits, pooling, fusion) is what the checkpoint says.
        cache: Keep embeddings of files on disk, where no adapter takes part: a second run over them takes seconds.
        audio_context: How the frozen towers hear: ``"second"``, each second alone, or ``"clip"``, up to ten seconds in
            one pass. None: as the few-shot run did, or by second.

    Returns:
        A classifier.

    Raises:
        UsageError: An argument is wrong.
        DataError: There is no adapter, or its configuration is damaged.
        WeightsError: Weights are missing, damaged, unsafe, of another architecture, or not those that the adapter was
            trained with.
    """
    # Everything cheap is checked before the weights are read.
    files = {"clip_weights": _path("clip_weights", clip_weights), "clap_weights": _path("clap_weights", clap_weights)}
    files["roberta"] = _path("roberta", roberta)
    name, folder = _path("backbone", backbone), _path("adapter", adapter)
    if type(seed) is not int:
        raise UsageError(f"seed is a whole number, not {seed!r}.")
    place = resolve_device(device)
    form = resolve_precision(precision, place)
    prompts = None if templates is None else load_templates(_path("templates", templates) or "")
    checkpoint = decision = preset = learned = tuned = None
    if folder is not None:
        learned = find_learned(folder)
        tuned = find_tuned(folder) if learned is None else None
        if (learned is None and tuned is None) or (learned is not None and learned.is_tuned):
            checkpoint = load_adapter(folder if learned is None else learned.path.parent)
            decision = decision_of(checkpoint)
        origin = learned or tuned or checkpoint
        assert origin is not None
        if prompts is None:
            prompts = recalled(origin, "templates", load_templates)
        if name is None:
            preset = recalled(origin, "backbone", load_preset)
            name = origin.config.backbone
    context = _audio_context(audio_context, learned, tuned or checkpoint)
    name = name or DEFAULT_BACKBONE
    built = build_backbone(preset or name, weights=weights, seed=seed, **files)
    _LOG.info("backbone %s (%s weights) on %s, %s%s", name, weights, place, form, f", {folder}" if folder else "")
    made: dict[str, Any] = {"device": place, "precision": form, "name": name, "cache": cache, "audio_context": context}
    if checkpoint is not None:
        made["model"], _ = load_model(checkpoint, built)
        made |= {"adapter": folder, **vars(decision)}
    for kind, run in (("learned", learned), ("tuned", tuned)):
        if run is not None:
            run.config.check_backbone(built, where=run.path)
            made |= {"adapter": folder, kind: run}
            if checkpoint is None:
                made |= {key: run.config.decision[key] for key in ("fusion", "pool") if key in run.config.decision}
    origin = learned or tuned or checkpoint
    if origin is not None:
        wordings = dict(zip(origin.config.labels, origin.config.wordings, strict=True))
        made["own_labels"] = LabelSet.from_wordings(wordings)
    return Classifier(built, prompts or load_templates(built.templates), **made)


def _audio_context(asked: str | None, learned: LearnedRun | None, trained: AdapterCheckpoint | None) -> str:
    """What the frozen towers hear with, given a run on their embeddings, or what was trained through them."""
    if asked is not None:
        check_choice("audio context", asked, AUDIO_CONTEXTS)
    if trained is not None:
        if asked == "clip":
            warnings.warn(
                f"{trained.path}: was trained on single seconds of sound; the audio context stays second.", stacklevel=3
            )
        return "second"
    if learned is not None and asked not in (None, learned.audio_context):
        raise UsageError(
            f"{learned.path}: was fitted with --audio-context {learned.audio_context}, not {asked}.",
            hint="Leave the option out, or fit it again.",
        )
    return asked or ("second" if learned is None else learned.audio_context)


def _path(argument: str, value: object) -> str | None:
    if value is not None and not isinstance(value, (str, os.PathLike)):
        raise UsageError(f"{argument} is a name or a path, not {value!r}.")
    return None if value is None else os.fspath(value)


@dataclass(frozen=True)
class TrainedDecision:
    """How a trained model's scores become answers; see :class:`~avfewshot.inference.classifier.Classifier`."""

    blend: float
    window: int
    fusion: str
    pool: str


def decision_of(checkpoint: AdapterCheckpoint) -> TrainedDecision:
    """What a checkpoint says; what it leaves open is as it was trained, with the trained logits alone.

    A :class:`DataError` lists all values that are out of range.
    """
    where = checkpoint.path / CONFIG_NAME
    training = read_training(checkpoint.config.training, where=os.fspath(where))
    given: Mapping[str, Any] = checkpoint.config.decision
    values = {
        "blend": given.get("blend", 1.0),
        "fusion": given.get("fusion", training.plain_fusion),
        **{name: given.get(name, getattr(training, name)) for name in ("window", "pool")},
    }
    rules: dict[str, tuple[Callable[[Any], bool], str]] = {
        "blend": (lambda value: _is_number(value) and 0 <= value <= 1, "a number in [0, 1]"),
        "window": (lambda value: type(value) is int and value >= 1, "a whole number from 1 on"),
        "fusion": (lambda value: value in FUSIONS, f"one of {', '.join(FUSIONS)}"),
        "pool": (lambda value: value in POOLS, f"one of {', '.join(POOLS)}"),
    }
    faults = [
        f"decision: {name} must be {wanted}, not {values[name]!r}"
        for name, (fits, wanted) in rules.items()
        if not fits(values[name])
    ]
    if faults:
        raise DataError(f"{where}: {'; '.join(faults)}.", hint="Copy the folder again from where it was trained.")
    return TrainedDecision(**values)


def recalled(checkpoint: AdapterCheckpoint, name: str, read: Callable[[str], _T]) -> _T:
    """Find the ``"backbone"`` or ``"templates"`` that a checkpoint names.

    A :class:`UsageError` where it is not here says how to tell.
    """
    value = checkpoint.resolve(name, preset_names() if name == "backbone" else template_names())
    try:
        return read(value)
    except UsageError as error:
        raise UsageError(
            f"{checkpoint.path}: the {name} that it was trained with cannot be read: {error.message}",
            hint=f"Name a file with --{name}.",
        ) from None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
