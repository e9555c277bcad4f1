"""What `avfs fewshot` is asked to do, checked before torch is imported; and what a run folder remembers of it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from avfewshot.adapters.registry import adapter_names
from avfewshot.errors import DataError, UsageError
from avfewshot.faults import flatten, raise_faults
from avfewshot.fileio import write_text
from avfewshot.settings import TABLES, Resolved, resolve
from avfewshot.training.config import NONE, Configured, TrainingConfig, build_config, training_settings

RUN_FILE = "run.json"
FORMAT = 1
_MODEL = ("backbone", "weights", "clip_weights", "clap_weights", "roberta", "device", "frame_backend", "templates")
_ON_RESUME = {"resume", "dry_run", "device"}


@dataclass(frozen=True)
class FewShotRequest:
    """A checked request.

    Attributes:
        config: The training's settings; precision may be ``"auto"``.
        settings: (name, value, source) of every setting, as text.
        model: Values of the settings that choose the backbone, as JSON-ready values.
        data: ``{"root": ..., "media": [...], "list": ...}``, absolute paths as text.
        adapter: What to begin with, or None.
        folder: The run folder, which may not exist yet.
        command: The command line that began the run.
        resumed: Whether the run was begun before.
    """

    config: TrainingConfig
    settings: tuple[tuple[str, str, str], ...]
    model: dict[str, Any]
    data: dict[str, Any]
    adapter: str | None
    folder: Path
    command: str
    resumed: bool = False

    def write(self) -> None:
        """Put down what is needed to resume."""
        record = {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "settings": [list(row) for row in self.settings],
            "model": self.model,
            "data": self.data,
            "adapter": self.adapter,
            "command": self.command,
        }
        write_text(self.folder / RUN_FILE, json.dumps(record, indent=2))


def build_request(params: Mapping[str, Any], command: str) -> FewShotRequest:
    """Check everything that can be checked without reading data or weights.

    Args:
        params: Options by name, None where not given.
        command: The command line.

    Raises:
        UsageError: All that is wrong, at once.
    """
    faults: list[UsageError] = []
    settings = resolve("fewshot", {name: params.get(name) for name in TABLES["fewshot"]})
    faults += settings.faults
    flags = _training_flags(params, settings, faults)
    configured: Configured | None = None
    try:
        configured = build_config(flags, settings["config"])
    except UsageError as error:
        faults += flatten(error)
    task = configured.config.task if configured is not None else None
    data = _data(params, task, faults)
    faults += _model_faults(settings)
    adapter = None if params.get("adapter") is None else Path(params["adapter"]).expanduser().absolute()
    if adapter is not None and not adapter.exists():
        faults.append(UsageError(f"--adapter {adapter}: there is nothing at this path."))
    faults += _folder_faults(settings["runs"])
    raise_faults(faults)
    assert configured is not None
    assert data is not None
    config = configured.config
    return FewShotRequest(
        config=config,
        settings=(*_shown_training(configured), *_shown(settings), _shown_start(adapter)),
        model={name: _plain(settings[name]) for name in _MODEL},
        data=data,
        adapter=None if adapter is None else str(adapter),
        folder=_new_folder(settings["runs"], config, params.get("name")),
        command=command,
    )


def resume_request(params: Mapping[str, Any]) -> FewShotRequest:
    """Read what a run was asked to do.

    Args:
        params: Options by name; only a device may be given beside ``resume``.

    Raises:
        UsageError: Other options are given, or there is no such run.
        DataError: Its record is damaged.
    """
    given = [name for name, value in params.items() if value not in (None, [], ()) and name not in _ON_RESUME]
    if given:
        shown = ", ".join(f"--{name.replace('_file', '').replace('_', '-')}" for name in given)
        raise UsageError(
            f"--resume goes on with the settings that the run was begun with; it cannot be given with {shown}.",
            hint="Begin a new run for other settings.",
        )
    folder = Path(params["resume"]).expanduser()
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(f"--resume {folder}: is not the folder of a run.", hint=f"It holds no {RUN_FILE}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT:
            raise DataError(f"{path}: was written by another version.", hint="Begin a new run.")
        model = dict(record["model"])
        if params.get("device") is not None:
            model["device"] = params["device"]
        return FewShotRequest(
            config=TrainingConfig.from_dict(record["config"], where=str(path)),
            settings=tuple((str(name), str(value), str(source)) for name, value, source in record["settings"]),
            model=model,
            data=dict(record["data"]),
            adapter=record["adapter"],
            folder=folder,
            command=str(record["command"]),
            resumed=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}).", hint="Begin a new run.") from None


def _training_flags(params: Mapping[str, Any], settings: Resolved, faults: list[UsageError]) -> dict[str, Any]:
    flags = {setting.name: params.get(setting.name) for setting in training_settings()}
    # `--adapter` is what to begin with; the field of that name says what kind of adapter it is.
    flags["adapter"] = _adapter_kind(params.get("adapter_kind"), faults)
    flags["precision"] = settings["precision"] if settings.source("precision") != "default" else None
    if params.get("seed") is not None:
        if params.get("seeds") is not None:
            faults.append(UsageError("--seed and --seeds exclude each other.", hint="Leave one out."))
        flags["seeds"] = params["seed"]
    if params.get("data") is not None and params.get("task") is None:
        flags["task"] = "folder"
    return flags


def _adapter_kind(given: str | None, faults: list[UsageError]) -> str | None:
    """Checked here, since the field's own fault would speak of ``--adapter``."""
    if given is None or given in (kinds := (*adapter_names(), NONE)):
        return given
    faults.append(UsageError(f"--adapter-kind: {given!r} is not one of {', '.join(kinds)}."))
    return None


