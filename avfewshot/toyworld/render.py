"""From a script to pictures and sound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from avfewshot.toyworld.recordings import film, record
from avfewshot.toyworld.script import ClipScript, PlacedEvent
from avfewshot.toyworld.sounds import SAMPLE_RATE, background_noise, loudness, synthesise
from avfewshot.toyworld.sprites import Camera, draw_backdrop, draw_object
from avfewshot.toyworld.vocabulary import COLOURS, OBJECTS, PITCHES, SOUNDS

_RAMP_SECONDS = 0.04


@dataclass
class Actor:
    """An object on the stage; it stays inside the centre square of the picture."""

    name: str  # the object
    colour: str  # its paint
    scale: float  # side as a share of the centre square
    place: tuple[float, float]  # centre of its path as shares ``(x, y)`` of the room that it has
    velocity: tuple[float, float]  # shares per second; it turns round at the edges
    swing: float  # degrees by which it rocks
    tilt: float  # degrees by which it leans
    mirrored: bool  # whether it faces left
    seed: int  # shade of its paint

    @classmethod
    def cast(cls, name: str, rng: np.random.Generator, *, smallest: float, largest: float) -> Actor:
        """An actor with everything but its name left to chance."""
        return cls(
            name=name,
            colour=str(rng.choice(list(COLOURS))),
            scale=rng.uniform(smallest, largest),
            place=tuple(rng.uniform(0, 1, 2)),
            velocity=tuple(rng.normal(0, 0.06, 2)),
            swing=rng.uniform(0, 5),
            tilt=rng.uniform(-10, 10),
            mirrored=bool(rng.random() < 0.5),
            seed=int(rng.integers(1 << 62)),
        )


class Stage:
    """Backdrop, actors (the foremost last) and camera of a clip, in pixels."""

    def __init__(self, actors: Sequence[Actor], width: int, height: int, rng: np.random.Generator) -> None:
        self._actors = actors
        self._width, self._height = width, height
        self._side = min(width, height)
        self._backdrop = Image.fromarray(draw_backdrop(width, height, rng).astype(np.uint8))
        self._camera = Camera(rng)
        self._pictures = [self._picture(actor) for actor in actors]

    def _picture(self, actor: Actor) -> Image.Image:
        size = max(10, round(self._side * actor.scale))
        picture = draw_object(actor.name, actor.colour, size, np.random.default_rng(actor.seed))
        return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if actor.mirrored else picture

    def placed(self, index: int, second: float) -> tuple[Image.Image, tuple[int, int]]:
        """Picture of an actor at a moment and the pixel of its upper left corner."""
        actor, picture = self._actors[index], self._pictures[index]
        turned = picture.rotate(
            actor.tilt + actor.swing * math.sin(5 * second), Image.Resampling.BILINEAR, expand=False
        )
        room = self._side - picture.width
        margin = ((self._width - self._side) // 2, (self._height - self._side) // 2)
        # A path folded at the edges: 0..1..0..
        shares = [1 - abs(1 - (p + v * second) % 2) for p, v in zip(actor.place, actor.velocity, strict=True)]
        return turned, (margin[0] + round(shares[0] * room), margin[1] + round(shares[1] * room))

    def frame(self, second: float, visible: Sequence[bool], rng: np.random.Generator) -> np.ndarray:
        """Photograph the stage: uint8 ``[height, width, 3]``."""
        scene = self._backdrop.copy()
        for index, shown in enumerate(visible):
            if shown:
                picture, corner = self.placed(index, second)
                scene.paste(picture, corner, picture)
        return self._camera.take(scene, rng)


def main_scales(count: int) -> tuple[float, float]:
    """Smallest and largest scale of `count` objects that share a picture."""
    return (0.55, 0.92) if count <= 1 else (0.4, 0.62)


def distractor(rng: np.random.Generator, probability: float) -> list[Actor]:
    """Sometimes a small object that means nothing."""
    if rng.random() >= probability:
        return []
    return [Actor.cast(str(rng.choice(OBJECTS)), rng, smallest=0.12, largest=0.2)]


def render_frames(script: ClipScript, *, fps: int, width: int, height: int) -> Iterator[np.ndarray]:
    """Render the pictures of a clip: uint8 ``[height, width, 3]``, ``round(seconds * fps)`` of them.

    Every object stays inside the centre square, but for what a camera held askew cuts off.
    """
    rng = np.random.default_rng([script.seed, 1])
    looks = [event.look for event in script.events if event.look is not None]
    extras, stage = _set_up(script, width, height, rng)
    camera = film(script.recording, script.seed)
    for index in range(round(script.seconds * fps)):
        second = index / fps
        visible = [True] * extras + [on <= second < off for on, off in looks]
        yield camera(stage.frame(second, visible, rng))


def _set_up(script: ClipScript, width: int, height: int, rng: np.random.Generator) -> tuple[int, Stage]:
    """The stage with all that is seen at some time, behind so many distractors."""
    events = [event for event in script.events if event.look is not None]
    smallest, largest = main_scales(len(events))
    extras = distractor(rng, 0.3)
    actors = []
    for event in events:
        if isinstance(event, PlacedEvent):  # side by side, without overlap
            smallest, largest = _PLACED_SCALES[len(events)]
        actor = Actor.cast(event.composition.object, rng, smallest=smallest, largest=largest)
        if isinstance(event, PlacedEvent):
            actor.place, actor.velocity = (event.place, actor.place[1]), (0.0, actor.velocity[1])
        actors.append(actor)
    return len(extras), Stage([*extras, *actors], width, height, rng)


_PLACED_SCALES = {1: (0.42, 0.55), 2: (0.4, 0.5), 3: (0.3, 0.33)}


def render_still(script: ClipScript, second: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The last sixteenth of a second, uint8 ``[side, side, 3]``, and what sounds in it, bool ``[side, side]``."""
    rng = np.random.default_rng([script.seed, 1])
    extras, stage = _set_up(script, side, side, rng)
    moment = second + 15 / 16
    events = [event for event in script.events if event.look is not None]
    mask = np.zeros((side, side), bool)
    for index, event in enumerate(events):
        picture, (left, top) = stage.placed(extras + index, moment)
        opaque = np.asarray(picture)[..., 3] > 127
        sounding = event.sound is not None and event.sound[0] <= moment < event.sound[1]
        mask[top : top + opaque.shape[0], left : left + opaque.shape[1]][opaque] = sounding
    noise = np.random.default_rng([script.seed, 5, second])
    return stage.frame(moment, [True] * (extras + len(events)), noise), mask


