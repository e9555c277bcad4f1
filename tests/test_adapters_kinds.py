"""LAVISH and STG-CMA: their equations, and every adapter between every kind of towers."""

from types import SimpleNamespace

import pytest
import torch
from standin_towers import make_backbone
from torch.nn import functional as F
from towers_support import clap_tower, clip_tower, shared_towers, sounds, swin_tower

from avfewshot.adapters.base import pair_towers
from avfewshot.adapters.lavish import Lavish
from avfewshot.adapters.registry import build_adapter
from avfewshot.adapters.settings import LavishSettings
from avfewshot.encoders.picture import Picture
from avfewshot.errors import UsageError
from avfewshot.models.audio_visual import AudioVisualModel

CLIP_PICTURE, SWIN_PICTURE = Picture(48, 20.0, 40), Picture(64, 15.0, 64, channels="mean")
KINDS = {"dgsct": {"hidden": 16, "alpha": 3.0}, "lavish": {"reduction": 4}, "stg_cma": {"positions": 4}}


def beside_htsat(visual) -> SimpleNamespace:
    return SimpleNamespace(visual=visual, audio=clap_tower(), visual_scale=50.0, audio_scale=20.0)


TOWERS = {
    "clip-htsat": lambda: beside_htsat(clip_tower(layers=4)),
    "swinv2-htsat": lambda: beside_htsat(swin_tower(2)),
    "shared-clip": lambda: shared_towers(clip_tower(layers=4), CLIP_PICTURE),
    "shared-swin": lambda: shared_towers(swin_tower(1), SWIN_PICTURE),
    "shared-swinv2": lambda: shared_towers(swin_tower(2), SWIN_PICTURE),
}


def make_model(kind: str, towers: str = "clip-htsat", **settings) -> AudioVisualModel:
    backbone = TOWERS[towers]()
    torch.manual_seed(1)
    adapters = build_adapter(kind, pair_towers(backbone.visual, backbone.audio), {**KINDS[kind], **settings})
    return AudioVisualModel(backbone, adapters).eval()


def stirred(model: AudioVisualModel, std: float = 0.2) -> AudioVisualModel:
    """Random values everywhere, also where fresh adapters have zeros."""
    with torch.no_grad():
        for parameter in model.adapters.parameters():
            parameter.normal_(std=std)
    return model


@pytest.fixture
def clips() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(4)
    frames = torch.randint(0, 256, (2, 2, 3, 64, 64), dtype=torch.uint8, generator=generator)
    return frames, sounds(4).view(2, 2, -1)


