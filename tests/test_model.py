"""The audio-visual model over stand-in towers: alone, in lockstep, with masks, projectors and checkpointing."""

import math

import pytest
import torch
from standin_towers import make_backbone, make_inputs, stirred
from torch.nn import functional as F

from avfewshot.adapters.base import pair_towers
from avfewshot.adapters.dgsct import DGSCT
from avfewshot.adapters.settings import GuidanceSettings
from avfewshot.errors import UsageError, WeightsError
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.projectors import Projector, Projectors, Temperatures


def paired(backbone) -> list:
    return pair_towers(backbone.visual, backbone.audio)


def make_model(*, trained: bool = False, **options) -> AudioVisualModel:
    backbone = make_backbone()
    adapters = DGSCT(paired(backbone), GuidanceSettings(hidden=8))
    model = AudioVisualModel(backbone, adapters, Projectors(6, 7), **options)
    if trained:
        stirred(model.adapters, 0.3)
        stirred(model.projectors, 0.3)
    return model


def test_without_adapters_embeddings_are_those_of_the_towers():
    backbone = make_backbone()
    frames, audio = make_inputs(2, 3)
    visual, sound = AudioVisualModel(backbone)(frames, audio)
    torch.testing.assert_close(visual, F.normalize(backbone.visual(frames.flatten(0, 1)), dim=-1).view(2, 3, 6))
    torch.testing.assert_close(sound, F.normalize(backbone.audio(audio.flatten(0, 1)), dim=-1).view(2, 3, 7))
    torch.testing.assert_close(visual.norm(dim=-1), torch.ones(2, 3))


def test_guided_layers_are_the_last_ones_and_the_others_are_those_of_the_towers():
    backbone, settings = make_backbone(), GuidanceSettings(hidden=8)
    layers = paired(backbone)
    last = AudioVisualModel(backbone, DGSCT(layers[-1:], settings), guided_layers=1)
    every = AudioVisualModel(make_backbone(), DGSCT(layers, settings))
    stirred(last.adapters, 0.3)
    every.adapters.layers[-1].load_state_dict(last.adapters.layers[0].state_dict())
    inputs = make_inputs(2, 3)
    got, expected, plain = last(*inputs), every(*inputs), AudioVisualModel(backbone)(*inputs)
    assert len(last.layers) == 1 < len(every.layers)
    for one, same, other in zip(got, expected, plain, strict=True):
        torch.testing.assert_close(one, same)
        assert not torch.allclose(one, other, atol=1e-3)


def test_an_absent_modality_leaves_the_other_unguided():
    model = make_model(trained=True)
    frames, audio = make_inputs(2, 3)
    visual, nothing = model(frames, None)
    also_nothing, sound = model(None, audio)
    assert (nothing, also_nothing) == (None, None)
    alone = model.projectors.visual(F.normalize(model.visual_tower(frames.flatten(0, 1)), dim=-1))
    torch.testing.assert_close(visual.flatten(0, 1), alone)
    assert sound.shape == (2, 3, 7)
    with pytest.raises(ValueError, match="neither"):
        model(None, None)
    with pytest.raises(ValueError, match="2 clips x 3 segments"):
        model(frames, audio[:, :2])


def test_clips_without_a_modality_can_share_a_batch_with_others():
    model = make_model(trained=True)
    frames, audio = make_inputs(3, 2)
    frames[1] = 255
    audio[2] = float("nan")  # whatever stands in for the missing sound must not matter
    sighted, hearing = torch.tensor([True, False, True]), torch.tensor([True, True, False])
    visual, sound = model(frames, audio, visual_present=sighted, audio_present=hearing)
    torch.testing.assert_close((visual[:1], sound[:1]), model(frames[:1], audio[:1]))
    torch.testing.assert_close(sound[1:2], model(None, audio[1:2])[1])
    torch.testing.assert_close(visual[2:], model(frames[2:], None)[0])


