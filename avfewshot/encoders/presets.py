"""Backbone presets: which CLIP, which CLAP, which weights and prompt templates; from packaged or custom YAML files."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from avfewshot.encoders.htsat import htsat_config
from avfewshot.errors import UsageError, did_you_mean, flatten, raise_faults
from avfewshot.io import load_yaml

_FOLDER = Path(__file__).resolve().parent / "presets"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weight files of an open_clip repository on the hub, the safer first."""
ROBERTA_TOKENIZER = "FacebookAI/roberta-base"
ROBERTA_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
ROBERTA_SHA256 = {
    "vocab.json": "9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


@dataclass(frozen=True)
class Source:
    """Where a file comes from."""

    names: tuple[str, ...] = ()  # file names in the repository, the best first; one of them is needed
    repository: str | None = None  # on the hub, for example "lukewys/laion_clap"
    revision: str | None = None  # branch, tag or commit of the repository; its main branch when None
    file: Path | None = None  # the file itself, where it is not on the hub
    sha256: str | None = None  # what its bytes must hash to, where that is known
    size: str | None = None  # for people, for example "605 MB"
    licence: str | None = None  # for people
    published: str | None = None  # figures with their source, for people


@dataclass(frozen=True)
class ClipPreset:
    """The visual side."""

    model: str | Mapping[str, Any]  # open_clip's name, or its `embed_dim`, `vision_cfg` and `text_cfg`
    pretrained: str | None = None  # open_clip's tag of the weights; it also says how images are normalised
    quick_gelu: bool | None = None  # whether the weights want the quick GELU; None: as the model or the tag says
    mean: tuple[float, ...] | None = None  # channel means that images are normalised with; None: as the tag says
    std: tuple[float, ...] | None = None  # channel deviations, likewise
    tokenizer: Path | None = None  # a byte-pair merge file in CLIP's format; None: open_clip's own
    source: Source = Source()  # without a repository and a file, open_clip's tag tells it


@dataclass(frozen=True)
class ClapPreset:
    """The audio side."""

    audio: str | Mapping[str, Any]  # laion_clap's name of the tower, or the fields of an HTS-AT configuration
    text: Mapping[str, Any]  # `type` roberta (transformers' `RobertaConfig`) or clip (open_clip's `TextTransformer`)
    joint_dim: int = 512  # width of the space that audio and text share
    fused: bool | None = None  # one of LAION's with feature fusion; None: found out from the file
    tokenizer: Source = Source()  # repository or folder with RoBERTa's files, or a merge file
    source: Source = Source()


@dataclass(frozen=True)
class Preset:
    """A pair of pretrained models that make up a backbone."""

    name: str  # "base", or the stem of the YAML file
    description: str  # one line for people
    templates: str  # name or path of the prompt templates that fit the models
    clip: ClipPreset
    clap: ClapPreset
    path: Path  # the YAML file


def preset_names() -> list[str]:
    """Names of the packaged presets, the default first."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=lambda name: (name != "base", name))


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a preset.

    Args:
        name_or_path: One of :func:`preset_names`, or the path of a YAML file of the same form. Relative paths inside it
            are relative to it.

    Returns:
        The checked preset.

    Raises:
        UsageError: No such preset or file, not YAML, or unknown keys and wrong values, all of them at once.
    """
    text = str(name_or_path)
    if text in preset_names():
        path = _FOLDER / f"{text}.yaml"
    elif text.lower().endswith((".yaml", ".yml")):
        path = Path(text).expanduser()
    else:
        raise UsageError(
            f"There is no backbone {text!r}.{did_you_mean(text, preset_names())}",
            hint=f"Valid ones: {', '.join(preset_names())}, or the path of a YAML file of your own.",
        )
    return _Reader(path).preset(_parse(path))


def _parse(path: Path) -> Any:
    if not path.exists():
        raise UsageError(f"{path}: there is no such backbone file.")
    return load_yaml(path)


class _Reader:
    """Turns parsed YAML into a :class:`Preset` and collects every fault on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[UsageError] = []

    def preset(self, raw: Any) -> Preset:
        top = self.section(raw, "", ("description", "templates", "clip", "clap"))
        preset = Preset(
            name=self.path.stem,
            description=self.text(top, "", "description") or "",
            templates=self.templates(self.text(top, "", "templates") or "default"),
            clip=self.clip(top.get("clip"), present="clip" in top),
            clap=self.clap(top.get("clap"), present="clap" in top),
            path=self.path,
        )
        raise_faults(self.faults)
        return preset

    def templates(self, name: str) -> str:
        # A path is relative to the YAML file; a name is looked up among the packaged ones.
        candidate = self.path.parent / name
        return str(candidate) if candidate.suffix and candidate.is_file() else name

    def clip(self, raw: Any, *, present: bool) -> ClipPreset:
        where = "clip"
        keys = ("model", "pretrained", "quick_gelu", "mean", "std", "tokenizer", *_SOURCE_KEYS)
        section = self.section(raw, where, keys, present=present)
        model = section.get("model", "")
        if isinstance(model, Mapping):
            architecture = self.section(model, "clip.model", ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu"))
            self.whole(architecture, "clip.model", "embed_dim", required=True)
            for key in ("vision_cfg", "text_cfg"):
                if not isinstance(architecture.get(key), Mapping):
                    self.fault(f"clip.model.{key}", "the fields of open_clip's configuration are needed.")
        elif present and raw is not None:
            model = self.text(section, where, "model", required=True) or ""
        tokenizer = self.text(section, where, "tokenizer")
        pretrained = self.text(section, where, "pretrained")
        source = self.source(section, where, OPEN_CLIP_NAMES)
        if present and not (pretrained or source.repository or source.file):
            self.fault(where, "says no weights: give `pretrained` (one of open_clip's tags), `repository` or `file`.")
        return ClipPreset(
            model=_frozen(model),
            pretrained=pretrained,
            quick_gelu=self.flag(section, where, "quick_gelu"),
            mean=self.channels(section, where, "mean"),
            std=self.channels(section, where, "std"),
            tokenizer=self.relative(tokenizer) if tokenizer else None,
            source=source,
        )

    def clap(self, raw: Any, *, present: bool) -> ClapPreset:
        where = "clap"
        keys = ("audio", "text", "joint_dim", "fused", "tokenizer", *_SOURCE_KEYS)
        section = self.section(raw, where, keys, present=present)
        audio = self.audio(section.get("audio", "HTSAT-tiny"))
        text = self.text_branch(section.get("text", "roberta"))
        tokenizer = self.text(section, where, "tokenizer", required=text["type"] == "clip")
        source = self.source(section, where, None)
        if present and not (source.repository or source.file):
            self.fault(where, "says no weights: give `repository` and `checkpoint`, or `file`.")
        elif source.repository and not source.names:
            self.fault("clap.checkpoint", "the name of the file in the repository is needed.")
        return ClapPreset(
            audio=_frozen(audio),
            text=_frozen(text),
            joint_dim=self.whole(section, where, "joint_dim") or 512,
            fused=self.flag(section, where, "fused"),
            tokenizer=self.tokenizer(tokenizer, text["type"]),
            source=source,
        )

    def audio(self, raw: Any) -> str | Mapping[str, Any]:
        if not isinstance(raw, str | Mapping):
            self.fault(
                "clap.audio", f"laion_clap's name of a tower or the fields of an HTS-AT are needed, not {_shown(raw)}."
            )
            return "HTSAT-tiny"
        if isinstance(raw, Mapping) and (deep := [str(key) for key, value in raw.items() if _is_deep(value)]):
            self.fault("clap.audio", f"numbers or lists of numbers are needed for {', '.join(deep)}.")
            return "HTSAT-tiny"
        try:
            htsat_config(raw)
        except UsageError as error:
            for single in flatten(error):
                self.fault("clap.audio", str(single))
        return raw

    def text_branch(self, raw: Any) -> Mapping[str, Any]:
        fields = {"type": raw} if isinstance(raw, str) else raw
        kind = fields.get("type") if isinstance(fields, Mapping) else None
        if kind not in _TEXT_FIELDS:
            self.fault("clap.text", "`roberta` is needed, or fields with `type: roberta` or `type: clip`.")
            return {"type": "roberta"}
        self.section(fields, "clap.text", ("type", *_TEXT_FIELDS[kind]))
        for key in _TEXT_FIELDS[kind]:
            self.whole(fields, "clap.text", key)
        return fields

    def tokenizer(self, given: str | None, kind: str) -> Source:
        if kind == "clip":
            return Source(file=self.relative(given)) if given else Source()
        given = given or ROBERTA_TOKENIZER
        if self.relative(given).is_dir():
            return Source(file=self.relative(given))
        if not _REPOSITORY.fullmatch(given):
            self.fault("clap.tokenizer", f"{given!r} is neither a folder nor a repository on the hub.")
        revision = ROBERTA_REVISION if given == ROBERTA_TOKENIZER else None
        return Source(repository=given, revision=revision, size="1.4 MB", licence="MIT")

    def source(self, section: Mapping[str, Any], where: str, names: tuple[str, ...] | None) -> Source:
        values = {key: self.text(section, where, key) for key in _SOURCE_KEYS}
        if values["repository"] and not _REPOSITORY.fullmatch(values["repository"]):
            self.fault(f"{where}.repository", f"{values['repository']!r} is not `owner/name`.")
        if values["repository"] and values["file"]:
            self.fault(where, "`repository` and `file` exclude each other.")
        if values["sha256"] and not _SHA256.fullmatch(values["sha256"]):
            self.fault(f"{where}.sha256", "64 hexadecimal digits in lower case are needed.")
        checkpoint = values["checkpoint"]
        if checkpoint and (checkpoint.startswith("/") or ".." in Path(checkpoint).parts):
            self.fault(f"{where}.checkpoint", f"{checkpoint!r} is not a file inside the repository.")
        return Source(
            names=(checkpoint,) if checkpoint else names or (),
            repository=values["repository"],
            revision=values["revision"],
            file=self.relative(values["file"]) if values["file"] else None,
            sha256=values["sha256"],
            size=values["size"],
            licence=values["licence"],
            published=values["published"],
        )

    def relative(self, name: str) -> Path:
        return (self.path.parent / Path(name).expanduser()).resolve()

    def section(self, raw: Any, where: str, keys: tuple[str, ...], *, present: bool = True) -> Mapping[str, Any]:
        if not present:
            self.fault(where, "is missing.")
            return {}
        if not isinstance(raw, Mapping):
            self.fault(where, f"keys and values are needed ({', '.join(keys)}).")
            return {}
        for key in raw:
            if key not in keys:
                guess = did_you_mean(str(key), keys)
                self.fault(
                    f"{where}.{key}" if where else str(key), f"is unknown.{guess} Valid keys: {', '.join(keys)}."
                )
        return raw

    def text(self, section: Mapping[str, Any], where: str, key: str, *, required: bool = False) -> str | None:
        value = section.get(key)
        if value is None and not required:
            return None
        if not isinstance(value, str) or not value.strip():
            self.fault(f"{where}.{key}" if where else key, f"a text is needed, not {_shown(value)}.")
            return None
        return value

    def whole(self, section: Mapping[str, Any], where: str, key: str, *, required: bool = False) -> int | None:
        value = section.get(key)
        if value is None and not required:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.fault(f"{where}.{key}", f"a whole number of at least 1 is needed, not {_shown(value)}.")
            return None
        return value

    def flag(self, section: Mapping[str, Any], where: str, key: str) -> bool | None:
        value = section.get(key)
        if value is not None and not isinstance(value, bool):
            self.fault(f"{where}.{key}", f"true or false is needed, not {_shown(value)}.")
            return None
        return value

    def channels(self, section: Mapping[str, Any], where: str, key: str) -> tuple[float, ...] | None:
        value = section.get(key)
        if value is None:
            return None
        numbers = isinstance(value, list) and all(isinstance(x, int | float) and not isinstance(x, bool) for x in value)
        if not numbers or len(value) != 3:
            self.fault(f"{where}.{key}", f"three numbers (red, green, blue) are needed, not {_shown(value)}.")
            return None
        return tuple(float(x) for x in value)

    def fault(self, where: str, what: str) -> None:
        self.faults.append(UsageError(f"{self.path}: {where + ': ' if where else ''}{what}"))


_TEXT_FIELDS = {
    "roberta": (
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
    ),
    "clip": ("context_length", "vocab_size", "width", "heads", "layers"),
}
_SOURCE_KEYS = ("repository", "checkpoint", "revision", "file", "sha256", "size", "licence", "published")


def _shown(value: Any) -> str:
    # Aliases let a few lines of YAML stand for a value whose full text would fill the memory.
    return f"a {type(value).__name__}" if isinstance(value, Mapping | list) else repr(value)[:80]


def _is_deep(value: Any) -> bool:
    inner = value if isinstance(value, list) else [value]
    return any(isinstance(entry, Mapping | list) for entry in inner)


def _frozen(value: Any) -> Any:
    """`value` with its mappings read-only, so that a preset cannot be changed by accident."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value
