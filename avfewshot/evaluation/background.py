"""How a second in which nothing happens is told from an event: a registry of pure rules.

AVE labels every second with one of K events or with background, but a text model only compares events with each other.
Each strategy fills that gap in another way. What is chosen is chosen on validation data, once, for each system.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from avfewshot.errors import UsageError

Array = npt.NDArray[np.float64]
Labels = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BackgroundRule:
    """A strategy with its fitted parameter; small enough to store with a checkpoint."""

    strategy: str  # a key of BACKGROUNDS
    threshold: float | None = None  # salience below which a second is background; for "threshold" only

    def __post_init__(self) -> None:
        wanted = find_background(self.strategy).needs_validation
        if wanted and (self.threshold is None or not np.isfinite(self.threshold)):
            raise ValueError(f"The background rule {self.strategy!r} needs a finite threshold.")
        if not wanted and self.threshold is not None:
            raise ValueError(f"The background rule {self.strategy!r} has no threshold.")


@dataclass(frozen=True)
class BackgroundStrategy:
    """A way to decide between an event and background."""

    name: str  # its name
    description: str  # one line for people
    needs_validation: bool  # it has a threshold that is chosen on validation data
    extra_column: bool  # probabilities carry the background as class K (``[..., K + 1]``); otherwise ``[..., K]``
    # ``(probabilities, salience, threshold) -> labels [N, T]`` in 0 to K
    decide: Callable[[Array, Array, float | None], Labels]


def _by_threshold(probabilities: Array, salience: Array, threshold: float | None) -> Labels:
    assert threshold is not None  # BackgroundRule sees to that
    return np.where(salience >= threshold, probabilities.argmax(-1), probabilities.shape[-1])


def _by_best_class(probabilities: Array, salience: Array, threshold: float | None) -> Labels:
    return probabilities.argmax(-1)


BACKGROUNDS: Mapping[str, BackgroundStrategy] = MappingProxyType(
    {
        strategy.name: strategy
        for strategy in (
            BackgroundStrategy(
                "threshold",
                "background where no event is sure enough; the threshold is chosen on validation data",
                needs_validation=True,
                extra_column=False,
                decide=_by_threshold,
            ),
            BackgroundStrategy(
                "prompt",
                "background is one more text that competes with the events",
                needs_validation=False,
                extra_column=True,
                decide=_by_best_class,
            ),
            BackgroundStrategy(
                "none",
                "background is never answered, so its seconds are always wrong",
                needs_validation=False,
                extra_column=False,
                decide=_by_best_class,
            ),
        )
    }
)
"""Strategies by name."""


def find_background(name: str) -> BackgroundStrategy:
    """The strategy of a name.

    Raises:
        UsageError: There is none; the message lists those there are.
    """
    if name not in BACKGROUNDS:
        raise UsageError(f"There is no background rule {name!r}.", hint=f"Rules: {', '.join(BACKGROUNDS)}.")
    return BACKGROUNDS[name]


def fit_background(
    name: str, probabilities: npt.ArrayLike, segments: npt.ArrayLike, *, salience: npt.ArrayLike | None = None
) -> BackgroundRule:
    """Fit a strategy on validation data.

    Args:
        name: A key of :data:`BACKGROUNDS`.
        probabilities: Of the validation seconds: ``[N, T, K]``; ignored by strategies without a parameter.
        segments: Their labels, ``[N, T]``, K for background.
        salience: See :func:`choose_threshold`.

    Returns:
        The rule, to be used on other data.

    Raises:
        UsageError: There is no such strategy.
        ValueError: Shapes do not belong together.
    """
    if not find_background(name).needs_validation:
        return BackgroundRule(name)
    return BackgroundRule(name, choose_threshold(probabilities, segments, salience=salience))


def choose_threshold(
    probabilities: npt.ArrayLike, segments: npt.ArrayLike, *, salience: npt.ArrayLike | None = None
) -> float:
    """The salience below which calling a second background is right most often.

    All thresholds that tell the given seconds apart are tried (one sort, not one pass each). Between two neighbouring
    scores the threshold lies in their middle; of equally good ones the lowest is taken, which has fewest background.

    Args:
        probabilities: Of the K events, ``[N, T, K]``.
        segments: Labels ``[N, T]``, K for background.
        salience: ``[N, T]``, how sure it is that something happens, for example the best event's logit minus that of a
            background text; None: the highest probability.

    Returns:
        A finite threshold; a second is an event if its salience is not below it.

    Raises:
        ValueError: Shapes do not belong together, or a score is not finite.
    """
    events = np.asarray(probabilities, dtype=np.float64)
    truth = np.asarray(segments)
    scores = events.max(-1) if salience is None else np.asarray(salience, dtype=np.float64)
    if events.ndim != 3 or truth.shape != events.shape[:2] or scores.shape != events.shape[:2] or not truth.size:
        raise ValueError(f"Shapes {events.shape}, {truth.shape} and {scores.shape} do not belong together.")
    if not (np.isfinite(events).all() and np.isfinite(scores).all()):
        raise ValueError("Scores must be finite.")
    order = scores.ravel().argsort(kind="stable")
    ordered = scores.ravel()[order]
    right_as_event = (events.argmax(-1) == truth).ravel()[order]
    right_as_background = (truth == events.shape[-1]).ravel()[order]
    # right[i]: the i lowest scores are called background, the others events.
    right = np.concatenate(([0], right_as_background.cumsum())) + (
        right_as_event.sum() - np.concatenate(([0], right_as_event.cumsum()))
    )
    possible = np.concatenate(([True], ordered[1:] > ordered[:-1], [True]))
    best = int(np.where(possible, right, -1).argmax())
    if best == 0:
        return float(ordered[0])
    if best == len(ordered):
        return float(np.nextafter(ordered[-1], np.inf))
    middle = ordered[best - 1] + (ordered[best] - ordered[best - 1]) / 2
    return float(middle if middle > ordered[best - 1] else ordered[best])


def decide_segments(
    rule: BackgroundRule, probabilities: npt.ArrayLike, num_classes: int, *, salience: npt.ArrayLike | None = None
) -> Labels:
    """One label for every second.

    Args:
        rule: A fitted rule.
        probabilities: ``[N, T, K]``, or ``[N, T, K + 1]`` with the background last for ``prompt``.
        num_classes: K.
        salience: ``[N, T]``, of the kind that the threshold was chosen with; None: the highest probability.

    Returns:
        int64 ``[N, T]`` in 0 to K, K for background.

    Raises:
        ValueError: The number of columns is not what the strategy takes, or the salience has another shape.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    strategy = find_background(rule.strategy)
    columns = num_classes + strategy.extra_column
    if scores.ndim != 3 or scores.shape[-1] != columns:
        raise ValueError(
            f"The background rule {rule.strategy!r} takes [N, T, {columns}] probabilities, not {scores.shape}."
        )
    sureness = scores.max(-1) if salience is None else np.asarray(salience, dtype=np.float64)
    if sureness.shape != scores.shape[:2]:
        raise ValueError(f"Salience must be {scores.shape[:2]}, it is {sureness.shape}.")
    return strategy.decide(scores, sureness, rule.threshold)
