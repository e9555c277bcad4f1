"""The audio side of a preset in laion_clap's layout: HTS-AT with RoBERTa, or with a text tower of CLIP's form.

Source: Wu et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation", ICASSP 2023 (arXiv 2211.06687), and the state dicts of its published checkpoints.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.htsat import build_htsat, htsat_config
from avfewshot.encoders.kinds import forms
from avfewshot.encoders.kinds.base import Given, no_roberta
from avfewshot.encoders.kinds.forms import Reader
from avfewshot.encoders.lean_imports import library_module
from avfewshot.encoders.weights.locate import NOWHERE, Needed, Source
from avfewshot.errors import UsageError, WeightsError, flatten

if TYPE_CHECKING:
    from torch import Tensor, nn

    from avfewshot.encoders.clap_tower import ClapTower
    from avfewshot.encoders.tokenizer import TextTokenizer
    from avfewshot.encoders.tower import Encoder

ROBERTA_TOKENIZER = "FacebookAI/roberta-base"
ROBERTA_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
ROBERTA_SHA256 = {
    "vocab.json": "9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
REBUILT = (
    "audio_branch.spectrogram_extractor.",
    "audio_branch.logmel_extractor.",
    ".relative_position_index",
    ".attn_mask",
    "audio_branch.tscam_conv.",
    "audio_branch.head.",
)
"""Parts of the names of tensors that a file may leave out: the model computes them itself, or never uses them."""
_FORMS = {"audio": forms.ANY, "text": forms.ANY, "joint_dim": forms.WHOLE, "fused": forms.FLAG}
_FORMS |= {"tokenizer": forms.TEXT, **forms.SOURCE}
_FUSION = ("audio_branch.patch_embed.fusion_model.", "audio_branch.patch_embed.mel_conv2d.")
# Parts of LAION's training that no embedding goes through, and an index that current transformers computes.
_UNUSED = ("audio_transform.", "text_transform.", "text_branch.embeddings.position_ids")
# Sources: laion_clap's clap_module/htsat.py; transformers' convert_clap_original_pytorch_to_hf.py, read backwards.
_NAMES = (
    (r"^text_model\.", "text_branch."),
    (r"^audio_model\.audio_encoder\.", "audio_branch."),
    (r"^(audio_branch)\.batch_norm\.", r"\1.bn0."),
    (r"^(audio_branch\..*)\.layernorm_before\.", r"\1.norm1."),
    (r"^(audio_branch\..*)\.layernorm_after\.", r"\1.norm2."),
    (r"^(audio_branch\..*)\.intermediate\.dense\.", r"\1.mlp.fc1."),
    (r"^(audio_branch\..*)\.attention\.output\.dense\.", r"\1.attn.proj."),
    (r"^(audio_branch\..*)\.output\.dense\.", r"\1.mlp.fc2."),
    (r"^(audio_branch\..*)\.attention\.self\.", r"\1.attn."),
    (r"^(audio|text)_projection\.linear1\.", r"\1_projection.0."),
    (r"^(audio|text)_projection\.linear2\.", r"\1_projection.2."),
)
_ROBERTA = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
_TEXT_BRANCHES = {
    "roberta": dict.fromkeys(_ROBERTA.split(), forms.WHOLE),
    "clip": dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers"), forms.WHOLE),
}


@dataclass(frozen=True)
class ClapPreset:
    """A CLAP."""

    audio: str | Mapping[str, Any]  # laion_clap's name of the tower, or the fields of an HTS-AT configuration
    text: Mapping[str, Any]  # `type` roberta (transformers' `RobertaConfig`) or clip (open_clip's `TextTransformer`)
    joint_dim: int = 512  # width of the space that audio and text share
    fused: bool | None = None  # one of LAION's with feature fusion; None: found out from the file
    tokenizer: Source = NOWHERE  # repository or folder with RoBERTa's files, or a merge file
    source: Source = NOWHERE

    @classmethod
    def read(cls, reader: Reader, raw: Any) -> ClapPreset:
        """Of the section ``clap``."""
        section = reader.section(raw, "clap", _FORMS)
        text = _text_branch(reader, section.get("text", "roberta"))
        source = reader.source(section, "clap", ())
        if raw is not forms.MISSING and not (source.repository or source.file):
            reader.fault("clap", "says no weights: give `repository` and `checkpoint`, or `file`.")
        elif source.repository and not source.names:
            reader.fault("clap.checkpoint", "the name of the file in the repository is needed.")
        return cls(
            audio=forms.frozen(_audio(reader, section.get("audio", "HTSAT-tiny"))),
            text=forms.frozen(text),
            joint_dim=section.get("joint_dim", 512),
            fused=section.get("fused"),
            tokenizer=_tokenizer(reader, section.get("tokenizer"), text["type"]),
            source=source,
        )

    @property
    def form(self) -> tuple[str, str]:
        """What is built, but for the weights."""
        return "None", str(self.audio)

    def files(self, backbone: str, given: Given, roberta: Given) -> list[Needed]:
        """Weights (`given`: by path) and tokenizer, RoBERTa's from the folder `roberta` where one is given."""
        source = Source.at(given) if given else self.source
        weights = Needed("clap", "CLAP weights", source, "--clap-weights")
        if self.text["type"] == "clip":
            if roberta:
                raise no_roberta(backbone)
            return [weights, Needed("clap_bpe", "CLAP tokenizer", self.tokenizer)]
        return [weights, *_roberta_files(Source.at(roberta) if roberta else self.tokenizer)]

    def tower(self, files: Mapping[str, Path], image: Encoder, where: Path) -> Encoder:
        """The audio encoder alone."""
        return self.load(files)[2]

    def build(self, files: Mapping[str, Path] | None = None) -> tuple[Any, TextTokenizer]:
        """A module with fresh weights and the names of laion_clap's ``CLAP``, and its tokenizer.

        Of `files` only the tokenizer's are looked at; without RoBERTa's, a stand-in for random weights is used.
        """
        import torch
        from torch import nn

        from avfewshot.encoders.tokenizer import BorrowedTokenizer, ClipTokenizer, RobertaTokenizer

        def projection(width: Any) -> nn.Module:
            return nn.Sequential(nn.Linear(width, self.joint_dim), nn.ReLU(), nn.Linear(self.joint_dim, self.joint_dim))

        files = files or {}
        model: Any = nn.Module()
        model.audio_branch = build_htsat(self.audio)
        fields = {key: value for key, value in self.text.items() if key != "type"}
        if self.text["type"] == "clip":
            context = fields.setdefault("context_length", 77)
            tokenizer = ClipTokenizer(files.get("clap_bpe", self.tokenizer.file), context)
            fields.setdefault("vocab_size", tokenizer.vocab_size)
            make = library_module("open_clip", "transformer").TextTransformer
            text, text_projection = _text_model(make, **fields, output_dim=self.joint_dim), nn.Identity()
        else:
            text = _text_model(_roberta, **fields)
            size = text.config.vocab_size
            names = ("roberta",) if "roberta" in files else ("roberta_vocab", "roberta_merges")
            given = [files[name] for name in names if name in files]
            tokenizer = RobertaTokenizer(given, size) if given else BorrowedTokenizer(size)
            text_projection = projection(text.config.hidden_size)
        model.audio_projection = projection(model.audio_branch.num_features)
        model.text_branch, model.text_projection = text, text_projection
        for name in ("logit_scale_a", "logit_scale_t"):  # logarithms of the inverse temperatures
            setattr(model, name, nn.Parameter(torch.tensor(math.log(1 / 0.07))))
        return model, tokenizer

    def load(self, files: Mapping[str, Path]) -> tuple[Any, TextTokenizer, ClapTower]:
        """A model, its tokenizer and its audio encoder, of the weights in `files`, or else of random ones.

        Weights are in the layout of LAION or of transformers. The front end is ``"htk"`` for a checkpoint with feature
        fusion, which was trained on it and whose fusion layers are dropped with a warning.

        A :class:`WeightsError` where the weights are of another architecture, or have feature fusion where the preset
        says that there is none, or the reverse.
        """
        from avfewshot.encoders.clap_tower import ClapTower
        from avfewshot.encoders.weights.load import WeightsWarning, load_into, read_tensors

        model, tokenizer = self.build(files)
        if "clap" not in files:
            return model, tokenizer, ClapTower(model.audio_branch, model.audio_projection)
        path = files["clap"]
        state = _in_laion_layout(read_tensors(path))
        fused = any(name.startswith(_FUSION) for name in state)
        if self.fused is not None and self.fused != fused:
            has, wanted = ("has", "without") if fused else ("has no", "with")
            message = f"{path}: this checkpoint {has} feature fusion, the backbone expects one {wanted}."
            hint = f"Give the other checkpoint, or write `fused: {str(fused).lower()}` in the backbone's YAML file."
            raise WeightsError(message, hint=hint)
        if fused:
            warnings.warn(
                f"{path}: the feature fusion layers are left out; they serve clips longer than ten seconds, and single"
                " seconds are embedded here. The mel front end is the one that such checkpoints were trained on (HTK).",
                WeightsWarning,
                stacklevel=2,
            )
        state = {name: tensor for name, tensor in state.items() if not name.startswith((*_FUSION, *_UNUSED))}
        audio = self.audio if isinstance(self.audio, str) else "the backbone's own HTS-AT"
        architecture = f"CLAP with {audio} and the text branch {self.text['type']}"
        load_into(model, state, path=path, architecture=architecture, optional=is_rebuilt)
        front_end = "htk" if fused else None
        return model, tokenizer, ClapTower(model.audio_branch, model.audio_projection, front_end)

    def outline(self, image: Encoder | None = None) -> Encoder:
        """The audio encoder on torch's ``meta`` device."""
        return self.outlined()[1]

    def outlined(self) -> tuple[nn.Module, ClapTower]:
        """A model without numbers worth anything, and its audio encoder on torch's ``meta`` device."""
        from avfewshot.encoders.clap_tower import ClapTower
        from avfewshot.encoders.weights.load import ZerosForRandom

        with ZerosForRandom():  # HTS-AT reads numbers while it is built
            model, _ = self.build()
        tower = ClapTower(model.audio_branch, model.audio_projection)
        # Spectrograms of the right shape: its transforms switch autocast off, which knows no `meta`.
        config, front_end = tower.config, tower.front_end
        front_end.forward = lambda waveforms, branch: waveforms.new_empty(
            len(waveforms), config.columns, config.mel_bins
        )
        return model, tower.to("meta")


