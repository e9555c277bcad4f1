"""The equipment that toy clips are recorded with: the studio changes nothing, found footage changes all alike."""

from dataclasses import replace

import numpy as np
import pytest

from avfewshot.toyworld import build, events
from avfewshot.toyworld.render import film, record, render_frames, render_waveform
from avfewshot.toyworld.script import ClipScript, Event
from avfewshot.toyworld.sounds import SAMPLE_RATE, loudness
from avfewshot.toyworld.vocabulary import Composition

SIZE = {"fps": 2, "width": 160, "height": 120}
EVENT = Event(Composition("clock", "ticking"), (0.0, 2.0), (0.0, 2.0))
STUDIO = ClipScript(2, (EVENT,), 11)
FOUND = replace(STUDIO, recording="found")


def striped() -> np.ndarray:
    """A picture of all brightnesses, its red, green and blue differing, with fine lines in its middle."""
    grey = np.tile(np.arange(160, dtype=np.uint8), (120, 1))
    frame = np.stack([grey, grey // 2, 255 - grey], axis=-1)
    frame[::2, 60:100] = 0
    return frame


def chord() -> np.ndarray:
    """Half a second of four tones, then silence."""
    time = np.arange(SAMPLE_RATE) / SAMPLE_RATE
    wave = sum(np.sin(2 * np.pi * hertz * time) for hertz in (120, 500, 3000, 12000)).astype(np.float32) * 0.05
    wave[SAMPLE_RATE // 2 :] = 0
    return wave


def test_the_studio_leaves_pictures_and_sound_as_they_are() -> None:
    frame, wave = striped(), chord()
    assert STUDIO.recording == "studio"
    assert film("studio", 3)(frame) is frame
    assert record("studio", wave, 3) is wave


def test_found_footage_is_what_its_equipment_makes_of_the_studio_clip() -> None:
    clean, found = (list(render_frames(script, **SIZE)) for script in (STUDIO, FOUND))
    camera = film("found", FOUND.seed)
    assert all(np.array_equal(camera(before), after) for before, after in zip(clean, found, strict=True))
    assert np.array_equal(render_waveform(FOUND), record("found", render_waveform(STUDIO), FOUND.seed))
    assert np.abs(np.stack(clean).astype(int) - np.stack(found)).mean() > 5


def test_all_data_sets_are_found_footage_and_the_samples_studio() -> None:
    for plan in build.PLANS.values():
        assert {clip.script.recording for clip in plan(0, 3).clips} == {"found"}
    assert {clip.script.recording for clip in events.plan_samples(0)} == {"studio"}
    with pytest.raises(KeyError, match="cinema"):
        render_waveform(replace(STUDIO, recording="cinema"))


def test_the_camera_is_the_one_of_the_world() -> None:
    """Tilted by 24 degrees, colours mixed and faded, fine lines lost; whoever changes it changes build.GENERATOR."""
    blocks = film("found", 3)(striped()).astype(float).reshape(3, 40, 4, 40, 3)
    means = [
        [[67, 89, 141], [61, 68, 97], [100, 90, 124], [112, 93, 123]],
        [[49, 91, 157], [60, 77, 117], [80, 77, 107], [118, 95, 125]],
        [[52, 89, 152], [60, 87, 142], [65, 69, 97], [94, 90, 128]],
    ]
    np.testing.assert_allclose(blocks.mean((1, 3)), means, atol=1)
    spreads = [[5.1, 10.2, 10.9, 5.8], [4.0, 14.4, 15.1, 3.9], [4.5, 10.3, 10.8, 6.0]]  # of green: noise and lines
    np.testing.assert_allclose(blocks.std((1, 3))[..., 1], spreads, atol=0.4)


def test_the_microphone_is_the_one_of_the_world() -> None:
    """Bass, treble, echo, hiss and hum; whoever changes it changes build.GENERATOR."""
    heard = record("found", chord(), 3)
    spectrum = np.abs(np.fft.rfft(heard))
    bands = ((95, 106), (110, 131), (490, 511), (2990, 3011), (11990, 12011), (14000, 20000), (195, 206))
    levels = [np.log10(spectrum[low:high].sum()) for low, high in bands]
    np.testing.assert_allclose(levels, [2.32, 3.11, 3.33, 3.43, 3.02, 3.68, 1.90], atol=0.02)
    loud = np.sqrt((heard.reshape(20, -1) ** 2).mean(1))[8:16]  # the echoes die away
    np.testing.assert_allclose(loud, [0.0710, 0.0709, 0.0229, 0.0192, 0.0093, 0.0078, 0.0067, 0.0065], atol=2e-4)


def test_clips_differ_a_little_in_their_cameras() -> None:
    pictures = [film("found", seed)(striped()).astype(float) for seed in (1, 2)]
    between = np.abs(pictures[0] - pictures[1]).mean()
    assert 0 < between < 0.5 * np.abs(pictures[0] - striped()).mean()


def test_the_recorded_clip_is_as_loud_as_it_was_and_silence_stays_silence() -> None:
    wave = chord() * 0.3
    assert loudness(record("found", wave, 4)) == pytest.approx(loudness(wave), rel=1e-3)
    assert not record("found", np.zeros(SAMPLE_RATE, np.float32), 4).any()