@pytest.mark.parametrize("towers", TOWERS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_fresh_adapter_leaves_the_towers_as_they_are_and_a_trained_one_is_saved_loaded_and_speaks_across(
    kind, towers, clips
):
    model, other = make_model(kind, towers), make_model(kind, towers)
    frames, audio = clips
    with torch.no_grad():
        guided = model(frames, audio)
        plain = model.visual_tower(frames.flatten(0, 1)), model.audio_tower(audio.flatten(0, 1))
        for got, expected in zip(guided, plain, strict=True):
            assert torch.equal(got.flatten(0, 1), F.normalize(expected, dim=-1))
        assert model.adapters.mean_gate() == 0
        for parameter in model.adapters.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        other.load_trainable_state(model.trainable_state())
        base, again = model(frames, audio), other(frames, audio)
        moved = model(frames, audio.flip(0))[0], model(frames.flip(0), audio)[1]
    for got, expected, changed in zip(again, base, moved, strict=True):
        assert torch.equal(got, expected)
        assert not torch.allclose(changed, expected, atol=1e-4)


def _gradients(model: AudioVisualModel, steps: int, clips) -> list[set[str]]:
    """Names of the adapter's tensors that get a gradient, for each of the first steps."""
    model.train()
    optimiser = torch.optim.SGD(model.adapters.parameters(), lr=0.5)
    reached = []
    for _ in range(steps):
        optimiser.zero_grad()
        visual, audio = model(*clips)
        (visual[..., :40].sum() - audio[..., :30].sum()).backward()
        reached.append({n for n, p in model.adapters.named_parameters() if p.grad is not None and p.grad.any()})
        optimiser.step()
    return reached


@pytest.mark.parametrize("towers", ["clip-htsat", "shared-clip", "shared-swin"])
def test_stg_cma_learns_by_its_last_maps_first(towers, clips):
    """U and the positions at the entrance, which are added as they are; then everything."""
    model = make_model("stg_cma", towers, drop_path=0.0)
    names = {name for name, _ in model.adapters.named_parameters()}
    first, second = _gradients(model, 2, clips)
    assert first == {name for name in names if ".up." in name or name.startswith("positions.")}
    # What comes late in a tower and is weighed by tables hardly moves: ask for all but those of the last block.
    assert names - second <= {name for name in names if name.endswith("table")}


def test_lavish_learns_by_its_gates_first(clips):
    model = make_model("lavish")
    names = {name for name, _ in model.adapters.named_parameters()}
    first, second, third = _gradients(model, 3, clips)
    assert first == {name for name in names if name.endswith(".gate")}
    behind = {name for name in names if name.endswith((".latents", "bridge.weight", "bridge.bias"))}
    assert second == names - behind  # what the inner gate still holds back
    assert third == names


def test_the_steps_of_stg_cma_are_those_of_the_paper():
    """One layer of shared CLIP against the equations, written out for single clips and places."""
    model = stirred(make_model("stg_cma", "shared-clip"))
    adapters = model.adapters
    tower, layer = model.visual_tower, adapters.layers[0]
    tokens = [torch.randn(4, 65, 96), torch.randn(4, 31, 96)]  # two clips of two segments

    def bottleneck(part, x):
        return part.up(F.gelu(part.down(x)))

    expected = []
    for modality, x in zip(("visual", "audio"), tokens, strict=True):
        x = x.clone()
        for clip in range(2):
            for place in range(x.shape[1]):
                row = x[2 * clip : 2 * clip + 2, place][None]
                update = bottleneck(layer[modality]["temporal"].adapter, tower.attn_branch(0, row))
                x[2 * clip : 2 * clip + 2, place] += update[0].detach()
        expected.append(x)
    for step, branch in (("spatial", tower.attn_branch), ("global_step", tower.mlp_branch)):
        parts = [branch(0, x) for x in expected]
        v, a = (F.gelu(layer[m][step].down(s)) for m, s in zip(("visual", "audio"), parts, strict=True))
        new = (
            v + adapters.exchange[0][0] * torch.softmax(v @ a.mT, -1) @ a,
            a + adapters.exchange[0][1] * torch.softmax(a @ v.mT, -1) @ v,
        )
        expected = [
            x + s + layer[m][step].up(z) for m, x, s, z in zip(("visual", "audio"), expected, parts, new, strict=True)
        ]
    got = tokens
    for half in ("attend", "feed"):
        got = model._step(0, half, *got, 2, None, None)

    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_blocks_with_the_same_windows_exchange_within_them(clips):
    """What is heard in one window of the first block reaches no other by attention."""
    model = stirred(make_model("stg_cma", "shared-swin", temporal=False, global_step=False), 0.3)
    visual, audio = torch.randn(2, 256, 24), torch.randn(2, 256, 24)
    window = model.visual_tower.windows(0)[5]
    other = audio.clone()
    other[:, window] += torch.randn(2, 16, 24)
    with torch.no_grad():
        base, moved = (model._step(0, "attend", visual, sound, 2, None, None)[0] for sound in (audio, other))
    assert set((moved - base)[0].abs().sum(-1).nonzero().flatten().tolist()) == set(window.tolist())


def test_positions_in_time_reach_the_tokens_of_their_segment(clips):
    model = make_model("stg_cma", "shared-clip")
    before = model(*clips)
    with torch.no_grad():
        model.adapters.positions["visual"][1] = torch.randn(96)
    after = model(*clips)
    changed = (before[0] - after[0]).abs().amax(-1) > 1e-5
    assert changed.tolist() == [[False, True]] * 2
    assert torch.equal(before[1], after[1])


def test_relative_positions_in_time_are_a_table_of_distances():
    model = make_model("stg_cma")  # HTS-AT's unshifted blocks
    step = next(s for i in range(4) if (s := model.adapters.temporal(i, "audio")) is not None)
    with torch.no_grad():
        step.table.copy_(torch.arange(7.0)[:, None].expand(7, step.table.shape[1]))
    bias = step.bias(6)
    assert bias.shape == (1, step.table.shape[1], 6, 6)
    # Row t, column t': the distance t - t', at most 3 either way.
    assert bias[0, 0, [0, 5]].tolist() == [[3, 2, 1, 0, 0, 0], [6, 6, 6, 5, 4, 3]]
    assert {i for i in range(4) if model.adapters.temporal(i, "visual")} == {0, 1, 2, 3}


def test_directions_and_no_exchange_of_stg_cma():
    seen, heard = torch.randn(4, 65, 96), torch.randn(4, 31, 96)
    for off, sight, hearing in (("a2v", False, True), ("v2a", True, False), ("exchange", False, False)):
        model = stirred(make_model("stg_cma", "shared-clip", **{off: False}))
        with torch.no_grad():
            base = model.adapters(0, "attend", seen, heard, 2)
            by_sound = model.adapters(0, "attend", seen, -heard, 2)[0]
            by_sight = model.adapters(0, "attend", -seen, heard, 2)[1]
        assert (torch.equal(base[0], by_sound), torch.equal(base[1], by_sight)) == (not sight, not hearing), off
        assert (len(model.adapters.exchange) == 0) == (off == "exchange")


def test_steps_along_time_are_left_out_in_training_alone():
    model = make_model("stg_cma", drop_path=0.5)
    step = model.adapters.temporal(3, "visual")
    torch.nn.init.ones_(step.adapter.up.bias)
    rows = torch.zeros(1000, 2, 96)
    assert torch.equal(step(rows), step(rows))
    step.train()
    dropped = step(rows)
    kept = dropped[:, 0, 0] != 0
    assert 0.4 < kept.float().mean() < 0.6
    torch.testing.assert_close(dropped[kept], torch.full_like(dropped[kept], 2.0))
    assert model.adapters.temporal(0, "visual").drop == 0


def test_checkpointed_steps_are_left_out_alike(clips):
    """Activations that are computed twice draw the same rows."""
    gradients = []
    for checkpointing in (False, True):
        model = make_model("stg_cma", drop_path=0.5).train()
        model.checkpointing = checkpointing
        torch.manual_seed(3)
        stirred(model)
        visual, audio = model(*clips)
        (visual[..., :40].sum() + audio[..., :30].sum()).backward()
        gradients.append([p.grad for p in model.adapters.parameters() if p.grad is not None])
    assert len(gradients[0]) > 20
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_the_latent_adapter_is_that_of_the_paper():
    backbone = make_backbone([(5, 8)] * 2, [(7, 8)] * 2)
    settings = LavishSettings(latents=3, groups=2, reduction=4, batch_norm=False)
    adapter = Lavish(pair_towers(backbone.visual, backbone.audio), settings).layers[0]["attend"]["a2v"]
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.normal_()
    y, x = torch.randn(2, 7, 8), torch.randn(2, 5, 8)
    t = adapter.latents + torch.softmax(adapter.latents @ y.mT, -1) @ y
    z = adapter.before(x + adapter.latent_gate * torch.softmax(x @ t.mT, -1) @ t)
    down, up = adapter.down.weight[..., 0], adapter.up.weight[..., 0]  # [2, 4], [8, 1]: each group its half
    hidden = torch.relu(torch.cat([z[..., :4] @ down[:1].T, z[..., 4:] @ down[1:].T], -1))
    out = torch.cat([hidden[..., :1] @ up[:4].T, hidden[..., 1:] @ up[4:].T], -1)
    torch.testing.assert_close(adapter(y, x), adapter.gate * adapter.behind(out), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["lavish", "stg_cma"])
def test_a_clip_without_sound_is_seen_as_it_would_be_alone(kind, clips):
    model = stirred(make_model(kind, "shared-clip"))
    with torch.no_grad():
        present = torch.tensor([True, False])
        together = model(*clips, audio_present=present)[0]
        alone = model(clips[0], None)[0]
    torch.testing.assert_close(together[1], alone[1], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(together[0], alone[0], atol=1e-3)


def test_tokens_are_kept_before_they_are_merged_and_of_the_tower_that_sees(clips):
    model = make_model("stg_cma", "shared-swinv2")  # sound goes through the same blocks
    tower = model.visual_tower
    end = next(block for block, shape in enumerate(tower.token_shapes[1:]) if shape != tower.token_shapes[block])
    with torch.no_grad(), model.keeping_tokens([end, tower.depth - 1]) as tokens:
        model(*clips)
        images = tower.scaling(clips[0].flatten(0, 1))
        maps = [x.permute(0, 2, 3, 1) for x in tower.swin.forward_intermediates(images, intermediates_only=True)]
    first, last = (tokens[block] for block in sorted(tokens))
    assert (first.shape, last.shape) == ((4, 256, 24), (4, 16, 96))
    torch.testing.assert_close(first, maps[0].flatten(1, 2), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(last, maps[-1].flatten(1, 2), rtol=1e-4, atol=1e-4)
    kept = dict(tokens)
    model(*clips)
    assert all(tokens[block] is kept[block] for block in kept)  # nothing is kept outside the context


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("lavish", {"latents": 0, "bridge": "rope"}, "latents must be a whole number"),
        ("lavish", {"alpha": 1}, "no setting 'alpha'"),
        ("lavish", {"groups": 5}, r"groups \(5\) must divide 12 channels"),
        ("stg_cma", {"reduction": (8, 0)}, "one for each stage"),
        ("stg_cma", {"drop_path": 1.0}, "below 1"),
        ("stg_cma", {"temporal": False, "spatial": False, "global_step": False}, "no adapter"),
        ("stg_cma", {"a2v": False, "v2a": False}, "both off"),
    ],
)
def test_wrong_settings_are_named(kind, settings, message):
    backbone = make_backbone()
    with pytest.raises(UsageError, match=message):
        build_adapter(kind, pair_towers(backbone.visual, backbone.audio), settings)
