"""What a step leaves in the parameters: gradients of cut, uneven and accumulated batches, and the step along them.

Compared with one plain backward pass, number for number: an optimizer such as Adam, or clipping, would hide a factor.
"""

from pathlib import Path

import pytest
import torch
from training_support import CLASSES, make_trainer, read, tensors

from avfewshot.training.objective import TrainingClip, embed_batch

PATHS = [Path(name) for name in ("0-1-3.mp4", "1-1-2.mp4", "2-1-3-mute.mp4", "0-2-1.mp4", "1-2-3-blind.mp4")]


def clips(paths):
    eye = torch.eye(CLASSES, dtype=torch.bool)
    return [TrainingClip.of(read(path), eye[int(path.stem[0])], 0, 10) for path in paths]


def gradients(training):
    return {
        name: parameter.grad.clone()
        for name, parameter in training.model.named_parameters()
        if parameter.grad is not None
    }


def plain(training, batches):
    """The gradient of the mean of the batches' mean losses, each batch as one piece."""
    model = training.model
    model.zero_grad(set_to_none=True)
    losses = []
    for batch in batches:
        embeddings = embed_batch(model, batch, torch.device("cpu"))
        losses.append(training.task.objective(model, embeddings, [clip.labels for clip in batch]).total)
    torch.stack(losses).mean().backward()
    result = gradients(training)
    model.zero_grad(set_to_none=True)
    return result, torch.stack(losses).mean().item()


def opened(tmp_path, **settings):
    """A training whose gates are open, so that every parameter has a gradient to compare."""
    training = make_trainer(tmp_path, clip_norm=0, **settings)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in training.model.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    training.model.train()
    return training


def check(training, batches):
    """A step leaves the gradient, and tells the loss, of the mean of the batches."""
    expected, loss = plain(training, batches)
    step = training.accumulate([clip for batch in batches for clip in batch])
    actual = gradients(training)
    assert step["loss"] == pytest.approx(loss, rel=1e-5)
    assert actual.keys() == expected.keys()
    assert sum(bool(tensor.abs().max() > 1e-4) for tensor in expected.values()) > 10
    for name, tensor in expected.items():
        torch.testing.assert_close(actual[name], tensor, rtol=1e-4, atol=1e-6, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize(
    ("settings", "cuts"),
    [
        *(
            ({"batch_size": 5, "micro_batch": micro, "objective": objective}, [(0, 5)])
            for micro in (1, 2, 3)
            for objective in ("classes", "contrastive")
        ),
        ({"batch_size": 2, "accumulation": 3}, [(0, 2), (2, 4), (4, 5)]),
        ({"batch_size": 3, "accumulation": 2, "micro_batch": 2, "objective": "contrastive"}, [(0, 3), (2, 5)]),
    ],
)
def test_pieces_of_unequal_size_and_accumulated_batches_give_the_gradient_of_whole_ones(tmp_path, settings, cuts):
    training = opened(tmp_path, **settings)
    batches = [clips(PATHS[begin:end]) for begin, end in cuts]
    check(training, batches)


def test_seconds_weigh_alike_in_pieces_of_clips_of_unequal_length(tmp_path):
    training = opened(tmp_path, batch_size=3, micro_batch=1)
    training.task.objective.per_second = True
    batch = clips(PATHS[:3])
    for number, clip in enumerate(batch):
        truth = torch.zeros(clip.num_segments, 4, dtype=torch.bool)
        truth[:, number] = True
        object.__setattr__(clip, "labels", truth)
    check(training, [batch])


@pytest.mark.parametrize(("clip_norm", "factor"), [(0, 1.0), (2.0, 0.5), (8.0, 1.0)])
def test_gradients_are_clipped_by_their_norm(tmp_path, clip_norm, factor):
    """With plain descent: what a step moves is rate x gradient, scaled to the norm where that is exceeded."""
    training = make_trainer(tmp_path, clip_norm=clip_norm)
    parameters = [parameter for parameter in training.model.parameters() if parameter.requires_grad]
    descent = torch.optim.SGD([{"params": parameters, "factor": 1.0}], lr=1.0)
    training.optimizer, training.parts["optimizer"] = training.fabric.setup_optimizers(descent), descent
    generator = torch.Generator().manual_seed(3)
    given = [torch.randn(parameter.shape, generator=generator) for parameter in parameters]
    norm = torch.cat([gradient.flatten() for gradient in given]).norm()
    given = [gradient * 4 / norm for gradient in given]
    before = [parameter.detach().clone() for parameter in parameters]
    for parameter, gradient in zip(parameters, given, strict=True):
        parameter.grad = gradient.clone()
    rate = training.descend(0)
    for parameter, gradient, old in zip(parameters, given, before, strict=True):
        expected = old - rate * factor * gradient
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-3, atol=1e-6)
        assert parameter.grad is None


def test_gates_have_a_learning_rate_of_their_own(tmp_path):
    training = make_trainer(tmp_path, gate_lr=30.0, lr=1e-3, clip_norm=0, schedule="constant")
    gates = {id(gate) for gate in training.model.adapters.gates()}
    trained = {name: p for name, p in training.model.named_parameters() if p.requires_grad}
    of_adapters = {name for name in trained if name.startswith("adapters.")}
    assert {n for n, p in trained.items() if id(p) in gates} == {n for n in of_adapters if n.endswith(".scale")}
    before = tensors(training)
    for parameter in trained.values():
        parameter.grad = torch.ones_like(parameter)
    assert training.descend(0) == 1e-3
    for name, parameter in trained.items():  # Adam's first step is the learning rate
        moved = (before[name] - parameter.detach()) / (30 if id(parameter) in gates else 1)
        torch.testing.assert_close(moved, torch.full_like(moved, 1e-3), rtol=1e-2, atol=1e-6)
