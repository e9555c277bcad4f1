"""Labels for seconds: the event, and whether there is one."""

from dataclasses import replace

import numpy as np
import pytest
from methods_worlds import CLASSES
from methods_worlds import world_of_seconds as world
from scipy.special import expit, logsumexp, softmax

from avfewshot.methods.base import Support, log_softmax
from avfewshot.methods.calibration import expected_calibration_error
from avfewshot.methods.joining import join_tuned
from avfewshot.methods.method import Scorer, find_method, method_names
from avfewshot.methods.rows import second_rows
from avfewshot.methods.seconds import chunks


@pytest.mark.parametrize("name", method_names())
@pytest.mark.parametrize("clips", [1, 3])
def test_seconds_are_told_and_so_is_the_background(name, clips, tmp_path):
    support, texts = world(clips, 1)
    queries, _ = world(6, 2)
    scorer = find_method(name).fit(support, texts)
    scores = scorer.segment_logits(queries.features)
    truth = np.concatenate(queries.segments).argmax(1)
    joined = np.concatenate(scores)
    assert joined.shape == (len(queries) * 8, CLASSES + 1)
    np.testing.assert_allclose(np.exp(joined).sum(1), 1, atol=1e-6)
    answers = joined.argmax(1)
    assert (answers == truth).mean() >= 0.85
    background = truth == CLASSES
    assert ((answers == CLASSES) == background).mean() >= 0.85
    loaded = Scorer.load(scorer.save(tmp_path / "run"))
    assert all((a == b).all() for a, b in zip(scores, loaded.segment_logits(queries.features), strict=True))


def test_auto_joins_two_heads_of_seconds_and_does_not_trust_texts_that_mean_nothing():
    """TIMO's head starts from the texts; where these are of other classes the kernel ridge decides."""
    support, texts = world(6, 1, noise=2.0)
    queries, _ = world(6, 2, noise=2.0)
    truth = np.concatenate(queries.segments).argmax(1)
    wrong = replace(texts, visual=np.roll(texts.visual, 1, 0), audio=np.roll(texts.audio, 1, 0))
    for these in (texts, wrong):
        right = {}
        for name in ("auto", "kernel_ridge"):
            scorer = find_method(name).fit(support, these)
            right[name] = (np.concatenate(scorer.segment_logits(queries.features)).argmax(1) == truth).mean()
            if name == "auto":
                weights = scorer.second.params["weights"]
        assert right["auto"] >= right["kernel_ridge"] - 0.03
        if these is texts:
            assert set(weights) == {"kernel_ridge", "timo"}


@pytest.mark.parametrize("name", ["kernel_ridge", "logistic", "tip_adapter"])
@pytest.mark.parametrize("clips", [1, 3])
def test_a_method_beside_auto_labels_seconds_as_it_does_alone(name, clips):
    support, texts = world(clips, 1)
    support = support.take(np.random.default_rng(0).permutation(len(support)))
    queries, _ = world(2, 2)
    auto = find_method("auto").fit(support, texts)
    before = [rows.copy() for rows in auto.segment_logits(queries.features)]
    part, own = auto.part(name, support), find_method(name).fit(support, texts)
    for one, other in zip(part.segment_logits(queries.features), own.segment_logits(queries.features), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-9)
    assert part.diagnostics["calibration_seconds"] == own.diagnostics["calibration_seconds"]
    assert all((a == b).all() for a, b in zip(before, auto.segment_logits(queries.features), strict=True))


def test_heads_of_seconds_that_say_nothing_and_of_earlier_runs_still_answer():
    support, texts = world(3, 1)
    scorer = find_method("auto").fit(support, texts)
    ridge = find_method("kernel_ridge").fit(support, texts)
    nothing = replace(scorer.second, params={**scorer.second.params, "weights": {}})
    rows = np.concatenate(replace(scorer, second=nothing).segment_logits(support.features))
    assert np.isfinite(rows).all()
    np.testing.assert_allclose(np.exp(rows).sum(1), 1, atol=1e-6)
    # Before TIMO joined it the head was the ridge's.
    before = replace(scorer, second=ridge.second).segment_logits(support.features)
    assert all((a == b).all() for a, b in zip(before, ridge.segment_logits(support.features), strict=True))


def said_of(support, strength, rng):
    """What a tuned part might say of the seconds of clips, two times."""
    return [
        [log_softmax(strength * labels + rng.normal(size=labels.shape)) for labels in support.segments]
        for _ in range(2)
    ]


