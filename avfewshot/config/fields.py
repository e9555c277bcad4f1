"""A setting: a field of a pydantic model, with its help, panel and option; and groups of them that check themselves."""

from __future__ import annotations

import functools
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from typing_extensions import Self

from avfewshot.config.kinds import Shown, not_one_of
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults

UNSET = "not set"


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
        """The checked value of what a flag, the environment (text) or a file gives; ValueError says what is needed."""
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
        return not_one_of(raw, self.words)


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
        """Read what :meth:`to_dict` gave, defaults for the rest; a :class:`UsageError` has all faults after `where`."""
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


def absolute(value: Any) -> Any:
    """A value, or settings, whose paths hold in any folder."""
    if isinstance(value, Settings):
        return value.model_copy(update={name: absolute(part) for name, part in value})
    if isinstance(value, tuple):
        return tuple(map(absolute, value))
    return value.absolute() if isinstance(value, Path) else value


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
    """Checked values of a file, hyphens in names being underscores; faults and wrong keys go to `faults`, `wrong`."""
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
