"""Forward and backward passes recorded once as CUDA graphs and replayed.

A pass through two towers with adapters is thousands of small kernels. Starting them one by one keeps a fast GPU
waiting for most of a step; a recorded graph is started as a whole.
"""

from __future__ import annotations

import contextlib
import logging
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from avfewshot.inference.devices import free_memory, is_out_of_memory
from avfewshot.models.audio_visual import AudioVisualModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_LOG = logging.getLogger(__name__)
_EAGER = 2  # passes of a shape before it is recorded: libraries choose and allocate in the first ones
_SHAPES = 4  # that are recorded, each with memory of its own for inputs and outputs; further ones run as usual


class EagerRunner:
    """Runs a model's passes one kernel after another."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(
        self, frames: Tensor | None, audio: Tensor | None, **masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """See :meth:`avfewshot.models.audio_visual.AudioVisualModel.forward`."""
        with fresh_casts():
            return self._module(frames, audio, **masks)

    def prepare(self) -> None:
        """Called before a step, when no pass is under way."""

    def release(self) -> None:
        """Called when memory has run out, and no pass is under way: let go of what can be made again."""


class CUDAGraphRunner(EagerRunner):
    """Records passes of a shape that comes again and again, and replays them; for a single CUDA device.

    The kernels are those of the ordinary passes. Batches in which a clip lacks a modality, and passes begun before the
    backward pass of the one before, run as usual. When recording fails (want of memory, an operation that cannot be
    recorded), that is logged once and everything runs as usual from then on. Parameters are changed in place only.
    """

    def __init__(self, fabric: Fabric, module: Any, model: AudioVisualModel) -> None:
        super().__init__(module)
        self._fabric, self._model = fabric, model
        self._counts: Counter[tuple[torch.Size, torch.Size]] = Counter()
        self._graphs: dict[tuple[torch.Size, torch.Size], _Graph] = {}
        self._pool: Any = None
        self._open: weakref.ref[_Token] | None = None
        self._failed = False
        self._anchor = torch.zeros((), device=fabric.device, requires_grad=True)

    @property
    def shapes(self) -> int:
        """See the class."""
        return len(self._graphs)

    def __call__(
        self, frames: Tensor | None, audio: Tensor | None, **masks: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """See :meth:`avfewshot.models.audio_visual.AudioVisualModel.forward`."""
        graph = None
        if frames is not None and audio is not None and all(mask is None for mask in masks.values()):
            shapes = frames.shape, audio.shape
            self._counts[shapes] += 1
            graph = self._graphs.get(shapes)
        # Activations of a pass whose backward pass is still to come lie where the next one would put its own.
        busy = self._open is not None and self._open() is not None
        if graph is None or busy or frames is None or audio is None:
            return super().__call__(frames, audio, **masks)
        graph.start(frames, audio)
        if not torch.is_grad_enabled():
            visual, sound = (output.clone() for output in graph.outputs)
            return visual, sound
        token = _Token()
        self._open = weakref.ref(token)
        return _Replayed.apply(graph, token, self._anchor)

    def prepare(self) -> None:
        """Record the shapes that have come often enough."""
        for shapes, count in self._counts.most_common():
            if self._failed or count < _EAGER or len(self._graphs) >= _SHAPES:
                return
            if shapes not in self._graphs:
                self._record(*shapes)

    def release(self) -> None:
        """Let go of all that was recorded; it is recorded anew when it is needed again."""
        self._graphs.clear()
        self._counts.clear()
        self._pool = self._open = None

    def _record(self, frames: torch.Size, audio: torch.Size) -> None:
        free_memory(self._fabric.device)  # what is recorded has memory of its own
        if self._pool is None:
            self._pool = torch.cuda.graph_pool_handle()
        parameters = [parameter for parameter in self._model.parameters() if parameter.requires_grad]
        try:
            graph = _Graph(self._fabric, self._model, parameters, frames, audio, self._pool)
        except RuntimeError as error:
            self.release()
            self._failed = True
            reason = "memory does not suffice" if is_out_of_memory(error) else str(error).splitlines()[0]
            _LOG.warning("CUDA graphs are not used, steps take longer: %s.", reason.rstrip("."))
        else:
            self._graphs[frames, audio] = graph


@contextlib.contextmanager
def fresh_casts() -> Iterator[None]:
    """Cast weights where they are used, inside this context, instead of once under autocast.

    Gradients of several uses of a weight are then added in the weight's format and not in the short one; and a cast
    that was kept from outside would not be made again when a recorded pass is replayed.
    """
    kept = torch.is_autocast_cache_enabled()
    torch.set_autocast_cache_enabled(False)
    try:
        yield
    finally:
        torch.set_autocast_cache_enabled(kept)


def make_runner(fabric: Fabric, module: Any, model: AudioVisualModel, graphs: bool) -> EagerRunner:
    """How a training runs its model: by CUDA graphs where they are asked for.

    Only a single CUDA device without other ranks can record them.
    """
    if graphs and fabric.device.type == "cuda" and fabric.world_size == 1:
        return CUDAGraphRunner(fabric, module, model)
    return EagerRunner(module)


class _Token:
    """Lives from a forward pass to its backward pass, or to the end of its autograd graph."""


class _Graph:
    """One shape: a graph for the forward pass, one for the backward pass, and the memory that they work on."""

    def __init__(
        self,
        fabric: Fabric,
        model: AudioVisualModel,
        parameters: Sequence[Tensor],
        frames: torch.Size,
        audio: torch.Size,
        pool: Any,
    ) -> None:
        self._frames = torch.zeros(frames, dtype=torch.uint8, device=fabric.device)
        self._audio = torch.zeros(audio, device=fabric.device)

        def forward() -> list[Tensor]:
            with fresh_casts(), fabric.autocast():
                return list(model(self._frames, self._audio))

        def backward(outputs: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
            return torch.autograd.grad(outputs, parameters, self._given, allow_unused=True)

        with torch.enable_grad():
            aside = torch.cuda.Stream(fabric.device)
            aside.wait_stream(torch.cuda.current_stream(fabric.device))
            with torch.cuda.stream(aside):
                outputs = forward()
                self._given = [torch.zeros_like(output) for output in outputs]
                found = backward(outputs)
                self._used = [one for one, gradient in zip(parameters, found, strict=True) if gradient is not None]
                del outputs, found
            torch.cuda.current_stream(fabric.device).wait_stream(aside)
            torch.cuda.empty_cache()
            self._forward, self._backward = torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
            # Other threads, which decode clips, may do as they please meanwhile.
            with torch.cuda.graph(self._forward, pool=pool, capture_error_mode="thread_local"):
                outputs = forward()
            with torch.cuda.graph(self._backward, pool=pool, capture_error_mode="thread_local"):
                gradients = backward(outputs)
                self._flat = torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
            self.outputs = [output.detach() for output in outputs]

    def start(self, frames: Tensor, audio: Tensor) -> None:
        """Run the forward pass."""
        self._frames.copy_(frames)
        self._audio.copy_(audio)
        self._forward.replay()

    def finish(self, gradients: Sequence[Tensor | None]) -> None:
        """Run the backward pass of the last forward pass, and add to the parameters' gradients."""
        for static, gradient in zip(self._given, gradients, strict=True):
            static.zero_() if gradient is None else static.copy_(gradient)
        self._backward.replay()
        add_gradients(self._used, self._flat)


