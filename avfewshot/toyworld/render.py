"""From a script to pictures, sound and files: H.264 and AAC, the same bytes from the same script.

A clip is recorded with clean studio equipment, or with the worn equipment of found footage. The packaged `tiny`
backbone learnt from studio recordings alone; found footage leaves few-shot training something to learn, as real
benchmarks do. The shift is systematic, nearly the same for every clip of every class, so that what is learnt from a few
clips holds for others. It is strong enough that the untouched tiny backbone errs on every fifth to eighth clip, weak
enough that a handful of clips shows what the equipment does; docs/toy-world.md has the figures.
"""

from __future__ import annotations

import math
import os
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av.codec.context
import av.container
import numpy as np
from PIL import Image

from avfewshot.io import atomic_path
from avfewshot.toyworld.script import ClipScript, PlacedEvent
from avfewshot.toyworld.sounds import SAMPLE_RATE, background_noise, band, loudness, synthesise
from avfewshot.toyworld.sprites import Camera, draw_backdrop, draw_object
from avfewshot.toyworld.vocabulary import COLOURS, OBJECTS, PITCHES, SOUNDS

WIDTH = 160  # pixels of a toy clip's picture
HEIGHT = 120  # pixels of a toy clip's picture
FPS = 5  # frames per second of a toy clip
STILL_SIDE = 96  # pixels of a side of a still and of its mask
WAV_RATE = 16_000  # samples a second of a WAV file

_AUDIO_BITS_PER_SECOND = 64_000
# libx264's macroblock-tree rate control gives other bytes from run to run (seen with core 165), so it is off. Threads
# would make the bytes depend on the machine. A key frame a second lets readers seek to a segment at once.
_X264_OPTIONS = {"preset": "superfast", "crf": "30", "threads": "1", "mbtree": "0", "g": str(FPS)}

_RAMP_SECONDS = 0.04
_PLACED_SCALES = {1: (0.42, 0.55), 2: (0.4, 0.5), 3: (0.3, 0.33)}

# The camera is held askew, with few lines and faded colours.
_TILT, _TILT_SPREAD = 24.0, 3.0  # degrees by which the picture is turned about its middle; a clip's largest deviation
_CAST = 0.3  # share of its neighbour that each colour channel takes up: red of green, green of blue, blue of red
_CONTRAST = 0.75  # factor on the distance from middle grey
_LINES = 0.35  # share of the lines, and of the dots on each, that are resolved
_NOISE = 4.0  # standard deviation of the sensor's noise, of 255

# The microphone is a small one in an echoing room, on a bad cable.
_LOW, _HIGH = 250.0, 6000.0  # frequencies below and above which it loses 6 dB per octave, Hz
_ECHO, _DELAY = 0.3, 0.09  # gain of the echo, which is itself echoed, and its delay in seconds
_HISS, _HUM = -20.0, -20.0  # levels of a steady white noise and of the mains hum, dB of the clip's loudness
_LEVEL_SPREAD = 2.0  # a clip's largest deviation from them, dB
_HUM_HERTZ, _HUM_PARTIALS = 100, 8  # what a mains of 50 Hz makes of it; its period is a whole number of samples

_SPREAD = 0.1  # a clip's largest deviation of contrast, lines, frequencies and delay, as a natural logarithm
_TAU = 2 * np.pi
_QUIETEST = 1e-9

Film = Callable[[np.ndarray], np.ndarray]
"""Turns a clean frame, uint8 ``[height, width, 3]``, into the recorded one of the same form."""


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


def film(recording: str, seed: int) -> Film:
    """What the camera does to the frames of the clip of that seed, called once a frame in their order.

    Raises:
        KeyError: There is no such recording.
    """
    # Streams of their own, so that what is before the camera does not depend on the camera.
    return {"studio": lambda rng: lambda frame: frame, "found": _askew}[recording](np.random.default_rng([seed, 3]))


def record(recording: str, waveform: np.ndarray, seed: int) -> np.ndarray:
    """Record a whole clip, float32 ``[samples]`` at 48 kHz in -1..1, as loud as it was; see :func:`film`."""
    microphones = {"studio": lambda waveform, rng: waveform, "found": _echoing}
    return microphones[recording](waveform, np.random.default_rng([seed, 4]))


