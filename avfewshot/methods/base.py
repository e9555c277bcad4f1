"""What few-shot methods take and give.

A :class:`Support` (clips with labels) and :class:`LabelFeatures` (texts of the classes) go into ``Method.fit``, which
gives a :class:`Scorer`: log-posteriors of other clips. Arrays are float64 on the CPU; embeddings are unit vectors, one
for each second of a clip. Notation: N clips, clip i of T_i seconds, K classes, D_v and D_a dimensions.

Support and texts never hold test labels: there is no way to pass any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from avfewshot.encoders.tower import Pair
from avfewshot.errors import DataError
from avfewshot.media.clip import MODALITIES
from avfewshot.models.fusion import fuse, predict_clips

Floats = npt.NDArray[np.float64]
SMALLEST = 1e-12
LEAST = np.log(SMALLEST)


def unit(vectors: Floats) -> Floats:
    """Vectors ``[..., D]`` of length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), SMALLEST)


def log_softmax(logits: Floats) -> Floats:
    """Logarithm of the softmax over the last axis."""
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def log_loss(log_posterior: Floats, targets: Floats) -> Floats:
    """Cross-entropy of each row, in nats: ``[n]`` from ``[n, C]`` and target distributions ``[n, C]``."""
    return -(targets * log_posterior).sum(-1)


@dataclass(frozen=True, eq=False)
class Features:
    """Embeddings of N clips from the frozen towers.

    Raises:
        DataError: Shapes disagree, a value is not finite, or a clip has neither modality.
    """

    ids: tuple[str, ...]
    visual: tuple[Floats | None, ...]  # unit vectors [T_i, D_v]; None: the clip has no picture
    audio: tuple[Floats | None, ...]  # unit vectors [T_i, D_a]; None: the clip has no sound

    def __post_init__(self) -> None:
        for modality in MODALITIES:
            clips = tuple(None if clip is None else np.asarray(clip, np.float64) for clip in getattr(self, modality))
            if len(clips) != len(self.ids):
                raise DataError(f"There are {len(self.ids)} clips, but {modality} features of {len(clips)}.")
            if len({clip.shape[1:] for clip in clips if clip is not None}) > 1:
                raise DataError(f"The {modality} features differ in width: they come from different backbones.")
            for name, clip in zip(self.ids, clips, strict=True):
                if clip is not None and (clip.ndim != 2 or not clip.size or not np.isfinite(clip).all()):
                    raise DataError(f"{name}: {modality} features must be finite, [seconds, dimensions].")
            object.__setattr__(self, modality, tuple(None if clip is None else unit(clip) for clip in clips))
        for name, visual, audio in zip(self.ids, self.visual, self.audio, strict=True):
            if visual is None and audio is None:
                raise DataError(f"{name}: has neither a picture nor sound.")
            if visual is not None and audio is not None and len(visual) != len(audio):
                raise DataError(f"{name}: has {len(visual)} seconds of picture and {len(audio)} of sound.")

    @classmethod
    def of(cls, clips: Iterable[tuple[str, Any, Any]]) -> Features:
        """From (id, visual, audio) of each clip; torch tensors will do."""
        ids, visual, audio = zip(*clips, strict=True)
        return cls(tuple(ids), tuple(visual), tuple(audio))

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def seconds(self) -> npt.NDArray[np.int64]:
        """T_i, ``[N]``."""
        pairs: Any = zip(self.visual, self.audio, strict=True)
        return np.array([len(audio if visual is None else visual) for visual, audio in pairs], dtype=np.int64)

    def width(self, modality: str) -> int:
        """D; 0 where no clip has the modality."""
        return next((clip.shape[1] for clip in getattr(self, modality) if clip is not None), 0)

    def take(self, rows: Sequence[int] | npt.NDArray[Any]) -> Features:
        """Some of the clips."""
        rows = np.arange(len(self))[rows] if isinstance(rows, np.ndarray) else rows
        parts: Any = (self.ids, self.visual, self.audio)
        return Features(*(tuple(part[row] for row in rows) for part in parts))

    def __add__(self, other: Features) -> Features:
        return Features(self.ids + other.ids, self.visual + other.visual, self.audio + other.audio)


