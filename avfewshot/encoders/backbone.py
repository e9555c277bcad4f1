"""A backbone: a frozen CLIP and a frozen CLAP, ready to embed frames, sounds and texts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from avfewshot.encoders.clap_model import build_clap_model, load_clap, read_clap
from avfewshot.encoders.clap_tower import ClapTower
from avfewshot.encoders.clip_model import build_clip_model, load_clip, normalisation
from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.encoders.lean_imports import is_a
from avfewshot.encoders.plain_tower import PlainTower
from avfewshot.encoders.presets import Preset, load_preset
from avfewshot.encoders.spectrogram_tower import SpectrogramTower
from avfewshot.encoders.swinv2 import SwinTower, build_swin, load_swin
from avfewshot.encoders.text import NoTexts, OpenClipTextBranch, RobertaTextBranch, TextBranch
from avfewshot.encoders.tokenizer import TextTokenizer
from avfewshot.encoders.tower import Encoder
from avfewshot.encoders.weights.identity import combined
from avfewshot.encoders.weights.load import WeightsWarning
from avfewshot.encoders.weights.locate import model_configuration, needed_files, require, verify
from avfewshot.errors import UsageError


@dataclass
class Backbone:
    """Encoders and text branches of one CLIP and one CLAP."""

    name: str  # of the preset
    visual: Encoder  # embeds frames
    audio: Encoder  # embeds one-second waveforms
    visual_text: TextBranch  # embeds texts in the space of the frames
    audio_text: TextBranch  # embeds texts in the space of the sounds
    visual_scale: float  # what cosines with frames are multiplied with before a softmax
    audio_scale: float  # the same for sounds
    templates: str  # name or path of the prompt templates that fit
    # SHA-256 of each file that went in by its role ("clip", "clap", tokenizers), the same wherever and under whatever
    # name the file lies; "random:<seed>:<fingerprint>" for random weights.
    identity: dict[str, str] = field(default_factory=dict)
    # What models trained with a sigmoid (SigLIP) add to scaled cosines. A softmax over labels does not see it.
    visual_bias: float = 0.0

    @property
    def wordless(self) -> bool:
        """Whether it has towers alone."""
        return isinstance(self.visual_text, NoTexts)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Backbone:
        """Move everything to a device, in place.

        Args:
            device: Where to.
            dtype: Number format of the towers; unchanged when None. Text branches stay in float32.

        Returns:
            Itself.
        """
        self.visual.to(device=device, dtype=dtype)
        self.audio.to(device=device, dtype=dtype)
        self.visual_text.to(device=device)
        self.audio_text.to(device=device)
        return self


def build_backbone(
    preset: str | Path | Preset = "base",
    *,
    weights: str = "pretrained",
    seed: int = 0,
    clip_weights: str | Path | None = None,
    clap_weights: str | Path | None = None,
    roberta: str | Path | None = None,
) -> Backbone:
    """Build a backbone from files on this machine; the network is never asked.

    Args:
        preset: Name of a packaged preset, path of a YAML file, or a loaded preset.
        weights: ``"pretrained"``, or ``"random"`` (meaningless results; to try things out without any download).
        seed: Of random weights; torch's global generator is left as it is.
        clip_weights: CLIP checkpoint by path, instead of the preset's.
        clap_weights: CLAP checkpoint by path, instead of the preset's.
        roberta: Folder with RoBERTa's tokenizer files, instead of those in the hub's cache.

    Returns:
        The backbone on the CPU in float32.

    Raises:
        UsageError: The request or the preset is at fault.
        WeightsError: Files are missing, damaged, unsafe or of another architecture.
    """
    if weights not in ("pretrained", "random"):
        raise UsageError(f"weights={weights!r} is unknown.", hint="Valid: pretrained, random.")
    if not isinstance(preset, Preset):
        preset = load_preset(preset)
    needed = needed_files(preset, clip_weights=clip_weights, clap_weights=clap_weights, roberta=roberta)
    if weights == "random":
        given = {"--clip-weights": clip_weights, "--clap-weights": clap_weights}
        if used := [option for option, path in given.items() if path]:
            raise UsageError(f"{' and '.join(used)} and random weights exclude each other.", hint="Leave one out.")
        # Merge files are packaged; RoBERTa's vocabulary is used when its folder is given, and only then, so that the
        # same seed means the same features on every machine.
        kept = [
            entry for entry in needed if entry.key.endswith("_bpe") or (roberta and entry.key.startswith("roberta"))
        ]
        files = require(preset, kept)
        backbone = _wordless(preset, files, {}, seed) if preset.wordless else _random(preset, files, seed)
        for role, tower, texts in (
            ("clip", backbone.visual, backbone.visual_text),
            ("clap", backbone.audio, backbone.audio_text),
        ):
            # A seed alone is the same for every architecture, and gives other numbers with other libraries.
            backbone.identity[role] = f"random:{seed}:{_fingerprint(tower, texts)}"
        return backbone
    if preset.peav:
        from avfewshot.encoders.pe_av import pe_av_classes

        pe_av_classes(preset)
    files = require(preset, needed)
    identity = {entry.key: verify(entry, files[entry.key]) for entry in needed if entry.key in files}
    if preset.wordless:
        return _wordless(preset, files, identity, seed)
    return _pretrained(
        preset, files, {key: digest for key, digest in identity.items() if not key.startswith("clip_text_tokenizer_")}
    )


def _pretrained(preset: Preset, files: Mapping[str, Path], identity: dict[str, str]) -> Backbone:
    if preset.peav:
        from avfewshot.encoders.pe_av import assemble_pe_av, build_pe_av, load_pe_av

        with _ZerosForRandom(), torch.random.fork_rng(devices=[]):
            model, timeline = build_pe_av(preset, files, timeline={"clap", "peav_timeline_config"} <= files.keys())
        load_pe_av(model, files["clip"])
        if timeline is not None:
            load_pe_av(timeline, files["clap"])
        parts = assemble_pe_av(preset, model, timeline, files, combined(*identity.values()))
        return Backbone(name=preset.name, templates=preset.templates, identity=identity, **parts)
    # Every tensor is about to be overwritten: drawing random numbers for 300 million of them would take seconds.
    with _ZerosForRandom(), torch.random.fork_rng(devices=[]):
        clip, clip_tokenizer = build_clip_model(preset, files, split_text=True)
        clap, clap_tokenizer = build_clap_model(preset, files)
    load_clip(clip, preset.clip, files["clip"])
    state, front_end = read_clap(preset.clap, files["clap"])
    load_clap(clap, preset, state, files["clap"])
    del state
    return _assemble(
        preset, (clip, clip_tokenizer, identity["clip"]), (clap, clap_tokenizer, identity["clap"]), identity, front_end
    )


class _ZerosForRandom(TorchFunctionMode):
    """Inside it, modules that initialise themselves at random mostly get zeros, at no cost."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") not in _DRAWS:
            return func(*args, **kwargs)
        tensor = args[0] if args else kwargs["tensor"]
        tensor.detach().zero_()
        return tensor