def _data(params: Mapping[str, Any], task: str | None, faults: list[UsageError]) -> dict[str, Any] | None:
    """Where the clips are."""
    own, root = params.get("data"), params.get("root")
    media, listed = params.get("media") or [], params.get("list_file")
    if task is None:
        return None
    if task == "folder":
        if own is None:
            faults.append(
                UsageError(
                    "Which task? There is neither --task nor --data."
                    if params.get("task") is None
                    else "--task folder needs --data DIR.",
                    hint="--task ave, ave_cls, llp_cls or vggsound_cls; or --data DIR with a folder of clips a class.",
                )
            )
            return None
        extra = [name for name, value in (("--root", root), ("--media", media), ("--list", listed)) if value]
        if extra:
            faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --data.", hint="Leave them out."))
        return {"root": str(Path(own).expanduser().absolute()), "media": [], "list": None}
    if own is not None:
        faults.append(
            UsageError(f"--data is for folders of your own clips, not for {task}.", hint=f"Use --root {own} instead.")
        )
        return None
    from avfewshot.cli.datacheck import data_root

    try:
        found = data_root(task, None if root is None else Path(root).expanduser())
    except UsageError as error:
        faults += flatten(error)
        return None
    return {
        "root": str(Path(found).absolute()),
        "media": [str(Path(folder).expanduser().absolute()) for folder in media],
        "list": None if listed is None else str(Path(listed).expanduser().absolute()),
    }


def _model_faults(settings: Resolved) -> list[UsageError]:
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


def _folder_faults(runs: Path) -> list[UsageError]:
    """What stands against making run folders: told now, not when the weights are loaded."""
    nearest = next((folder for folder in (runs, *runs.absolute().parents) if folder.exists()), None)
    if nearest is None or (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        return []
    what = "nothing may be written there" if nearest.is_dir() else f"{nearest} is not a folder"
    return [UsageError(f"--runs {runs}: {what}.", hint="Give another folder with --runs DIR.")]


def _shown_training(configured: Configured) -> list[tuple[str, str, str]]:
    sources = {**configured.sources}
    if sources["adapter"] == "--adapter":
        sources["adapter"] = "--adapter-kind"
    return [
        (setting.name, setting.kind.show(getattr(configured.config, setting.name)), sources[setting.name])
        for setting in training_settings(configured.config.task)
    ]


def _shown(settings: Resolved) -> list[tuple[str, str, str]]:
    rows = []
    for name, setting in TABLES["fewshot"].items():
        if name in {"precision", "config", "runs"}:
            continue
        value = settings[name]
        shown = setting.unset if value is None else setting.kind.show(value)
        rows.append((name, shown, settings.source(name)))
    return rows


def _shown_start(adapter: Path | None) -> tuple[str, str, str]:
    return ("begin with", "new adapters", "default") if adapter is None else ("begin with", str(adapter), "--adapter")


def _new_folder(runs: Path, config: TrainingConfig, name: str | None) -> Path:
    label = name if name is not None else f"{config.shots}-shot"
    if not label or any(letter in label for letter in '/\\:*?"<>|') or label.startswith("."):
        raise UsageError(f"--name {label!r} cannot be part of a folder's name.", hint="Use letters, digits and dashes.")
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    folder = runs / config.task / f"{stamp}-{label}"
    number = 1
    while folder.exists():
        number += 1
        folder = runs / config.task / f"{stamp}-{label}-{number}"
    return folder


def _plain(value: Any) -> Any:
    return str(value.expanduser().absolute()) if isinstance(value, Path) else value


def load_data(request: FewShotRequest) -> Any:
    """Read the data set of a request, with its media.

    Raises:
        AvfsError: It cannot be read, or none of its clips is there.
    """
    data, task = request.data, request.config.task
    if task == "folder":
        from avfewshot.datasets.folder import load_folder

        return load_folder(data["root"])
    from avfewshot.datasets.load import load_dataset

    dataset = load_dataset(task, data["root"], media=data["media"], list_file=data["list"])
    check_media(dataset, data["media"] or [data["root"]])
    return dataset


def check_media(dataset: Any, folders: Sequence[str]) -> None:
    """Refuse a data set none of whose clips is there.

    Args:
        dataset: A :class:`~avfewshot.datasets.dataset.Dataset`.
        folders: Where clips were looked for.

    Raises:
        DataError: It has no media.
    """
    if dataset.available():
        return
    raise DataError(
        f"{dataset.description.title}: the annotation files are there, but none of its {len(dataset.samples):,} clips "
        f"below {', '.join(map(str, folders))}.",
        hint="Name the folder of the clips with --media DIR. To try things without them: avfs data toy --root toy.",
    )
