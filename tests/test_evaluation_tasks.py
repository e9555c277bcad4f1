"""Each task from predictions to its figures, by hand and against scikit-learn."""

import json

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, f1_score
from test_evaluation_targets import targets

from avfewshot.errors import UsageError
from avfewshot.evaluation.evaluate import evaluate
from avfewshot.evaluation.results import Estimate, TaskResult
from avfewshot.evaluation.targets import BackgroundRule, Predictions, fit_background
from avfewshot.evaluation.tasks import METRICS, TASKS


def distributions(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1])


def figures(result: TaskResult) -> dict[str, float]:
    return {name: estimate.value for name, estimate in result.metrics.items()}


def test_single_label_clips_by_hand():
    scores = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.1, 0.1, 0.8]])
    result = evaluate("ave_cls", targets([[0], [1], [2]]), Predictions(scores), replicates=0)
    expected = {"top1": 2 / 3, "map": 1.0, "macro_f1": (2 / 3 + 0 + 1) / 3}  # no top-5 of three classes
    assert figures(result) == pytest.approx(expected)
    assert (result.headline, result.score, result.num_segments) == ("top1", figures(result)["top1"], None)
    assert result.confusion == ((1, 0, 0), (1, 0, 0), (0, 0, 1))
    assert result.calibration.error == pytest.approx((0.4 + 0.5 + 0.2) / 3)
    assert result.metrics["top1"].interval is None


def test_single_label_clips_against_scikit_learn():
    rng = np.random.default_rng(0)
    truth, scores = rng.integers(7, size=50), distributions(rng, 50, 7)
    found = figures(evaluate("folder", targets([[k] for k in truth], 7), Predictions(scores)))
    assert found["top1"] == pytest.approx(accuracy_score(truth, scores.argmax(1)))
    assert found["macro_f1"] == pytest.approx(f1_score(truth, scores.argmax(1), average="macro"))
    assert found["map"] == pytest.approx(average_precision_score(np.eye(7)[truth], scores, average="macro"))
    assert found["top1"] < found["top5"] < 1


def test_llp_by_hand():
    # Lowest labels 0, 1, 0; answers 1, 1, 2.
    truth = targets([[0, 1], [1], [0, 2]], multi_label=True)
    scores = np.array([[0.3, 0.6, 0.1], [0.2, 0.7, 0.1], [0.1, 0.0, 0.9]])
    result = evaluate("llp_cls", truth, Predictions(scores), replicates=0, seed=3)
    found = figures(result)
    assert found["published_top1"] == pytest.approx(1 / 3)
    assert found["hit_at_1"] == 1.0
    assert found["random_label_top1_expected"] == pytest.approx((1 / 2 + 1 + 1 / 2) / 3)
    assert found["random_label_top1"] == (scores.argmax(1) == truth.random_labels(3)).mean()
    assert found["map"] == pytest.approx((average_precision_score([1, 0, 1], scores[:, 0]) + 1 + 1) / 3)
    assert result.headline == "hit_at_1"
    assert np.trace(result.confusion) == 3
    assert "macro_f1_sets" not in found
    assert [row.support for row in result.classes] == [2, 2, 1]
    sets = evaluate("llp_cls", truth, Predictions(scores, label_threshold=0.3), replicates=0)
    assert figures(sets)["macro_f1_sets"] == pytest.approx(f1_score(truth.labels, scores >= 0.3, average="macro"))
    assert sets.label_threshold == 0.3


def test_vggsound_with_several_labels_has_hits_but_no_published_top1():
    rng = np.random.default_rng(0)
    rows = [[0], [1, 2], [3], [4, 5]]
    result = evaluate("vggsound_cls", targets(rows, 6, multi_label=True), Predictions(distributions(rng, 4, 6)))
    assert list(result.metrics) == ["hit_at_1", "hit_at_5", "map", "macro_f1"]
    assert result.headline == "hit_at_1"
    assert not result.ceilings


SEGMENTS = np.array([[0, 0, 3, 3], [1, 1, 1, 3]])  # 3 is background
PER_SECOND = np.array(
    [
        [[0.8, 0.1, 0.1], [0.4, 0.5, 0.1], [0.4, 0.3, 0.3], [0.9, 0.1, 0.0]],
        [[0.1, 0.8, 0.1], [0.1, 0.8, 0.1], [0.4, 0.3, 0.3], [0.4, 0.3, 0.3]],
    ]
)


def seconds(rule: BackgroundRule, scores=PER_SECOND) -> TaskResult:
    return evaluate("ave", targets([[0], [1]], segments=SEGMENTS), Predictions(scores, background=rule), replicates=0)


def test_ave_with_a_threshold_by_hand():
    result = seconds(BackgroundRule("threshold", 0.45))  # answers 0 1 b 0 / 1 1 b b
    macro_f1 = f1_score(SEGMENTS.ravel(), [0, 1, 3, 0, 1, 1, 3, 3], labels=[0, 1, 3], average="macro")
    expected = {"segment_accuracy": 5 / 8, "event_accuracy": 3 / 5, "event_top1": 3 / 5, "macro_f1": macro_f1}
    assert {name: figures(result)[name] for name in expected} == pytest.approx(expected)
    last = result.classes[-1]
    assert (last.name, last.support, last.answered, last.average_precision) == ("Background", 3, 3, None)
    assert result.confusion[3] == (1, 0, 0, 2)
    assert result.num_segments == 8
    assert result.calibration.answers == 5  # the three called background have no probability
    # Events are told apart even where they are called background.
    found = figures(seconds(BackgroundRule("threshold", 0.95)))
    expected = {"segment_accuracy": 3 / 8, "event_accuracy": 0, "event_top1": 3 / 5}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_ave_with_a_background_text_has_its_average_precision():
    scores = np.concatenate([PER_SECOND * 0.5, np.full((2, 4, 1), 0.5)], -1)
    result = seconds(BackgroundRule("prompt"), scores)
    assert figures(result)["segment_accuracy"] == pytest.approx(3 / 8)
    assert result.classes[-1].average_precision == pytest.approx(3 / 8)
    assert result.calibration.answers == 8


