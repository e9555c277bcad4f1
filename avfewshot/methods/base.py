"""What few-shot methods take and give.

A :class:`Support` (clips with labels) and :class:`LabelFeatures` (texts of the classes) go into ``Method.fit``, which
gives a :class:`Scorer`: log-posteriors of other clips. Arrays are float64 on the CPU; embeddings are unit vectors, one
for each second of a clip. Notation: N clips, clip i of T_i seconds, K classes, D_v and D_a dimensions.

Every method is a *head* on rows: a row is a clip (mean of its unit seconds, unit again) or, where seconds are labelled,
a second. Head and text branch never see test labels: there is no way to pass any.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from avfewshot.errors import DataError
from avfewshot.models.fusion import fuse, predict_clips

Floats = npt.NDArray[np.float64]
MODALITIES = ("visual", "audio")
_SMALLEST = 1e-12
_LEAST = np.log(_SMALLEST)
VIEWS = ("mean", "event")
"""How the seconds of a clip become a vector: all alike, or weighted by how likely something happens in them."""


def unit(vectors: Floats) -> Floats:
    """Vectors of length 1; zero vectors stay zero."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), _SMALLEST)


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
        return Features(
            tuple(self.ids[row] for row in rows),
            tuple(self.visual[row] for row in rows),
            tuple(self.audio[row] for row in rows),
        )

    def __add__(self, other: Features) -> Features:
        return Features(self.ids + other.ids, self.visual + other.visual, self.audio + other.audio)


