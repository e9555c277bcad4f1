"""The equipment that toy clips are recorded with: the studio changes nothing, found footage changes all alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from avfewshot.toyworld import layouts
from avfewshot.toyworld.recordings import RECORDINGS, Lens, Microphone
from avfewshot.toyworld.render import render_frames, render_waveform
from avfewshot.toyworld.script import ClipScript, Event
from avfewshot.toyworld.sounds import SAMPLE_RATE, loudness
from avfewshot.toyworld.vocabulary import Composition

SIZE = {"fps": 2, "width": 160, "height": 120}
EVENT = Event(Composition("clock", "ticking"), (0.0, 2.0), (0.0, 2.0))
STUDIO = ClipScript(2, (EVENT,), 11)
FOUND = replace(STUDIO, recording="found")

STEADY = Lens(tilt=0, tilt_spread=0, cast=0, contrast=1, lines=1, spread=0, noise=0)
FAITHFUL = Microphone(low=1, high=1e6, spread=0, echo=0, delay=0.1, hiss=-200, hum=-200, level_spread=0)


def tone(hertz: float, seconds: float = 1.0) -> np.ndarray:
    return (0.2 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE)).astype(np.float32)


def heard(microphone: Microphone, waveform: np.ndarray, seed: int = 0) -> np.ndarray:
    return microphone.record(waveform, np.random.default_rng(seed))


def filmed(lens: Lens, frame: np.ndarray, seed: int = 0) -> np.ndarray:
    return lens.film(np.random.default_rng(seed))(frame)


def ramp() -> np.ndarray:
    """A picture of all brightnesses, its red, green and blue differing."""
    grey = np.tile(np.arange(160, dtype=np.uint8), (120, 1))
    return np.stack([grey, grey // 2, 255 - grey], axis=-1)


# -- scripts and layouts -----------------------------------------------------------------------------------------------


def test_scripts_are_recorded_in_the_studio_unless_told() -> None:
    assert STUDIO.recording == "studio"


def test_the_studio_leaves_pictures_and_sound_as_they_are() -> None:
    frame, wave = ramp(), tone(440)
    assert RECORDINGS["studio"].film(3)(frame) is frame
    assert RECORDINGS["studio"].record(wave, 3) is wave


def test_found_footage_is_what_its_equipment_makes_of_the_studio_clip() -> None:
    clean, found = (list(render_frames(script, **SIZE)) for script in (STUDIO, FOUND))
    film = RECORDINGS["found"].film(FOUND.seed)
    assert all(np.array_equal(film(before), after) for before, after in zip(clean, found, strict=True))
    expected = RECORDINGS["found"].record(render_waveform(STUDIO), FOUND.seed)
    assert np.array_equal(render_waveform(FOUND), expected)


def test_found_footage_differs_from_the_studio_in_content_alone() -> None:
    clean, found = (np.stack(list(render_frames(script, **SIZE))) for script in (STUDIO, FOUND))
    assert (clean.shape, clean.dtype) == (found.shape, found.dtype)
    assert np.abs(clean.astype(int) - found).mean() > 5
    waves = [render_waveform(script) for script in (STUDIO, FOUND)]
    assert (waves[0].shape, waves[0].dtype) == (waves[1].shape, waves[1].dtype)
    assert np.corrcoef(*waves)[0, 1] < 0.95
    assert np.abs(waves[1]).max() <= 1


def test_an_unknown_recording_is_an_error() -> None:
    with pytest.raises(KeyError, match="cinema"):
        render_waveform(replace(STUDIO, recording="cinema"))


def test_all_data_sets_are_found_footage_and_the_samples_studio() -> None:
    for plan in layouts.PLANS.values():
        assert {clip.script.recording for clip in plan(0, 3).clips} == {"found"}
    assert {clip.script.recording for clip in layouts.plan_samples(0)} == {"studio"}


# -- camera ------------------------------------------------------------------------------------------------------------


def test_a_lens_without_faults_changes_nothing() -> None:
    assert np.array_equal(filmed(STEADY, ramp()), ramp())


def test_tilt_turns_the_picture_about_its_middle() -> None:
    frame = np.zeros((120, 160, 3), np.uint8)
    frame[58:62, 110:114] = 255  # to the right of the middle
    rows, columns = np.nonzero(filmed(replace(STEADY, tilt=30), frame).max(-1) > 100)
    assert rows.mean() - 59.5 == pytest.approx(-32 * np.sin(np.pi / 6), abs=1)  # counter-clockwise, y downwards
    assert columns.mean() - 79.5 == pytest.approx(32 * np.cos(np.pi / 6), abs=1)


def test_the_corners_of_a_turned_picture_are_not_black() -> None:
    frame = np.full((120, 160, 3), 90, np.uint8)
    assert np.array_equal(filmed(replace(STEADY, tilt=30), frame), frame)


def test_the_cast_blends_each_channel_with_its_neighbour() -> None:
    frame = np.broadcast_to(np.array([200, 100, 40], np.uint8), (120, 160, 3))
    assert filmed(replace(STEADY, cast=0.5), np.ascontiguousarray(frame))[0, 0].tolist() == [150, 70, 120]


def test_contrast_fades_towards_grey() -> None:
    frame = np.full((120, 160, 3), 28, np.uint8)
    assert np.array_equal(filmed(replace(STEADY, contrast=0.5), frame), np.full_like(frame, 78))


def test_few_lines_lose_what_is_fine_and_keep_what_is_coarse() -> None:
    fine = np.zeros((120, 160, 3), np.uint8)
    fine[:, ::2] = 255
    coarse = np.zeros((120, 160, 3), np.uint8)
    coarse[:, :80] = 255
    blurred = replace(STEADY, lines=0.25)
    assert filmed(blurred, fine).std() < 0.05 * fine.std()
    assert filmed(blurred, coarse).std() > 0.9 * coarse.std()


def test_sensor_noise_is_new_in_each_frame_and_of_the_stated_strength() -> None:
    frame = np.full((120, 160, 3), 128, np.uint8)
    film = replace(STEADY, noise=8).film(np.random.default_rng(0))
    first, second = film(frame).astype(float), film(frame).astype(float)
    assert first.std() == pytest.approx(8, rel=0.05)
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.05


def test_clips_differ_a_little_in_their_cameras() -> None:
    found = RECORDINGS["found"]
    pictures = [found.film(seed)(ramp()).astype(float) for seed in (1, 2)]
    between = np.abs(pictures[0] - pictures[1]).mean()
    assert 0 < between < 0.5 * np.abs(pictures[0] - ramp()).mean()


# -- microphone --------------------------------------------------------------------------------------------------------


def test_a_faithful_microphone_changes_nothing() -> None:
    wave = tone(440)
    assert np.allclose(heard(FAITHFUL, wave), wave, atol=1e-4)


@pytest.mark.parametrize(("settings", "lost"), [({"low": 400}, 100), ({"high": 2000}, 8000)])
def test_bass_and_treble_are_lost_at_six_decibels_an_octave(settings: dict[str, float], lost: float) -> None:
    wave = tone(900) + tone(lost)
    spectrum = np.abs(np.fft.rfft(heard(replace(FAITHFUL, **settings), wave)))
    ratio = spectrum[round(lost)] / spectrum[900]
    ((name, corner),) = settings.items()
    gain = {"low": lambda f: 1 / np.hypot(1, corner / f), "high": lambda f: 1 / np.hypot(1, f / corner)}[name]
    assert ratio == pytest.approx(gain(lost) / gain(900), rel=0.02)


def test_an_echo_comes_back_after_its_delay_and_echoes_itself() -> None:
    click = np.zeros(SAMPLE_RATE, np.float32)
    click[4800] = 0.5
    out = heard(replace(FAITHFUL, echo=0.4, delay=0.1), click)
    levels = out[[4800, 9600, 14400]] / out[4800]
    assert levels == pytest.approx([1, 0.4, 0.16], abs=0.01)


@pytest.mark.parametrize("kind", ["hiss", "hum"])
def test_hiss_and_hum_have_their_level_below_the_clip(kind: str) -> None:
    wave = tone(5000)
    added = heard(replace(FAITHFUL, **{kind: -20}), wave) - wave * 1 / np.sqrt(1.01)
    assert 20 * np.log10(loudness(added) / loudness(wave)) == pytest.approx(-20, abs=0.5)
    below = (np.abs(np.fft.rfft(added)) ** 2)[:1000].sum() / (np.abs(np.fft.rfft(added)) ** 2).sum()
    assert below > 0.9 if kind == "hum" else below < 0.1


def test_the_recorded_clip_is_as_loud_as_it_was() -> None:
    wave = tone(440) * 0.3
    assert loudness(RECORDINGS["found"].record(wave, 4)) == pytest.approx(loudness(wave), rel=1e-3)


def test_silence_stays_silence() -> None:
    assert not RECORDINGS["found"].record(np.zeros(SAMPLE_RATE, np.float32), 4).any()
