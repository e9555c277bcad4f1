"""Single frames and sounds with their labels, for training and judging the tiny backbone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from avfewshot.toyworld.render import Actor, Stage, distractor, level, main_scales
from avfewshot.toyworld.sounds import SAMPLE_RATE, background_noise, synthesise
from avfewshot.toyworld.vocabulary import COLOURS, OBJECTS, PITCHES, SOUNDS

_CANVAS = 128
_COVERED = 0.25


@dataclass(frozen=True)
class FrameSample:
    """A frame as the image tower sees it.

    Attributes:
        picture: uint8 ``[side, side, 3]``.
        object: Index into OBJECTS of the foremost object, -1 for a frame without an event.
        colour: Index into COLOURS of the foremost object, -1 for a frame without an event.
        second_object: Index into OBJECTS of another large object, -1 for none.
        patches: int8 ``[grid, grid]``: what each patch shows, -1 for nothing.
    """

    picture: np.ndarray
    object: int
    colour: int
    second_object: int
    patches: np.ndarray


def sample_frame(
    rng: np.random.Generator, *, side: int = 64, grid: int = 8, empty: float = 0.06, crowded: float = 0.1
) -> FrameSample:
    """Draw a random frame, rendered and reduced as frames of a video are.

    Args:
        rng: Source of everything.
        side: Pixels of the picture.
        grid: Patches along a side, for the map of what is where.
        empty: Share of frames without an event.
        crowded: Share of frames with a second object as large as the first.

    Returns:
        The sample.
    """
    actors = distractor(rng, 0.3)
    large: list[Actor] = []
    if rng.random() >= empty:
        kinds = rng.choice(len(OBJECTS), 2 if rng.random() < crowded else 1, replace=False)
        smallest, largest = main_scales(len(kinds))
        large = [Actor.cast(OBJECTS[kind], rng, smallest=smallest, largest=largest) for kind in kinds]
        actors += large
    stage = Stage(actors, _CANVAS, _CANVAS, rng)
    second = rng.uniform(0, 10)
    picture = Image.fromarray(stage.frame(second, [True] * len(actors), rng))
    patches = np.full((grid, grid), -1, np.int8)
    for index, actor in enumerate(actors):
        shape, corner = stage.placed(index, second)
        mask = Image.new("L", (_CANVAS, _CANVAS))
        mask.paste(shape.getchannel("A"), corner)
        covered = np.asarray(mask.resize((grid, grid), Image.Resampling.BOX)) > 255 * _COVERED
        patches[covered] = OBJECTS.index(actor.name)
    return FrameSample(
        picture=np.asarray(picture.resize((side, side), Image.Resampling.BICUBIC)),
        object=OBJECTS.index(large[-1].name) if large else -1,
        colour=list(COLOURS).index(large[-1].colour) if large else -1,
        second_object=OBJECTS.index(large[0].name) if len(large) > 1 else -1,
        patches=patches,
    )


@dataclass(frozen=True)
class SoundSample:
    """A sound as the audio tower hears it."""

    waveform: np.ndarray  # float32 [seconds * 48000]
    sound: int  # index into SOUNDS, -1 without an event
    pitch: int  # index into PITCHES


def sample_sound(
    rng: np.random.Generator, *, seconds: int = 1, empty: float = 0.06, crowded: float = 0.1, short: float = 0.4
) -> SoundSample:
    """Synthesise a random second, or a clip of several in which something happens for a while, as in those of AudioSet.

    Args:
        rng: Source of everything.
        seconds: Length of the waveform.
        empty: Share without an event.
        crowded: Share with a second sound about as loud as the first; the label is the louder one.
        short: Of several seconds: share of shorter clips, repeated as often as they fit and then padded with zeros.
    """
    length = int(rng.integers(1, seconds)) if seconds > 1 and rng.random() < short else seconds
    count = length * SAMPLE_RATE
    signal = background_noise(count, rng)
    sound, pitch = -1, 1
    if rng.random() >= empty:
        sound, pitch = int(rng.integers(len(SOUNDS))), int(rng.integers(len(PITCHES)))
        signal *= 10 ** (-rng.uniform(-4, 18) / 20)
        part = _stretch(rng, count)
        signal[part] += synthesise(SOUNDS[sound], part.stop - part.start, list(PITCHES.values())[pitch], rng)
        quieter = (
            rng.uniform(2, 8) if rng.random() < crowded else (rng.uniform(10, 18) if rng.random() < 0.25 else None)
        )
        if quieter is not None:
            part = _stretch(rng, count)
            name = SOUNDS[rng.integers(len(SOUNDS))]
            signal[part] += synthesise(name, part.stop - part.start, rng.uniform(0.6, 1.6), rng) * 10 ** (-quieter / 20)
    waveform = np.tile(level(signal, rng, quietest=-50.0), seconds // length)
    return SoundSample(np.pad(waveform, (0, seconds * SAMPLE_RATE - len(waveform))), sound, pitch)


def _stretch(rng: np.random.Generator, count: int) -> slice:
    """Where something happens: all of one second, at least one second of more."""
    if count <= SAMPLE_RATE:
        return slice(0, count)
    length = int(rng.integers(SAMPLE_RATE, count + 1))
    start = int(rng.integers(count - length + 1))
    return slice(start, start + length)