# Methods of tensors, functions of torch.nn.init and those that transformers puts in their place: told by their names.
_DRAWS = frozenset(
    f"{name}_" for name in ("uniform", "normal", "trunc_normal", "kaiming_uniform", "kaiming_normal", "xavier_uniform")
)


def _random(preset: Preset, files: Mapping[str, Path], seed: int) -> Backbone:
    identity: dict[str, str] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if preset.peav:
            from avfewshot.encoders.pe_av import assemble_pe_av, build_pe_av

            model, timeline = build_pe_av(preset, {}, timeline=preset.peav.timeline is not None)
            told = [_sample_hash(part) for part in (model, timeline) if part is not None]
            parts = assemble_pe_av(preset, model, timeline, {}, combined(*told))
            return Backbone(name=preset.name, templates=preset.templates, identity=identity, **parts)
        clip, clip_tokenizer = build_clip_model(preset, files, split_text=True)
        clap, clap_tokenizer = build_clap_model(preset, files)
    # What a seed gives differs between versions of the libraries: label features are keyed by the numbers themselves.
    return _assemble(
        preset, (clip, clip_tokenizer, _sample_hash(clip)), (clap, clap_tokenizer, _sample_hash(clap)), identity, None
    )


def _assemble(
    preset: Preset,
    clip_parts: tuple[Any, TextTokenizer, str],
    clap_parts: tuple[Any, TextTokenizer, str],
    identity: dict[str, str],
    front_end: str | None,
) -> Backbone:
    clip, clip_tokenizer, clip_hash = clip_parts
    clap, clap_tokenizer, clap_hash = clap_parts
    visual = _image_encoder(preset, clip)
    audio = ClapTower(clap.audio_branch, clap.audio_projection, front_end)
    # The text modules' own descriptions tell what the weights do not, such as the kind of GELU.
    clip_print = combined("clip", clip_hash, clip_tokenizer.fingerprint, str(preset.clip.model), repr(clip.text))
    clap_print = combined("clap", clap_hash, clap_tokenizer.fingerprint, str(preset.clap.text), repr(clap.text_branch))
    visual_text = OpenClipTextBranch(clip.text, clip_tokenizer, visual.output_dim, clip_print)
    width = preset.clap.joint_dim
    if preset.clap.text["type"] == "clip":
        audio_text: TextBranch = OpenClipTextBranch(
            clap.text_branch, clap_tokenizer, width, clap_print, clap.text_projection
        )
    else:
        audio_text = RobertaTextBranch(clap.text_branch, clap.text_projection, clap_tokenizer, width, clap_print)
    return Backbone(
        name=preset.name,
        visual=visual,
        audio=audio,
        visual_text=visual_text,
        audio_text=audio_text,
        visual_scale=clip.logit_scale.exp().item(),
        audio_scale=clap.logit_scale_a.exp().item(),
        templates=preset.templates,
        identity=identity,
        visual_bias=0.0 if clip.logit_bias is None else clip.logit_bias.item(),
    )


