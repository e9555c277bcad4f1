"""Attention: the same in short formats with a gradient and without."""

from __future__ import annotations

import pytest
import torch

from avfewshot.encoders.tower import attention


def by_hand(query, key, value, bias, scale):
    """The definition, in float64."""
    query, key, value = (part.double() for part in (query, key, value))
    products = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    return (products if bias is None else products + bias.double()).softmax(-1) @ value


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 3e-3)])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_what_it_is_called(dtype, tolerance, biased, learning, autocast):
    torch.manual_seed(0)
    parts = torch.randn(3, 2, 4, 6, 8).to(dtype).requires_grad_(learning)
    bias, scale = (torch.randn(1, 4, 6, 6).to(dtype), 0.3) if biased else (None, None)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast and dtype == torch.bfloat16):
        found = attention(*parts.unbind(0), bias, scale=scale)
    assert found.dtype == dtype
    expected = by_hand(*parts.unbind(0), bias, scale)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    if learning:
        weights = torch.randn(found.shape, dtype=torch.float64)
        [gradient] = torch.autograd.grad((found.double() * weights).sum(), parts)
        [wanted] = torch.autograd.grad((expected * weights).sum(), parts)
        torch.testing.assert_close(gradient.double(), wanted.double(), rtol=4 * tolerance, atol=4 * tolerance)
