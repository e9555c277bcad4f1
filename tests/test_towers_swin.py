"""timm's Swin transformers and the tower of spectrogram pictures, at small sizes."""

import pytest
import torch
from torch.nn import functional as F
from towers_support import (
    HTSAT_TOKENS,
    MEAN,
    STD,
    clip_tower,
    randomize,
    shared_towers,
    sounds,
    swin_tokens,
    swin_tower,
)

from avfewshot.adapters.base import pair_layers
from avfewshot.config import SupervisedTrainingConfig, TrainingConfig
from avfewshot.encoders.clip_tower import ClipTower
from avfewshot.encoders.picture import LAVISH_SWIN, Picture
from avfewshot.encoders.spectrogram_tower import SpectrogramTower
from avfewshot.encoders.swin import SwinV2Tower, build_swin
from avfewshot.errors import UsageError
from avfewshot.models.build import build_model

PICTURE = Picture(48, 20.0, 40)


@pytest.mark.parametrize("version", [1, 2])
def test_walked_alone_a_swin_tower_is_timms_forward_and_branches_are_what_the_halves_of_a_block_add(version):
    tower = swin_tower(version)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        walked, tokens = tower(images), tower.patch_embed(images)
        torch.testing.assert_close(walked, tower.swin(images), rtol=1e-5, atol=1e-5)
        after = tower.attn_block(1, tokens)
        torch.testing.assert_close(after - tokens, tower.attn_branch(1, tokens), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(tower.mlp_block(1, after) - after, tower.mlp_branch(1, after), rtol=1e-4, atol=1e-5)
    assert walked.std() > 0.01
    assert tower.token_shapes == [(256, 24)] * 2 + [(64, 48)] * 2 + [(16, 96)] * 2


def test_time_attention_is_the_blocks_attention_over_a_sequence():
    """A window that is a sequence of one row, with the position bias set to what is given."""
    tower = swin_tower(1)
    attn = tower.swin.layers[0].blocks[0].attn
    tokens, bias = torch.randn(3, 16, 24), torch.randn(1, attn.num_heads, 16, 16)
    norm = tower.swin.layers[0].blocks[0].norm1
    with torch.no_grad():
        got = tower.time_branch(0, tokens, bias)
        attn._get_rel_pos_bias = lambda: bias
        attn.fused_attn = False
        expected = attn(norm(tokens))
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_time_attention_of_the_second_version_compares_by_cosine():
    tower = swin_tower(2)
    block = tower.swin.layers[0].blocks[0]
    tokens = torch.randn(3, 16, 24)
    with torch.no_grad():
        block.attn.cpb_mlp[2].weight.zero_()  # a bias of 8 everywhere, which softmax does not see
        expected = block.norm1(block.attn(tokens))
    torch.testing.assert_close(tower.time_branch(0, tokens), expected, rtol=1e-4, atol=1e-5)


def test_windows_name_the_tokens_that_attend_to_each_other():
    tower = swin_tower(1)
    tokens = torch.randn(1, 256, 24, requires_grad=True)
    for block in (0, 1):
        windows = tower.windows(block)[0]
        place = windows[0]
        (gradient,) = torch.autograd.grad(tower.attn_branch(block, tokens)[0, place].sum(), tokens)
        reached = gradient[0].abs().sum(-1) > 1e-7
        assert set(reached.nonzero().flatten().tolist()) == set(windows.tolist())


def test_pairing_by_stage_meets_the_released_pairs_of_dgsct():
    pairs = [(pair.visual_block, pair.audio_block) for pair in pair_layers(swin_tokens(192), HTSAT_TOKENS)]
    assert pairs == [(0, 0), (1, 1), (2, 2), (3, 3), *((4 + 3 * k + 2, 4 + k) for k in range(6)), (22, 10), (23, 11)]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SwinV2Tower(torch.nn.Linear(1, 1)), "SwinTransformerV2 is needed"),
        (lambda: build_swin("swinv9"), "no model 'swinv9'"),
        (
            lambda: SpectrogramTower(clip_tower(), Picture(128, 10.0, 102)),
            "does not fit the image encoder's grid of 8 x 8",
        ),
        (lambda: SpectrogramTower(swin_tower(2), LAVISH_SWIN), "192 x 192 does not fit an image encoder of 64 x 64"),
    ],
)
def test_other_networks_unknown_names_and_pictures_that_do_not_fit_are_refused(build, message):
    with pytest.raises(UsageError, match=message):
        build()


