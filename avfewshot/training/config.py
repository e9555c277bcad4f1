"""The configuration of a few-shot training: every choice that its result depends on, in one checked object.

Defaults < YAML file < flags. The defaults are the settings of Duan et al. (NeurIPS 2023, arXiv 2311.05152) where the
paper gives them: Adam, learning rate 3e-4, batches of 2, and alpha, beta, gamma for each task. What the paper leaves
open (epochs, schedule, early stopping, clipping) says so in its help. Importing this module imports nothing heavy.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from avfewshot.adapters.registry import adapter_names
from avfewshot.errors import UsageError, flatten, raise_faults
from avfewshot.setting_kinds import Choice, Flag, Kind, Whole
from avfewshot.settings import Setting
from avfewshot.training.config_kinds import Number, Seeds, Size, Switch

TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = MappingProxyType({"ave": MappingProxyType({"gamma": 0.01})})
"""What the paper sets otherwise for a task than the defaults of :class:`TrainingConfig`."""

PRETRAIN_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "task": "vggsound_cls", "objective": "contrastive", "batch_size": 32, "epochs": 10, "patience": 0,
        "warmup": 0.05, "workers": 4,
    }
)  # fmt: skip
"""Where a pretraining differs from a few-shot training: batches large enough to tell a clip from many others."""

ADAPTER_SETTINGS = ("alpha", "beta", "gamma", "channel", "spatial", "temporal", "a2v", "v2a", "variant", "hidden")
ADAPTER_SETTINGS += ("output", "bottleneck")
"""Fields that are the adapter's own, named as in :class:`~avfewshot.adapters.settings.GuidanceSettings`."""

NONE = "none"
AUTO = "auto"
TASKS = ("ave", "ave_cls", "llp_cls", "vggsound_cls", "folder")


class _Adapter(Choice):
    """The adapters that are registered when a value is read, or none."""

    def __init__(self) -> None:
        super().__init__(*adapter_names(), NONE)

    def parse(self, raw: Any, *, from_text: bool) -> str:
        return Choice(*adapter_names(), NONE).parse(raw, from_text=from_text)


