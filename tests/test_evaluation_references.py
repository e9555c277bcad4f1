"""Trivial answers and ceilings: by hand, and the known facts on the official annotation files."""

import numpy as np
import pytest
from dataset_files import official
from test_evaluation_targets import targets

from avfewshot.data.load import load_dataset
from avfewshot.evaluation.evaluate import evaluate
from avfewshot.evaluation.references import baselines, ceilings
from avfewshot.evaluation.results import Reference
from avfewshot.evaluation.targets import Predictions, Targets
from avfewshot.evaluation.tasks import TASKS, find_task


def by_key(references: tuple[Reference, ...]) -> dict[str, Reference]:
    return {reference.key: reference for reference in references}


def has(reference: Reference, **values: float) -> bool:
    return {name: reference.values[name] for name in values} == pytest.approx(values)


def test_trivial_answers_for_several_labels_by_hand():
    truth = targets([[0, 1], [1], [1, 2], [1, 2]], multi_label=True)
    found = by_key(baselines(TASKS["llp_cls"], truth))
    first, majority = found["first_class"], found["majority_class"]
    assert (first.title, majority.classes) == ("always a", ("b",))
    assert has(first, published_top1=0.25)
    drawn = (0.5 * 3 + 1) / 4
    assert has(majority, published_top1=0.75, hit_at_1=1, random_label_top1_expected=drawn, macro_f1=1 / 3)
    assert has(found["chance"], hit_at_1=7 / 4 / 3, published_top1=1 / 3)


def test_trivial_answers_for_one_label_are_those_of_a_system_that_gives_them():
    truth = targets([[0], [2], [2]])
    found = by_key(baselines(TASKS["ave_cls"], truth))
    assert found["majority_class"].values["top1"] == pytest.approx(2 / 3)
    result = evaluate("ave_cls", truth, Predictions(np.tile([0.1, 0.1, 0.8], (3, 1))), replicates=0)
    for name, value in found["majority_class"].values.items():
        assert result.metrics[name].value == pytest.approx(value)
    assert found["chance"].values == {"top1": pytest.approx(1 / 3)}


def test_trivial_answers_for_seconds_by_hand():
    truth = targets([[0], [1]], segments=np.array([[0, 3, 3, 3], [1, 1, 3, 3]]))
    found = by_key(baselines(TASKS["ave"], truth))
    assert has(found["background"], segment_accuracy=5 / 8, event_accuracy=0)
    assert found["majority_class"].classes == ("b",)
    assert has(found["majority_class"], event_accuracy=2 / 3)
    assert has(found["chance"], segment_accuracy=1 / 4)


def test_ceilings_for_several_labels_by_hand():
    truth = targets([[0], [0, 1], [0, 2], [1]], multi_label=True)
    usual, sets = ceilings(TASKS["llp_cls"], truth)
    assert usual.classes == ("a",)  # the lowest label of most clips
    assert has(usual, published_top1=0.25, hit_at_1=0.75, random_label_top1_expected=(0 + 0.5 + 0.5 + 1) / 4)
    assert usual.title == "never answering a"
    assert has(sets, random_label_top1_expected=(1 + 0.5 + 0.5 + 1) / 4)


def test_ceilings_for_one_label_are_given_for_clips_under_several_classes_alone():
    truth = targets([[0], [0], [1], [2]])
    assert ceilings(TASKS["ave_cls"], truth) == ()
    (found,) = ceilings(TASKS["ave_cls"], targets([[0], [1], [2]], ids=("x", "y", "x")))
    assert (found.key, found.values) == ("repeated_clips", {"top1": pytest.approx(2 / 3)})
    assert ceilings(TASKS["ave_cls"], targets([[0], [1], [0]], ids=("x", "y", "x"))) == ()
    seconds = targets([[0], [1]], ids=("x", "x"), segments=np.array([[0, 0, 3], [1, 3, 3]]))
    assert ceilings(TASKS["ave"], seconds)[-1].values == {"segment_accuracy": pytest.approx(4 / 6)}
    never = targets([[0], [1]], segments=np.array([[3, 3], [3, 3]]))
    found = by_key(ceilings(TASKS["ave"], never))
    assert found["without"].values == {"segment_accuracy": 0.0}  # no seconds with events to speak of


def test_llp_always_answering_speech_scores_52_never_answering_it_at_most_48_and_knowing_all_the_ceilings():
    dataset = load_dataset("llp", official("LLP"), find_media=False)
    llp = Targets.from_samples(dataset, dataset.split("test"))
    assert (llp.num_clips, llp.classes[0], (llp.lowest_labels == 0).sum()) == (1200, "Speech", 625)
    always = by_key(baselines(find_task("llp_cls"), llp))["first_class"]
    never = by_key(ceilings(find_task("llp_cls"), llp))["without"]
    assert always.classes == never.classes == ("Speech",)
    assert [round(100 * one.values["published_top1"], 1) for one in (always, never)] == [52.1, 47.9]
    assert never.values["hit_at_1"] > 0.9  # most clips with speech hold something else as well
    scores = np.full((1200, 25), 0.01)
    scores[:, 0] = 0.76
    result = evaluate("llp_cls", llp, Predictions(scores), replicates=50)
    published = result.metrics["published_top1"]
    assert published.value == 625 / 1200
    assert 0.47 < published.low < published.value < published.high < 0.57
    assert result.metrics["map"].value == pytest.approx(llp.labels.mean(0).mean())
    # One that knows all labels prefers the lowest: all right as published, and as good as can be for a drawn label.
    scores = llp.labels * np.linspace(2, 1, 25)
    scores /= scores.sum(1, keepdims=True)
    result = evaluate("llp_cls", llp, Predictions(scores), replicates=0)
    sets = by_key(result.ceilings)["label_sets"]
    assert result.metrics["published_top1"].value == result.metrics["hit_at_1"].value == 1
    found = result.metrics["random_label_top1_expected"].value
    assert found == pytest.approx(sets.values["random_label_top1_expected"])
    assert result.metrics["random_label_top1"].value == pytest.approx(found, abs=0.04)
    assert result.metrics["map"].value == 1


def test_ave_background_is_a_sixth_of_the_test_seconds():
    dataset = load_dataset("ave", official("AVE"), find_media=False)
    test = Targets.from_samples(dataset, dataset.split("test"))
    assert test.segments.shape == (402, 10)
    without = by_key(ceilings(find_task("ave"), test))["without"]
    assert round(100 * without.values["segment_accuracy"], 1) == 82.2
    assert round(100 * by_key(baselines(find_task("ave"), test))["background"].values["segment_accuracy"], 1) == 17.8
    # One validation clip is listed under two classes, no test clip is.
    validation = Targets.from_samples(dataset, dataset.split("val"))
    (repeated,) = ceilings(find_task("ave_cls"), validation)
    assert repeated.values["top1"] == pytest.approx(401 / 402)
    assert ceilings(find_task("ave_cls"), test) == ()
