"""From a stream of decoded clips to a stream of embeddings, several clips at a time."""

from __future__ import annotations

import gc
import logging
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from avfewshot.errors import AvfsError
from avfewshot.media.clip import Clip
from avfewshot.media.prefetch import ClipFailure
from avfewshot.model import AudioVisualModel
from avfewshot.results import Failure

_LOG = logging.getLogger(__name__)
_MODALITIES = ("visual", "audio")
_AUTO_BATCH = {"cpu": 20, "cuda": 128, "mps": 40}
# Parts of messages by which allocators other than CUDA's say that memory ran out.
_OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


@dataclass(frozen=True)
class EmbeddedFile:
    """The embeddings of a whole file.

    Attributes:
        path: The file as it was named.
        duration: Seconds.
        visual: Unit vectors ``[T, D_v]``, float32 on the CPU, one a second; None without video.
        audio: Unit vectors ``[T, D_a]``, or None without sound.
        warnings: What was odd about the file.
    """

    path: str
    duration: float
    visual: Tensor | None
    audio: Tensor | None
    warnings: tuple[str, ...]


class Embedder:
    """Runs segments of several files through the towers at once, and gives the files back in order.

    Segments are independent of each other, so batches are cut without regard to files: those of many short files share
    one, and an hour-long file, which comes in chunks, takes many. Memory is bounded by the batch and one chunk, plus
    the embeddings of the files under way.

    Args:
        model: Without adapters.
        device: Where the model is.
        batch_size: Segments (seconds) that go through a tower at once; None: what suits the device.

    Attributes:
        batch_size: The current size; it is halved when the device runs out of memory.
    """

    def __init__(self, model: AudioVisualModel, device: torch.device, batch_size: int | None = None) -> None:
        self.model = model
        self.device = device
        self.batch_size = batch_size or _AUTO_BATCH.get(device.type, 16)

    def embed(self, items: Iterable[Clip | ClipFailure]) -> Iterator[EmbeddedFile | Failure]:
        """Embed files.

        Args:
            items: Chunks of files in order, as :func:`avfewshot.media.prefetch.iter_clips` gives them.

        Yields:
            One entry a file, in order, as soon as its last segment is embedded.

        Raises:
            AvfsError: Not even one segment fits into the device's memory.
        """
        files: deque[_File] = deque()
        waiting = {name: _Waiting() for name in _MODALITIES}
        for item in items:
            if not (files and files[-1].open):
                files.append(_File(str(item.path)))
            files[-1].add(item, waiting)
            while max(queue.segments for queue in waiting.values()) >= self.batch_size:
                self._run(waiting)
            while files and files[0].done:
                yield files.popleft().result()
        while any(queue.segments for queue in waiting.values()):
            self._run(waiting)
        while files:
            yield files.popleft().result()

    def _run(self, waiting: dict[str, _Waiting]) -> None:
        """Embed a batch of either modality: both, so that a rare modality does not keep finished files waiting."""
        size = self.batch_size
        for name, queue in waiting.items():
            if queue.segments:
                pieces = queue.take(size)
                embeddings = self._forward(name, torch.cat([inputs for _, inputs in pieces]))
                parts = embeddings.split([len(inputs) for _, inputs in pieces])
                for (file, _), part in zip(pieces, parts, strict=True):
                    file.receive(name, part)

    def _forward(self, modality: str, inputs: Tensor) -> Tensor:
        """Unit vectors ``[N, D]`` of N segments, on the CPU; in smaller batches where memory does not suffice."""
        done: list[Tensor] = []
        start = 0
        while start < len(inputs):
            part = inputs[start : start + self.batch_size]
            embeddings = self._attempt(modality, part)
            if embeddings is None:
                self._shrink(len(part))
            else:
                done.append(embeddings)
                start += len(part)
        return torch.cat(done)

    def _attempt(self, modality: str, inputs: Tensor) -> Tensor | None:
        # The error, whose traceback holds the activations, is gone when this returns: their memory is free again.
        try:
            with torch.inference_mode():
                inputs = inputs.to(self.device, non_blocking=True).unsqueeze(1)
                visual, audio = self.model(inputs, None) if modality == "visual" else self.model(None, inputs)
                return (visual if modality == "visual" else audio).squeeze(1).float().cpu()
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            return None

    def _shrink(self, tried: int) -> None:
        if tried == 1:
            raise AvfsError(
                f"{self.device} has not enough memory for a single second.",
                hint="Use --device cpu, --precision fp16, or a smaller backbone.",
            )
        self.batch_size = tried // 2
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        _LOG.warning(
            "%s ran out of memory with %d seconds at once; going on with %d.", self.device, tried, self.batch_size
        )


@dataclass
class _Waiting:
    """Segments of one modality that wait for their batch, in order."""

    pieces: deque[tuple[_File, Tensor]] = field(default_factory=deque)
    segments: int = 0

    def put(self, file: _File, inputs: Tensor) -> None:
        self.pieces.append((file, inputs))
        self.segments += len(inputs)

    def take(self, count: int) -> list[tuple[_File, Tensor]]:
        """The first `count` segments, or all there are."""
        taken = []
        while self.pieces and count:
            file, inputs = self.pieces.popleft()
            if len(inputs) > count:
                self.pieces.appendleft((file, inputs[count:]))
                inputs = inputs[:count]
            taken.append((file, inputs))
            count -= len(inputs)
            self.segments -= len(inputs)
        return taken


@dataclass(eq=False)
class _File:
    """A file under way."""

    path: str
    duration: float = 0.0
    warnings: list[str] = field(default_factory=list)
    parts: dict[str, list[Tensor]] = field(default_factory=dict)
    missing: int = 0
    open: bool = True
    error: str | None = None

    @property
    def done(self) -> bool:
        return not self.open and not self.missing

    def add(self, item: Clip | ClipFailure, waiting: dict[str, _Waiting]) -> None:
        if isinstance(item, ClipFailure):
            # What came before the fault stays in the queues, is embedded and thrown away.
            self.open, self.error = False, item.error
            return
        self.duration = item.duration
        self.warnings += [warning for warning in item.warnings if warning not in self.warnings]
        for name, inputs in (("visual", item.frames), ("audio", item.audio_segments)):
            if inputs is not None:
                waiting[name].put(self, inputs)
                self.missing += len(inputs)
        self.open = not item.last

    def receive(self, modality: str, embeddings: Tensor) -> None:
        self.parts.setdefault(modality, []).append(embeddings)
        self.missing -= len(embeddings)

    def result(self) -> EmbeddedFile | Failure:
        if self.error is not None:
            return Failure(self.path, self.error)
        joined: dict[str, Tensor | None] = {}
        for name in _MODALITIES:
            # Joined outside of inference mode these are ordinary tensors, which may take part in training.
            joined[name] = torch.cat(self.parts[name]) if name in self.parts else None
            if joined[name] is not None and not torch.isfinite(joined[name]).all():
                return Failure(self.path, f"its {name} embeddings hold numbers that are not finite")
        if joined["visual"] is None and joined["audio"] is None:
            return Failure(self.path, "there is nothing in it to see or hear")
        return EmbeddedFile(self.path, self.duration, joined["visual"], joined["audio"], tuple(self.warnings))


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(part in str(error).lower() for part in _OUT_OF_MEMORY)
