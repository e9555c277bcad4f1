"""Contrastive batches larger than memory: GradCache (Gao et al., RepL4NLP 2021, arXiv 2101.06983).

The loss of a contrastive batch needs the embeddings of all its samples at once, but not the activations that they were
made from: the gradient of the loss with respect to the embeddings is all that an encoder has to know of the rest of the
batch (their section 3.2). So a batch of any size costs the memory of one chunk, and the time of one forward pass more.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfewshot.models.losses import CombinedLoss
from avfewshot.training.checkpoints import rng_state, set_rng_state

Embeddings = tuple[Tensor | None, ...]
"""What one modality after the other says of N samples: ``[N, ...]`` each, None where all samples lack it."""

Loss = CombinedLoss | Tensor
"""What a batch cost: by modality, or as a scalar."""

Chunk = Callable[[], Embeddings]
"""Embeds some of the samples of a batch; called once or twice, and has to do the same both times."""


def cached_backward(
    chunks: Sequence[Chunk],
    loss: Callable[[Embeddings], Loss],
    *,
    scale: float = 1.0,
    backward: Callable[[Tensor], Any] | None = None,
    no_sync: Callable[[], AbstractContextManager[Any]] | None = None,
    parameters: Iterable[Tensor] = (),
) -> Loss:
    """Add the gradients of a large batch's loss to those of all parameters, one chunk in memory at a time.

    1. Each chunk is embedded without a graph. 2. The loss of all embeddings is computed, and derived with respect to
    them and to the parameters that only the loss uses. 3. Each chunk is embedded again, with a graph and the same
    random numbers (Python's, NumPy's and torch's global generators), and its part of the gradient goes through it.

    The gradients are those of one big batch, as far as an encoder treats each sample by itself. A single chunk is run
    once only, so that this costs no more than an ordinary backward pass. May be called under ``torch.autocast``.

    Over several ranks, `loss` gathers the embeddings (:func:`avfewshot.training.distributed.gather_batch`), and DDP
    averages gradients in the last chunk; ranks may have different numbers of chunks. For DDP (with
    ``find_unused_parameters=False``) give `no_sync`, name in `parameters` all that it looks after, and let `loss` use
    the module inside DDP, not call DDP itself.

    Args:
        chunks: Each gives the embeddings of its samples. One that is None in some chunks and not in others is zero for
            their samples: say to the loss which ones are absent.
        loss: Of the embeddings of all chunks, joined along the first dimension (leaves of the graph). Called once.
        scale: Factor on the gradients, as for a sum over several batches; the result does not have it.
        backward: Called instead of ``Tensor.backward``, such as ``fabric.backward``; its factor against underflow is
            put in once, as by a gradient scaler.
        no_sync: The context in which gradients are not exchanged between ranks: for the loss and all chunks but the
            last.
        parameters: Trainable tensors that take part in the last chunk's backward pass whether it uses them or not, with
            a gradient of zero: DDP then knows that they are done.

    Returns:
        The loss; its total has no graph.

    Raises:
        ValueError: There are no chunks, they do not fit together, or one gave another shape the second time.
    """
    if not chunks:
        raise ValueError("There are no chunks.")
    backward = backward or torch.Tensor.backward
    quiet = no_sync or contextlib.nullcontext
    # Under DDP the forward pass of the last chunk has to come after the gradients of the loss.
    keep_graph = len(chunks) == 1 and no_sync is None
    states, found = [], []
    for chunk in chunks:
        states.append({} if keep_graph else rng_state())
        _forget_casts()
        with contextlib.nullcontext() if keep_graph else torch.no_grad():
            found.append(chunk())
    wholes, sizes = _join(found)
    _forget_casts()
    with quiet():
        result = loss(wholes)
        total = result if isinstance(result, Tensor) else result.total
        if total.requires_grad:
            with _without_autocast(total.device.type):
                backward(total * scale)
    total = total.detach()  # lets go of the loss's graph
    result = total if isinstance(result, Tensor) else dataclasses.replace(result, total=total)
    gradients = _split(wholes, found, sizes)
    touched = [parameter for parameter in parameters if parameter.requires_grad]
    for index, (chunk, state, gradient) in enumerate(zip(chunks, states, gradients, strict=True)):
        last = index == len(chunks) - 1
        extra = touched if last else []
        if not extra and all(part is None for part in gradient):
            continue
        with contextlib.nullcontext() if last else quiet():
            embeddings = found[index] if keep_graph else _replay(chunk, state)
            _inject(embeddings, gradient, extra, backward)
            del embeddings  # or else two chunks would be in memory
    return result


def _forget_casts() -> None:
    """Drop the casts of weights that autocast keeps until its outermost context ends.

    Should one made without a graph be used again where one is needed, the weights would get no gradient. Not every
    release of torch tells the two apart.
    """
    torch.clear_autocast_cache()


def _replay(chunk: Chunk, state: dict[str, Any]) -> Embeddings:
    """Embed again with the random numbers of the first time."""
    now = rng_state()
    set_rng_state(state)
    _forget_casts()
    try:
        return chunk()
    finally:
        set_rng_state(now)


def _join(found: Sequence[Embeddings]) -> tuple[Embeddings, list[int]]:
    """All chunks' embeddings as new leaves, zeros where a chunk has none; and the number of samples of each chunk."""
    if len({len(embeddings) for embeddings in found}) > 1:
        raise ValueError(f"Chunks gave {', '.join(str(len(embeddings)) for embeddings in found)} embeddings.")
    sizes = []
    for index, embeddings in enumerate(found):
        rows = {len(part) for part in embeddings if part is not None}
        if len(rows) != 1:
            what = f"embeddings of {' and '.join(map(str, sorted(rows)))} samples" if rows else "no embeddings"
            raise ValueError(f"Chunk {index} gave {what}.")
        sizes.append(rows.pop())
    leaves = [[None if one is None else one.detach() for one in parts] for parts in zip(*found, strict=True)]
    wholes = [joined(parts, sizes) for parts in leaves]
    return tuple(None if whole is None else whole.requires_grad_() for whole in wholes), sizes


def joined(parts: Sequence[Tensor | None], sizes: Sequence[int]) -> Tensor | None:
    """Parts of so many rows in one tensor, zeros in the place of absent ones; None where all are absent."""
    example = next((part for part in parts if part is not None), None)
    if example is None:
        return None
    blanks = (example.new_zeros(size, *example.shape[1:]) for size in sizes)
    return torch.cat([blank if part is None else part for part, blank in zip(parts, blanks, strict=True)])


def _split(wholes: Embeddings, found: Sequence[Embeddings], sizes: list[int]) -> list[list[Tensor | None]]:
    """The gradients of each chunk's embeddings, None where there is nothing to pass on."""
    shares = [
        [None] * len(sizes) if whole is None or whole.grad is None else whole.grad.split(sizes) for whole in wholes
    ]
    return [
        [None if part is None else share[index] for part, share in zip(embeddings, shares, strict=True)]
        for index, embeddings in enumerate(found)
    ]


def _inject(
    embeddings: Embeddings,
    gradients: Sequence[Tensor | None],
    touched: Sequence[Tensor],
    backward: Callable[[Tensor], Any],
) -> None:
    """Run the backward pass of a chunk from the gradients of its embeddings, and of zeros for `touched`."""
    if len(embeddings) != len(gradients):
        raise ValueError(f"A chunk gave {len(embeddings)} embeddings the second time, and {len(gradients)} before.")
    targets, given = [], []
    for embedding, gradient in zip(embeddings, gradients, strict=True):
        if gradient is None:
            continue
        if embedding is None or embedding.shape != gradient.shape:
            shape = None if embedding is None else list(embedding.shape)
            raise ValueError(f"A chunk gave an embedding {shape} the second time, and {list(gradient.shape)} before.")
        if embedding.requires_grad:
            targets.append(embedding)
            given.append(gradient)
    for parameter in touched:
        targets.append(parameter)
        given.append(parameter.new_zeros(()).expand_as(parameter))  # no memory
    if targets:
        with _without_autocast(targets[0].device.type):
            backward(_Inject.apply(tuple(given), *targets))


class _Inject(torch.autograd.Function):
    """A scalar whose gradients are those given, whatever factor `backward` puts before it.

    The factor of a gradient scaler is in the cached gradients already, since the loss went through `backward` too.
    """

    @staticmethod
    def forward(ctx: Any, gradients: tuple[Tensor, ...], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return tensors[0].new_zeros(())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return (None, *ctx.gradients)


@contextlib.contextmanager
def _without_autocast(kind: str) -> Iterator[None]:
    """Backward passes take the formats of the forward pass; autocast would round those that were kept in float32."""
    with torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else contextlib.nullcontext():
        yield
