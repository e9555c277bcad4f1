"""Measures against hand-computed examples and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import f1_score, label_ranking_average_precision_score, top_k_accuracy_score
from test_evaluation_targets import hot

from avfewshot.evaluation.measures import (
    average_precisions,
    calibration,
    choose_label_threshold,
    class_rows,
    hit_at_k,
    multi_label_confusion,
    one_hot,
)
from avfewshot.evaluation.results import ClassRow


def test_hit_at_k_by_hand_and_by_scikit_learn():
    scores = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])
    labels = hot([[1, 2], [0]], 3)
    hits = [hit_at_k(scores, labels, k).tolist() for k in (1, 2, 3)]
    assert hits == [[False, False], [True, False], [True, True]]
    even = np.full((1, 4), 0.25)  # ties go to the lowest index
    assert [hit_at_k(even, hot([[1]], 4), k).tolist() for k in (1, 2)] == [[False], [True]]
    rng = np.random.default_rng(0)
    scores, truth = rng.random((60, 8)), rng.integers(8, size=60)
    expected = top_k_accuracy_score(truth, scores, k=3, labels=np.arange(8))
    assert hit_at_k(scores, one_hot(truth, 8), 3).mean() == pytest.approx(expected)


def test_average_precision_by_hand():
    # Ranking of class 0: right, wrong, right: (1/1 + 2/3) / 2.
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3]])
    found = average_precisions(scores, hot([[0], [], [0]], 2))
    assert found[0] == pytest.approx((1 + 2 / 3) / 2)
    assert np.isnan(found[1])
    ranking = np.array([[0.9, 0.4, 0.3, 0.8]])
    labels = hot([[0, 2]], 4)
    assert average_precisions(ranking.T, labels.T)[0] == label_ranking_average_precision_score(labels, ranking)


def test_class_rows_by_hand():
    truth, answers = np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1])
    scores = np.array([[0.8, 0.2, 0], [0.7, 0.3, 0], [0.4, 0.6, 0], [0.1, 0.9, 0]])
    first, second, third = class_rows(("a", "b", "c"), one_hot(answers, 3), one_hot(truth, 3), scores)
    assert first == ClassRow("a", 3, 2, 1.0, pytest.approx(2 / 3), pytest.approx(0.8), 1.0)
    assert (second.precision, second.recall) == (0.5, 1.0)
    assert third == ClassRow("c", 0, 0, None, None, None, None)
    # A class that is answered but absent has no F1, one that is present but unanswered has zero.
    rows = class_rows(("a", "b"), one_hot(np.array([1, 1]), 2), one_hot(np.array([0, 0]), 2), np.zeros((2, 0)))
    assert (rows[0].precision, rows[0].recall, rows[0].f1) == (None, 0.0, 0.0)
    assert (rows[1].precision, rows[1].recall, rows[1].f1) == (0.0, None, None)
    # The last class without a score has no average precision.
    said, scores = one_hot(np.array([0, 2]), 3), np.array([[0.9, 0.1], [0.5, 0.5]])
    assert [row.average_precision for row in class_rows(("a", "b", "Background"), said, said, scores)] == [
        1,
        None,
        None,
    ]


def test_multi_label_confusion_counts_each_clip_once():
    # A hit; a wrong answer for two labels; a wrong answer for one.
    matrix = multi_label_confusion(hot([[0, 1], [0, 1], [2]], 3), np.array([1, 2, 0]))
    assert matrix.tolist() == [[0, 0, 0.5], [0, 1, 0.5], [1, 0, 0]]


def test_calibration_by_hand_and_of_trustworthy_probabilities_it_is_near_zero():
    # Two bins: (0, .5] holds .4 (wrong) and .5 (right), (.5, 1] holds .9 (right) and 1.0 (wrong).
    found = calibration(np.array([0.4, 0.5, 0.9, 1.0]), np.array([False, True, True, False]), bins=2)
    assert [(part.count, part.accuracy) for part in found.bins] == [(2, 0.5), (2, 0.5)]
    assert [part.confidence for part in found.bins] == pytest.approx([0.45, 0.95])
    assert found.error == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
    assert found.answers == 4
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 20000)
    found = calibration(confidence, rng.random(20000) < confidence)
    assert found.error < 0.02
    assert min(part.low for part in found.bins) > 0.4  # empty bins are left out
    assert calibration(np.array([1.0, 1.0]), np.array([True, True])).error == 0
    assert calibration(np.array([]), np.array([], dtype=bool)).error is None


def test_label_threshold_is_as_good_as_any():
    assert choose_label_threshold(np.array([[0.6, 0.4], [0.9, 0.1]]), hot([[0, 1], [0]], 2)) == 0.4
    rng = np.random.default_rng(1)
    scores = rng.dirichlet(np.ones(5), size=40).round(2)
    labels = rng.random((40, 5)) < scores * 2
    labels[:, 4] = False  # a class that does not occur

    def figure(threshold: float) -> float:
        return f1_score(labels, scores >= threshold, labels=[0, 1, 2, 3], average="macro", zero_division=0)

    chosen = choose_label_threshold(scores, labels)
    assert figure(chosen) == pytest.approx(max(figure(value) for value in np.unique(scores)))
    assert chosen in scores
