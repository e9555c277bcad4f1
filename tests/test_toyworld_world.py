"""The toy world: its classes, pictures, sounds and captions."""

import hashlib

import numpy as np
import pytest
from toy_captions import SYNONYMS, Captioner, all_words
from toy_samples import sample_frame, sample_sound

from avfewshot.toyworld import build, events
from avfewshot.toyworld.render import render_frames, render_waveform
from avfewshot.toyworld.script import ClipScript, Event, ave_script, llp_script, vggsound_script
from avfewshot.toyworld.sounds import SAMPLE_RATE, loudness, synthesise
from avfewshot.toyworld.vocabulary import (
    AVE_CLASSES,
    COLOURS,
    COMPOSITIONS,
    HELD_OUT,
    LLP_CLASSES,
    OBJECTS,
    SEEN,
    SOUNDS,
    VGGSOUND_CLASSES,
    Composition,
)

SMALL = {"fps": 2, "width": 80, "height": 64}


def test_neither_sense_suffices_and_held_out_compositions_join_known_parts_anew() -> None:
    for part, everything in (("object", OBJECTS), ("sound", SOUNDS)):
        values = [getattr(composition, part) for composition in COMPOSITIONS]
        assert sum(values.count(value) > 1 for value in values) > 0.7 * len(values)
        seen, held_out = ({getattr(c, part) for c in group} for group in (SEEN, HELD_OUT))
        assert held_out <= seen == set(everything)
    assert not set(HELD_OUT) & set(SEEN)


def test_task_classes_exist_and_overlap_with_pretraining_in_part() -> None:
    names = {composition.name for composition in COMPOSITIONS}
    for classes in (AVE_CLASSES, LLP_CLASSES, VGGSOUND_CLASSES):
        assert len(set(classes)) == len(classes)
        assert set(classes) <= names
        assert classes is VGGSOUND_CLASSES or 0 < len(set(classes) & set(VGGSOUND_CLASSES)) < len(classes)


def test_equal_scripts_render_equally_and_other_seeds_differ() -> None:
    composition = Composition("dog", "barking")
    scripts = [ave_script(composition, np.random.default_rng(seed), seconds=3) for seed in (1, 1, 2)]
    frames = [np.stack(list(render_frames(script, **SMALL))) for script in scripts]
    waves = [render_waveform(script) for script in scripts]
    assert scripts[0] == scripts[1]
    assert (frames[0].shape, frames[0].dtype) == ((6, 64, 80, 3), np.uint8)
    assert (waves[0].shape, waves[0].dtype) == ((3 * SAMPLE_RATE,), np.float32)
    for first, second, other in (frames, waves):
        assert np.array_equal(first, second)
        assert not np.array_equal(first, other)


