"""The kinds of two sections: CLIP and CLAP, each with its texts; and towers alone, for what learns heads.

Such towers are a Swin or CLIP for pictures; for sounds a CLAP, or the same again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.kinds import forms
from avfewshot.encoders.kinds.base import Given, Parts, Preset, no_texts
from avfewshot.encoders.kinds.clap import ClapPreset
from avfewshot.encoders.kinds.clip import ClipPreset
from avfewshot.encoders.kinds.forms import Form, Reader
from avfewshot.encoders.picture import PICTURES, STG_CMA_CLIP, Picture
from avfewshot.encoders.weights.locate import Needed, Source, combined, sample_hash
from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from avfewshot.encoders.tower import Encoder

_SWIN_NAMES = ("model.safetensors", "pytorch_model.bin")  # in timm's repositories, the safer first
_OPTIONS: Form = (forms.is_mapping, "sizes by timm's names are needed")
_SWIN: dict[str, Form] = {"model": forms.TEXT, "options": _OPTIONS, **forms.SOURCE}
_PICTURE = {"mels": forms.WHOLE, "frames": forms.WHOLE, **dict.fromkeys(("shift_ms", "mean", "std"), forms.NUMBER)}
_PICTURE |= {"channels": (lambda value: value in ("sum", "mean", "repeat"), "sum, mean or repeat is needed")}


@dataclass(frozen=True)
class ClipClap(Preset):
    """A CLIP and a CLAP."""

    clip: ClipPreset
    clap: ClapPreset

    sections = ("clip", "clap")

    @classmethod
    def read(cls, reader: Reader, top: Mapping[str, Any], common: Mapping[str, Any]) -> ClipClap:
        """See :meth:`Preset.read`."""
        clip, clap = (top.get(section, forms.MISSING) for section in cls.sections)
        return cls(**common, clip=ClipPreset.read(reader, clip), clap=ClapPreset.read(reader, clap))

    @property
    def walkable(self) -> bool:
        """See :attr:`Preset.walkable`."""
        return self.clip.walkable

    def image_size(self) -> int:
        """See :meth:`Preset.image_size`; a :class:`UsageError` where pictures are not square."""
        size = self.clip.configuration()["vision_cfg"].get("image_size", 224)
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise UsageError(f"The backbone {self.name} looks at pictures of {size}; only square ones can be prepared.")
        return sides.pop()

    def files(self, *, clip_weights: Given = None, clap_weights: Given = None, roberta: Given = None) -> list[Needed]:
        """See :meth:`Preset.files`."""
        return [*self.clip.files(clip_weights), *self.clap.files(self.name, clap_weights, roberta)]

    def identity(self, digests: Mapping[str, str]) -> dict[str, str]:
        """See :meth:`Preset.identity`; what describes a tokenizer beside its own file says nothing."""
        return {key: digest for key, digest in digests.items() if not key.startswith("clip_text_tokenizer_")}

    def build(self, files: Mapping[str, Path], digests: Mapping[str, str]) -> Parts:
        """See :meth:`Preset.build`."""
        from avfewshot.encoders.text import OpenClipTextBranch, RobertaTextBranch

        clip, clip_tokenizer = self.clip.load(files)
        clap, clap_tokenizer, audio = self.clap.load(files)
        visual = self.clip.encoder(clip)
        # What a seed gives differs between versions of the libraries: random weights are told by their numbers.
        clip_hash = digests.get("clip") or sample_hash(clip)
        clap_hash = digests.get("clap") or sample_hash(clap)
        # The text modules' own descriptions tell what the weights do not, such as the kind of GELU.
        clip_print = combined("clip", clip_hash, clip_tokenizer.fingerprint, str(self.clip.model), repr(clip.text))
        texts, projection, width = clap.text_branch, clap.text_projection, self.clap.joint_dim
        clap_print = combined("clap", clap_hash, clap_tokenizer.fingerprint, str(self.clap.text), repr(texts))
        if self.clap.text["type"] == "clip":
            audio_text = OpenClipTextBranch(texts, clap_tokenizer, width, clap_print, projection)
        else:
            audio_text = RobertaTextBranch(clap_tokenizer, width, clap_print, model=texts, projection=projection)
        return Parts(
            visual=visual,
            audio=audio,
            visual_text=OpenClipTextBranch(clip.text, clip_tokenizer, visual.output_dim, clip_print),
            audio_text=audio_text,
            visual_scale=clip.logit_scale.exp().item(),
            audio_scale=clap.logit_scale_a.exp().item(),
            visual_bias=0.0 if clip.logit_bias is None else clip.logit_bias.item(),
        )

    def outline(self) -> tuple[Encoder, Encoder, Sequence[nn.Module]]:
        """See :meth:`Preset.outline`."""
        import torch

        with torch.device("meta"):
            clip, _ = self.clip.build(split_text=True)
        clap, audio = self.clap.outlined()
        return self.clip.encoder(clip).to("meta"), audio, [clip, clap]


@dataclass(frozen=True)
class SwinPreset:
    """A Swin or Swin-V2 of timm."""

    model: str  # timm's name
    options: Mapping[str, Any]  # sizes by timm's names
    source: Source

    walkable = True

    @classmethod
    def read(cls, reader: Reader, raw: Any) -> SwinPreset:
        """Of the section ``swin``."""
        section = reader.section(raw, "swin", _SWIN, required=("model",))
        source = reader.source(section, "swin", _SWIN_NAMES)
        if not (source.repository or source.file):
            reader.fault("swin", "says no weights: give `repository` or `file`.")
        return cls(section.get("model", ""), forms.frozen(section.get("options", {})), source)

    @property
    def form(self) -> tuple[str, str]:
        """What is built, but for the weights."""
        return self.model, repr(self.options)

    def files(self, given: Given) -> list[Needed]:
        """The weights."""
        return [Needed("clip", "Swin weights", Source.at(given) if given else self.source, "--clip-weights")]

    def tower(self, files: Mapping[str, Path]) -> Encoder:
        """The image encoder."""
        from avfewshot.encoders.swin import build_swin, load_swin

        tower = build_swin(self.model, **self.options)
        if "clip" in files:
            load_swin(tower, files["clip"], self.model)
        return tower


@dataclass(frozen=True)
class PicturePreset:
    """Sounds as pictures, for the image encoder."""

    picture: Picture

    @classmethod
    def read(cls, reader: Reader, raw: Any) -> PicturePreset:
        """Of the section ``spectrogram``."""
        if isinstance(raw, str):
            if raw not in PICTURES:
                known = ", ".join(PICTURES)
                reader.fault("spectrogram", f"{known}, or mels, frames and shift_ms are needed, not {raw!r}.")
            return cls(PICTURES.get(raw, STG_CMA_CLIP))
        section = reader.section(raw, "spectrogram", _PICTURE, required=("mels", "frames", "shift_ms"))
        return cls(STG_CMA_CLIP if reader.faults else Picture(**section))

    @property
    def form(self) -> tuple[str, str]:
        """What is built."""
        return repr(self.picture), ""

    def files(self, backbone: str, given: Given, roberta: Given) -> list[Needed]:
        """None, since the image encoder hears; a :class:`UsageError` where files of CLAP are given."""
        if used := [name for name, path in (("--clap-weights", given), ("--roberta", roberta)) if path]:
            raise UsageError(f"The backbone {backbone!r} has no CLAP: {' and '.join(used)} has no use.")
        return []

    def tower(self, files: Mapping[str, Path], image: Encoder, where: Path) -> Encoder:
        """The image encoder again, which is shown spectrograms; a :class:`UsageError` where it is run whole."""
        from avfewshot.encoders.clip_tower import ClipTower
        from avfewshot.encoders.spectrogram_tower import SpectrogramTower
        from avfewshot.encoders.swin import SwinTower

        if not isinstance(image, ClipTower | SwinTower):
            raise UsageError(f"{where}: the image encoder is run whole, and cannot be shown spectrograms.")
        return SpectrogramTower(image, self.picture)

    def outline(self, image: Encoder) -> Encoder:
        """The same, with pictures of the right shape: making them needs numbers."""
        import torch

        with torch.device("meta"):
            audio: Any = self.tower({}, image, Path())
        audio.pictures = lambda sound: sound.new_empty(len(sound), self.picture.frames, self.picture.mels)
        return audio


@dataclass(frozen=True)
class Towers(Preset):
    """Two towers, or one for both modalities."""

    sight: ClipPreset | SwinPreset
    sound: ClapPreset | PicturePreset

    sections = ("swin", "spectrogram")
    wordless = True

    @classmethod
    def read(cls, reader: Reader, top: Mapping[str, Any], common: Mapping[str, Any]) -> Towers:
        """See :meth:`Preset.read`."""
        for one, other in (("clip", "swin"), ("clap", "spectrogram")):
            if one in top and other in top:
                reader.fault("", f"`{one}` and `{other}` exclude each other.")
        sight, sound = (
            SwinPreset if "swin" in top else ClipPreset,
            PicturePreset if "spectrogram" in top else ClapPreset,
        )
        return cls(
            **common,
            sight=sight.read(reader, top.get("swin", top.get("clip", forms.MISSING))),
            sound=sound.read(reader, top.get("spectrogram", top.get("clap", forms.MISSING))),
        )

    @property
    def walkable(self) -> bool:
        """See :attr:`Preset.walkable`."""
        return self.sight.walkable

    def image_size(self) -> int:
        """Nothing that prepares pictures can be done without texts."""
        raise no_texts(self.name)

    def files(self, *, clip_weights: Given = None, clap_weights: Given = None, roberta: Given = None) -> list[Needed]:
        """See :meth:`Preset.files`."""
        return [*self.sight.files(clip_weights), *self.sound.files(self.name, clap_weights, roberta)]

    def identity(self, digests: Mapping[str, str]) -> dict[str, str]:
        """See :meth:`Preset.identity`; the same weights say something else at another size, or of other pictures."""
        return {**digests, "form": combined(*self.sight.form, *self.sound.form)}

    def build(self, files: Mapping[str, Path], digests: Mapping[str, str]) -> Parts:
        """See :meth:`Preset.build`."""
        from avfewshot.encoders.text import NoTexts

        visual = self.sight.tower(files)
        texts = NoTexts(partial(no_texts, self.name))
        return Parts(visual, self.sound.tower(files, visual, self.path), texts, texts)

    def outline(self) -> tuple[Encoder, Encoder, Sequence[nn.Module]]:
        """See :meth:`Preset.outline`."""
        import torch

        with torch.device("meta"):
            visual = self.sight.tower({})
        audio = self.sound.outline(visual)
        return visual.to("meta"), audio.to("meta"), [visual, audio]
