"""What every kind of preset answers, and the reader of its YAML file."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

from avfewshot.encoders.weights.locate import Needed, Source
from avfewshot.errors import UsageError, did_you_mean
from avfewshot.io import user_path

if TYPE_CHECKING:
    from torch import nn

    from avfewshot.encoders.text import TextBranch
    from avfewshot.encoders.tower import Encoder

Given = str | Path | None  # what is named by path instead of the preset
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass
class Parts:
    """What a backbone computes with."""

    visual: Encoder  # embeds frames
    audio: Encoder  # embeds one-second waveforms
    visual_text: TextBranch  # embeds texts in the space of the frames
    audio_text: TextBranch  # embeds texts in the space of the sounds
    visual_scale: float = 100.0  # what cosines with frames are multiplied with before a softmax
    audio_scale: float = 100.0  # the same for sounds
    # What models trained with a sigmoid (SigLIP) add to scaled cosines. A softmax over labels does not see it.
    visual_bias: float = 0.0


@dataclass(frozen=True)
class Preset(ABC):
    """Pretrained models that make up a backbone. A kind of preset is a subclass and a row of ``presets.KINDS``."""

    name: str  # "base", or the stem of the YAML file
    description: str  # one line for people
    templates: str  # name or path of the prompt templates that fit the models
    path: Path  # the YAML file

    sections: ClassVar[tuple[str, ...]]  # keys of the YAML file that are this kind's own
    wordless: ClassVar[bool] = False  # whether it has towers alone, for what learns heads, as ``avfs train``
    needs: ClassVar[str | None] = None  # what beside the package's own dependencies must be installed, for people

    @classmethod
    @abstractmethod
    def read(cls, reader: Reader, top: Mapping[str, Any], common: Mapping[str, Any]) -> Preset:
        """Make one of the sections of a YAML file by key, and of the common fields; `reader` is told faults."""

    @property
    @abstractmethod
    def walkable(self) -> bool:
        """Whether adapters can be put between the blocks of its towers."""

    @abstractmethod
    def image_size(self) -> int:
        """Side of the square pictures that it looks at, in pixels; no weights are needed to tell.

        Raises:
            UsageError: They are not square, or the backbone serves nothing that prepares pictures.
        """

    @abstractmethod
    def files(self, *, clip_weights: Given = None, clap_weights: Given = None, roberta: Given = None) -> list[Needed]:
        """The files that it needs, packaged ones included, there or not; paths take the places of its own.

        Raises:
            UsageError: A path has no use, or the preset names a model or tag that its library does not have.
        """

    def require_library(self) -> None:
        """Raise an :class:`AvfsError` where what it needs is not installed, before anything is fetched."""
        return

    def identity(self, digests: Mapping[str, str]) -> dict[str, str]:
        """What tells the built backbone from others: of the SHA-256 of its files by key, those that say something."""
        return dict(digests)

    @abstractmethod
    def build(self, files: Mapping[str, Path], digests: Mapping[str, str]) -> Parts:
        """Build encoders and text branches, of `files` (by key, with their SHA-256) or else random ones.

        Raises:
            UsageError: The sizes do not fit together.
            WeightsError: A file is damaged or of another architecture.
        """

    @abstractmethod
    def outline(self) -> tuple[Encoder, Encoder, Sequence[nn.Module]]:
        """Encoders for frames and sound on torch's ``meta`` device, and the modules whose parameters are all there are.

        No weight is read; what runs on them gives shapes and counts alone.
        """

    def require_texts(self) -> None:
        """Raise a :class:`UsageError` where clips cannot be compared with texts."""
        if self.wordless:
            raise no_texts(self.name)


def no_texts(backbone: str) -> UsageError:
    """The error for what compares clips with texts, on a backbone without text branches."""
    return UsageError(
        f"The backbone {backbone} has no text branches: no clip can be compared with a label.",
        hint="It serves `avfs train`. For labels take another one, such as --backbone base.",
    )


def no_roberta(backbone: str) -> UsageError:
    """The error for a tokenizer that nothing would read."""
    return UsageError(f"The backbone {backbone!r} has no RoBERTa, so --roberta has no use.", hint="Leave it out.")


Form = tuple[Callable[[Any], bool], str]  # whether a value has this form, and what is needed


def is_number(value: Any, *, whole: bool = False) -> bool:
    """Whether a value is a number; true and false are none."""
    return isinstance(value, int if whole else int | float) and not isinstance(value, bool)


def is_text(value: Any) -> bool:
    """Whether a value is a text that says something."""
    return isinstance(value, str) and bool(value.strip())


def is_mapping(value: Any) -> bool:
    """Whether a value has keys."""
    return isinstance(value, Mapping)


ANY: Form = (lambda value: True, "")
TEXT: Form = (is_text, "a text is needed")
NUMBER: Form = (is_number, "a number is needed")
WHOLE: Form = (lambda value: is_number(value, whole=True) and value >= 1, "a whole number of at least 1 is needed")
FLAG: Form = (lambda value: isinstance(value, bool), "true or false is needed")
SOURCE: dict[str, Form] = dict.fromkeys(
    ("repository", "checkpoint", "revision", "file", "sha256", "size", "licence", "published"), TEXT
)
MISSING = object()


class Reader:
    """Checks what was parsed from a YAML file, and collects every fault on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.faults: list[UsageError] = []

    def common(self, top: Mapping[str, Any]) -> dict[str, Any]:
        """The fields that every kind has."""
        templates = top.get("templates", "default")
        beside = self.path.parent / templates  # a path is relative to the YAML file; a name is one of the packaged ones
        return {
            "name": self.path.stem,
            "description": top.get("description", ""),
            "templates": str(beside) if beside.suffix and beside.is_file() else templates,
            "path": self.path,
        }

    def section(
        self, raw: Any, where: str, forms: Mapping[str, Form], *, required: Collection[str] = ()
    ) -> dict[str, Any]:
        """The values that are there and have their form."""
        if not isinstance(raw, Mapping):
            self.fault(where, "is missing." if raw is MISSING else f"keys and values are needed ({', '.join(forms)}).")
            return {}
        place = f"{where}." if where else ""
        for key in [key for key in raw if key not in forms]:
            guess = did_you_mean(str(key), forms)
            self.fault(f"{place}{key}", f"is unknown.{guess} Valid keys: {', '.join(forms)}.")
        values = {key: raw.get(key) for key in forms if raw.get(key) is not None or key in required}
        for key, value in list(values.items()):
            fits, wanted = forms[key]
            if not fits(value):
                self.fault(f"{place}{key}", f"{wanted}, not {shown(values.pop(key))}.")
        return values

    def source(self, section: Mapping[str, Any], where: str, names: tuple[str, ...]) -> Source:
        """Where a file comes from."""
        values = {key: section.get(key) for key in SOURCE}
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

    def folder_or_repository(self, given: str, where: str, **about: Any) -> Source:
        """A folder beside the YAML file, or else a repository on the hub."""
        if self.relative(given).is_dir():
            return Source(file=self.relative(given))
        if not _REPOSITORY.fullmatch(given):
            self.fault(where, f"{given!r} is neither a folder nor a repository on the hub.")
        return Source(repository=given, **about)

    def relative(self, name: str) -> Path:
        """A path in the YAML file."""
        return (self.path.parent / user_path(name)).resolve()

    def fault(self, where: str, what: str) -> None:
        """Note what is wrong."""
        self.faults.append(UsageError(f"{self.path}: {where + ': ' if where else ''}{what}"))


def shown(value: Any) -> str:
    """A value in a message."""
    # Aliases let a few lines of YAML stand for a value whose full text would fill the memory.
    return f"a {type(value).__name__}" if isinstance(value, Mapping | list) else repr(value)[:80]


def frozen(value: Any) -> Any:
    """`value` with its mappings read-only, so that a preset cannot be changed by accident."""
    if isinstance(value, Mapping):
        return MappingProxyType({key: frozen(inner) for key, inner in value.items()})
    return tuple(frozen(inner) for inner in value) if isinstance(value, list) else value


def plain(value: Any) -> Any:
    """Ordinary dicts and lists of a preset's read-only ones."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, tuple) else value
