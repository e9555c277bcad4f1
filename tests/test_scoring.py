"""From embeddings to logits, joined logits, predictions, and the choice among them."""

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pydantic import TypeAdapter
from scipy.special import log_softmax, softmax
from training_support import CLASSES, backbone, names, read, texts

from avfewshot.config import TrainingConfig
from avfewshot.evaluation.evaluator import Evaluator
from avfewshot.evaluation.few_shot import tuned_posteriors, tuned_seconds
from avfewshot.evaluation.predictions import (
    Fitted,
    PredictionConfig,
    clip_probabilities,
    second_probabilities,
)
from avfewshot.evaluation.targets import BackgroundRule, Targets
from avfewshot.inference.embedding_cache import EmbeddingCache, embed_cached
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.head import ZeroShotHead
from avfewshot.inference.logits import ClipLogits, score_clip
from avfewshot.media.clip import Failure
from avfewshot.media.stream import read_ahead
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.fusion import FUSIONS, fuse, predict_events, predict_seconds, second_posteriors
from avfewshot.models.losses import combined_loss
from avfewshot.training.objective import Objective, TrainingClip, embed_batch
from avfewshot.training.validation import ALPHAS, Validator, ValMetrics


def logits(seed, seconds=4, scale=3.0, *, visual=True, audio=True):
    generator = torch.Generator().manual_seed(seed)
    draw = [scale * torch.randn(seconds, CLASSES + 1, generator=generator, dtype=torch.float64) for _ in range(2)]
    return ClipLogits(draw[0] if visual else None, draw[1] if audio else None)


def test_logits_are_scaled_cosines_and_joined_ones_the_weighted_sum():
    given, visual = texts(), torch.nn.functional.normalize(torch.randn(3, 6), dim=-1)
    found = score_clip(visual, None, given, (20.0, 5.0))
    np.testing.assert_allclose(found.visual.numpy(), 20 * visual.double().numpy() @ given.visual.double().numpy().T)
    assert found.audio is None
    before, after = logits(1), logits(2)
    joined = before.ensemble(after, 0.25)
    np.testing.assert_allclose(joined.visual.numpy(), 0.75 * before.visual.numpy() + 0.25 * after.visual.numpy())
    assert torch.equal(before.ensemble(after, 0.0).audio, before.audio)
    assert torch.equal(before.ensemble(after, 1.0).audio, after.audio)
    assert before.only("audio").ensemble(after.only("audio"), 0.5).visual is None


def test_clips_of_any_length_and_modality_are_predicted_as_if_alone():
    clips = [logits(1), logits(2, 7), logits(3, audio=False), logits(4, visual=False), ClipLogits(None, None)]
    together = clip_probabilities(clips, CLASSES, fusion="weighted", pool="event")
    alone = [clip_probabilities([clip], CLASSES, fusion="weighted", pool="event")[0] for clip in clips]
    np.testing.assert_allclose(together, alone, atol=1e-15)
    np.testing.assert_allclose(together[-1], 1 / CLASSES)


def test_clip_probabilities_follow_the_equations():
    clip = logits(1)
    visual, audio = clip.visual.numpy(), clip.audio.numpy()
    p_v, p_a = (softmax(part[:, :CLASSES], axis=-1) for part in (visual, audio))
    w = p_v.max(-1) / (p_v.max(-1) + p_a.max(-1))
    fused = w[:, None] * p_v + (1 - w)[:, None] * p_a
    found = clip_probabilities([clip], CLASSES, fusion="weighted", pool="mean")[0]
    np.testing.assert_allclose(found, fused.mean(0), atol=1e-12)


def test_seconds_that_a_clip_lacks_are_background():
    found = second_probabilities([logits(1, 2), logits(2, 9)], CLASSES, 4, fusion="weighted")
    assert found.shape == (2, 4, CLASSES + 1)
    np.testing.assert_array_equal(found[0, 2:, CLASSES], 1)
    np.testing.assert_allclose(found.sum(-1), 1)