@dataclass(frozen=True, eq=False)
class Support:
    """Clips to learn from.

    A clip without any label shows "none of these", a class of its own that stays at inference. Counter-examples are
    clips that are known not to be of a class; nothing else is known of them.
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


@dataclass(frozen=True, eq=False)
class LabelFeatures:
    """Texts of K classes in both text branches, and how the project's zero-shot prediction is made of them."""

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

    def alike(self, features: Features) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Clips of one length and the same modalities, stacked: their numbers and arguments of ``predict_clips``.

        Scaled cosines ``[n, T, K]`` a modality, and with the background text ``[n, T]``.
        """
        groups: dict[tuple[int, bool, bool], list[int]] = defaultdict(list)
        lengths = features.seconds.tolist()
        for clip, (visual, audio) in enumerate(zip(features.visual, features.audio, strict=True)):
            groups[lengths[clip], visual is not None, audio is not None].append(clip)
        for (_, *has), clips in groups.items():
            logits: dict[str, Any] = {}
            for modality, scale, there in zip(MODALITIES, self.scales, has, strict=True):
                background = getattr(self, f"{modality}_background")
                stacked: Any = np.stack([getattr(features, modality)[clip] for clip in clips]) if there else None
                parts: Any = ("logits", getattr(self, modality).T), ("background", background)
                for name, texts in parts:
                    product = None if stacked is None or texts is None else scale * np.matmul(stacked, texts)
                    logits[f"{modality}_{name}"] = None if product is None else torch.from_numpy(product)
            yield clips, logits

    def clip_log_posteriors(self, features: Features) -> dict[str, Floats]:
        """The zero-shot prediction: log-probabilities ``[N, K]`` as ``fused``, ``visual``, ``audio``.

        A modality that a clip lacks is uniform.
        """
        uniform = np.full((len(features), len(self.names)), -np.log(len(self.names)))
        result = {name: uniform.copy() for name in ("fused", *MODALITIES)}
        backgrounds = self.visual_background is not None and self.audio_background is not None
        pool = self.pool if backgrounds else "mean"
        for clips, logits in self.alike(features):
            made = predict_clips(**logits, fusion=self.fusion, pool=pool)
            parts = made.log_probabilities, made.visual_log_probabilities, made.audio_log_probabilities
            for name, values in zip(result, parts, strict=True):
                if values is not None:
                    result[name][clips] = np.maximum(values.numpy(), _LEAST)
        return result

    def second_log_posteriors(self, features: Features) -> tuple[list[Floats], list[Floats]]:
        """Zero-shot for seconds: log-probabilities of the events ``[T_i, K]``, and how sure it is that one happens.

        The second, ``[T_i]``, is the best event's logit minus the background text's, in the less sure modality: an
        audio-visual event is both seen and heard. Zero without background texts.
        """
        events: list[Floats] = [np.zeros((0, 0))] * len(features)
        salience: list[Floats] = [np.zeros(0)] * len(features)
        for clips, logits in self.alike(features):
            pair = logits["visual_logits"], logits["audio_logits"]
            probabilities = fuse(*pair, fusion=self.fusion)[0].numpy()
            best = torch.from_numpy(probabilities.argmax(-1))[..., None]
            sure = [
                (scores.gather(-1, best)[..., 0] - logits[f"{modality}_background"]).numpy()
                for modality, scores in zip(MODALITIES, pair, strict=True)
                if scores is not None and logits[f"{modality}_background"] is not None
            ]
            least = np.min(sure, axis=0) if sure else np.zeros(probabilities.shape[:-1])
            for row, clip in enumerate(clips):
                events[clip] = np.log(np.maximum(probabilities[row], _SMALLEST))
                salience[clip] = least[row]
        return events, salience


@dataclass(frozen=True, eq=False)
class Rows:
    """What heads are fitted on and score: n vectors a modality and view, with what the text says about each.

    A row is a clip, or a second. C counts the classes that have clips, with "none" (or the background) last if it has.
    """

    vectors: dict[tuple[str, str], Floats]  # (view, modality) -> unit vectors [n, D], zero where missing
    text: dict[str, Floats]  # "fused", "visual", "audio" -> zero-shot log-posteriors [n, C]
    labels: dict[str, Floats]  # modality -> unit vectors [C, D] of the texts
    scales: tuple[float, float]  # temperature scales of the text branches
    groups: npt.NDArray[np.int64]  # [n], rows that are left out together
    weights: Floats  # [n]; those of a clip sum to 1
    within: dict[str, Floats | None] = field(default_factory=dict)  # modality -> scatter of seconds in clips [D, D]
    templates: dict[str, Floats | None] = field(default_factory=dict)  # modality -> single prompts [C, P, D]
    counter: tuple[Rows, npt.NDArray[np.bool_]] | None = None  # M counter-examples, columns they are not of [M, C]

    def __len__(self) -> int:
        return len(self.groups)

    @property
    def views(self) -> tuple[str, ...]:
        """Those of :data:`VIEWS` that there are."""
        return tuple(view for view in VIEWS if (view, "visual") in self.vectors)

    def present(self, modality: str) -> npt.NDArray[np.bool_]:
        """Which rows have the modality."""
        return self.vectors["mean", modality].any(-1)

    def joint(self) -> tuple[Floats, Floats, float]:
        """Joint space: unit vectors ``[n, D_v + D_a]``, texts ``[C, D_v + D_a]``, and the scale of their cosines.

        A modality weighs as its temperature scale, so scaled cosines are the zero-shot logits of the product of both.
        A missing modality leaves its weight to the other.
        """
        total = sum(self.scales)
        shares = {modality: np.sqrt(scale / total) for modality, scale in zip(MODALITIES, self.scales, strict=True)}
        stacked = np.concatenate([shares[m] * self.vectors["mean", m] for m in MODALITIES], 1)
        return unit(stacked), np.concatenate([shares[m] * self.labels[m] for m in MODALITIES], 1), total

    def take(self, rows: Any, columns: npt.NDArray[np.int64] | None = None) -> Rows:
        """Some of the rows; with some of the columns."""
        text = {name: values[rows] for name, values in self.text.items()}
        labels, templates, counter = self.labels, self.templates, self.counter
        if columns is not None:
            counter = None if counter is None else (counter[0].take(slice(None), columns), counter[1][:, columns])
            text = {name: log_softmax(values[:, columns]) for name, values in text.items()}
            labels = {name: values[columns] for name, values in labels.items()}
            templates = {name: None if values is None else values[columns] for name, values in templates.items()}
        return replace(
            self,
            vectors={key: values[rows] for key, values in self.vectors.items()},
            text=text,
            labels=labels,
            templates=templates,
            counter=counter,
            groups=self.groups[rows],
            weights=self.weights[rows],
        )


def clip_rows(
    features: Features,
    texts: LabelFeatures,
    groups: npt.NDArray[np.int64] | None = None,
    columns: Sequence[int] | npt.NDArray[np.int64] | None = None,
    *,
    none: bool = False,
) -> Rows:
    """One row a clip: the mean of its unit seconds, unit again.

    Args:
        features: N clips.
        texts: K classes.
        groups: ``[N]``; None: every clip its own.
        columns: The classes to keep; None: all.
        none: Append "none of these" as the last column: as likely as one class to the text.

    Raises:
        DataError: The features come from another backbone than the texts.
    """
    check_width(features, texts)
    shares = {"mean": [np.full(seconds, 1 / seconds) for seconds in features.seconds]}
    if texts.visual_background is not None and texts.audio_background is not None:
        sure = [1 / (1 + np.exp(-np.clip(salience, -30, 30))) for salience in texts.second_log_posteriors(features)[1]]
        shares["event"] = [values / values.sum() for values in sure]
    vectors = {}
    for view, weights in shares.items():
        for modality in MODALITIES:
            empty = np.zeros(getattr(texts, modality).shape[1])
            clips = zip(weights, getattr(features, modality), strict=True)
            vectors[view, modality] = unit(np.array([empty if clip is None else share @ clip for share, clip in clips]))
    columns = np.arange(len(texts.names)) if columns is None else np.asarray(columns)
    text = texts.clip_log_posteriors(features)
    text = {name: log_softmax(values[:, columns]) for name, values in text.items()}
    labels = {modality: getattr(texts, modality)[columns] for modality in MODALITIES}
    if none:
        text = {name: _with_none(values) for name, values in text.items()}
        for modality, values in labels.items():
            background = getattr(texts, f"{modality}_background")
            row = np.zeros(values.shape[1]) if background is None else background
            labels[modality] = np.concatenate((values, row[None]))
    templates = {modality: getattr(texts, f"{modality}_templates") for modality in MODALITIES}
    return Rows(
        vectors,
        text,
        labels,
        texts.scales,
        np.arange(len(features)) if groups is None else groups,
        np.ones(len(features)),
        {modality: within_clip_scatter(getattr(features, modality)) for modality in MODALITIES},
        {name: None if values is None or none else values[columns] for name, values in templates.items()},
    )


def _with_none(log_posterior: Floats) -> Floats:
    known = log_posterior.shape[1]
    column = np.zeros_like(log_posterior[:, :1]) - np.log(known + 1)
    return np.concatenate((log_posterior + np.log(known / (known + 1)), column), 1)


def check_width(features: Features, texts: LabelFeatures) -> None:
    """Refuse features of another backbone than the texts'."""
    for modality in MODALITIES:
        width = getattr(texts, modality).shape[1]
        if features.width(modality) not in (0, width):
            raise DataError(
                f"The {modality} features have {features.width(modality)} dimensions and the texts {width}: they come "
                "from different backbones."
            )