@dataclass(frozen=True, eq=False)
class Support:
    """Clips to learn from.

    A clip without any label shows "none of these", a class of its own that stays at inference. Counter-examples are
    clips that are known not to be of a class; nothing else is known of them. Arrays of other shapes than told here are
    a :class:`DataError`.
    """

    features: Features
    labels: npt.NDArray[np.bool_]  # [N, K]
    segments: tuple[npt.NDArray[np.bool_], ...] | None = None  # [T_i, K + 1] a clip, background last
    groups: Any = None  # int64 [N], what is left out together; None: clips of one id
    counter: tuple[Features, npt.NDArray[np.bool_]] | None = None  # M counter-examples, what they are not of [M, K]

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels, dtype=bool)
        object.__setattr__(self, "labels", labels)
        if labels.ndim != 2 or len(labels) != len(self.features) or not labels.size:
            raise DataError(f"Labels of {len(self.features)} clips must be [N, K], not {labels.shape}.")
        groups = self.groups
        if groups is None:
            groups = np.unique(np.array(self.features.ids), return_inverse=True)[1].reshape(-1)
        object.__setattr__(self, "groups", np.asarray(groups, dtype=np.int64))
        if self.segments is not None:
            segments = tuple(np.asarray(clip, dtype=bool) for clip in self.segments)
            object.__setattr__(self, "segments", segments)
            wanted = [(seconds, labels.shape[1] + 1) for seconds in self.features.seconds]
            if [clip.shape for clip in segments] != wanted:
                raise DataError("Labels of seconds must be [seconds, classes + 1] for each clip, the background last.")

    def __len__(self) -> int:
        return len(self.features)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.labels.shape[1]

    def take(self, rows: Sequence[int] | npt.NDArray[Any]) -> Support:
        """Some of the clips."""
        rows = np.arange(len(self))[rows]
        segments = None if self.segments is None else tuple(self.segments[row] for row in rows)
        return Support(self.features.take(rows), self.labels[rows], segments, self.groups[rows], self.counter)

    def __add__(self, other: Support) -> Support:
        """Both as one; clips of one id stay together, and seconds are labelled where both have theirs."""
        segments = None
        if self.segments is not None and other.segments is not None:
            segments = self.segments + other.segments
        labels = np.concatenate((self.labels, other.labels))
        return Support(self.features + other.features, labels, segments, counter=self.counter)