def _askew(rng: np.random.Generator) -> Film:
    tilt = _TILT + rng.uniform(-1, 1) * _TILT_SPREAD
    contrast = _CONTRAST * np.exp(rng.uniform(-1, 1) * _SPREAD)
    lines = min(1.0, _LINES * np.exp(rng.uniform(-1, 1) * _SPREAD))
    mix = ((1 - _CAST) * np.eye(3) + _CAST * np.roll(np.eye(3), 1, axis=1)).astype(np.float32)

    def take(frame: np.ndarray) -> np.ndarray:
        picture = Image.fromarray(frame)
        # The corners that a turned picture leaves empty take the mean colour: black ones would be a thing to see.
        around = tuple(int(value) for value in frame.mean((0, 1)))
        picture = picture.rotate(tilt, Image.Resampling.BILINEAR, fillcolor=around)
        few = (max(1, round(picture.width * lines)), max(1, round(picture.height * lines)))
        picture = picture.resize(few, Image.Resampling.BOX).resize(picture.size, Image.Resampling.BICUBIC)
        values = (np.asarray(picture, dtype=np.float32) @ mix.T - 128) * np.float32(contrast) + 128
        values += rng.standard_normal(values.shape, dtype=np.float32) * _NOISE
        return np.clip(values, 0, 255).astype(np.uint8)

    return take


def _echoing(waveform: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high, delay = np.array([_LOW, _HIGH, _DELAY]) * np.exp(rng.uniform(-1, 1, 3) * _SPREAD)
    hiss, hum = 10 ** ((np.array([_HISS, _HUM]) + rng.uniform(-1, 1, 2) * _LEVEL_SPREAD) / 20)
    count, before = len(waveform), loudness(waveform)
    frequency = np.fft.rfftfreq(count, 1 / SAMPLE_RATE)
    response = 1 / np.sqrt((1 + (low / np.maximum(frequency, 1)) ** 2) * (1 + (frequency / high) ** 2))
    echoes = 1 - _ECHO * np.exp(-1j * _TAU * frequency * delay)
    heard = np.fft.irfft(np.fft.rfft(waveform) * response / echoes, count)
    heard /= loudness(heard) + _QUIETEST
    heard += hiss * rng.standard_normal(count)
    turns = _TAU * _HUM_HERTZ * np.arange(SAMPLE_RATE // _HUM_HERTZ) / SAMPLE_RATE
    partials = (
        np.sin(turns * (k + 1) + phase) / (k + 1) for k, phase in enumerate(rng.uniform(0, _TAU, _HUM_PARTIALS))
    )
    period = np.sum(list(partials), axis=0)
    heard += hum * np.resize(period / loudness(period), count)
    return np.clip(heard / loudness(heard) * before, -1, 1).astype(np.float32)


def write_clip(script: ClipScript, path: str | os.PathLike[str]) -> None:
    """Render a script and write it as an mp4 file, atomically: yuv420p, mono sound of 48 kHz, nothing that varies.

    The same script gives the same bytes on the same machine with the same library versions.

    Raises:
        OSError: The file cannot be written.
    """
    frames = render_frames(script, fps=FPS, width=WIDTH, height=HEIGHT)
    # An absolute path, since FFmpeg takes what stands before a colon in a relative one for a protocol.
    with atomic_path(path) as temporary, av.open(os.path.abspath(temporary), "w", format="mp4") as container:
        container.flags |= av.container.Flags.bitexact.value  # no time stamp and no muxer version in the header
        video = container.add_stream("libx264", rate=FPS, pix_fmt="yuv420p", options=dict(_X264_OPTIONS))
        video.width, video.height = WIDTH, HEIGHT
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono", bit_rate=_AUDIO_BITS_PER_SECOND)
        sound.options = {"aac_coder": "fast"}
        for stream in (video, sound):
            stream.codec_context.flags |= av.codec.context.Flags.bitexact.value
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode())
        samples = av.AudioFrame.from_ndarray(render_waveform(script)[None], "fltp", "mono")
        samples.sample_rate = SAMPLE_RATE
        samples.time_base = Fraction(1, SAMPLE_RATE)
        samples.pts = 0
        container.mux(sound.encode(samples))
        container.mux(sound.encode())


def write_part(script: ClipScript, path: str | os.PathLike[str], picture: tuple[int, bool] | None) -> None:
    """Write the sound of a clip as a WAV file of 16 kHz, or a still or a mask as a PNG file, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    with atomic_path(path) as temporary:
        if picture is None:
            # 48 to 16 kHz: what lies above 8 kHz goes before every third sample is kept.
            sound = band(render_waveform(script).astype(np.float64), 0, 7000)[:: SAMPLE_RATE // WAV_RATE]
            with wave.open(os.fspath(temporary), "wb") as file:
                file.setparams((1, 2, WAV_RATE, 0, "NONE", ""))
                file.writeframes((np.clip(sound, -1, 1) * 32767).astype("<i2").tobytes())
        else:
            still, mask = render_still(script, picture[0], STILL_SIDE)
            image = Image.fromarray(mask if picture[1] else still)
            # The masks of S4 are 1-bit pictures, those of MS3 have a palette.
            image = image.convert("L").convert("P") if picture[1] and "ms3_data" in Path(path).parts else image
            image.save(temporary)