def test_the_published_swin_has_the_parameters_of_its_paper():
    with torch.device("meta"):
        for name, count in (
            ("swinv2_large_window12_192.ms_in22k", 195_202_932),
            ("swinv2_base_window12_192.ms_in22k", 86_893_816),
        ):
            tower = build_swin(name)
            assert sum(p.numel() for p in tower.parameters()) == count
            assert not any(p.requires_grad for p in tower.parameters())


def test_a_spectrogram_is_seen_by_the_clip_that_sees_frames():
    image = clip_tower()
    tower = SpectrogramTower(image, PICTURE)
    waveforms = sounds(2)
    with torch.no_grad():
        pictures = tower.pictures(waveforms)
        # The same picture three times, under the image tower's own kernel and the middle of its places.
        grid = image.visual.positional_embedding[1:].unflatten(0, (8, 8))[1:6, 1:7].flatten(0, 1)
        patches = F.conv2d(pictures[:, None].expand(-1, 3, -1, -1), image.visual.conv1.weight, stride=8)
        places = torch.cat([image.visual.positional_embedding[:1], grid])
        tokens = image.enter(patches.flatten(2).mT, places)
        for block in range(image.depth):
            tokens = image.mlp_block(block, image.attn_block(block, tokens))
        expected = image.forward_head(tokens)
        got = tower(waveforms)
    assert pictures.shape == (2, 40, 48)
    assert tower.token_shapes[0] == (1 + 5 * 6, 96)
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(got[0], got[1], atol=1e-3)


def test_pictures_are_normalised_before_they_are_padded():
    tower = SpectrogramTower(clip_tower(), Picture(48, 20.0, 60, mean=-3.0, std=2.0))
    pictures = tower.pictures(sounds(1))
    assert (pictures[0, 49:] == 0).all()  # a second has 49 frames of 25 ms that are 20 ms apart
    assert (pictures[0, :49].abs().sum(1) > 0).all()


@pytest.mark.parametrize("channels", ["mean", "repeat"])
def test_a_spectrogram_is_seen_by_the_swin_that_sees_frames(channels):
    image = swin_tower(2)
    tower = SpectrogramTower(image, Picture(64, 15.0, 64, channels=channels))
    waveforms = sounds(2)
    with torch.no_grad():
        pictures = tower.pictures(waveforms)[:, None].expand(-1, 3, -1, -1)
        expected = image(pictures if channels == "repeat" else pictures / 3)
        got = tower(waveforms)
    assert (sum(p.numel() for p in tower.parameters()) == sum(p.numel() for p in image.parameters())) == (
        channels == "repeat"
    )
    torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-3)


def test_the_released_mistake_attends_with_eight_heads():
    visual = clip_tower(heads=12, width=96).visual
    randomize(visual)
    images, waves = torch.randn(2, 3, 64, 64), sounds(2)
    tower = ClipTower(visual, mean=MEAN, std=STD)
    right = shared_towers(tower, PICTURE)
    config = SupervisedTrainingConfig(adapter="stg_cma", variant="released-8-heads")
    wrong = build_model(right, config).eval()
    before = build_model(right, config.replace(variant="paper")).eval()
    with torch.no_grad():
        torch.testing.assert_close(right.visual(images), visual(images), rtol=1e-4, atol=1e-4)
        assert not torch.allclose(wrong.visual_tower(images), visual(images), atol=1e-2)
        told = before.audio_tower(waves)
        for block in visual.transformer.resblocks:
            block.attn.num_heads, block.attn.head_dim = 8, 12
        torch.testing.assert_close(wrong.visual_tower(images), visual(images), rtol=1e-4, atol=1e-4)
    # The right towers are left as they were; the spectrograms go through the wrong ones too.
    for block in visual.transformer.resblocks:
        block.attn.num_heads, block.attn.head_dim = 12, 8
    with torch.no_grad():
        torch.testing.assert_close(right.visual(images), visual(images), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(right.audio(waves), told)
        assert not torch.allclose(wrong.audio_tower(waves), told, atol=1e-2)


def test_the_released_mistake_needs_a_clip_transformer_and_its_adapter():
    image = swin_tower(1)
    towers = shared_towers(image, Picture(64, 15.0, 64, channels="mean"))
    with pytest.raises(UsageError, match="released-8-heads needs a CLIP vision transformer"):
        build_model(towers, SupervisedTrainingConfig(adapter="stg_cma", variant="released-8-heads"))
    for config in (SupervisedTrainingConfig, TrainingConfig):
        with pytest.raises(UsageError, match="variant released-8-heads is of adapter stg_cma"):
            config(adapter="dgsct", variant="released-8-heads")