def test_a_tuned_part_joins_seconds_by_clips_that_it_has_not_seen(tmp_path):
    noise, rng = 8.0, np.random.default_rng(0)
    support, texts = world(2, 1, noise=noise)
    unseen, _ = world(4, 2, noise=noise)
    queries, _ = world(8, 3, noise=noise)
    truth = np.concatenate(queries.segments).argmax(1)
    scorer = find_method("kernel_ridge").fit(support, texts)

    def right(**options):
        return (np.concatenate(scorer.segment_logits(queries.features, **options)).argmax(1) == truth).mean()

    plain, tuned = right(), said_of(queries, 3.0, rng)
    clips = [log_softmax(3.0 * unseen.labels + rng.normal(size=unseen.labels.shape)) for _ in range(2)]
    told = join_tuned(scorer, unseen, clips, said_of(unseen, 3.0, rng))["seconds"]
    assert min(told["tuned"], told["other"], *told["presence"]) > 0.1
    assert told["log_loss_joined"] < told["log_loss_light"]
    assert right(tuned=tuned) > plain + 0.02
    assert right() == plain
    # As the formula says: events by a product of experts, whether there is one by the odds of the first two.
    parts = [np.concatenate(one) for one in (scorer.segment_logits(queries.features), *tuned)]
    logs = [np.log(softmax(part[:, :-1], axis=1)) for part in parts]
    events = sum(told[name] * log for name, log in zip(("light", "tuned", "other"), logs, strict=True))
    odds = [logsumexp(part[:, :-1], axis=1) - part[:, -1] for part in parts[:2]]
    there = expit(told["bias"] + told["presence"][0] * odds[0] + told["presence"][1] * odds[1])[:, None]
    expected = np.concatenate((softmax(events, axis=1) * there, 1 - there), 1)
    found = scorer.segment_logits(queries.features, tuned=tuned)
    np.testing.assert_allclose(np.exp(np.concatenate(found)), expected, atol=1e-9)
    loaded = Scorer.load(scorer.save(tmp_path / "run"))
    again = loaded.segment_logits(queries.features, tuned=tuned)
    assert all((a == b).all() for a, b in zip(found, again, strict=True))
    # What guesses the seconds is heard less, and what guesses the clips not at all.
    vague = join_tuned(scorer, unseen, clips, said_of(unseen, 0.0, rng))["seconds"]
    assert vague["tuned"] < told["tuned"]
    assert vague["presence"][1] < told["presence"][1] / 4
    useless = join_tuned(scorer, unseen, [one[::-1] for one in clips], said_of(unseen, 3.0, rng))
    assert "seconds" not in useless
    assert right(tuned=tuned) == plain
    # Nothing but events: whether there is one is left to the light method.
    events = tuple(np.eye(CLASSES + 1, dtype=bool)[labels[:, :-1].argmax(1)] for labels in unseen.segments)
    told = join_tuned(scorer, replace(unseen, segments=events), clips, said_of(unseen, 3.0, rng))["seconds"]
    assert (told["bias"], told["presence"]) == (0.0, [1.0, 0.0])


def test_how_well_seconds_are_calibrated_is_told_before_and_after_the_weights_by_left_out_clips():
    support, texts = world(6, 1, noise=3.0)
    queries, _ = world(6, 2, noise=3.0)
    scorer = find_method("logistic").fit(support, texts)
    right = np.concatenate(queries.segments)
    judged = [np.concatenate(one.segment_logits(queries.features)) for one in (scorer.uncalibrated(), scorer)]
    errors = [expected_calibration_error(one, right) for one in judged]
    assert errors[1] < errors[0] / 2
    told = scorer.diagnostics["calibration_seconds"]
    np.testing.assert_allclose((told["ece_before"], told["ece_after"]), errors, atol=0.02)


def test_without_labels_of_seconds_each_is_scored_as_a_clip():
    support, texts = world(3, 1)
    scorer = find_method("kernel_ridge").fit(Support(support.features, support.labels), texts)
    scores = scorer.segment_logits(support.features)
    assert [part.shape for part in scores] == [(8, CLASSES)] * len(support)
    events = np.concatenate(support.segments)[:, :CLASSES]
    seconds = events.any(1)
    assert events[seconds][np.arange(seconds.sum()), np.concatenate(scores)[seconds].argmax(1)].mean() >= 0.8
    # With a tuned part too, whose background says nothing here.
    rng, weights = np.random.default_rng(0), {"light": 0.5, "tuned": 1.5, "other": 0.4}
    tuned, scorer.tuned = said_of(support, 3.0, rng), weights
    parts = [np.concatenate(scores), *(np.concatenate(one)[:, :-1] for one in tuned)]
    expected = sum(weight * np.log(softmax(part, axis=1)) for weight, part in zip(weights.values(), parts, strict=True))
    found = np.exp(np.concatenate(scorer.segment_logits(support.features, tuned=tuned)))
    np.testing.assert_allclose(found, softmax(expected, axis=1), atol=1e-9)
    assert (np.concatenate(scorer.segment_logits(support.features)) == parts[0]).all()


def test_what_the_text_says_of_a_second_is_a_distribution_with_the_background_by_its_salience():
    support, texts = world(2, 1)
    rows, salience = second_rows(support.features, texts, support.groups, np.array([0, 2]))
    said = np.exp(rows.text["fused"])
    np.testing.assert_allclose(said.sum(1), 1)
    np.testing.assert_allclose(said[:, -1], 1 / (1 + np.exp(salience)), rtol=1e-6)
    events = np.concatenate(texts.second_log_posteriors(support.features)[0])[:, [0, 2]]
    np.testing.assert_allclose(said[:, 0] / said[:, 1], np.exp(events[:, 0] - events[:, 1]))


def test_runs_of_one_label_are_cut_to_keep_the_matrix_small(monkeypatch):
    monkeypatch.setattr("avfewshot.methods.seconds.MAX_ROWS", 5)
    labels = np.eye(2)[[0, 0, 0, 1, 1, 1, 1, 1, 0, 0]]
    clip_of = np.array([0] * 7 + [1] * 3)
    assert chunks(labels, clip_of).tolist() == [0, 0, 1, 2, 2, 3, 3, 4, 5, 5]
