"""Matching scores, weights, fusion and pooling against NumPy and at their edges (Eq. 11)."""

import numpy as np
import pytest
import torch
from scipy.special import softmax

from avfewshot.models.fusion import (
    FUSIONS,
    POOLS,
    event_weights,
    fuse,
    matching_score,
    modality_weights,
    pool_segments,
    predict_clips,
    predict_events,
)
from avfewshot.models.fusion import logits as logits_of


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return tuple(3 * torch.randn(4, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))


def test_weights_and_fusions_agree_with_numpy(logits):
    by_sight, by_hearing = (softmax(values.numpy(), axis=-1) for values in logits)
    score_v, score_a = by_sight.max(-1), by_hearing.max(-1)
    share = score_v / (score_v + score_a)
    weighted = share[..., None] * by_sight + (1 - share)[..., None] * by_hearing
    product = by_sight * by_hearing / (by_sight * by_hearing).sum(-1, keepdims=True)
    np.testing.assert_allclose(matching_score(logits[0]).numpy(), score_v, rtol=0, atol=1e-10)
    for fusion, expected in (("weighted", weighted), ("product", product)):
        fused, weights = fuse(*logits, fusion=fusion)
        np.testing.assert_allclose(weights.numpy(), np.stack([share, 1 - share], -1), rtol=0, atol=1e-10)
        np.testing.assert_allclose(fused.numpy(), expected, rtol=0, atol=1e-10)


def test_cosine_matching_uses_cosines_and_stays_positive_for_negative_ones():
    visual, audio = torch.tensor([100 * 0.3, 100 * 0.1]), torch.tensor([20 * 0.1, 20 * -0.2])
    weights = modality_weights(visual, audio, matching="cosine", scales=(100.0, 20.0))
    torch.testing.assert_close(weights, torch.tensor([0.75, 0.25]))
    opposed = modality_weights(-visual, audio, matching="cosine", scales=(100.0, 20.0))
    assert 0 < opposed[0] < 0.05
    assert opposed.sum() == 1


@pytest.mark.parametrize("matching", ["softmax", "cosine"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("size", [0.0, 1.0, 1e4, "largest", "infinite"])
def test_weights_are_positive_finite_and_sum_to_one_for_extreme_logits(matching, dtype, size):
    size = {"largest": torch.finfo(dtype).max, "infinite": float("inf")}.get(size, size)
    visual = torch.tensor([[size, -size, 0.0], [size, size, size]], dtype=dtype).nan_to_num(posinf=size, neginf=-size)
    audio = torch.tensor([[-size, -size, -size], [0.0, -size, 0.0]], dtype=dtype)
    weights = modality_weights(visual, audio, matching=matching)
    assert torch.isfinite(weights).all()
    assert (weights >= 0).all()
    if matching == "softmax":
        assert (weights > 0.2).all()  # at worst 1/3 against 1
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, dtype=weights.dtype), rtol=0, atol=1e-6)
    for fusion in FUSIONS:
        fused, _ = fuse(visual, audio, fusion=fusion, matching=matching)
        torch.testing.assert_close(fused.sum(-1), torch.ones(2, dtype=fused.dtype), rtol=0, atol=1e-5)


def test_half_precision_logits_are_computed_in_float32():
    short = torch.tensor([8.0, 0.0], dtype=torch.bfloat16)
    fused, weights = fuse(short, short)
    assert fused.dtype == weights.dtype == torch.float32
    torch.testing.assert_close(fused, torch.tensor([8.0, 0.0]).softmax(-1))


