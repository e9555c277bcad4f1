"""Seconds of several files gathered into batches: cut anywhere, or into windows that stay whole."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from avfewshot.media.clip import MODALITIES, Clip

_PATIENCE = 4
"""After how many batches' worth of seconds a window that found no company goes through the model without."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Consecutive seconds of a file."""

    owner: Any  # whose they are
    start: int  # the first one's place in the file, in seconds
    inputs: dict[str, Tensor]  # by modality: frames uint8 [T, 3, S, S], sound float32 [T, samples]; only what there is

    @property
    def seconds(self) -> int:
        """T."""
        return len(next(iter(self.inputs.values())))

    def part(self, start: int, stop: int) -> Piece:
        """The seconds ``[start, stop)`` of it."""
        return Piece(self.owner, self.start + start, {name: values[start:stop] for name, values in self.inputs.items()})


@dataclass(frozen=True, eq=False)
class Batch:
    """N clips of T segments that go through a model at once."""

    inputs: dict[str, Tensor]  # by modality, [N, T, ...]; only those that any of the clips has
    present: dict[str, Tensor]  # by modality, bool [N]: which clips have it, where some of them lack it
    pieces: Sequence[Piece]  # where the results belong: the N x T segments in order

    @property
    def rows(self) -> int:
        """N."""
        return len(next(iter(self.inputs.values())))

    @property
    def segments(self) -> int:
        """T."""
        return next(iter(self.inputs.values())).shape[1]

    def arguments(self, start: int, stop: int) -> dict[str, Tensor | None]:
        """The clips ``[start, stop)`` as arguments of :class:`~avfewshot.models.audio_visual.AudioVisualModel`."""
        given = {argument: self.inputs.get(name) for argument, name in (("frames", "visual"), ("audio", "audio"))}
        given |= {f"{name}_present": mask for name, mask in self.present.items()}
        return {name: None if values is None else values[start:stop] for name, values in given.items()}


class SegmentQueue:
    """Cuts batches anywhere, each of one modality, as clips of one segment: for models without adapters."""

    def __init__(self) -> None:
        self._lines: dict[str, deque[Piece]] = {name: deque() for name in MODALITIES}

    def put(self, owner: Any, clip: Clip, start: int) -> None:
        """Add a chunk of a file, by `start` seconds into it; chunks of a file come in order, one file after another."""
        for name, values in _inputs(clip).items():
            self._lines[name].append(Piece(owner, start, {name: values}))

    def give_up(self) -> None:
        """The file whose chunks came last is not going on: what came before is embedded and thrown away."""

    def take(self, size: int, *, rest: bool = False) -> list[Batch]:
        """Batches of about `size` segments that should go through the model now; none when more should come first.

        They are of both modalities, so that a rare one does not keep finished files waiting. `rest` says that nothing
        more comes, so that there is nothing to wait for.
        """
        longest = max(sum(piece.seconds for piece in line) for line in self._lines.values())
        if longest < size and not (rest and longest):
            return []
        batches = []
        for name, line in self._lines.items():
            pieces, room = [], size
            while line and room:
                piece = line.popleft()
                if piece.seconds > room:
                    line.appendleft(piece.part(room, piece.seconds))
                    piece = piece.part(0, room)
                pieces.append(piece)
                room -= piece.seconds
            if pieces:
                joined = torch.cat([piece.inputs[name] for piece in pieces])
                batches.append(Batch({name: joined.unsqueeze(1)}, {}, pieces))
        return batches


class WindowQueue:
    """Cuts files into windows of `seconds`, counted from their beginning; those of one length share batches.

    Windows never wait longer than it takes some batches' worth of seconds to arrive after them, which bounds the
    memory, and the number of files that a window of a rare length holds up.
    """

    def __init__(self, seconds: int) -> None:
        self._seconds = seconds
        self._unfinished: list[Piece] = []
        self._lines: dict[int, deque[tuple[int, Piece]]] = {}
        self._arrived = 0

    def put(self, owner: Any, clip: Clip, start: int) -> None:
        """See :meth:`SegmentQueue.put`."""
        chunk = Piece(owner, start, _inputs(clip))
        self._arrived += chunk.seconds
        done = 0
        while done < chunk.seconds:
            room = self._seconds - sum(piece.seconds for piece in self._unfinished)
            piece = chunk.part(done, min(done + room, chunk.seconds))
            self._unfinished.append(piece)
            done += piece.seconds
            if piece.seconds == room:
                self._finish()
        if clip.last:
            self._finish()

    def give_up(self) -> None:
        """See :meth:`SegmentQueue.give_up`."""
        self._unfinished = []

    def take(self, size: int, *, rest: bool = False) -> list[Batch]:
        """See :meth:`SegmentQueue.take`: windows of one length, ``size // T`` of them or one."""
        if rest:
            self._finish()
        length = self._choose(size, rest)
        if length is None:
            return []
        line = self._lines[length]
        pieces = [line.popleft()[1] for _ in range(min(len(line), _rows(size, length)))]
        if not line:
            del self._lines[length]
        return [_assemble(pieces)]

    def _choose(self, size: int, rest: bool) -> int | None:
        """Length of the windows that should go through the model now."""
        for length, line in self._lines.items():
            if len(line) >= _rows(size, length):
                return length
        if not self._lines:
            return None
        oldest = min(self._lines, key=lambda length: self._lines[length][0][0])
        waited = self._arrived - self._lines[oldest][0][0]
        return oldest if rest or waited > _PATIENCE * size else None

    def _finish(self) -> None:
        """Let the window that was being collected wait for its batch."""
        pieces, self._unfinished = self._unfinished, []
        if pieces:
            first = pieces[0]
            joined = {name: torch.cat([piece.inputs[name] for piece in pieces]) for name in first.inputs}
            window = Piece(first.owner, first.start, joined)
            self._lines.setdefault(window.seconds, deque()).append((self._arrived, window))


def _assemble(windows: list[Piece]) -> Batch:
    """Stack windows of one length; zeros stand for what a window lacks and others have, and a mask tells."""
    inputs, present = {}, {}
    for name in MODALITIES:
        given = [window.inputs.get(name) for window in windows]
        example = next((values for values in given if values is not None), None)
        if example is not None:
            inputs[name] = torch.stack([torch.zeros_like(example) if values is None else values for values in given])
            if any(values is None for values in given):
                present[name] = torch.tensor([values is not None for values in given])
    return Batch(inputs, present, windows)


def _inputs(clip: Clip) -> dict[str, Tensor]:
    given: Iterator[tuple[str, Tensor | None]] = zip(MODALITIES, (clip.frames, clip.audio_segments), strict=True)
    return {name: values for name, values in given if values is not None}


def _rows(size: int, length: int) -> int:
    return max(1, size // length)
