"""A backbone: a frozen CLIP and a frozen CLAP, ready to embed frames, sounds and texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avfewshot.encoders.kinds.base import Parts, Preset
from avfewshot.encoders.presets import load_preset, recipe
from avfewshot.encoders.text import NoTexts
from avfewshot.encoders.weights.load import ZerosForRandom
from avfewshot.encoders.weights.locate import combined, sample_hash, verify
from avfewshot.errors import UsageError


@dataclass(kw_only=True)
class Backbone(Parts):
    """Encoders and text branches, with what they were made of."""

    name: str  # of the preset
    templates: str  # name or path of the prompt templates that fit
    # SHA-256 of each file that went in by its role ("clip", "clap", tokenizers), the same wherever and under whatever
    # name the file lies; "random:<seed>:<fingerprint>" for random weights.
    identity: dict[str, str]
    recipe: str = ""  # how a YAML file of one's own reads them, see presets.recipe

    @property
    def wordless(self) -> bool:
        """Whether it has towers alone."""
        return isinstance(self.visual_text, NoTexts)

    def to(self, device: str | torch.device, dtype: torch.dtype | None = None) -> Backbone:
        """Move everything to a device, in place, and the towers to another number format; texts stay in float32."""
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
    """Build a backbone, on the CPU in float32, from files on this machine; the network is never asked.

    `preset` is the name of a packaged one, the path of a YAML file, or a loaded one. Weights are ``"pretrained"``, or
    ``"random"`` from `seed` (meaningless results; to try things out without any download), which leaves torch's global
    generator as it is. Checkpoints of CLIP and CLAP, and a folder with RoBERTa's tokenizer files, may be given by path
    instead of those in the hub's cache.

    Raises:
        UsageError: The request or the preset is at fault.
        WeightsError: Files are missing, damaged, unsafe or of another architecture.
    """
    if weights not in ("pretrained", "random"):
        raise UsageError(f"weights={weights!r} is unknown.", hint="Valid: pretrained, random.")
    if not isinstance(preset, Preset):
        preset = load_preset(preset)
    needed = preset.files(clip_weights=clip_weights, clap_weights=clap_weights, roberta=roberta)
    preset.require_library()
    if weights == "random":
        given = {"--clip-weights": clip_weights, "--clap-weights": clap_weights}
        if used := [option for option, path in given.items() if path]:
            raise UsageError(f"{' and '.join(used)} and random weights exclude each other.", hint="Leave one out.")
        # Merge files are packaged; RoBERTa's vocabulary is used when its folder is given, and only then, so that the
        # same seed means the same features on every machine.
        kept = [file for file in needed if file.key.endswith("_bpe") or (roberta and file.key.startswith("roberta"))]
        files = preset.require(kept)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            parts = preset.build(files, {})
        digests = {}
        for role, tower, texts in (("clip", parts.visual, parts.visual_text), ("clap", parts.audio, parts.audio_text)):
            # A seed alone is the same for every architecture, and gives other numbers with other libraries.
            told = combined(repr(tower), sample_hash(tower), texts.fingerprint)[:16]
            digests[role] = f"random:{seed}:{told}"
    else:
        files = preset.require(needed)
        digests = {entry.key: verify(entry, files[entry.key]) for entry in needed if entry.key in files}
        # Every tensor is about to be overwritten: drawing random numbers for 300 million of them would take seconds.
        with ZerosForRandom(), torch.random.fork_rng(devices=[]):
            parts = preset.build(files, digests)
    about: Any = {"name": preset.name, "templates": preset.templates, "recipe": recipe(preset)}
    return Backbone(identity=preset.identity(digests), **about, **vars(parts))
