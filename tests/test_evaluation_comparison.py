"""Systems side by side, paired differences, and figures over seeds."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import ttest_1samp
from test_evaluation_targets import targets

from avfewshot.errors import DataError
from avfewshot.evaluation.comparison import Comparison
from avfewshot.evaluation.evaluate import evaluate, evaluate_systems
from avfewshot.evaluation.seeds import average_comparisons, average_results, over_seeds
from avfewshot.evaluation.targets import Predictions, Targets


def answering(truth: Targets, right: np.ndarray) -> Predictions:
    """A system that is right on some clips and names the next class on the others."""
    answers = np.where(right, truth.lowest_labels, (truth.lowest_labels + 1) % truth.num_classes)
    return Predictions(np.eye(truth.num_classes)[answers])


@pytest.fixture
def truth() -> Targets:
    return targets([[k % 3] for k in range(200)])


def test_a_row_a_system_and_a_column_a_metric(truth):
    clips = np.arange(200)
    systems = {"CLIP": answering(truth, clips < 80), "fusion": answering(truth, clips < 140)}
    results, table = evaluate_systems("ave_cls", truth, systems, replicates=100)
    assert table.systems == ("CLIP", "fusion")
    assert table.metrics == ("top1", "map", "macro_f1")
    assert table.cells["fusion"]["top1"].value == 0.7
    assert table.cells["fusion"]["top1"] == results["fusion"].metrics["top1"]
    assert results["CLIP"] == evaluate("ave_cls", truth, systems["CLIP"], system="CLIP", replicates=100)
    assert [(found.system, found.reference) for found in table.differences] == [("fusion", "CLIP")] * 3


def test_a_difference_is_paired(truth):
    # Both are right on the same clips but for ten: alone each interval is wide, that of the difference is narrow.
    clips = np.arange(200)
    first, second = answering(truth, clips < 100), answering(truth, clips < 110)
    results, table = evaluate_systems("ave_cls", truth, {"a": first, "b": second}, replicates=1000)
    found = table.difference("b", "a", "top1").estimate
    assert found.value == pytest.approx(0.05)
    reach = 1.96 * np.sqrt(0.05 * 0.95 / 200)
    assert found.low == pytest.approx(0.05 - reach, abs=0.01)
    assert found.high == pytest.approx(0.05 + reach, abs=0.01)
    assert table.difference("b", "a").clear
    alone = results["a"].metrics["top1"]
    assert alone.high - alone.low > 1.8 * (found.high - found.low)


def test_systems_right_on_different_clips_do_not_differ_clearly(truth):
    clips = np.arange(200)
    systems = {"a": answering(truth, clips < 100), "b": answering(truth, clips >= 90)}
    _, table = evaluate_systems("ave_cls", truth, systems, replicates=500)
    assert table.difference("b", "a", "top1").estimate.value == pytest.approx(0.05)
    assert not table.difference("b", "a", "top1").clear


def test_a_difference_can_be_asked_for_from_either_side(truth):
    clips = np.arange(200)
    systems = {"a": answering(truth, clips < 100), "b": answering(truth, clips < 150)}
    _, table = evaluate_systems("ave_cls", truth, systems, replicates=50)
    there, back = table.difference("b", "a").estimate, table.difference("a", "b").estimate
    assert (back.value, back.low, back.high) == (-there.value, -there.high, -there.low)
    assert table.difference("a", "b").system == "a"
    with pytest.raises(KeyError, match="systems: a, b"):
        table.difference("a", "c")


def test_the_same_system_twice_differs_by_exactly_nothing(truth):
    same = answering(truth, np.arange(200) < 77)
    _, table = evaluate_systems("ave_cls", truth, {"a": same, "b": same}, replicates=50)
    for found in table.differences:
        assert (found.estimate.value, found.estimate.low, found.estimate.high) == (0, 0, 0)
        assert not found.clear


def test_columns_are_the_figures_that_all_systems_have():
    truth = targets([[0, 1], [1], [2]], multi_label=True)
    scores = np.eye(3)
    systems = {"plain": Predictions(scores), "sets": Predictions(scores, label_threshold=0.5)}
    results, table = evaluate_systems("llp_cls", truth, systems, replicates=10)
    assert "macro_f1_sets" in results["sets"].metrics
    assert "macro_f1_sets" not in table.metrics


def test_a_comparison_survives_json(truth):
    systems = {"a": answering(truth, np.arange(200) < 9), "b": answering(truth, np.arange(200) < 150)}
    _, table = evaluate_systems("ave_cls", truth, systems, replicates=20)
    record = json.loads(json.dumps(table.to_dict(), allow_nan=False))
    assert Comparison.from_dict(record) == table
    assert list(record) == [
        "version",
        "task",
        "headline",
        "num_clips",
        "systems",
        "metrics",
        "cells",
        "differences",
        "replicates",
        "seed",
    ]
    assert list(record["differences"][0]) == ["system", "reference", "metric", "estimate"]
    with pytest.raises(DataError, match="version 0"):
        Comparison.from_dict(record | {"version": 0})
    with pytest.raises(DataError, match="Not a comparison"):
        Comparison.from_dict(record | {"cells": 3})


def test_no_systems_no_table(truth):
    with pytest.raises(ValueError, match="no systems"):
        evaluate_systems("ave_cls", truth, {})


def test_mean_and_t_interval_over_seeds():
    # sd = 0.02, t(0.975, 2) = 4.30265: 0.72 -+ 4.30265 * 0.02 / sqrt(3).
    found = over_seeds([0.70, 0.72, 0.74])
    assert found.value == pytest.approx(0.72)
    assert found.low == pytest.approx(0.72 - 0.049683, abs=1e-6)
    assert found.high == pytest.approx(0.72 + 0.049683, abs=1e-6)
    assert (found.n, found.interval, found.values) == (3, "seeds", (0.70, 0.72, 0.74))
    values = [0.3, 0.5, 0.45, 0.2, 0.6]
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (over_seeds(values).low, over_seeds(values).high) == pytest.approx(tuple(expected))


def test_one_seed_has_no_interval_and_missing_figures_have_no_mean():
    assert over_seeds([0.5]).interval is None
    assert over_seeds([0.5]).value == 0.5
    assert over_seeds([0.5, None]).value is None
    with pytest.raises(ValueError, match="no runs"):
        over_seeds([])


def runs(truth: Targets, rights: list[int]) -> list[tuple[dict, Comparison]]:
    """Runs in which the zero-shot system stays as it is and the trained one is right on so many clips."""
    clips = np.arange(200)
    zero_shot = answering(truth, clips < 100)
    return [
        evaluate_systems(
            "ave_cls", truth, {"zero-shot": zero_shot, "trained": answering(truth, clips < right)}, replicates=50
        )
        for right in rights
    ]


def test_results_are_averaged_over_seeds(truth):
    found = average_results([results["trained"] for results, _ in runs(truth, [120, 130, 140])])
    assert found["top1"].value == pytest.approx(0.65)
    assert found["top1"].interval == "seeds"
    assert list(found) == ["top1", "map", "macro_f1"]


def test_tables_are_averaged_over_seeds_and_what_is_fixed_keeps_its_bootstrap_interval(truth):
    tables = [table for _, table in runs(truth, [120, 130, 140])]
    found = average_comparisons(tables)
    assert found.cells["zero-shot"] == tables[0].cells["zero-shot"]
    assert found.cells["zero-shot"]["top1"].interval == "bootstrap"
    assert found.cells["trained"]["top1"] == over_seeds([0.6, 0.65, 0.7])
    difference = found.difference("trained", "zero-shot", "top1")
    assert difference.estimate.values == pytest.approx((0.1, 0.15, 0.2))
    assert difference.estimate.value == pytest.approx(0.15)
    assert difference.clear
    assert average_comparisons(tables[:1]) == tables[0]
    fixed = average_comparisons([tables[0], tables[0]])
    assert fixed.difference("trained", "zero-shot") == tables[0].difference("trained", "zero-shot")


def test_runs_that_do_not_belong_together_are_refused(truth):
    (results, table), (_, _) = runs(truth, [120, 130])
    half = targets([[k % 3] for k in range(100)])
    other, other_table = evaluate_systems(
        "ave_cls",
        half,
        {"zero-shot": answering(half, np.ones(100, bool)), "trained": answering(half, np.ones(100, bool))},
    )
    with pytest.raises(ValueError, match="do not belong together"):
        average_results([results["trained"], other["trained"]])
    with pytest.raises(ValueError, match="do not belong together"):
        average_comparisons([table, other_table])
    with pytest.raises(ValueError, match="no runs"):
        average_comparisons([])
