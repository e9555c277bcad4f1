"""CLAP in laion_clap's layout: HTS-AT, a text branch, two projections; from files on this machine.

Source: Wu et al., "Large-scale Contrastive Language-Audio Pretraining with Feature Fusion and Keyword-to-Caption
Augmentation", ICASSP 2023 (arXiv 2211.06687), and the state dicts of its published checkpoints.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from avfewshot.encoders.clap_tower import ClapTower
from avfewshot.encoders.htsat import build_htsat
from avfewshot.encoders.kinds.clap import ClapPreset
from avfewshot.encoders.lean_imports import library_module
from avfewshot.encoders.tokenizer import BorrowedTokenizer, ClipTokenizer, RobertaTokenizer, TextTokenizer
from avfewshot.encoders.weights.load import WeightsWarning, ZerosForRandom, load_into, read_tensors
from avfewshot.encoders.weights.transformers_clap import in_laion_layout
from avfewshot.errors import UsageError, WeightsError

REBUILT = (
    "audio_branch.spectrogram_extractor.",
    "audio_branch.logmel_extractor.",
    ".relative_position_index",
    ".attn_mask",
    "audio_branch.tscam_conv.",
    "audio_branch.head.",
)
"""Parts of the names of tensors that a file may leave out: the model computes them itself, or never uses them."""

_FUSION = ("audio_branch.patch_embed.fusion_model.", "audio_branch.patch_embed.mel_conv2d.")
# Parts of LAION's training that no embedding goes through, and an index that current transformers computes.
_UNUSED = ("audio_transform.", "text_transform.", "text_branch.embeddings.position_ids")


class ClapModel(nn.Module):
    """A container with the names of laion_clap's ``CLAP``, so that its state dicts fit; the towers do the work.

    Args:
        audio_branch: HTS-AT.
        text_branch: transformers' ``RobertaModel``, or open_clip's ``TextTransformer``.
        text_projection: What follows the text branch.
        joint_dim: Width of the space that audio and text share.

    Attributes:
        audio_projection: Linear, ReLU, Linear.
        logit_scale_a: Logarithm of the temperature's inverse, from audio to text.
        logit_scale_t: The same from text to audio.
    """

    def __init__(self, audio_branch: Any, text_branch: nn.Module, text_projection: nn.Module, joint_dim: int) -> None:
        super().__init__()
        self.audio_branch = audio_branch
        self.audio_projection = projection(audio_branch.num_features, joint_dim)
        self.text_branch = text_branch
        self.text_projection = text_projection
        self.logit_scale_a = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_scale_t = nn.Parameter(torch.tensor(math.log(1 / 0.07)))


def projection(width: int, joint_dim: int) -> nn.Sequential:
    """CLAP's projection into the shared space: Linear, ReLU, Linear."""
    return nn.Sequential(nn.Linear(width, joint_dim), nn.ReLU(), nn.Linear(joint_dim, joint_dim))


def build_clap_model(clap: ClapPreset, files: Mapping[str, Path] | None = None) -> tuple[ClapModel, TextTokenizer]:
    """A CLAP with fresh weights, and its tokenizer.

    Args:
        clap: The preset's.
        files: Files by key, see :class:`~avfewshot.encoders.weights.locate.Needed`; only the tokenizer's are looked at.
            Without RoBERTa's, a stand-in for random weights is used.

    Returns:
        The model and the tokenizer.

    Raises:
        UsageError: The sizes do not fit together.
        WeightsError: The tokenizer's files are damaged or do not fit the model.
    """
    files = files or {}
    audio = build_htsat(clap.audio)
    fields = {key: value for key, value in clap.text.items() if key != "type"}
    if clap.text["type"] == "clip":
        text_transformer = library_module("open_clip", "transformer").TextTransformer
        context = fields.setdefault("context_length", 77)
        tokenizer: TextTokenizer = ClipTokenizer(files.get("clap_bpe", clap.tokenizer.file), context)
        fields.setdefault("vocab_size", tokenizer.vocab_size)
        text, text_projection = _build(text_transformer, **fields, output_dim=clap.joint_dim), nn.Identity()
    else:
        text: Any = _build(_roberta, **fields)
        tokenizer = _roberta_tokenizer(files, text.config.vocab_size)
        text_projection = projection(text.config.hidden_size, clap.joint_dim)
    return ClapModel(audio, text, text_projection, clap.joint_dim), tokenizer


class LoadedClap(NamedTuple):
    """A CLAP with its weights."""

    model: ClapModel
    tokenizer: TextTokenizer
    front_end: str | None  # see :func:`read_clap`

    def tower(self) -> ClapTower:
        """The audio encoder."""
        return ClapTower(self.model.audio_branch, self.model.audio_projection, self.front_end)


