"""The kind of PE-AV: one model of transformers for all; sizes and tokenizer lie beside its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.kinds import forms
from avfewshot.encoders.kinds.base import Given, Parts, Preset, no_roberta
from avfewshot.encoders.kinds.forms import Form, Reader
from avfewshot.encoders.weights.locate import Needed, Source, combined, sample_hash

if TYPE_CHECKING:
    from torch import nn

    from avfewshot.encoders.tower import Encoder

_NAMES = ("model.safetensors",)
_CONFIG: Form = (forms.is_mapping, "the fields of transformers' PeAudioVideoConfig are needed")
_FORMS: dict[str, Form] = {"image_size": forms.WHOLE, "config": _CONFIG, "timeline": forms.ANY, **forms.SOURCE}


@dataclass(frozen=True)
class PeAv(Preset):
    """PE-AV, and PE-A-Frame for the seconds of sound."""

    side: int  # of the pictures that it reads
    config: Mapping[str, Any]  # of transformers' `PeAudioVideoConfig`, for random weights and counts; files have theirs
    source: Source
    timeline: Source | None = None  # PE-A-Frame, which hears the seconds of a clip in one pass

    sections = ("peav",)
    needs = "transformers 5.0 or later: pip install 'avfewshot[peav]'"

    @classmethod
    def read(cls, reader: Reader, top: Mapping[str, Any], common: Mapping[str, Any]) -> PeAv:
        """See :meth:`Preset.read`."""
        section = reader.section(top["peav"], "peav", _FORMS, required=("image_size",))
        source = reader.source(section, "peav", _NAMES)
        if not (source.repository or source.file):
            reader.fault("peav", "says no weights: give `repository` or `file`.")
        timeline = None
        if "timeline" in section:
            told = reader.section(section["timeline"], "peav.timeline", forms.SOURCE)
            timeline = reader.source(told, "peav.timeline", _NAMES)
        if unused := [key for key in top if key not in ("peav", "description", "templates")]:
            reader.fault("peav", f"takes the place of {' and '.join(unused)}: leave one or the other out.")
        return cls(
            **common,
            side=section.get("image_size", 0),
            config=forms.frozen(section.get("config", {})),
            source=source,
            timeline=timeline,
        )

    @property
    def walkable(self) -> bool:
        """It is run whole."""
        return False

    def image_size(self) -> int:
        """See :meth:`Preset.image_size`."""
        return self.side

    def files(self, *, clip_weights: Given = None, clap_weights: Given = None, roberta: Given = None) -> list[Needed]:
        """See :meth:`Preset.files`; without PE-A-Frame's, seconds of sound are heard one at a time."""
        if roberta:
            raise no_roberta(self.name)

        def beside(source: Source, name: str) -> Source:
            if source.file:
                return Source(file=source.file.parent / name)
            return Source((name,), source.repository, source.revision, licence=source.licence)

        weights = Source.at(clip_weights) if clip_weights else self.source
        needed = [
            Needed("clip", "PE-AV weights", weights, "--clip-weights"),
            Needed("peav_config", "PE-AV sizes", beside(weights, "config.json")),
            Needed("peav_tokenizer", "PE-AV tokenizer", beside(weights, "tokenizer.json")),
        ]
        timeline = Source.at(clap_weights) if clap_weights else self.timeline
        if timeline:
            optional = not clap_weights
            needed += [
                Needed("clap", "PE-A-Frame weights", timeline, "--clap-weights", optional),
                Needed("peav_timeline_config", "PE-A-Frame sizes", beside(timeline, "config.json"), optional=optional),
            ]
        return needed

    def require_library(self) -> None:
        """See :meth:`Preset.require_library`."""
        from avfewshot.encoders.pe_av import pe_av_classes

        pe_av_classes(self.name)

    def build(self, files: Mapping[str, Path], digests: Mapping[str, str]) -> Parts:
        """See :meth:`Preset.build`; without a tokenizer (random weights) texts are numbered in another way."""
        from avfewshot.encoders.pe_av import PeAudioTower, PeTextBranch, PeVideoTower, cosine_scale, load_pe_av
        from avfewshot.encoders.tokenizer import BorrowedTokenizer, JsonTokenizer, RobertaTokenizer

        there = {"clap", "peav_timeline_config"} <= files.keys() if files else self.timeline is not None
        model, timeline = self._models(files, timeline=there)
        for key, part in (("clip", model), ("clap", timeline)):
            if part is not None and key in files:
                load_pe_av(part, files[key])
        text, sight, sound = model.config.text_config, model.video_model, model.audio_model
        if "peav_tokenizer" in files:
            pad = text.pad_token_id
            tokenizer = JsonTokenizer(files["peav_tokenizer"], text.vocab_size, pad)
        else:
            tokenizer, pad = BorrowedTokenizer(text.vocab_size), RobertaTokenizer.PAD
        hearing = [part for part in (sound, timeline) if part is not None]
        scales = [cosine_scale(p.text_audio_logit_scale, p.audio_head, p.text_audio_head) for p in hearing]
        audio_scale = sum(scale**2 for scale in scales) ** 0.5
        heard = [(p.text_model, p.text_audio_head, s / audio_scale) for p, s in zip(hearing, scales, strict=True)]
        seen = [(model.text_model, sight.text_video_head, 1.0)]
        hashes = digests.values() or [sample_hash(part) for part in (model, timeline) if part is not None]
        fingerprint = combined("pe-av", combined(*hashes), tokenizer.fingerprint)
        return Parts(
            visual=PeVideoTower(sight, self.side),
            audio=PeAudioTower(sound, timeline),
            visual_text=PeTextBranch(seen, tokenizer, pad, combined(fingerprint, "visual")),
            audio_text=PeTextBranch(heard, tokenizer, pad, combined(fingerprint, "audio")),
            visual_scale=cosine_scale(sight.text_video_logit_scale, sight.video_head, sight.text_video_head),
            audio_scale=audio_scale,
            visual_bias=sight.text_video_logit_bias.item(),
        )

    def _models(self, files: Mapping[str, Path], *, timeline: bool) -> tuple[Any, Any | None]:
        """PE-AV and, with `timeline`, PE-A-Frame; the ``config.json`` of each goes before the preset's sizes."""
        from avfewshot.encoders.pe_av import build_pe_av, pe_av_classes

        config, model_class, timeline_config, timeline_class = pe_av_classes(self.name)
        sizes = forms.plain(self.config)
        model = build_pe_av(config, model_class, files.get("peav_config"), sizes)
        if not timeline:
            return model, None
        audio = {key: sizes[key] for key in ("text_config",) if key in sizes}
        audio["audio_config"] = sizes.get("audio_video_config", {}).get("audio_config")
        return model, build_pe_av(timeline_config, timeline_class, files.get("peav_timeline_config"), audio)

    def outline(self) -> tuple[Encoder, Encoder, Sequence[nn.Module]]:
        """See :meth:`Preset.outline`."""
        import torch

        from avfewshot.encoders.pe_av import PeAudioTower, PeVideoTower

        with torch.device("meta"):
            model, timeline = self._models({}, timeline=self.timeline is not None)
            towers = PeVideoTower(model.video_model, self.side), PeAudioTower(model.audio_model, timeline)
        return *towers, [model.video_model, model.audio_model, *filter(None, [timeline])]
