"""What `avfs pretrain` is asked to do, checked before torch is imported; and what a run folder remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.cli.run_request import (
    RUN_FILE,
    Rows,
    absolute,
    adapter_path,
    folder_faults,
    model_faults,
    model_values,
    new_folder,
    precision_flag,
    read_record,
    resume_faults,
    resumed_model,
    shown_settings,
    write_record,
)
from avfewshot.errors import DataError, UsageError, flatten, raise_faults
from avfewshot.settings import TABLES, resolve
from avfewshot.training.config import PRETRAIN_DEFAULTS, Configured, TrainingConfig, build_config, training_settings

DATASETS = ("vggsound40k", "vggsound", "ovave")
STRATEGIES = ("auto", "ddp")
_KIND = "pretrain"
_VAL_CLIPS = 1000
_ON_RESUME = {"resume", "device", "devices", "nodes", "strategy"}
_MEANINGLESS = {"task", "shots", "sampler", "multi_label", "background"}


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
    settings: Rows
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
            "dataset": self.dataset,
            "seed": self.seed,
            "config": self.config.to_dict(),
            "settings": self.settings,
            "model": self.model,
            "data": self.data,
            "adapter": self.adapter,
            "command": self.command,
        }
        write_record(self.folder, _KIND, record)


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
    flags["precision"] = precision_flag(settings)
    flags["seeds"] = _seed(params.get("seed"), faults)
    configured: Configured | None = None
    try:
        configured = build_config(flags, settings["config"], defaults=PRETRAIN_DEFAULTS)
        if len(configured.config.seeds) != 1:  # in a file for --config
            faults.append(UsageError("A pretraining has one seed.", hint="Run the command once for each."))
    except UsageError as error:
        faults += flatten(error)
    data = _data(params, dataset, faults)
    ranks = _ranks(params, faults)
    faults += model_faults(settings)
    adapter = adapter_path(params.get("adapter"), faults)
    faults += folder_faults(settings["runs"], params.get("name"))
    raise_faults(faults)
    assert configured is not None
    return PretrainRequest(
        dataset=dataset,
        config=configured.config,
        seed=configured.config.seeds[0],
        settings=shown_settings("pretrain", settings, configured, without=_MEANINGLESS),
        model=model_values(settings),
        data=data,
        ranks=ranks,
        adapter=adapter,
        folder=new_folder(settings["runs"], "pretrain", params.get("name") or dataset),
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
    faults = resume_faults(params, _ON_RESUME, {"keep_leaks": False})
    ranks = _ranks(params, faults)
    raise_faults(faults)
    folder = Path(params["resume"]).expanduser()
    record = read_record(folder, _KIND)
    try:
        return PretrainRequest(
            dataset=str(record["dataset"]),
            config=TrainingConfig.from_dict(record["config"], where=str(folder / RUN_FILE)),
            seed=int(record["seed"]),
            settings=record["settings"],
            model=resumed_model(record, params.get("device")),
            data=dict(record["data"]),
            ranks=ranks,
            adapter=record["adapter"],
            folder=folder,
            command=str(record["command"]),
            resumed=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: the record of the run is damaged ({error}).", hint="Begin a new run.") from None


def _seed(given: str | None, faults: list[UsageError]) -> str | None:
    """Checked here, since the field's own fault would speak of ``--seeds``, and take several."""
    if given is None or (given.isdecimal() and int(given) < 2**32):
        return given
    faults.append(UsageError(f"--seed: one whole number from 0 to {2**32 - 1} is needed, not {given!r}."))
    return None


def _data(params: Mapping[str, Any], dataset: str | None, faults: list[UsageError]) -> dict[str, Any]:
    shards, root = params.get("shards"), params.get("root")
    against = [absolute(folder) for folder in params.get("against") or ()]
    faults += [
        UsageError(f"--against {folder}: there is no such folder.") for folder in against if not Path(folder).is_dir()
    ]
    data = {
        "root": absolute(root),
        "media": [absolute(folder) for folder in params.get("media") or ()],
        "list": absolute(params.get("list_file")),
        "shards": absolute(shards),
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
            data["root"] = absolute(str(data_root(dataset, None)))
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
