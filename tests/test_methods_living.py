"""What is decided by left-out clips, and classes that come and go."""

import numpy as np
import pytest
from methods_worlds import CLASSES, accuracy, world
from scipy.special import logit

from avfewshot.errors import UsageError
from avfewshot.evaluation.few_shot import modality_confusion
from avfewshot.methods import kernel_ridge
from avfewshot.methods.base import Features, Support, log_loss, log_softmax
from avfewshot.methods.calibration import (
    expected_calibration_error,
    label_thresholds,
    reject_threshold,
    standardised_labels,
    temperature,
)
from avfewshot.methods.joining import join_tuned
from avfewshot.methods.living import LivingRidge, learn_to_reject
from avfewshot.methods.method import Scorer, find_method
from avfewshot.methods.nearest_mean import NearestMean
from avfewshot.reports.text import reject_text


def fitted(clips=4, classes=CLASSES, name="kernel_ridge", **options):
    support, texts = world(clips=clips, **options)
    rows = support.labels[:, :classes].any(1)
    part = Support(support.features.take(np.flatnonzero(rows)), support.labels[rows][:, :classes])
    return find_method(name).fit(part, texts.take(range(classes))), part, support, texts


def of_class(support, label=3):
    """Clips of one class, and their labels."""
    rows = support.labels[:, label]
    return support.features.take(np.flatnonzero(rows)), support.labels[rows]


def assert_equals_refit(living):
    """Every inverse and dual is that of a fit from nothing on the support as it now is, settings kept."""
    arrays = living.scorer.clip.arrays
    targets = arrays["targets"]
    for name, setting in living.scorer.clip.params["experts"].items():
        kernels = []
        for modality in ("visual", "audio"):
            metric = kernel_ridge.metric_of(living.scorer.clip, f"{setting['view']}.{modality}.{setting['beta']}")
            vectors = metric(arrays[f"{setting['view']}.{modality}"])
            kernels.append(np.exp(-setting["bandwidths"][modality] * kernel_ridge.distances(vectors, vectors)))
        kernel = kernel_ridge.joint_kernel(setting["kernel"], *kernels)
        inverse = np.linalg.inv(kernel + setting["penalty"] * np.eye(len(kernel)))
        np.testing.assert_allclose(living.inverse(name), inverse, atol=1e-9)
        dual = inverse @ (targets - 1 / targets.shape[1])
        np.testing.assert_allclose(arrays[f"dual.{name}"], dual, atol=1e-9)


@pytest.mark.parametrize(("clips", "noise", "least"), [(4, 0.35, 0.85), (1, 0.2, 0.8)])
def test_adding_a_class_equals_a_refit_and_learns_it(tmp_path, clips, noise, least):
    scorer, part, support, texts = fitted(clips=clips, classes=3, noise=noise)
    living = LivingRidge(scorer)
    before = scorer.logits(part.features)
    living.add(*of_class(support), texts)
    if clips > 1:  # of one clip a class the head is another
        assert_equals_refit(living)
    queries, _ = world(clips=10, noise=noise, seed=5)
    assert accuracy(scorer.logits(queries.features), queries.labels) >= least
    assert accuracy(before, part.labels) == accuracy(scorer.logits(part.features)[:, :3], part.labels)
    loaded = Scorer.load(scorer.save(tmp_path / "run"))
    assert (loaded.logits(queries.features) == scorer.logits(queries.features)).all()


def test_clips_of_the_support_are_known_again_as_what_they_were_learnt():
    scorer, _, support, texts = fitted(classes=3)
    living, (features, labels) = LivingRidge(scorer), of_class(support)
    assert living.learnt_as(features) == [set()] * 4
    living.add(features, labels, texts)
    assert living.learnt_as(features) == [{"c3"}] * 4
    others, _ = world(clips=2, seed=11)
    assert living.learnt_as(others.features) == [set()] * 8
    living.add(others.features, np.zeros_like(others.labels), texts)
    assert living.learnt_as(others.features) == [{None}] * 8
    living.add(features.take([0]), np.array([[True, False, False, False]]), texts)
    assert living.learnt_as(features) == [{"c0", "c3"}, *[{"c3"}] * 3]


def test_a_clip_that_is_learnt_twice_is_left_out_as_one_where_unknown_clips_are_judged():
    scorer, part, *_ = fitted(clips=4, classes=3)
    living = LivingRidge(scorer)
    twice = part.features.take([0])
    living.add(twice, np.array([[False, True, False]]), scorer.texts)
    outputs = []
    living.left_out = lambda together: outputs.append(together) or np.zeros((13, 3))
    living.calibrate_reject()
    for together in outputs:
        assert together[0, -1]
        assert together[-1, 0]


