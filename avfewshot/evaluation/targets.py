"""What is true and what a system says, as checked arrays."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from avfewshot.errors import UsageError

if TYPE_CHECKING:
    from avfewshot.data.dataset import Dataset, Sample


Labels = npt.NDArray[np.int64]

BACKGROUNDS = ("threshold", "prompt", "none")


@dataclass(frozen=True)
class BackgroundRule:
    """A strategy with its fitted parameter; small enough to store with a checkpoint.

    Raises:
        UsageError: There is no such strategy.
        ValueError: The threshold is missing, not finite, or not of this strategy.
    """

    strategy: str  # one of BACKGROUNDS
    threshold: float | None = None  # salience below which a second is background; for "threshold" only

    def __post_init__(self) -> None:
        if self.strategy not in BACKGROUNDS:
            hint = f"Rules: {', '.join(BACKGROUNDS)}."
            raise UsageError(f"There is no background rule {self.strategy!r}.", hint=hint)
        wanted = self.strategy == "threshold"
        if wanted and (self.threshold is None or not np.isfinite(self.threshold)):
            raise ValueError(f"The background rule {self.strategy!r} needs a finite threshold.")
        if not wanted and self.threshold is not None:
            raise ValueError(f"The background rule {self.strategy!r} has no threshold.")


def fit_background(
    name: str, probabilities: npt.NDArray, segments: Labels, *, salience: npt.NDArray | None
) -> BackgroundRule:
    """Fit a strategy on validation seconds; all but ``threshold`` need none.

    The threshold is the salience below which calling a second background is right most often. All that tell the given
    seconds apart are tried (one sort, not one pass each). Between two neighbouring scores it lies in their middle; of
    equally good ones the lowest is taken, which has fewest background. `salience` ``[N, T]`` says how sure it is that
    something happens, for example the best event's logit minus that of a background text: a second is an event if it
    is not below the threshold. Probabilities are of the K events, ``[N, T, K]``; segments are int64 ``[N, T]``, K for
    the background.
    """
    if name != "threshold":
        return BackgroundRule(name)
    assert salience is not None
    order = salience.ravel().argsort(kind="stable")
    ordered = salience.ravel()[order]
    right_as_event = (probabilities.argmax(-1) == segments).ravel()[order]
    right_as_background = (segments == probabilities.shape[-1]).ravel()[order]
    # right[i]: the i lowest scores are called background, the others events.
    right = np.append(0, right_as_background.cumsum()) + right_as_event.sum() - np.append(0, right_as_event.cumsum())
    possible = np.concatenate(([True], ordered[1:] > ordered[:-1], [True]))
    best = int(np.where(possible, right, -1).argmax())
    if best == 0:
        return BackgroundRule(name, float(ordered[0]))
    if best == len(ordered):
        return BackgroundRule(name, float(np.nextafter(ordered[-1], np.inf)))
    middle = ordered[best - 1] + (ordered[best] - ordered[best - 1]) / 2
    return BackgroundRule(name, float(middle if middle > ordered[best - 1] else ordered[best]))


def decide_segments(predictions: Predictions, num_classes: int) -> Labels:
    """One label for every second, int64 ``[N, T]`` in 0 to K, K for background; by a rule that was fitted.

    A ValueError where there is no rule, or where the probabilities are not ``[N, T, K]``; for ``"prompt"`` they are
    ``[N, T, K + 1]``.
    """
    rule, scores = predictions.background, predictions.probabilities
    if rule is None:
        raise ValueError("A background rule is needed.")
    columns = num_classes + (rule.strategy == "prompt")
    if scores.ndim != 3 or scores.shape[-1] != columns:
        raise ValueError(
            f"The background rule {rule.strategy!r} takes [N, T, {columns}] probabilities, not {scores.shape}."
        )
    answers = scores.argmax(-1)
    if rule.threshold is None:
        return answers
    sureness = scores.max(-1) if predictions.salience is None else predictions.salience
    return np.where(sureness >= rule.threshold, answers, num_classes)


_SUM_TOLERANCE = 1e-2
"""How far a distribution may be from summing to 1: half precision is off by this much, logits and cosines by more."""


@dataclass(frozen=True, eq=False)
class Targets:
    """The truth about N clips; a ValueError where its parts do not fit together."""

    ids: tuple[str, ...]  # names of the clips; a clip that is listed under two classes occurs twice
    classes: tuple[str, ...]  # names of the K classes, in the data set's order
    labels: npt.NDArray[np.bool_]  # bool ``[N, K]``, at least one class a clip
    # class index per second, int64 ``[N, T]``, K for background; None without labels per second
    segments: npt.NDArray[np.int64] | None = None
    multi_label: bool = False  # clips carry several labels

    def __post_init__(self) -> None:
        labels = np.asarray(self.labels, dtype=bool)
        object.__setattr__(self, "labels", labels)
        if not self.ids:
            raise ValueError("There are no clips to evaluate on.")
        if len(self.classes) < 2:
            raise ValueError("There must be at least two classes to choose from.")
        if labels.shape != (len(self.ids), len(self.classes)):
            raise ValueError(f"Labels are {labels.shape}; {(len(self.ids), len(self.classes))} expected.")
        counts = labels.sum(1)
        if not counts.all():
            raise ValueError(f"{self.ids[int(counts.argmin())]} has no label.")
        if not self.multi_label and counts.max() > 1:
            raise ValueError(f"{self.ids[int(counts.argmax())]} has several labels, but the data set is single-label.")
        if self.segments is not None:
            segments = np.asarray(self.segments, dtype=np.int64)
            object.__setattr__(self, "segments", segments)
            if segments.ndim != 2 or len(segments) != len(self.ids) or not segments.shape[1]:
                raise ValueError(f"Segment labels are {segments.shape}; ({len(self.ids)}, T) expected.")
            if segments.min() < 0 or segments.max() > self.background:
                raise ValueError(f"Segment labels must lie in 0 to {self.background}.")

    @classmethod
    def from_samples(cls, dataset: Dataset, samples: Sequence[Sample], num_segments: int | None = None) -> Targets:
        """The targets of samples, in their order; with `segments` where every sample has labels per second."""
        segments = None
        if samples and all(sample.segments is not None for sample in samples):
            segments = np.stack([dataset.segment_labels(sample, num_segments) for sample in samples])
        return cls(
            ids=tuple(sample.id for sample in samples),
            classes=dataset.classes,
            labels=dataset.multi_hot(samples),
            segments=segments,
            multi_label=dataset.multi_label,
        )

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Targets:
        """Those of some clips, bool ``[N]``."""
        return replace(
            self,
            ids=tuple(np.array(self.ids, dtype=object)[chosen]),
            labels=self.labels[chosen],
            segments=None if self.segments is None else self.segments[chosen],
        )

    @property
    def num_clips(self) -> int:
        """N."""
        return len(self.ids)

    @property
    def num_classes(self) -> int:
        """K, background not counted."""
        return len(self.classes)

    @property
    def background(self) -> int:
        """The label of a second in which nothing happens: K."""
        return len(self.classes)

    @property
    def lowest_labels(self) -> npt.NDArray[np.int64]:
        """Argmax of the multi-hot vectors, ``[N]``: of several classes the lowest index, as LLP's top-1 has it."""
        return self.labels.argmax(1)

    def groups(self) -> npt.NDArray[np.int64]:
        """Clip number of each row, ``[N]``, in the order of the sorted ids: rows of one id belong together."""
        return np.unique(np.array(self.ids), return_inverse=True)[1].reshape(-1)

    def random_labels(self, seed: int) -> npt.NDArray[np.int64]:
        """One of the labels of each clip, drawn uniformly, int64 ``[N]``: by seed and id of the clip alone.

        So neither the order nor the number of clips matters.
        """
        drawn = np.empty(self.num_clips, dtype=np.int64)
        for row, name in enumerate(self.ids):
            choices = self.labels[row].nonzero()[0]
            digest = hashlib.sha256(f"{seed}:{name}".encode("utf-8", "surrogateescape")).digest()
            drawn[row] = choices[int.from_bytes(digest[:8], "big") % len(choices)]
        return drawn