def load_clap_model(clap: ClapPreset, files: Mapping[str, Path]) -> LoadedClap:
    """A model and its tokenizer, of the weights in `files`, or else of random ones.

    Raises:
        UsageError: As :func:`build_clap_model`.
        WeightsError: As :func:`read_clap` and :func:`load_clap`.
    """
    model, tokenizer = build_clap_model(clap, files)
    if "clap" not in files:
        return LoadedClap(model, tokenizer, None)
    state, front_end = read_clap(clap, files["clap"])
    load_clap(model, clap, state, files["clap"])
    return LoadedClap(model, tokenizer, front_end)


def outlined_clap(clap: ClapPreset) -> tuple[ClapModel, ClapTower]:
    """A model without numbers worth anything, and its audio encoder on torch's ``meta`` device."""
    with ZerosForRandom():  # HTS-AT reads numbers while it is built
        model, _ = build_clap_model(clap)
    tower = ClapTower(model.audio_branch, model.audio_projection)
    # Spectrograms of the right shape: its transforms switch autocast off, which knows no `meta`.
    config, front_end = tower.config, tower.front_end
    columns = config.spec_size * (config.spec_size // config.mel_bins)
    front_end.forward = lambda waveforms, branch: waveforms.new_empty(len(waveforms), columns, config.mel_bins)
    return model, tower.to("meta")


def read_clap(clap: ClapPreset, path: Path) -> tuple[dict[str, Tensor], str | None]:
    """Read a CLAP checkpoint in LAION's layout, or in that of transformers.

    Args:
        clap: The preset, for whether it expects a checkpoint with feature fusion.
        path: The weight file.

    Returns:
        Tensors by the names of :class:`ClapModel`, and the front end that they were trained on: ``"htk"`` for a
        checkpoint with feature fusion, whose fusion layers are dropped with a warning, else None (the preset's).

    Raises:
        WeightsError: See :mod:`avfewshot.encoders.weights.load`; or fusion is or is not there against the preset.
    """
    state = in_laion_layout(read_tensors(path))
    fused = any(name.startswith(_FUSION) for name in state)
    if clap.fused is not None and clap.fused != fused:
        has, wanted = ("has", "without") if fused else ("has no", "with")
        raise WeightsError(
            f"{path}: this checkpoint {has} feature fusion, the backbone expects one {wanted}.",
            hint=f"Give the other checkpoint, or write `fused: {str(fused).lower()}` in the backbone's YAML file.",
        )
    if fused:
        warnings.warn(
            f"{path}: the feature fusion layers are left out; they serve clips longer than ten seconds, and single"
            " seconds are embedded here. The mel front end is the one that such checkpoints were trained on (HTK).",
            WeightsWarning,
            stacklevel=2,
        )
    state = {name: tensor for name, tensor in state.items() if not name.startswith((*_FUSION, *_UNUSED))}
    return state, "htk" if fused else None


def load_clap(model: ClapModel, clap: ClapPreset, state: Mapping[str, Tensor], path: Path) -> None:
    """Load what :func:`read_clap` read.

    Raises:
        WeightsError: The tensors are not those of the preset's architecture.
    """
    audio = clap.audio if isinstance(clap.audio, str) else "the backbone's own HTS-AT"
    architecture = f"CLAP with {audio} and the text branch {clap.text['type']}"
    load_into(model, state, path=path, architecture=architecture, optional=is_rebuilt)


def is_rebuilt(name: str) -> bool:
    """Whether a file may leave out the tensor `name`; see :data:`REBUILT`."""
    return any(part in name for part in REBUILT)


def _roberta(**fields: Any) -> nn.Module:
    from transformers import RobertaConfig, RobertaModel

    # What roberta-base differs in from the defaults of the configuration class.
    base = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1, "layer_norm_eps": 1e-5}
    return RobertaModel(RobertaConfig(**(base | fields))).eval()


def _roberta_tokenizer(files: Mapping[str, Path], vocab_size: int) -> TextTokenizer:
    if "roberta" in files:
        return RobertaTokenizer([files["roberta"]], vocab_size)
    if "roberta_vocab" in files:
        return RobertaTokenizer([files["roberta_vocab"], files["roberta_merges"]], vocab_size)
    return BorrowedTokenizer(vocab_size)


def _build(make: Any, **fields: Any) -> nn.Module:
    try:
        return make(**fields)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(f"CLAP's text branch cannot be built: {reason}.") from error
