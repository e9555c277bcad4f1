"""Adapter checkpoints: a folder with ``adapter.safetensors``, the trained tensors, and ``config.json``, what they are.

Folders are written under another name and renamed when everything in them is on the disk, so that one under its own
name is always whole.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import secrets
import shutil
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from avfewshot.encoders.weights.load import read_tensors
from avfewshot.errors import DataError, UsageError, WeightsError
from avfewshot.io import naming, read_json, sha256_file, user_path
from avfewshot.models.hub import local_adapter
from avfewshot.text import printable
from avfewshot.version import __version__

if TYPE_CHECKING:
    from avfewshot.encoders.backbone import Backbone

FORMAT = 1
"""Raised when the form of ``config.json`` changes such that older programs cannot read it."""

TENSORS_NAME = "adapter.safetensors"
CONFIG_NAME = "config.json"
CHOSEN_NAME = "chosen.json"
"""In a run of several seeds: the one that answers for it, and why."""

_NUMBERED = re.compile(r"([a-z]+)-([0-9]+)(?:\.([0-9]+))?")
UNFINISHED = ".part-"
"""How the names of folders begin that are being written, or removed."""


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What trained tensors belong to and how they came about."""

    task: str  # name of the task
    labels: tuple[str, ...]  # class names, in order
    wordings: tuple[str, ...]  # what stands for each of them in prompts
    templates: str  # name or path of the prompt templates
    backbone: str  # name of the backbone's preset
    # SHA-256 of the backbone's files by role, see :class:`~avfewshot.encoders.backbone.Backbone`
    identity: dict[str, str]
    training: dict[str, Any]  # the configuration, as :meth:`~avfewshot.config.TrainingConfig.to_dict` gives it
    seed: int  # the seed of this training
    # what was trained on, as :meth:`~avfewshot.data.sampler.Support.to_dict` gives it
    support: dict[str, Any] = field(default_factory=dict)
    # how scores become answers: ``blend`` (share of the trained logits in the sum), ``pool``, ``fusion``,
    # ``window`` (seconds that go through the adapters together), ``background``
    decision: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)  # figures by name
    version: str = __version__  # version of this program that wrote it

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, where: str | os.PathLike[str]) -> AdapterConfig:
        """Check what was read from ``config.json``.

        Raises:
            DataError: Fields are missing or of another type; all of them are listed.
        """
        wanted = {entry.name: _FIELD_TYPES[entry.type.partition("[")[0]] for entry in dataclasses.fields(cls)}
        faults = [f"{name} is missing" for name in wanted if name not in values]
        faults += [
            f"{name} must be {shown}"
            for name, (kind, shown) in wanted.items()
            if name in values and not (isinstance(values[name], kind) and not isinstance(values[name], bool))
        ]
        for name in ("labels", "wordings"):
            if isinstance(values.get(name), list) and not all(isinstance(item, str) for item in values[name]):
                faults.append(f"{name} must hold texts")
        identity = values.get("identity")
        if isinstance(identity, dict) and not all(isinstance(digest, str) for digest in identity.values()):
            faults.append("identity must hold texts")
        if not faults and len(values["labels"]) != len(values["wordings"]):
            faults.append("labels and wordings differ in number")
        if not faults and len(set(values["labels"])) != len(values["labels"]):
            faults.append("a label occurs twice")
        if not faults and not isinstance(values["support"].get("ids", []), list):
            faults.append("the ids of its support must be a list")
        if faults:
            raise DataError(
                f"{os.fspath(where)}: is not the configuration of an adapter: {'; '.join(faults)}.",
                hint="Give the folder of a run, or one that holds adapter.safetensors and config.json.",
            )
        kept = {name: values[name] for name in wanted}
        # Before there was a choice, adapters had the compact form.
        kept["training"] = {"variant": "compact", **kept["training"]}
        return cls(**{**kept, "labels": tuple(kept["labels"]), "wordings": tuple(kept["wordings"])})

    def check_backbone(self, backbone: Backbone, *, where: str | os.PathLike[str]) -> None:
        """Refuse a backbone of other weights than those that the tensors were trained with.

        Raises:
            WeightsError: Files differ; all of them are listed.
        """
        roles = sorted(self.identity.keys() | backbone.identity.keys())
        faults = [
            f"{role}: {_short(self.identity.get(role))} when trained, {_short(backbone.identity.get(role))} here"
            for role in roles
            if self.identity.get(role) != backbone.identity.get(role)
        ]
        if faults:
            raise WeightsError(
                f"{os.fspath(where)}: was trained with other weights than those of backbone {backbone.name!r}: "
                f"{'; '.join(faults)}.",
                hint=f"Use the backbone that it was trained with: {self.backbone!r}, with the same weight files.",
            )