def test_event_is_seen_and_heard_only_in_its_span() -> None:
    with_event = ClipScript(4, (Event(Composition("bell", "ringing"), (1, 3), (1, 3)),), seed=5)
    later = ClipScript(4, (Event(Composition("bell", "ringing"), (2, 3), (2, 3)),), seed=5)
    pictures = [list(render_frames(script, **SMALL)) for script in (with_event, later)]
    for index in range(8):
        same = np.array_equal(pictures[0][index], pictures[1][index])
        assert same == (not 1 <= index / 2 < 2)
    # Levels differ between the two clips, noise does not: compare shapes of the silent seconds.
    silent = slice(0, SAMPLE_RATE // 2)
    first, second = (render_waveform(script)[silent] for script in (with_event, later))
    assert np.corrcoef(first, second)[0, 1] > 0.9999
    assert loudness(render_waveform(with_event)[SAMPLE_RATE : 3 * SAMPLE_RATE]) > loudness(first)


def test_scripts_keep_to_the_clip_and_to_whole_seconds() -> None:
    rng = np.random.default_rng(0)
    composition, other = COMPOSITIONS[:2]
    for make, what in ((ave_script, composition), (llp_script, [composition, other]), (vggsound_script, composition)):
        for _ in range(50):
            for event in make(what, rng).events:
                spans = [span for span in (event.look, event.sound) if span]
                assert spans
                assert all(0 <= start < stop <= 10 for start, stop in spans)
                assert all(time == int(time) for span in spans for time in span)


@pytest.mark.parametrize("sound", SOUNDS)
def test_every_sound_is_audible_finite_and_in_tune_with_its_pitch(sound: str) -> None:
    low, high = (synthesise(sound, SAMPLE_RATE, pitch, np.random.default_rng(3)) for pitch in (0.6, 1.65))
    for signal in (low, high):
        assert np.isfinite(signal).all()
        assert loudness(signal) == pytest.approx(1, abs=1e-3)
    frequency = np.fft.rfftfreq(SAMPLE_RATE, 1 / SAMPLE_RATE)

    def centre(signal: np.ndarray) -> float:
        power = np.abs(np.fft.rfft(signal)) ** 2
        return float((power * frequency).sum() / power.sum())

    assert centre(high) > 1.3 * centre(low)


def test_samples_have_their_labels() -> None:
    rng = np.random.default_rng(0)
    for sample in (sample_frame(rng, empty=0.0) for _ in range(30)):
        assert sample.picture.shape == (64, 64, 3)
        assert 0 <= sample.object < len(OBJECTS)
        assert 0 <= sample.colour < len(COLOURS)
        assert (sample.patches == sample.object).sum() >= 3
    empty = sample_frame(rng, empty=1.0)
    assert (empty.object, empty.colour, empty.second_object) == (-1, -1, -1)
    sound = sample_sound(rng, empty=0.0)
    assert sound.waveform.shape == (SAMPLE_RATE,)
    assert np.abs(sound.waveform).max() <= 1
    assert 0 <= sound.sound < len(SOUNDS)
    assert sample_sound(rng, empty=1.0).sound == -1


def test_captions_are_true_in_the_vocabulary_and_never_name_a_held_out_composition() -> None:
    captioner = Captioner(np.random.default_rng(0))
    vocabulary = set(all_words())

    def words(name: str) -> set[str]:
        return {name, *SYNONYMS.get(name, ())}

    for index in range(1000):
        shown, heard = index % len(OBJECTS), index % len(SOUNDS)
        frame, names_colour = captioner.frame(shown, 2)
        second, names_pitch = captioner.second(heard, 2)
        assert words(OBJECTS[shown]) & set(frame.split())
        assert words(SOUNDS[heard]) & set(second.split())
        assert names_colour == ("blue" in frame.split())
        assert names_pitch == ("high" in second.split())
        for caption in (frame, second):
            used = set(caption.split())
            assert used <= vocabulary
            assert not any(words(c.object) & used and words(c.sound) & used for c in HELD_OUT)
    assert "bird" not in captioner.frame(-1, 0)[0]  # empty scenes are described as such
    assert captioner.second(-1, 1)[1] is False


def test_the_world_is_the_one_that_its_generator_names() -> None:
    """Whoever makes this fail on purpose changes build.GENERATOR: folders of the old world are then told apart."""
    assert build.GENERATOR.startswith("3acdb42")
    digests = {
        name: hashlib.sha256(repr(([(c.path, c.script) for c in plan.clips], plan.texts)).encode()).hexdigest()[:16]
        for name, plan in ((name, make(0, 3)) for name, make in build.PLANS.items())
    }
    assert digests == {"ave": "ae6c5ad077bc6934", "llp": "ef27a6626de08aa2", "vggsound": "aa675a8789bc3216"}
    script = events.plan_ave(0, 3).clips[0].script
    frame = list(render_frames(script, fps=1, width=160, height=120))[4].astype(float)
    rows = [[163, 161, 157, 158], [168, 161, 163, 169], [171, 155, 156, 164]]  # mean red of blocks of 40 x 40
    np.testing.assert_allclose(frame[..., 0].reshape(3, 40, 4, 40).mean((1, 3)), rows, atol=1)
    loud = np.sqrt((render_waveform(script).reshape(10, -1) ** 2).mean(1))
    expected = [0.0646, 0.0785, 0.0655, 0.0791, 0.067, 0.0796, 0.0647, 0.0101, 0.0083, 0.0083]
    np.testing.assert_allclose(loud, expected, atol=2e-4)