def _option(default: Any, kind: Kind, text: str) -> Any:
    return dataclasses.field(default=default, metadata={"kind": kind, "help": text})


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings of a few-shot training; the fields' help is in :func:`training_settings`.

    Raises:
        UsageError: Values are of the wrong type, out of range or contradict each other; all faults at once.
    """

    task: str = _option("folder", Choice(*TASKS), "What is learnt and how it is judged.")
    shots: int = _option(16, Whole(1), "Training clips of each class.")
    sampler: str = _option("nested", Choice("nested", "first-k"), "How they are drawn: by seed, or the first rows.")
    multi_label: bool = _option(False, Flag(), "Draw clips with several labels too.")
    seeds: tuple[int, ...] = _option((1,), Seeds(), "A training for each: of the draw, the weights and the order.")

    adapter: str = _option("dgsct", _Adapter(), "What connects the towers.")
    alpha: float = _option(0.2, Number(0), "Factor of the channel attention (Eq. 6).")
    beta: float = _option(0.05, Number(0), "Factor of the spatial attention (Eq. 6).")
    gamma: float = _option(0.05, Number(0), "Factor of the temporal gate (Eq. 7); 0.01 for ave, 0.05 elsewhere.")
    channel: bool = _option(True, Flag(), "Channel attention (C, Eq. 3).")
    spatial: bool = _option(True, Flag(), "Spatial attention (S, Eq. 4).")
    temporal: bool = _option(True, Flag(), "Temporal gate in the last layer (T, Eq. 5).")
    a2v: bool = _option(True, Flag(), "Sound guides sight.")
    v2a: bool = _option(True, Flag(), "Sight guides sound.")
    variant: str = _option(
        "paper", Choice("paper", "compact"), "Channel attention as printed (Eq. 3), or in the space of `--hidden`."
    )
    hidden: int | str = _option(
        "auto",
        Whole(1, or_word="auto"),
        "Width of the space of attention maps; `auto`: a third of CLIP's (256 for base).",
    )
    output: str = _option("gate", Choice("gate", "bottleneck"), "How guidance ends: a factor a channel, or an MLP.")
    bottleneck: int = _option(64, Whole(1), "Width of that MLP.")
    projector: str = _option("residual", Choice("residual", "mlp", NONE), "Trainable maps on all embeddings (Eq. 8).")

    objective: str = _option("classes", Choice("contrastive", "classes"), "Candidates: texts of the batch, or all.")
    matching: str = _option("softmax", Choice("softmax", "cosine"), "What the modality weights are made of (Eq. 11).")
    fusion: str = _option("weighted", Choice("weighted", "product"), "How the two modalities are joined.")
    pool: str = _option("event", Choice("mean", "event"), "How the seconds of a clip are pooled; the paper's is mean.")
    background: str = _option(
        "threshold", Choice("threshold", "prompt", NONE), "How seconds without an event are told (task ave)."
    )
    blend: float | str = _option(
        "auto",
        Number(0, 1, or_word="auto"),
        "Share of the trained logits beside the zero-shot ones; `auto`: validation.",
    )
    window: int = _option(10, Whole(1), "Seconds that go through the adapters together.")

    optimizer: str = _option("adam", Choice("adam", "adamw"), "Adam is the paper's.")
    lr: float = _option(3e-4, Number(0, above=True), "Learning rate.")
    weight_decay: float = _option(0.0, Number(0), "Weight decay.")
    batch_size: int = _option(2, Whole(1), "Clips of a batch.")
    accumulation: int = _option(1, Whole(1), "Batches whose gradients are summed up for a step.")
    clip_norm: float = _option(1.0, Number(0), "Bound on the gradient's norm; 0: none. Not given by the paper.")
    schedule: str = _option("cosine", Choice("constant", "cosine", "step"), "Of the learning rate; not in the paper.")
    warmup: float = _option(0.0, Number(0, 0.5), "Share of all steps in which the learning rate rises from zero.")
    step_epochs: int = _option(2, Whole(1), "Epochs between the steps of the step schedule.")
    step_factor: float = _option(0.1, Number(0, 1, above=True), "What a step multiplies the learning rate with.")
    epochs: int = _option(5, Whole(1), "Passes over the support, at most. Not given by the paper.")
    patience: int = _option(5, Whole(0), "Stop after so many epochs without a better validation figure; 0: never.")

    validate_every: int | str = _option(
        "auto",
        Whole(1, or_word="auto"),
        "Epochs between validations; `auto`: one takes no longer than the training does.",
    )

    precision: str = _option("auto", Choice("auto", "fp32", "bf16", "fp16"), "Number format of the towers.")
    checkpointing: bool | str = _option(
        "auto",
        Switch(),
        "Compute activations twice: half as slow again, far less memory; `auto`: for large towers, if not on a GPU of "
        "16 GB or more.",
    )
    cuda_graphs: bool = _option(
        False, Flag(), "On a single GPU: record the passes of a step once and replay them; faster for small batches."
    )
    micro_batch: int | str = _option(
        "auto", Whole(1, or_word="auto"), "Clips at once; `auto` begins with the batch and shrinks when memory ends."
    )
    cache_size: int = _option(20_000_000_000, Size(), "Bound on decoded clips kept on disk; 0: none.")
    workers: int = _option(2, Whole(0), "Threads that decode clips ahead.")

    def __post_init__(self) -> None:
        faults: list[UsageError] = []
        values = {name: _parsed(name, getattr(self, name), name, faults, from_text=False) for name in _SETTINGS}
        for name, value in values.items():
            object.__setattr__(self, name, value)  # a whole number that stands for a real one becomes one
        raise_faults(faults + _contradictions(values, {name for name, value in values.items() if value is _WRONG}))

    @property
    def adapter_settings(self) -> dict[str, Any]:
        """Settings for :func:`~avfewshot.adapters.registry.build_adapter`; without a width of ``"auto"``."""
        values = {name: getattr(self, name) for name in ADAPTER_SETTINGS}
        return {name: value for name, value in values.items() if value != AUTO}

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return {**dataclasses.asdict(self), "seeds": list(self.seeds)}

    def to_json(self) -> str:
        """The configuration as JSON."""
        return json.dumps(self.to_dict(), indent=2)

    def to_yaml(self) -> str:
        """The configuration as a file for ``--config``."""
        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "configuration") -> TrainingConfig:
        """Read what :meth:`to_dict` gave; what is missing has the task's default.

        Args:
            values: Values by name.
            where: What they come from, for messages.

        Raises:
            UsageError: Names or values are wrong; all of them at once.
        """
        faults: list[UsageError] = []
        found = _checked(values, where, faults, from_text=False)
        return _assemble([found], faults).config

    @classmethod
    def from_json(cls, text: str) -> TrainingConfig:
        """Read what :meth:`to_json` gave.

        Raises:
            UsageError: It is no JSON object, or as for :meth:`from_dict`.
        """
        try:
            values = json.loads(text)
        except ValueError as error:
            raise UsageError(f"configuration: is not valid JSON: {error}.") from None
        if not isinstance(values, dict):
            raise UsageError("configuration: a JSON object is needed.")
        return cls.from_dict(values)


@dataclass(frozen=True)
class Configured:
    """A configuration and where its values came from.

    Attributes:
        config: The configuration.
        sources: By field: ``"--flag"``, the file's path, ``"default"`` or ``"default of TASK"``.
    """

    config: TrainingConfig
    sources: Mapping[str, str]

    def changed(self) -> dict[str, tuple[Any, str]]:
        """(value, source) of the fields that somebody set, in the order of the fields."""
        return {
            name: (getattr(self.config, name), source)
            for name, source in self.sources.items()
            if not source.startswith("default")
        }


_SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        field.name: Setting(field.name, field.metadata["kind"], field.default, field.metadata["help"])
        for field in dataclasses.fields(TrainingConfig)
    }
)


def training_settings(task: str | None = None) -> tuple[Setting, ...]:
    """Everything that can be set, with its kind, default and help, in a sensible order.

    Args:
        task: Whose defaults to show.
    """
    defaults = {} if task is None else {"task": task, **TASK_DEFAULTS.get(task, {})}
    return tuple(
        dataclasses.replace(setting, default=defaults.get(name, setting.default)) for name, setting in _SETTINGS.items()
    )


def build_config(
    flags: Mapping[str, Any] | None = None,
    file: str | os.PathLike[str] | None = None,
    *,
    defaults: Mapping[str, Any] | None = None,
) -> Configured:
    """Put a configuration together: defaults of the task < YAML file < flags.

    Args:
        flags: Values from the command line by field name, as text or already typed; None means not given.
        file: A YAML file with fields and values; hyphens in names count as underscores.
        defaults: Other defaults than those of the task, such as :data:`PRETRAIN_DEFAULTS`.

    Returns:
        The configuration and the sources of its values.

    Raises:
        UsageError: The file cannot be read, fields are unknown, values are wrong or contradict each other; all faults
            at once, with the valid choices.
    """
    faults: list[UsageError] = []
    layers = []
    if file is not None:
        try:
            layers.append(_checked(_read_yaml(Path(file)), os.fspath(file), faults, from_text=False))
        except UsageError as error:
            faults.extend(flatten(error))
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    layers.append(_checked(given, None, faults, from_text=True))
    return _assemble(layers, faults, defaults)


_Found = dict[str, tuple[Any, str]]
"""(value, source) by field; a value is ``_WRONG`` where it was reported."""

_WRONG = object()


def _assemble(layers: list[_Found], faults: list[UsageError], others: Mapping[str, Any] | None = None) -> Configured:
    found: _Found = {}
    for layer in layers:
        found.update(layer)
    unsound = {name for name, (value, _) in found.items() if value is _WRONG}
    sound = {name: value for name, (value, _) in found.items() if name not in unsound}
    defaults = TASK_DEFAULTS.get(sound.get("task", ""), {}) if others is None else others
    values = {name: setting.default for name, setting in _SETTINGS.items()} | dict(defaults) | sound
    raise_faults(faults + _contradictions(values, unsound))
    sources = {}
    for name in _SETTINGS:
        fallback = f"default of {values['task']}" if name in defaults else "default"
        sources[name] = found[name][1] if name in found else fallback
    return Configured(TrainingConfig(**values), MappingProxyType(sources))


def _checked(raw: Mapping[str, Any], where: str | None, faults: list[UsageError], *, from_text: bool) -> _Found:
    """Check names and values, from a file if `where` names one, else from flags."""
    found: _Found = {}
    for key, value in raw.items():
        name = str(key).replace("-", "_")
        shown = f"{where}: {key}" if where else f"--{name.replace('_', '-')}"
        if name not in _SETTINGS:
            close = get_close_matches(name, _SETTINGS, n=1)
            guess = f" Did you mean {close[0]!r}?" if close else ""
            faults.append(UsageError(f"{shown} is unknown.{guess}", hint=f"Valid: {', '.join(_SETTINGS)}."))
            continue
        if name in found:
            faults.append(UsageError(f"{shown}: {name} is given twice.", hint="Remove one of them."))
            continue
        source = where or f"--{name.replace('_', '-')}"
        found[name] = (_parsed(name, value, shown, faults, from_text=from_text), source)
    return found


def _parsed(name: str, value: Any, shown: str, faults: list[UsageError], *, from_text: bool) -> Any:
    try:
        return _SETTINGS[name].kind.parse(value, from_text=from_text)
    except ValueError as error:
        faults.append(UsageError(f"{shown}: {error}"))
        return _WRONG


_RULES: tuple[tuple[tuple[str, ...], Callable[[Mapping[str, Any]], bool], str, str], ...] = (
    (
        ("adapter", "a2v", "v2a"),
        lambda v: v["adapter"] != NONE and not (v["a2v"] or v["v2a"]),
        "a2v and v2a are both off: the adapter would do nothing.",
        "Switch one of them on, or set adapter to none.",
    ),
    (
        ("adapter", "projector"),
        lambda v: v["adapter"] == NONE and v["projector"] == NONE,
        "adapter and projector are both none: there is nothing to train.",
        "For a model without training: avfs zeroshot --task TASK.",
    ),
    (
        ("micro_batch", "batch_size"),
        lambda v: v["micro_batch"] != "auto" and v["micro_batch"] > v["batch_size"],
        "micro_batch is larger than batch_size.",
        "A batch is cut into micro-batches: make it at most batch_size.",
    ),
    (
        ("objective", "batch_size"),
        lambda v: v["objective"] == "contrastive" and v["batch_size"] < 2,
        "objective contrastive needs a batch_size of at least 2: a clip is told from the others of its batch.",
        "Raise batch_size, or use objective classes.",
    ),
)
"""(fields, whether their values contradict each other, what is wrong, what to do)."""


def _contradictions(values: Mapping[str, Any], unsound: Collection[str]) -> list[UsageError]:
    return [
        UsageError(message, hint=hint)
        for names, contradict, message, hint in _RULES
        if not unsound.intersection(names) and contradict(values)
    ]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
        # The loader itself keeps the last of two equal keys without a word.
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except FileNotFoundError:
        raise UsageError(f"{path}: there is no such file.", hint="Check the path given with --config.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8.", hint="Save it as UTF-8.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        problem = " ".join(str(error).split())
        raise UsageError(f"{path}: is not valid YAML: {problem.rstrip('.')}.") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold `name: value` lines, not a {type(values).__name__}.")
    keys = [key.value for key, _ in node.value]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise UsageError(f"{path}: given twice: {', '.join(twice)}.", hint="Remove one of them.")
    return values
