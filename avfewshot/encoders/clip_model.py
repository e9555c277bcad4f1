"""CLIP models by open_clip's own factory, from files on this machine."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.encoders.kinds.base import plain
from avfewshot.encoders.kinds.clip import ClipPreset
from avfewshot.encoders.lean_imports import is_a, library_module
from avfewshot.encoders.plain_tower import PlainTower
from avfewshot.encoders.tokenizer import ClipTokenizer, TextTokenizer, TransformersTokenizer
from avfewshot.encoders.tower import Encoder
from avfewshot.encoders.weights.load import WeightsWarning, load_into, read_tensors
from avfewshot.errors import UsageError


def build_clip_model(
    clip: ClipPreset, files: Mapping[str, Path] | None = None, *, split_text: bool = False
) -> tuple[nn.Module, TextTokenizer]:
    """An open_clip model with fresh weights, and its tokenizer.

    Args:
        clip: The preset's.
        files: Files by key, see :class:`~avfewshot.encoders.weights.locate.Needed`; only those of text towers of
            transformers are looked at.
        split_text: Give open_clip's ``CustomTextCLIP``, whose text tower is a module of its own, rather than ``CLIP``.

    Returns:
        The model and the tokenizer.

    Raises:
        UsageError: open_clip has no such model, or cannot build it.
        WeightsError: The tokenizer's files are damaged or do not fit the model.
    """
    files = files or {}
    tokenizer = _tokenizer(clip, files)
    text = plain(dict(clip.configuration()["text_cfg"]))
    if "hf_model_name" in text:
        text |= {"hf_model_name": str(files["clip_text_config"].parent), "hf_model_pretrained": False}
    text.setdefault("vocab_size", tokenizer.vocab_size)
    config = {**plain(clip.configuration()), "text_cfg": text}
    quick = clip.quick_gelu if clip.quick_gelu is not None else bool(clip.tag().get("quick_gelu"))
    if quick:
        config["quick_gelu"] = True
    split_text = bool(config.pop("custom_text", False)) or split_text or "hf_model_name" in text
    try:
        classes = _library(clip, "model")
        model = (classes.CustomTextCLIP if split_text else classes.CLIP)(**config)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        reason = str(error).strip().partition("\n")[0][:200]
        raise UsageError(f"open_clip cannot build {_name(clip)}: {reason}") from error
    return model, tokenizer


def _library(clip: ClipPreset, module: str) -> Any:
    """A module of open_clip; the package itself is imported only for towers of timm and transformers."""
    config = clip.configuration()
    if "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]:
        return importlib.import_module(f"open_clip.{module}")
    return library_module("open_clip", module)


def load_clip_model(clip: ClipPreset, files: Mapping[str, Path]) -> tuple[Any, TextTokenizer]:
    """A model with a text tower of its own and its tokenizer, of the weights in `files`, or else of random ones.

    Raises:
        UsageError: As :func:`build_clip_model`.
        WeightsError: As :func:`load_clip`.
    """
    model, tokenizer = build_clip_model(clip, files, split_text=True)
    if "clip" in files:
        load_clip(model, clip, files["clip"])
    return model, tokenizer


def image_encoder(clip: ClipPreset, model: Any) -> Encoder:
    """The image encoder of a model: walked where it is one of open_clip's own ViTs, else run whole."""
    mean, std = normalisation(clip)
    if is_a(model.visual, "VisionTransformer"):
        return ClipTower(model.visual, mean=mean, std=std)
    return PlainTower(model.visual, mean=mean, std=std, output_dim=clip.configuration()["embed_dim"])


def load_clip(model: nn.Module, clip: ClipPreset, path: Path) -> None:
    """Load weights into a model of :func:`build_clip_model` with `split_text`.

    Args:
        model: The model.
        clip: Its preset.
        path: The weight file, in any layout that open_clip itself reads.

    Raises:
        WeightsError: See :mod:`avfewshot.encoders.weights.load`.
    """
    state = _library(clip, "convert").convert_state_dict(model, read_tensors(path))
    state = _library(clip, "model").convert_to_custom_text_state_dict(state)
    # Sizes that files converted from OpenAI's own programs carry along, and indices that current transformers computes.
    for name in ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids"):
        state.pop(name, None)
    for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one number
        own = getattr(model, name, None)
        if name in state and own is not None and state[name].numel() == 1:
            state[name] = state[name].reshape(own.shape)
    load_into(model, state, path=path, architecture=f"CLIP {_name(clip)}")


def normalisation(clip: ClipPreset) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Channel means and deviations that images are normalised with: the preset's, the tag's or open_clip's default."""
    tag = clip.tag()
    if tag.get("resize_mode", "shortest") != "shortest":
        warnings.warn(
            f"{_name(clip)} ({clip.pretrained}) was trained on pictures squashed to a square; here they are cropped.",
            WeightsWarning,
            stacklevel=2,
        )
    default = library_module("open_clip", "constants")
    mean = clip.mean or tag.get("mean") or default.OPENAI_DATASET_MEAN
    std = clip.std or tag.get("std") or default.OPENAI_DATASET_STD
    return tuple(mean), tuple(std)


def _tokenizer(clip: ClipPreset, files: Mapping[str, Path]) -> TextTokenizer:
    text = clip.configuration()["text_cfg"]
    context = text.get("context_length", 77)
    options = dict(text.get("tokenizer_kwargs") or {})
    if not (text.get("hf_model_name") or text.get("hf_tokenizer_name")):
        return ClipTokenizer(clip.tokenizer, context, options)
    if "clip_text_tokenizer" not in files and not text.get("hf_model_name"):
        return ClipTokenizer(None, context)  # to random weights one numbering of tokens is as good as another
    if "clip_text_tokenizer" not in files:
        raise UsageError(
            f"The tokenizer of {_name(clip)} is described by files from the hub.",
            hint="Use the pretrained weights, or a model with a tokenizer of its own, such as ViT-B-32.",
        )
    vocabulary = text.get("vocab_size") or _transformers_vocabulary(files["clip_text_config"])
    folder = files["clip_text_tokenizer"].parent
    return TransformersTokenizer(folder, context, vocabulary, text.get("tokenizer_mode"), options)


def _transformers_vocabulary(path: Path) -> int:
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(str(path.parent)).vocab_size


def _name(clip: ClipPreset) -> str:
    return clip.model if isinstance(clip.model, str) else "of the backbone's own architecture"
