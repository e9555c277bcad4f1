"""What a prepared clip is: the JSON member of its WebDataset sample."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from avfewshot.data.dataset import Sample
from avfewshot.media.clip import Clip

VERSION = 1
_MODALITIES = ("av", "audio", "visual")


class RecordError(ValueError):
    """JSON that does not describe a clip."""


@dataclass(frozen=True)
class EventRecord:
    """An event of a clip.

    Attributes:
        label: Name of its class.
        onset: Start in seconds.
        offset: End in seconds.
        modality: ``av``, ``audio`` or ``visual``.
    """

    label: str
    onset: float
    offset: float
    modality: str


@dataclass(frozen=True)
class ClipRecord:
    """One clip of a shard. Classes go by name, so that a shard can be read without its index.

    Attributes:
        id: The clip's name in its annotation file.
        labels: Names of its classes.
        split: ``train``, ``val`` or ``test``.
        row: Position in its annotation file.
        duration: Length of the whole media file in seconds.
        seconds: T, the seconds stored.
        whole: Whether these are all seconds of the file.
        frame_side: Side of the square pictures in pixels, None without pictures.
        has_sound: Whether there is sound.
        segments: Name of the class per second, None where nothing happens; None as a whole where the data set has no
            such labels.
        events: Its events, where the data set has them.
        youtube_id: The video's id on YouTube, if known.
        start: Where the clip begins in that video, in seconds, if known.
        end: Where it ends.
        warnings: What the reader found odd about the media file.
    """

    id: str
    labels: tuple[str, ...]
    split: str
    row: int
    duration: float
    seconds: int
    whole: bool
    frame_side: int | None
    has_sound: bool
    segments: tuple[str | None, ...] | None = None
    events: tuple[EventRecord, ...] = ()
    youtube_id: str | None = None
    start: float | None = None
    end: float | None = None
    warnings: tuple[str, ...] = ()

    @classmethod
    def of(cls, sample: Sample, classes: Sequence[str], clip: Clip) -> ClipRecord:
        """The record of a sample and what was decoded of it.

        Args:
            sample: The sample.
            classes: Class names of its data set.
            clip: Its first seconds.
        """
        names = [*classes, None]  # the label after the last class is "nothing happens"
        return cls(
            id=sample.id,
            labels=tuple(classes[label] for label in sample.labels),
            split=sample.split,
            row=sample.row,
            duration=clip.duration,
            seconds=clip.num_segments,
            whole=clip.last,
            frame_side=None if clip.frames is None else clip.frames.shape[-1],
            has_sound=clip.waveform is not None,
            segments=None if sample.segments is None else tuple(names[label] for label in sample.segments),
            events=tuple(EventRecord(classes[e.label], e.onset, e.offset, e.modality) for e in sample.events),
            youtube_id=sample.youtube_id,
            start=sample.start,
            end=sample.end,
            warnings=clip.warnings,
        )

    def to_json(self) -> bytes:
        """The JSON member."""
        # In ASCII, which can hold ids made from file names that are not valid UTF-8.
        return json.dumps({"version": VERSION, **asdict(self)}, separators=(",", ":")).encode("ascii")

    @classmethod
    def parse(cls, content: bytes) -> ClipRecord:
        """Read the JSON member.

        Raises:
            RecordError: It is not JSON, of another version, or has fields that are missing or of the wrong kind.
        """
        try:
            raw = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise RecordError("not JSON") from error
        if not isinstance(raw, dict) or raw.get("version") != VERSION:
            raise RecordError(f"not of version {VERSION}")
        return cls(
            id=_checked(raw, "id", str),
            labels=_texts(raw, "labels"),
            split=_checked(raw, "split", str),
            row=_whole(raw, "row"),
            duration=_number(raw, "duration"),
            seconds=_whole(raw, "seconds", least=1),
            whole=_checked(raw, "whole", bool),
            frame_side=None if raw.get("frame_side") is None else _whole(raw, "frame_side", least=1),
            has_sound=_checked(raw, "has_sound", bool),
            segments=_segments(raw),
            events=tuple(_event(item) for item in _checked(raw, "events", list)),
            youtube_id=None if raw.get("youtube_id") is None else _checked(raw, "youtube_id", str),
            start=None if raw.get("start") is None else _number(raw, "start"),
            end=None if raw.get("end") is None else _number(raw, "end"),
            warnings=_texts(raw, "warnings"),
        )


def _checked(raw: dict[str, Any], name: str, kind: type) -> Any:
    value = raw.get(name)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise RecordError(f"{name} is missing or of the wrong kind")
    return value


def _whole(raw: dict[str, Any], name: str, least: int = 0) -> int:
    value = _checked(raw, name, int)
    if value < least:
        raise RecordError(f"{name} is {value}")
    return value


def _number(raw: dict[str, Any], name: str) -> float:
    value = raw.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RecordError(f"{name} is missing or not a number")
    return float(value)


def _texts(raw: dict[str, Any], name: str) -> tuple[str, ...]:
    values = _checked(raw, name, list)
    if not all(isinstance(value, str) for value in values):
        raise RecordError(f"{name} is not a list of texts")
    return tuple(values)


def _segments(raw: dict[str, Any]) -> tuple[str | None, ...] | None:
    if raw.get("segments") is None:
        return None
    values = _checked(raw, "segments", list)
    if not all(value is None or isinstance(value, str) for value in values):
        raise RecordError("segments is not a list of texts")
    return tuple(values)


def _event(raw: Any) -> EventRecord:
    if not isinstance(raw, dict) or raw.get("modality") not in _MODALITIES:
        raise RecordError("an event is of the wrong kind")
    return EventRecord(_checked(raw, "label", str), _number(raw, "onset"), _number(raw, "offset"), raw["modality"])
