"""The features of clips that heads read: from frozen towers once and for all, or through adapters with gradient."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.cache import DiskCache, Stamp, file_key, file_stamp
from avfewshot.config import SupervisedTrainingConfig
from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.presets import require_walkable
from avfewshot.encoders.tower import Tower
from avfewshot.evaluation.observer import Observer
from avfewshot.inference.devices import PRECISIONS
from avfewshot.inference.embedding_cache import embedding_identity
from avfewshot.io import cache_dir
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.stream import read_ahead
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.supervised.base import Example, SupervisedTask

VERSION = 1  # raised when features are computed in another way; entries of other versions are not used any more
MAX_SIDE = 7  # of the grid of places: larger ones are halved
_IN_MEMORY = 4_000_000_000  # bytes of features that are kept in memory
_VISUAL = ("visual", "places", "stage")


def stage_blocks(tower: Tower) -> list[int]:
    """The blocks behind which the four maps are taken: ends of stages, or quarters of a tower of one scale."""
    shapes = tower.token_shapes
    ends = [block for block in range(tower.depth - 1) if shapes[block] != shapes[block + 1]] + [tower.depth - 1]
    return ends if len(ends) == 4 else [(quarter + 1) * tower.depth // 4 - 1 for quarter in range(4)]


def feature_widths(model: AudioVisualModel, kinds: Collection[str]) -> dict[str, Any]:
    """Channels of each kind of feature, for :meth:`TaskHead.build`."""
    tower = model.visual_tower
    widths = {
        "visual": tower.output_dim,
        "audio": model.audio_tower.output_dim,
        "places": tower.token_shapes[-1][1],
        "stages": [tower.token_shapes[block][1] for block in stage_blocks(tower)],
    }
    return {kind: widths[kind] for kind in widths if kind in kinds} | {"frame": getattr(tower, "image_size", 0)}


def extract(
    model: AudioVisualModel, kinds: Collection[str], frames: Tensor | None, audio: Tensor | None
) -> dict[str, Tensor]:
    """Features of B clips of T seconds; see :mod:`avfewshot.supervised.base`.

    Frames are uint8 ``[B, T, 3, S, S]``, sound is float32 ``[B, T, samples]``; without one of them its features are
    zeros.
    """
    given = frames if frames is not None else audio
    assert given is not None
    tower, (clips, seconds) = model.visual_tower, given.shape[:2]
    last = tower.depth - 1
    blocks = {last} | (set(stage_blocks(tower)) if "stages" in kinds else set())
    with model.keeping_tokens(blocks) as tokens:
        visual, sound = model(frames, audio)
    embeddings = {"visual": (visual, tower.output_dim), "audio": (sound, model.audio_tower.output_dim)}
    features = {
        kind: given.new_zeros(clips, seconds, width, dtype=torch.float32)
        if unit is None
        else unit.float() * math.sqrt(width)
        for kind, (unit, width) in embeddings.items()
        if kind in kinds
    }
    if "places" in kinds:
        grid = _grid(tokens.get(last), tower.token_shapes[last], clips * seconds, given.device)
        while grid.shape[-1] > MAX_SIDE:
            grid = F.avg_pool2d(grid, 2, ceil_mode=True)
        features["places"] = grid.flatten(2).mT.unflatten(0, (clips, seconds))
    if "stages" in kinds:
        for index, block in enumerate(stage_blocks(tower)):
            grid = _grid(tokens.get(block), tower.token_shapes[block], clips * seconds, given.device)
            features[f"stage{index}"] = grid.unflatten(0, (clips, seconds))
    return features


def _grid(tokens: Tensor | None, shape: tuple[int, int], rows: int, device: torch.device) -> Tensor:
    """Layer-normalised tokens as maps ``[N, C, H, W]``, without a class token; zeros where there are none."""
    length, width = shape
    side = math.isqrt(length)
    if tokens is None:
        return torch.zeros(rows, width, side, side, device=device)
    places = F.layer_norm(tokens[:, length - side * side :].float(), (width,))
    return places.mT.unflatten(2, (side, side))


def clip_features(
    model: Any, kinds: Collection[str], clip: Clip, seconds: int, modality: str, device: torch.device
) -> dict[str, Tensor]:
    """Features of one clip, ``[seconds, ...]``: zeros behind its end and for what is switched off."""
    frames = clip.frames if modality != "audio" else None
    audio = clip.audio_segments if modality != "visual" else None
    silent = frames is None and audio is None  # nothing of what is asked for is in it
    if silent:
        frames, audio = clip.frames, clip.audio_segments
    inputs = [None if part is None else part[None, :seconds].to(device) for part in (frames, audio)]
    features = {name: values[0] for name, values in extract(model, kinds, *inputs).items()}
    return {
        name: torch.cat([values * (not silent), values.new_zeros(seconds - len(values), *values.shape[1:])])
        for name, values in features.items()
    }


def without(features: Mapping[str, Tensor], modality: str) -> dict[str, Tensor]:
    """The features with a modality switched off: all but ``"visual"`` or ``"audio"`` becomes zero."""
    return {
        name: values
        if modality == "av" or name.startswith(_VISUAL) == (modality == "visual")
        else torch.zeros_like(values)
        for name, values in features.items()
    }


class FeatureStore:
    """Features of clips from frozen towers: computed once, then from memory or disk."""

    def __init__(
        self,
        task: SupervisedTask,
        kinds: Collection[str],
        backbone: Backbone,
        device: torch.device,
        config: SupervisedTrainingConfig,
        frame_backend: str,
        observer: Observer,
    ) -> None:
        require_walkable(f"The task {task.name}", backbone.visual)
        backbone.to(device, PRECISIONS[config.precision])
        self.task, self.kinds, self.device, self.workers = task, frozenset(kinds), device, config.workers
        self.model = AudioVisualModel(backbone).to(device).eval()
        self.widths = feature_widths(self.model, kinds)
        self.frame_size: Any = self.model.visual_tower.image_size
        self.frame_backend, self.observer = frame_backend, observer
        self.failures: dict[Path, Failure] = {}  # clips that could not be read
        self._about = {
            **embedding_identity(backbone, config.precision),
            "version": VERSION,
            "task": task.name,
            "kinds": sorted(kinds),
            **({} if task.window == task.seconds else {"window": task.window}),
            "frame backend": frame_backend,
        }
        self._disk = DiskCache(cache_dir("features"), ".safetensors", config.cache_size)
        self._memory: dict[Path, dict[str, Tensor]] = {}
        self._bytes = 0

    def read(self, path: Path) -> Clip:
        """Decode a clip as the task wants it."""
        return self.task.read_clip(path, self.frame_size, self.frame_backend)

    def usable(self, examples: Sequence[Example], title: str) -> list[Example]:
        """The examples whose clips can be read; features of these are computed if need be."""
        missing = [
            p for p in dict.fromkeys(e.path for e in examples) if p not in self.failures and self._find(p) is None
        ]
        if missing:
            self.observer.begin(title, len(missing))
            stamps, clips = list(map(file_stamp, missing)), read_ahead(missing, self.read, workers=self.workers)
            for path, stamp, clip in zip(missing, stamps, clips, strict=True):
                if isinstance(clip, Failure):
                    self.failures[path] = clip
                else:
                    self._compute(path, clip, stamp)
                self.observer.advance()
        return [example for example in examples if example.path not in self.failures]

    def get(self, path: Path) -> dict[str, Tensor]:
        """Features ``[T, ...]`` float32 on the CPU of a clip that is usable."""
        stamp = file_stamp(path)
        known = self._find(path) or self._compute(path, self.read(path), stamp)
        return {name: values.float() for name, values in known.items()}

    def _compute(self, path: Path, clip: Clip, stamp: Stamp | None) -> dict[str, Tensor]:
        from safetensors.torch import save

        with torch.inference_mode():
            features = clip_features(self.model, self.kinds, clip, self.task.seconds, "av", self.device)
        # Rounded, so that what is given does not depend on whether it was kept.
        features = {name: values.half().cpu().clone() for name, values in features.items()}
        self._remember(path, features)
        if (key := file_key(path, self._about)) is not None and file_stamp(path) == stamp:  # as it was when it was read
            self._disk.put(key, save({name: values.contiguous() for name, values in features.items()}))
        return features

    def _find(self, path: Path) -> dict[str, Tensor] | None:
        from safetensors.torch import load

        if path in self._memory:
            return self._memory[path]
        key = file_key(path, self._about)
        content = None if key is None else self._disk.get(key)
        if key is None or content is None:
            return None
        try:
            features = load(content)
        except Exception:  # damaged, in whatever way
            self._disk.damaged(key)
            return None
        self._remember(path, features)
        return features

    def _remember(self, path: Path, features: dict[str, Tensor]) -> None:
        size = sum(values.nbytes for values in features.values())
        if self._bytes + size <= _IN_MEMORY:
            self._memory[path] = features
            self._bytes += size
