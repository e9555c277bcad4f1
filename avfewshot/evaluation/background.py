"""How a second in which nothing happens is told from an event.

AVE labels every second with one of K events or with background, but a text model only compares events with each other.
Each strategy fills that gap in another way; what is chosen is chosen on validation data, once, for each system:

- ``threshold``: background where no event is sure enough;
- ``prompt``: background is one more text that competes with the events, class K of the probabilities;
- ``none``: background is never answered, so its seconds are always wrong.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from avfewshot.errors import UsageError

Labels = npt.NDArray[np.int64]

BACKGROUNDS = ("threshold", "prompt", "none")


@dataclass(frozen=True)
class BackgroundRule:
    """A strategy with its fitted parameter; small enough to store with a checkpoint."""

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
    name: str, probabilities: npt.ArrayLike, segments: npt.ArrayLike, *, salience: npt.ArrayLike | None = None
) -> BackgroundRule:
    """Fit a strategy on validation seconds; arguments as for :func:`choose_threshold`, used by ``threshold`` alone.

    Raises:
        UsageError: There is no such strategy.
        ValueError: Shapes do not belong together.
    """
    if name != "threshold":
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
    right = np.append(0, right_as_background.cumsum()) + right_as_event.sum() - np.append(0, right_as_event.cumsum())
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
    """One label for every second, int64 ``[N, T]`` in 0 to K, K for background.

    Args:
        rule: A fitted rule.
        probabilities: ``[N, T, K]``, or ``[N, T, K + 1]`` with the background last for ``prompt``.
        num_classes: K.
        salience: ``[N, T]``, of the kind that the threshold was chosen with; None: the highest probability.

    Raises:
        ValueError: The number of columns is not what the strategy takes.
    """
    scores = np.asarray(probabilities, dtype=np.float64)
    columns = num_classes + (rule.strategy == "prompt")
    if scores.ndim != 3 or scores.shape[-1] != columns:
        raise ValueError(
            f"The background rule {rule.strategy!r} takes [N, T, {columns}] probabilities, not {scores.shape}."
        )
    answers = scores.argmax(-1)
    if rule.threshold is None:
        return answers
    sureness = scores.max(-1) if salience is None else np.asarray(salience, dtype=np.float64)
    return np.where(sureness >= rule.threshold, answers, num_classes)