def test_an_event_must_be_both_seen_and_heard():
    clip = logits(1, 3)
    for fusion in FUSIONS:
        events, salience = predict_seconds(clip.visual, clip.audio, fusion=fusion)
        expected = np.log(fuse(clip.visual, clip.audio, fusion=fusion)[0][:, :-1])
        np.testing.assert_allclose(events, log_softmax(expected.numpy(), axis=-1))
        for second, label in enumerate(events.argmax(-1)):
            margins = [float(part[second, label] - part[second, -1]) for part in (clip.visual, clip.audio)]
            assert salience[second] == pytest.approx(min(margins))
        joint = second_posteriors(clip.visual, clip.audio, fusion=fusion)
        np.testing.assert_allclose(joint[:, :-1].logsumexp(-1) - joint[:, -1], salience)
        np.testing.assert_allclose(joint[:, :-1].log_softmax(-1), events)
    events, salience = predict_seconds(None, clip.audio)
    best = clip.audio[1, :-1].argmax()
    assert salience[1] == pytest.approx(float(clip.audio[1, best] - clip.audio[1, -1]))
    # Seconds that a clip lacks are the surest background.
    found = PredictionConfig("ave", "weighted", "mean", "threshold", seconds=4).predict([clip], CLASSES, Fitted())
    assert found.salience[0, 3] < -1e5
    np.testing.assert_allclose(found.salience[0, :3], predict_seconds(clip.visual, clip.audio)[1])


def targets(rows, segments=None):
    labels = np.eye(CLASSES, dtype=bool)[rows]
    return Targets(tuple(f"c{n}" for n in range(len(rows))), tuple("abc"), labels, segments)


def sure(label, strength=5.0, seconds=4):
    values = torch.zeros(seconds, CLASSES + 1, dtype=torch.float64)
    values[:, label] = strength
    return ClipLogits(values, values.clone())


def test_a_background_threshold_is_fitted_for_tasks_that_label_seconds():
    decision = PredictionConfig("ave", "weighted", "mean", "threshold", seconds=4)
    clips = [sure(label) for label in (0, 1, CLASSES, CLASSES)]
    truth = targets([0, 1, 2, 2], np.repeat([[0], [1], [CLASSES], [CLASSES]], 4, axis=1))
    assert decision.fit(clips, truth).background.strategy == "threshold"
    assert Validator(decision, truth, clips, lambda model: ()).baseline().figure == 1.0
    # A second that is background beyond doubt still has finite scores.
    found = decision.predict([sure(CLASSES, 5000.0)], CLASSES, Fitted(BackgroundRule("threshold", 0.0)))
    assert np.isfinite(found.salience).all()
    np.testing.assert_allclose(found.probabilities.sum(-1), 1)


def test_the_background_text_competes_under_the_rule_prompt():
    decision = PredictionConfig("ave", "weighted", "mean", "prompt", seconds=4)
    found = decision.predict([sure(1), sure(CLASSES)], CLASSES, Fitted(BackgroundRule("prompt")))
    assert found.probabilities.shape == (2, 4, CLASSES + 1)
    assert found.probabilities.argmax(-1).tolist() == [[1] * 4, [CLASSES] * 4]


def test_validation_chooses_the_share_of_the_trained_logits():
    decision = PredictionConfig("ave_cls", "weighted", "mean")
    truth = targets([0, 1, 2])
    good, bad = [sure(n) for n in range(3)], [sure((n + 1) % 3, 8.0) for n in range(3)]

    def validate(before, after, *alpha):
        return Validator(decision, truth, before, lambda model: after, *alpha)(None, 1)

    assert validate(bad, good).blend == 1.0
    assert validate(good, bad).blend == min(ALPHAS)
    assert validate(good, bad).figure == 1.0
    assert validate(good, bad, 1.0).figure == 0.0


