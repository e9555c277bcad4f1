"""Parameter and FLOP counts against arithmetic on small models."""

import pytest
import torch
from standin_towers import make_backbone, make_inputs
from torch import nn
from torch.nn import functional as F

from avfewshot.adapters.base import pair_towers
from avfewshot.adapters.dgsct import DGSCT
from avfewshot.adapters.settings import GuidanceSettings
from avfewshot.encoders.backbone import build_backbone
from avfewshot.encoders.presets import load_preset
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.complexity import backbone_cost, count_flops, count_parameters, flops_of
from avfewshot.models.projectors import Projectors

SETTINGS = {"hidden": 8, "temporal": False}


@pytest.fixture
def model() -> AudioVisualModel:
    backbone = make_backbone()
    layers = pair_towers(backbone.visual, backbone.audio)
    return AudioVisualModel(backbone, DGSCT(layers, GuidanceSettings(**SETTINGS)), Projectors(6, 7))


def one_direction(source: tuple[int, int], target: tuple[int, int], d: int) -> int:
    (ls, cs), (lt, ct) = source, target
    psi = lt * ls + lt + ct * cs + ct
    channel = 2 * (ct * ct + ct) + (ct * d + d) + (d * ct + ct)
    spatial = 2 * (ct * d + d) + d + 1
    return psi + channel + spatial + ct


def test_parameters_are_counted_by_component(model):
    counts = {count.component: count for count in count_parameters(model)}
    expected = sum(
        2
        * (
            one_direction(layer.audio_shape, layer.visual_shape, 8)
            + one_direction(layer.visual_shape, layer.audio_shape, 8)
        )
        for layer in model.layers
    )
    assert counts["adapters"].trainable == counts["adapters"].total == expected
    assert counts["projectors"].total == 2 * (2 * 6 * 7) + 2 * (2 * 7 * 8)
    assert counts["temperatures"].trainable == 2
    assert counts["visual tower"].trainable == 0
    assert counts["visual tower"].total == sum(p.numel() for p in model.visual_tower.parameters())
    assert counts["all"].total == sum(p.numel() for p in model.parameters())
    assert counts["all"].trainable == expected + 84 * 2 + 112 * 2 + 2
    assert "audio text branch" not in counts


def test_text_branches_are_counted_when_the_backbone_is_given(model):
    backbone = make_backbone()
    backbone.visual_text, backbone.audio_text = nn.Linear(2, 3).requires_grad_(False), nn.Linear(4, 5)
    counts = {count.component: count for count in count_parameters(model, backbone)}
    assert (counts["visual text branch"].trainable, counts["visual text branch"].total) == (0, 9)
    assert counts["audio text branch"].total == 25
    assert counts["all"].total == sum(p.numel() for p in model.parameters()) + 34


def test_flops_of_a_tower_are_those_of_its_matrix_products(model):
    frames, audio = make_inputs(1, 3)
    flops = count_flops(model, frames, audio)
    length, width = 5, 12
    block = length * length * width + length * width * width
    per_segment = 192 * length * width + 4 * block + width * 6  # stem, blocks, head
    projector = 2 * 6 * 6
    assert flops["visual tower"] == 2 * 3 * (per_segment + projector)
    assert flops["adapters"] > 0
    assert flops["all"] == flops["visual tower"] + flops["audio tower"] + flops["adapters"]


def test_attention_is_counted_on_the_cpu():
    class Attention(nn.Module):
        def forward(self, query, _):
            return F.scaled_dot_product_attention(query, query, query)

    assert flops_of(lambda: Attention()(torch.randn(2, 3, 7, 4), None)) == 2 * 2 * (2 * 3 * 7 * 7 * 4)


def test_what_a_backbone_takes_is_counted_without_weights_as_with_them():
    backbone = build_backbone("tiny")
    size = backbone.visual.image_size
    model = AudioVisualModel(backbone).requires_grad_(False)
    sound = torch.zeros(1, 10, 48_000)
    counted = count_flops(model, torch.zeros(1, 10, 3, size, size, dtype=torch.uint8), sound)
    spectrograms = flops_of(lambda: backbone.audio.front_end(sound[0], backbone.audio.audio_branch))
    cost = backbone_cost(load_preset("tiny"))
    assert cost["flops_per_clip"] == counted["all"] - spectrograms > 1e9
    parts = backbone.visual, backbone.audio, backbone.visual_text, backbone.audio_text
    assert cost["parameters"] == sum(p.numel() for part in parts for p in part.parameters()) + 3  # and temperatures
    assert cost["memory_bytes"] == 4 * cost["parameters"]
