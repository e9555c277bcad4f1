"""What happens when: a file a clip for players (SubRip, WebVTT) and ELAN, all clips for Label Studio and FiftyOne."""

from __future__ import annotations

import datetime
import html
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from avfewshot.errors import AvfsError
from avfewshot.inference.results import ClipResult, RunInfo, SegmentResult
from avfewshot.io import MOST_NAME, short, write_text
from avfewshot.media.discover import AUDIO_SUFFIXES
from avfewshot.reports.strip import Run, marks, runs
from avfewshot.reports.writers import Summary, Writer, dumps
from avfewshot.text import printable
from avfewshot.version import __version__


def srt(path: str, spans: Sequence[Run]) -> str:
    """SubRip: numbered subtitles, times with a comma."""
    blocks = [
        f"{number}\n{_stamp(span.start, ',')} --> {_stamp(span.end, ',')}\n{_cue(span.label)}\n"
        for number, span in enumerate(spans, start=1)
    ]
    return "\n".join(blocks)


def vtt(path: str, spans: Sequence[Run]) -> str:
    """WebVTT."""
    times = ((f"{_stamp(span.start)} --> {_stamp(span.end)}", span.label) for span in spans)
    cues = (f"{time}\n{html.escape(_cue(label), quote=False)}\n" for time, label in times)
    return "\n".join([f"WEBVTT\n\nNOTE {_cue(path)}\n", *cues])


def eaf(path: str, spans: Sequence[Run]) -> str:
    """ELAN's annotation format 2.8: one tier named ``label``, linked to the media file."""
    from avfewshot.reports.html import environment

    place = Path(path)
    times = [round(1000 * time) for span in spans for time in (span.start, span.end)]
    return (
        environment()
        .get_template("eaf.xml.j2")
        .render(
            author=f"avfewshot {__version__}",
            date=datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            url=Path(printable(str(place.absolute()))).as_uri(),
            kind={".wav": "audio/x-wav", ".mp4": "video/mp4"}.get(place.suffix.lower(), "unknown"),
            name=place.name,
            times=times,
            labels=[span.label for span in spans],
        )
    )


FORMATS: dict[str, Callable[[str, Sequence[Run]], str]] = {"srt": srt, "vtt": vtt, "eaf": eaf}


class TimelineWriter(Writer):
    """A timeline a clip: neighbouring seconds with one label are one span.

    `stream` takes the one clip of a run; without it `folder` gets a file a clip, named as the clip; two of one name
    keep their suffix, or get a number.
    """

    def __init__(self, form: str, stream: TextIO | None = None, folder: Path | None = None) -> None:
        self._form, self._stream, self._folder = form, stream, folder
        self._taken: set[str] = set()

    def clip(self, result: ClipResult) -> None:
        """Write the timeline of a clip."""
        text = FORMATS[self._form](result.path, runs(result.segments))
        if self._folder is None:
            assert self._stream is not None
            self._stream.write(text)
            return
        write_text(self._folder / f"{free_stem(Path(result.path), self._taken)}.{self._form}", text)


class LabelStudioWriter(Writer):
    """Tasks of Label Studio, with what each second holds as predictions (docs/export.md has the labelling set-up)."""

    def __init__(self, stream: TextIO, run: RunInfo) -> None:
        self._stream, self._clips = stream, 0
        self._model = f"avfewshot {__version__} {run.backbone}"
        stream.write("[")

    def clip(self, result: ClipResult) -> None:
        """Write a task."""
        spans = [
            {
                "from_name": "label",
                "to_name": "audio",
                "type": "labels",
                "value": {"start": span.start, "end": span.end, "channel": 0, "labels": [span.label]},
            }
            for span in runs(result.segments)
        ]
        task = {"data": {"video": result.path}, "predictions": [{"model_version": self._model, "result": spans}]}
        self._stream.write((",\n" if self._clips else "\n") + dumps(task))
        self._clips += 1

    def end(self, summary: Summary) -> None:
        """Close the list."""
        self._stream.write("\n]\n")


class FiftyOneWriter(Writer):
    """A ``FiftyOneTemporalDetectionDataset``: where clips lie (``data.json``), and their spans (``labels.json``).

    FiftyOne takes the suffix off the keys of the first, and not off those of the second.
    """

    def __init__(self, media: TextIO, labels: TextIO, run: RunInfo) -> None:
        self._media, self._labels = media, labels
        self._taken: set[str] = set()
        media.write("{")
        labels.write(f'{{"classes": {dumps(run.labels)},\n"labels": {{')

    def clip(self, result: ClipResult) -> None:
        """Write a clip; FiftyOne takes no files of sound."""
        if Path(result.path).suffix.lower() in AUDIO_SUFFIXES:
            warnings.warn(f"{result.path}: is sound alone, which FiftyOne does not take: left out.", stacklevel=1)
            return
        spans = [
            {"label": span.label, "timestamps": [span.start, span.end], "confidence": span.score}
            for span in runs(result.segments)
        ]
        stem, suffix = os.path.splitext(os.path.normpath(result.path.replace("\\", "/")))
        key, number = stem, 2
        while key in self._taken:
            key, number = f"{stem}-{number}", number + 1
        entries = (f"{key}{suffix or '.'}", os.path.abspath(result.path)), (key, spans)
        for stream, (name, value) in zip((self._media, self._labels), entries, strict=True):
            stream.write(f"{',' if self._taken else ''}\n{dumps(name)}: {dumps(value)}")
        self._taken.add(key)

    def end(self, summary: Summary) -> None:
        """Close both objects."""
        self._media.write("\n}\n")
        self._labels.write("\n}}\n")


_MOST_STEM = MOST_NAME - 30  # bytes, so that a number, a suffix and what marks an unfinished file find room


def free_stem(source: Path, taken: set[str]) -> str:
    """A name for what belongs to a clip; two clips of one name keep their suffix, or get a number."""
    stem, number = short(source.stem, _MOST_STEM), 1
    while stem in taken:
        stem = f"{short(source.name, _MOST_STEM)}{f'-{number}' if number > 1 else ''}"
        number += 1
    taken.add(stem)
    return stem


def _stamp(time: float, point: str = ".") -> str:
    milliseconds = round(1000 * time)
    seconds = milliseconds // 1000
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{point}{milliseconds % 1000:03d}"


def _cue(text: str) -> str:
    # An arrow would begin the times of another cue.
    return printable(text).replace("-->", "->")


class OverlayWriter(Writer):
    """A video a clip, named as the clip; a clip that cannot be drawn on is told and left out.

    A :class:`AvfsError` where `folder` cannot be made.
    """

    def __init__(self, folder: Path, run: RunInfo) -> None:
        self._folder, self._labels = folder, list(run.labels)
        self._taken: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AvfsError(f"--overlay {folder}: cannot be written: {error.strerror}.") from None

    def clip(self, result: ClipResult) -> None:
        """Draw and encode a clip."""
        from avfewshot.media.decoders import IsolatedReader, time_limit
        from avfewshot.media.remote import fetch, is_remote
        from avfewshot.media.transcode import Bar

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