def is_rebuilt(name: str) -> bool:
    """Whether a file may leave out the tensor `name`; see :data:`REBUILT`."""
    return any(part in name for part in REBUILT)


def _text_branch(reader: Reader, raw: Any) -> Mapping[str, Any]:
    fields = {"type": raw} if isinstance(raw, str) else raw
    kind = fields.get("type") if isinstance(fields, Mapping) else None
    if kind not in _TEXT_BRANCHES:
        reader.fault("clap.text", "`roberta` is needed, or fields with `type: roberta` or `type: clip`.")
        return {"type": "roberta"}
    reader.section(fields, "clap.text", {"type": forms.ANY, **_TEXT_BRANCHES[kind]})
    return fields


def _audio(reader: Reader, raw: Any) -> Any:
    if isinstance(raw, Mapping) and (deep := [str(key) for key, value in raw.items() if _is_deep(value)]):
        reader.fault("clap.audio", f"numbers or lists of numbers are needed for {', '.join(deep)}.")
    elif isinstance(raw, str | Mapping):
        try:
            htsat_config(raw)
        except UsageError as error:
            for single in flatten(error):
                reader.fault("clap.audio", str(single))
    else:
        wanted = "laion_clap's name of a tower or the fields of an HTS-AT are needed"
        reader.fault("clap.audio", f"{wanted}, not {forms.shown(raw)}.")
    return raw