def test_more_clips_of_an_old_class_and_a_class_removed_equal_a_refit():
    scorer, _, support, texts = fitted(classes=CLASSES)
    living = LivingRidge(scorer)
    more, _ = world(clips=2, seed=11)
    living.add(more.features, more.labels, texts)
    assert_equals_refit(living)
    living.remove("c1")
    assert_equals_refit(living)
    assert scorer.texts.names == ("c0", "c2", "c3")
    scores = scorer.logits(support.features)
    assert scores.shape == (len(support), 3)
    known = ~support.labels[:, 1]
    assert accuracy(scores[known], support.labels[known][:, [0, 2, 3]]) >= 0.9
    with pytest.raises(UsageError, match="no class 'c1'"):
        living.remove("c1")
    with pytest.raises(UsageError, match="lack c0"):
        living.add(more.features, more.labels[:, 1:], texts.take([1, 2, 3]))


def with_counter_examples(clips=3, negatives=2, text_noise=0.3):
    """A support of classes 0 to 2, and clips of class 3 that are known not to be of class 0 and shown to no other."""
    support, texts = world(clips=clips, text_noise=text_noise)
    known = np.flatnonzero(~support.labels[:, 3])
    foreign, _ = of_class(world(clips=negatives, seed=77)[0])
    not_of = np.tile([True, False, False], (negatives, 1))
    part = Support(support.features.take(known), support.labels[known][:, :3], counter=(foreign, not_of))
    return part, texts.take([0, 1, 2]), support, texts


@pytest.mark.parametrize("clips", [1, 3])
def test_counter_examples_keep_their_like_out_of_one_class_and_leave_the_others_alone(clips, tmp_path):
    part, texts, _, _ = with_counter_examples(clips)
    blind = Support(part.features, part.labels)
    method = find_method("kernel_ridge")
    queries, _ = world(clips=12, seed=5)
    taught = method.fit(part, texts)
    logits, before = taught.logits(queries.features), method.fit(blind, texts).logits(queries.features)
    foreign = queries.labels[:, 3]
    assert np.exp(logits[foreign, 0]).mean() < 0.6 * np.exp(before[foreign, 0]).mean()
    known = queries.labels[~foreign][:, :3]
    assert accuracy(logits[~foreign], known) >= accuracy(before[~foreign], known) - 0.04
    assert taught.diagnostics["labels_used"] == {"support": 3 * clips, "validation": 0, "counter-examples": 2}
    assert taught.diagnostics["counter_examples"] == {"c0": 2}
    loaded = Scorer.load(taught.save(tmp_path / "run"))
    assert (loaded.logits(queries.features) == logits).all()
    plain = find_method("logistic")
    assert (plain.fit(part, texts).logits(queries.features) == plain.fit(blind, texts).logits(queries.features)).all()


def test_leaving_a_clip_out_beside_counter_examples_equals_fitting_without_it():
    part, texts, _, _ = with_counter_examples()
    scorer = find_method("kernel_ridge").fit(part, texts)
    arrays, targets = scorer.clip.arrays, scorer.clip.arrays["targets"]
    [(name, setting), *_] = scorer.clip.params["experts"].items()
    kernel = kernel_ridge.kernel_between(scorer.clip, setting, "")
    cross = kernel_ridge.kernel_between(scorer.clip, setting, "", "counter.")
    corner = kernel_ridge.kernel_between(scorer.clip, setting, "counter.", "counter.")
    whole = np.block([[kernel, cross], [cross.T, corner]])
    wanted = np.append(targets[:, 0] - 1 / 3, [-1.0, -1.0])
    loo = np.zeros_like(targets)
    single = np.arange(len(targets))
    predicted = kernel_ridge.fit_counter_examples(
        dict(arrays), name, setting, kernel, targets - 1 / 3, single, np.ones(len(targets)), loo
    )
    kept = np.delete(np.arange(len(whole)), 4)
    system = whole[np.ix_(kept, kept)] + setting["penalty"] * np.eye(len(kept))
    assert loo[4, 0] == pytest.approx(whole[4, kept] @ np.linalg.solve(system, wanted[kept]), abs=1e-9)
    assert not loo[:, 1:].any()  # the other columns are left as they are
    kept = np.delete(np.arange(len(whole)), len(targets))  # without the first counter-example
    system = whole[np.ix_(kept, kept)] + setting["penalty"] * np.eye(len(kept))
    left_out = whole[len(targets), kept] @ np.linalg.solve(system, wanted[kept])
    assert predicted[0, 0] == pytest.approx(left_out, abs=1e-9)