def add_gradients(parameters: Sequence[Tensor], flat: Tensor) -> None:
    """Add gradients that lie one after another, ``[n]``, in few kernels; parameters without one get a copy."""
    parts = flat.clone().split([parameter.numel() for parameter in parameters])
    pairs = [(parameter, part.view_as(parameter)) for parameter, part in zip(parameters, parts, strict=True)]
    given = [(parameter.grad, part) for parameter, part in pairs if parameter.grad is not None]
    if given:
        sums, parts = zip(*given, strict=True)
        torch._foreach_add_(sums, parts)  # pyright: ignore[reportPrivateImportUsage]
    for parameter, part in pairs:
        parameter.grad = part if parameter.grad is None else parameter.grad


class _Replayed(torch.autograd.Function):
    """A forward pass that was replayed, as a step of autograd; the gradients of parameters are put there directly."""

    @staticmethod
    def forward(ctx: Any, graph: _Graph, token: _Token, anchor: Tensor) -> tuple[Tensor, ...]:
        ctx.graph, ctx.token = graph, token
        return tuple(output.clone() for output in graph.outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[None, None, None]:
        if ctx.token is None:
            raise RuntimeError("The backward pass was run before, and its activations are gone.")
        ctx.token = None
        ctx.graph.finish(gradients)
        return None, None, None
