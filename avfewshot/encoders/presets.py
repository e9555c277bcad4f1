"""Backbone presets: which CLIP, which CLAP, which weights and prompt templates; from packaged or custom YAML files."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from avfewshot.encoders.htsat import htsat_config
from avfewshot.errors import UsageError, did_you_mean, flatten, raise_faults
from avfewshot.io import load_yaml, user_path

_FOLDER = Path(__file__).resolve().parent / "presets"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")
OPEN_CLIP_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
"""Weight files of an open_clip repository on the hub, the safer first."""
TIMM_NAMES = ("model.safetensors", "pytorch_model.bin")
"""The same of a repository of timm's."""
ROBERTA_TOKENIZER = "FacebookAI/roberta-base"
ROBERTA_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
ROBERTA_SHA256 = {
    "vocab.json": "9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}


@dataclass(frozen=True)
class Picture:
    """How a second of sound becomes a picture ``[frames, mels]``: Kaldi's filter bank, normalised, then padded."""

    mels: int
    shift_ms: float  # between frames
    frames: int
    mean: float = -4.1426  # of AVE, as the papers' code has them
    std: float = 3.2001  # twice this divides
    channels: Literal["sum", "mean", "repeat"] = "sum"  # one channel by the summed or averaged kernel, or three alike


STG_CMA_CLIP = Picture(128, 10.0, 102)
STG_CMA_SWIN = Picture(224, 4.4, 224, channels="mean")
LAVISH_SWIN = Picture(192, 5.2, 192, -4.9848, 3.7080, channels="repeat")
PICTURES = {"stg-cma-clip": STG_CMA_CLIP, "stg-cma-swin": STG_CMA_SWIN, "lavish-swin": LAVISH_SWIN}
"""Those of the papers, by the names that presets give them."""


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
    swin: Mapping[str, Any] | None = None  # `model` is timm's name of a Swin or Swin-V2, and these are its options


@dataclass(frozen=True)
class ClapPreset:
    """The audio side."""

    audio: str | Mapping[str, Any]  # laion_clap's name of the tower, or the fields of an HTS-AT configuration
    text: Mapping[str, Any]  # `type` roberta (transformers' `RobertaConfig`) or clip (open_clip's `TextTransformer`)
    joint_dim: int = 512  # width of the space that audio and text share
    fused: bool | None = None  # one of LAION's with feature fusion; None: found out from the file
    tokenizer: Source = Source()  # repository or folder with RoBERTa's files, or a merge file
    source: Source = Source()
    picture: Picture | None = None  # instead of a CLAP: what the image tower is shown of sounds


@dataclass(frozen=True)
class PeAvPreset:
    """PE-AV, one model of transformers for sight, sound and text; sizes and tokenizer lie beside its weights."""

    image_size: int  # side of the pictures that it reads
    config: Mapping[str, Any]  # of transformers' `PeAudioVideoConfig`, for random weights and counts; files have theirs
    source: Source = Source()
    timeline: Source | None = None  # PE-A-Frame, which hears the seconds of a clip in one pass


@dataclass(frozen=True)
class Preset:
    """A pair of pretrained models that make up a backbone, or one model for both."""

    name: str  # "base", or the stem of the YAML file
    description: str  # one line for people
    templates: str  # name or path of the prompt templates that fit the models
    clip: ClipPreset
    clap: ClapPreset
    path: Path  # the YAML file
    peav: PeAvPreset | None = None  # takes the place of `clip` and `clap`, which then say nothing

    @property
    def wordless(self) -> bool:
        """Whether it has towers alone, and no text branches: for what learns heads, as ``avfs train``."""
        return self.clip.swin is not None or self.clap.picture is not None


def preset_names() -> list[str]:
    """Names of the packaged presets, the default first."""
    return sorted((path.stem for path in _FOLDER.glob("*.yaml")), key=lambda name: (name != "base", name))


def load_preset(name_or_path: str | Path) -> Preset:
    """Read a preset: one of :func:`preset_names`, or a YAML file of the same form, whose paths are relative to it.

    Raises:
        UsageError: No such preset or file, not YAML, or unknown keys and wrong values, all of them at once.
    """
    text = str(name_or_path)
    if text in preset_names():
        path = _FOLDER / f"{text}.yaml"
    elif text.lower().endswith((".yaml", ".yml")):
        path = user_path(text)
    else:
        raise UsageError(
            f"There is no backbone {text!r}.{did_you_mean(text, preset_names())}",
            hint=f"Valid ones: {', '.join(preset_names())}, or the path of a YAML file of your own.",
        )
    if not path.exists():
        raise UsageError(f"{path}: there is no such backbone file.")
    return _Reader(path).preset(load_yaml(path))


Kind = tuple[Callable[[Any], bool], str]  # whether a value is of this kind, and what is needed


def _is_number(value: Any, *, whole: bool = False) -> bool:
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


_ANY: Kind = (lambda value: True, "")
_TEXT: Kind = (_is_text, "a text is needed")
_WHOLE: Kind = (lambda value: _is_number(value, whole=True) and value >= 1, "a whole number of at least 1 is needed")
_FLAG: Kind = (lambda value: isinstance(value, bool), "true or false is needed")
_CHANNELS: Kind = (
    lambda value: isinstance(value, list) and len(value) == 3 and all(map(_is_number, value)),
    "three numbers (red, green, blue) are needed",
)
_MODEL: Kind = (lambda value: isinstance(value, Mapping) or _is_text(value), "a text is needed")
_FIELDS: Kind = (lambda value: isinstance(value, Mapping), "the fields of open_clip's configuration are needed")

_SOURCE: dict[str, Kind] = dict.fromkeys(
    ("repository", "checkpoint", "revision", "file", "sha256", "size", "licence", "published"), _TEXT
)
_CLIP = {"model": _MODEL, "pretrained": _TEXT, "quick_gelu": _FLAG, "mean": _CHANNELS, "std": _CHANNELS}
_CLIP |= {"tokenizer": _TEXT, **_SOURCE}
_CLIP_MODEL = {"embed_dim": _WHOLE, "vision_cfg": _FIELDS, "text_cfg": _FIELDS, "quick_gelu": _ANY}
_CLAP = {"audio": _ANY, "text": _ANY, "joint_dim": _WHOLE, "fused": _FLAG, "tokenizer": _TEXT, **_SOURCE}
_PEAV_CONFIG: Kind = (_FIELDS[0], "the fields of transformers' PeAudioVideoConfig are needed")
_PEAV = {"image_size": _WHOLE, "config": _PEAV_CONFIG, "timeline": _ANY, **_SOURCE}
_PEAV_NAMES = ("model.safetensors",)
_ROBERTA = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
_TEXT_BRANCHES = {
    "roberta": dict.fromkeys(_ROBERTA.split(), _WHOLE),
    "clip": dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers"), _WHOLE),
}
_SWIN = {"model": _TEXT, "options": (lambda value: isinstance(value, Mapping), "sizes by timm's names are needed")}
_SWIN |= _SOURCE
_NUMBER: Kind = (_is_number, "a number is needed")
_PICTURE = {"mels": _WHOLE, "frames": _WHOLE, "shift_ms": _NUMBER, "mean": _NUMBER, "std": _NUMBER}
_PICTURE |= {"channels": (lambda value: value in ("sum", "mean", "repeat"), "sum, mean or repeat is needed")}
_TOP = {"description": _TEXT, "templates": _TEXT}
_TOP |= dict.fromkeys(("clip", "clap", "peav", "swin", "spectrogram"), _ANY)
_MISSING = object()


class _Reader:
    """Turns parsed YAML into a :class:`Preset` and collects every fault on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[UsageError] = []

    def preset(self, raw: Any) -> Preset:
        top = self.section(raw, "", _TOP)
        joint = self.peav(top["peav"]) if "peav" in top else None
        if joint and (unused := [key for key in ("clip", "clap", "swin", "spectrogram") if key in top]):
            self.fault("peav", f"takes the place of {' and '.join(unused)}: leave one or the other out.")
        for one, other in (("clip", "swin"), ("clap", "spectrogram")):
            if one in top and other in top:
                self.fault("", f"`{one}` and `{other}` exclude each other.")
        if joint:
            seen, heard = ClipPreset(""), ClapPreset("", {})
        else:
            seen = self.swin(top["swin"]) if "swin" in top else self.clip(top.get("clip", _MISSING))
            heard = self.heard(top["spectrogram"]) if "spectrogram" in top else self.clap(top.get("clap", _MISSING))
        templates = top.get("templates", "default")
        beside = self.path.parent / templates  # a path is relative to the YAML file; a name is one of the packaged ones
        preset = Preset(
            name=self.path.stem,
            description=top.get("description", ""),
            templates=str(beside) if beside.suffix and beside.is_file() else templates,
            clip=seen,
            clap=heard,
            path=self.path,
            peav=joint,
        )
        raise_faults(self.faults)
        return preset

    def clip(self, raw: Any) -> ClipPreset:
        section = self.section(raw, "clip", _CLIP, required=("model",))
        model = section.get("model", "")
        if isinstance(model, Mapping):
            self.section(model, "clip.model", _CLIP_MODEL, required=("embed_dim", "vision_cfg", "text_cfg"))
        source = self.source(section, "clip", OPEN_CLIP_NAMES)
        if raw is not _MISSING and not (section.get("pretrained") or source.repository or source.file):
            self.fault("clip", "says no weights: give `pretrained` (one of open_clip's tags), `repository` or `file`.")
        mean, std = (tuple(map(float, section[key])) if key in section else None for key in ("mean", "std"))
        tokenizer = self.relative(section["tokenizer"]) if "tokenizer" in section else None
        pretrained, quick_gelu = section.get("pretrained"), section.get("quick_gelu")
        return ClipPreset(_frozen(model), pretrained, quick_gelu, mean, std, tokenizer, source)

    def swin(self, raw: Any) -> ClipPreset:
        section = self.section(raw, "swin", _SWIN, required=("model",))
        source = self.source(section, "swin", TIMM_NAMES)
        if not (source.repository or source.file):
            self.fault("swin", "says no weights: give `repository` or `file`.")
        return ClipPreset(section.get("model", ""), source=source, swin=_frozen(section.get("options", {})))

    def heard(self, raw: Any) -> ClapPreset:
        picture = PICTURES.get(raw) if isinstance(raw, str) else None
        if picture is None and isinstance(raw, str):
            self.fault("spectrogram", f"{', '.join(PICTURES)}, or mels, frames and shift_ms are needed, not {raw!r}.")
        elif picture is None:
            section = self.section(raw, "spectrogram", _PICTURE, required=("mels", "frames", "shift_ms"))
            picture = None if self.faults else Picture(**section)
        return ClapPreset(audio="", text={"type": "none"}, picture=picture or STG_CMA_CLIP)

    def clap(self, raw: Any) -> ClapPreset:
        section = self.section(raw, "clap", _CLAP)
        text = self.text_branch(section.get("text", "roberta"))
        source = self.source(section, "clap", ())
        if raw is not _MISSING and not (source.repository or source.file):
            self.fault("clap", "says no weights: give `repository` and `checkpoint`, or `file`.")
        elif source.repository and not source.names:
            self.fault("clap.checkpoint", "the name of the file in the repository is needed.")
        return ClapPreset(
            audio=_frozen(self.audio(section.get("audio", "HTSAT-tiny"))),
            text=_frozen(text),
            joint_dim=section.get("joint_dim", 512),
            fused=section.get("fused"),
            tokenizer=self.tokenizer(section.get("tokenizer"), text["type"]),
            source=source,
        )

    def peav(self, raw: Any) -> PeAvPreset:
        section = self.section(raw, "peav", _PEAV, required=("image_size",))
        source = self.source(section, "peav", _PEAV_NAMES)
        if not (source.repository or source.file):
            self.fault("peav", "says no weights: give `repository` or `file`.")
        timeline = None
        if "timeline" in section:
            told = self.section(section["timeline"], "peav.timeline", _SOURCE)
            timeline = self.source(told, "peav.timeline", _PEAV_NAMES)
        return PeAvPreset(section.get("image_size", 0), _frozen(section.get("config", {})), source, timeline)

    def audio(self, raw: Any) -> Any:
        if isinstance(raw, Mapping) and (deep := [str(key) for key, value in raw.items() if _is_deep(value)]):
            self.fault("clap.audio", f"numbers or lists of numbers are needed for {', '.join(deep)}.")
        elif isinstance(raw, str | Mapping):
            try:
                htsat_config(raw)
            except UsageError as error:
                for single in flatten(error):
                    self.fault("clap.audio", str(single))
        else:
            wanted = "laion_clap's name of a tower or the fields of an HTS-AT are needed"
            self.fault("clap.audio", f"{wanted}, not {_shown(raw)}.")
        return raw

    def text_branch(self, raw: Any) -> Mapping[str, Any]:
        fields = {"type": raw} if isinstance(raw, str) else raw
        kind = fields.get("type") if isinstance(fields, Mapping) else None
        if kind not in _TEXT_BRANCHES:
            self.fault("clap.text", "`roberta` is needed, or fields with `type: roberta` or `type: clip`.")
            return {"type": "roberta"}
        self.section(fields, "clap.text", {"type": _ANY, **_TEXT_BRANCHES[kind]})
        return fields

    def tokenizer(self, given: str | None, kind: str) -> Source:
        if kind == "clip":
            if given is None:
                self.fault("clap.tokenizer", "a text is needed, not None.")
            return Source(file=self.relative(given)) if given else Source()
        given = given or ROBERTA_TOKENIZER
        if self.relative(given).is_dir():
            return Source(file=self.relative(given))
        if not _REPOSITORY.fullmatch(given):
            self.fault("clap.tokenizer", f"{given!r} is neither a folder nor a repository on the hub.")
        revision = ROBERTA_REVISION if given == ROBERTA_TOKENIZER else None
        return Source(repository=given, revision=revision, size="1.4 MB", licence="MIT")

    def source(self, section: Mapping[str, Any], where: str, names: tuple[str, ...]) -> Source:
        values = {key: section.get(key) for key in _SOURCE}
        checkpoint, file = values.pop("checkpoint"), values.pop("file")
        if (repository := values["repository"]) and not _REPOSITORY.fullmatch(repository):
            self.fault(f"{where}.repository", f"{repository!r} is not `owner/name`.")
        if repository and file:
            self.fault(where, "`repository` and `file` exclude each other.")
        if values["sha256"] and not _SHA256.fullmatch(values["sha256"]):
            self.fault(f"{where}.sha256", "64 hexadecimal digits in lower case are needed.")
        if checkpoint and (checkpoint.startswith("/") or ".." in Path(checkpoint).parts):
            self.fault(f"{where}.checkpoint", f"{checkpoint!r} is not a file inside the repository.")
        return Source((checkpoint,) if checkpoint else names, file=self.relative(file) if file else None, **values)

    def relative(self, name: str) -> Path:
        return (self.path.parent / user_path(name)).resolve()

    def section(
        self, raw: Any, where: str, kinds: Mapping[str, Kind], *, required: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values that are there and of their kind."""
        if not isinstance(raw, Mapping):
            self.fault(where, "is missing." if raw is _MISSING else f"keys and values are needed ({', '.join(kinds)}).")
            return {}
        place = f"{where}." if where else ""
        for key in [key for key in raw if key not in kinds]:
            guess = did_you_mean(str(key), kinds)
            self.fault(f"{place}{key}", f"is unknown.{guess} Valid keys: {', '.join(kinds)}.")
        values = {key: raw.get(key) for key in kinds if raw.get(key) is not None or key in required}
        for key, value in list(values.items()):
            fits, wanted = kinds[key]
            if not fits(value):
                self.fault(f"{place}{key}", f"{wanted}, not {_shown(values.pop(key))}.")
        return values

    def fault(self, where: str, what: str) -> None:
        self.faults.append(UsageError(f"{self.path}: {where + ': ' if where else ''}{what}"))


def _shown(value: Any) -> str:
    # Aliases let a few lines of YAML stand for a value whose full text would fill the memory.
    return f"a {type(value).__name__}" if isinstance(value, Mapping | list) else repr(value)[:80]


def _is_deep(value: Any) -> bool:
    return any(isinstance(entry, Mapping | list) for entry in (value if isinstance(value, list) else [value]))


def _frozen(value: Any) -> Any:
    """`value` with its mappings read-only, so that a preset cannot be changed by accident."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: _frozen(inner) for key, inner in value.items()})
    return tuple(_frozen(inner) for inner in value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Ordinary dicts and lists of a preset's read-only ones."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple) else value
