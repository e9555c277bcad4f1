"""Systems side by side, paired differences, and figures over seeds."""

import json

import numpy as np
import pytest
from test_evaluation_targets import targets

from avfewshot.evaluation.evaluate import average_comparisons, evaluate, evaluate_systems
from avfewshot.evaluation.results import Comparison
from avfewshot.evaluation.targets import Predictions, Targets

CLIPS = np.arange(200)


def answering(truth: Targets, right: np.ndarray) -> Predictions:
    """A system that is right on some clips and names the next class on the others."""
    answers = np.where(right, truth.lowest_labels, (truth.lowest_labels + 1) % truth.num_classes)
    return Predictions(np.eye(truth.num_classes)[answers])


def compare(truth: Targets, replicates: int, **right: np.ndarray) -> tuple[dict, Comparison]:
    systems = {name: answering(truth, clips) for name, clips in right.items()}
    return evaluate_systems("ave_cls", truth, systems, replicates=replicates)


@pytest.fixture
def truth() -> Targets:
    return targets([[k % 3] for k in range(200)])


def test_a_row_a_system_and_a_column_a_metric(truth):
    results, table = compare(truth, 100, CLIP=CLIPS < 80, fusion=CLIPS < 140)
    assert table.systems == ("CLIP", "fusion")
    assert table.metrics == ("top1", "map", "macro_f1")
    assert table.cells["fusion"]["top1"].value == 0.7
    assert table.cells["fusion"]["top1"] == results["fusion"].metrics["top1"]
    alone = evaluate("ave_cls", truth, answering(truth, CLIPS < 80), system="CLIP", replicates=100)
    assert results["CLIP"] == alone
    assert [(found.system, found.reference) for found in table.differences] == [("fusion", "CLIP")] * 3


def test_a_difference_is_paired(truth):
    # Both are right on the same clips but for ten: alone each interval is wide, that of the difference is narrow.
    results, table = compare(truth, 1000, a=CLIPS < 100, b=CLIPS < 110, elsewhere=CLIPS >= 90)
    assert table.difference("elsewhere", "a").estimate.value == pytest.approx(0.05)
    assert not table.difference("elsewhere", "a").clear  # right on other clips
    found = table.difference("b", "a", "top1").estimate
    reach = 1.96 * np.sqrt(0.05 * 0.95 / 200)
    assert found.value == pytest.approx(0.05)
    assert (found.low, found.high) == pytest.approx((0.05 - reach, 0.05 + reach), abs=0.01)
    assert table.difference("b", "a").clear
    alone = results["a"].metrics["top1"]
    assert alone.high - alone.low > 1.8 * (found.high - found.low)
    # It can be asked for from either side.
    there, back = table.difference("b", "a").estimate, table.difference("a", "b").estimate
    assert (back.value, back.low, back.high) == (-there.value, -there.high, -there.low)
    assert table.difference("a", "b").system == "a"
    with pytest.raises(KeyError, match="systems: a, b"):
        table.difference("a", "c")
    _, table = compare(truth, 50, a=CLIPS < 77, b=CLIPS < 77)
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
    _, table = compare(truth, 20, a=CLIPS < 9, b=CLIPS < 150)
    text = table.model_dump_json()
    assert Comparison.model_validate_json(text) == table
    for change in ({"version": 0}, {"cells": 3}):
        with pytest.raises(ValueError, match="".join(change)):
            Comparison.model_validate(json.loads(text) | change)


def runs(truth: Targets, rights: list[int]) -> list[Comparison]:
    """Runs in which the zero-shot system stays as it is and the trained one is right on so many clips."""
    return [compare(truth, 50, **{"zero-shot": CLIPS < 100, "trained": right > CLIPS})[1] for right in rights]


def test_tables_are_averaged_over_seeds_and_what_is_fixed_keeps_its_bootstrap_interval(truth):
    tables = runs(truth, [120, 130, 140])
    found = average_comparisons(tables)
    assert found.cells["zero-shot"] == tables[0].cells["zero-shot"]
    assert found.cells["zero-shot"]["top1"].interval == "bootstrap"
    trained = found.cells["trained"]["top1"]
    assert (trained.value, trained.n, trained.interval) == (pytest.approx(0.65), 3, "seeds")
    assert trained.values == (0.6, 0.65, 0.7)
    assert 0.55 < trained.low < 0.6 < 0.7 < trained.high < 0.75
    difference = found.difference("trained", "zero-shot", "top1")
    assert difference.estimate.values == pytest.approx((0.1, 0.15, 0.2))
    assert difference.estimate.value == pytest.approx(0.15)
    assert difference.clear
    assert average_comparisons(tables[:1]) == tables[0]
    fixed = average_comparisons([tables[0], tables[0]])
    assert fixed.difference("trained", "zero-shot") == tables[0].difference("trained", "zero-shot")


def test_runs_that_agree_still_have_the_interval_of_their_clips(truth):
    # The same accuracy in every run, by different clips, so that the system is not a fixed one.
    tables = [compare(truth, 300, a=CLIPS < 100, b=(CLIPS + shift) % 200 < 180)[1] for shift in (0, 3, 5)]
    found = average_comparisons(tables)
    cell = found.cells["b"]["top1"]
    assert cell.values == (0.9, 0.9, 0.9)
    reach = 1.96 * np.sqrt(0.9 * 0.1 / 200)
    assert (cell.value - cell.low, cell.high - cell.value) == pytest.approx((reach, reach), rel=0.3)
    difference = found.difference("b", "a", "top1").estimate
    assert difference.low < 0.4 < difference.high


def test_intervals_over_runs_stay_within_what_is_possible_and_widen_as_runs_disagree(truth):
    def reach(rights):
        cell = average_comparisons(runs(truth, rights)).cells["trained"]["top1"]
        assert 0 <= cell.low <= cell.value <= cell.high <= 1
        return cell.high - cell.low

    assert reach([130, 150, 170]) > 1.5 * reach([149, 150, 151])
    assert 0 < reach([200, 199, 200]) < 0.1
    perfect = average_comparisons(runs(truth, [200, 200])).cells["trained"]["top1"]
    assert perfect.low < 1.0 == perfect.high


def test_runs_that_do_not_belong_together_are_refused(truth):
    half = targets([[k % 3] for k in range(100)])
    _, other = compare(half, 50, **{"zero-shot": CLIPS[:100] >= 0, "trained": CLIPS[:100] >= 0})
    with pytest.raises(ValueError, match="do not belong together"):
        average_comparisons([*runs(truth, [120]), other])
    with pytest.raises(ValueError, match="no runs"):
        average_comparisons([])
