"""DG-SCT against an independent NumPy version of Eq. 1-7, and what must hold of any fresh adapter."""

import itertools

import numpy as np
import pytest
import torch
from standin_towers import make_backbone, make_inputs, stirred

from avfewshot.adapters.base import HALVES, TOWER_STEPS, pair_layers, pair_towers
from avfewshot.adapters.dgsct import DGSCT, Guidance
from avfewshot.adapters.registry import adapter_class, adapter_names, build_adapter, register_adapter
from avfewshot.adapters.settings import GuidanceSettings
from avfewshot.errors import Faults, UsageError
from avfewshot.models.audio_visual import AudioVisualModel

# (tokens, channels): few to many, many to few, equal, single tokens; also wide enough for both orders of products.
SHAPES = [
    ((5, 12), (16, 4)),
    ((16, 4), (5, 12)),
    ((7, 6), (7, 9)),
    ((1, 3), (4, 2)),
    ((4, 2), (1, 3)),
    ((40, 8), (30, 24)),
]


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


class Plain:
    """One direction of DG-SCT as printed: every map of every token is formed, in the order of the equations."""

    def __init__(self, guide: Guidance) -> None:
        self.w = {name: value.detach().numpy() for name, value in guide.named_parameters()}
        self.settings = guide.settings

    def linear(self, name: str, values: np.ndarray) -> np.ndarray:
        return values @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def maps(self, source: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        convolved = np.einsum("ts,nsc->ntc", self.w["tokens"], source)
        if self.settings.variant == "paper":
            convolved = convolved + self.w["token_bias"][:, None]
        adapted = self.linear("channels", convolved)  # psi
        pooled = adapted.mean(1, keepdims=True)
        joint = (self.linear("channel_source", pooled) * self.linear("channel_target", target)).mean(1)
        if self.settings.variant == "paper":
            width = target.shape[2]
            assert self.w["channel_source.weight"].shape == self.w["channel_target.weight"].shape == (width, width)
            phi = self.linear("channel_out.2", np.maximum(self.linear("channel_out.0", joint), 0))
        else:
            phi = self.linear("channel_out", joint)
        channel = sigmoid(phi)  # (3)
        weighted = (channel[:, None] + 1) * target
        joint = self.linear("spatial_source", adapted) * self.linear("spatial_target", weighted)
        spatial = sigmoid(self.linear("spatial_out", joint))[..., 0]  # (4)
        return channel, spatial

    def attended(self, target: np.ndarray, channel: np.ndarray, spatial: np.ndarray) -> np.ndarray:
        s = self.settings
        return (s.alpha * channel[:, None] + s.beta * spatial[..., None] + 1) * target  # (6)

    def gate(self, source: np.ndarray, segments: int) -> np.ndarray:
        sequence = source.mean(1).reshape(-1, segments, source.shape[-1])
        state = np.zeros((len(sequence), self.w["rnn.weight_hh_l0"].shape[1]))
        gates = []
        for step in sequence.transpose(1, 0, 2):  # Cho et al. 2014; the reset gate in PyTorch's place
            inputs = step @ self.w["rnn.weight_ih_l0"].T + self.w["rnn.bias_ih_l0"]
            states = state @ self.w["rnn.weight_hh_l0"].T + self.w["rnn.bias_hh_l0"]
            (r_in, z_in, n_in), (r_st, z_st, n_st) = np.split(inputs, 3, -1), np.split(states, 3, -1)
            reset, update = sigmoid(r_in + r_st), sigmoid(z_in + z_st)
            state = (1 - update) * np.tanh(n_in + reset * n_st) + update * state
            gates.append(sigmoid(self.linear("gate_out", state)))  # (5)
        return np.stack(gates, 1).reshape(-1, 1)

    def output(self, attended: np.ndarray, gate: np.ndarray | None) -> np.ndarray:
        guided = attended if gate is None else (self.settings.gamma * gate[:, None] + 1) * attended  # (7)
        if self.settings.output == "gate":
            return guided * self.w["scale"]
        return self.linear("up", np.maximum(self.linear("down", guided), 0))


@pytest.mark.parametrize(("variant", "output"), [("paper", "gate"), ("compact", "gate"), ("paper", "bottleneck")])
@pytest.mark.parametrize("hidden", [3, 50])
@pytest.mark.parametrize(("source", "target"), SHAPES)
def test_every_map_agrees_with_numpy(source, target, hidden, variant, output):
    widths = {"hidden": hidden, "bottleneck": 5}
    settings = GuidanceSettings(alpha=0.7, beta=-0.4, gamma=0.3, variant=variant, output=output, **widths)
    guide = stirred(Guidance(source, target, settings, temporal=True).double())
    s, t = torch.randn(6, *source, dtype=torch.float64), torch.randn(6, *target, dtype=torch.float64)
    plain = Plain(guide)
    channel, spatial = plain.maps(s.numpy(), t.numpy())
    attended = plain.attended(t.numpy(), channel, spatial)
    gate = plain.gate(s.numpy(), 3)
    maps = guide.maps(s, t)
    result = guide(t, maps, guide.gate(s.mean(1), 3))
    np.testing.assert_allclose(maps.channel.detach().numpy(), channel, rtol=0, atol=1e-10)
    np.testing.assert_allclose(maps.spatial.detach().numpy(), spatial, rtol=0, atol=1e-10)
    np.testing.assert_allclose(guide.attended_mean(t, maps).detach().numpy(), attended.mean(1), rtol=0, atol=1e-10)
    np.testing.assert_allclose(guide.gate(s.mean(1), 3).detach().numpy(), gate, rtol=0, atol=1e-10)
    np.testing.assert_allclose(result.detach().numpy(), plain.output(attended, gate), rtol=0, atol=1e-10)


def test_gradients_agree_with_finite_differences():
    settings = GuidanceSettings(alpha=0.7, beta=0.4, gamma=0.3, hidden=3)
    for source, target in SHAPES[:2]:
        guide = stirred(Guidance(source, target, settings, temporal=True).double())
        s, t = torch.randn(2, *source, dtype=torch.float64), torch.randn(2, *target, dtype=torch.float64)

        def run(s, t, scale, guide=guide):
            maps, gate = guide.maps(s, t), guide.gate(s.mean(1), 2)
            return torch.func.functional_call(guide, {"scale": scale}, (t, maps, gate))

        inputs = (s.requires_grad_(), t.requires_grad_(), guide.scale.detach().clone().requires_grad_())
        assert torch.autograd.gradcheck(run, inputs)


def plain_walk(model: AudioVisualModel, frames: torch.Tensor, audio: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Eq. 1 and 2 with the NumPy maps between the towers' own steps."""
    segments = frames.shape[1]
    towers = {"v": model.visual_tower, "a": model.audio_tower}
    x = {"v": towers["v"].patch_embed(frames.flatten(0, 1)), "a": towers["a"].patch_embed(audio.flatten(0, 1))}
    for index, layer in enumerate(model.layers):
        block = {"v": layer.visual_block, "a": layer.audio_block}
        for half in HALVES:
            guides = model.adapters.layers[index][half]
            plain = {"v": Plain(guides["a2v"]), "a": Plain(guides["v2a"])}
            numbers = {name: value.numpy() for name, value in x.items()}
            cs = {
                name: plain[name].attended(numbers[name], *plain[name].maps(numbers[other], numbers[name]))
                for name, other in (("v", "a"), ("a", "v"))
            }
            last = index == len(model.layers) - 1
            gates = {
                name: plain[name].gate(cs[other], segments) if last else None
                for name, other in (("v", "a"), ("a", "v"))
            }
            for name in ("v", "a"):
                stepped = getattr(towers[name], TOWER_STEPS[half])(block[name], x[name]).numpy()
                x[name] = torch.from_numpy(stepped + plain[name].output(cs[name], gates[name]))
        x = {name: towers[name].downsample(block[name], values) for name, values in x.items()}
    pooled = {name: towers[name].forward_head(values).numpy() for name, values in x.items()}
    return tuple(p / np.linalg.norm(p, axis=-1, keepdims=True) for p in pooled.values())


@pytest.mark.parametrize("variant", ["paper", "compact"])
def test_the_whole_model_agrees_with_numpy(variant):
    backbone = make_backbone()
    backbone.visual.double(), backbone.audio.double()
    layers = pair_towers(backbone.visual, backbone.audio)
    adapters = stirred(DGSCT(layers, GuidanceSettings(hidden=10, variant=variant)).double())
    model = AudioVisualModel(backbone, adapters)
    frames, audio = make_inputs(2, 3)
    with torch.no_grad():
        visual, sound = model(frames, audio.double())
        expected = plain_walk(model, frames, audio.double())
    np.testing.assert_allclose(visual.flatten(0, 1).numpy(), expected[0], rtol=0, atol=1e-10)
    np.testing.assert_allclose(sound.flatten(0, 1).numpy(), expected[1], rtol=0, atol=1e-10)


SWITCHED = [
    {},
    {"channel": False},
    {"spatial": False},
    {"temporal": False},
    {"a2v": False},
    {"v2a": False},
    {"channel": False, "spatial": False, "temporal": False},
    {"output": "bottleneck"},
    {"variant": "compact"},
]


def fresh(settings: dict, visual=None, audio=None) -> AudioVisualModel:
    backbone = make_backbone(visual, audio)
    layers = pair_towers(backbone.visual, backbone.audio)
    return AudioVisualModel(backbone, build_adapter("dgsct", layers, {"hidden": 8, **settings}))


@pytest.mark.parametrize("settings", SWITCHED)
def test_a_fresh_adapter_changes_nothing_and_gradients_reach_all_of_it_within_two_steps(settings):
    model = fresh(settings)
    frames, audio = make_inputs(2, 3)
    guided = model(frames, audio)
    assert torch.equal(guided[0], model(frames, None)[0])
    assert torch.equal(guided[1], model(None, audio)[1])
    model.train()
    frozen = {name: value.clone() for name, value in model.state_dict().items() if not name.startswith("adapters.")}
    optimiser = torch.optim.Adam(model.adapters.parameters(), lr=1e-2)
    reached = set()
    for _ in range(2):
        optimiser.zero_grad()
        visual, sound = model(frames, audio)
        ((visual * torch.linspace(-1, 1, 6)).sum() + (sound * torch.linspace(1, -2, 7)).sum()).backward()
        reached |= {n for n, p in model.adapters.named_parameters() if p.grad is not None and p.grad.any()}
        optimiser.step()
    assert reached == {name for name, _ in model.adapters.named_parameters()}
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())
    assert any("running_mean" in name for name in frozen)
    assert all(p.grad is None for tower in (model.visual_tower, model.audio_tower) for p in tower.parameters())


def test_a_direction_that_is_off_leaves_its_target_alone():
    frames, audio = make_inputs(1, 2)
    other_frames, other_audio = make_inputs(1, 2, seed=9)
    for off, unguided in (("a2v", 0), ("v2a", 1)):
        model = fresh({off: False})
        stirred(model.adapters)
        changed = (frames, other_audio) if off == "a2v" else (other_frames, audio)
        assert torch.equal(model(frames, audio)[unguided], model(*changed)[unguided])
        assert not torch.allclose(model(frames, audio)[1 - unguided], model(*changed)[1 - unguided])


@pytest.mark.parametrize("segments", [1, 7])
def test_any_number_of_segments_and_only_the_gate_mixes_them(segments):
    frames, audio = make_inputs(2, segments)
    for gated, settings in ((False, {"temporal": False}), (True, {"gamma": 5.0})):
        model = fresh(settings)
        stirred(model.adapters)
        found = model(frames, audio)[0]
        # Causal: what comes later does not change the first segment, what came earlier changes the last.
        torch.testing.assert_close(found[:, :1], model(frames[:, :1], audio[:, :1])[0])
        alone = model(frames[:, -1:], audio[:, -1:])[0]
        assert torch.allclose(found[:, -1:], alone, atol=1e-5) != (gated and segments > 1)


@pytest.mark.parametrize(
    ("visual", "audio"),
    [([(5, 12)] * 6, [(16, 4), (16, 4), (4, 8)]), ([(3, 4)] * 2, [(9, 4)] * 3 + [(3, 6)] * 2), ([(1, 5)], [(1, 2)])],
)
def test_towers_of_any_depth_and_token_shape_are_guided_down_to_the_last_block(visual, audio):
    model = fresh({}, visual, audio)
    frames, sounds = make_inputs(1, 2)
    torch.testing.assert_close(model(frames, sounds)[0], model(frames, None)[0])
    stirred(model.adapters)
    assert not torch.allclose(model(frames, sounds)[0], model(frames, None)[0])


@pytest.mark.parametrize(
    ("visual", "audio", "expected"),
    [
        (12, 12, [(i, i) for i in range(12)]),
        (24, 12, [(2 * i + 1, i) for i in range(12)]),
        (12, 18, [(i, e) for i, e in enumerate([1, 2, 4, 5, 7, 8, 10, 11, 13, 14, 16, 17])]),
        (5, 1, [(4, 0)]),
    ],
)
def test_blocks_are_paired_by_relative_depth(visual, audio, expected):
    layers = pair_layers([(i, 1) for i in range(visual)], [(i, 2) for i in range(audio)])
    assert [(layer.visual_block, layer.audio_block) for layer in layers] == expected
    assert [(layer.visual_shape, layer.audio_shape) for layer in layers] == [((v, 1), (a, 2)) for v, a in expected]


def test_pairing_uses_each_block_once_and_ends_with_the_last():
    for depths in itertools.product(range(1, 9), repeat=2):
        layers = pair_layers(*([(1, 1)] * depth for depth in depths))
        pairs = [(layer.visual_block, layer.audio_block) for layer in layers]
        for blocks, depth in zip(zip(*pairs, strict=True), depths, strict=True):
            assert list(blocks) == sorted(set(blocks)), depths
            assert len(blocks) == min(depths), depths
            assert (blocks[0] >= 0, blocks[-1]) == (True, depth - 1), depths


def test_maps_can_be_recorded():
    model = fresh({"spatial": False})
    inputs = make_inputs(2, 3)
    with torch.no_grad():
        with model.adapters.recording() as records:
            model(*inputs)
        model(*inputs)
    assert len(records) == 4 * 2 * 2  # layers, halves, directions; nothing after the block
    by_place = {(r.layer, r.half, r.direction): r for r in records}
    first, last = by_place[0, "attend", "a2v"], by_place[3, "feed", "v2a"]
    assert first.channel.shape == (6, 12)
    assert first.temporal is None
    assert first.spatial is None
    assert last.temporal.shape == (6, 1)
    assert ((last.channel > 0) & (last.channel < 1)).all()


def test_settings_survive_a_round_trip_and_all_wrong_ones_are_reported_at_once():
    layers = pair_layers([(5, 12)], [(16, 4)])
    adapter = build_adapter("dgsct", layers, {"alpha": 0.3, "hidden": 4, "temporal": False})
    again = build_adapter("dgsct", layers, adapter.settings)
    assert again.settings == adapter.settings
    again.load_state_dict(adapter.state_dict())
    with pytest.raises(Faults) as caught:
        GuidanceSettings.from_mapping({"alpha": float("nan"), "hidden": 0, "a2v": 1, "colour": 3, "output": "sum"})
    for part in ("alpha", "hidden", "a2v", "'colour'", "gate, bottleneck"):
        assert part in str(caught.value)


def test_the_registry_knows_names_and_takes_others(monkeypatch):
    monkeypatch.setattr("avfewshot.adapters.registry._ADAPTERS", {"dgsct": "avfewshot.adapters.dgsct:DGSCT"})
    assert adapter_class("dgsct") is DGSCT
    with pytest.raises(UsageError, match="Choose from: dgsct"):
        adapter_class("lavish")
    register_adapter("mine", "avfewshot.adapters.dgsct:DGSCT")
    assert adapter_names() == ("dgsct", "mine")
    with pytest.raises(ValueError, match="taken"):
        register_adapter("mine", "somewhere:Else")
    with pytest.raises(ValueError, match=r"package\.module:Class"):
        register_adapter("other", "somewhere")
