"""The combined loss against NumPy (Eq. 9-11), with shared labels, several labels and absent modalities."""

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from torch.nn import functional as F

from avfewshot.models.losses import combined_loss, contrastive_loss, matching_loss, shared_labels


def plain_direction(logits: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Sample by sample, positive by positive."""
    logs = log_softmax(logits, axis=-1)
    losses = np.zeros(len(logits))
    for row in range(len(logits)):
        own = [-logs[row, column] for column in range(logits.shape[1]) if positives[row, column]]
        losses[row] = np.mean(own) if own else 0
    return losses


@pytest.fixture
def logits() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    return tuple(4 * torch.randn(6, 6, generator=generator, dtype=torch.float64) for _ in range(2))


def test_the_combined_loss_agrees_with_numpy(logits):
    positives = shared_labels(torch.tensor([0, 1, 0, 2, 1, 3]))
    shares, losses = [], []
    for values in (part.numpy() for part in logits):
        shares.append(np.exp(log_softmax(values, axis=-1)).max(-1))
        by_sample = plain_direction(values, positives.numpy())
        by_text = plain_direction(values.T, positives.numpy().T)
        losses.append((by_sample + by_text) / 2)
    first = shares[0] / (shares[0] + shares[1])
    result = combined_loss(*logits, positives)
    np.testing.assert_allclose(result.weights[:, 0].numpy(), first, rtol=0, atol=1e-10)
    expected = (first * losses[0] + (1 - first) * losses[1]).mean(), losses[0].mean(), losses[1].mean()
    found = result.total.item(), result.visual.item(), result.audio.item()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


def test_over_classes_only_samples_look_for_texts(logits):
    visual, audio = (values[:, :4] for values in logits)
    labels = torch.tensor([0, 1, 0, 3, 2, 1])
    result = combined_loss(visual, audio, shared_labels(labels, torch.arange(4)), objective="classes")
    by_sight, by_hearing = (F.cross_entropy(values, labels, reduction="none") for values in (visual, audio))
    expected = (result.weights[:, 0] * by_sight + result.weights[:, 1] * by_hearing).mean()
    torch.testing.assert_close(result.total, expected)


def test_clips_that_share_a_label_are_positives_of_each_other():
    labels = torch.tensor([0, 0, 1])
    texts = F.normalize(torch.randn(2, 8), dim=-1)[labels]
    logits = (10 * torch.randn(3, 8) @ texts.T).requires_grad_()
    contrastive_loss(logits, shared_labels(labels)).sum().backward()
    apart = logits.grad[0, 1]
    logits.grad = None
    contrastive_loss(logits, torch.eye(3, dtype=torch.bool)).sum().backward()
    # As a negative, the equal text of the other clip would push this clip away from its own class.
    assert logits.grad[0, 1] > 0.05
    assert apart < 0.5 * logits.grad[0, 1]
    torch.testing.assert_close(  # equal texts, equal pull
        matching_loss(logits.detach(), shared_labels(labels))[0], -logits.detach()[0].log_softmax(-1)[:2].mean()
    )


def test_several_labels_share_one_when_any_is_common():
    labels = torch.tensor([[1, 1, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]).bool()
    assert shared_labels(labels).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert shared_labels(labels, torch.eye(3).bool()).int().tolist() == labels.int().tolist()


def test_a_sample_without_any_true_text_does_not_count(logits):
    visual, audio = (values[:, :4] for values in logits)
    positives = shared_labels(torch.tensor([0, 1, 2, 3, 0, 9]), torch.arange(4))
    result = combined_loss(visual, audio, positives, objective="classes")
    expected = combined_loss(visual[:5], audio[:5], positives[:5], objective="classes")
    torch.testing.assert_close(result.total, expected.total)
    torch.testing.assert_close(result.visual, expected.visual)


@pytest.mark.parametrize("objective", ["contrastive", "classes"])
def test_absent_modalities_neither_count_nor_guide(objective, logits):
    positives = shared_labels(torch.arange(6) % 4)
    visual, audio = (values.clone() for values in logits)
    sighted = torch.tensor([True, True, False, True, True, True])
    hearing = torch.tensor([True, True, True, False, True, True])
    options = {"objective": objective, "present": (sighted, hearing)}
    expected = combined_loss(visual, audio, positives, **options)
    visual[2], audio[3] = float("nan"), float("nan")  # of nothing, nothing is known
    visual.requires_grad_(), audio.requires_grad_()
    result = combined_loss(visual, audio, positives, **options)
    result.total.backward()
    torch.testing.assert_close(result.total, expected.total)
    assert result.weights[2].tolist() == [0, 1]
    assert result.weights[3].tolist() == [1, 0]
    assert torch.isfinite(visual.grad).all()
    assert visual.grad[2].abs().sum() == 0
    assert visual.grad[3].abs().sum() > 0
    alone = combined_loss(None, logits[1], positives)
    torch.testing.assert_close(alone.total, contrastive_loss(logits[1], positives).mean())
    assert alone.visual == 0


@pytest.mark.parametrize("matching", ["softmax", "cosine"])
def test_no_gradient_flows_through_the_weights(matching, logits):
    visual, audio = logits[0].clone().requires_grad_(), logits[1].clone().requires_grad_()
    positives = shared_labels(torch.arange(6))
    result = combined_loss(visual, audio, positives, matching=matching, scales=(20.0, 5.0))
    result.total.backward()
    got = visual.grad.clone()
    visual.grad = None
    (result.weights[:, 0] * contrastive_loss(visual, positives)).mean().backward()
    assert not result.weights.requires_grad
    torch.testing.assert_close(got, visual.grad)


@pytest.mark.parametrize("matching", ["softmax", "cosine"])
@pytest.mark.parametrize("size", [0.0, 1e3, 3e38])
def test_extreme_logits_in_bfloat16_give_finite_losses_weights_and_gradients(matching, size):
    visual = (size * torch.eye(4)).to(torch.bfloat16).requires_grad_()
    audio = (-size * torch.ones(4, 4)).to(torch.bfloat16)
    result = combined_loss(visual, audio, shared_labels(torch.arange(4)), matching=matching)
    result.total.backward()
    assert torch.isfinite(result.total)
    assert torch.isfinite(visual.grad).all()
    assert torch.isfinite(result.weights).all()
    torch.testing.assert_close(result.weights.sum(-1), torch.ones(4))


def test_names_and_shapes_are_checked(logits):
    positives = shared_labels(torch.arange(6))
    with pytest.raises(ValueError, match="contrastive, classes"):
        combined_loss(*logits, positives, objective="triplet")
    with pytest.raises(ValueError, match="as many texts"):
        contrastive_loss(logits[0][:, :4], positives[:, :4])
    with pytest.raises(ValueError, match="neither"):
        combined_loss(None, None, positives)
