"""What every kind of preset answers."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from avfewshot.encoders.weights.locate import Needed, locate, looked_in
from avfewshot.errors import UsageError, WeightsError

if TYPE_CHECKING:
    from torch import nn

    from avfewshot.encoders.kinds.forms import Reader
    from avfewshot.encoders.text import TextBranch
    from avfewshot.encoders.tower import Encoder

PACKAGED = Path(__file__).resolve().parents[1] / "presets"
"""The folder of the presets that come with this package."""

Given = str | Path | None  # what is named by path instead of the preset
_LOG = logging.getLogger(__name__)


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

    def require(self, needed: Sequence[Needed]) -> dict[str, Path]:
        """Path by key of every file; of optional ones those that are there.

        Raises:
            WeightsError: Some are missing; all of them are named, with where they were looked for and what to do.
        """
        paths: dict[str, Path] = {}
        missing: list[Needed] = []
        for entry in needed:
            if path := locate(entry):
                _LOG.info("%s: %s", entry.part, path)
                paths[entry.key] = path
            elif not entry.optional:
                missing.append(entry)
        if missing:
            count = "a file" if len(missing) == 1 else f"{len(missing)} files"
            listed = "\n".join(f"{entry.part}: {entry.title} (looked in {looked_in(entry)})" for entry in missing)
            raise WeightsError(f"The backbone {self.name!r} lacks {count}:\n{listed}", hint=self.how_to_get(missing))
        return paths

    def how_to_get(self, missing: Sequence[Needed]) -> str:
        """What to do about files that are not here, at least one, in one sentence."""
        advice = []
        if hub := [entry for entry in missing if entry.source.repository]:
            which = self.name if self.path.parent == PACKAGED else self.path
            advice.append(f"run `avfs weights fetch {which}` once with a network")
            if options := sorted({entry.option for entry in hub if entry.option}):
                advice.append(f"or give the files by path with {' and '.join(options)}")
        if given := [entry.source.file for entry in missing if entry.source.file]:
            packaged = any(path.is_relative_to(PACKAGED.parents[1]) for path in given)
            advice.append("install avfewshot again, it brings its files along" if packaged else "check the path")
        sentence = ", ".join(advice)
        return f"{sentence[0].upper()}{sentence[1:]}."

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
    message = f"The backbone {backbone} has no text branches: no clip can be compared with a label."
    return UsageError(message, hint="It serves `avfs train`. For labels take another one, such as --backbone base.")


def no_roberta(backbone: str) -> UsageError:
    """The error for a tokenizer that nothing would read."""
    return UsageError(f"The backbone {backbone!r} has no RoBERTa, so --roberta has no use.", hint="Leave it out.")