def _is_deep(value: Any) -> bool:
    return any(isinstance(entry, Mapping | list) for entry in (value if isinstance(value, list) else [value]))


def _tokenizer(reader: Reader, given: str | None, kind: str) -> Source:
    if kind == "clip":
        if given is None:
            reader.fault("clap.tokenizer", "a text is needed, not None.")
        return Source(file=reader.relative(given)) if given else Source()
    given = given or ROBERTA_TOKENIZER
    revision = ROBERTA_REVISION if given == ROBERTA_TOKENIZER else None
    return reader.folder_or_repository(given, "clap.tokenizer", revision=revision, size="1.4 MB", licence="MIT")


def _roberta_files(source: Source) -> list[Needed]:
    option, folder = "--roberta", source.file
    # A folder in which either form of the tokenizer is enough.
    if folder and not (folder / "vocab.json").exists() and (folder / "tokenizer.json").exists():
        return [Needed("roberta", "RoBERTa tokenizer", Source(file=folder / "tokenizer.json"), option)]

    def at(name: str, size: str) -> Source:
        if folder:
            return Source(file=folder / name)
        digest = ROBERTA_SHA256[name] if source.repository == ROBERTA_TOKENIZER else None
        return replace(source, names=(name,), sha256=digest, size=size)

    return [
        Needed("roberta_vocab", "RoBERTa vocabulary", at("vocab.json", "0.9 MB"), option),
        Needed("roberta_merges", "RoBERTa merges", at("merges.txt", "0.5 MB"), option),
    ]


def _in_laion_layout(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under laion_clap's names, where they are in the layout of transformers; else as they are."""
    if "audio_model.audio_encoder.patch_embed.proj.weight" not in state:
        return dict(state)
    import torch

    tensors: dict[str, Tensor] = {}
    for old, tensor in state.items():
        name = old
        for pattern, replacement in _NAMES:
            name = re.sub(pattern, replacement, name)
        tensors[name] = tensor
    # Three linear maps there are one here.
    for query in [name for name in tensors if name.startswith("audio_branch.") and ".attn.query." in name]:
        parts = [query.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(part in tensors for part in parts):
            tensors[query.replace(".query.", ".qkv.")] = torch.cat([tensors.pop(part) for part in parts])
    tensors.pop("text_branch.embeddings.token_type_ids", None)
    return tensors


def _roberta(**fields: Any) -> Any:
    from transformers import RobertaConfig, RobertaModel

    # What roberta-base differs in from the defaults of the configuration class.
    base = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return RobertaModel(RobertaConfig(**(base | fields))).eval()


def _text_model(make: Any, **fields: Any) -> Any:
    try:
        return make(**fields)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"CLAP's text branch cannot be built: {reason}.") from error
