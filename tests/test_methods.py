"""Every few-shot method through one door: shapes, missing modalities, several labels, unknown labels, saving."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from methods_worlds import CLASSES, accuracy, world

from avfewshot.errors import DataError, UsageError
from avfewshot.methods import kernel_ridge
from avfewshot.methods.base import Features, LabelFeatures, Support, log_softmax, unit
from avfewshot.methods.calibration import stack, temperature, text_is_useful
from avfewshot.methods.method import Method, Scorer, find_method, method_names
from avfewshot.methods.rows import clip_rows


@pytest.fixture(params=method_names())
def method(request) -> Method:
    return find_method(request.param)


def test_a_method_learns_whatever_the_order_and_comes_back_from_disk_to_the_bit(method, tmp_path):
    support, texts = world()
    queries, _ = world(clips=10, seed=5)
    scorer = method.fit(support, texts, seed=1)
    scores = scorer.scores(queries.features)
    for values in (scores.fused, scores.visual, scores.audio):
        assert values.shape == (40, CLASSES)
        np.testing.assert_allclose(np.exp(values).sum(1), 1, atol=1e-6)
    assert accuracy(scores.fused, queries.labels) >= 0.85
    assert scorer.diagnostics["labels_used"] == {"support": 12, "validation": 0}
    assert scorer.diagnostics["seconds"] > 0
    loaded = Scorer.load(scorer.save(tmp_path / "scorer"))
    assert loaded.method.name == method.name
    assert loaded.diagnostics == json.loads(json.dumps(scorer.diagnostics))
    for name in ("fused", "visual", "audio"):
        assert (getattr(scores, name) == getattr(loaded.scores(queries.features), name)).all()
    order = np.random.default_rng(3).permutation(len(support))
    shuffled = method.fit(support.take(order), texts, seed=1)
    np.testing.assert_allclose(shuffled.logits(queries.features), scores.fused, atol=1e-9)


def without(features, missing):
    """The clips, the n-th of them without the n-th of the modalities in `missing`, by turns."""
    clips = []
    for row, (name, visual, audio) in enumerate(zip(features.ids, features.visual, features.audio, strict=True)):
        gone = missing[row % len(missing)]
        clips.append((name, None if gone == "visual" else visual, None if gone == "audio" else audio))
    return Features.of(clips)


def test_clips_may_lack_a_modality(method):
    support, texts = world(clips=4)
    queries, _ = world(clips=6, seed=5)
    whole = method.fit(support, texts, seed=1)
    for missing in (("visual",), ("audio",), ("visual", "audio", "")):
        part = method.fit(Support(without(support.features, missing), support.labels), texts, seed=1)
        for scorer in (whole, part):
            scores = scorer.logits(without(queries.features, missing))
            assert np.isfinite(scores).all(), missing
            assert accuracy(scores, queries.labels) >= 0.6, missing


def test_two_classes_and_one_clip_of_each_that_lacks_a_modality(method):
    queries, _ = world(clips=10, classes=2, seed=5)
    support, texts = world(classes=2)
    assert accuracy(method.fit(support, texts, seed=1).logits(queries.features), queries.labels) >= 0.85
    support, texts = world(clips=1, classes=2, noise=0.2)
    assert accuracy(method.fit(support, texts, seed=1).logits(queries.features), queries.labels) >= 0.8
    silent = Support(without(support.features, ("audio",)), support.labels)
    scores = method.fit(silent, texts, seed=1).logits(without(queries.features, ("audio", "visual")))
    assert np.isfinite(scores).all()
    assert accuracy(scores[::2], queries.labels[::2]) >= 0.8


def test_one_clip_a_class_is_enough_and_clips_may_carry_several_labels(method):
    support, texts = world(clips=1, noise=0.2)
    queries, _ = world(clips=8, noise=0.2, seed=5)
    assert accuracy(method.fit(support, texts, seed=1).logits(queries.features), queries.labels) >= 0.8
    support, texts = world()
    labels = support.labels.copy()
    labels[::3, 1] = True
    scores = method.fit(Support(support.features, labels), texts, seed=1).logits(support.features)
    assert np.isfinite(scores).all()
    assert accuracy(scores, labels) >= 0.7


def test_a_single_class_a_class_without_clips_and_a_new_label(method):
    support, texts = world(clips=3)
    alone = method.fit(Support(support.features.take([0, 1]), support.labels[:2, :1]), texts.take([0]), seed=1)
    np.testing.assert_allclose(alone.logits(support.features), 0, atol=1e-9)
    part = support.take(np.flatnonzero(~support.labels[:, 3]))
    zero_shot = texts.clip_log_posteriors(support.features)["fused"]
    scores = method.fit(part, texts, seed=1).logits(support.features)
    np.testing.assert_allclose(scores[:, 3], zero_shot[:, 3], atol=1e-9)  # only the text knows this class
    np.testing.assert_allclose(np.exp(scores).sum(1), 1, atol=1e-6)
    scorer = method.fit(Support(part.features, part.labels[:, :3]), texts.take([0, 1, 2]), seed=1)
    old, new = scorer.logits(support.features), scorer.logits(support.features, texts)
    np.testing.assert_allclose(new[:, 3], zero_shot[:, 3], atol=1e-9)  # a new label is a column of text
    np.testing.assert_allclose(new[:, 0] - new[:, 1], old[:, 0] - old[:, 1], atol=1e-6)  # what was learnt stays


def test_none_of_these_is_kept_at_inference(method):
    support, texts = world(clips=4)
    scorer = method.fit(
        Support(support.features, support.labels & (np.arange(CLASSES) < 3)), texts.take(range(CLASSES))
    )
    scores = scorer.scores(support.features)
    np.testing.assert_allclose(np.exp(scores.fused).sum(1) + np.exp(scores.none), 1, atol=0.2)
    if method.name != "zero_shot":
        np.testing.assert_array_equal(scores.none > scores.fused[:, :3].max(1), support.labels[:, 3])


@pytest.mark.parametrize(("clips", "classes"), [(4, 2), (16, 4), (200, 4)])
def test_left_out_clips_that_are_all_right_do_not_make_every_answer_certain(clips, classes):
    labels = np.eye(classes, dtype=bool)[np.arange(clips) % classes]
    said = log_softmax(10.0 * labels)  # certain, and right each time
    found = temperature(said, labels)["temperature"]
    confidence = np.exp(log_softmax(said / found).max(1))
    np.testing.assert_allclose(confidence, (clips + 0.5) / (clips + 1), atol=1e-4)


def test_a_temperature_divides_what_a_head_says_and_a_tuned_part_counts_by_both_weights():
    support, texts = world()
    queries, _ = world(seed=5)
    scorer = find_method("gda").fit(support, texts)
    before, tuned = scorer.logits(queries.features), np.random.default_rng(0).normal(size=(2, 12, CLASSES))
    scorer.temperature *= 2
    plain = log_softmax(before / 2)
    np.testing.assert_allclose(scorer.logits(queries.features), plain, atol=1e-9)
    for weights in ({"tuned": 2.0}, {"tuned": 2.0, "other": 0.3}, {"tuned": 0.0, "other": 0.3}):
        scorer.tuned = {"light": 0.5, **weights}
        own, other = log_softmax(tuned[0]), log_softmax(tuned[1])
        joined = log_softmax(0.5 * plain + weights["tuned"] * own + weights.get("other", 0.0) * other)
        np.testing.assert_allclose(scorer.logits(queries.features, tuned=tuned), joined, atol=1e-9)
    scorer.tuned = {"light": 0.5, "tuned": 0.0, "other": 0.0}  # not joined
    np.testing.assert_allclose(scorer.logits(queries.features, tuned=tuned), plain, atol=1e-9)


def test_validation_clips_are_learnt_from_and_counted(method):
    support, texts = world()
    more, _ = world(clips=2, seed=11)
    queries, _ = world(seed=5)
    scorer = method.fit(support, texts, validation=more)
    assert scorer.diagnostics["labels_used"] == {"support": 12, "validation": 8}
    both = Support(support.features + more.features, np.concatenate((support.labels, more.labels)))
    np.testing.assert_allclose(
        scorer.logits(queries.features), method.fit(both, texts).logits(queries.features), atol=1e-9
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.update(format=9), "format 9"),
        (lambda config: config["clip"]["params"].clear(), ""),
        (lambda config: config.update(temperature=float("nan")), "temperature"),
        (lambda config: config.update(temperature=-1.0), "temperature"),  # answers would be turned over
        (lambda config: config.update(method="ridges"), "There is no method"),
        (lambda config: config["texts"]["names"].reverse() or config["texts"]["names"].pop(), "text features"),
        (lambda config: config["clip"]["params"].update({key: ["x"] for key in config["clip"]["params"]}), ""),
        (lambda config: config["clip"]["params"].update(rule="rigde"), "rule 'rigde' is unknown"),
        (lambda config: config.update(tuned={"light": 1}), ""),
        (lambda config: config["diagnostics"].update(loo_log_loss="low"), ""),
    ],
    ids=[
        *("format", "no settings", "temperature", "below 0", "method", "names"),
        *("settings of another kind", "unknown rule", "half a tuned part", "diagnostics"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_before_a_clip_is_read(tmp_path, change, message):
    path = find_method("kernel_ridge").fit(*world()).save(tmp_path / "scorer") / "scorer.json"
    whole = path.read_text(encoding="utf-8")
    config = json.loads(whole)
    change(config)
    path.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(DataError, match=rf"scorer\.json: is not a scorer's.*{message}"):
        Scorer.load(path.parent)
    path.write_text(whole[:-20], encoding="utf-8")
    with pytest.raises(DataError, match="damaged"):
        Scorer.load(path.parent)


def test_a_method_or_a_scorer_that_is_not_there_is_told(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        Scorer.load(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"kernel_ridge"):
        find_method("nonsense")


def rows_of(support, texts):
    targets = support.labels / support.labels.sum(1, keepdims=True)
    return clip_rows(support.features, texts, support.groups), targets


def test_leaving_a_clip_out_equals_fitting_without_it():
    rng = np.random.default_rng(2)
    vectors = unit(rng.normal(size=(20, 6)))
    groups = np.repeat(np.arange(7), 3)[:20]
    targets, weights = rng.normal(size=(20, 3)), rng.uniform(0.2, 1, 20)
    kernel = np.exp(-kernel_ridge.distances(vectors, vectors))
    left = kernel_ridge.solve(kernel, targets, groups, weights, 0.3)[2]
    for group in range(7):
        out, kept = groups == group, groups != group
        dual = np.linalg.solve(kernel[np.ix_(kept, kept)] + np.diag(0.3 / weights[kept]), targets[kept])
        np.testing.assert_allclose(left[out], kernel[np.ix_(out, kept)] @ dual, atol=1e-9)


@pytest.mark.parametrize("name", ["kernel_ridge", "auto"])
def test_a_support_is_moved_into_its_metrics_once_and_not_at_every_clip(name, monkeypatch):
    support, texts = world(clips=4)
    queries, _ = world(clips=1, seed=5)
    scorer, moved, move = find_method(name).fit(support, texts), [], kernel_ridge.Metric.__call__
    first = scorer.logits(queries.features)
    monkeypatch.setattr(kernel_ridge.Metric, "__call__", lambda self, v: (moved.append(len(v)), move(self, v))[1])
    assert (scorer.logits(queries.features) == first).all()
    assert set(moved) == {len(queries)}


def test_a_kernel_is_what_the_formula_says():
    support, texts = world(clips=2)
    rows, targets = rows_of(support, texts)
    head = kernel_ridge.KernelRidge().fit_head(rows, targets, seed=1)
    setting = head.params["experts"]["mean product"]
    expected = np.ones((len(rows), len(rows)))
    for modality in ("visual", "audio"):
        vectors = rows.vectors["mean", modality]
        values, directions = np.linalg.eigh(rows.within[modality])
        values = np.maximum(values, 0)
        ridge = setting["beta"] * sum(value**2 for value in values) / sum(values)
        whitening = directions @ np.diag(1 / np.sqrt(values + ridge)) @ directions.T
        moved = (vectors - vectors.mean(0)) @ whitening
        moved = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        for i in range(len(rows)):
            for j in range(len(rows)):
                expected[i, j] *= math.exp(-setting["bandwidths"][modality] * (1 - moved[i] @ moved[j]))
    dual = np.linalg.solve(expected + setting["penalty"] * np.eye(len(rows)), targets - 1 / CLASSES)
    np.testing.assert_allclose(head.arrays["dual.mean product"], dual, rtol=1e-6, atol=1e-9)


def test_the_evidence_of_single_clips_is_what_the_formula_says():
    support, texts = world(clips=1)
    rows, targets = rows_of(support, texts)
    head = kernel_ridge.KernelRidge().fit_head(rows, targets, seed=1)
    near = {}
    for modality in ("visual", "audio"):
        scores = []
        for view in rows.views:
            vectors = kernel_ridge.metric_of(head, f"{view}.{modality}.0.4")(rows.vectors[view, modality])
            nearness = np.arctanh(0.9 * vectors @ vectors.T)
            different = nearness[~np.eye(len(vectors), dtype=bool)]
            head.params["null"][f"{view}.{modality}"] = [different.mean(), different.std()]
            scores.append((nearness - different.mean()) / different.std())
        near[modality] = np.mean(scores, 0) @ targets
        near[modality] /= np.sqrt((15 + CLASSES * near[modality].var(1, keepdims=True)) / (15 + CLASSES))
    both = [near["visual"] + near["audio"]] * 3
    posteriors = [np.exp(2 * one) / np.exp(2 * one).sum(1, keepdims=True) for one in (*near.values(), *both)]
    head.params["text"] = {}
    np.testing.assert_allclose(np.exp(kernel_ridge.evidence(head, rows)), np.mean(posteriors, 0), atol=1e-9)


def test_a_recording_that_is_heard_again_tells_what_sight_does_not():
    rng = np.random.default_rng(0)

    def clips(sounds):
        pairs = [(rng.normal(size=(1, 12)), sound + 0.2 * rng.normal(size=(1, 12))) for sound in sounds]
        moved = [[part + 0.1 * rng.normal(size=(4, 12)) for part in pair] for pair in pairs]
        return Features.of((f"{row}-{rng.random()}", *pair) for row, pair in enumerate(moved))

    sounds, labels = rng.normal(size=(24, 12)), np.eye(24, dtype=bool)
    texts = LabelFeatures(tuple(f"class {number}" for number in range(24)), *rng.normal(size=(2, 24, 12)))
    scorer = find_method("kernel_ridge").fit(Support(clips(sounds), labels), texts, seed=1)
    assert accuracy(scorer.logits(clips(np.repeat(sounds, 10, 0))), np.repeat(labels, 10, 0)) >= 0.82


@pytest.mark.parametrize(
    ("right", "clips", "classes", "useful"),
    [(2, 2, 2, True), (1, 2, 2, False), (3, 4, 2, False), (4, 4, 2, True), (2, 3, 3, False), (3, 5, 5, True),
     (2, 10, 10, False), (6, 24, 24, True), (3, 24, 24, False), (0, 8, 2, False), (8, 8, 1, False)],
)  # fmt: skip
def test_few_clips_are_enough_for_a_text_that_is_right_as_often_as_a_good_one(right, clips, classes, useful):
    labels = np.eye(classes)[np.arange(clips) % classes]
    said = np.roll(labels, 1, 1)
    said[:right] = labels[:right]
    assert text_is_useful(said, labels) is useful


def test_weights_of_experts_are_drawn_to_where_they_are_wanted():
    targets, wanted = np.eye(2)[[0, 1]], np.array([8.0, 2.0])
    wrong = targets[::-1] - 0.5  # two clips, each left out, lean to the other class
    ones = np.ones(2)
    assert stack([wrong, -wrong], targets, ones)[0] == 0
    np.testing.assert_allclose(stack([wrong, -wrong], targets, ones, wanted, pull=1e6), wanted, rtol=1e-3)
    pulled = stack([wrong, wrong], targets, ones, wanted, pull=0.1)
    assert 0 < pulled[0] < 8


def test_text_takes_part_only_where_it_beats_chance():
    support, texts = world(clips=3, text_noise=0.1)
    rows, targets = rows_of(support, texts)
    assert text_is_useful(rows.text["fused"], targets)
    assert not text_is_useful(rows.text["fused"][:, [1, 2, 3, 0]], targets)
    shuffled = texts.take([1, 2, 3, 0])
    queries, _ = world(clips=10, seed=5)
    meaningless = LabelFeatures(texts.names, shuffled.visual, shuffled.audio, scales=texts.scales)
    for clips in (1, 3):
        support, _ = world(clips=clips)
        scorer = find_method("kernel_ridge").fit(support, meaningless)
        assert accuracy(scorer.logits(queries.features), queries.labels) >= 0.8


def test_clip_adapter_has_the_published_number_of_parameters_at_512_channels():
    rng = np.random.default_rng(0)
    clips = Features.of([(str(row), *rng.normal(size=(2, 1, 256))) for row in range(4)])
    texts = LabelFeatures.with_background(["a", "b"], *rng.normal(size=(2, 3, 256)), scales=(8.0, 8.0))
    support = Support(clips, np.eye(2, dtype=bool)[[0, 1, 0, 1]])
    assert find_method("clip_adapter").fit(support, texts).diagnostics["trainable"] == 131_072


def test_timo_takes_the_prompts_that_lie_near_the_clips_of_each_modality():
    support, texts = world(clips=6)
    noise = np.random.default_rng(3).normal(size=(CLASSES, 3, texts.visual.shape[1]))
    noise /= np.linalg.norm(noise, axis=-1, keepdims=True)
    visual = np.concatenate((texts.visual[:, None], noise), 1)
    audio = np.concatenate((texts.audio[:, None], noise[:, :1]), 1)  # modalities may have different numbers of them
    averaged = replace(texts, visual=visual.mean(1), audio=audio.mean(1))
    prompted = replace(averaged, visual_templates=visual, audio_templates=audio)
    timo, targets = find_method("timo"), support.labels.astype(float)
    right, wrong, weighted = (
        timo.fit_evidence(clip_rows(support.features, labels), targets, seed=1).arrays["weights"]
        for labels in (texts, averaged, prompted)
    )
    assert np.linalg.norm(weighted - right) < 0.5 * np.linalg.norm(wrong - right)
