"""Captions of frames and seconds, for training the tiny backbone."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from avfewshot.toyworld.vocabulary import (
    BACKGROUND_AUDIO,
    BACKGROUND_VISUAL,
    COLOURS,
    FILLER_WORDS,
    HELD_OUT,
    OBJECTS,
    PITCHES,
    SEEN,
    SOUNDS,
    SYNONYMS,
    TEMPLATES_AUDIO,
    TEMPLATES_VISUAL,
)

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
