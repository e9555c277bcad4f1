"""What a training takes, worked out beforehand: against sizes known by hand, and against the allocator's own record."""

import functools
from types import SimpleNamespace

import pytest
import torch
from standin_towers import StandInTower
from torch import nn
from torch.profiler import ProfilerActivity, profile
from towers_support import clap_tower, clip_tower

from avfewshot.config import TrainingConfig
from avfewshot.media.clip import SAMPLE_RATE
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model
from avfewshot.training.plan import Plan, make_plan

TEXT_PARAMETERS = 5 * 7 + 7 + 3 * 2 + 2


def with_texts(visual: nn.Module, audio: nn.Module) -> SimpleNamespace:
    """The part of a backbone that a plan looks at."""
    texts = {"visual_text": nn.Linear(5, 7).requires_grad_(False), "audio_text": nn.Linear(3, 2).requires_grad_(False)}
    return SimpleNamespace(visual=visual, audio=audio, **texts, visual_scale=10.0, audio_scale=10.0)


@functools.cache  # filling them takes a while, and no plan changes them
def stand_ins() -> SimpleNamespace:
    visual, audio = [(33, 48)] * 4, [(64, 24)] * 2 + [(16, 48)] * 2
    return with_texts(StandInTower(visual, 3 * 8 * 8, 16), StandInTower(audio, SAMPLE_RATE, 16))


def planned(backbone: SimpleNamespace, clips: int = 7, **changes) -> tuple[Plan, AudioVisualModel, TrainingConfig]:
    settings = {"hidden": 16, "window": 2, "batch_size": 2, "epochs": 3, "precision": "fp32", "checkpointing": False}
    config = TrainingConfig(**{**settings, **changes})
    model = build_model(backbone, config)
    return make_plan(model, backbone, config, clips), model, config


def allocated(model: AudioVisualModel, clips: int, seconds: int) -> int:
    """Bytes that a step holds at its peak beyond parameters and gradients, as the allocator reports them."""
    size = model.visual_tower.image_size
    frames = torch.randint(0, 256, (clips, seconds, 3, size, size), dtype=torch.uint8)
    audio = 0.1 * torch.randn(clips, seconds, SAMPLE_RATE)
    model.train()

    def step() -> None:
        visual, sound = model(frames, audio)
        (visual.sum() + sound.sum()).backward()

    step()  # now there are gradients, which the next step adds to
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    assert len(events) > 1000
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def test_weights_and_optimizer_are_exact():
    backbone = stand_ins()
    plan, model, _ = planned(backbone)
    frozen = sum(p.numel() for tower in (backbone.visual, backbone.audio) for p in tower.parameters())
    own = sum(p.numel() for part in (model.adapters, model.projectors) for p in part.parameters()) + 2  # temperatures
    assert plan.weights_bytes == 4 * (frozen + TEXT_PARAMETERS + own)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    states = [value for state in optimizer.state.values() for value in state.values()]
    sizes = [parameter.numel() for parameter in trained] + [value.numel() for value in states if value.ndim]
    scalars = 2 * 4 * 2  # the moments of the temperatures are of no dimension, as the counts of steps are
    assert plan.training_bytes == 4 * sum(sizes) + scalars
    assert plan.memory == plan.weights_bytes + plan.training_bytes + plan.activation_bytes


@pytest.mark.parametrize(
    ("checkpointing", "output", "seconds", "batch"),
    [(False, "gate", 2, 2), (True, "gate", 2, 2), (True, "bottleneck", 5, 1), (True, "gate", 1, 1)],
)
def test_activations_are_what_the_allocator_reports(checkpointing, output, seconds, batch):
    changes = {"checkpointing": checkpointing, "output": output, "window": seconds, "batch_size": batch}
    backbone = stand_ins() if seconds > 1 else with_texts(clip_tower(layers=12), clap_tower())  # the real ones
    plan, model, _ = planned(backbone, **changes)
    assert 0.5 < plan.activation_bytes / allocated(model, batch, seconds) < 2


def test_memory_follows_the_settings():
    plans = {
        name: planned(stand_ins(), **changes)[0]
        for name, changes in {
            "plain": {},
            "seconds": {"window": 6},
            "clips": {"batch_size": 6},
            "micro": {"batch_size": 6, "micro_batch": 2},
            "bf16": {"precision": "bf16"},
            "twice": {"checkpointing": True},
            "no adapters": {"adapter": "none"},
        }.items()
    }
    plain, kept = plans["plain"], {name: plan.activation_bytes for name, plan in plans.items()}
    assert kept["seconds"] == kept["clips"] == 3 * kept["plain"]
    assert kept["micro"] == kept["plain"] == 2 * kept["bf16"]
    assert 2 * kept["twice"] < kept["plain"]
    assert plans["twice"].memory - kept["twice"] == plain.memory - kept["plain"]
    assert 10 * kept["no adapters"] < kept["plain"]
    towers = sum(count.total for count in plain.parameters if count.component.endswith("tower"))
    assert plain.weights_bytes - plans["bf16"].weights_bytes == 2 * towers > 0
    bare = plans["no adapters"]
    assert bare.flops["adapters"] == 0
    assert {count.component for count in bare.parameters if count.trainable} == {"projectors", "temperatures", "all"}


def test_batches_and_steps_are_counted_as_they_are_made():
    for clips, changes, batches, steps in (
        (7, {}, 4, 12),
        (8, {}, 4, 12),
        (7, {"accumulation": 3}, 4, 6),
        (7, {"batch_size": 16, "epochs": 5}, 1, 5),
    ):
        plan, *_ = planned(stand_ins(), clips, **changes)
        assert (plan.clips, plan.batches, plan.steps) == (clips, batches, steps)


def test_a_plan_leaves_the_model_as_it_was():
    backbone = stand_ins()
    model = build_model(backbone, config := TrainingConfig(hidden=16, window=2, checkpointing=True, epochs=5), seed=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    make_plan(model, backbone, config, 4)
    assert model.checkpointing
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model.adapters._forward_pre_hooks


@pytest.mark.parametrize(
    ("device", "memory", "expected"),
    [(None, 0, True), ("cpu", 0, True), ("cuda:0", 8 * 10**9, True), ("cuda:0", 24 * 10**9, False)],
)
def test_large_towers_are_computed_twice_unless_a_gpu_has_room(monkeypatch, device, memory, expected):
    monkeypatch.setattr("avfewshot.models.build._LARGE", 100)
    properties = SimpleNamespace(total_memory=memory)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda where: properties)
    model = build_model(stand_ins(), TrainingConfig(hidden=8), device=device and torch.device(device))
    assert model.checkpointing is expected
