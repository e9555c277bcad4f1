"""What happens in a toy clip: events with their onsets and offsets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from avfewshot.toyworld.vocabulary import Composition

Span = tuple[float, float]  # seconds from the beginning of the clip, `[on, off)`


@dataclass(frozen=True)
class Event:
    """An object that is seen, heard, or both."""

    composition: Composition  # what is seen and heard
    look: Span | None  # when it is seen; None: never
    sound: Span | None  # when it is heard; None: never


@dataclass(frozen=True)
class PlacedEvent(Event):
    """An object that stands beside others."""

    place: float  # share of the room from left to right


@dataclass(frozen=True)
class ClipScript:
    """All that a clip is rendered from; equal scripts give equal clips."""

    seconds: float  # length
    events: tuple[Event, ...]  # what happens
    seed: int  # source of everything that the events leave open: colours, places, motion, noise, distractors
    recording: str = "studio"  # equipment that it was recorded with, of :mod:`recordings`


def draw_seed(rng: np.random.Generator) -> int:
    """A seed for a script."""
    return int(rng.integers(1 << 62))


def _span(rng: np.random.Generator, seconds: int, shortest: int) -> Span:
    length = int(rng.integers(min(shortest, seconds), seconds + 1))
    start = int(rng.integers(0, seconds - length + 1))
    return float(start), float(start + length)


def ave_script(composition: Composition, rng: np.random.Generator, seconds: int = 10) -> ClipScript:
    """A clip with one audio-visual event, as in AVE: two seconds to the whole clip, at whole seconds.

    Now and then the object stays in the picture while it is silent, or sounds while out of sight: such seconds are
    background, since an audio-visual event is seen and heard.
    """
    span = _span(rng, seconds, 2)
    look, sound = span, span
    extra = rng.random()
    if extra < 0.15:
        look = (0.0, float(seconds))
    elif extra < 0.25:
        sound = (0.0, float(seconds))
    return ClipScript(seconds, (Event(composition, look, sound),), draw_seed(rng))


def llp_script(compositions: Sequence[Composition], rng: np.random.Generator, seconds: int = 10) -> ClipScript:
    """A clip with several events, as in LLP: each is seen, heard, or both, at times of its own."""
    events = []
    for composition in compositions:
        kind = rng.random()
        look = None if kind < 0.2 else _span(rng, seconds, 3)
        sound = None if 0.2 <= kind < 0.4 else (look if look and rng.random() < 0.5 else _span(rng, seconds, 3))
        events.append(Event(composition, look, sound))
    return ClipScript(seconds, tuple(events), draw_seed(rng))


def vggsound_script(composition: Composition, rng: np.random.Generator, seconds: int = 10) -> ClipScript:
    """A clip of one class, as in VGG-Sound: the event is both seen and heard in most of the clip."""
    span = _span(rng, seconds, 4)
    return ClipScript(seconds, (Event(composition, span, span),), draw_seed(rng))
