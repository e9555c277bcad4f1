"""Adapters between the real towers, at the sizes of the `tiny` preset."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F
from towers_support import clap_tower, clip_tower, pictures, sounds

from avfewshot.adapters.base import pair_layers
from avfewshot.adapters.registry import build_adapter
from avfewshot.models.audio_visual import AudioVisualModel


def make_model(layers: int = 12, **settings) -> AudioVisualModel:
    torch.manual_seed(1)
    backbone = SimpleNamespace(
        visual=clip_tower(layers=layers), audio=clap_tower(), visual_scale=50.0, audio_scale=20.0
    )
    pairs = pair_layers(backbone.visual.token_shapes, backbone.audio.token_shapes)
    return AudioVisualModel(backbone, build_adapter("dgsct", pairs, {"hidden": 16, **settings}))


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return frames, 0.1 * torch.randn(2, 2, 48_000, generator=generator)


@pytest.mark.parametrize("layers", [12, 8])
def test_fresh_adapters_leave_clip_and_clap_as_they_are(layers, clips):
    model = make_model(layers)
    frames, audio = clips

    with torch.no_grad():
        guided = model(frames, audio)
        plain = model.visual_tower(frames.flatten(0, 1)), model.audio_tower(audio.flatten(0, 1))

    for got, expected in zip(guided, plain, strict=True):
        torch.testing.assert_close(got.flatten(0, 1), F.normalize(expected, dim=-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_training_reaches_every_adapter_tensor_and_nothing_else(checkpointing, clips):
    model = make_model()
    model.checkpointing = checkpointing
    model.train()
    frozen = {name: value.clone() for name, value in model.state_dict().items() if "tower" in name}
    before = [value.clone() for value in model(*clips)]
    optimiser = torch.optim.Adam(model.adapters.parameters(), lr=1e-2)
    reached = set()
    for _ in range(2):
        optimiser.zero_grad()
        visual, audio = model(*clips)
        (visual[..., :40].sum() - audio[..., :30].sum()).backward()
        reached |= {name for name, p in model.adapters.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()

    assert reached == {name for name, _ in model.adapters.named_parameters()}
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in frozen.items())
    assert any(name.endswith("bn0.running_mean") for name in frozen)
    for old, new in zip(before, model(*clips), strict=True):
        assert not torch.allclose(old, new, atol=1e-3)


def test_guidance_reaches_the_other_modality():
    model = make_model(alpha=3.0)
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.normal_(std=0.2)
    frames, audio = pictures(4).view(2, 2, 3, 64, 64), sounds(4).view(2, 2, 48_000)

    with torch.no_grad():
        base = model(frames, audio)
        other_sound = model(frames, audio.roll(1, 0))
        other_sight = model(frames.roll(1, 0), audio)

    assert not torch.allclose(base[0], other_sound[0], atol=1e-3)
    assert not torch.allclose(base[1], other_sight[1], atol=1e-3)