def within_clip_scatter(clips: Sequence[Floats | None]) -> Floats | None:
    """How the seconds of a clip scatter about their mean: ``[D, D]``, trace D; None where they do not.

    It needs no labels and no second clip of a class: directions in which one and the same clip moves about say little
    about its class, so they can be shrunk at one shot already.
    """
    moved = [clip - clip.mean(0) for clip in clips if clip is not None and len(clip) > 1]
    if not moved:
        return None
    stacked = np.concatenate([deviation / np.sqrt(len(deviation)) for deviation in moved])
    scatter = stacked.T @ stacked
    size = np.trace(scatter) / len(scatter)
    return scatter / size if size > 1e-9 * len(moved) else None


def countable(targets: npt.NDArray[Any], groups: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Rows whose classes all have another clip, so that leaving theirs out still leaves something of the class."""
    clips = np.array([len(np.unique(groups[column > 0])) for column in targets.T])
    return ((targets > 0) <= (clips > 1)).all(1)


@dataclass(eq=False)
class Head:
    """A fitted head: everything that scoring needs, as arrays and JSON values."""

    arrays: dict[str, npt.NDArray[Any]]
    params: dict[str, Any] = field(default_factory=dict)
    loo: Floats | None = None  # log-posteriors of the support's rows when their clips are left out [n, C]
    diagnostics: dict[str, Any] = field(default_factory=dict)
    trainable: int = 0  # number of parameters that were trained
    parts: dict[str, Head] = field(default_factory=dict)  # heads of methods that were tried beside this one
