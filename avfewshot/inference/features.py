"""From a stream of decoded clips to a stream of embeddings, several clips at a time."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.errors import AvfsError, UsageError
from avfewshot.inference.batches import Batch, SegmentQueue, WindowQueue
from avfewshot.inference.devices import free_memory, is_out_of_memory
from avfewshot.media.clip import MODALITIES, Clip, Failure

_LOG = logging.getLogger(__name__)
# A small model is kept busy by larger batches only; a large one gains nothing by them on a CPU.
_SMALL_MODEL, _SMALL_FACTOR = 50_000_000, 4
_AUTO_BATCH = {"cpu": 20, "cuda": 128, "mps": 40}
# What a pass gives, and the modality that it comes from.
_SOURCES = {"visual": "visual", "audio": "audio", "audio_windows": "audio"}


@dataclass(frozen=True)
class EmbeddedFile:
    """The embeddings of a whole file."""

    path: str  # the file as it was named
    duration: float  # seconds
    visual: Tensor | None  # unit vectors [T, D_v], float32 on the CPU, one a second; None without video
    audio: Tensor | None  # unit vectors [T, D_a], or None without sound
    warnings: tuple[str, ...]  # what was odd about the file
    audio_windows: Tensor | None = None  # [T, D_a], of each second's window as a whole; None: seconds were heard alone
    ok: ClassVar[bool] = True

    @property
    def by_clip(self) -> EmbeddedFile:
        """The file as clips are judged: a second sounds like its window, where the tower heard windows."""
        return self if self.audio_windows is None else replace(self, audio=self.audio_windows)


class Embedder:
    """Runs seconds of several files through a model at once, and gives the files back in order.

    Without adapters segments are independent of each other, and batches are cut without regard to files: those of many
    short files share one, and an hour-long file, which comes in chunks, takes many. With adapters, which connect sight
    and sound and look at several seconds, files are cut into windows, and windows of one length share batches; a clip
    that lacks a modality is masked. What a file gives does not depend on the files beside it, but for rounding. Memory
    is bounded by a few batches and one chunk, plus the embeddings of the files under way.

    At once `batch_size` segments (seconds) go through the model, or what suits the device; it is halved when the device
    runs out of memory, down to one segment or window. Windows of `window` seconds are counted from a file's beginning;
    the last one may be shorter. With an `audio_context` of ``"clip"`` the audio tower of a model without adapters hears
    windows of its native length in one pass, see :meth:`~avfewshot.encoders.clap_tower.ClapTower.forward_windows`; with
    ``"second"`` each second alone.

    Raises:
        UsageError: The audio tower cannot hear windows, and `audio_context` is ``"clip"``.
        ValueError: `window` is less than 1.
    """

    def __init__(
        self,
        model: Any,  # an AudioVisualModel, or what is called alike
        device: torch.device,
        batch_size: int | None = None,
        *,
        window: int = 10,
        audio_context: str = "second",
    ) -> None:
        if window < 1:
            raise ValueError(f"A window has at least one second, not {window}.")
        self.model = model
        self.device = device
        self.batch_size = batch_size or _suitable(model, device)
        self.window = window
        self.audio_context = audio_context
        if audio_context == "clip":
            if not hasattr(model.audio_tower, "forward_windows"):
                raise UsageError(
                    "--audio-context clip needs an HTS-AT as audio tower, which this backbone does not have.",
                    hint="Use --audio-context second.",
                )
            self.window = model.audio_tower.window_seconds

    def embed(self, items: Iterable[Clip | Failure]) -> Generator[EmbeddedFile | Failure, None, None]:
        """Embed files from their chunks in order, as :func:`avfewshot.media.stream.iter_clips` gives them.

        There is one entry a file, in order, as soon as its last segment is embedded.
        """
        files: deque[_File] = deque()
        whole = self.model.adapters is not None or self.audio_context == "clip"
        queue = WindowQueue(self.window) if whole else SegmentQueue()
        for item in items:
            if not (files and files[-1].open):
                files.append(_File(str(item.path)))
            files[-1].add(item, queue)
            while batches := queue.take(self.batch_size):
                self._run(batches)
            while files and files[0].done:
                yield files.popleft().result()
        while batches := queue.take(self.batch_size, rest=True):
            self._run(batches)
        while files:
            yield files.popleft().result()

    def _run(self, batches: list[Batch]) -> None:
        for batch in batches:
            lengths = [piece.seconds for piece in batch.pieces]
            for name, embeddings in self._forward(batch).items():
                for piece, part in zip(batch.pieces, embeddings.flatten(0, 1).split(lengths), strict=True):
                    if _SOURCES[name] in piece.inputs:
                        piece.owner.receive(name, piece.start, part)

    def _forward(self, batch: Batch) -> dict[str, Tensor]:
        """Unit vectors ``[N, T, D]`` by modality, on the CPU; in smaller batches where memory does not suffice."""
        done: list[dict[str, Tensor]] = []
        start = 0
        while start < batch.rows:
            stop = min(batch.rows, start + max(1, self.batch_size // batch.segments))
            embeddings = self._attempt(batch.arguments(start, stop))
            if embeddings is None:
                self._shrink(stop - start, batch.segments)
                continue
            done.append(embeddings)
            start = stop
        return {name: torch.cat([part[name] for part in done]) for name in done[0]}

    def _attempt(self, arguments: dict[str, Tensor | None]) -> dict[str, Tensor] | None:
        # The error, whose traceback holds the activations, is gone when this returns: their memory is free again.
        try:
            with torch.inference_mode():
                there = {
                    name: None if values is None else values.to(self.device, non_blocking=True)
                    for name, values in arguments.items()
                }
                embeddings = zip(_SOURCES, self._embeddings(**there), strict=False)
                return {name: values.float().cpu() for name, values in embeddings if values is not None}
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _embeddings(
        self, frames: Tensor | None, audio: Tensor | None, **present: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """What :data:`_SOURCES` names."""
        if self.audio_context == "second" or audio is None:
            return self.model(frames=frames, audio=audio, **present)
        visual = None if frames is None else self.model(frames=frames, audio=None)[0]
        whole, seconds = self.model.audio_tower.forward_windows(audio.flatten(1))
        unit, windows = (F.normalize(values.float(), dim=-1) for values in (seconds, whole))
        return visual, unit, windows[:, None].expand_as(unit)

    def _shrink(self, tried: int, segments: int) -> None:
        """Halve the batch that was too large: so many clips of so many segments."""
        if tried == 1:
            what = "a single second" if segments == 1 else f"a single window of {segments} seconds"
            raise AvfsError(
                f"{self.device} has not enough memory for {what}.",
                hint="Use --device cpu, --precision fp16, or a smaller backbone.",
            )
        self.batch_size = tried // 2 * segments
        free_memory(self.device)
        _LOG.warning(
            "%s ran out of memory with %d seconds at once; going on with %d.",
            self.device,
            tried * segments,
            self.batch_size,
        )


@dataclass(eq=False)
class _File:
    """A file under way."""

    path: str
    duration: float = 0.0
    warnings: list[str] = field(default_factory=list)
    parts: dict[str, list[tuple[int, Tensor]]] = field(default_factory=dict)
    seconds: int = 0
    missing: int = 0
    open: bool = True
    error: str | None = None

    @property
    def done(self) -> bool:
        return not self.open and (self.error is not None or not self.missing)

    def add(self, item: Clip | Failure, queue: SegmentQueue | WindowQueue) -> None:
        if isinstance(item, Failure):
            # What came before the fault may still be embedded; it is thrown away.
            self.open, self.error = False, item.error
            queue.give_up()
            return
        self.duration = item.duration
        self.warnings += [warning for warning in item.warnings if warning not in self.warnings]
        lengths = [len(inputs) for inputs in (item.frames, item.audio_segments) if inputs is not None]
        self.missing += sum(lengths)
        queue.put(self, item, self.seconds)
        self.seconds += max(lengths)
        self.open = not item.last

    def receive(self, modality: str, start: int, embeddings: Tensor) -> None:
        self.parts.setdefault(modality, []).append((start, embeddings))
        self.missing -= len(embeddings) if modality in MODALITIES else 0

    def result(self) -> EmbeddedFile | Failure:
        if self.error is not None:
            return Failure(self.path, self.error)
        joined: dict[str, Tensor | None] = {}
        for name in _SOURCES:
            # Windows of different lengths may have come back in another order. Joined outside of inference mode these
            # are ordinary tensors, which may take part in training.
            parts = [part for _, part in sorted(self.parts.get(name, ()), key=lambda entry: entry[0])]
            whole = joined[name] = torch.cat(parts) if parts else None
            if whole is not None and not torch.isfinite(whole).all():
                return Failure(self.path, f"its {name} embeddings hold numbers that are not finite")
        if joined["visual"] is None and joined["audio"] is None:
            return Failure(self.path, "there is nothing in it to see or hear")
        return EmbeddedFile(path=self.path, duration=self.duration, warnings=tuple(self.warnings), **joined)


def _suitable(model: Any, device: torch.device) -> int:
    size = _AUTO_BATCH.get(device.type, 16)
    return size * _SMALL_FACTOR if sum(p.numel() for p in model.parameters()) < _SMALL_MODEL else size