def test_classes_come_and_go_beside_counter_examples():
    part, texts, support, every = with_counter_examples()
    scorer = find_method("kernel_ridge").fit(part, texts)
    living = LivingRidge(scorer)
    living.add(*of_class(support), every)
    assert scorer.clip.arrays["not of"].shape == (2, 4)
    queries, _ = world(clips=10, seed=5)
    assert accuracy(scorer.logits(queries.features), queries.labels) >= 0.85
    living.remove("c0")
    assert not scorer.clip.arrays["not of"].any()
    assert scorer.logits(queries.features).shape == (40, 3)


def test_none_of_these_is_learnt_later_and_forgotten():
    scorer, part, support, texts = fitted(classes=3)
    living, foreign = LivingRidge(scorer), of_class(support)[0]
    before = scorer.logits(part.features)
    living.add(foreign, np.zeros((4, 3), dtype=bool), texts.take([0, 1, 2]))
    assert_equals_refit(living)
    queries, _ = world(clips=10, seed=5)
    scores = scorer.scores(queries.features)
    none = np.exp(scores.none)
    assert none[queries.labels[:, 3]].min() > none[~queries.labels[:, 3]].max() - 0.3
    assert accuracy(scores.joined, queries.labels) >= 0.85
    living.remove(None)
    assert scorer.scores(part.features).none is None
    np.testing.assert_allclose(scorer.logits(part.features), before, atol=1e-6)
    with pytest.raises(UsageError, match='No clip was learnt as "none of these"'):
        living.remove(None)
    with pytest.raises(UsageError, match="kernel-ridge"):  # only kernel ridge learns on
        LivingRidge(fitted(name="gda")[0])


def test_clips_are_left_out_with_their_relatives_as_if_those_had_never_been_there():
    scorer, *_ = fitted(clips=4, classes=3)
    living = LivingRidge(scorer)
    params, targets = scorer.clip.params, scorer.clip.arrays["targets"]
    relatives = targets @ targets.T > 0
    relatives[0] = np.arange(len(targets)) < 2  # not all groups are those of a class
    centred, expected = targets - 1 / targets.shape[1], np.zeros_like(targets)
    for name, setting in params["experts"].items():
        kernel = np.linalg.inv(living.inverse(name)) - setting["penalty"] * np.eye(len(targets))
        for row, out in enumerate(relatives):
            kept = np.ix_(~out, ~out)
            dual = np.linalg.solve(kernel[kept] + setting["penalty"] * np.eye((~out).sum()), centred[~out])
            expected[row] += params["weights"]["both"].get(name, 0.0) * (kernel[row, ~out] @ dual)
    np.testing.assert_allclose(living.left_out(relatives), expected, atol=1e-8)


def test_unknown_clips_are_rejected_at_a_stated_rate():
    scorer, *_ = fitted(clips=8, classes=3)
    living = LivingRidge(scorer)
    stated = living.calibrate_reject(keep=0.9)
    assert stated["clips"] == 24
    assert stated["false_rejects"] == pytest.approx(0.1, abs=0.05)
    assert 0 <= stated["false_accepts"] <= 0.6
    queries, _ = world(clips=20, seed=5)
    unknown, foreign = living.unknown(queries.features), queries.labels[:, 3]
    assert unknown[foreign].mean() > 0.6
    assert unknown[~foreign].mean() < 0.35
    pairs = zip(queries.features.ids, queries.features.visual, strict=True)
    unknown = living.unknown(Features.of((name, visual, None) for name, visual in pairs))
    assert unknown[foreign].mean() > 0.4 > unknown[~foreign].mean()
    support, texts = world(clips=4)
    part = support.take([0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 13])  # the one clip of c2 cannot be left out
    stated = LivingRidge(find_method("kernel_ridge").fit(part, texts)).calibrate_reject()
    assert stated["clips"] == 10