def test_predictions_keep_to_the_fusion_that_a_model_was_validated_with():
    truth = targets([0, 1])
    # Sight tells 0 and 1 from 2, sound 0 from 1, and is surer of 2: added up, it wins.
    seen = [torch.tensor([[5.0, 5.0, -9.0, -9.0]])] * 2
    heard = [torch.tensor([[0.0, -9.0, 2.0, -9.0]]), torch.tensor([[-9.0, 0.0, 2.0, -9.0]])]
    clips = [ClipLogits(*pair) for pair in zip(seen, heard, strict=True)]
    usual = PredictionConfig("ave_cls", "weighted", "mean")
    for fusion, right in (("product", True), ("weighted", False)):
        decision = PredictionConfig("ave_cls", fusion, "mean")
        found = Validator(decision, truth, clips, lambda model: clips, 1.0)(None, 1)
        assert (found.figure == 1.0) is right
        for metrics in (found, Validator(decision, None, (), lambda model: ())(None, 1)):
            answers = usual.predict(clips, CLASSES, metrics.fitted).probabilities.argmax(1)
            assert (answers.tolist() == [0, 1]) is right


def test_a_trained_model_keeps_its_own_fusion_beside_untrained_ones():
    seen = [torch.tensor([[5.0, 5.0, -9.0, -9.0]])] * 2
    heard = [torch.tensor([[0.0, -9.0, 2.0, -9.0]]), torch.tensor([[-9.0, 0.0, 2.0, -9.0]])]
    clips = [ClipLogits(*pair) for pair in zip(seen, heard, strict=True)]
    task = SimpleNamespace(
        decision=PredictionConfig("ave_cls", "weighted", "mean"),
        texts=SimpleNamespace(num_classes=CLASSES),
        validation_targets=lambda: targets([0, 1]),
        joined=lambda model, split, share: clips,
    )
    task.fit, task.predict = partial(Evaluator.fit, task), partial(Evaluator.predict, task)
    for fusion, right in (("product", [0, 1]), ("", [2, 2])):
        logits, fitted = Evaluator.adapted(task, 1, fusion=fusion)
        assert task.predict(logits, fitted).probabilities.argmax(1).tolist() == right
    assert task.predict(clips, task.fit(clips)).probabilities.argmax(1).tolist() == [2, 2]  # the untrained towers


def test_metrics_are_better_by_their_figure_and_then_by_their_loss_and_come_back_from_json():
    def better(figure, loss):
        return ValMetrics(figure, loss, 1.0, Fitted()).better_than(ValMetrics(0.5, 1.0, 1.0, Fitted()))

    assert [better(0.6, 2.0), better(0.5, 0.9), better(0.5, 1.0), better(0.4, 0.1)] == [True, True, False, False]
    for details in ({}, {"segment_accuracy": 50.0}):
        for fitted in (Fitted(), Fitted(BackgroundRule("threshold", 0.25), 0.5, "product")):
            metrics = ValMetrics(0.5, 1.25, 0.75, fitted, details)
            assert TypeAdapter(ValMetrics).validate_python(metrics.to_dict()) == metrics


def training_clips(paths):
    return [
        TrainingClip(clip.frames, clip.audio_segments, torch.eye(CLASSES, dtype=torch.bool)[int(clip.path.stem[0])])
        for clip in map(read, paths)
    ]


def test_clips_of_unequal_length_are_embedded_as_if_alone():
    model = AudioVisualModel(backbone()).eval()
    clips = training_clips([Path("0-1-2.mp4"), Path("1-1-5.mp4"), Path("2-1-2-mute.mp4"), Path("1-2-2-blind.mp4")])
    together = embed_batch(model, clips, torch.device("cpu"))
    for clip, found in zip(clips, together, strict=True):
        (alone,) = embed_batch(model, [clip], torch.device("cpu"))
        for name in ("visual", "audio"):
            first, second = getattr(found, name), getattr(alone, name)
            assert (first is None) == (second is None)
            if first is not None:
                torch.testing.assert_close(first, second)
    assert together[2].audio is None
    assert together[3].visual is None


def loss_of(config, clips, *, per_second=False):
    model, given = AudioVisualModel(backbone()).eval(), texts()
    embedded = embed_batch(model, clips, torch.device("cpu"))
    found = Objective(config, given, per_second=per_second)(model, embedded, [clip.labels for clip in clips])
    return found, embedded, given


