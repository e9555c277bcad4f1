"""What the requests of trainings have in common: run folders, the settings of the backbone, the record for --resume."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from avfewshot.errors import DataError, UsageError, flatten
from avfewshot.io import write_text
from avfewshot.settings import TABLES, Resolved
from avfewshot.training.config import Configured, training_settings

RUN_FILE = "run.json"
FORMAT = 1

_MODEL = ("backbone", "weights", "clip_weights", "clap_weights", "roberta", "device", "frame_backend", "templates")
_KINDS = {"fewshot": "few-shot run", "pretrain": "pretraining"}
_NOT_SHOWN = {"precision", "config", "runs"}
_UNFIT = '/\\:*?"<>|'

Rows = tuple[tuple[str, str, str], ...]
"""(name, value, source) of settings, as text."""


def model_values(settings: Resolved) -> dict[str, Any]:
    """Values of the settings that choose the backbone and how it runs, as JSON-ready values with absolute paths."""
    return {name: absolute(value) if isinstance(value := settings[name], Path) else value for name in _MODEL}


def model_faults(settings: Resolved) -> list[UsageError]:
    """What is wrong with the backbone and the templates, as far as can be told without weights."""
    from avfewshot.encoders.presets import load_preset
    from avfewshot.prompts import load_templates

    faults: list[UsageError] = []
    for check, name in ((load_preset, "backbone"), (load_templates, "templates")):
        if settings[name] is not None:
            try:
                check(settings[name])
            except UsageError as error:
                faults += flatten(error)
    return faults


def adapter_path(given: str | None, faults: list[UsageError]) -> str | None:
    """The checkpoint to begin with, absolute; a fault is added where there is nothing at the path."""
    path = absolute(given)
    if path is not None and not Path(path).exists():
        faults.append(UsageError(f"--adapter {path}: there is nothing at this path."))
    return path


def precision_flag(settings: Resolved) -> str | None:
    """The precision where somebody set it; None leaves it to the training's own default."""
    return settings["precision"] if settings.source("precision") != "default" else None


def shown_settings(table: str, settings: Resolved, configured: Configured, *, without: Collection[str] = ()) -> Rows:
    """All settings of a training, for reports.

    Args:
        table: The command.
        settings: Those of the table.
        configured: Those of the training.
        without: Names that mean nothing to the command.
    """
    config = configured.config
    rows = [
        (setting.name, setting.kind.show(getattr(config, setting.name)), configured.sources[setting.name])
        for setting in training_settings(config.task)
        if setting.name not in without
    ]
    rows += [
        (name, setting.unset if settings[name] is None else setting.kind.show(settings[name]), settings.source(name))
        for name, setting in TABLES[table].items()
        if name not in _NOT_SHOWN
    ]
    return tuple(rows)


def folder_faults(runs: Path, name: str | None) -> list[UsageError]:
    """What stands against making the run folder: told now, not when the weights are loaded."""
    faults = []
    if name is not None and (not name or name.startswith(".") or any(letter in name for letter in _UNFIT)):
        hint = "Use letters, digits and dashes."
        faults.append(UsageError(f"--name {name!r} cannot be part of a folder's name.", hint=hint))
    nearest = next((folder for folder in (runs, *runs.absolute().parents) if folder.exists()), None)
    if nearest is not None and not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        what = "nothing may be written there" if nearest.is_dir() else f"{nearest} is not a folder"
        faults.append(UsageError(f"--runs {runs}: {what}.", hint="Give another folder with --runs DIR."))
    return faults


def new_folder(runs: Path, group: str, label: str) -> Path:
    """A run folder that does not exist yet, named by the time: ``runs/GROUP/TIME-LABEL``."""
    folder = runs / group / f"{datetime.now(timezone.utc).strftime('%Y%m%d-%H%M%S')}-{label}"
    numbered = folder
    number = 1
    while numbered.exists():
        number += 1
        numbered = folder.with_name(f"{folder.name}-{number}")
    return numbered


def write_record(folder: Path, kind: str, record: Mapping[str, Any]) -> None:
    """Put down in a run folder what is needed to resume."""
    write_text(folder / RUN_FILE, json.dumps({"format": FORMAT, "kind": kind, **record}, indent=2))


def read_record(folder: Path, kind: str) -> dict[str, Any]:
    """Read what :func:`write_record` wrote.

    Args:
        folder: The run folder.
        kind: What kind of training it has to be.

    Raises:
        UsageError: It is not the folder of a run.
        DataError: The record is damaged, of another version or of another kind of training.
    """
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(f"--resume {folder}: is not the folder of a run.", hint=f"It holds no {RUN_FILE}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stored = record["format"], record["kind"]
        if stored != (FORMAT, kind):
            other = stored[1] if stored[0] == FORMAT and stored[1] in _KINDS else None
            hint = "Begin a new run." if other is None else f"It was begun by `avfs {other}`."
            raise DataError(f"{path}: is not the record of a {_KINDS[kind]} of this version.", hint=hint)
        record["settings"] = tuple(_row(row) for row in record["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}).", hint="Begin a new run.") from None
    return record


def resume_faults(
    params: Mapping[str, Any], allowed: Iterable[str], unless: Mapping[str, Any] | None = None
) -> list[UsageError]:
    """What was given beside ``--resume`` and cannot be.

    Args:
        params: Options by name; a switch that was turned off counts as given, too.
        allowed: Names of options that may be given.
        unless: By name the values that options have when nobody gives them, where that is not None.
    """
    unless = unless or {}
    names = [
        name
        for name, value in params.items()
        if value not in (None, [], ()) and name not in allowed and unless.get(name) is not value
    ]
    if not names:
        return []
    shown = ", ".join(
        name.upper() if name == "dataset" else f"--{name.replace('_file', '').replace('_', '-')}" for name in names
    )
    return [
        UsageError(
            f"--resume goes on with the settings that the run was begun with; it cannot be given with {shown}.",
            hint="Begin a new run for other settings.",
        )
    ]


def resumed_model(record: Mapping[str, Any], device: str | None) -> dict[str, Any]:
    """The backbone's settings of a run that goes on, perhaps on another device."""
    return {**record["model"], **({} if device is None else {"device": device})}


def absolute(path: Any) -> str | None:
    """A path as text that holds in any folder; None stays None."""
    return None if path is None else str(Path(path).expanduser().absolute())


def _row(row: Any) -> tuple[str, str, str]:
    name, value, source = row
    return str(name), str(value), str(source)
