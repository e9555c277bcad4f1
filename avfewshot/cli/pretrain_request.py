"""What `avfs pretrain` is asked to do, checked before torch is imported; and what a run folder remembers of it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from avfewshot.errors import DataError, UsageError
from avfewshot.faults import flatten, raise_faults
from avfewshot.fileio import write_text
from avfewshot.settings import TABLES, resolve
from avfewshot.training.config import PRETRAIN_DEFAULTS, Configured, TrainingConfig, build_config, training_settings

RUN_FILE = "run.json"
FORMAT = 1
DATASETS = ("vggsound40k", "vggsound", "ovave")
STRATEGIES = ("auto", "ddp")
_VAL_CLIPS = 1000
_MODEL = ("backbone", "weights", "clip_weights", "clap_weights", "roberta", "device", "frame_backend", "templates")
_ON_RESUME = {"resume", "device", "devices", "nodes", "strategy"}


@dataclass(frozen=True)
class PretrainRequest:
    """A checked request.

    Attributes:
        dataset: Name of the data set.
        config: The settings; precision may be ``"auto"``.
        seed: Of weights and order.
        settings: (name, value, source) of every setting, as text.
        model: Values of the settings that choose the backbone.
        data: Where clips come from: root, media, list, shards, against, keep_leaks, val_clips.
        ranks: devices, nodes, strategy.
        adapter: What to begin with, or None.
        folder: The run folder; rank 0 says which one it is.
        command: The command line that began the run.
        resumed: Whether the run was begun before.
    """

    dataset: str
    config: TrainingConfig
    seed: int
    settings: tuple[tuple[str, str, str], ...]
    model: dict[str, Any]
    data: dict[str, Any]
    ranks: dict[str, Any]
    adapter: str | None
    folder: Path
    command: str
    resumed: bool = False

    def write(self) -> None:
        """Put down what is needed to resume."""
        record = {
            "format": FORMAT,
            "kind": "pretrain",
            "dataset": self.dataset,
            "seed": self.seed,
            "config": self.config.to_dict(),
            "settings": [list(row) for row in self.settings],
            "model": self.model,
            "data": self.data,
            "adapter": self.adapter,
            "command": self.command,
        }
        write_text(self.folder / RUN_FILE, json.dumps(record, indent=2))


def build_request(params: Mapping[str, Any], command: str) -> PretrainRequest:
    """Check everything that can be checked without reading data or weights.

    Args:
        params: Options by name, None where not given.
        command: The command line.

    Raises:
        UsageError: All that is wrong, at once.
    """
    faults: list[UsageError] = []
    settings = resolve("pretrain", {name: params.get(name) for name in TABLES["pretrain"]})
    faults += settings.faults
    dataset = params.get("dataset")
    if dataset not in DATASETS:
        what = "Which list is to be pretrained on?" if dataset is None else f"There is no pretraining list {dataset!r}."
        faults.append(UsageError(what, hint=f"avfs pretrain {'|'.join(DATASETS)}; --list names a file of your own."))
    flags = {setting.name: params.get(setting.name) for setting in training_settings()} | {"adapter": None}
    flags["precision"] = settings["precision"] if settings.source("precision") != "default" else None
    flags["seeds"] = params.get("seed")
    configured: Configured | None = None
    try:
        configured = build_config(flags, settings["config"], defaults=PRETRAIN_DEFAULTS)
        if len(configured.config.seeds) != 1:
            faults.append(UsageError("A pretraining has one seed.", hint="Run the command once for each."))
    except UsageError as error:
        faults += flatten(error)
    data = _data(params, dataset, faults)
    ranks = _ranks(params, faults)
    adapter = _absolute(params.get("adapter"))
    if adapter is not None and not Path(adapter).exists():
        faults.append(UsageError(f"--adapter {adapter}: there is nothing at this path."))
    raise_faults(faults)
    assert configured is not None
    rows = [
        (setting.name, setting.kind.show(getattr(configured.config, setting.name)), configured.sources[setting.name])
        for setting in training_settings()
        if setting.name not in {"task", "shots", "sampler", "multi_label", "background"}
    ]
    rows += [
        (name, setting.unset if settings[name] is None else setting.kind.show(settings[name]), settings.source(name))
        for name, setting in TABLES["pretrain"].items()
        if name not in {"precision", "config", "runs"}
    ]
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return PretrainRequest(
        dataset=dataset,
        config=configured.config,
        seed=configured.config.seeds[0],
        settings=tuple(rows),
        model={name: _absolute(value) if isinstance(value := settings[name], Path) else value for name in _MODEL},
        data=data,
        ranks=ranks,
        adapter=adapter,
        folder=settings["runs"] / "pretrain" / f"{stamp}-{params.get('name') or dataset}",
        command=command,
    )


def resume_request(params: Mapping[str, Any]) -> PretrainRequest:
    """Read what a run was asked to do.

    Args:
        params: Options by name; only devices may be given beside ``resume``.

    Raises:
        UsageError: Other options are given, or there is no such run.
        DataError: Its record is damaged.
    """
    # A switch that was turned off is given, too; keep_leaks alone is off when nobody says anything.
    untouched = {"keep_leaks": False}
    given = [
        name
        for name, value in params.items()
        if value not in (None, [], ()) and name not in _ON_RESUME and untouched.get(name) is not value
    ]
    faults: list[UsageError] = []
    if given:
        shown = ", ".join("DATASET" if name == "dataset" else f"--{name.replace('_', '-')}" for name in given)
        faults.append(
            UsageError(
                f"--resume goes on with the settings that the run was begun with; it cannot be given with {shown}.",
                hint="Begin a new run for other settings.",
            )
        )
    ranks = _ranks(params, faults)
    raise_faults(faults)
    folder = Path(params["resume"]).expanduser()
    path = folder / RUN_FILE
    if not path.is_file():
        raise UsageError(f"--resume {folder}: is not the folder of a run.", hint=f"It holds no {RUN_FILE}.")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record.get("kind") != "pretrain":
            raise DataError(f"{path}: is not the record of a pretraining of this version.", hint="Begin a new run.")
        model = dict(record["model"])
        if params.get("device") is not None:
            model["device"] = params["device"]
        return PretrainRequest(
            dataset=str(record["dataset"]),
            config=TrainingConfig.from_dict(record["config"], where=str(path)),
            seed=int(record["seed"]),
            settings=tuple((str(name), str(value), str(source)) for name, value, source in record["settings"]),
            model=model,
            data=dict(record["data"]),
            ranks=ranks,
            adapter=record["adapter"],
            folder=folder,
            command=str(record["command"]),
            resumed=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged ({error}).", hint="Begin a new run.") from None


def _data(params: Mapping[str, Any], dataset: str | None, faults: list[UsageError]) -> dict[str, Any]:
    shards, root = params.get("shards"), params.get("root")
    against = [_absolute(folder) for folder in params.get("against") or ()]
    faults += [
        UsageError(f"--against {folder}: there is no such folder.") for folder in against if not Path(folder).is_dir()
    ]
    data = {
        "root": _absolute(root),
        "media": [_absolute(folder) for folder in params.get("media") or ()],
        "list": _absolute(params.get("list_file")),
        "shards": _absolute(shards),
        "against": against,
        "keep_leaks": bool(params.get("keep_leaks")),
        "val_clips": _VAL_CLIPS if params.get("val_clips") is None else int(params["val_clips"]),
    }
    if shards is not None:
        extra = [flag for flag, name in (("--root", "root"), ("--media", "media"), ("--list", "list")) if data[name]]
        if extra:
            faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --shards.", hint="Leave them out."))
    elif root is None and dataset in DATASETS:
        from avfewshot.cli.datacheck import data_root

        try:
            data["root"] = _absolute(str(data_root(dataset, None)))
        except UsageError as error:
            faults += flatten(error)
    return data


def _ranks(params: Mapping[str, Any], faults: list[UsageError]) -> dict[str, Any]:
    devices, strategy = params.get("devices") or "1", params.get("strategy") or "auto"
    if devices != "auto" and not (devices.isdecimal() and int(devices) >= 1):
        faults.append(UsageError(f"--devices: a whole number from 1 on, or auto, is needed, not {devices!r}."))
    if strategy not in STRATEGIES:
        faults.append(UsageError(f"--strategy: {strategy!r} is not one of {', '.join(STRATEGIES)}."))
    return {
        "devices": int(devices) if devices.isdecimal() else devices,
        "nodes": int(params.get("nodes") or 1),
        "strategy": strategy,
    }


def _absolute(path: Any) -> str | None:
    return None if path is None else str(Path(path).expanduser().absolute())
