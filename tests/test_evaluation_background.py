"""Rules that tell background from events."""

import numpy as np
import pytest

from avfewshot.errors import UsageError
from avfewshot.evaluation.targets import BACKGROUNDS, BackgroundRule, Predictions, decide_segments, fit_background

# One clip of four seconds, two events; the best event's probability is .6, .7, .8 and .9.
SCORES = np.array([[[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.9, 0.1]]])


def threshold(scores, truth, salience=None) -> float:
    scores = np.array(scores)
    salience = scores.max(-1) if salience is None else np.array(salience)
    return fit_background("threshold", scores, np.array(truth), salience=salience).threshold


def decide(rule: BackgroundRule, scores, classes: int) -> list:
    return decide_segments(Predictions(np.array(scores), rule), classes).tolist()


@pytest.mark.parametrize(
    ("scores", "truth", "salience", "expected"),
    [
        pytest.param(SCORES, [2, 2, 0, 0], None, 0.75, id="in the middle"),
        pytest.param(SCORES, [0, 1, 0, 0], None, 0.6, id="without background every event is kept"),
        pytest.param(SCORES, [2, 0, 0, 0], None, 0.65, id="a wrong event is as wrong as background: the lowest"),
        pytest.param([[[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]], [2, 0, 0], None, 0.5, id="equal scores stay together"),
        pytest.param(SCORES, [0, 1, 2, 2], [[3.0, 4.0, -1.0, 0.0]], 1.5, id="another salience"),
        pytest.param(SCORES, [2, 2, 2, 2], None, np.nextafter(0.9, 1), id="all is background"),
    ],
)
def test_thresholds_by_hand(scores, truth, salience, expected):
    assert threshold(scores, [truth], salience) == pytest.approx(expected, rel=1e-15)


def test_threshold_is_as_good_as_any():
    rng = np.random.default_rng(3)
    scores = rng.dirichlet(np.ones(4), size=(12, 5)).round(1)  # rounded: many ties
    truth = rng.integers(5, size=(12, 5))

    def accuracy(value: float) -> float:
        return (np.where(scores.max(-1) >= value, scores.argmax(-1), 4) == truth).mean()

    assert accuracy(threshold(scores, truth)) == max(map(accuracy, np.linspace(-0.01, 1.01, 1000)))


def test_decisions_of_each_rule():
    assert decide(BackgroundRule("none"), SCORES, 2) == [[0, 1, 0, 0]]
    assert decide(BackgroundRule("threshold", 0.75), SCORES, 2) == [[2, 2, 0, 0]]
    assert decide(BackgroundRule("prompt"), [[[0.2, 0.3, 0.5], [0.1, 0.5, 0.4]]], 2) == [[2, 1]]
    assert fit_background("prompt", SCORES, np.zeros((1, 4), int), salience=None) == BackgroundRule("prompt")
    high = np.nextafter(0.5, 1)  # neighbouring floats are still separated
    scores = np.array([[[0.5, 0.5], [high, 1 - high]]])
    assert decide(BackgroundRule("threshold", threshold(scores, [[2, 0]])), scores, 2) == [[2, 0]]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: decide(BackgroundRule("prompt"), SCORES, 2), ValueError, r"'prompt' takes \[N, T, 3\]"),
        (lambda: decide(BackgroundRule("none"), SCORES, 3), ValueError, r"'none' takes \[N, T, 3\]"),
        (lambda: BackgroundRule("silence"), UsageError, f"Rules: {', '.join(BACKGROUNDS)}"),
        (lambda: BackgroundRule("threshold"), ValueError, "finite threshold"),
        (lambda: BackgroundRule("threshold", float("nan")), ValueError, "finite threshold"),
        (lambda: BackgroundRule("none", 0.5), ValueError, "no threshold"),
    ],
)
def test_wrong_rules_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()