@dataclass(frozen=True, eq=False)
class Predictions:
    """What one system says about N clips; a ValueError where arrays are of other shapes or values than told here."""

    # ``[N, K]`` per clip, or ``[N, T, K]`` per second; ``[N, T, K + 1]`` with the background last. Every
    # distribution sums to 1.
    probabilities: npt.NDArray[np.float64]
    background: BackgroundRule | None = None  # how a second without an event is told; needed per second only
    # ``[N, T]``, how sure the system is that something happens, for the rule ``threshold``; None: the highest
    # probability
    salience: npt.NDArray[np.float64] | None = None
    # A clip is said to carry every class of at least this probability, one for all or ``[K]``; chosen on
    # validation data by :func:`avfewshot.evaluation.measures.choose_label_threshold`, or on left-out clips. None:
    # sets of labels are not judged.
    label_threshold: float | npt.NDArray[np.float64] | None = None

    def __post_init__(self) -> None:
        probabilities = np.asarray(self.probabilities, dtype=np.float64)
        object.__setattr__(self, "probabilities", probabilities)
        if probabilities.ndim not in (2, 3) or not probabilities.size:
            raise ValueError(f"Probabilities are {probabilities.shape}; [N, K] or [N, T, K] expected.")
        if not np.isfinite(probabilities).all():
            raise ValueError("Probabilities must be finite.")
        sums = probabilities.sum(-1)
        if probabilities.min() < 0 or np.abs(sums - 1).max() > _SUM_TOLERANCE:
            raise ValueError("Probabilities must not be negative and must sum to 1 over the classes.")
        if self.salience is not None:
            salience = np.asarray(self.salience, dtype=np.float64)
            object.__setattr__(self, "salience", salience)
            if salience.shape != probabilities.shape[:2] or not np.isfinite(salience).all():
                raise ValueError(f"Salience must be finite and {probabilities.shape[:2]}, it is {salience.shape}.")

    def rows(self, chosen: npt.NDArray[np.bool_]) -> Predictions:
        """Those of some clips, bool ``[N]``."""
        salience = None if self.salience is None else self.salience[chosen]
        return replace(self, probabilities=self.probabilities[chosen], salience=salience)
