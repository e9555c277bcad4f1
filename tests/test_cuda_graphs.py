"""What surrounds recorded passes, on a processor: when they are used, what becomes of gradients. See test_gpu.py."""

import logging
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from training_support import losses, make_trainer, names

from avfewshot.training import cuda_graphs
from avfewshot.training.cuda_graphs import CUDAGraphRunner, EagerRunner, add_gradients, fresh_casts, make_runner


class FakeGraph:
    """Runs the model where a graph would be replayed, and keeps one pass only, as a graph does."""

    made = 0

    def __init__(self, fabric, model, parameters, frames, audio, pool):
        type(self).made += 1
        self.model = model
        self.used = [
            parameter for name, parameter in trainable(model)
            if name.startswith(("adapters", "projectors.visual.")) or "audio." in name
        ]  # fmt: skip

    def start(self, frames, audio):
        with torch.enable_grad():
            self.graph = self.model(frames, audio)
        self.outputs = [output.detach() for output in self.graph]

    def finish(self, gradients):
        found = torch.autograd.grad(self.graph, self.used, gradients, materialize_grads=True)
        add_gradients(self.used, torch.cat([gradient.flatten() for gradient in found]))


def trainable(model):
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(cuda_graphs, "_Graph", FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    monkeypatch.setattr(FakeGraph, "made", 0)


def replaying(folder, **changes):
    training = make_trainer(folder, **changes)
    fabric = SimpleNamespace(device=torch.device("cpu"), autocast=nullcontext)
    training.runner = CUDAGraphRunner(fabric, training.module, training.model)
    return training


UNEVEN = [*names(count=2), *names("-2", count=2), *names("-mute", count=1), *names("-blind", count=1)]


@pytest.mark.parametrize(
    ("changes", "shapes"),
    [
        ({"objective": "classes", "micro_batch": 1, "accumulation": 2}, 1),
        ({"objective": "classes", "micro_batch": 2, "accumulation": 2}, 1),
        ({"objective": "contrastive", "micro_batch": 1, "accumulation": 2}, 1),
        ({"objective": "contrastive", "micro_batch": 2, "accumulation": 2}, 1),
        ({"paths": UNEVEN, "batch_size": 3}, None),  # what lacks something or is of another length: computed as usual
    ],
)
def test_a_training_is_the_same_with_recorded_passes(tmp_path, fake, changes, shapes):
    make_trainer(tmp_path / "plain", **changes).fit()
    training = replaying(tmp_path / "replayed", **changes)
    training.fit()
    assert FakeGraph.made == training.runner.shapes > 0
    assert training.runner.shapes == shapes or shapes is None
    assert losses(tmp_path / "replayed") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_a_pass_before_the_backward_pass_of_the_last_one_is_computed_as_usual(tmp_path, fake):
    training = replaying(tmp_path)
    passes, model = training.runner, training.model
    frames, audio = torch.randint(256, (2, 1, 3, 8, 8), dtype=torch.uint8), 0.1 * torch.randn(2, 1, 48_000)
    found = []
    for prepared in (False, True):
        for _ in range(2):
            passes(frames, audio)
        if prepared:
            passes.prepare()
            assert passes.shapes == 1
        model.zero_grad()
        first, second = passes(frames, audio), passes(frames.flip(0), 2 * audio)
        sum(part.cumsum(-1).sum() * weight for parts, weight in ((first, 1), (second, 3)) for part in parts).backward()
        found.append({name: p.grad.clone() for name, p in trainable(model) if p.grad is not None and p.grad.any()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_what_cannot_be_recorded_is_said_once(tmp_path, monkeypatch, caplog):
    def fails(*_):
        raise RuntimeError("operation not permitted when stream is capturing.\nand more")

    monkeypatch.setattr(cuda_graphs, "_Graph", fails)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    make_trainer(tmp_path / "plain").fit()
    with caplog.at_level(logging.WARNING):
        replaying(tmp_path / "replayed").fit()
    assert [record.message for record in caplog.records] == [
        "CUDA graphs are not used, steps take longer: operation not permitted when stream is capturing."
    ]
    assert losses(tmp_path / "replayed") == losses(tmp_path / "plain")


def test_released_passes_are_recorded_anew(tmp_path, fake):
    passes = replaying(tmp_path).runner
    frames, audio = torch.zeros(1, 1, 3, 8, 8, dtype=torch.uint8), torch.zeros(1, 1, 48_000)
    for times in (1, 2):
        for _ in range(3):
            passes(frames, audio)
            passes.prepare()
        assert FakeGraph.made == times
        passes.release()
        assert passes.shapes == 0


def test_gradients_are_added_to_whatever_is_there():
    parameters = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((2, 3), (4,))]
    flat = torch.arange(10.0)
    parameters[0].grad = torch.ones(2, 3)
    for times in (1, 2):
        add_gradients(parameters, flat)
        assert torch.equal(parameters[0].grad, 1 + times * flat[:6].view(2, 3))
        assert torch.equal(parameters[1].grad, times * flat[6:])
    assert torch.equal(flat, torch.arange(10.0))


def test_casts_are_kept_outside_only():
    assert torch.is_autocast_cache_enabled()
    with fresh_casts(), torch.autocast("cpu", dtype=torch.bfloat16):
        assert not torch.is_autocast_cache_enabled()
    assert torch.is_autocast_cache_enabled()


def test_only_a_single_gpu_replays_and_only_when_asked():
    for device, ranks, wanted in (("cpu", 1, True), ("cuda:0", 2, True), ("cuda:0", 1, False)):
        fabric = SimpleNamespace(device=torch.device(device), world_size=ranks)
        assert type(make_runner(fabric, None, None, wanted)) is EagerRunner
