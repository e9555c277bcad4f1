"""The audio side of a preset by laion_clap: HTS-AT with RoBERTa, or with a text tower of CLIP's form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.htsat import htsat_config
from avfewshot.encoders.kinds.base import (
    ANY,
    FLAG,
    MISSING,
    SOURCE,
    TEXT,
    WHOLE,
    GivenPath,
    Reader,
    frozen,
    no_roberta,
    shown,
)
from avfewshot.encoders.weights.locate import NOWHERE, Needed, Source
from avfewshot.errors import UsageError, flatten

if TYPE_CHECKING:
    from avfewshot.encoders.tower import Encoder

ROBERTA_TOKENIZER = "FacebookAI/roberta-base"
ROBERTA_REVISION = "e2da8e2f811d1448a5b465c236feacd80ffbac7b"
ROBERTA_SHA256 = {
    "vocab.json": "9e7f63c2d15d666b52e21d250d2e513b87c9b713cfa6987a82ed89e5e6e50655",
    "merges.txt": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
ROBERTA_FILES = ("vocab.json", "merges.txt")
_FORMS = {"audio": ANY, "text": ANY, "joint_dim": WHOLE, "fused": FLAG, "tokenizer": TEXT, **SOURCE}
_ROBERTA = "vocab_size hidden_size num_hidden_layers num_attention_heads intermediate_size max_position_embeddings"
_TEXT_BRANCHES = {
    "roberta": dict.fromkeys(_ROBERTA.split(), WHOLE),
    "clip": dict.fromkeys(("context_length", "vocab_size", "width", "heads", "layers"), WHOLE),
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
        if raw is not MISSING and not (source.repository or source.file):
            reader.fault("clap", "says no weights: give `repository` and `checkpoint`, or `file`.")
        elif source.repository and not source.names:
            reader.fault("clap.checkpoint", "the name of the file in the repository is needed.")
        return cls(
            audio=frozen(_audio(reader, section.get("audio", "HTSAT-tiny"))),
            text=frozen(text),
            joint_dim=section.get("joint_dim", 512),
            fused=section.get("fused"),
            tokenizer=_tokenizer(reader, section.get("tokenizer"), text["type"]),
            source=source,
        )

    @property
    def form(self) -> tuple[str, str]:
        """What is built, but for the weights."""
        return "None", str(self.audio)

    def files(self, backbone: str, given: GivenPath, roberta: GivenPath) -> list[Needed]:
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
        from avfewshot.encoders.clap_model import load_clap_model

        return load_clap_model(self, files).tower()

    def outline(self, image: Encoder) -> Encoder:
        """The audio encoder on torch's ``meta`` device."""
        from avfewshot.encoders.clap_model import outlined_clap

        return outlined_clap(self)[1]


def _text_branch(reader: Reader, raw: Any) -> Mapping[str, Any]:
    fields = {"type": raw} if isinstance(raw, str) else raw
    kind = fields.get("type") if isinstance(fields, Mapping) else None
    if kind not in _TEXT_BRANCHES:
        reader.fault("clap.text", "`roberta` is needed, or fields with `type: roberta` or `type: clip`.")
        return {"type": "roberta"}
    reader.section(fields, "clap.text", {"type": ANY, **_TEXT_BRANCHES[kind]})
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
        reader.fault("clap.audio", f"{wanted}, not {shown(raw)}.")
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
    if folder and not (folder / ROBERTA_FILES[0]).exists() and (folder / "tokenizer.json").exists():
        return [Needed("roberta", "RoBERTa tokenizer", Source(file=folder / "tokenizer.json"), option)]

    def at(name: str, size: str) -> Source:
        if folder:
            return Source(file=folder / name)
        digest = ROBERTA_SHA256[name] if source.repository == ROBERTA_TOKENIZER else None
        return replace(source, names=(name,), sha256=digest, size=size)

    return [
        Needed("roberta_vocab", "RoBERTa vocabulary", at(ROBERTA_FILES[0], "0.9 MB"), option),
        Needed("roberta_merges", "RoBERTa merges", at(ROBERTA_FILES[1], "0.5 MB"), option),
    ]