def test_every_method_tells_unknown_clips_by_a_kernel_ridge_and_keeps_it(tmp_path):
    for name in ("gda", "auto"):
        scorer, part, *_ = fitted(clips=6, classes=3, name=name)
        learn_to_reject(scorer, part)
        loaded = Scorer.load(scorer.save(tmp_path / name))
        assert loaded.diagnostics["reject"] == scorer.diagnostics["reject"]
        ridge = LivingRidge(loaded.rejector or loaded, learn=False)
        queries, _ = world(clips=20, seed=5)
        unknown, foreign = ridge.unknown(queries.features), queries.labels[:, 3]
        assert unknown[foreign].mean() > 0.6 > 0.4 > unknown[~foreign].mean()
        # Of the two classes that are asked about, the third one's clips are unknown.
        other = ridge.unknown(queries.features, ["c0", "c1"])
        assert other[queries.labels[:, 2]].mean() > 0.6
        params = (loaded.rejector or loaded).clip.params
        params = params.get("params", params)
        stated, params["reject"] = params["reject"], params["reject"] | {"threshold": -1e9, "false_accepts": 1.0}
        del params["spreads"]  # a run from when nearness alone decided is calibrated again
        assert LivingRidge(loaded.rejector or loaded, learn=False).reject == stated
    one_shot, part, *_ = fitted(clips=1, classes=3)
    learn_to_reject(one_shot, part)
    assert "reject" not in one_shot.diagnostics


def test_of_two_classes_no_false_accepts_are_stated():
    scorer, part, *_ = fitted(clips=5, classes=2)
    learn_to_reject(scorer, part)
    reject = scorer.diagnostics["reject"]
    assert reject["false_accepts"] is None
    assert reject["false_rejects"] == pytest.approx(0.1)
    assert "takes three classes to measure" in reject_text(reject)
    three, part, *_ = fitted(clips=5, classes=3)
    learn_to_reject(three, part)
    assert "do not (false accepts)" in reject_text(three.diagnostics["reject"])
    LivingRidge(three).remove("c0")
    assert three.diagnostics["reject"]["false_accepts"] is None


def test_what_is_accepted_of_unseen_classes_is_measured_on_fits_without_them_and_moves_later_figures():
    scorer, part, support, texts = fitted(clips=5, classes=3, noise=0.7)
    seen = LivingRidge(scorer).calibrate_reject()["false_accepts"]
    learn_to_reject(scorer, part)
    accepted = []
    for one in range(3):
        others = [column for column in range(3) if column != one]
        out = part.labels[:, one]
        rest = Support(part.features.take(np.flatnonzero(~out)), part.labels[~out][:, others])
        ridge = LivingRidge(find_method("kernel_ridge").fit(rest, scorer.texts.take(others)))
        ridge.calibrate_reject()
        accepted += (~ridge.unknown(part.features.take(np.flatnonzero(out)))).tolist()
    stated = scorer.diagnostics["reject"]["false_accepts"]
    assert stated == pytest.approx(1 - (1 - (sum(accepted) + 0.5) / (len(accepted) + 1)) ** 1.5)
    shift = logit(stated) - logit(seen)
    assert shift > 0.1
    LivingRidge(scorer).add(*of_class(support), texts)
    later = scorer.diagnostics["reject"]["false_accepts"]
    scorer.clip.params["unseen"] = 0.0
    assert logit(later) - logit(LivingRidge(scorer).calibrate_reject()["false_accepts"]) == pytest.approx(shift)


def test_the_threshold_for_unknown_clips_follows_what_is_learnt_later():
    scorer, part, support, texts = fitted(clips=6, classes=3)
    scorer.decide_labels(part)
    learn_to_reject(scorer, part)
    before = scorer.diagnostics["reject"]
    LivingRidge(scorer).add(*of_class(support), texts)
    assert scorer.diagnostics["reject"]["clips"] == before["clips"] + 6
    assert scorer.thresholds["c3"] == pytest.approx(np.mean([scorer.thresholds[f"c{i}"] for i in range(3)]))
    queries, _ = world(clips=20, seed=5)
    assert LivingRidge(scorer).unknown(queries.features)[queries.labels[:, 3]].mean() < 0.4
    LivingRidge(scorer).remove("c0")
    assert set(scorer.thresholds) == {"c1", "c2", "c3"}


def test_no_threshold_for_unknown_clips_is_left_where_each_class_has_one_clip_and_comes_back_with_more():
    _, _, support, texts = fitted(clips=3)
    part = support.take([0, 3, 6, 7, 8, 9, 10, 11])  # one of c0 and of c1, three of c2 and of c3
    scorer = find_method("kernel_ridge").fit(part, texts)
    learn_to_reject(scorer, part)
    living = LivingRidge(scorer)
    living.remove("c2")
    assert living.reject["clips"] == 3
    living.remove("c3")
    assert living.reject is None
    assert "reject" not in scorer.diagnostics
    with pytest.raises(UsageError, match="'c0' cannot go: two classes have to stay"):
        living.remove("c0")
    more = support.take([1, 4])
    living.add(more.features, more.labels[:, :2], scorer.texts)
    assert living.reject["clips"] == 4


