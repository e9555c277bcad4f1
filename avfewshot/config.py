"""Every setting, once: a field of a pydantic model with its type, bounds, default, help, panel and option.

A command is a model made of such models (:class:`ZeroshotConfig`, :class:`FewshotConfig`, :class:`PretrainConfig`).
From it follow the options of the command line (:mod:`avfewshot.cli.options`), the layers

    flag > environment ``AVFS_NAME`` > ``avfs.toml`` > ``--config`` file > default of the task > default

with the source of each value (:func:`resolve`), ``avfs config`` and ``run.json`` (the ``model_dump`` of the command).
A new setting is one line, for example in :class:`TrainingConfig`:

    val_shots: Annotated[int, Ge(0)] = setting(0, "Validation clips of each class.", panel=DATA)

which gives ``avfs fewshot --val-shots``, the key ``val_shots`` in files for ``--config``, its check and its help;
``saved=True`` adds ``AVFS_VAL_SHOTS`` and the key in ``avfs.toml``. A new command is a model with a table:

    class CompareConfig(CommandConfig, table="compare"):
        training: TrainingConfig = section(TrainingConfig)
        model: BackboneConfig = section(BackboneConfig)
        shots_list: Annotated[str, AfterValidator(...)] = setting("1,2,4", "Shots to compare.", flag="--shots")

Importing this module imports nothing heavy.
"""

from __future__ import annotations

import functools
import os
import re
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import AllowInfNan, BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self

from avfewshot.adapters.registry import adapter_names
from avfewshot.adapters.settings import SETTINGS
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults
from avfewshot.io import load_yaml, user_path

CONFIG_NAME = "avfs.toml"
UNSET = "not set"
NONE = "none"
AUTO = "auto"
Task = Literal["ave", "ave_cls", "llp_cls", "vggsound_cls", "folder"]
TASKS = get_args(Task)
AudioContext = Literal["second", "clip"]
AUDIO_CONTEXTS = get_args(AudioContext)
SEED_LIMIT = 2**32

# ---------------------------------------------------------------------------------------------- types of values


@dataclass(frozen=True)
class Shown:
    """How people meet a type whose own validator says what it expects."""

    metavar: str
    choices: Callable[[], Iterable[str]] = tuple  # for shell completion
    show: Callable[[Any], str] = str
    repeated: bool = False  # whether its option may be given several times


def _number(raw: Any) -> Any:
    """Text is read as a number in files as well, since YAML takes ``3e-4`` for one."""
    try:
        return float(raw) if isinstance(raw, str) else raw
    except ValueError:
        return raw


def _text(raw: Any) -> Any:
    if isinstance(raw, str) and not raw.strip():
        raise ValueError("a text is needed, it is empty.")
    return raw


def _path(raw: Any) -> Path:
    if not isinstance(raw, (str, os.PathLike)):
        raise ValueError(f"a path is needed, not {raw!r}.")
    if not os.fspath(raw):
        raise ValueError("a path is needed, it is empty.")
    try:
        return user_path(raw)
    except UsageError as error:
        raise ValueError(str(error)) from None


def _device(raw: Any) -> Any:
    if not isinstance(raw, str):
        raise ValueError(f"a device is needed, not {raw!r}.")
    if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", raw):
        raise ValueError(f"{raw!r} is not a device: auto, cpu, cuda, cuda:0 (cuda:1, ...) or mps.")
    return raw