_FIELD_TYPES: dict[str, tuple[type, str]] = {
    "str": (str, "a text"),
    "int": (int, "a whole number"),
    "tuple": (list, "a list"),
    "dict": (dict, "an object"),
}


@dataclass(frozen=True)
class AdapterCheckpoint:
    """What :func:`load_adapter` read."""

    path: Path  # the folder
    tensors: dict[str, Tensor]  # the trained tensors by name, for load_trainable_state
    config: AdapterConfig  # what they are

    def resolve(self, name: str, packaged: Collection[str]) -> str:
        """What the configuration says under `name` (``"backbone"``, ``"templates"``), if it may be looked up.

        A checkpoint may come from a stranger and must not choose which files of this machine are read: one of
        `packaged`, or a file that lies in the checkpoint's folder, whose path is given.

        Raises:
            UsageError: It is anything else.
        """
        value = getattr(self.config, name)
        if value in packaged:
            return value
        path = self.path / value
        with contextlib.suppress(OSError, ValueError):
            if path.resolve().is_relative_to(self.path.resolve()) and path.is_file():
                return str(path)
        raise UsageError(
            f"{self.path}: its {name} {printable(value[:200])!r} is neither packaged nor a file of its folder, and a"
            " checkpoint does not choose which other files are read.",
            hint=f"If it is yours, name the file with --{name}.",
        )


def write_adapter(folder: str | os.PathLike[str], tensors: Mapping[str, Tensor], config: AdapterConfig) -> Path:
    """Write an adapter checkpoint; it appears whole or not at all.

    Raises:
        DataError: The folder exists.
    """
    with publishing(Path(folder)) as unfinished:
        write_adapter_files(unfinished, tensors, config)
    return Path(folder)


def write_adapter_files(folder: Path, tensors: Mapping[str, Tensor], config: AdapterConfig) -> None:
    """Write the files of an adapter checkpoint into a folder that :func:`publishing` gave.

    Templates of one's own are copied along: the checkpoint is complete wherever it is taken.
    """
    from avfewshot.prompts import template_names

    write_tensors(folder / TENSORS_NAME, tensors)
    templates = user_path(config.templates)
    if config.templates not in template_names() and templates.is_file():
        copy = f"templates{templates.suffix}"
        (folder / copy).write_bytes(templates.read_bytes())
        config = dataclasses.replace(config, templates=copy)
    document = {"format": FORMAT, **dataclasses.asdict(config), "sha256": sha256_file(folder / TENSORS_NAME)}
    (folder / CONFIG_NAME).write_text(json.dumps(document, indent=2), encoding="utf-8")


def load_adapter(path: str | os.PathLike[str], backbone: Backbone | None = None) -> AdapterCheckpoint:
    """Read an adapter checkpoint, or the best (else the last) one of a run; without a backbone none is checked.

    Raises:
        DataError: There is no checkpoint, or its configuration is damaged.
        WeightsError: The tensors are damaged, or were trained with another backbone.
    """
    folder = find_checkpoint(path)
    document, config = read_config(folder)
    tensors_path = folder / TENSORS_NAME
    if backbone is not None:
        config.check_backbone(backbone, where=folder)
    tensors = read_tensors(tensors_path)
    if sha256_file(tensors_path) != document.get("sha256"):
        raise WeightsError(
            f"{tensors_path}: is not the file that {CONFIG_NAME} beside it was written for, or is damaged.",
            hint="Copy the whole folder again from where it was trained.",
        )
    return AdapterCheckpoint(folder, tensors, config)