@dataclass(frozen=True, eq=False)
class LabelFeatures:
    """Texts of K classes in both text branches, and how the project's zero-shot prediction is made of them.

    A :class:`DataError` where the numbers of names and texts differ, or a name occurs twice.
    """

    names: tuple[str, ...]
    visual: Floats  # unit vectors [K, D_v]
    audio: Floats  # unit vectors [K, D_a]
    visual_background: Floats | None = None  # [D_v], the text for "nothing happens"
    audio_background: Floats | None = None  # [D_a]
    scales: tuple[float, float] = (100.0, 100.0)  # temperature scales of the two text branches
    fusion: str = "weighted"
    pool: str = "event"  # falls back to "mean" without background texts
    visual_templates: Floats | None = None  # [K, P, D_v], the single prompts, for TIMO's weighting
    audio_templates: Floats | None = None  # [K, P, D_a]

    def __post_init__(self) -> None:
        for name in ("visual", "audio", "visual_background", "audio_background", "visual_templates", "audio_templates"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, unit(np.asarray(value, dtype=np.float64)))
        if not len(self.names) == len(self.visual) == len(self.audio) or not self.names:
            raise DataError(f"{len(self.names)} labels, text features of {len(self.visual)} and {len(self.audio)}.")
        if len(set(self.names)) < len(self.names):
            raise DataError("A label occurs twice.")

    @classmethod
    def with_background(cls, names: Sequence[str], visual: Any, audio: Any, **options: Any) -> LabelFeatures:
        """From features ``[K + 1, D]`` whose last row is the background text."""
        visual, audio = np.asarray(visual, np.float64), np.asarray(audio, np.float64)
        return cls(tuple(names), visual[:-1], audio[:-1], visual[-1], audio[-1], **options)

    def take(self, columns: Sequence[int] | npt.NDArray[Any]) -> LabelFeatures:
        """Some of the classes."""
        columns = np.arange(len(self.names))[np.asarray(columns)]
        templates = {
            name: None if getattr(self, name) is None else getattr(self, name)[columns]
            for name in ("visual_templates", "audio_templates")
        }
        names = tuple(self.names[column] for column in columns)
        return replace(self, names=names, visual=self.visual[columns], audio=self.audio[columns], **templates)

    def alike(self, features: Features) -> Iterator[tuple[list[int], Pair, Pair]]:
        """Clips of one length and the same modalities, stacked: their numbers, and logits for ``predict_clips``.

        Scaled cosines ``[n, T, K]`` a modality, and with the background texts ``[n, T]``.
        """
        groups: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
        lengths = features.seconds.tolist()
        for clip, (visual, audio) in enumerate(zip(features.visual, features.audio, strict=True)):
            groups[lengths[clip], visual is not None, audio is not None].append(clip)
        for (_, *has), clips in groups.items():
            logits: list[Tensor | None] = []
            for modality, scale, there in zip(MODALITIES, self.scales, has, strict=True):
                stacked: Any = np.stack([getattr(features, modality)[clip] for clip in clips]) if there else None
                for texts in (getattr(self, modality).T, getattr(self, f"{modality}_background")):
                    product = None if stacked is None or texts is None else scale * np.matmul(stacked, texts)
                    logits.append(None if product is None else torch.from_numpy(product))
            yield clips, (logits[0], logits[2]), (logits[1], logits[3])

    def clip_log_posteriors(self, features: Features) -> dict[str, Floats]:
        """The zero-shot prediction: log-probabilities ``[N, K]`` as ``fused``, ``visual``, ``audio``.

        A modality that a clip lacks is uniform.
        """
        uniform = np.full((len(features), len(self.names)), -np.log(len(self.names)))
        result = {name: uniform.copy() for name in ("fused", *MODALITIES)}
        known = self.visual_background is not None and self.audio_background is not None
        pool = self.pool if known else "mean"
        for clips, logits, backgrounds in self.alike(features):
            made = predict_clips(*logits, backgrounds=backgrounds, fusion=self.fusion, pool=pool)
            parts = made.log_probabilities, made.visual_log_probabilities, made.audio_log_probabilities
            for name, values in zip(result, parts, strict=True):
                if values is not None:
                    result[name][clips] = np.maximum(values.numpy(), LEAST)
        return result

    def second_log_posteriors(self, features: Features) -> tuple[list[Floats], list[Floats]]:
        """Zero-shot for seconds: log-probabilities of the events ``[T_i, K]``, and how sure it is that one happens.

        The second, ``[T_i]``, is the best event's logit minus the background text's, in the less sure modality: an
        audio-visual event is both seen and heard. Zero without background texts.
        """
        events: list[Floats] = [np.zeros((0, 0))] * len(features)
        salience: list[Floats] = [np.zeros(0)] * len(features)
        for clips, logits, backgrounds in self.alike(features):
            probabilities = fuse(*logits, fusion=self.fusion)[0].numpy()
            best = torch.from_numpy(probabilities.argmax(-1))[..., None]
            sure = [
                (scores.gather(-1, best)[..., 0] - background).numpy()
                for scores, background in zip(logits, backgrounds, strict=True)
                if scores is not None and background is not None
            ]
            least = np.min(sure, axis=0) if sure else np.zeros(probabilities.shape[:-1])
            for row, clip in enumerate(clips):
                events[clip] = np.log(np.maximum(probabilities[row], SMALLEST))
                salience[clip] = least[row]
        return events, salience


def check_width(features: Features, texts: LabelFeatures) -> None:
    """Raise a :class:`DataError` for features of another backbone than the texts': of other widths."""
    for modality in MODALITIES:
        width = getattr(texts, modality).shape[1]
        if features.width(modality) not in (0, width):
            raise DataError(
                f"The {modality} features have {features.width(modality)} dimensions and the texts {width}: they come "
                "from different backbones."
            )