def _wordless(preset: Preset, files: Mapping[str, Path], identity: dict[str, str], seed: int) -> Backbone:
    """Towers without text branches; of random weights where there are no files."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        visual = _image_tower(preset, files)
        audio = _sound_tower(preset, files, visual)
    # The same weights say something else at another size, or of other pictures.
    form = combined(str(preset.clip.model), repr(preset.clip.swin), repr(preset.clap.picture), str(preset.clap.audio))
    none = NoTexts(preset.name)
    return Backbone(preset.name, visual, audio, none, none, 100.0, 100.0, preset.templates, identity | {"form": form})


def _image_tower(preset: Preset, files: Mapping[str, Path]) -> Encoder:
    if preset.clip.swin is not None:
        tower = build_swin(str(preset.clip.model), **preset.clip.swin)
        if "clip" in files:
            load_swin(tower, files["clip"], str(preset.clip.model))
        return tower
    clip, _ = build_clip_model(preset, files, split_text=True)
    if "clip" in files:
        load_clip(clip, preset.clip, files["clip"])
    return _image_encoder(preset, clip)


def _sound_tower(preset: Preset, files: Mapping[str, Path], image: Encoder) -> Encoder:
    """CLAP's, or the image tower again, which is shown spectrograms."""
    if preset.clap.picture is not None:
        if not isinstance(image, ClipTower | SwinTower):
            raise UsageError(f"{preset.path}: the image encoder is run whole, and cannot be shown spectrograms.")
        return SpectrogramTower(image, preset.clap.picture)
    clap, _ = build_clap_model(preset, files)
    front_end = None
    if "clap" in files:
        state, front_end = read_clap(preset.clap, files["clap"])
        load_clap(clap, preset, state, files["clap"])
    return ClapTower(clap.audio_branch, clap.audio_projection, front_end)


def _image_encoder(preset: Preset, clip: Any) -> Encoder:
    mean, std = normalisation(preset.clip, clip)
    if is_a(clip.visual, "VisionTransformer"):
        return ClipTower(clip.visual, mean=mean, std=std)
    return PlainTower(clip.visual, mean=mean, std=std, output_dim=model_configuration(preset.clip)["embed_dim"])


def outline(preset: Preset) -> tuple[Encoder, Encoder, int]:
    """Encoders for frames and for sound on torch's ``meta`` device, and the parameters of the whole backbone.

    No weight is read or allocated; what runs on it gives shapes and counts alone.
    """
    if preset.peav:
        from avfewshot.encoders.pe_av import PeAudioTower, PeVideoTower, build_pe_av

        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model, timeline = build_pe_av(preset, {}, timeline=preset.peav.timeline is not None)
            towers = PeVideoTower(model.video_model, preset.peav.image_size), PeAudioTower(model.audio_model, timeline)
        used = nn.ModuleList([model.video_model, model.audio_model, *filter(None, [timeline])])
        return *towers, sum(parameter.numel() for parameter in used.parameters())
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsWarning)  # on how pictures are cut: none is read
        if preset.wordless:
            with torch.device("meta"):
                visual = _image_tower(preset, {})
                shared = preset.clap.picture is not None
                audio: Any = _sound_tower(preset, {}, visual) if shared else None
            if shared:
                picture = audio.picture
                audio.pictures = lambda sound: sound.new_empty(len(sound), picture.frames, picture.mels)
            else:
                with _ZerosForRandom():
                    audio = _without_sounds(_sound_tower(preset, {}, visual))
            sizes = {id(p): p.numel() for tower in (visual, audio) for p in tower.parameters()}
            return visual.to("meta"), audio.to("meta"), sum(sizes.values())
        with torch.device("meta"):
            clip, _ = build_clip_model(preset, split_text=True)
        with _ZerosForRandom():  # HTS-AT reads numbers while it is built
            clap, _ = build_clap_model(preset)
        visual, audio = _image_encoder(preset, clip), ClapTower(clap.audio_branch, clap.audio_projection)
    parameters = sum(parameter.numel() for model in (clip, clap) for parameter in model.parameters())
    return visual.to("meta"), _without_sounds(audio).to("meta"), parameters


def _without_sounds(audio: Any) -> Any:
    """The tower with spectrograms of the right shape: its transforms switch autocast off, which knows no `meta`."""
    columns = audio.config.spec_size * (audio.config.spec_size // audio.config.mel_bins)
    audio.front_end.forward = lambda sound, _: sound.new_empty(len(sound), columns, audio.config.mel_bins)
    return audio


def _fingerprint(tower: Encoder, texts: TextBranch) -> str:
    return combined(repr(tower), _sample_hash(tower), texts.fingerprint)[:16]


def _sample_hash(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        digest.update(name.encode("utf-8"))
        digest.update(str(tuple(tensor.shape)).encode("utf-8"))
        digest.update(tensor.detach().flatten()[:64].contiguous().numpy().tobytes())
    return digest.hexdigest()
