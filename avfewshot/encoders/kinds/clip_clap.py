"""The kind with a CLIP for pictures and a CLAP for sounds, each with its own text branch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.kinds.base import MISSING, GivenPath, Parts, Preset, Reader
from avfewshot.encoders.kinds.clap import ClapPreset
from avfewshot.encoders.kinds.clip import ClipPreset
from avfewshot.encoders.weights.locate import Needed, combined, sample_hash
from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from avfewshot.encoders.tower import Encoder


@dataclass(frozen=True)
class ClipClap(Preset):
    """A CLIP and a CLAP."""

    clip: ClipPreset
    clap: ClapPreset

    sections = ("clip", "clap")

    @classmethod
    def read(cls, reader: Reader, top: Mapping[str, Any], common: Mapping[str, Any]) -> ClipClap:
        """See :meth:`Preset.read`."""
        clip, clap = (top.get(section, MISSING) for section in cls.sections)
        return cls(**common, clip=ClipPreset.read(reader, clip), clap=ClapPreset.read(reader, clap))

    @property
    def walkable(self) -> bool:
        """See :attr:`Preset.walkable`."""
        return self.clip.walkable

    def image_size(self) -> int:
        """See :meth:`Preset.image_size`."""
        size = self.clip.configuration()["vision_cfg"].get("image_size", 224)
        sides = {size} if isinstance(size, int) else set(size)
        if len(sides) != 1:
            raise UsageError(f"The backbone {self.name} looks at pictures of {size}; only square ones can be prepared.")
        return sides.pop()

    def files(
        self, *, clip_weights: GivenPath = None, clap_weights: GivenPath = None, roberta: GivenPath = None
    ) -> list[Needed]:
        """See :meth:`Preset.files`."""
        return [*self.clip.files(clip_weights), *self.clap.files(self.name, clap_weights, roberta)]

    def identity(self, digests: Mapping[str, str]) -> dict[str, str]:
        """See :meth:`Preset.identity`; what describes a tokenizer beside its own file says nothing."""
        return {key: digest for key, digest in digests.items() if not key.startswith("clip_text_tokenizer_")}

    def build(self, files: Mapping[str, Path], digests: Mapping[str, str]) -> Parts:
        """See :meth:`Preset.build`."""
        from avfewshot.encoders.text import OpenClipTextBranch, RobertaTextBranch

        clip, clip_tokenizer = self.clip.load(files)
        clap = self.clap.load(files)
        visual = self.clip.encoder(clip)
        # What a seed gives differs between versions of the libraries: random weights are told by their numbers.
        clip_hash = digests.get("clip") or sample_hash(clip)
        clap_hash = digests.get("clap") or sample_hash(clap.model)
        # The text modules' own descriptions tell what the weights do not, such as the kind of GELU.
        clip_print = combined("clip", clip_hash, clip_tokenizer.fingerprint, str(self.clip.model), repr(clip.text))
        texts, projection, width = clap.model.text_branch, clap.model.text_projection, self.clap.joint_dim
        clap_print = combined("clap", clap_hash, clap.tokenizer.fingerprint, str(self.clap.text), repr(texts))
        if self.clap.text["type"] == "clip":
            audio_text = OpenClipTextBranch(texts, clap.tokenizer, width, clap_print, projection)
        else:
            audio_text = RobertaTextBranch(texts, projection, clap.tokenizer, width, clap_print)
        return Parts(
            visual=visual,
            audio=clap.tower(),
            visual_text=OpenClipTextBranch(clip.text, clip_tokenizer, visual.output_dim, clip_print),
            audio_text=audio_text,
            visual_scale=clip.logit_scale.exp().item(),
            audio_scale=clap.model.logit_scale_a.exp().item(),
            visual_bias=0.0 if clip.logit_bias is None else clip.logit_bias.item(),
        )

    def outline(self) -> tuple[Encoder, Encoder, Sequence[nn.Module]]:
        """See :meth:`Preset.outline`."""
        import torch

        with torch.device("meta"):
            clip, _ = self.clip.build(split_text=True)
        clap, audio = self.clap.outlined()
        return self.clip.encoder(clip).to("meta"), audio, [clip, clap]
