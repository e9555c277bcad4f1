"""Toy scenes in the layouts of AVSBench and MUSIC-AVQA, and both tasks on them from training to prediction."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from command_support import TINY

from avfewshot.data.avsbench import load_avsbench
from avfewshot.data.music_avqa import BlindPrior, load_music_avqa, read_questions
from avfewshot.data.stills import read_masks, read_stills
from avfewshot.models.checkpoint import load_adapter
from avfewshot.supervised.avqa import accuracy_by_type, other_videos
from avfewshot.supervised.avs import SegmentationTask, centre_prior, run_lengths
from avfewshot.supervised.base import Example
from avfewshot.toyworld import events, scenes
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
    patch.setattr(events, "_SAMPLES", ())
    try:
        prepare(root, clips_per_class=3, datasets=["avs", "avqa"], jobs=1).run(progress=False)
    finally:
        patch.undo()
    return root


def test_scenes_are_written_only_if_they_are_named(tmp_path):
    assert prepare(tmp_path).manifest.datasets == ("ave", "llp", "vggsound")
    assert prepare(tmp_path, datasets=["avqa"]).manifest.datasets == ("avqa",)


def test_the_readers_of_the_real_data_sets_read_them(world):
    assert json.loads((world / MANIFEST).read_text())["complete"]
    single, multi = load_avsbench(world, "s4"), load_avsbench(world, "ms3")
    assert {split: len(clips) for split, clips in single.clips.items()} == {"train": 5, "val": 5, "test": 5}
    assert [finding for finding in single.report.findings if finding.severity != "info"] == []
    assert {finding.code for finding in multi.report.findings} <= {"leaked-videos", "dashed-ids"}
    questions = load_music_avqa(world)
    assert all(questions.usable(split) == questions.questions[split] != [] for split in ("train", "val", "test"))
    test = single.clips["test"][0]
    assert read_masks(single.clips["train"][0], 64)[1].sum() == 1
    assert read_masks(test, 64)[0].flatten(1).any(1).all()
    assert read_masks(multi.clips["train"][0], 64)[1].all()
    assert read_stills(test.frames, test.audio, 64).waveform.abs().max() > 0.05


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


# -- the tasks ---------------------------------------------------------------------------------------------------------


def test_clips_of_training_videos_are_left_out_of_the_clean_figures(world):
    clips = load_avsbench(world, "ms3").clips["test"]
    task = SegmentationTask()
    truth = [read_masks(clip, 64)[0].half() for clip in clips]
    examples = [Example(clip.name, clip.audio, clip, number == 0) for number, clip in enumerate(clips)]
    said = [1 - truth[0], *truth[1:]]  # wrong about the leaked clip alone
    figures = task.metrics(said, examples, {})
    assert figures["MJ_clean"] == 100 > figures["MJ"]
    assert figures["MF_clean"] == pytest.approx(100)
    assert "MJ_clean" not in task.metrics(said[1:], examples[1:], {})


@pytest.mark.parametrize("subset", ["s4", "ms3"])
def test_avs_from_training_to_prediction(subset, world, avfs):
    more = ("--epochs", "1", "--head", "tpavi-small", "--subset", subset)
    folder, document = avfs.trained("avs", world, *TINY, *more)
    assert list(document["systems"]) == ["nothing", "everything", "centre prior", "tpavi-small"]
    figures = document["systems"]["tpavi-small"]
    assert {"MJ", "MF", "MF_published"} <= figures.keys() <= {"MJ", "MF", "MF_published", "MJ_clean", "MF_clean"}
    assert figures["MJ"]["low"] <= figures["MJ"]["mean"] <= figures["MJ"]["high"]
    assert (folder / "report.html").read_text().count("data:image/png") == document["clips"]
    assert avfs.json("eval", folder)["systems"] == document["systems"]
    clip = next((world / "MUSIC-AVQA").rglob("*.mp4"))
    line = avfs.json("predict", folder, clip)
    assert (line["start"], line["end"], len(line["masks"])) == (0, 5, 5)
    for share, mask in zip(line["share"], line["masks"], strict=True):
        assert sum(mask["counts"]) == 64 * 64
        assert share == pytest.approx(sum(mask["counts"][1::2]) / 64**2, abs=1e-4)
    assert "share" in avfs("predict", folder, clip)[0]


def test_avqa_from_training_to_prediction(world, avfs):
    folder, document = avfs.trained("avqa", world, *TINY, "--epochs", "1")
    assert list(document["systems"])[1:] == ["blind prior of the template", "st-avqa"]
    figures = document["systems"]["st-avqa"]
    assert {"accuracy", "Audio", "Visual", "Audio-Visual", "Visual Counting"} <= figures.keys()
    assert figures["accuracy"]["low"] <= figures["accuracy"]["mean"] <= figures["accuracy"]["high"]
    about = load_adapter(folder / "seed-1").config.decision["about"]
    assert {"yes", "no", "two"} <= set(about["answers"])
    clip = next((world / "MUSIC-AVQA").rglob("*.mp4"))
    line = avfs.json("predict", folder, clip, "--question", "how many instruments are sounding in the video")
    assert line["question"] == "how many instruments are sounding in the video?"
    assert line["answer"] in about["answers"]
    assert 0 < line["probability"] <= 1
    avfs.refused("predict", folder, clip, "--question", "Was ist das")
    assert "--question" in avfs.refused("predict", folder, clip)


def test_pictures_that_do_not_match_are_of_other_videos():
    assert other_videos(["a", "a", "b", "c"]) == [2, 2, 3, 0]
    assert other_videos(["a", "a"]) is None


def test_run_lengths_go_down_the_columns_and_begin_outside():
    mask = np.array([[True, False], [True, True]])
    assert run_lengths(mask) == [0, 2, 1, 1]
    assert run_lengths(~mask) == [2, 1, 1]
    assert run_lengths(np.zeros((2, 2), bool)) == [4]


def test_the_centre_prior_is_the_best_cut_of_the_mean_mask(monkeypatch):
    masks = torch.zeros(4, 5, 4, 4, dtype=torch.bool)
    masks[:, 0, 1:3, 1:3] = True
    masks[0, 0, 0, 0] = True
    labelled = torch.tensor([True, False, False, False, False])
    monkeypatch.setattr("avfewshot.supervised.avs.read_masks", lambda clip, side: (masks[clip], labelled))
    prior = centre_prior(range(4), 4)
    assert ((prior > 0.5) == masks[1, 0]).all()
    assert 0 < prior[0, 0] < 0.5
    assert prior.max() == 1