def _seed(raw: Any) -> int:
    if isinstance(raw, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", raw):
        raw = int(raw)
    if type(raw) is not int or not 0 <= raw < SEED_LIMIT:
        raise ValueError(f"one whole number from 0 to {SEED_LIMIT - 1} is needed, not {raw!r}.")
    return raw


def _items(raw: Any) -> list[Any]:
    """The items of a list in a file, or of a text with commas."""
    items = raw.split(",") if isinstance(raw, str) else raw if isinstance(raw, (list, tuple)) else [raw]
    return [item.strip() if isinstance(item, str) else item for item in items]


def _seeds(raw: Any) -> tuple[int, ...]:
    try:
        seeds = tuple(map(_seed, _items(raw)))
    except ValueError:
        seeds = ()
    if not seeds or len(set(seeds)) < len(seeds):
        raise ValueError(f"different whole numbers from 0 to {SEED_LIMIT - 1}, as 1,2,3, are needed, not {raw!r}.")
    return seeds


_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def _size(raw: Any) -> int:
    """Bytes of ``500MB``, ``20GB`` (powers of ten) or a plain number."""
    if type(raw) is int and raw >= 0:
        return raw
    match = re.fullmatch(r"(?i)([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)b?", raw.strip()) if isinstance(raw, str) else None
    if match is None:
        raise ValueError(f"a size as 500MB, 20GB or 0 is needed, not {raw!r}.")
    return round(float(match[1]) * _UNITS[match[2].lower()])


def _shown_size(value: int) -> str:
    unit = next((unit for unit in "tgmk" if value and value % _UNITS[unit] == 0), None)
    return str(value) if unit is None else f"{value // _UNITS[unit]}{unit.upper()}B"


def _adapter_kind(raw: Any) -> Any:
    kinds = (*adapter_names(), NONE)  # those that are registered when a value is read
    if raw not in kinds:
        raise ValueError(_not_one_of(raw, kinds))
    return raw


LIGHT_METHODS = (
    "zero_shot", "nearest_mean", "logistic", "kernel_ridge", "gda", "tip_adapter", "tip_adapter_f", "lp_plus_plus",
    "class_adaptive", "clip_adapter", "timo",
)  # fmt: skip
"""Few-shot methods on cached embeddings, by name; :mod:`avfewshot.methods` has them."""

ADAPTER_METHODS = ("dgsct", "lavish", "stg_cma")
"""Few-shot methods that are adapters between the towers; `lavish` is `dgsct` with ``--adapter-kind lavish``."""

TUNED_METHODS = (*ADAPTER_METHODS, "coop", "cocoop", "maple", "clip-lora")
"""Few-shot methods that are tuned through the towers."""


def method_choices() -> tuple[str, ...]:
    """Names of few-shot methods, those of other packages included."""
    from importlib.metadata import entry_points

    return (AUTO, *LIGHT_METHODS, *TUNED_METHODS, *(entry.name for entry in entry_points(group="avfewshot.methods")))


def _method(raw: Any) -> Any:
    if raw not in (AUTO, *LIGHT_METHODS, *TUNED_METHODS) and raw not in method_choices():
        raise ValueError(_not_one_of(raw, method_choices()))
    return raw


def _names(raw: Any) -> tuple[str, ...]:
    return tuple(dict.fromkeys(map(_method, _items(raw))))


def _shots(raw: Any) -> tuple[int, ...]:
    try:
        shots = sorted(map(int, _items(raw)))
    except (TypeError, ValueError):
        shots = []
    if not shots or shots[0] < 1 or len(set(shots)) < len(shots):
        raise ValueError(f"different whole numbers of at least 1, as 1,2,4, are needed, not {raw!r}.")
    return tuple(shots)


def _contexts(raw: Any) -> tuple[str, ...]:
    items = _items(raw)
    if wrong := [item for item in items if item not in AUDIO_CONTEXTS] or ([] if items else [raw]):
        raise ValueError(_not_one_of(wrong[0], AUDIO_CONTEXTS))
    return tuple(dict.fromkeys(items))


def _not_one_of(raw: Any, choices: Collection[str]) -> str:
    if not isinstance(raw, str):
        return f"one of {', '.join(choices)} is needed, not {raw!r}."
    return f"{raw!r} is not one of {', '.join(choices)}.{did_you_mean(raw, choices)}"


Text = Annotated[str, BeforeValidator(_text)]
Secret = Annotated[str, BeforeValidator(_text), Shown("TEXT", show=lambda value: "(set, not shown)")]
FilePath = Annotated[Path, BeforeValidator(_path), Shown("PATH")]
Folder = Annotated[Path, BeforeValidator(_path), Shown("DIR")]
Texts = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda raw: tuple(map(str, raw)) if isinstance(raw, (list, tuple)) else (str(raw),)),
    Shown("TEXT", show=lambda value: ", ".join(value), repeated=True),
]
Folders = Annotated[
    tuple[Path, ...],
    BeforeValidator(lambda raw: tuple(map(_path, raw)) if isinstance(raw, (list, tuple)) else (_path(raw),)),
    Shown("DIR", show=lambda value: ", ".join(map(str, value)), repeated=True),
]
Device = Annotated[
    str, BeforeValidator(_device), Shown("auto|cpu|cuda|cuda:N|mps", lambda: ("auto", "cpu", "cuda", "cuda:0", "mps"))
]
Seed = Annotated[int, BeforeValidator(_seed), Shown("INTEGER")]
_commas = ",".join
_NUMBERS = Shown("INTEGER[,INTEGER...]", show=lambda value: _commas(map(str, value)))
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds), _NUMBERS]
Shots = Annotated[tuple[int, ...], BeforeValidator(_shots), _NUMBERS]
Names = Annotated[tuple[str, ...], BeforeValidator(_names), Shown("NAME[,NAME...]", method_choices, show=_commas)]
Contexts = Annotated[
    tuple[str, ...], BeforeValidator(_contexts), Shown("second|clip[,...]", lambda: AUDIO_CONTEXTS, show=_commas)
]
Size = Annotated[int, BeforeValidator(_size), Shown("SIZE", show=_shown_size)]
AdapterKind = Annotated[
    str, BeforeValidator(_adapter_kind), Shown("|".join((*adapter_names(), NONE)), lambda: (*adapter_names(), NONE))
]
Method = Annotated[str, BeforeValidator(_method), Shown("auto|NAME", method_choices)]
Real = Annotated[float, BeforeValidator(_number), AllowInfNan(False)]
Factor = Annotated[Real, Ge(0)]
Count = Annotated[int, Ge(1)]
Auto = Literal["auto"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Fusion = Literal["weighted", "product"]
Pool = Literal["mean", "event"]
Background = Literal["threshold", "prompt", "none"]
_HEARD = "How sound is embedded: each second alone, or up to ten seconds in one pass (docs/audio-context.md)."


def _leaves(annotation: Any, metadata: tuple[Any, ...] = ()) -> Iterator[tuple[Any, tuple[Any, ...]]]:
    """The single types of an annotation with their bounds; None is left out."""
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *own = get_args(annotation)
        yield from _leaves(base, (*own, *metadata))
    elif origin in (Union, types.UnionType):
        for part in get_args(annotation):
            yield from _leaves(part, metadata)
    elif annotation is not type(None):
        yield annotation, metadata


@dataclass(frozen=True)
class Setting:
    """A field of a model as people meet it."""

    name: str  # of the field
    section: str | None  # the field of the command that it lies in
    annotation: Any
    default: Any  # its value when nobody sets it; None means that the program decides
    help: str  # one line for people
    panel: str | None  # title of the box that the option stands in
    flag: str  # the option on the command line; capitals for an argument
    given_metavar: str | None
    unset: str  # what to show for a default of None
    saved: bool  # whether the environment and avfs.toml can set it

    @property
    def key(self) -> str:
        """The flag as a name in Python, of an argument its field: unique within a command."""
        return self.flag[2:].replace("-", "_") if self.flag.startswith("--") else self.name

    @functools.cached_property
    def leaves(self) -> list[tuple[Any, tuple[Any, ...]]]:
        """The types that its value can have, with their bounds."""
        return list(_leaves(self.annotation))

    @functools.cached_property
    def shown(self) -> Shown | None:
        """How people meet its type, where the type says it."""
        return next((item for _, metadata in self.leaves for item in metadata if isinstance(item, Shown)), None)

    @functools.cached_property
    def words(self) -> list[str]:
        """The words that its value can be."""
        return [word for leaf, _ in self.leaves if get_origin(leaf) is Literal for word in get_args(leaf)]

    @property
    def choices(self) -> tuple[str, ...]:
        """Values for shell completion."""
        return (*(self.shown.choices() if self.shown else ()), *self.words)

    @property
    def is_switch(self) -> bool:
        """Whether it is yes or no (or ``auto``)."""
        return any(leaf is bool for leaf, _ in self.leaves)

    @property
    def is_list(self) -> bool:
        """Whether its option may be repeated."""
        return self.shown is not None and self.shown.repeated

    @property
    def metavar(self) -> str:
        """How help texts describe the values."""
        names = {int: "INTEGER", float: "NUMBER", bool: "BOOLEAN", str: "TEXT"}
        plain = [names[leaf] for leaf, _ in self.leaves if leaf in names]
        return self.given_metavar or "|".join([*([self.shown.metavar] if self.shown else plain), *self.words])

    def show(self, value: Any) -> str:
        """A value as the person would write it."""
        if value is None or isinstance(value, bool):
            return self.unset if value is None else str(value).lower()
        return f"{value:g}" if isinstance(value, float) else self.shown.show(value) if self.shown else str(value)

    def parse(self, raw: Any, *, from_text: bool) -> Any:
        """The checked value of what a flag or the environment (text) or a file (typed already) gives.

        Raises:
            ValueError: With what was expected, for people.
        """
        value = raw
        if from_text and isinstance(raw, str):
            kinds = [leaf for leaf, _ in self.leaves]
            if int in kinds and not self.shown and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", raw):
                value = int(raw)
            elif bool in kinds:
                value = _SWITCHES.get(raw.strip().lower(), raw)
        try:
            return _checker(self.annotation).validate_python(value)
        except ValidationError as error:
            raise ValueError(self.explain(raw, error.errors())) from None

    def explain(self, raw: Any, errors: Iterable[Mapping[str, Any]]) -> str:
        """Pydantic's errors of a value in words for people."""
        own = [error["ctx"]["error"] for error in errors if error["type"] == "value_error"]
        if own:  # a validator of this module has said it
            return str(own[0])
        for leaf, metadata in self.leaves:
            if leaf in (bool, str):
                return f"{'true or false' if leaf is bool else 'a text'} is needed, not {raw!r}."
            if leaf in (int, float):
                limits = {type(item): item for item in metadata}
                bounds = f"greater than {limits[Gt].gt:g}" if Gt in limits else f"of at least {limits[Ge].ge:g}"
                bounds += f" and at most {limits[Le].le:g}" if Le in limits else ""
                what, mark = ("whole number", "'") if leaf is int else ("number", "")
                word = "".join(f" or {mark}{word}{mark}" for word in self.words)
                return f"a {what} {bounds}{word} is needed, not {raw!r}."
        return _not_one_of(raw, self.words)


_SWITCHES: Mapping[Any, bool] = dict.fromkeys(("1", "true", "yes", "on"), True) | dict.fromkeys(
    ("0", "false", "no", "off"), False
)


@functools.cache
def _checker(annotation: Any) -> TypeAdapter[Any]:
    return TypeAdapter(annotation, config=ConfigDict(strict=True))


def setting(
    default: Any,
    help: str,
    *,
    panel: str | None = None,
    flag: str | None = None,
    metavar: str | None = None,
    unset: str = UNSET,
    saved: bool = False,
) -> Any:
    """A field that people can set; the arguments are those of :class:`Setting`."""
    extra = {"panel": panel, "flag": flag, "given_metavar": metavar, "unset": unset, "saved": saved}
    return Field(default, description=help, json_schema_extra=extra)


def section(model: type[Settings]) -> Any:
    """A field of a command that holds a group of settings."""
    return Field(default_factory=model)


# ---------------------------------------------------------------------------------------------- models


Rule = tuple[tuple[str, ...], Callable[[Mapping[str, Any]], bool], str, str]
"""(fields, whether their values contradict each other, what is wrong, what to do)."""


class Settings(BaseModel):
    """A group of settings; whatever makes one checks it and raises all that is wrong at once as :class:`UsageError`."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())

    RULES: ClassVar[tuple[Rule, ...]] = ()

    def __init_subclass__(cls, *, panel: str | None = None, **kwargs: Any) -> None:
        """Let the settings of a class stand in its `panel`, but for those that name another."""
        for info in vars(cls).values():
            if isinstance(info, FieldInfo) and isinstance(extra := info.json_schema_extra, dict):
                extra["panel"] = extra["panel"] or panel

    def __init__(self, **values: Any) -> None:
        values = {**self.defaults_given(values), **values}
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise_faults(self._explained(values, error))
        raise_faults(self.contradictions(dict(self), ()))

    @classmethod
    def defaults_given(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Defaults that depend on other values."""
        return {}

    @classmethod
    def contradictions(cls, values: Mapping[str, Any], unsound: Collection[str]) -> list[UsageError]:
        """What does not go together, but for fields that are wrong by themselves."""
        return [
            UsageError(message, hint=hint)
            for names, contradict, message, hint in cls.RULES
            if not set(names) & set(unsound) and contradict(values)
        ]

    @classmethod
    def _explained(cls, values: Mapping[str, Any], error: ValidationError) -> list[UsageError]:
        known = settings_of(cls, by_field=True)
        by_name: dict[str, list[Any]] = {}
        for single in error.errors():
            by_name.setdefault(str(single["loc"][0]), []).append(single)
        return [
            UsageError(f"{name}: {known[name].explain(values.get(name), errors)}")
            if name in known
            else unknown(name, name, known)
            for name, errors in by_name.items()
        ]

    def replace(self, **changes: Any) -> Self:
        """A copy with other values, checked."""
        return type(self)(**{**dict(self), **changes})

    def to_dict(self) -> dict[str, Any]:
        """All fields as JSON-ready values."""
        return self.model_dump(mode="json")

    def to_yaml(self) -> str:
        """As a file for ``--config``."""
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str = "configuration") -> Self:
        """Read what :meth:`to_dict` gave; what is missing has its default. Messages begin with `where`.

        Raises:
            UsageError: Names or values are wrong; all of them at once.
        """
        faults: list[UsageError] = []
        sections = {
            name: info.default_factory
            for name, info in cls.model_fields.items()
            if isinstance(info.default_factory, type) and issubclass(info.default_factory, Settings)
        }
        read: dict[str, Any] = {}
        for name, model in sections.items():
            if not isinstance(part := values.get(name, {}), Mapping):
                faults.append(UsageError(f"{where}: {name} must hold settings."))
            elif group := collect(faults, functools.partial(model.from_dict, part, where=where)):
                read[name] = group
        flat = {name: value for name, value in values.items() if name not in sections}
        known = settings_of(cls, by_field=True)
        read |= check_values(flat, {n: s for n, s in known.items() if s.section is None}, f"{where}: ", faults)
        raise_faults(faults)
        return cls(**read)

    def absolute(self) -> Self:
        """A copy whose paths hold in any folder."""

        def full(value: Any) -> Any:
            if isinstance(value, Settings):
                return value.absolute()
            if isinstance(value, tuple):
                return tuple(map(full, value))
            return value.absolute() if isinstance(value, Path) else value

        return self.model_copy(update={name: full(value) for name, value in self})


