"""`--overlay`: each clip again with its labels burnt in, what every second holds below, the clip's own label above."""

from __future__ import annotations

import warnings
from pathlib import Path

from av.error import FFmpegError
from PIL import Image, ImageDraw, ImageFont

from avfewshot.errors import AvfsError
from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.io import printable
from avfewshot.media.transcode import transcode
from avfewshot.reports.strip import Mark, marks
from avfewshot.reports.timelines import free_stem
from avfewshot.reports.writers import Summary


class OverlayWriter:
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

        def draw(image: Image.Image, time: float) -> Image.Image:
            segment = result.segments[min(max(int(time), 0), len(result.segments) - 1)]
            _bar(image, f"{result.label}  {100 * result.score:.0f} %", table[result.label], top=True)
            _bar(image, f"{segment.label}  {100 * segment.score:.0f} %", table[segment.label], top=False)
            return image

        try:
            transcode(Path(result.path), self._folder, stem, draw=draw)
        except (AvfsError, OSError, ValueError, FFmpegError) as error:
            warnings.warn(f"{result.path}: no overlay of it could be written: {error}", stacklevel=1)

    def end(self, summary: Summary) -> None:
        """Nothing stands after the last clip."""


def _bar(image: Image.Image, text: str, mark: Mark, *, top: bool) -> None:
    """A coloured bar over the whole width; text that is too long for it is cut."""
    height = max(12, image.height // 10)
    font = ImageFont.load_default(size=max(8, round(0.65 * height)))
    pen, above = ImageDraw.Draw(image), 0 if top else image.height - height
    text, room = printable(text), image.width - height
    while pen.textlength(text, font) > room and len(text) > 1:
        text = f"{text.removesuffix('…')[:-1]}…"
    pen.rectangle((0, above, image.width, above + height), fill=mark.paint.fill)
    pen.text((height // 2, above + height / 2), text, fill=mark.paint.ink, font=font, anchor="lm")
