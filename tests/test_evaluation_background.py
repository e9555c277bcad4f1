"""Rules that tell background from events."""

from __future__ import annotations

import numpy as np
import pytest

from avfewshot.errors import UsageError
from avfewshot.evaluation.targets import (
    BACKGROUNDS,
    BackgroundRule,
    choose_threshold,
    decide_segments,
    fit_background,
)

# One clip of four seconds, two events; the best event's probability is .6, .7, .8 and .9.
SCORES = np.array([[[0.6, 0.4], [0.3, 0.7], [0.8, 0.2], [0.9, 0.1]]])


def accuracy(threshold: float, scores: np.ndarray, truth: np.ndarray, salience: np.ndarray) -> float:
    answers = np.where(salience >= threshold, scores.argmax(-1), scores.shape[-1])
    return float((answers == truth).mean())


@pytest.mark.parametrize(
    ("scores", "truth", "salience", "expected"),
    [
        pytest.param(SCORES, [2, 2, 0, 0], None, 0.75, id="in the middle"),
        pytest.param(SCORES, [0, 1, 0, 0], None, 0.6, id="without background every event is kept"),
        pytest.param(SCORES, [2, 0, 0, 0], None, 0.65, id="a wrong event is as wrong as background: the lowest"),
        pytest.param([[[0.5, 0.5], [0.5, 0.5], [0.9, 0.1]]], [2, 0, 0], None, 0.5, id="equal scores stay together"),
        pytest.param(SCORES, [0, 1, 2, 2], [[3.0, 4.0, -1.0, 0.0]], 1.5, id="another salience"),
    ],
)
def test_thresholds_by_hand(scores, truth, salience, expected):
    assert choose_threshold(scores, [truth], salience=salience) == pytest.approx(expected)


def test_threshold_where_all_is_background_keeps_none():
    threshold = choose_threshold(SCORES, [[2, 2, 2, 2]])
    assert 0.9 < threshold < 0.9 + 1e-9
    rule = BackgroundRule("threshold", threshold)
    assert decide_segments(rule, SCORES, 2).tolist() == [[2, 2, 2, 2]]


def test_threshold_is_as_good_as_any():
    rng = np.random.default_rng(3)
    scores = rng.dirichlet(np.ones(4), size=(12, 5)).round(1)  # rounded: many ties
    truth = rng.integers(5, size=(12, 5))
    salience = scores.max(-1)
    best = max(accuracy(value, scores, truth, salience) for value in np.linspace(-0.01, 1.01, 1000))
    assert accuracy(choose_threshold(scores, truth), scores, truth, salience) == best


def test_neighbouring_floats_are_still_separated():
    low = 0.5
    high = np.nextafter(low, 1)
    scores = np.array([[[low, low], [high, 1 - high]]])
    threshold = choose_threshold(scores, [[2, 0]])
    assert decide_segments(BackgroundRule("threshold", threshold), scores, 2).tolist() == [[2, 0]]


def test_decisions_of_each_rule():
    assert decide_segments(BackgroundRule("none"), SCORES, 2).tolist() == [[0, 1, 0, 0]]
    assert decide_segments(BackgroundRule("threshold", 0.75), SCORES, 2).tolist() == [[2, 2, 0, 0]]
    with_background = np.array([[[0.2, 0.3, 0.5], [0.1, 0.5, 0.4]]])
    assert decide_segments(BackgroundRule("prompt"), with_background, 2).tolist() == [[2, 1]]


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_every_rule_can_be_fitted_and_decides_within_the_classes(name):
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(3 + (name == "prompt")), size=(4, 6))
    truth = rng.integers(4, size=(4, 6))
    rule = fit_background(name, scores, truth)
    assert (rule.threshold is not None) == (name == "threshold")
    answers = decide_segments(rule, scores, 3)
    assert answers.shape == truth.shape
    assert answers.min() >= 0
    assert answers.max() <= (2 if name == "none" else 3)


def test_the_background_column_must_be_there_or_not():
    with pytest.raises(ValueError, match=r"'prompt' takes \[N, T, 3\]"):
        decide_segments(BackgroundRule("prompt"), SCORES, 2)
    with pytest.raises(ValueError, match=r"'none' takes \[N, T, 3\]"):
        decide_segments(BackgroundRule("none"), SCORES, 3)


def test_wrong_rules_are_refused():
    with pytest.raises(UsageError, match="Rules: threshold, prompt, none"):
        BackgroundRule("silence")
    with pytest.raises(ValueError, match="finite threshold"):
        BackgroundRule("threshold")
    with pytest.raises(ValueError, match="finite threshold"):
        BackgroundRule("threshold", float("nan"))
    with pytest.raises(ValueError, match="no threshold"):
        BackgroundRule("none", 0.5)
    with pytest.raises(ValueError, match="belong together"):
        choose_threshold(SCORES, [[0, 0]])
    with pytest.raises(ValueError, match="finite"):
        choose_threshold(SCORES * np.nan, [[0, 0, 0, 0]])