def test_absent_modalities_of_single_samples_have_no_weight():
    logits = torch.randn(4, 3)
    sighted, hearing = torch.tensor([True, True, False, False]), torch.tensor([True, False, True, False])
    weights = modality_weights(logits, logits, present=(sighted, hearing))
    assert weights.tolist() == [[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_one_modality_alone_is_that_modality(fusion, pool, logits):
    background = torch.zeros(4, 6, dtype=torch.float64)
    seen = predict_clips(logits[0], None, fusion=fusion, pool=pool, backgrounds=(background, None))
    heard = predict_clips(None, logits[1], fusion=fusion, pool=pool, backgrounds=(None, background))
    torch.testing.assert_close(seen.probabilities, seen.visual)
    torch.testing.assert_close(heard.probabilities, heard.audio)
    assert (seen.audio, heard.visual) == (None, None)
    assert seen.weights.tolist() == [[1, 0]] * 4
    assert heard.segment_weights.tolist() == [[[0, 1]] * 6] * 4


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_distribution_sums_to_one_whatever_the_shape(fusion, pool):
    for shape in ((1, 1), (1, 4), (7, 1), (2, 3, 4)):
        visual, audio = 5 * torch.randn(shape), 5 * torch.randn(shape)
        backgrounds = torch.randn(shape[:-1]), torch.randn(shape[:-1])
        found = predict_clips(visual, audio, fusion=fusion, pool=pool, backgrounds=backgrounds)
        assert found.probabilities.shape == (*shape[:-2], shape[-1])
        assert found.segment_probabilities.shape == shape
        assert found.segment_weights.shape == (*shape[:-1], 2)
        of_clips = [found.probabilities, found.visual, found.audio, found.weights]
        for values in (*of_clips, found.segment_probabilities, found.segment_weights):
            torch.testing.assert_close(values.sum(-1), torch.ones(values.shape[:-1]))


def test_mean_pooling_is_the_mean_of_the_segments_predictions(logits):
    prediction = predict_clips(*logits)
    segments, weights = fuse(*logits)
    torch.testing.assert_close(prediction.probabilities, segments.mean(-2))
    torch.testing.assert_close(prediction.visual, logits[0].softmax(-1).mean(-2))
    torch.testing.assert_close(prediction.weights, weights.mean(-2))
    torch.testing.assert_close(pool_segments(segments), segments.mean(-2))


def test_event_pooling_agrees_with_numpy(logits):
    backgrounds = tuple(torch.randn(4, 6, dtype=torch.float64) for _ in range(2))
    shares, times = [], []
    for values, background in zip(logits, backgrounds, strict=True):
        values, background = values.numpy(), background.numpy()
        happening = 1 / (1 + np.exp(background - values.max(-1)))
        times.append(happening / happening.sum(-1, keepdims=True))
        shares.append(softmax(values, axis=-1))
    first, second = (share.max(-1) for share in shares)
    weight = first / (first + second)
    fused = weight[..., None] * shares[0] + (1 - weight)[..., None] * shares[1]
    joint = (times[0] + times[1]) / 2
    prediction = predict_clips(*logits, pool="event", backgrounds=backgrounds)
    expected = (joint[..., None] * fused).sum(-2)
    np.testing.assert_allclose(prediction.probabilities.numpy(), expected, rtol=0, atol=1e-10)
    by_hearing = (times[1][..., None] * shares[1]).sum(-2)
    np.testing.assert_allclose(prediction.audio.numpy(), by_hearing, rtol=0, atol=1e-10)
    np.testing.assert_allclose(prediction.weights[:, 0].numpy(), (joint * weight).sum(-1), rtol=0, atol=1e-10)


def test_event_weights_stay_defined_where_nothing_happens():
    weights = event_weights(torch.full((4, 2), -500.0), torch.full((4,), 500.0))
    torch.testing.assert_close(weights, torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda logits: fuse(logits, logits, fusion="sum"), "weighted, product"),
        (lambda logits: predict_clips(logits, logits, pool="max"), "mean, event"),
        (lambda logits: matching_score(logits, matching="dot"), "softmax, cosine"),
        (lambda logits: fuse(None, None), "neither"),
        (lambda logits: predict_clips(logits, None, pool="event"), "background"),
    ],
)
def test_names_and_missing_inputs_are_checked(call, message):
    with pytest.raises(ValueError, match=message):
        call(torch.zeros(2, 3))


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("fusion", FUSIONS)
def test_clips_that_lack_a_modality_are_predicted_in_a_batch_as_if_alone(fusion, pool):
    logits = [5 * torch.randn(3, 4, 6, dtype=torch.float64) for _ in range(2)]
    masks = {"present": (torch.tensor([True, False, True]), torch.tensor([True, True, False]))}
    together = predict_events(*logits, fusion=fusion, pool=pool, **masks)
    alone = [
        predict_events(logits[0][0], logits[1][0], fusion=fusion, pool=pool),
        predict_events(None, logits[1][1], fusion=fusion, pool=pool),
        predict_events(logits[0][2], None, fusion=fusion, pool=pool),
    ]
    for row, expected in enumerate(alone):
        torch.testing.assert_close(together.log_probabilities[row], expected.log_probabilities)
        torch.testing.assert_close(together.weights[row], expected.weights)


@pytest.mark.parametrize("pool", POOLS)
def test_a_loss_on_the_prediction_has_gradients_for_logits_alone_and_not_for_weights(pool):
    visual, audio = (torch.randn(2, 4, 5, dtype=torch.float64, requires_grad=True) for _ in range(2))
    predict_events(visual, audio, pool=pool).log_probabilities[:, 1].sum().backward()
    v, a = (part.detach().clone().requires_grad_() for part in (visual, audio))
    with torch.no_grad():
        shares = modality_weights(v[..., :-1], a[..., :-1])
        times = torch.full((2, 4), 0.25, dtype=torch.float64)
        if pool == "event":
            times = (event_weights(v[..., :-1], v[..., -1]) + event_weights(a[..., :-1], a[..., -1])) / 2
    fused = shares[..., :1] * v[..., :-1].softmax(-1) + shares[..., 1:] * a[..., :-1].softmax(-1)
    (times[..., None] * fused).sum(-2).log()[:, 1].sum().backward()
    torch.testing.assert_close(visual.grad, v.grad)
    torch.testing.assert_close(audio.grad, a.grad)


def test_the_gradient_does_not_vanish_where_a_probability_does():
    visual = torch.tensor([[[0.0, 200.0, 0.0]]], requires_grad=True)
    found = predict_events(visual, None).log_probabilities
    (-found[0, 0]).backward()
    assert found[0, 0].item() == pytest.approx(-200.0)
    assert visual.grad[0, 0, 0].item() == pytest.approx(-1.0)


def test_logits_are_float32_at_least_even_under_autocast():
    embeddings, texts = (torch.nn.functional.normalize(torch.randn(6, 64), dim=-1) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logits_of(embeddings, texts, 100.0)
    torch.testing.assert_close(found, 100 * embeddings @ texts.T)
    assert logits_of(embeddings.bfloat16(), texts.bfloat16(), 100.0).dtype == torch.float32
    assert logits_of(embeddings.double(), texts, 100.0).dtype == torch.float64
