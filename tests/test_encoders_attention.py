"""Attention against its definition in float64: in short formats, with a gradient and without, in chunks and whole."""

import pytest
import torch

from avfewshot.encoders import attention as module
from avfewshot.encoders.attention import attention, self_attention

FORMATS = [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)]


def by_hand(query, key, value, bias, scale):
    """The definition, in float64."""
    query, key, value = (part.double() for part in (query, key, value))
    products = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (products if bias is None else products + bias.double()).softmax(-1) @ value


def compare(found, expected, inputs, tolerance):
    """Values, and gradients of all inputs that want one."""
    torch.testing.assert_close(found.double(), expected.double(), rtol=tolerance, atol=tolerance)
    if inputs := [one for one in inputs if one is not None and one.requires_grad]:
        weights = torch.randn(found.shape, dtype=torch.float64)
        gradients = torch.autograd.grad((found.double() * weights).sum(), inputs)
        wanted = torch.autograd.grad((expected.double() * weights).sum(), inputs)
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=4 * tolerance, atol=4 * tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_attention_is_what_it_is_called(dtype, tolerance, biased, learning, autocast):
    parts = torch.randn(3, 2, 4, 6, 8).to(dtype).requires_grad_(learning)
    bias, scale = (torch.randn(1, 4, 6, 6).to(dtype), 0.3) if biased else (None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
        found = attention(*parts.unbind(0), bias, scale=scale)
    assert found.dtype == dtype
    compare(found, by_hand(*parts.unbind(0), bias, scale), [parts], tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), FORMATS)
@pytest.mark.parametrize("kinds", [0, 1, 3])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("products", [2**20, 1], ids=["whole", "chunks"])
def test_self_attention_is_what_it_is_called(monkeypatch, dtype, tolerance, kinds, learning, products):
    monkeypatch.setattr(module, "_CHUNK_PRODUCTS", products)
    joined = torch.randn(6, 5, 3 * 8).to(dtype).requires_grad_(learning)
    bias, scale = (torch.randn(kinds, 5, 5, 4).permute(0, 3, 1, 2).to(dtype), 0.3) if kinds else (None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # matters to nothing
        found = self_attention(joined, 4, bias, scale=scale)
    assert found.dtype == dtype
    assert found.shape == (6, 5, 8)
    rows = None if bias is None else bias.repeat(6 // kinds, 1, 1, 1)
    expected = by_hand(*joined.unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4), rows, scale)
    compare(found, expected.transpose(1, 2).flatten(2), [joined], tolerance)


def test_a_learnt_bias_has_a_gradient():
    joined, bias = torch.randn(2, 5, 24, requires_grad=True), torch.randn(1, 4, 5, 5, requires_grad=True)
    expected = by_hand(*joined.unflatten(-1, (3, 4, 2)).permute(2, 0, 3, 1, 4), bias, None).transpose(1, 2).flatten(2)
    compare(self_attention(joined, 4, bias), expected, [joined, bias], 1e-5)