DATA, ADAPTERS, METHOD, TRAINING = "Data", "Adapters", "Method", "Training"
MODEL, COST, BY_PATH, OUTPUT, DEVICES = "Model", "Memory and speed", "Weights by path", "Output", "Devices"
A_TASK = "A task instead of files"


class BackboneConfig(Settings, panel=MODEL):
    """Which frozen towers there are and where they compute."""

    backbone: Text = setting("base", "Preset (`avfs weights list`) or a YAML file of your own.", saved=True)
    weights: Literal["pretrained", "random"] = setting(
        "pretrained", "`random` needs no files; its results mean nothing.", saved=True
    )
    device: Device = setting("auto", "Where to compute.", saved=True)
    frame_backend: Literal["auto", "decord", "pyav"] = setting("auto", "What decodes the frames.", saved=True)
    templates: Text | None = setting(
        None, "Prompt templates: a name, a YAML file or a text file.", panel=METHOD, unset="the backbone's", saved=True
    )
    clip_weights: FilePath | None = setting(
        None, "CLIP checkpoint by path, instead of the preset's.", panel=BY_PATH, unset="the preset's", saved=True
    )
    clap_weights: FilePath | None = setting(
        None, "CLAP checkpoint by path, instead of the preset's.", panel=BY_PATH, unset="the preset's", saved=True
    )
    roberta: FilePath | None = setting(
        None,
        "Folder with RoBERTa's tokenizer files, instead of the hub's.",
        panel=BY_PATH,
        unset="the hub's",
        saved=True,
    )


class AdapterConfig(Settings, panel=ADAPTERS):
    """The adapters and projectors between the towers: what decides which tensors there are, and what they do.

    The settings of DG-SCT are Duan et al.'s (NeurIPS 2023, arXiv 2311.05152) where the paper gives them.
    """

    adapter: AdapterKind = setting(
        "dgsct", "What connects the towers; docs/fewshot.md says which settings are whose.", flag="--adapter-kind"
    )
    alpha: Factor = setting(0.2, "Factor of the channel attention (Eq. 6).")
    beta: Factor = setting(0.05, "Factor of the spatial attention (Eq. 6).")
    gamma: Factor = setting(0.05, "Factor of the temporal gate (Eq. 7); 0.01 for ave, 0.05 elsewhere.")
    channel: bool = setting(True, "Channel attention (C, Eq. 3).")
    spatial: bool = setting(True, "Spatial attention (S, Eq. 4); stg_cma: the step behind attention.")
    temporal: bool = setting(True, "Temporal gate in the last layer (T, Eq. 5); stg_cma: the step along time.")
    a2v: bool = setting(True, "Sound guides sight.")
    v2a: bool = setting(True, "Sight guides sound.")
    variant: Literal["paper", "compact", "released-8-heads"] = setting(
        "paper",
        "Channel attention as printed (Eq. 3), or in the space of `--hidden`; stg_cma: its code ran ViT-B/16 with 8 "
        "heads instead of 12.",
    )
    hidden: Count | Auto = setting(
        "auto", "Width of the space of attention maps; `auto`: a third of CLIP's (256 for base)."
    )
    output: Literal["gate", "bottleneck"] = setting("gate", "How guidance ends: a factor a channel, or an MLP.")
    bottleneck: Count = setting(64, "Width of that MLP.")
    reduction: Count | Auto = setting("auto", "lavish, stg_cma: what bottlenecks divide the width by; `auto`: 8.")
    latents: Count = setting(2, "lavish: tokens that gather the other modality.")
    groups: Count = setting(2, "lavish: groups of the bottleneck's maps.")
    batch_norm: bool = setting(True, "lavish: batch norm behind the bottleneck's maps.")
    layer_norm: bool = setting(True, "lavish: layer norm before and behind the bottleneck.")
    bridge: Literal["linear", "published"] = setting(
        "linear", "lavish, unequal widths: a map of channels, or of tokens too as in DG-SCT's comparison."
    )
    global_step: bool = setting(True, "stg_cma: the step behind the MLP.")
    exchange: bool = setting(True, "stg_cma: the modalities exchange; else each is adapted alone.")
    positions: Count = setting(10, "stg_cma: segments that are told apart in time.")
    drop_path: Annotated[Real, Ge(0), Le(0.9)] = setting(
        0.2, "stg_cma: share of steps along time that training leaves out in the last layer."
    )
    projector: Literal["residual", "mlp", "none"] = setting("residual", "Trainable maps on all embeddings (Eq. 8).")

    @property
    def adapter_title(self) -> str:
        """What the chosen adapter is called in messages."""
        return {"dgsct": "DG-SCT", "lavish": "LAVISH", "stg_cma": "STG-CMA", NONE: "projectors"}.get(
            self.adapter, self.adapter
        )

    @property
    def adapter_settings(self) -> dict[str, Any]:
        """The chosen adapter's own, without what is ``"auto"``; one of another package gets all there are."""
        kind = SETTINGS.get(self.adapter)
        names = [name for name in SHAPING if name not in ("adapter", "projector")]
        names = names if kind is None else [one.name for one in fields(kind)]
        return {name: value for name in names if (value := getattr(self, name)) != AUTO}


