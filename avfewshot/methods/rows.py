"""Rows, which heads are fitted on and score, and heads.

A row is a clip (mean of its unit seconds, unit again) or, where seconds are labelled, a second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from avfewshot.methods.base import (
    MODALITIES,
    SMALLEST,
    Features,
    Floats,
    LabelFeatures,
    check_width,
    log_softmax,
    unit,
)

VIEWS = ("mean", "event")
"""How the seconds of a clip become a vector: all alike, or weighted by how likely something happens in them."""


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
    rows = pooled_rows(vectors, texts.clip_log_posteriors(features), texts, columns, none=none)
    rows.within.update({modality: within_clip_scatter(getattr(features, modality)) for modality in MODALITIES})
    count = len(features)
    return replace(rows, groups=np.arange(count) if groups is None else groups, weights=np.ones(count))


def pooled_rows(
    vectors: dict[tuple[str, str], Floats],
    zero_shot: Mapping[str, Floats],
    texts: LabelFeatures,
    columns: npt.NDArray[np.int64],
    *,
    none: bool,
) -> Rows:
    """:func:`clip_rows` of clips whose vectors are pooled and compared with the texts already; of one group."""
    text = {name: log_softmax(values[:, columns]) for name, values in zero_shot.items()}
    if none:
        known = len(columns)
        column = {name: np.zeros_like(values[:, :1]) - np.log(known + 1) for name, values in text.items()}
        text = {name: np.concatenate((v + np.log(known / (known + 1)), column[name]), 1) for name, v in text.items()}
    templates = {} if none else {modality: getattr(texts, f"{modality}_templates") for modality in MODALITIES}
    templates = {modality: None if values is None else values[columns] for modality, values in templates.items()}
    labels = _label_rows(texts, columns, background=none)
    return Rows(vectors, text, labels, texts.scales, np.zeros(1, np.int64), np.ones(1), templates=templates)


def second_rows(
    features: Features, texts: LabelFeatures, groups: npt.NDArray[np.int64], columns: npt.NDArray[np.int64]
) -> tuple[Rows, Floats]:
    """Every second of every clip as a row over some of the classes and the background; and the text's salience."""
    events, salience = texts.second_log_posteriors(features)
    lengths = features.seconds
    vectors = {}
    for modality in MODALITIES:
        width = getattr(texts, modality).shape[1]
        clips = zip(getattr(features, modality), lengths, strict=True)
        vectors["mean", modality] = np.concatenate(
            [np.zeros((seconds, width)) if clip is None else clip for clip, seconds in clips]
        )
    sure = np.concatenate(salience)
    rows = compared_rows(vectors, np.concatenate(events), sure, texts, columns)
    return replace(rows, groups=np.repeat(groups, lengths), weights=np.repeat(1 / lengths, lengths)), sure


def compared_rows(
    vectors: dict[tuple[str, str], Floats],
    events: Floats,
    salience: Floats,
    texts: LabelFeatures,
    columns: npt.NDArray[np.int64],
) -> Rows:
    """:func:`second_rows` of seconds that are compared with the texts already; of one group."""
    there = 1 / (1 + np.exp(-np.clip(salience, -30, 30)))[:, None]
    fused = log_softmax(events[:, columns])
    text = {"fused": np.concatenate((fused + np.log(there), np.log1p(-there * (1 - SMALLEST))), 1)}
    labels = _label_rows(texts, columns, background=True)
    for modality, scale in zip(MODALITIES, texts.scales, strict=True):
        text[modality] = log_softmax(scale * vectors["mean", modality] @ labels[modality].T)
    return Rows(vectors, text, labels, texts.scales, np.zeros(1, np.int64), np.ones(1))


def _label_rows(texts: LabelFeatures, columns: npt.NDArray[np.int64], *, background: bool) -> dict[str, Floats]:
    """Texts of the columns ``[C, D]`` a modality, that of the background last where it is one of them."""
    labels = {modality: getattr(texts, modality)[columns] for modality in MODALITIES}
    if background:
        for modality, values in labels.items():
            row = getattr(texts, f"{modality}_background")
            row = np.zeros(values.shape[1]) if row is None else row
            labels[modality] = np.concatenate((values, row[None]))
    return labels


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
    kept: dict[Any, Any] = field(default_factory=dict, repr=False)  # what scoring computes once; not saved
