"""Captions of frames and seconds, for training the tiny backbone, and the words that they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from avfewshot.toyworld.vocabulary import COLOURS, HELD_OUT, OBJECTS, PITCHES, SEEN, SOUNDS

SYNONYMS: dict[str, tuple[str, ...]] = {
    "car": ("automobile",),
    "truck": ("lorry",),
    "train": ("locomotive",),
    "boat": ("ship",),
    "phone": ("telephone",),
    "bird": ("sparrow",),
    "dog": ("hound", "puppy"),
    "cat": ("kitten",),
    "kettle": ("teapot",),
    "bee": ("bumblebee",),
    "frog": ("toad",),
    "fire": ("flame", "campfire"),
    "cloud": ("rain",),
    "person": ("man", "woman"),
    "snake": ("serpent",),
    "honking": ("tooting",),
    "wailing": ("siren",),
    "ringing": ("chiming",),
    "chirping": ("tweeting",),
    "barking": ("woofing",),
    "meowing": ("mewing",),
    "clapping": ("applause",),
    "humming": ("droning",),
}
"""Other words for objects and sounds."""

TEMPLATES_VISUAL: tuple[str, ...] = (
    "a photo of a {}",
    "a {}",
    "{}",
    "a picture of a {}",
    "an image of the {}",
    "there is a {}",
    "a drawing of a {}",
    "a frame showing a {}",
    "the {}",
    "a video of a {}",
    "a cropped photo of the {}",
    "one {}",
)
"""Wordings of the captions that the tiny image tower was trained on."""

TEMPLATES_AUDIO: tuple[str, ...] = (
    "the sound of a {}",
    "this is a sound of {}",
    "a {}",
    "{}",
    "a recording of a {}",
    "this is the sound of the {}",
    "i can hear a {}",
    "the noise of a {}",
    "the {}",
    "an audio recording of a {}",
    "the sound of {}",
    "a {} can be heard",
)
"""Wordings of the captions that the tiny audio tower was trained on."""

UNSEEN_TEMPLATES_VISUAL: tuple[str, ...] = (
    "this clip contains one {}",
    "we see some {} here",
    "look at that {} over there",
)
"""Wordings that no training caption has."""

UNSEEN_TEMPLATES_AUDIO: tuple[str, ...] = (
    "a clip with {} noises inside",
    "listen to this {}",
    "somewhere a {} makes itself heard",
)
"""Wordings that no training caption has."""

BACKGROUND_VISUAL: tuple[str, ...] = (
    "background",
    "a photo of background",
    "an empty scene",
    "nothing",
    "a photo of an empty background",
)
"""Captions of frames without an event."""

BACKGROUND_AUDIO: tuple[str, ...] = (
    "background",
    "background noise",
    "the sound of background",
    "noise",
    "nothing",
    "the sound of background noise",
)
"""Captions of seconds without an event."""

FILLER_WORDS: tuple[str, ...] = tuple(
    """about above after again all also an and another are around as at away back be because before behind being below
    between big both bright but by came can clear clip close come contains could day did different distant do does down
    each early even ever every example far few film find first for found from front full get gives go good great had has
    have he hear heard her here him his home house how if in inside into is it its itself just kind know large last late
    left less light like listen little long look looks loud made make makes many may me more most much must my near new
    night no noises not now of off often old on only open or other our out outside over own part place plays point quiet
    right room same scene see seen several she short shows side small so some someone something somewhere soon still
    street such take than that their them then there these they thing this those three through time to today together
    too top toward two under until up upon us used very view was water way we well were what when where which while who
    will with within without world would you young your""".split()
)
"""Words without a content: strewn into captions, so that an unknown wording does not confuse the text towers."""


def all_words() -> tuple[str, ...]:
    """Every word that the tiny backbone has met, sorted: its vocabulary."""

    def words(texts: Iterable[str]) -> set[str]:
        return {word for text in texts for word in text.replace("{}", " ").split()}

    known = (
        words(OBJECTS) | words(SOUNDS) | words(COLOURS) | words(name for name in PITCHES if name) | set(FILLER_WORDS)
    )
    known |= {synonym for synonyms in SYNONYMS.values() for synonym in synonyms}
    known |= words(TEMPLATES_VISUAL + TEMPLATES_AUDIO + UNSEEN_TEMPLATES_VISUAL + UNSEEN_TEMPLATES_AUDIO)
    known |= words(BACKGROUND_VISUAL + BACKGROUND_AUDIO) | {"pitched", "sound", "that", "is", "of"}
    return tuple(sorted(known))


_FORBIDDEN = {(composition.object, composition.sound) for composition in HELD_OUT}


class Captioner:
    """Writes true captions: what is seen named for sure, what is not seen guessed, and the reverse for sounds.

    A caption of a frame often names a sound, as labels of classes do. The sound is one that the object makes, or any
    other: the image tower's text branch learns to read past it. Held-out compositions are never written.

    Args:
        rng: Source of the wording.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def frame(self, object_index: int, colour_index: int) -> tuple[str, bool]:
        """Caption of a frame.

        Args:
            object_index: Index into OBJECTS, or -1 for a frame without an event.
            colour_index: Index into COLOURS.

        Returns:
            The caption, and whether it names the colour.
        """
        if object_index < 0:
            return self._pick(BACKGROUND_VISUAL), False
        name, colour = OBJECTS[object_index], list(COLOURS)[colour_index]
        with_colour = self._rng.random() < 0.45
        words = self._word(name)
        if self._rng.random() < 0.55:
            sound = self._word(self._sound_for(name))
            words = f"{words} {sound}" if self._rng.random() < 0.85 else f"{sound} {words}"
        if with_colour:
            words = f"{colour} {words}"
        return self._strew(self._pick(TEMPLATES_VISUAL).format(words)), with_colour

    def second(self, sound_index: int, pitch_index: int) -> tuple[str, bool]:
        """Caption of a second of sound.

        Args:
            sound_index: Index into SOUNDS, or -1 for a second without an event.
            pitch_index: Index into PITCHES.

        Returns:
            The caption, and whether it names the pitch.
        """
        if sound_index < 0:
            return self._pick(BACKGROUND_AUDIO), False
        sound, pitch = SOUNDS[sound_index], list(PITCHES)[pitch_index]
        with_pitch = bool(pitch) and self._rng.random() < 0.45
        words = self._word(sound)
        if self._rng.random() < 0.65:
            name = self._word(self._object_for(sound))
            words = f"{name} {words}" if self._rng.random() < 0.85 else f"{words} {name}"
        elif self._rng.random() < 0.4:
            words = f"{words} sound"
        if with_pitch:
            words = f"{pitch} pitched {words}"
        return self._strew(self._pick(TEMPLATES_AUDIO).format(words)), with_pitch

    def _pick(self, choices: Sequence[str]) -> str:
        return choices[self._rng.integers(len(choices))]

    def _word(self, word: str) -> str:
        return self._pick(SYNONYMS[word]) if word in SYNONYMS and self._rng.random() < 0.15 else word

    def _pairs(self) -> list[tuple[str, str]]:
        """Mostly the pairs that exist, else all but the held-out ones."""
        if self._rng.random() < 0.6:
            return [(composition.object, composition.sound) for composition in SEEN]
        return [(name, sound) for name in OBJECTS for sound in SOUNDS if (name, sound) not in _FORBIDDEN]

    def _sound_for(self, name: str) -> str:
        return self._pick([sound for other, sound in self._pairs() if other == name])

    def _object_for(self, sound: str) -> str:
        return self._pick([name for name, other in self._pairs() if other == sound])

    def _strew(self, caption: str) -> str:
        """Sometimes put one to three words without a content anywhere into the caption."""
        if self._rng.random() >= 0.35:
            return caption
        words = caption.split()
        for _ in range(self._rng.integers(1, 4)):
            words.insert(self._rng.integers(len(words) + 1), self._pick(FILLER_WORDS))
        return " ".join(words)