SHAPING = tuple(AdapterConfig.model_fields)
"""Fields that a training takes over from the checkpoint that it begins with."""


class TrainerConfig(AdapterConfig, panel=TRAINING):
    """What a few-shot training and a pretraining have in common."""

    objective: Literal["contrastive", "classes"] = setting(
        "classes", "Candidates: texts of the batch, or all.", panel=METHOD
    )
    matching: Literal["softmax", "cosine"] = setting(
        "softmax", "What the modality weights are made of (Eq. 11).", panel=METHOD
    )
    fusion: Fusion = setting("weighted", "How the two modalities are joined.", panel=METHOD)
    pool: Pool = setting("event", "How the seconds of a clip are pooled; the paper's is mean.", panel=METHOD)
    blend: Annotated[Real, Ge(0), Le(1)] | Auto = setting(
        "auto", "Share of the trained logits beside the zero-shot ones; `auto`: validation.", panel=METHOD
    )
    window: Count = setting(10, "Seconds that go through the adapters together.", panel=METHOD)

    optimizer: Literal["adam", "adamw"] = setting("adam", "Adam is the paper's.")
    lr: Annotated[Real, Gt(0)] = setting(3e-4, "Learning rate.")
    gate_lr: Factor = setting(1.0, "Factor of the learning rate of the adapters' gates, which begin at zero.")
    weight_decay: Factor = setting(0.0, "Weight decay.")
    batch_size: Count = setting(2, "Clips of a batch.")
    accumulation: Count = setting(1, "Batches whose gradients are summed up for a step.")
    clip_norm: Factor = setting(1.0, "Bound on the gradient's norm; 0: none. Not given by the paper.")
    schedule: Literal["constant", "cosine", "step"] = setting("cosine", "Of the learning rate; not in the paper.")
    warmup: Annotated[Real, Ge(0), Le(0.5)] = setting(
        0.0, "Share of all steps in which the learning rate rises from zero."
    )
    step_epochs: Count = setting(2, "Epochs between the steps of the step schedule.")
    step_factor: Annotated[Real, Gt(0), Le(1)] = setting(0.1, "What a step multiplies the learning rate with.")
    epochs: Count | Auto = setting(AUTO, "Passes over the clips, at most.")
    validate_every: Count | Auto = setting(
        "auto", "Epochs between validations; `auto`: one takes no longer than the training does."
    )

    precision: Precision = setting("auto", "Number format of the towers.", panel=MODEL, saved=True)
    checkpointing: bool | Auto = setting(
        "auto",
        "Compute activations twice: half as slow again, far less memory; `auto`: for large towers, if not on a GPU of "
        "16 GB or more.",
        panel=COST,
    )
    cuda_graphs: bool = setting(
        False,
        "On a single GPU: record the passes of a step once and replay them; faster for small batches.",
        panel=COST,
    )
    micro_batch: Count | Auto = setting(
        "auto", "Clips at once; `auto` begins with the batch and shrinks when memory ends.", panel=COST
    )
    cache_size: Size = setting(20_000_000_000, "Bound on decoded clips kept on disk; 0: none.", panel=COST)
    workers: Annotated[int, Ge(0)] = setting(
        2, "Processes that decode clips ahead of the model; 0: one clip at a time.", panel=COST
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        (
            ("adapter", "a2v", "v2a"),
            lambda v: v["adapter"] != NONE and not (v["a2v"] or v["v2a"]),
            "a2v and v2a are both off: the adapter would do nothing.",
            "Switch one of them on, or set adapter to none.",
        ),
        (
            ("adapter", "variant"),
            lambda v: v["variant"] == "released-8-heads" and v["adapter"] != "stg_cma",
            "variant released-8-heads is of adapter stg_cma.",
            "Use --adapter-kind stg_cma, or another variant.",
        ),
        (
            ("adapter", "projector"),
            lambda v: v["adapter"] == NONE and v["projector"] == NONE,
            "adapter and projector are both none: there is nothing to train.",
            "For a model without training: avfs zeroshot --task TASK.",
        ),
        (
            ("micro_batch", "batch_size"),
            lambda v: v["micro_batch"] != AUTO and v["micro_batch"] > v["batch_size"],
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


TASK_DEFAULTS: Mapping[str, Mapping[str, Any]] = types.MappingProxyType({"ave": {"gamma": 0.01}})
"""What the paper sets otherwise for a task than the defaults of :class:`TrainingConfig`."""


PAPER: Mapping[str, Any] = types.MappingProxyType(
    {
        "method": "dgsct",
        "objective": "contrastive",
        "pool": "mean",
        "blend": 1.0,
        "projector": "mlp",
        "anchors": "text",
        "background": "prompt",
        "schedule": "constant",
        "clip_norm": 0.0,
        "patience": 0,
        "val_shots": 0,
    }
)
"""What ``recipe: paper`` sets: what Duan et al. print, and what their released code does where they are silent."""


class TrainingConfig(TrainerConfig):
    """A few-shot training: every choice that its result depends on.

    Adam, learning rate 3e-4, batches of 2, alpha, beta and gamma are those of Duan et al. (arXiv 2311.05152); what the
    paper leaves open (epochs, schedule, early stopping, clipping) says so in its help.
    """

    task: Task = setting("folder", "What is learnt and how it is judged.")
    shots: Count = setting(16, "Training clips of each class.")
    recipe: Literal["default", "paper"] = setting(
        "default",
        "Defaults of DG-SCT: ours, or those of Duan et al. (docs/fewshot.md has the differences).",
        panel=METHOD,
    )
    method: Method = setting(
        AUTO,
        "How it is learnt: `auto` fits light methods on frozen embeddings, trains DG-SCT and joins them; or one of "
        f"{', '.join((*LIGHT_METHODS, *TUNED_METHODS))}.",
    )
    tune: bool = setting(True, "Train DG-SCT for `auto`; without it a run takes seconds.")
    epochs: Count | Auto = setting(
        AUTO,
        "Passes over the support, at most; `auto`: about 500 steps, in 3 to 20 of them. Not given by the paper.",
        panel=TRAINING,
    )
    max_steps: Count | None = setting(
        None, "Optimizer steps, at most; for a short trial.", panel=TRAINING, unset="as the epochs say"
    )
    val_shots: Annotated[int, Ge(0)] | Literal["auto", "all"] = setting(
        AUTO,
        "Validation clips of each class for what is trained, counted as labels; `auto`: min(shots, 4), `all`: the "
        "whole val split. Light methods need none.",
        panel=DATA,
    )
    seeds: Seeds = setting((1,), "A training for each: of the draw, the weights and the order.")
    sampler: Literal["nested", "first-k"] = setting(
        "nested", "How they are drawn: by seed, or the first rows.", panel=DATA
    )
    multi_label: bool = setting(
        False, "Draw clips with several labels too; in --data, files that are linked into several folders.", panel=DATA
    )
    background: Background = setting("threshold", "How seconds without an event are told (task ave).", panel=METHOD)
    anchors: Literal["auto", "text", "support"] = setting(
        AUTO,
        "What DG-SCT compares clips with: texts, or texts and the class means of the support; `auto`: the means where "
        "they answer better on support clips that are left out of them. Tasks that label seconds: texts.",
        panel=METHOD,
    )
    patience: Annotated[int, Ge(0)] = setting(
        5, "Stop after so many epochs without a better validation figure; 0: never.", panel=TRAINING
    )

    audio_context: AudioContext = setting(
        "second", f"{_HEARD} What is trained through the towers hears seconds.", panel=MODEL, saved=True
    )

    @classmethod
    def defaults_given(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Those of the task and of the recipe."""
        task = values.get("task")
        of_task = TASK_DEFAULTS.get(task, {}) if isinstance(task, str) else {}
        return {**of_task, **(PAPER if values.get("recipe") == "paper" else {})}


class PretrainingConfig(TrainerConfig):
    """A pretraining: batches large enough to tell a clip from many others."""

    task: ClassVar[str] = "vggsound_cls"

    seed: Seed = setting(1, "Of weights and order.")
    objective: Literal["contrastive", "classes"] = setting(
        "contrastive", "Candidates: texts of the batch, or all.", panel=METHOD
    )
    batch_size: Count = setting(32, "Clips of a batch.", panel=TRAINING)
    warmup: Annotated[Real, Ge(0), Le(0.5)] = setting(
        0.05, "Share of all steps in which the learning rate rises from zero.", panel=TRAINING
    )
    epochs: Count = setting(10, "Passes over the clips.", panel=TRAINING)
    workers: Annotated[int, Ge(0)] = setting(
        4, "Processes that decode clips ahead of the model; 0: one clip at a time.", panel=COST
    )


def read_training(values: Mapping[str, Any], *, where: str) -> TrainingConfig | PretrainingConfig:
    """The settings of a training as a checkpoint's ``config.json`` holds them, of this version or before.

    Raises:
        UsageError: Names or values are wrong; all of them at once.
    """
    return (PretrainingConfig if "seed" in values else TrainingConfig).from_dict(values, where=where)


COMMANDS: dict[str, type[CommandConfig]] = {}
"""The commands by the name of their table."""


class CommandConfig(Settings):
    """All that a command is asked for; with ``run.json`` holding its ``model_dump``."""

    table: ClassVar[str]

    def __init_subclass__(cls, *, table: str, **kwargs: Any) -> None:
        """Make it known by its table."""
        super().__init_subclass__(**kwargs)
        cls.table = table
        COMMANDS[table] = cls


class TowersConfig(BackboneConfig, panel=MODEL):
    """How clips are embedded."""

    precision: Precision = setting("auto", "Number format of the towers.", saved=True)
    batch_size: Count | Auto = setting("auto", "Seconds of clips that go through the towers at once.", saved=True)
    seed: Annotated[int, Ge(0)] = setting(0, "Seed of random weights.", saved=True)
    audio_context: AudioContext = setting("second", _HEARD, saved=True)


class InferenceConfig(TowersConfig):
    """How clips are classified."""

    adapter: FilePath | None = setting(
        None,
        "Folder of a training run or a checkpoint, to predict with what was trained. What is not set is then as it was "
        "trained: backbone, templates, fusion, pool.",
        panel=MODEL,
        saved=True,
    )
    modality: Literal["av", "visual", "audio"] = setting(
        "av", "What to use: both, only sight, only sound.", panel=METHOD, saved=True
    )
    fusion: Fusion = setting("weighted", "How the two modalities are joined.", panel=METHOD, saved=True)
    pool: Pool = setting("event", "How the seconds of a clip are pooled.", panel=METHOD, saved=True)


class EngineConfig(Settings, panel=COST):
    """What distributes the work."""

    engine: Literal["local", "ray"] = setting(
        "local", "What distributes the work: this process, or Ray, on many machines."
    )
    address: Text | None = setting(
        None, "Ray cluster, as HOST:PORT or `auto`.", metavar="ADDRESS", unset="Ray on this machine"
    )


class OutputConfig(Settings):
    """What is classified and where the answer goes."""

    labels: FilePath | None = setting(
        None, "Label file: one a line; `label: a longer wording`. `-` reads standard input.", saved=True
    )
    label: Texts = setting((), "A label on the command line, instead of a file; may be repeated.")
    recursive: bool = setting(True, "Look into sub-folders.", saved=True)
    store: Folder | None = setting(
        None, "Store of `avfs embed`: its clips are not decoded again; without PATH, they are what is classified."
    )
    topk: Count = setting(5, "Labels to show for each clip in tables and reports.", panel=OUTPUT, saved=True)
    segments: bool = setting(False, "Also say what each second holds.", panel=OUTPUT, saved=True)
    multi_label: bool = setting(
        False,
        "Also give all labels that a clip carries: by thresholds that a run has from left-out clips; without a run, "
        "those that stand out among the labels.",
        panel=OUTPUT,
    )
    reject: bool = setting(
        False, "With a run: answer `unknown` where a clip is like nothing that was learnt.", panel=OUTPUT
    )
    format: Literal[
        "table", "json", "jsonl", "csv", "csv-segments", "srt", "vtt", "eaf", "labelstudio", "fiftyone", "all"
    ] = setting(
        "table",
        "Form of the results; srt, vtt (subtitles) and eaf (ELAN) are timelines, one file a clip; labelstudio is its "
        "tasks, fiftyone a folder that it imports.",
        panel=OUTPUT,
        saved=True,
    )
    output: str | None = setting(
        None,
        "File for the results, whose suffix chooses the format where --format does not; for `--format all` a folder or "
        "a path without suffix.",
        panel=OUTPUT,
        metavar="PATH",
        unset="stdout",
    )
    resume: bool = setting(True, "Go on with a .jsonl file where it stopped, or begin it anew.", panel=OUTPUT)
    report: str | None = setting(
        None,
        "Also write one self-contained page with pictures, scores and timelines.",
        panel=OUTPUT,
        metavar="FILE.html",
    )
    overlay: Folder | None = setting(
        None, "Also write each clip as a video with its labels burnt in; the folder is made.", panel=OUTPUT
    )


class TaskConfig(Settings, panel=A_TASK):
    """A data set to evaluate on instead of files."""

    task: str | None = setting(
        None,
        "Evaluate on the test clips of a data set: no labels, no PATH.",
        metavar="ave|ave_cls|llp_cls|vggsound_cls",
    )
    root: Folder | None = setting(None, "Folder of the task's data set.")
    media: Folders = setting((), "Folder of its clips, if elsewhere; may be repeated.")
    list_file: FilePath | None = setting(None, "For vggsound_cls: the list to read.", flag="--list", metavar="FILE")
    vggsounder: FilePath | None = setting(
        None, "For vggsound_cls: several labels a clip, by vggsounder.csv.", metavar="FILE"
    )
    background: Background | None = setting(
        None, "For ave: how seconds without an event are told.", unset="threshold, by validation"
    )


class ZeroshotConfig(CommandConfig, table="zeroshot"):
    """``avfs zeroshot``."""

    output: OutputConfig = section(OutputConfig)
    model: InferenceConfig = section(InferenceConfig)
    task: TaskConfig = section(TaskConfig)
    distribution: EngineConfig = section(EngineConfig)


class ExportModelConfig(BackboneConfig):
    """What is exported; it computes on the CPU in fp32."""

    adapter: FilePath | None = setting(None, "A run folder, or that of an adapter.", flag="RUN", saved=True)
    seed: Annotated[int, Ge(0)] = setting(0, "Seed of random weights.", panel=MODEL, saved=True)


class ExportConfig(CommandConfig, table="export"):
    """``avfs export``."""

    onnx: Folder | None = setting(None, "Folder for the graphs; made if it is not there.", metavar="DIR")
    labels: FilePath | None = setting(
        None, "Label file: one a line; `label: a longer wording`. Without it the labels of the run.", saved=True
    )
    label: Texts = setting((), "A label on the command line, instead of a file; may be repeated.")
    model: ExportModelConfig = section(ExportModelConfig)


class ServeConfig(CommandConfig, table="serve"):
    """``avfs serve``."""

    labels: FilePath | None = setting(
        None, "Label file: one a line; `label: a longer wording`. The page can change them.", saved=True
    )
    label: Texts = setting((), "A label on the command line, instead of a file; may be repeated.")
    recursive: bool = setting(True, "Look into sub-folders.", saved=True)
    model: InferenceConfig = section(InferenceConfig)
    host: Text = setting(
        "127.0.0.1", "Address to listen at; any but this machine's own needs the token that is then printed."
    )
    port: Annotated[int, Ge(0), Le(65535)] = setting(8765, "Port; 0: any free one.")
    token: Secret | None = setting(
        None,
        "What a client has to know; better set as AVFS_TOKEN, which other users cannot see.",
        saved=True,
        unset="made up where --host needs one",
    )
    max_upload: Count = setting(1000, "Largest upload, in MB.")
    store: Folder | None = setting(None, "Store of `avfs embed`, to take embeddings from.")
    runs: Folder = setting(Path("runs"), "Folder that runs are saved in.", metavar="PATH", saved=True)


class SupervisedRunConfig(Settings):
    """Where a training leaves its files."""

    config: FilePath | None = setting(None, "YAML file with training settings, named as the options.", saved=True)
    runs: Folder = setting(Path("runs"), "Folder that run folders are made in.", metavar="PATH", saved=True)
    name: str | None = setting(None, "What the run folder is called.")
    tracker: Tracker | None = setting(None, "Also send metrics there, as they come; needs the extra of that name.")


class RunConfig(SupervisedRunConfig):
    """Where a training begins and leaves its files."""

    adapter: FilePath | None = setting(
        None, "Run or checkpoint to begin with, such as a pretrained one.", panel=ADAPTERS, metavar="RUN",
        unset="new adapters",
    )  # fmt: skip


class ClipsConfig(Settings, panel=DATA):
    """Where the clips of a few-shot training are."""

    data: Folder | None = setting(
        None, "Clips of your own: DIR/CLASS/*.mp4, or DIR/train/CLASS/*.mp4 with val and test."
    )
    root: Folder | None = setting(None, "Folder of the task's data set.")
    media: Folders = setting((), "Folder of its clips, if elsewhere; may be repeated.")
    list_file: FilePath | None = setting(None, "For vggsound_cls.", flag="--list", metavar="FILE")
    store: Folder | None = setting(None, "Store of `avfs embed`, for embeddings of clips that it holds.")


class FewshotConfig(CommandConfig, table="fewshot"):
    """``avfs fewshot``."""

    training: TrainingConfig = section(TrainingConfig)
    run: RunConfig = section(RunConfig)
    data: ClipsConfig = section(ClipsConfig)
    model: BackboneConfig = section(BackboneConfig)


class CompareConfig(CommandConfig, table="compare"):
    """``avfs compare``."""

    task: Task = setting("folder", "What is learnt and how it is judged.")
    shots: Shots = setting((1, 2, 4, 8, 16), "Training clips of each class, one table for each.")
    methods: Names = setting(
        ("auto",), "Further methods beside those of `auto`, by comma: any of `avfs fewshot --method`, dgsct too."
    )
    seeds: Seeds = setting((1, 2, 3), "Draws of the support and, where something is trained, trainings.")
    audio_context: Contexts = setting(("second",), f"{_HEARD} Both, by comma, stand side by side.", panel=MODEL)
    protocol: Literal["mteb"] | None = setting(
        None,
        'A row by a public protocol, for ave_cls: mteb\'s zero-shot (prompt "a video of {name}", top-1).',
        unset=NONE,
    )
    efficiency: bool = setting(
        False, "Parameters and GFLOPs of what is trained through the towers (Table 6), beside the published; no data."
    )
    ablate: Literal["modules", "directions", "factors"] | None = setting(
        None,
        "DG-SCT with parts of it: its modules S, C, T (Table 5 of the paper), its directions (Table 8), or sweeps of "
        "alpha, beta and gamma (Table 9, Fig. 8). Each row is trained.",
        unset=NONE,
    )
    epochs: Count | None = setting(None, "Of what is trained, at most.", panel=TRAINING, unset="by the support")
    max_steps: Count | None = setting(
        None, "Optimizer steps of a training, at most; for a short trial.", panel=TRAINING, unset="as the epochs say"
    )
    lr: Annotated[Real, Gt(0)] | None = setting(None, "Learning rate of adapters.", panel=TRAINING, unset="3e-4")
    gate_lr: Factor | None = setting(None, "Factor of it for gates, which begin at zero.", panel=TRAINING, unset="1")
    batch_size: Count | None = setting(None, "Clips of a batch of adapters.", panel=TRAINING, unset="2")
    runs: Folder = setting(Path("runs"), "Folder that run folders are made in.", metavar="PATH", saved=True)
    name: str | None = setting(None, "What the folder is called; the same name goes on where it stopped.")
    data: ClipsConfig = section(ClipsConfig)
    model: BackboneConfig = section(BackboneConfig)

    @property
    def training(self) -> TrainingConfig:
        """How what is compared is trained; in an ablation the trained logits stand alone, so that rows can differ."""
        own = {"method": "dgsct", "blend": 1.0} if self.ablate else {"tune": False}
        given = {key: getattr(self, key) for key in ("epochs", "max_steps", "lr", "gate_lr", "batch_size")}
        given = {key: value for key, value in given.items() if value is not None}
        return TrainingConfig(task=self.task, seeds=self.seeds, **own, **given)


STORE = "Folder of the store."


class EmbedConfig(CommandConfig, table="embed"):
    """``avfs embed``."""

    store: Folder | None = setting(None, "Folder of the store; made where there is none.")
    recursive: bool = setting(True, "Look into sub-folders.", saved=True)
    retry: bool = setting(False, "Try files again that could not be embedded before.")
    workers: Annotated[int, Ge(0)] = setting(2, "Processes that decode clips ahead.", panel=MODEL)
    model: TowersConfig = section(TowersConfig)
    distribution: EngineConfig = section(EngineConfig)


class FindConfig(CommandConfig, table="find"):
    """``avfs find``."""

    query: Text | None = setting(None, "What to look for, in words.", flag="QUERY", metavar="[QUERY]")
    store: Folder | None = setting(None, STORE)
    by: Literal["sight", "sound", "both"] = setting("both", "What is compared.")
    like: Text | None = setting(
        None, "Instead of words: a clip, or some of its seconds.", metavar="CLIP[:START-END]", unset="by words"
    )
    top: Count = setting(20, "How many clips to show.")
    audio_context: AudioContext | None = setting(
        None, "How the store must have heard its clips; another one is refused.", unset="the store's"
    )
    format: Literal["table", "json", "csv"] = setting("table", "Form of the answer.")
    device: Device = setting("auto", "Where words are encoded.", saved=True)


class SuggestConfig(CommandConfig, table="suggest"):
    """``avfs suggest``."""

    store: Folder | None = setting(None, STORE)
    run: Folder | None = setting(None, "Folder of a few-shot run.")
    count: Count = setting(20, "How many clips to name.")
    format: Literal["table", "json", "csv"] = setting("table", "Form of the answer.")


class ListConfig(Settings, panel=DATA):
    """Where the clips of a pretraining are."""

    root: Folder | None = setting(None, "Folder with the list and the videos.")
    media: Folders = setting((), "Folder of the videos, if elsewhere; may be repeated.")
    list_file: FilePath | None = setting(None, "The list to read.", flag="--list", metavar="FILE")
    shards: Folder | None = setting(None, "Prepared shards instead of videos.")
    against: Folders = setting((), "Folder of a data set that will be evaluated on; may be repeated.")
    keep_leaks: bool = setting(False, "Also train on videos of their test splits.")
    val_clips: Annotated[int, Ge(0)] = setting(1000, "Validation clips at most.")


class RanksConfig(Settings, panel=DEVICES):
    """The devices that a pretraining is spread over; another call of it may have others."""

    devices: Count | Auto = setting(1, "GPUs (or processes) a machine.")
    nodes: Count = setting(1, "Machines.")
    strategy: Literal["auto", "ddp"] = setting("auto", "How ranks work together.")


class PretrainConfig(CommandConfig, table="pretrain"):
    """``avfs pretrain``."""

    dataset: Literal["vggsound40k", "vggsound", "ovave"] | None = setting(
        None, "vggsound40k, vggsound or ovave.", flag="DATASET", metavar="DATASET"
    )
    training: PretrainingConfig = section(PretrainingConfig)
    run: RunConfig = section(RunConfig)
    data: ListConfig = section(ListConfig)
    ranks: RanksConfig = section(RanksConfig)
    model: BackboneConfig = section(BackboneConfig)


class SupervisedTrainingConfig(AdapterConfig):
    """A training of a supervised task; what a head's paper says counts unless somebody sets it."""

    adapter: AdapterKind = setting(
        NONE, "What connects the towers; none: a head on frozen features.", panel=ADAPTERS, flag="--adapter-kind"
    )
    projector: Literal["residual", "mlp", "none"] = setting(
        NONE, "Trainable maps on all embeddings (Eq. 8).", panel=ADAPTERS
    )
    head: Text | None = setting(None, "What answers: cmbs, han, mgn, ...", panel=METHOD, unset="the task's first")
    subset: Text | None = setting(None, "Part or version of the data set, where it has several.", panel=DATA)
    modality: Literal["av", "visual", "audio"] = setting(
        "av", "What is learnt from: both, only sight, only sound.", panel=METHOD
    )
    seeds: Seeds = setting((1,), "A training for each: of weights, order and dropout.")
    lr: Annotated[Real, Gt(0)] | None = setting(None, "Learning rate.", panel=TRAINING, unset="the head's")
    batch_size: Count | None = setting(
        None, "Clips of a batch; with adapters 8 at most.", panel=TRAINING, unset="the head's"
    )
    epochs: Count | None = setting(None, "Passes over the training split, at most.", panel=TRAINING, unset="the head's")
    patience: Annotated[int, Ge(0)] = setting(
        20, "Stop after so many epochs without a better validation figure; 0: never.", panel=TRAINING
    )
    precision: Precision = setting("auto", "Number format of the towers.", panel=MODEL, saved=True)
    checkpointing: bool | Auto = setting(
        "auto", "Compute activations twice, for adapters: slower, far less memory.", panel=COST
    )
    cache_size: Size = setting(20_000_000_000, "Bound on features kept on disk; 0: none.", panel=COST)
    workers: Annotated[int, Ge(0)] = setting(2, "Threads that decode clips ahead.", panel=COST)

    RULES: ClassVar[tuple[Rule, ...]] = TrainerConfig.RULES[:2]


class SupervisedDataConfig(Settings, panel=DATA):
    """Where the data set of a supervised task is."""

    root: Folder | None = setting(None, "Folder of the task's data set.")
    media: Folders = setting((), "Folder of its clips, if elsewhere; may be repeated.")


class SupervisedConfig(CommandConfig, table="train"):
    """``avfs train``."""

    task: Text | None = setting(None, "What is learnt.", flag="TASK", metavar="TASK")
    training: SupervisedTrainingConfig = section(SupervisedTrainingConfig)
    run: SupervisedRunConfig = section(SupervisedRunConfig)
    data: SupervisedDataConfig = section(SupervisedDataConfig)
    model: BackboneConfig = section(BackboneConfig)


class DataFoldersConfig(CommandConfig, table="data"):
    """``[data]``: where data sets lie. Its variables begin with ``AVFS_DATA_``."""

    root: FilePath | None = setting(None, "Folder that holds the data sets.", saved=True)
    ave: FilePath | None = setting(None, "Folder of AVE, where it is not below `root`.", saved=True)
    llp: FilePath | None = setting(None, "Folder of LLP, where it is not below `root`.", saved=True)
    vggsound: FilePath | None = setting(None, "Folder of VGG-Sound, where it is not below `root`.", saved=True)


@functools.cache
def settings_of(model: type[Settings], *, by_field: bool = False) -> dict[str, Setting]:
    """The settings of a model by key (or by the name of the field), with those of its sections."""
    found: list[Setting] = []
    for name, info in model.model_fields.items():
        inner = info.default_factory
        if isinstance(inner, type) and issubclass(inner, Settings):
            found += [replace(single, section=name) for single in settings_of(inner).values()]
        elif isinstance(extra := info.json_schema_extra, dict):
            about: dict[str, Any] = {**extra, "flag": extra["flag"] or "--" + name.replace("_", "-")}
            annotation = info.rebuild_annotation()
            found.append(Setting(name, None, annotation, info.default, info.description or "", **about))
    return {single.name if by_field else single.key: single for single in found}


@functools.cache
def table_settings(table: str) -> dict[str, Setting]:
    """What a table of ``avfs.toml`` and the environment can set, by key."""
    return {key: single for key, single in settings_of(COMMANDS[table]).items() if single.saved}


# ---------------------------------------------------------------------------------------------- layers


@dataclass
class Resolved:
    """The settings of a command."""

    config: Any  # a CommandConfig; what is wrong has its default, so that further checks can go on
    sources: dict[str, str] = field(default_factory=dict)  # by key: "--flag", "AVFS_NAME", a file, "default", ...
    faults: list[UsageError] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        single = settings_of(type(self.config))[key]
        return getattr(getattr(self.config, single.section) if single.section else self.config, single.name)

    def source(self, key: str) -> str:
        """Where a value came from."""
        return self.sources[key]

    def named(self, key: str) -> str:
        """How messages call a setting: by the option, the variable or the file that it was given with."""
        source = self.sources[key]
        if source.startswith("default"):
            return settings_of(type(self.config))[key].flag
        return f"{key} in {source}" if source.startswith(CONFIG_NAME) else source

    def given(self) -> list[str]:
        """Keys that somebody has set."""
        return [key for key, source in self.sources.items() if not source.startswith("default")]

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, source) of every setting, as text."""
        known = settings_of(type(self.config))
        return [(known[key].name, known[key].show(self[key]), source) for key, source in self.sources.items()]

    def check(self) -> Resolved:
        """Raise what was wrong, all at once; return itself otherwise.

        Raises:
            UsageError: A value or a key is wrong.
        """
        raise_faults(self.faults)
        return self


def resolve(
    table: str,
    flags: Mapping[str, Any] | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> Resolved:
    """Find the value of every setting of a command, given its flags by key; None and an empty list mean not given.

    Returns:
        The settings with their sources, and the faults met on the way (nothing is raised: see :meth:`Resolved.check`).
    """
    environ = os.environ if environ is None else environ
    faults: list[UsageError] = []
    document = collect(faults, lambda: read_config(Path() if folder is None else folder)) or {}
    model = COMMANDS[table]
    known = settings_of(model)
    values: dict[str, tuple[Any, str]] = {}
    wrong: set[str] = set()

    def take(key: str, raw: Any, source: str) -> None:
        if key not in values:
            try:
                values[key] = (known[key].parse(raw, from_text=True), source)
            except ValueError as error:
                faults.append(UsageError(f"{source}: {error}"))
                values[key] = (known[key].default, source)
                wrong.add(key)

    for key, raw in (flags or {}).items():
        if key in known and raw is not None and not (isinstance(raw, (list, tuple)) and not raw):
            take(key, raw, known[key].flag)
    for key in table_settings(table):
        variable = environment_name(table, key)
        if environ.get(variable):  # an empty variable counts as not set, as in most programs
            take(key, environ[variable], variable)
        for part, source in ((table, f"{CONFIG_NAME} [{table}]"), ("", CONFIG_NAME)):
            if key in document.get(part, {}) and (part or table != "data"):
                values.setdefault(key, (document[part][key], source))
    if values.get("config", (None,))[0] is not None:
        path, source = values["config"]
        group = {single.name: single for single in known.values() if single.section == "training"}
        read = check_values(
            collect(faults, lambda: _read_yaml(path, source)) or {}, group, f"{path}: ", faults, wrong=wrong
        )
        for name, value in read.items():
            values.setdefault(group[name].key, (value, str(path)))
    return _assemble(model, values, wrong, faults)


def _assemble(
    model: type[CommandConfig], values: dict[str, tuple[Any, str]], wrong: set[str], faults: list[UsageError]
) -> Resolved:
    known = settings_of(model)
    task = values.get("task", (None,))[0]
    others = TASK_DEFAULTS.get(task or "", {}) if model is not ZeroshotConfig else {}
    recipe = PAPER if values.get("recipe", (None,))[0] == "paper" else {}
    groups: dict[str | None, dict[str, Any]] = {}
    sources = {}
    for key, single in known.items():
        default = (others[single.name], f"default of {task}") if single.name in others else (single.default, "default")
        if single.section == "training" and single.name in recipe:
            default = recipe[single.name], "default of recipe paper"
        value, sources[key] = values.get(key, default)
        groups.setdefault(single.section, {})[single.name] = value
    parts = {}
    for name, group in groups.items():
        kind: Any = model if name is None else model.model_fields[name].default_factory
        unsound = [known[key].name for key in wrong if known[key].section == name]
        faults += kind.contradictions(group, unsound)
        if name is not None:
            parts[name] = kind.model_construct(**group)
    return Resolved(model.model_construct(**groups.get(None, {}), **parts), sources, faults)


def environment_name(table: str, key: str) -> str:
    """The environment variable of a setting, for example ``AVFS_BATCH_SIZE`` or ``AVFS_DATA_ROOT``."""
    return f"AVFS_{'DATA_' if table == 'data' else ''}{key.upper()}"


def unknown(shown: str, name: str, valid: Iterable[str], what: str = "Valid") -> UsageError:
    """That a name is unknown, with the nearest and all valid ones."""
    valid = list(valid)
    return UsageError(f"{shown} is unknown.{did_you_mean(name, valid)}", hint=f"{what}: {', '.join(valid)}.")


def check_values(
    raw: Mapping[Any, Any],
    known: Mapping[str, Setting],
    where: str,
    faults: list[UsageError],
    *,
    what: str = "Valid",
    wrong: set[str] | None = None,
) -> dict[str, Any]:
    """The checked values of a file; hyphens in names count as underscores. What is wrong goes to `faults`.

    The keys of wrong values go to `wrong`.
    """
    values: dict[str, Any] = {}
    for key, value in raw.items():
        name = str(key).replace("-", "_")
        if name not in known:
            faults.append(unknown(f"{where}{key}", name, known, what))
        elif name in values:
            faults.append(UsageError(f"{where}{key}: {name} is given twice.", hint="Remove one of them."))
        else:
            try:
                values[name] = known[name].parse(value, from_text=False)
            except ValueError as error:
                faults.append(UsageError(f"{where}{key}: {error}"))
                values[name] = known[name].default
                if wrong is not None:
                    wrong.add(known[name].key)
    return values


def read_config(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Read and check the whole of ``avfs.toml``.

    Returns:
        Values by table; keys outside every table under ``""`` (they count for every command that knows them; data
        folders live in their own table only). Empty without a file.

    Raises:
        UsageError: The file cannot be read or is not TOML, a key is unknown or a value is of the wrong type: all of
            these at once, with the valid keys.
    """
    path = Path(folder) / CONFIG_NAME
    faults: list[UsageError] = []
    document: dict[str, dict[str, Any]] = {}
    shared = {key: single for table in COMMANDS if table != "data" for key, single in table_settings(table).items()}
    loose: dict[str, Any] = {}
    for key, value in _read_toml(path).items():
        if isinstance(value, dict) and key in COMMANDS:
            valid = dict(sorted(table_settings(key).items()))
            document[key] = check_values(value, valid, f"{path}: [{key}] ", faults, what="Valid keys")
        elif isinstance(value, dict):
            faults.append(unknown(f"{path}: [{key}]", key, sorted(COMMANDS), "Valid tables"))
        elif key in COMMANDS:
            faults.append(UsageError(f"{path}: {key} is a table.", hint=f"Write `[{key}]` on a line of its own."))
        else:
            loose[key] = value
    document[""] = check_values(loose, dict(sorted(shared.items())), f"{path}: ", faults, what="Valid keys")
    raise_faults(faults)
    return document


def _read_toml(path: Path) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib  # pyright: ignore[reportMissingImports]

    try:  # editors on Windows like to add a byte order mark
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise UsageError(f"{path}: is not UTF-8.", hint="Save it as UTF-8.") from None
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}.") from None
    except tomllib.TOMLDecodeError as error:
        hint = 'Texts need quotes: `backbone = "tiny"`.'
        raise UsageError(f"{path}: is not valid TOML: {str(error).rstrip('.')}.", hint=hint) from None


def _read_yaml(path: Path, source: str) -> dict[str, Any]:
    if not path.exists():
        raise UsageError(f"{path}: there is no such file.", hint=f"Check the path given with {source}.")
    values = load_yaml(path)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold `name: value` lines, not a {type(values).__name__}.")
    return values
