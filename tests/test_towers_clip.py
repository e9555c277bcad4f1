import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.transformer import QuickGELU
from towers_support import MEAN, STD, TINY_VISION, clip_tower, normalised, pictures

from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.errors import UsageError

VIT_B_32 = {"image_size": 224, "patch_size": 32, "width": 768, "layers": 12, "heads": 12, "output_dim": 512}
VIT_L_14 = {"image_size": 84, "patch_size": 14, "width": 1024, "heads": 16, "output_dim": 768}
SIZES = {
    "ViT-B-32": VIT_B_32,
    "ViT-B-32-quickgelu": {**VIT_B_32, "act_layer": QuickGELU},
    "ViT-L-14, three blocks": {**VIT_L_14, "layers": 3, "act_layer": QuickGELU},
    "tiny": {},
    "image with a border": {"image_size": 68},
    "layer scale, mean of the tokens": {"ls_init_value": 0.3, "pool_type": "avg", "layers": 3},
    "norm after pooling": {"final_ln_after_pool": True, "no_ln_pre": True, "layers": 3},
    "blocks with normalised queries": {"qk_norm": True, "scale_attn": True, "scale_fc": True, "layers": 3},
    "quick GELU in such blocks": {"qk_norm": True, "scale_fc": True, "act_layer": QuickGELU, "layers": 3},
    "attentional pooling": {"attentional_pool": True, "attn_pooler_heads": 4, "layers": 3},
}


@pytest.mark.parametrize("name", SIZES)
def test_walk_equals_the_forward_of_open_clip(name: str) -> None:
    tower = clip_tower(**SIZES[name])
    images = normalised(pictures(3, tower.image_size))
    with torch.no_grad():
        expected = tower.visual(images)
        embeddings = tower(images)
    assert embeddings.shape == (3, *expected.shape[1:])
    assert (expected[0] - expected[1]).abs().max() > 0.1  # the images make a difference
    assert (embeddings - expected).abs().max() <= 1e-5


def test_pixels_are_normalised_in_float32_whatever_the_weights() -> None:
    tower = clip_tower(layers=2)
    images = pictures(2)
    expected = tower._patches(images)
    tower.to(torch.bfloat16)
    assert tower(images).dtype == torch.bfloat16
    assert torch.equal(tower._patches(images), expected)


def test_gradients_reach_the_images_as_through_open_clip() -> None:
    tower = clip_tower(act_layer=QuickGELU)
    images = normalised(pictures(2)).requires_grad_()
    (expected,) = torch.autograd.grad(tower.visual(images).square().sum(), images)
    (gradient,) = torch.autograd.grad(tower(images).square().sum(), images)
    assert expected.abs().max() > 1e-3
    assert (gradient - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_state_dict_is_that_of_open_clip() -> None:
    tower = clip_tower()
    assert list(tower.state_dict()) == [f"visual.{key}" for key in tower.visual.state_dict()]


def test_another_kind_of_network_is_refused_by_name() -> None:
    with pytest.raises(UsageError, match=r"ModifiedResNet.*ViT-B-32"):
        ClipTower(ModifiedResNet((1, 1, 1, 1), 32, 4, image_size=64, width=8), mean=MEAN, std=STD)


def test_images_of_another_size_are_refused() -> None:
    tower = clip_tower()
    with pytest.raises(ValueError, match=r"\[N, 3, 64, 64\] are needed, not \[1, 3, 32, 32\]"):
        tower(pictures(1, 32))
    assert tower.image_size == TINY_VISION["image_size"]
