"""Toy scenes: masks of what sounds in AVSBench's layout, questions in MUSIC-AVQA's."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from avfewshot.cli.app import run
from avfewshot.data.avsbench import load_avsbench, read_sample
from avfewshot.data.music_avqa import BlindPrior, load_music_avqa, read_questions
from avfewshot.evaluation.question_answering import accuracy_by_type
from avfewshot.toyworld import layouts, scenes
from avfewshot.toyworld.build import ALL_PLANS, MANIFEST, prepare
from avfewshot.toyworld.render import render_still
from avfewshot.toyworld.script import ClipScript, PlacedEvent
from avfewshot.toyworld.vocabulary import Composition


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    patch = pytest.MonkeyPatch()
    patch.setattr(scenes, "PLAYERS", scenes.PLAYERS[:5])
    patch.setattr(scenes, "_AVQA_SECONDS", 5)
    patch.setattr(scenes, "_SCENES", 1)
    patch.setattr(layouts, "_SAMPLES", ())
    try:
        prepare(root, clips_per_class=3, datasets=["avs", "avqa"], jobs=1).run(progress=False)
    finally:
        patch.undo()
    return root


def test_scenes_are_written_only_if_they_are_named(tmp_path):
    assert prepare(tmp_path).manifest.datasets == ("ave", "llp", "vggsound")
    assert prepare(tmp_path, datasets=["avqa"]).manifest.datasets == ("avqa",)


def test_the_readers_of_the_real_data_sets_read_them(world):
    single, multi = load_avsbench(world, "s4"), load_avsbench(world, "ms3")
    assert {split: len(clips) for split, clips in single.clips.items()} == {"train": 5, "val": 5, "test": 5}
    assert [finding for finding in single.report.findings if finding.severity != "info"] == []
    assert {finding.code for finding in multi.report.findings} <= {"leaked-videos", "dashed-ids"}
    questions = load_music_avqa(world)
    assert all(questions.usable(split) == questions.questions[split] != [] for split in ("train", "val", "test"))
    train, test = (read_sample(single.clips[split][0], 64) for split in ("train", "test"))
    assert (train.labelled.sum(), test.labelled.sum()) == (1, 5)
    assert test.masks.flatten(1).any(1).all()
    assert read_sample(multi.clips["train"][0], 64).labelled.all()
    assert test.waveform.abs().max() > 0.05


def test_written_again_nothing_is_missing_and_a_damaged_mask_is(world):
    manifest = json.loads((world / MANIFEST).read_text())
    assert manifest["complete"]
    assert {name.rsplit(".", 1)[1] for name in manifest["files"]} >= {"png", "wav", "mp4", "json", "csv"}


def test_the_mask_is_where_the_sounding_object_is_and_changes_with_the_sound():
    drum, bell = Composition.from_name("drum drumming"), Composition.from_name("bell ringing")

    def scene(*spans):
        placed = zip((drum, bell), spans, (0.0, 1.0), strict=True)
        return ClipScript(2, tuple(PlacedEvent(who, (0.0, 2.0), span, place) for who, span, place in placed), 7)

    frame, left = render_still(scene((0.0, 1.0), None), 0, 64)
    again, right = render_still(scene(None, (0.0, 2.0)), 0, 64)
    np.testing.assert_array_equal(frame, again)  # what is seen does not tell what sounds
    assert left[:, :32].any()
    assert not left[:, 32:].any()
    assert right[:, 32:].any()
    assert not right[:, :32].any()
    assert not render_still(scene((0.0, 1.0), None), 1, 64)[1].any()


def expected_answer(question, events):
    """What the scene itself says; None for templates that are not looked at."""
    seen = sorted((e for e in events if isinstance(e, PlacedEvent)), key=lambda e: e.place)
    heard = {e.composition.object: e.sound for e in events if e.sound}
    names = [e.composition.object for e in seen]
    match question.template, question.values:
        case "Is there a <Object> sound?", (name,):
            return "yes" if name in heard else "no"
        case "How many types of musical instruments appeared in the entire video?", ():
            return scenes._NUMBERS[len(seen)]
        case "What kind of instrument is the <LRer> instrument?", (side,):
            return names[0 if side == "leftest" else -1]
        case "Where is the <FL> sounding instrument?", ("first",):
            first = min((e for e in seen if e.sound), key=lambda e: e.sound[0])
            return {0: "left", 1: "right", 0.5: "middle"}[first.place]
        case "What is the <TH> instrument that comes in?", (ordinal,):
            return sorted(heard, key=lambda name: heard[name][0])[["first", "second", "third"].index(ordinal)]
        case "How many instruments are sounding in the video?", ():
            return scenes._NUMBERS[sum(name in heard for name in names)]
    return None


def test_answers_are_those_of_the_scene(tmp_path):
    plan = ALL_PLANS["avqa"](0, 12)
    scripts = {clip.path.split("/")[-1][:-4]: clip.script for clip in plan.clips}
    assert len(scripts) == len(plan.clips)
    splits = {}
    for split in ("train", "val", "test"):
        path = tmp_path / f"{split}.json"
        path.write_text(plan.texts[f"MUSIC-AVQA/json/avqa-{split}.json"])
        splits[split] = read_questions(path, split)
    for question in splits["train"]:
        assert expected_answer(question, scripts[question.video].events) in (question.answer, None), question
    assert len({question.template for question in splits["train"]}) == 14
    prior = BlindPrior(splits["val"])
    accuracy = accuracy_by_type(splits["test"], [prior.answer(question) for question in splits["test"]])
    assert 35 < accuracy["all"] < 55
    assert Counter(q.answer for q in splits["train"]).most_common(1)[0][0] in ("yes", "no")


def test_the_command_names_them(tmp_path, capsys):
    assert run(["data", "toy", "--root", str(tmp_path), "--only", "mavis"]) == 2
    assert "ave, llp, vggsound, avs, avqa" in capsys.readouterr().err