def render_waveform(script: ClipScript) -> np.ndarray:
    """Render the sound of a clip: its events over noise, with a short ramp at each onset and offset.

    float32 ``[round(seconds * 48000)]`` in -1..1.
    """
    rng = np.random.default_rng([script.seed, 2])
    count = round(script.seconds * SAMPLE_RATE)
    signal = background_noise(count, rng) * 10 ** (-rng.uniform(-4, 18) / 20)
    for event in script.events:
        if event.sound is not None:
            pitch = PITCHES[str(rng.choice(list(PITCHES)))]
            add_event(signal, synthesise(event.composition.sound, count, pitch, rng), event.sound)
    if rng.random() < 0.25 and script.seconds >= 3:
        start = float(rng.uniform(0, script.seconds - 2))
        other = synthesise(str(rng.choice(SOUNDS)), count, rng.uniform(0.6, 1.6), rng)
        add_event(signal, other * 10 ** (-rng.uniform(10, 18) / 20), (start, start + 2))
    return record(script.recording, level(signal, rng), script.seed)


def add_event(signal: np.ndarray, sound: np.ndarray, span: tuple[float, float]) -> None:
    """Add `sound` to `signal` in place within `span` seconds, ramped up and down."""
    first, last = (min(len(signal), round(second * SAMPLE_RATE)) for second in span)
    ramp = min(round(_RAMP_SECONDS * SAMPLE_RATE), (last - first) // 2)
    gain = np.ones(last - first)
    gain[:ramp] = np.linspace(0, 1, ramp)
    gain[len(gain) - ramp :] = np.linspace(1, 0, ramp)
    signal[first:last] += gain * sound[first:last]


def level(signal: np.ndarray, rng: np.random.Generator, quietest: float = -36.0) -> np.ndarray:
    """Set a loudness of `quietest` to -14 dB, as a recording would have; float32 in -1..1."""
    scaled = signal / (loudness(signal) + 1e-9) * 10 ** (rng.uniform(quietest, -14) / 20)
    return np.clip(scaled, -1, 1).astype(np.float32)
