"""The feed-forward maps of frozen blocks against their definition in float64: with a graph and without, in chunks."""

import pytest
import torch
from torch import nn

from avfewshot.encoders import feed_forward as module


class QuickGELU(nn.Module):
    """As open_clip's, by its name and place."""

    __module__ = "open_clip.model"

    def forward(self, x):
        return x * torch.sigmoid(1.702 * x)


@pytest.mark.parametrize("activation", [nn.GELU(), QuickGELU(), nn.GELU(approximate="tanh"), nn.ReLU()])
@pytest.mark.parametrize("state", ["frozen", "frozen in chunks", "learning", "without a graph"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
def test_values_and_gradients_are_those_of_the_definition(monkeypatch, activation, state, dtype, tolerance):
    if state == "frozen in chunks":
        monkeypatch.setattr(module, "_CHUNK_FLOATS", 3 * 24)
    inner, outer = (nn.Linear(*sizes).to(dtype).requires_grad_(state == "learning") for sizes in ((6, 24), (24, 6)))
    tokens = torch.randn(2, 5, 6, dtype=dtype, requires_grad=state != "without a graph")
    found = module.feed_forward(tokens, inner, activation, outer)
    hidden = activation(tokens.double() @ inner.weight.double().mT + inner.bias.double())
    expected = hidden @ outer.weight.double().mT + outer.bias.double()
    assert (found.dtype, found.shape) == (dtype, tokens.shape)
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    if inputs := [one for one in (tokens, *inner.parameters(), *outer.parameters()) if one.requires_grad]:
        weights = torch.randn(found.shape, dtype=torch.float64)
        gradients = torch.autograd.grad((found.double() * weights).sum(), inputs)
        wanted = torch.autograd.grad((expected * weights).sum(), inputs)
        for one, other in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(one.double(), other.double(), rtol=4 * tolerance, atol=4 * tolerance)


def test_of_the_hidden_features_those_before_the_activation_are_kept_alone():
    inner, outer = (nn.Linear(*sizes).requires_grad_(False) for sizes in ((8, 32), (32, 8)))
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor) or tensor, lambda tensor: tensor):
        module.feed_forward(torch.randn(100, 8, requires_grad=True), inner, nn.GELU(), outer)
    assert sorted(tensor.numel() for tensor in kept) == [8 * 32, 8 * 32, 100 * 32]
