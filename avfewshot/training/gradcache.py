"""Contrastive batches larger than memory: GradCache (Gao et al., RepL4NLP 2021, arXiv 2101.06983).

The loss of a contrastive batch needs the embeddings of all its samples at once, but not the activations that they were
made from: the gradient of the loss with respect to the embeddings is all that an encoder has to know of the rest of the
batch (their section 3.2). So a batch of any size costs the memory of one chunk, and the time of one forward pass more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfewshot.training.checkpoints import rng_state, set_rng_state

Embeddings = tuple[Tensor | None, ...]
"""What one modality after the other says of N samples: ``[N, ...]`` each, None where all samples lack it."""


def cached_backward(
    chunks: Sequence[Callable[[], Embeddings]],
    loss: Callable[[Embeddings], Tensor],
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
    no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    parameters: Iterable[Tensor] = (),
) -> None:
    """Add the gradients of a large batch's loss to those of all parameters, one chunk in memory at a time.

    1. Each chunk is embedded without a graph. 2. The loss of all embeddings is computed, and derived with respect to
    them and to the parameters that only the loss uses. 3. Each chunk is embedded again, with a graph and the same
    random numbers (Python's, NumPy's and torch's global generators), and its part of the gradient goes through it.

    The gradients are those of one big batch, as far as an encoder treats each sample by itself. A single chunk is run
    once only, so that this costs no more than an ordinary backward pass.

    Over several ranks, `loss` gathers the embeddings (:func:`avfewshot.training.distributed.gather_batch`), and DDP
    averages gradients in the last chunk; ranks may have different numbers of chunks. For DDP (with
    ``find_unused_parameters=False``) give `no_sync`, name in `parameters` all that it looks after, and let `loss` use
    the module inside DDP, not call DDP itself.

    Args:
        chunks: Each gives the embeddings of its samples, the same ones whenever it is called. One that is None in some
            chunks and not in others is zero for their samples: say to the loss which ones are absent.
        loss: A scalar of the embeddings of all chunks, joined along the first dimension (leaves of the graph).
        backward: Called instead of ``Tensor.backward``, such as ``fabric.backward``; its factor against underflow is
            put in once, as by a gradient scaler.
        no_sync: The context in which gradients are not exchanged between ranks: for the loss and all chunks but the
            last.
        parameters: Trainable tensors that take part in the last chunk's backward pass whether it uses them or not, with
            a gradient of zero: DDP then knows that they are done.
    """
    quiet = no_sync or nullcontext
    # Under DDP the forward pass of the last chunk has to come after the gradients of the loss.
    keep_graph = len(chunks) == 1 and no_sync is None
    states, found = [], []
    for chunk in chunks:
        states.append({} if keep_graph else rng_state())
        with nullcontext() if keep_graph else torch.no_grad():
            found.append(chunk())
    sizes = [next(len(part) for part in embeddings if part is not None) for embeddings in found]
    wholes = []
    for parts in zip(*found, strict=True):
        whole = joined([None if part is None else part.detach() for part in parts], sizes)
        wholes.append(None if whole is None else whole.requires_grad_())
    with quiet():
        total = loss(tuple(wholes))
        if total.requires_grad:
            backward(total)
    del total  # and with it the loss's graph
    shares = [
        [None] * len(sizes) if whole is None or whole.grad is None else whole.grad.split(sizes) for whole in wholes
    ]
    for index, chunk in enumerate(chunks):
        last = index == len(chunks) - 1
        touched = list(parameters) if last else []
        if not touched and all(share[index] is None for share in shares):
            continue
        with nullcontext() if last else quiet():
            embeddings = found[index] if keep_graph else _replay(chunk, states[index])
            _inject(embeddings, [share[index] for share in shares], touched, backward)
            del embeddings  # or else two chunks would be in memory


def joined(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Parts of so many rows in one tensor, zeros in the place of absent ones; None where all are absent."""
    example = next((part for part in parts if part is not None), None)
    if example is None:
        return None
    blanks = (example.new_zeros(size, *example.shape[1:]) for size in sizes)
    return torch.cat([blank if part is None else part for part, blank in zip(parts, blanks, strict=True)])


def _replay(chunk: Callable[[], Embeddings], state: dict[str, Any]) -> Embeddings:
    """Embed again with the random numbers of the first time."""
    now = rng_state()
    set_rng_state(state)
    try:
        return chunk()
    finally:
        set_rng_state(now)


def _inject(
    embeddings: Embeddings,
    gradients: Sequence[Tensor | None],
    touched: Sequence[Tensor],
    backward: Callable[[Tensor], Any],
) -> None:
    """Run the backward pass of a chunk from the gradients of its embeddings, and of zeros for `touched`."""
    pairs = [
        (embedding, gradient)
        for embedding, gradient in zip(embeddings, gradients, strict=True)
        if embedding is not None and embedding.requires_grad and gradient is not None
    ]
    pairs += [(parameter, parameter.new_zeros(()).expand_as(parameter)) for parameter in touched]  # no memory
    if pairs:
        targets, given = zip(*pairs, strict=True)
        backward(_Inject.apply(given, *targets))


class _Inject(torch.autograd.Function):
    """A scalar whose gradients are those given, with the factor of a gradient scaler in them already."""

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return tensors[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.gradients)
