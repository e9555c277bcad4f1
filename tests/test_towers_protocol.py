"""What every tower promises, whatever it wraps."""

import copy

import pytest
import torch
from towers_support import clap_tower, clip_tower, pictures, sounds

from avfewshot.encoders.tower import Tower

KINDS = {"clip": (clip_tower, pictures), "clap": (clap_tower, sounds)}


@pytest.fixture(params=KINDS)
def made(request: pytest.FixtureRequest):
    """A tower of the size of the `tiny` preset, and inputs for it."""
    build, inputs = KINDS[request.param]
    tower = build()
    return tower, inputs(3)


def test_tokens_have_the_promised_shapes_and_steps_leave_their_arguments_alone(made) -> None:
    tower, inputs = made
    assert isinstance(tower, Tower)
    assert tower.depth == len(tower.token_shapes) == 12
    tokens = tower.patch_embed(inputs)
    for i in range(tower.depth):
        assert tokens.shape == (3, *tower.token_shapes[i])
        for step in (tower.attn_block, tower.mlp_block, tower.downsample):
            before = tokens.clone()
            result = step(i, tokens)
            assert torch.equal(tokens, before)
            assert result.shape == before.shape or step == tower.downsample
            tokens = result
    assert tower.forward_head(tokens).shape == (3, tower.output_dim)


def test_result_is_the_same_with_and_without_a_graph(made) -> None:
    tower, inputs = made
    with torch.inference_mode():  # fills whatever is cached
        plain = tower(inputs)
    tokens = tower.patch_embed(inputs).requires_grad_()
    walked = tokens
    for i in range(tower.depth):
        walked = tower.downsample(i, tower.mlp_block(i, tower.attn_block(i, walked)))
    result = tower.forward_head(walked)
    assert (result - plain).abs().max() <= 1e-5
    result.sum().backward()
    assert tokens.grad.abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_floats_keep_the_direction_of_the_embedding_and_gradients_flow(made, dtype: torch.dtype) -> None:
    tower, inputs = made
    with torch.no_grad():
        expected = tower(inputs)
        with torch.autocast("cpu", dtype):
            automatic = tower(inputs)
        cast = copy.deepcopy(tower).to(dtype)(inputs)
    for result in (automatic, cast):
        assert result.dtype == dtype
        assert torch.cosine_similarity(result.float(), expected).min() >= 0.999
        assert not torch.equal(result.float(), expected)
    tokens = tower.patch_embed(inputs).requires_grad_()
    with torch.autocast("cpu", dtype):
        walked = tower.downsample(1, tower.mlp_block(1, tower.attn_block(1, tokens)))
    walked.float().sum().backward()
    assert torch.isfinite(tokens.grad).all()
    assert tokens.grad.abs().sum() > 0


def test_copy_follows_its_own_weights(made) -> None:
    tower, inputs = made
    before = tower(inputs)
    twin = copy.deepcopy(tower)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(0.5)
    assert torch.equal(tower(inputs), before)
    assert (twin(inputs) - before).abs().max() > 1e-2


@pytest.mark.parametrize("floats", [1, 2 * 65 * 4 * 96])
def test_chunks_of_any_size_change_nothing(made, floats: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tower, inputs = made
    monkeypatch.setattr("avfewshot.encoders.tower._CHUNK_FLOATS", 2**40)
    expected = tower(inputs)
    monkeypatch.setattr("avfewshot.encoders.tower._CHUNK_FLOATS", floats)
    assert (tower(inputs) - expected).abs().max() <= 2e-6