@pytest.mark.parametrize("pool", ["mean", "event"])
def test_the_loss_of_clips_pools_as_the_prediction_does(pool):
    """Probabilities of seconds are averaged, not logits, and every second weighs the modalities for itself."""
    clips = training_clips([*names(), Path("0-4-5.mp4")])
    found, embedded, given = loss_of(TrainingConfig(pool=pool), clips)
    losses = []
    for clip, embedding in zip(clips, embedded, strict=True):
        sure, own, salience = [], [], []
        for name in ("visual", "audio"):
            values = 10.0 * (getattr(embedding, name) @ getattr(given, name).T).detach().double().numpy()
            shares = np.exp(values[:, :-1]) / np.exp(values[:, :-1]).sum(-1, keepdims=True)
            event = (
                1 / (1 + np.exp(values[:, -1] - values[:, :-1].max(-1))) if pool == "event" else np.ones(len(values))
            )
            salience.append(event / event.sum())
            own.append(-np.log((salience[-1] * shares[:, clip.labels.numpy()][:, 0]).sum()))
            sure.append(shares.max(-1))
        weight = (np.mean(salience, axis=0) * sure[0] / (sure[0] + sure[1])).sum()
        losses.append(weight * own[0] + (1 - weight) * own[1])
    assert found.total.item() == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("fusion", ["weighted", "product"])
@pytest.mark.parametrize("pool", ["mean", "event"])
def test_what_is_trained_is_what_the_classifier_says(fusion, pool):
    paths = [*names(), Path("0-3-5.mp4"), Path("1-3-2-mute.mp4"), Path("2-3-4-blind.mp4")]
    model, given = AudioVisualModel(backbone()).eval(), texts()
    embedded = embed_batch(model, training_clips(paths), torch.device("cpu"))
    trained = Objective(TrainingConfig(fusion=fusion, pool=pool), given, per_second=False).predict(model, embedded)
    head = ZeroShotHead("abc", [(given, (10.0, 10.0))], 1.0, modality="av", fusion=fusion, pool=pool)
    for path, clip, prediction in zip(paths, embedded, trained, strict=True):
        visual, audio = (None if part is None else part.detach() for part in (clip.visual, clip.audio))
        said = head.result(EmbeddedFile(str(path), 3.0, visual, audio, ()), segments=False)
        torch.testing.assert_close(prediction.probabilities, torch.tensor(list(said.scores.values())))


def test_every_second_is_a_sample_where_seconds_are_labelled():
    clips = training_clips([Path("0-1-2.mp4"), Path("1-1-5-mute.mp4")])
    seconds = [
        torch.nn.functional.one_hot(torch.randint(0, CLASSES + 1, (clip.num_segments,)), CLASSES + 1).bool()
        for clip in clips
    ]
    clips = [TrainingClip(clip.frames, clip.audio, truth) for clip, truth in zip(clips, seconds, strict=True)]
    config = TrainingConfig(task="ave")
    found, embedded, given = loss_of(config, clips, per_second=True)
    visual = torch.cat([10.0 * clip.visual @ given.visual.T for clip in embedded])
    audio = torch.cat([10.0 * embedded[0].audio @ given.audio.T, torch.zeros(5, CLASSES + 1)])
    heard = torch.tensor([True] * 2 + [False] * 5)
    expected = combined_loss(visual, audio, torch.cat(seconds), objective="classes", present=(None, heard))
    torch.testing.assert_close(found.total, expected.total)


def test_clips_that_share_a_class_are_no_negatives_of_each_other():
    clips = training_clips([Path("0-1.mp4"), Path("0-2.mp4"), Path("1-1.mp4")])
    found, embedded, given = loss_of(TrainingConfig(objective="contrastive", pool="mean"), clips)
    visual, audio = (
        torch.stack([10.0 * (getattr(clip, name) @ getattr(given, name)[[0, 0, 1]].T).mean(0) for clip in embedded])
        for name in ("visual", "audio")
    )
    shared = torch.tensor([[1, 1, 0], [1, 1, 0], [0, 0, 1]]).bool()
    torch.testing.assert_close(found.total, combined_loss(visual, audio, shared).total)
    assert abs(found.total - combined_loss(visual, audio, torch.eye(3).bool()).total) > 1e-3


