"""Published parameter counts, on torch's ``meta`` device: the twelve of STG-CMA, LAVISH, and its re-run by DG-SCT."""

import pytest
import torch
from open_clip.transformer import VisionTransformer
from standin_towers import StandInBackbone
from torch import nn
from towers_support import HTSAT_TOKENS, MEAN, STD, shared_towers, swin_tokens

from avfewshot.adapters.base import pair_layers, pair_towers
from avfewshot.adapters.lavish import Lavish
from avfewshot.adapters.settings import LavishSettings, StgCmaSettings
from avfewshot.adapters.stg_cma import StgCma
from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.encoders.picture import STG_CMA_CLIP, STG_CMA_SWIN
from avfewshot.encoders.swin import build_swin
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.complexity import count_parameters
from avfewshot.supervised.avqa import STAVQA

CLIP_B = {"patch_size": 16, "width": 768, "layers": 12, "heads": 12}
CLIP_L = {"patch_size": 14, "width": 1024, "layers": 24, "heads": 16}
SWIN_B, SWIN_L = "swin_base_patch4_window7_224.ms_in22k", "swin_large_patch4_window7_224.ms_in22k"
TINY, BASE_B, BASE_L = (8, 8, 16, 16), (4, 4, 8, 8), (2, 4, 8, 16)
MASK_DECODER = 19_877_569  # the decoder of AVSBench with its four attention blocks


@pytest.fixture(autouse=True)
def meta():
    with torch.device("meta"):
        yield


def size(*modules: nn.Module) -> int:
    return sum({id(p): p.numel() for module in modules for p in module.parameters()}.values())


def clip(sizes: dict) -> StandInBackbone:
    visual = VisionTransformer(image_size=224, mlp_ratio=4.0, output_dim=768, **sizes)
    visual.proj = None  # classified by a head of its own
    return shared_towers(ClipTower(visual, mean=MEAN, std=STD), STG_CMA_CLIP)


def swin(name: str) -> StandInBackbone:
    return shared_towers(build_swin(name), STG_CMA_SWIN)


def stg_cma(towers: StandInBackbone, reduction, segments: int = 10) -> StgCma:
    return StgCma(pair_towers(towers.visual, towers.audio), StgCmaSettings(reduction=reduction, positions=segments))


def ave_head(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2 * width, 512), nn.Dropout(0.5), nn.Linear(512, 29))


@pytest.mark.parametrize(
    ("towers", "reduction", "trainable", "millions"),
    [
        (CLIP_B, 32, 3_529_973, 89.6),
        (CLIP_B, 8, 11_497_781, 97.5),
        (CLIP_L, 32, 10_675_789, 314.1),
        (CLIP_L, 16, 20_117_581, 323.6),
        (SWIN_B, TINY, 5_599_957, 92.3),
        (SWIN_B, BASE_B, 10_068_597, 96.8),
        (SWIN_L, TINY, 11_740_697, 206.7),
        (SWIN_L, BASE_L, 19_026_857, 214.0),
    ],
)
def test_stg_cma_counts_as_published(towers, reduction, trainable, millions):
    backbone = clip(towers) if isinstance(towers, dict) else swin(towers)
    width = towers["width"] if isinstance(towers, dict) else backbone.visual.output_dim
    # The class tokens of CLIP leave through a trained norm.
    norm = [nn.LayerNorm(width)] if isinstance(towers, dict) else []
    assert size(stg_cma(backbone, reduction), *norm, ave_head(width)) == trainable
    frozen = size(backbone.visual, backbone.audio) - size(*norm)
    assert round((frozen + trainable) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("name", "reduction", "width", "trainable", "millions"),
    [(SWIN_B, BASE_B, 128, 29_739_753, 116.5), (SWIN_L, BASE_L, 192, 38_601_925, 233.6)],
)
def test_stg_cma_for_segmentation_counts_as_published(name, reduction, width, trainable, millions):
    towers = swin(name)
    ways = [nn.Linear(width * 2**stage, out) for stage, out in enumerate((64, 128, 320, 512))]
    ours = size(stg_cma(towers, reduction, segments=5), *ways, nn.Linear(8 * width, 128)) + MASK_DECODER
    assert ours == trainable
    assert round((size(towers.visual, towers.audio) + ours) / 1e6, 1) == millions


@pytest.mark.parametrize(("dim", "trainable", "millions"), [(512, 26_863_160, 221.9), (1536, 83_127_864, 278.1)])
def test_stg_cma_for_questions_counts_as_published(dim, trainable, millions):
    towers = swin(SWIN_L)
    head = STAVQA(1536, 1536, 93, 42, dim=dim)
    if dim == 1536:  # no reduction of the sound, and the match narrows to 512 at once
        head.audio = nn.Linear(1536, 1536)
        head.match = nn.Sequential(nn.Linear(3072, 512), nn.Linear(512, 256), nn.Linear(256, 128), nn.Linear(128, 2))
    ours = size(stg_cma(towers, BASE_L), head)
    assert ours == trainable
    assert round((size(towers.visual, towers.audio) + ours) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("shapes", "trainable"),
    [
        (swin_tokens(192), 10_036_061),
        (swin_tokens(128), 4_951_005),
        ([(197, 768)] * 12, 4_644_989),
        ([(257, 1024)] * 24, 14_458_077),
    ],
)
def test_lavish_counts_as_published(shapes, trainable):
    assert size(Lavish(pair_layers(shapes, shapes)), ave_head(shapes[-1][1])) == trainable


def test_lavish_between_unequal_towers_counts_as_in_the_comparison_of_dgsct():
    layers = pair_layers(swin_tokens(192), HTSAT_TOKENS)
    published = Lavish(layers, LavishSettings(bridge="published"))
    bridges = [module for name, module in published.named_modules() if name.endswith("bridge")]
    assert round(size(*bridges) / 1e6, 2) == 98.44
    assert size(Lavish(layers)) < 0.3 * size(published)


def test_one_transformer_that_sees_and_hears_is_counted_once():
    towers = swin(SWIN_B)
    counts = {count.component: count.total for count in count_parameters(AudioVisualModel(towers))}
    assert counts["visual tower"] == size(towers.visual)
    assert counts["audio tower"] < 3_000  # its patch embedding
    assert counts["all"] == size(towers.visual, towers.audio) + 2  # temperatures