def test_checkpointing_changes_neither_embeddings_nor_gradients_and_keeps_fewer_activations():
    frames, audio = make_inputs(2, 3)
    results, held = [], []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = make_model(trained=True, checkpointing=checkpointing)
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=sizes: s.append(t.numel()) or t, lambda t: t):
            visual, sound = model(frames, audio)
        held.append(sum(sizes))
        (visual[..., 0].sum() + sound[..., 1].sum()).backward()
        results.append([visual, sound, *(p.grad for p in model.adapters.parameters())])
    assert all(torch.equal(plain, other) for plain, other in zip(*results, strict=True))
    assert held[1] < held[0] / 3


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_towers_in_half_precision_work_with_adapters_in_float32(dtype):
    torch.manual_seed(0)
    model, precise = make_model(trained=True), make_model(trained=True)
    precise.load_state_dict(model.state_dict())
    model.visual_tower.to(dtype), model.audio_tower.to(dtype)
    frames, audio = make_inputs(2, 3)
    got, expected = model(frames, audio), precise(frames, audio)
    got[0].sum().backward()
    for a, b in zip(got, expected, strict=True):
        assert a.dtype == torch.float32
        assert F.cosine_similarity(a, b, dim=-1).min() > 0.99
    assert all(torch.isfinite(p.grad).all() for p in model.adapters.parameters() if p.grad is not None)


def test_residual_projectors_start_as_the_identity_and_plain_ones_do_not_also_under_autocast():
    unit, plain = F.normalize(torch.randn(5, 6), dim=-1), Projector(6, residual=False)
    expected = F.normalize(plain.leave(plain.enter(unit).clamp(min=0)), dim=-1)
    for autocast in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            torch.testing.assert_close(Projector(6)(unit), unit, rtol=0, atol=1e-6)
            torch.testing.assert_close(plain(unit), expected)
    with pytest.raises(UsageError, match="residual, mlp"):
        Projectors(6, 7, kind="linear")


def test_every_projector_gets_a_gradient():
    torch.manual_seed(0)
    model = make_model()
    optimiser = torch.optim.Adam(model.projectors.parameters(), lr=1e-2)
    texts = F.normalize(torch.randn(4, 6), dim=-1), F.normalize(torch.randn(4, 7), dim=-1)
    reached = set()
    for _ in range(2):
        optimiser.zero_grad()
        logits = model.logits(*model(*make_inputs(2, 3)), *model.project_texts(*texts))
        sum(values[..., 0].sum() for values in logits).backward()
        reached |= {name for name, p in model.projectors.named_parameters() if p.grad.abs().sum() > 0}
        optimiser.step()
    assert reached == {name for name, _ in model.projectors.named_parameters()}


def test_logits_are_cosines_times_the_temperature_scale():
    model = make_model()
    visual, sound = model(*make_inputs(1, 2))
    texts = visual[0], sound[0]
    logits = model.logits(visual, sound, *texts)
    torch.testing.assert_close(logits[0][0].diagonal(), torch.full((2,), 20.0))
    torch.testing.assert_close(logits[1][0].diagonal(), torch.full((2,), 10.0))
    assert model.logits(visual, None, texts[0], None)[1] is None


def test_temperatures_stop_at_their_limit_and_can_come_back():
    temperatures = Temperatures(100.0, 150.0)
    torch.testing.assert_close(temperatures.scale("visual"), torch.tensor(100.0))
    torch.testing.assert_close(temperatures.scale("audio"), torch.tensor(150.0))  # a larger start raises the limit
    with torch.no_grad():
        temperatures.visual.fill_(math.log(400.0))
    scale = temperatures.scale("visual")
    torch.testing.assert_close(scale, torch.tensor(100.0))
    scale.backward()
    assert temperatures.visual.grad > 0


def test_the_trainable_state_holds_no_tower_and_restores_the_model_or_is_refused_and_changes_nothing():
    model, other, inputs = make_model(trained=True), make_model(), make_inputs(1, 2)
    state = model.trainable_state()
    assert {name.split(".")[0] for name in state} == {"adapters", "projectors", "temperatures"}
    assert not torch.allclose(other(*inputs)[0], model(*inputs)[0])
    other.load_trainable_state(state)
    assert torch.equal(other(*inputs)[0], model(*inputs)[0])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = {name: value + 1 for name, value in state.items()}
    del state["temperatures.visual"]
    state |= {"adapters.extra": torch.zeros(1), "projectors.visual.enter.bias": torch.zeros(9)}
    with pytest.raises(WeightsError) as caught:
        model.load_trainable_state(state)
    for part in ("temperatures.visual is missing", "adapters.extra is not part", r"[9] instead of [6]"):
        assert part in str(caught.value)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
