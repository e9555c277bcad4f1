"""Where values come from: flag, environment, ``avfs.toml``, ``--config`` file, task, default; and all that is wrong."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from avfewshot.config.commands import COMMANDS, CommandConfig, ZeroshotConfig, table_settings
from avfewshot.config.fields import check_values, settings_of, unknown
from avfewshot.config.training import PAPER, TASK_DEFAULTS
from avfewshot.errors import UsageError, collect, raise_faults
from avfewshot.safe_yaml import load_yaml

CONFIG_NAME = "avfs.toml"


@dataclass
class Resolved:
    """The settings of a command."""

    config: Any  # a CommandConfig; what is wrong has its default, so that further checks can go on
    sources: dict[str, str] = field(default_factory=dict)  # by key: "--flag", "AVFS_NAME", a file, "default", ...
    faults: list[UsageError] = field(default_factory=list)

    def __getitem__(self, key: str) -> Any:
        single = settings_of(type(self.config))[key]
        return getattr(getattr(self.config, single.section) if single.section else self.config, single.name)

    def named(self, key: str) -> str:
        """How messages call a setting: by the option, the variable or the file that it was given with."""
        source = self.sources[key]
        if source.startswith("default"):
            return settings_of(type(self.config))[key].flag
        return f"{key} in {source}" if source.startswith(CONFIG_NAME) else source

    def rows(self) -> list[tuple[str, str, str]]:
        """(name, value, source) of every setting, as text."""
        known = settings_of(type(self.config))
        return [(known[key].name, known[key].show(self[key]), source) for key, source in self.sources.items()]

    def check(self) -> Resolved:
        """Raise what was wrong, all at once, as :class:`UsageError`; return itself otherwise."""
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

    Nothing is raised: the settings come with their sources and the faults met on the way.
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
        content = collect(faults, lambda: _read_yaml(path, source)) or {}
        for name, value in check_values(content, group, f"{path}: ", faults, wrong=wrong).items():
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


def read_config(folder: str | os.PathLike[str]) -> dict[str, dict[str, Any]]:
    """Values of ``avfs.toml`` by table, checked; keys outside every table under ``""``. Empty without a file."""
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
        raise UsageError(f"{path}: must hold `name: value` lines.", hint="For example `shots: 4`.")
    return values
