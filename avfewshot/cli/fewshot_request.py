"""What `avfs fewshot` is asked to do, checked before torch is imported; and what a run folder remembers of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from avfewshot.adapters.registry import adapter_names
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
from avfewshot.settings import TABLES, Resolved, resolve
from avfewshot.training.config import NONE, Configured, TrainingConfig, build_config, training_settings

_KIND = "fewshot"
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
    settings: Rows
    model: dict[str, Any]
    data: dict[str, Any]
    adapter: str | None
    folder: Path
    command: str
    resumed: bool = False

    def write(self) -> None:
        """Put down what is needed to resume."""
        record = {
            "config": self.config.to_dict(),
            "settings": self.settings,
            "model": self.model,
            "data": self.data,
            "adapter": self.adapter,
            "command": self.command,
        }
        write_record(self.folder, _KIND, record)


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
    faults += model_faults(settings)
    adapter = adapter_path(params.get("adapter"), faults)
    faults += folder_faults(settings["runs"], params.get("name"))
    raise_faults(faults)
    assert configured is not None
    assert data is not None
    config = configured.config
    return FewShotRequest(
        config=config,
        settings=(*shown_settings("fewshot", settings, _renamed(configured)), _shown_start(adapter)),
        model=model_values(settings),
        data=data,
        adapter=adapter,
        folder=new_folder(settings["runs"], config.task, params.get("name") or f"{config.shots}-shot"),
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
    raise_faults(resume_faults(params, _ON_RESUME))
    folder = Path(params["resume"]).expanduser()
    record = read_record(folder, _KIND)
    try:
        return FewShotRequest(
            config=TrainingConfig.from_dict(record["config"], where=str(folder / RUN_FILE)),
            settings=record["settings"],
            model=resumed_model(record, params.get("device")),
            data=dict(record["data"]),
            adapter=record["adapter"],
            folder=folder,
            command=str(record["command"]),
            resumed=True,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{folder}: the record of the run is damaged ({error}).", hint="Begin a new run.") from None


def _training_flags(params: Mapping[str, Any], settings: Resolved, faults: list[UsageError]) -> dict[str, Any]:
    flags = {setting.name: params.get(setting.name) for setting in training_settings()}
    # `--adapter` is what to begin with; the field of that name says what kind of adapter it is.
    flags["adapter"] = _adapter_kind(params.get("adapter_kind"), faults)
    flags["precision"] = precision_flag(settings)
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
        return {"root": absolute(own), "media": [], "list": None}
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
        "root": absolute(found),
        "media": [absolute(folder) for folder in media],
        "list": absolute(listed),
    }


def _renamed(configured: Configured) -> Configured:
    """The field ``adapter`` is set by ``--adapter-kind`` here."""
    sources = {**configured.sources}
    if sources["adapter"] == "--adapter":
        sources["adapter"] = "--adapter-kind"
    return replace(configured, sources=sources)


def _shown_start(adapter: str | None) -> tuple[str, str, str]:
    return ("begin with", "new adapters", "default") if adapter is None else ("begin with", adapter, "--adapter")


def load_data(request: FewShotRequest) -> Any:
    """Read the data set of a request, with its media.

    Raises:
        AvfsError: It cannot be read, or none of its clips is there.
    """
    data, task = request.data, request.config.task
    if task == "folder":
        from avfewshot.data.folder import load_folder

        return load_folder(data["root"])
    from avfewshot.data.load import load_dataset
    from avfewshot.data.media_index import require_media

    dataset = load_dataset(task, data["root"], media=data["media"], list_file=data["list"])
    require_media(dataset, data["media"] or [data["root"]])
    return dataset
