"""Names, classes and wordings of the toy world."""

from __future__ import annotations

from dataclasses import dataclass

OBJECTS: tuple[str, ...] = (
    "car", "truck", "train", "boat", "bell", "phone", "clock", "bird", "dog", "cat",
    "kettle", "robot", "drum", "guitar", "bee", "frog", "fire", "cloud", "person", "snake",
)  # fmt: skip
"""What can be seen, in the order of the image tower's training labels."""

SOUNDS: tuple[str, ...] = (
    "honking", "rumbling", "wailing", "beeping", "whistling", "ringing", "buzzing", "ticking", "chirping", "barking",
    "meowing", "hissing", "drumming", "strumming", "croaking", "crackling", "pattering", "clapping", "humming",
    "howling",
)  # fmt: skip
"""What can be heard, in the order of the audio tower's training labels."""

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 40, 35), "green": (40, 165, 60), "blue": (45, 80, 215), "yellow": (240, 215, 45),
    "orange": (240, 135, 25), "purple": (140, 50, 170), "white": (242, 242, 242), "pink": (250, 145, 190),
}  # fmt: skip
"""Names and sRGB values of the paints."""

PITCHES: dict[str, float] = {"low": 0.6, "": 1.0, "high": 1.65}
"""Names of pitches and the factor on every frequency of a sound; the usual pitch has no name."""


@dataclass(frozen=True, order=True)
class Composition:
    """An object that makes a sound: one class of the toy world."""

    object: str  # one of :data:`OBJECTS`
    sound: str  # one of :data:`SOUNDS`

    @property
    def name(self) -> str:
        """The label, for example ``"dog barking"``."""
        return f"{self.object} {self.sound}"

    @classmethod
    def from_name(cls, name: str) -> Composition:
        """The composition with that label."""
        return cls(*name.split())


def _compositions(*groups: str) -> tuple[Composition, ...]:
    return tuple(Composition(words[0], sound) for words in map(str.split, groups) for sound in words[1:])


SEEN: tuple[Composition, ...] = _compositions(
    "car honking rumbling wailing", "truck honking rumbling beeping", "train whistling rumbling ringing",
    "boat honking humming", "bell ringing", "phone ringing buzzing beeping", "clock ticking ringing",
    "bird chirping whistling", "dog barking howling", "cat meowing hissing", "kettle whistling hissing",
    "robot beeping humming buzzing", "drum drumming", "guitar strumming", "bee buzzing", "frog croaking",
    "fire crackling", "cloud pattering", "person clapping whistling", "snake hissing",
)  # fmt: skip
"""Classes whose names occur in the captions that the tiny backbone was trained on."""

HELD_OUT: tuple[Composition, ...] = _compositions(
    "boat rumbling", "train honking", "phone chirping", "robot whistling", "clock beeping", "person drumming",
    "cat howling", "bird ringing",
)  # fmt: skip
"""Classes that the tiny backbone never met: known objects with known sounds, never together, not even in a caption."""

COMPOSITIONS: tuple[Composition, ...] = SEEN + HELD_OUT  # all classes


def _names(*groups: str) -> tuple[str, ...]:
    return tuple(composition.name for composition in _compositions(*groups))


AVE_CLASSES: tuple[str, ...] = _names(
    "car honking rumbling wailing", "truck honking rumbling beeping", "train whistling rumbling honking",
    "boat honking rumbling", "phone ringing buzzing chirping", "clock ticking ringing",
    "bird chirping ringing whistling", "dog barking howling", "cat meowing hissing howling",
    "kettle whistling hissing", "robot beeping whistling",
)  # fmt: skip
"""The 28 classes of the toy AVE: confusable by sight or by hearing; six are held-out compositions."""

LLP_CLASSES: tuple[str, ...] = _names(
    "person clapping whistling drumming", "car honking wailing", "truck beeping", "train ringing",
    "boat humming", "bell ringing", "phone beeping buzzing", "clock beeping ticking", "bird chirping",
    "dog barking", "cat meowing", "kettle hissing", "robot humming buzzing", "drum drumming",
    "guitar strumming", "bee buzzing", "frog croaking", "fire crackling", "snake hissing",
)  # fmt: skip
"""The 25 classes of the toy LLP; two are held-out compositions."""

VGGSOUND_CLASSES: tuple[str, ...] = _names(
    "car honking rumbling", "truck rumbling honking", "train whistling ringing", "boat honking humming",
    "bell ringing", "phone ringing beeping", "clock ringing", "bird whistling", "dog howling barking",
    "cat hissing", "kettle whistling", "robot beeping buzzing", "drum drumming", "frog croaking",
    "cloud pattering", "person whistling", "fire crackling",
)  # fmt: skip
"""The 24 classes of the toy VGG-Sound: 14 of the toy AVE and 11 of the toy LLP are among them."""
