"""`--overlay`: each clip again with its labels burnt in, what every second holds below, the clip's own label above."""

from __future__ import annotations

import warnings
from pathlib import Path

from avfewshot.errors import AvfsError
from avfewshot.inference.results import ClipResult, Failure, RunInfo, SegmentResult
from avfewshot.media.decoders import IsolatedReader, time_limit
from avfewshot.media.remote import fetch, is_remote
from avfewshot.media.transcode import Bar
from avfewshot.reports.strip import marks
from avfewshot.reports.timelines import free_stem
from avfewshot.reports.writers import Writer


class OverlayWriter(Writer):
    """A video a clip, named as the clip; a clip that cannot be drawn on is told and left out."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: set[str] = set()
        self._labels: list[str] = []

    def begin(self, run: RunInfo) -> None:
        """Note the labels, for their colours."""
        self._labels = list(run.labels)

    def add(self, result: ClipResult | Failure) -> None:
        """Draw and encode a clip."""
        if isinstance(result, Failure):
            return
        if result.visual is None:
            warnings.warn(f"{result.path}: has no picture to draw on: no overlay of it.", stacklevel=1)
            return
        stem = free_stem(Path(result.path), self._taken)
        table = marks(self._labels, [result.label, *(segment.label for segment in result.segments)])

        def bar(said: ClipResult | SegmentResult) -> Bar:
            paint = table[said.label].paint
            return Bar(f"{said.label}  {100 * said.score:.0f} %", paint.fill, paint.ink)

        try:
            file = fetch(result.path, timeout=time_limit()) if is_remote(result.path) else Path(result.path)
            with IsolatedReader(file) as reader:
                reader.write(self._folder, stem, above=bar(result), below=[*map(bar, result.segments)])
        except AvfsError as error:
            warnings.warn(f"{result.path}: no overlay of it could be written: {error}", stacklevel=1)
