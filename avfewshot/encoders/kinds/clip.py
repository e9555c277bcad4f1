"""The visual side of a preset by open_clip's own factory, from files on this machine: CLIP, SigLIP, PE-Core."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from avfewshot.encoders.kinds import forms
from avfewshot.encoders.kinds.base import Given
from avfewshot.encoders.kinds.forms import Form, Reader
from avfewshot.encoders.lean_imports import is_a, library_folder, library_module
from avfewshot.encoders.weights.locate import NOWHERE, Needed, Source
from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from avfewshot.encoders.tokenizer import TextTokenizer
    from avfewshot.encoders.tower import Encoder

_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # in open_clip's repositories, the safer first
_TOKENIZER_NAMES = ("tokenizer.json", "sentencepiece.bpe.model", "spiece.model", "vocab.txt")
_CHANNELS: Form = (
    lambda value: isinstance(value, list) and len(value) == 3 and all(map(forms.is_number, value)),
    "three numbers (red, green, blue) are needed",
)
_MODEL: Form = (lambda value: forms.is_mapping(value) or forms.is_text(value), "a text is needed")
_FIELDS: Form = (forms.is_mapping, "the fields of open_clip's configuration are needed")
_FORMS = {"model": _MODEL, "pretrained": forms.TEXT, "quick_gelu": forms.FLAG, "mean": _CHANNELS, "std": _CHANNELS}
_FORMS |= {"tokenizer": forms.TEXT, **forms.SOURCE}
_MODEL_FORMS = {"embed_dim": forms.WHOLE, "vision_cfg": _FIELDS, "text_cfg": _FIELDS, "quick_gelu": forms.ANY}


@dataclass(frozen=True)
class ClipPreset:
    """A CLIP."""

    model: str | Mapping[str, Any]  # open_clip's name, or its `embed_dim`, `vision_cfg` and `text_cfg`
    pretrained: str | None = None  # open_clip's tag of the weights; it also says how images are normalised
    quick_gelu: bool | None = None  # whether the weights want the quick GELU; None: as the model or the tag says
    mean: tuple[float, ...] | None = None  # channel means that images are normalised with; None: as the tag says
    std: tuple[float, ...] | None = None  # channel deviations, likewise
    tokenizer: Path | None = None  # a byte-pair merge file in CLIP's format; None: open_clip's own
    source: Source = NOWHERE  # without a repository and a file, open_clip's tag tells it

    @classmethod
    def read(cls, reader: Reader, raw: Any) -> ClipPreset:
        """Of the section ``clip``."""
        section = reader.section(raw, "clip", _FORMS, required=("model",))
        model = section.get("model", "")
        if isinstance(model, Mapping):
            reader.section(model, "clip.model", _MODEL_FORMS, required=("embed_dim", "vision_cfg", "text_cfg"))
        source = reader.source(section, "clip", _NAMES)
        if raw is not forms.MISSING and not (section.get("pretrained") or source.repository or source.file):
            reader.fault(
                "clip", "says no weights: give `pretrained` (one of open_clip's tags), `repository` or `file`."
            )
        mean, std = (tuple(map(float, section[key])) if key in section else None for key in ("mean", "std"))
        tokenizer = reader.relative(section["tokenizer"]) if "tokenizer" in section else None
        pretrained, quick_gelu = section.get("pretrained"), section.get("quick_gelu")
        return cls(forms.frozen(model), pretrained, quick_gelu, mean, std, tokenizer, source)

    @property
    def form(self) -> tuple[str, str]:
        """What is built, but for the weights."""
        return str(self.model), "None"

    @property
    def walkable(self) -> bool:
        """Whether it is a ViT of open_clip's own."""
        vision = self.configuration()["vision_cfg"]
        return "timm_model_name" not in vision and not isinstance(vision.get("layers"), list | tuple)

    def configuration(self) -> Mapping[str, Any]:
        """open_clip's configuration of the model; a :class:`UsageError` where it has none of the name."""
        if not isinstance(self.model, str):
            return self.model
        # Read here, since the import of open_clip takes seconds.
        paths = {path.stem: path for path in sorted(library_folder("open_clip").glob("model_configs/*.json"))}
        if self.model in paths:
            return json.loads(paths[self.model].read_text(encoding="utf-8"))
        close = get_close_matches(self.model, paths, n=8, cutoff=0.5)
        close = close or [name for name in paths if name.startswith("ViT-")]
        raise UsageError(f"open_clip has no model {self.model!r}.", hint=f"For example: {', '.join(close[:8])}.")

    def tag(self) -> Mapping[str, Any]:
        """open_clip's entry for the tag (``hf_hub``, ``mean``, ``std``, ...); empty where the preset names none.

        A :class:`UsageError` where open_clip does not know the model or the tag.
        """
        if self.pretrained is None:
            return {}
        library = library_module("open_clip", "pretrained")
        if not isinstance(self.model, str):
            raise UsageError("clip.pretrained needs the name of an open_clip model, not an architecture of your own.")
        entry = library.get_pretrained_cfg(self.model, self.pretrained)
        if not entry:
            self.configuration()  # raises for an unknown model
            tags = library.list_pretrained_tags_by_model(self.model)
            hint = f"Valid ones: {', '.join(tags)}." if tags else "It has none at all for it; give a file."
            raise UsageError(f"open_clip has no weights {self.pretrained!r} for {self.model}.", hint=hint)
        return entry

    def weights(self) -> Source:
        """Where the weights come from: what the preset says, else the repository of open_clip's tag.

        A :class:`UsageError` where the tag is unknown, or its weights are not on the hub.
        """
        if self.source.repository or self.source.file:
            return self.source
        tag = self.tag()
        if not tag.get("hf_hub"):
            hint = f"Download {tag.get('url') or 'them'} and give the file with --clip-weights."
            raise UsageError(f"open_clip's weights {self.pretrained!r} for {self.model} are not on the hub.", hint=hint)
        owner, _, rest = tag["hf_hub"].partition("/")
        name, _, file = rest.partition("/")
        names = (file,) if file else self.source.names
        if file.endswith((".bin", ".pth")):  # open_clip too prefers a safetensors version of the same name
            names = (file[:-4] + ".safetensors", file)
        return replace(self.source, names=names, repository=f"{owner}/{name}")

    def files(self, given: Given) -> list[Needed]:
        """Weights (`given`: by path), tokenizer, and what text towers of transformers are described by."""
        source = Source.at(given) if given else self.weights()
        needed = [Needed("clip", "CLIP weights", source, "--clip-weights")]
        if self.tokenizer:
            needed.append(Needed("clip_bpe", "CLIP tokenizer", Source(file=self.tokenizer)))
        text = self.configuration()["text_cfg"]
        repository = text.get("hf_tokenizer_name") or text.get("hf_model_name")
        if not repository:
            return needed

        def file(key: str, part: str, *names: str, where: str = repository, optional: bool = False) -> Needed:
            return Needed(f"clip_text_{key}", f"CLIP {part}", Source(names, where), optional=optional)

        needed += [
            file("tokenizer", "tokenizer", *_TOKENIZER_NAMES),
            file("tokenizer_config", "tokenizer settings", "tokenizer_config.json", optional=True),
            # Repositories of timm's export describe the tokenizer in its own settings and have no such file.
            file("tokenizer_type", "tokenizer type", "config.json", optional="hf_model_name" not in text),
        ]
        if text.get("hf_model_name"):
            needed.append(file("config", "text settings", "config.json", where=text["hf_model_name"]))
        return needed

    def tower(self, files: Mapping[str, Path]) -> Encoder:
        """The image encoder alone."""
        return self.encoder(self.load(files)[0])

    def build(
        self, files: Mapping[str, Path] | None = None, *, split_text: bool = False
    ) -> tuple[nn.Module, TextTokenizer]:
        """An open_clip model with fresh weights, and its tokenizer.

        Of `files` only those of text towers of transformers are looked at; with `split_text` the text tower is a module
        of its own (``CustomTextCLIP``). A :class:`UsageError` where open_clip cannot build the architecture.
        """
        files = files or {}
        tokenizer = self._build_tokenizer(files)
        config = forms.plain(self.configuration())
        text = config["text_cfg"]
        if "hf_model_name" in text:
            text |= {"hf_model_name": str(files["clip_text_config"].parent), "hf_model_pretrained": False}
        text.setdefault("vocab_size", tokenizer.vocab_size)
        if self.quick_gelu if self.quick_gelu is not None else self.tag().get("quick_gelu"):
            config["quick_gelu"] = True
        split_text = bool(config.pop("custom_text", False)) or split_text or "hf_model_name" in text
        try:
            classes = self._library("model")
            model = (classes.CustomTextCLIP if split_text else classes.CLIP)(**config)
        except (TypeError, ValueError, AssertionError, RuntimeError) as error:
            reason = str(error).strip().partition("\n")[0][:200]
            raise UsageError(f"open_clip cannot build {self._title}: {reason}") from error
        return model, tokenizer

    def load(self, files: Mapping[str, Path]) -> tuple[Any, TextTokenizer]:
        """A model with a text tower of its own and its tokenizer, of the weights in `files`, or else of random ones."""
        from avfewshot.encoders.weights.load import load_into, read_tensors

        model, tokenizer = self.build(files, split_text=True)
        if "clip" not in files:
            return model, tokenizer
        state = self._library("convert").convert_state_dict(model, read_tensors(files["clip"]))
        state = self._library("model").convert_to_custom_text_state_dict(state)
        # Sizes that files converted from OpenAI's own programs carry along; indices that current transformers computes.
        for name in ("input_resolution", "context_length", "vocab_size", "text.transformer.embeddings.position_ids"):
            state.pop(name, None)
        for name in ("logit_scale", "logit_bias"):  # a number, or a vector of one number
            own = getattr(model, name, None)
            if name in state and own is not None and state[name].numel() == 1:
                state[name] = state[name].reshape(own.shape)
        load_into(model, state, path=files["clip"], architecture=f"CLIP {self._title}")
        return model, tokenizer

    def encoder(self, model: Any) -> Encoder:
        """The image encoder of a model: walked where it is one of open_clip's own ViTs, else run whole."""
        from avfewshot.encoders.clip_tower import ClipTower
        from avfewshot.encoders.tower import PlainTower
        from avfewshot.encoders.weights.load import WeightsWarning

        tag, default = self.tag(), library_module("open_clip", "constants")
        if tag.get("resize_mode", "shortest") != "shortest":
            warnings.warn(
                f"{self._title} ({self.pretrained}) was trained on pictures squashed to a square; here they are"
                " cropped.",
                WeightsWarning,
                stacklevel=2,
            )
        mean = tuple(self.mean or tag.get("mean") or default.OPENAI_DATASET_MEAN)
        std = tuple(self.std or tag.get("std") or default.OPENAI_DATASET_STD)
        if is_a(model.visual, "VisionTransformer"):
            return ClipTower(model.visual, mean=mean, std=std)
        return PlainTower(model.visual, mean=mean, std=std, output_dim=self.configuration()["embed_dim"])

    @property
    def _title(self) -> str:
        return self.model if isinstance(self.model, str) else "of the backbone's own architecture"

    def _library(self, module: str) -> Any:
        """A module of open_clip; the package itself is imported only for towers of timm and transformers."""
        config = self.configuration()
        if "timm_model_name" in config["vision_cfg"] or "hf_model_name" in config["text_cfg"]:
            return importlib.import_module(f"open_clip.{module}")
        return library_module("open_clip", module)

    def _build_tokenizer(self, files: Mapping[str, Path]) -> TextTokenizer:
        from avfewshot.encoders.tokenizer import ClipTokenizer, TransformersTokenizer

        text = self.configuration()["text_cfg"]
        context = text.get("context_length", 77)
        options = dict(text.get("tokenizer_kwargs") or {})
        if not (text.get("hf_model_name") or text.get("hf_tokenizer_name")):
            return ClipTokenizer(self.tokenizer, context, options)
        if "clip_text_tokenizer" not in files and not text.get("hf_model_name"):
            return ClipTokenizer(None, context)  # to random weights one numbering of tokens is as good as another
        if "clip_text_tokenizer" not in files:
            hint = "Use the pretrained weights, or a model with a tokenizer of its own, such as ViT-B-32."
            raise UsageError(f"The tokenizer of {self._title} is described by files from the hub.", hint=hint)
        vocabulary = text.get("vocab_size")
        if not vocabulary:
            from transformers import AutoConfig

            vocabulary = AutoConfig.from_pretrained(str(files["clip_text_config"].parent)).vocab_size
        folder = files["clip_text_tokenizer"].parent
        return TransformersTokenizer(folder, context, vocabulary, text.get("tokenizer_mode"), options)
