"""Targets from samples, drawn labels, and the checks on what comes in."""

from pathlib import Path

import numpy as np
import pytest
from dataset_files import AVE_FILES, LLP_FILES, write_files

from avfewshot.data.load import load_dataset
from avfewshot.evaluation.targets import BackgroundRule, Predictions, Targets


def hot(rows: list[list[int]], classes: int) -> np.ndarray:
    matrix = np.zeros((len(rows), classes), dtype=bool)
    for row, labels in enumerate(rows):
        matrix[row, labels] = True
    return matrix


def targets(rows: list[list[int]], classes: int = 3, **fields) -> Targets:
    ids = tuple(f"clip{row}" for row in range(len(rows)))
    return Targets(**{"ids": ids, "classes": tuple("abcdefgh"[:classes]), "labels": hot(rows, classes)} | fields)


def test_ave_samples_have_labels_per_second(tmp_path: Path):
    dataset = load_dataset("ave", write_files(tmp_path, AVE_FILES), find_media=False)
    truth = Targets.from_samples(dataset, dataset.split("train"))
    assert truth.num_classes == truth.background == 28
    assert truth.segments.shape == (5, 10)
    assert truth.segments[1].tolist() == [28, 28, 1, 1, 1, 28, 28, 28, 28, 28]
    assert (truth.segments[2] == 28).all()
    assert truth.labels.sum(1).tolist() == [1] * 5
    assert Targets.from_samples(dataset, dataset.split("train"), num_segments=4).segments.shape == (5, 4)


def test_llp_samples_have_several_labels_and_none_per_second(tmp_path: Path):
    dataset = load_dataset("llp", write_files(tmp_path, LLP_FILES), find_media=False)
    truth = Targets.from_samples(dataset, dataset.split("train"))
    assert truth.multi_label
    assert truth.segments is None
    assert truth.lowest_labels.tolist() == [0, dataset.classes.index("Cello"), 3, 5]


def test_drawn_labels_are_labels_and_depend_on_seed_and_id_alone():
    truth = targets([[0, 2], [1], [0, 1, 2]] * 100, multi_label=True)
    drawn = truth.random_labels(7)
    assert truth.labels[np.arange(300), drawn].all()
    backwards = Targets(truth.ids[::-1], truth.classes, truth.labels[::-1], multi_label=True)
    assert (backwards.random_labels(7)[::-1] == drawn).all()
    assert (truth.random_labels(8) != drawn).any()
    assert (set(drawn[0::3]), set(drawn[2::3])) == ({0, 2}, {0, 1, 2})
    assert abs((drawn[0::3] == 0).mean() - 0.5) < 0.2
    assert targets([[0], [1], [2]], ids=("b", "a", "b")).groups().tolist() == [1, 0, 1]  # rows of one clip


@pytest.mark.parametrize(
    ("rows", "fields", "message"),
    [
        ([], {}, "no clips"),
        ([[0], []], {}, "clip1 has no label"),
        ([[0], [1, 2]], {}, "clip1 has several labels"),
        ([[0]], {"labels": np.ones((1, 2))}, r"\(1, 2\); \(1, 3\) expected"),
        ([[0]], {"segments": np.array([[4]])}, "0 to 3"),
        ([[0]], {"segments": np.array([0, 1])}, r"\(1, T\) expected"),
        ([[0]], {"classes": 1}, "two classes"),
    ],
)
def test_targets_that_do_not_fit_together_are_refused(rows, fields, message):
    with pytest.raises(ValueError, match=message):
        targets(rows, **fields)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.5, 0.5], r"\[N, K\]"),
        ([[0.5, np.nan]], "finite"),
        ([[3.0, -2.0]], "negative"),
        ([[0.3, 0.3]], "sum to 1"),
    ],
)
def test_predictions_that_are_no_distributions_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Predictions(np.array(values))


def test_half_precision_is_close_enough_to_a_distribution_and_salience_one_number_a_second():
    scores = np.full((2, 25), 1 / 25, dtype=np.float16)
    assert Predictions(scores).probabilities.dtype == np.float64
    with pytest.raises(ValueError, match="Salience"):
        Predictions(np.full((2, 3, 2), 0.5), background=BackgroundRule("none"), salience=np.zeros((2, 2)))
