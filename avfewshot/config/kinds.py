"""The types of values: how each is read from text or a file, checked and shown."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import Ge
from pydantic import AllowInfNan, BeforeValidator

from avfewshot.adapters.registry import adapter_names
from avfewshot.errors import UsageError, did_you_mean
from avfewshot.io import user_path

NONE = "none"
AUTO = "auto"
Task = Literal["ave", "ave_cls", "llp_cls", "vggsound_cls", "folder"]
TASKS = get_args(Task)
AudioContext = Literal["second", "clip"]
AUDIO_CONTEXTS = get_args(AudioContext)
SEED_LIMIT = 2**32


@dataclass(frozen=True)
class Shown:
    """How people meet a type whose own validator says what it expects."""

    metavar: str
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


def _different(raw: Any, one: Callable[[Any], int], described: str, lowest: int = 0) -> tuple[int, ...]:
    try:
        values = tuple(map(one, _items(raw)))
    except (TypeError, ValueError):
        values = ()
    if not values or len(set(values)) < len(values) or min(values) < lowest:
        raise ValueError(f"different whole numbers {described}, are needed, not {raw!r}.")
    return values


def _seeds(raw: Any) -> tuple[int, ...]:
    return _different(raw, _seed, f"from 0 to {SEED_LIMIT - 1}, as 1,2,3")


def _shots(raw: Any) -> tuple[int, ...]:
    return tuple(sorted(_different(raw, int, "of at least 1, as 1,2,4", lowest=1)))


def _each(one: Callable[[Any], Any]) -> BeforeValidator:
    return BeforeValidator(lambda raw: tuple(map(one, raw if isinstance(raw, (list, tuple)) else [raw])))


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


def _adapter_kinds() -> tuple[str, ...]:
    return (*adapter_names(), NONE)


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


def _one_of(choices: Callable[[], Collection[str]]) -> BeforeValidator:
    """One of the names that there are when a value is read."""

    def check(raw: Any) -> Any:
        if raw not in (known := choices()):
            raise ValueError(not_one_of(raw, known))
        return raw

    return BeforeValidator(check)


def _some_of(choices: Callable[[], Collection[str]]) -> BeforeValidator:
    """Some of these names, by comma."""

    def check(raw: Any) -> tuple[str, ...]:
        items, known = _items(raw) or [raw], choices()
        if wrong := [item for item in items if item not in known]:
            raise ValueError(not_one_of(wrong[0], known))
        if twice := [item for number, item in enumerate(items) if item in items[:number]]:
            raise ValueError(f"{twice[0]!r} is given twice.")
        return tuple(items)

    return BeforeValidator(check)


def not_one_of(raw: Any, choices: Collection[str]) -> str:
    """That a value is none of some words, for people."""
    if not isinstance(raw, str):
        return f"one of {', '.join(choices)} is needed, not {raw!r}."
    return f"{raw!r} is not one of {', '.join(choices)}.{did_you_mean(raw, choices)}"


Text = Annotated[str, BeforeValidator(_text)]
Secret = Annotated[str, BeforeValidator(_text), Shown("TEXT", show=lambda value: "(set, not shown)")]
FilePath = Annotated[Path, BeforeValidator(_path), Shown("PATH")]
Folder = Annotated[Path, BeforeValidator(_path), Shown("DIR")]
_LISTED = Shown("TEXT", show=lambda value: ", ".join(map(str, value)), repeated=True)
Texts = Annotated[tuple[str, ...], _each(str), _LISTED]
Folders = Annotated[tuple[Path, ...], _each(_path), replace(_LISTED, metavar="DIR")]
Device = Annotated[str, BeforeValidator(_device), Shown("auto|cpu|cuda|cuda:N|mps")]
Seed = Annotated[int, BeforeValidator(_seed), Shown("INTEGER")]
_commas = ",".join
_NUMBERS = Shown("INTEGER[,INTEGER...]", show=lambda value: _commas(map(str, value)))
Seeds = Annotated[tuple[int, ...], BeforeValidator(_seeds), _NUMBERS]
Shots = Annotated[tuple[int, ...], BeforeValidator(_shots), _NUMBERS]
Names = Annotated[tuple[str, ...], _some_of(method_choices), Shown("NAME[,NAME...]", show=_commas)]
Contexts = Annotated[tuple[str, ...], _some_of(lambda: AUDIO_CONTEXTS), Shown("second|clip[,...]", show=_commas)]
Size = Annotated[int, BeforeValidator(_size), Shown("SIZE", show=_shown_size)]
AdapterKind = Annotated[str, _one_of(_adapter_kinds), Shown("|".join(_adapter_kinds()))]
Method = Annotated[str, _one_of(method_choices), Shown("auto|NAME")]
Real = Annotated[float, BeforeValidator(_number), AllowInfNan(False)]
Factor = Annotated[Real, Ge(0)]
Count = Annotated[int, Ge(1)]
Auto = Literal["auto"]
Tracker = Literal["tensorboard", "wandb", "mlflow"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Fusion = Literal["weighted", "product"]
Pool = Literal["mean", "event"]
Background = Literal["threshold", "prompt", "none"]

# Titles of the boxes that options stand in, and what several of them say.
DATA, ADAPTERS, METHOD, TRAINING = "Data", "Adapters", "Method", "Training"
MODEL, COST, BY_PATH, OUTPUT, DEVICES = "Model", "Memory and speed", "Weights by path", "Output", "Devices"
A_TASK = "A task instead of files"
HEARD = "How sound is embedded: each second alone, or up to ten seconds in one pass (docs/audio-context.md)."