def read_config(folder: Path) -> tuple[dict[str, Any], AdapterConfig]:
    """What ``config.json`` of a folder holds, as it stands and checked.

    Raises:
        DataError: It is missing, damaged, or of another version.
    """
    path = folder / CONFIG_NAME
    document = read_json(path)
    stored = document.get("format")
    if type(stored) is not int or not 1 <= stored <= FORMAT:
        raise DataError(
            f"{path}: has format {stored!r}, this version reads up to {FORMAT}.",
            hint="Install a newer avfewshot, or train it again.",
        )
    return document, AdapterConfig.from_dict(document, where=path)


def find_checkpoint(path: str | os.PathLike[str]) -> Path:
    """The folder of an adapter checkpoint: the path itself, or the best or else the last one of a run.

    Raises:
        UsageError: There is no such folder.
        DataError: It holds none, or those of several seeds.
    """
    path = local_adapter(path)
    if (path / CONFIG_NAME).is_file() and (path / TENSORS_NAME).is_file():
        return path
    for folder in (path, path / "checkpoints"):
        for kind in ("best", "step"):
            if found := numbered(folder, kind):
                return found[-1]
    seeds = seed_folders(path)
    if len(seeds) == 1:
        return find_checkpoint(seeds[0])
    if seeds:
        raise DataError(
            f"{path}: holds the trainings of {len(seeds)} seeds.",
            hint=f"Give one of them: {', '.join(str(seed) for seed in seeds)}.",
        )
    hint = "Give the folder of a run, or one that holds adapter.safetensors and config.json."
    if not path.exists():
        raise UsageError(f"{path}: there is no such folder.", hint=hint)
    raise DataError(f"{path}: holds no adapter checkpoint.", hint=hint)


def numbered(folder: Path, kind: str) -> list[Path]:
    """The sub-folders ``<kind>-<number>``, by number; ``<kind>-<number>.<n>`` is one written later for that number."""
    found = []
    with contextlib.suppress(OSError):
        for item in folder.iterdir():
            match = _NUMBERED.fullmatch(item.name)
            if match and match[1] == kind and item.is_dir():
                found.append(item)
    return sorted(found, key=place_of)


def seed_folders(run: Path) -> list[Path]:
    """Folders of a run's seeds; the one that answers for the run alone, where the run says which.

    A :class:`DataError` where that one is missing.
    """
    seeds = numbered(run, "seed")
    if not (run / CHOSEN_NAME).is_file():
        return seeds
    chosen = [folder for folder in seeds if place_of(folder)[0] == read_json(run / CHOSEN_NAME).get("seed")]
    if not chosen:
        raise DataError(f"{run / CHOSEN_NAME}: names a seed that is not there.", hint="Copy the whole folder again.")
    return chosen


def place_of(folder: Path) -> tuple[int, int]:
    """Of one of :func:`numbered` the number, and how many were written for the same number before."""
    match = _NUMBERED.fullmatch(folder.name)
    assert match is not None
    return int(match[2]), int(match[3] or 0)


@contextlib.contextmanager
def publishing(folder: Path) -> Iterator[Path]:
    """Give an empty folder to write files into; on success it is synced to the disk and renamed to `folder`.

    Raises:
        DataError: The folder exists.
    """
    if folder.exists():
        raise DataError(f"{folder}: exists already.", hint="Choose another folder, or remove it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    unfinished = folder.parent / f"{UNFINISHED}{secrets.token_hex(4)}"
    unfinished.mkdir()  # a folder of tempfile would be private, whatever the umask
    try:
        with naming(folder):
            yield unfinished
        for item in (*unfinished.iterdir(), unfinished):
            _sync(item)
        os.rename(unfinished, folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, whatever device or layout they have."""
    from safetensors.torch import save

    # Not by the library's save_file, whose files nobody else may read, whatever the umask.
    path.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def _sync(path: Path) -> None:
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:  # Windows cannot open folders
        return
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def _short(digest: str | None) -> str:
    if digest is None:
        return "absent"
    return digest if digest.startswith("random:") else f"{digest[:12]}..."