def test_labels_that_stand_out_are_those_of_a_clip_where_no_threshold_is_known():
    one = np.log([0.9, 0.02, 0.02, 0.02, 0.02, 0.02])
    assert standardised_labels([one]).tolist() == [True] + [False] * 5
    two = np.log([0.02, 0.9, 0.02, 0.02, 0.02, 0.02])
    assert not standardised_labels([one, two]).any()  # each is plain in one modality alone
    both = np.log([0.45, 0.45, 0.025, 0.025, 0.025, 0.025])
    assert standardised_labels([both, both]).tolist() == [True, True] + [False] * 4
    assert not standardised_labels([np.zeros(3)]).any()


def test_a_threshold_keeps_the_share_of_known_clips_that_was_asked_for():
    result = reject_threshold(np.arange(100.0), np.arange(-50.0, 50.0), keep=0.9)
    found = [result[name] for name in ("threshold", "false_rejects", "false_accepts")]
    assert found == pytest.approx([9.9, 0.1, 0.4])
    few = reject_threshold(np.arange(3.0), np.zeros(0))  # which say little: told as a count
    assert (few["threshold"], few["false_rejects"]) == pytest.approx((0.1, 1 / 3))
    assert reject_text(few).startswith("1 of 3 left-out clips below the threshold (false rejects), ")


def test_a_temperature_makes_overconfident_answers_honest():
    sure, labels = np.log(np.tile([0.9, 0.1], (10, 1))), np.tile([True, False], (10, 1))
    labels[:5] = ~labels[:5]
    assert expected_calibration_error(sure, labels) == pytest.approx(0.4)  # between confidence and accuracy
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(4000, 5))
    labels = np.eye(5, dtype=bool)[[rng.choice(5, p=np.exp(row)) for row in log_softmax(logits)]]
    result = temperature(log_softmax(3 * logits), labels)
    assert result["temperature"] == pytest.approx(3, rel=0.1)
    assert result["ece_after"] < 0.03 < result["ece_before"]


def test_modality_confusion_counts_what_both_get_wrong_and_one_alone_gets_right():
    visual, audio = np.array([1, 1, 0, 0, 1], bool), np.array([1, 0, 1, 0, 1], bool)
    found = modality_confusion(np.array([0, 0, 1, 0, 1], bool), visual, audio)
    assert found == {"mu_v": 2 / 5, "mu_a": 1 / 5, "mu_av": 1 / 5}


def test_thresholds_of_rare_labels_are_close_to_the_common_one():
    rng = np.random.default_rng(0)
    labels = rng.random((400, 3)) < [0.5, 0.5, 0.01]
    labels[0, 2] = True
    scores = np.log(np.where(labels, 0.6, 0.3) + 0.05 * rng.random((400, 3)))
    scores[:, 1] = np.log(np.where(labels[:, 1], 0.9, 0.8))
    thresholds = label_thresholds(scores, labels)
    assert 0.3 < thresholds[0] < 0.61
    assert 0.75 < thresholds[1] < 0.9
    assert abs(thresholds[2] - thresholds[0]) < 0.15


def test_auto_says_what_it_chose_and_why():
    scorer, *_ = fitted(name="auto")
    about = scorer.diagnostics
    assert about["choice"] in about["methods"]
    assert about["why"]
    assert all(row["log_loss"] is not None for row in about["methods"].values())
    one_shot, *_ = fitted(clips=1, name="auto", noise=0.2)
    assert one_shot.diagnostics["choice"] == "kernel_ridge"


@pytest.mark.parametrize(("errors", "choice"), [(2.5, "kernel_ridge"), (3.5, "nearest_mean")])
def test_auto_leaves_the_default_only_for_a_method_that_is_better_by_three_standard_errors(monkeypatch, errors, choice):
    original = NearestMean.fit_head

    def better(self, rows, targets, *, seed):
        head = original(self, rows, targets, seed=seed)
        loss = log_loss(find_method("kernel_ridge").fit_head(rows, targets, seed=seed).loo, targets)
        gains = np.where(np.arange(len(loss)) % 2, 1e-3, -1e-3)
        right = np.exp(-(loss - gains - errors * 1e-3 / np.sqrt(len(loss))))[:, None]
        head.loo = np.log(np.where(targets > 0, right, (1 - right) / (targets.shape[1] - 1)))
        return head

    monkeypatch.setattr(NearestMean, "fit_head", better)
    about = fitted(clips=3, name="auto", noise=1.2)[0].diagnostics
    assert about["methods"]["nearest_mean"]["log_loss"] < about["methods"]["kernel_ridge"]["log_loss"]
    assert about["choice"] == choice