def test_ave_never_answering_background_stays_below_its_ceiling():
    result = seconds(BackgroundRule("none"))
    (ceiling,) = result.ceilings
    assert ceiling.classes == ("Background",)
    assert ceiling.values == {"segment_accuracy": pytest.approx(5 / 8), "event_accuracy": 1.0}
    assert result.score <= ceiling.values["segment_accuracy"]


def test_a_threshold_fitted_on_validation_is_used_on_test():
    rng = np.random.default_rng(2)
    truth = targets([[0]] * 30, segments=rng.integers(4, size=(30, 5)))
    scores = distributions(rng, 30, 5, 3)
    salience = (truth.segments < 3) + rng.normal(0, 0.1, size=(30, 5))
    rule = fit_background("threshold", scores[:15], truth.segments[:15], salience=salience[:15])
    result = evaluate("ave", truth, Predictions(scores, background=rule, salience=salience), replicates=0)
    assert result.classes[-1].recall > 0.95
    assert result.background == rule


@pytest.mark.parametrize("name", TASKS)
def test_every_task_gives_described_figures_with_intervals_and_valid_json(name):
    rng = np.random.default_rng(0)
    several, per_second = name == "llp_cls", TASKS[name].per_second
    labels = [[k % 6, (k + 1) % 6] if several else [k % 6] for k in range(24)]
    truth = targets(labels, 6, multi_label=several, segments=rng.integers(7, size=(24, 10)) if per_second else None)
    scores = distributions(rng, *((24, 10, 6) if per_second else (24, 6)))
    background = BackgroundRule("threshold", 0.4) if per_second else None
    result = evaluate(name, truth, Predictions(scores, background), replicates=200)
    assert set(result.metrics) <= set(METRICS)
    assert list(result.metrics) == [metric for metric in METRICS if metric in result.metrics]
    assert result.headline in result.metrics
    for estimate in result.metrics.values():
        assert 0 <= estimate.low <= estimate.high <= 1
        assert estimate.low - 0.1 <= estimate.value <= estimate.high + 0.1
        assert estimate.n == 24
    for reference in (*result.baselines, *result.ceilings):
        assert set(reference.values) <= set(result.metrics)
    text = result.model_dump_json()
    assert json.loads(text)["version"] == 1
    assert "NaN" not in text
    assert TaskResult.model_validate_json(text) == result


def test_results_of_a_later_release_of_the_version_can_be_read_and_other_versions_are_refused():
    result = evaluate("ave_cls", targets([[0], [1], [2]]), Predictions(np.eye(3)), replicates=10)
    record = json.loads(result.model_dump_json())
    for part in (record, record["metrics"]["top1"], record["classes"][0]):
        part["added"] = 1
    assert TaskResult.model_validate(record) == result
    with pytest.raises(ValueError, match="version"):
        TaskResult.model_validate(record | {"version": 2})
    del record["classes"][0]["name"]
    with pytest.raises(ValueError, match=r"classes\.0\.name"):
        TaskResult.model_validate(record)
    for numbers, odd in (((float("nan"),), "nan"), ((0.5, 0.4, float("inf")), "inf")):
        with pytest.raises(ValueError, match=odd):
            Estimate(*numbers)


def test_perfect_answers_on_few_clips_have_an_interval_with_a_width():
    truth = targets([[k % 3] for k in range(6)])
    result = evaluate("ave_cls", truth, Predictions(np.eye(3)[truth.lowest_labels]), replicates=50)
    for name in ("top1", "map", "macro_f1"):
        found = result.metrics[name]
        assert (found.value, found.high, found.interval) == (1.0, 1.0, "wilson")
        assert found.low == pytest.approx(6 / (6 + 1.959964**2))


def test_figures_do_not_depend_on_the_order_of_the_clips():
    rng = np.random.default_rng(5)
    rows, scores = [[k, (k + 2) % 6] for k in rng.integers(6, size=40)], distributions(rng, 40, 6)
    order = rng.permutation(40)
    straight = targets(rows, 6, multi_label=True)
    shuffled = targets([rows[i] for i in order], 6, multi_label=True, ids=tuple(straight.ids[i] for i in order))
    first = evaluate("llp_cls", straight, Predictions(scores), replicates=50)
    second = evaluate("llp_cls", shuffled, Predictions(scores[order]), replicates=50)
    for name, estimate in first.metrics.items():
        assert second.metrics[name].value == pytest.approx(estimate.value)
        assert second.metrics[name].low == pytest.approx(estimate.low)


@pytest.mark.parametrize(
    ("task", "segments", "predictions", "error", "message"),
    [
        ("avs", None, (np.eye(3)[:2],), UsageError, r"no task 'avs'.*ave, ave_cls, llp_cls, vggsound_cls, folder"),
        ("ave_cls", None, (np.eye(3),), ValueError, r"\(3, 3\); ave_cls needs \(2, 3\)"),
        ("ave", SEGMENTS, (PER_SECOND,), ValueError, "background rule"),
        ("ave", None, (PER_SECOND, BackgroundRule("none")), ValueError, "Labels per second"),
        ("ave", SEGMENTS, (PER_SECOND[:, :2], BackgroundRule("none")), ValueError, "needs"),
    ],
)
def test_what_does_not_belong_together_is_refused(task, segments, predictions, error, message):
    with pytest.raises(error, match=message):
        evaluate(task, targets([[0], [1]], segments=segments), Predictions(*predictions))