def test_clips_come_in_order_and_a_broken_one_stops_nothing():
    paths = [*names(), Path("1-5-broken.mp4"), Path("2-7.mp4")]
    for workers in (0, 3):
        found = list(read_ahead(paths, read, workers=workers))
        assert [Path(item.path) for item in found] == paths
        assert [isinstance(item, Failure) for item in found] == [False] * 6 + [True, False]
        assert found[6].error == "it is broken."


def test_embeddings_are_kept_until_the_file_or_the_model_changes_or_their_entry_is_damaged(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"x")
    cache = EmbeddingCache({"weights": "1"}, tmp_path / "cache")
    file = EmbeddedFile(str(path), 2.5, torch.randn(2, 6), None, ("odd",))
    cache.put(path, file)
    found = cache.get(path)
    assert torch.equal(found.visual, file.visual)
    assert (found.audio, found.duration, found.warnings) == (None, 2.5, ("odd",))
    assert EmbeddingCache({"weights": "2"}, tmp_path / "cache").get(path) is None
    path.write_bytes(b"y")  # rewritten at the same size
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns + 1))  # some disks count in coarse ticks
    assert cache.get(path) is None
    cache.put(path, file)
    assert cache.get(path) is not None
    path.write_bytes(b"xy")
    assert cache.get(path) is None
    cache = EmbeddingCache({}, tmp_path / "damaged")
    cache.put(path, file)
    (entry,) = (tmp_path / "damaged").rglob("*.safetensors")
    entry.write_bytes(entry.read_bytes()[:-9])
    assert cache.get(path) is None


def test_what_was_made_of_a_file_that_changes_meanwhile_is_not_kept(tmp_path):
    path, cache = tmp_path / "a.mp4", EmbeddingCache({}, tmp_path / "cache")
    path.write_bytes(b"half")

    def embed(paths, whole=b""):
        for one in paths:
            if whole:
                one.write_bytes(whole)
            yield EmbeddedFile(str(one), 1.0, torch.zeros(1, 2), None, ())

    list(embed_cached([path], lambda paths: embed(paths, b"half and half"), cache))
    assert not cache.has(path)
    list(embed_cached([path], embed, cache))
    assert cache.has(path)


def test_a_tuned_part_is_joined_by_its_own_fusion_and_by_the_other():
    rng = np.random.default_rng(0)
    clips = [ClipLogits(*(torch.from_numpy(rng.normal(size=(3, 5))) for _ in range(2))) for _ in range(2)]
    decision, none = PredictionConfig("folder", "weighted", "mean"), 1
    evaluator = SimpleNamespace(decision=decision, dataset=SimpleNamespace(none_class=none, num_classes=4))
    ways = {}
    for fusion in ("weighted", "product"):
        said = [predict_events(clip.visual, clip.audio, fusion=fusion).probabilities.log().numpy() for clip in clips]
        ways[fusion] = np.delete(np.stack(said), none, axis=1)
    for own, other in (("weighted", "product"), ("product", "weighted")):
        found = tuned_posteriors(evaluator, clips, Fitted(fusion=own))
        np.testing.assert_allclose(found, [ways[own], ways[other]], rtol=1e-6)
    np.testing.assert_allclose(tuned_posteriors(evaluator, clips, Fitted())[0], ways["weighted"], rtol=1e-6)
    own, other = tuned_seconds(evaluator, clips, Fitted(fusion="product"))
    for row, clip in enumerate(clips):
        for said, fusion in ((own, "product"), (other, "weighted")):
            np.testing.assert_array_equal(said[row], second_posteriors(clip.visual, clip.audio, fusion=fusion))