def test_a_tuned_part_counts_for_what_it_does_on_clips_it_has_not_seen():
    scorer, part, _, _ = fitted(noise=0.9)
    unseen, _ = world(clips=8, seed=21, noise=0.9)
    rng = np.random.default_rng(0)
    noise = rng.normal(size=unseen.labels.shape)
    good = join_tuned(scorer, unseen, [log_softmax(3.0 * unseen.labels + noise)] * 2)
    assert min(good["tuned"], good["other"]) > 0.1
    queries, _ = world(clips=8, seed=31, noise=0.9)
    tuned = [log_softmax(3.0 * queries.labels + rng.normal(size=queries.labels.shape))] * 2
    assert accuracy(scorer.logits(queries.features, tuned=tuned), queries.labels) >= accuracy(
        scorer.logits(queries.features), queries.labels
    )
    # The way of joining its modalities that says more is heard more.
    vague = log_softmax(0.3 * unseen.labels + 0.3 * noise)
    one = join_tuned(scorer, unseen, [log_softmax(3.0 * unseen.labels + noise), vague[::-1]])
    two = join_tuned(scorer, unseen, [vague, log_softmax(3.0 * unseen.labels + noise)])
    assert one["tuned"] > one["other"]
    assert two["other"] > one["other"]
    # Trained on shuffled labels it is sure of its support, and at chance on everything else: it has no say.
    shuffled = log_softmax(6.0 * np.roll(unseen.labels, 5, 0) + noise)
    useless = join_tuned(scorer, unseen, [shuffled, shuffled])
    assert useless["tuned"] == useless["other"] == 0
    assert not scorer.is_tuned
    assert "chance" in useless["why"]
    plain = scorer.logits(queries.features)
    assert (scorer.logits(queries.features, tuned=tuned) == plain).all()
    # What says the same once more changes hardly an answer, and what says less is heard less.
    join_tuned(scorer, unseen, [scorer.logits(unseen.features)] * 2)
    same = scorer.logits(queries.features, tuned=[plain, plain])
    assert (same.argmax(1) == plain.argmax(1)).all()
    weak = join_tuned(scorer, unseen, [log_softmax(unseen.labels + noise)] * 2)
    assert 0 < weak["tuned"] < good["tuned"]
    assert weak["log_loss_joined"] <= weak["log_loss_light"]
    # Ten clips that are all right do not make it sure of everything: weights stay near those they are drawn to.
    sure = join_tuned(scorer, unseen.take(np.arange(10)), [log_softmax(30.0 * unseen.labels[:10])] * 2)
    assert [sure["light"], sure["tuned"], sure["other"]] == pytest.approx([1 / 3, 1.0, 1.0], abs=0.1)
    few = join_tuned(scorer, unseen.take(np.arange(3)), [log_softmax(9.0 * unseen.labels[:3])] * 2)
    assert few["tuned"] == 0
    with pytest.raises(UsageError, match="posteriors must be"):
        join_tuned(scorer, part, [noise, noise])


def test_shuffled_support_labels_make_nothing_sure():
    support, texts = world(clips=6, text_noise=5.0)
    order = np.random.default_rng(1).permutation(len(support))
    scorer = find_method("auto").fit(Support(support.features, support.labels[order]), texts)
    assert scorer.diagnostics["loo_accuracy"] <= 0.6
    queries, _ = world(clips=10, seed=5)
    assert np.exp(scorer.logits(queries.features)).max(1).mean() < 0.6


def test_a_run_of_one_clip_a_class_says_when_it_has_outgrown_its_rule():
    scorer, *_ = fitted(clips=1)
    living = LivingRidge(scorer)
    assert not living.outgrown
    more, _ = world(clips=1, seed=7)
    for label in range(CLASSES - 1):
        rows = np.flatnonzero(more.labels[:, label])
        living.add(more.features.take(rows), more.labels[rows], scorer.texts)
        assert living.outgrown == (2 * (label + 1) >= CLASSES)
    assert not LivingRidge(fitted(clips=3)[0]).outgrown
