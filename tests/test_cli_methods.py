"""Few-shot methods from the command line: `fewshot --method`, `compare`, and predicting with what was learnt."""

import csv
import errno
import json
import os
import shutil
from io import StringIO

import numpy as np
import pytest
from command_support import Commands
from fewshot_worlds import CLASSES, write_ave, write_class_folders

import avfewshot
from avfewshot.errors import AvfsError, UsageError
from avfewshot.evaluation.finished import read_finished
from avfewshot.io import try_lock
from avfewshot.methods.gda import TIMO
from avfewshot.prompts import load_templates
from avfewshot.reports.text import count

CAR, CLOCK, DOG = (f"my_clips/{name}/5.mp4" for name in CLASSES)
CODES = dict(zip(("class_0", "class_1", "class_2"), CLASSES, strict=True))  # mean nothing to the text branches


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    write_class_folders(folder / "my_clips")
    link_classes(folder / "codes", CODES)
    write_ave(folder / "AVE")
    (folder / "mteb.txt").write_text("a video of {}")
    (folder / "avfs.toml").write_text('backbone = "tiny"\ndevice = "cpu"\n[data]\nave = "AVE"\n')
    return folder


@pytest.fixture(scope="module")
def avfs(world):
    return Commands(world)


def link_classes(folder, classes):
    """Class folders under other names."""
    folder.mkdir()
    for name, source in classes.items():
        (folder / name).symlink_to(folder.parent / "my_clips" / source)


def results(folder):
    return json.loads((folder / "results.json").read_text())


def cells(folder):
    return results(folder)["comparison"]["cells"]


def full_disk(path, _):
    raise OSError(errno.ENOSPC, "No space left on device", path)


def answers(folder):
    return [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]


def table(path):
    return list(csv.DictReader(path.open()))


@pytest.fixture(scope="module")
def light(avfs):
    """A run of light methods alone on class names that mean nothing."""
    out, err = avfs("fewshot", "--data", "codes", "--shots", "2", "--no-tune", "--name", "light")
    return avfs.folder_of("light"), out, err


def test_a_light_run_that_ended_before_its_report_is_resumed_to_the_same_one(light, avfs):
    folder, out, _ = light
    before = sorted((folder / "clips.csv").read_text().splitlines()), results(folder)["clips"]
    assert avfs("fewshot", "--resume", folder)[0] == out
    assert (sorted((folder / "clips.csv").read_text().splitlines()), results(folder)["clips"]) == before


def test_a_run_whose_folder_vanishes_is_not_said_to_be_done(light, avfs, monkeypatch):
    monkeypatch.setattr("avfewshot.cli.fewshot_run.print_results", lambda run, *_: shutil.rmtree(run.folder))
    told = avfs.refused("fewshot", "--data", "codes", "--shots", "2", "--method", "gda", "--name", "gone", status=1)
    assert "was removed or moved" in told


def test_light_methods_answer_without_training_and_without_validation_labels(light):
    folder, out, err = light
    assert results(folder)["labels_used"] == {"support": 6, "validation": 0}
    found = cells(folder)
    assert {"zero-shot", "kernel_ridge", "logistic", "auto"} <= set(found)
    assert "trained" not in found
    assert found["auto"]["top1"]["value"] >= found["zero-shot"]["top1"]["value"]
    assert "left out" in err  # figures of the support, before test clips are read
    assert "auto" in out
    assert not list(folder.glob("seed-1/checkpoints/*"))
    # Calibration is told before and after on the same clips.
    [seed] = results(folder)["seeds"]
    about = seed["methods"]["auto"]
    assert about["ece"]["left_out"] == {end: about["calibration"][f"ece_{end}"] for end in ("before", "after")}
    assert about["ece"]["test"]["after"] == seed["results"]["auto"]["calibration"]["error"]
    assert about["ece"]["test"]["before"] != about["ece"]["test"]["after"]
    assert "tempered" in err
    assert "tempered" in out
    assert "ECE, tempered" in (folder / "methods.html").read_text()


def test_every_table_tells_labels_time_and_parameters_and_what_the_second_modality_spoils(light):
    folder, out, _ = light
    [seed] = results(folder)["seeds"]
    systems = seed["comparison"]["systems"]
    for name in systems:
        about = seed["methods"][name]
        assert sum(about["labels_used"].values()) == (0 if name in ("zero-shot", "CLIP only", "CLAP only") else 6)
        assert about["seconds"] >= 0
        assert about["trainable"] >= 0
    page = (folder / "methods.html").read_text()
    assert "trained parameters" in page
    assert "mu_av" in out
    assert "mu_av" in page
    # By hand, from the answers to each clip.
    lines = answers(folder / "seed-1")
    assert len(lines) == seed["comparison"]["num_clips"]
    right = {name: [line["answers"][name] in line["truth"] for line in lines] for name in systems}
    assert sum(right["auto"]) / len(lines) == seed["comparison"]["cells"]["auto"]["top1"]["value"]
    spoilt = {
        "mu_v": [v and not both for v, both in zip(right["CLIP only"], right["zero-shot"], strict=True)],
        "mu_a": [a and not both for a, both in zip(right["CLAP only"], right["zero-shot"], strict=True)],
    }
    spoilt["mu_av"] = [v and a for v, a in zip(spoilt["mu_v"], spoilt["mu_a"], strict=True)]
    found = seed["methods"]["zero-shot"]["modality_confusion"]
    assert found == {name: sum(values) / len(lines) for name, values in spoilt.items()}
    assert set(seed["methods"]["auto"]["modality_confusion"]) == set(found)


def test_a_run_predicts_its_own_classes_without_a_label_file(light, avfs, world, monkeypatch):
    folder, _, _ = light
    [clip] = avfs.json("zeroshot", "--adapter", folder, DOG)["clips"]
    assert list(clip["scores"]) == list(CODES)
    assert clip["label"] == "class_2"
    assert sum(clip["scores"].values()) == pytest.approx(1, abs=1e-4)

    monkeypatch.setenv("AVFS_CACHE", str(world / "cache"))
    classifier = avfewshot.load(adapter=folder, device="cpu")
    [result] = classifier.classify([world / DOG])
    assert classifier.own_labels.names == tuple(CODES)
    assert result.label == "class_2"
    assert result.scores["class_2"] == pytest.approx(clip["scores"]["class_2"], abs=0.02)
    told = avfs.refused("zeroshot", "--task", "ave", "--adapter", folder)
    assert "labels seconds, and this run of auto has learnt other labels" in told
    # Of labels that it does not know it says what the text says.
    avfs("zeroshot", "--task", "ave_cls", "--adapter", folder, "--output", "other.json")
    judged = json.loads((world / "other.json").read_text())["results"]
    assert judged["auto"]["metrics"] == judged["zero-shot"]["metrics"]
    [other] = classifier.classify([world / DOG], ["class_2", "something new"])
    assert list(other.scores) == ["class_2", "something new"]
    with pytest.raises(UsageError, match="Which labels"):
        avfewshot.load("tiny", device="cpu").classify([world / DOG])


def test_clips_of_none_are_a_class_that_stays_at_inference_and_classes_come_and_go(avfs, world):
    link_classes(world / "with_none", {"class_0": CLASSES[0], "class_1": CLASSES[1], "none": CLASSES[2]})
    folder = avfs.made("fewshot", "--data", "with_none", "--shots", "3", "--method", "kernel_ridge", name="none")
    rows = results(folder)["seeds"][0]["results"]["kernel_ridge"]["classes"]
    assert [(row["name"], row["recall"]) for row in rows] == [("class_0", 1), ("class_1", 1), ("none", 1)]
    [clip] = avfs.json("zeroshot", "--adapter", folder, DOG, "--segments")["clips"]
    assert clip["label"] == "none"
    assert list(clip["scores"]) == ["class_0", "class_1", "none"]
    assert sum(clip["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert {part["label"] for part in clip["segments"]} == {"none"}
    [clip] = avfs.json("zeroshot", "--adapter", folder, "--label", "class_0", "--label", "class_1", DOG)["clips"]
    assert "none of the labels fits" in clip["warnings"][0]

    def held():
        return avfs("learn", folder, "list")[0].splitlines()

    assert held() == ["class_0: 3 clips", "class_1: 3 clips", "none: 3 clips"]
    avfs("learn", folder, "add", "none", DOG)
    assert held()[-1] == "none: 4 clips"
    assert "left out: 1 clip that" in avfs("learn", folder, "add", "none", DOG)[1]
    assert held()[-1] == "none: 4 clips"
    avfs("learn", folder, "remove", "none")
    assert "takes no --wording" in avfs.refused("learn", folder, "remove", "class_0", "--wording", "a car")
    told = avfs.refused("learn", folder, "add", "class_0", CAR, "--wording", "a car")
    assert "'class_0' is learnt as 'class 0'" in told
    (world / "broken.mp4").write_bytes(b"no video")
    assert "can be learnt from" in avfs.refused("learn", folder, "add", "class_0", "broken.mp4", status=1)
    # What could be read is learnt, and the status tells of the rest.
    told = avfs.refused("learn", folder, "add", "my_Dogs", "my_clips/dog barking/1.mp4", "broken.mp4", status=1)
    assert "left out: broken.mp4" in told
    assert held() == ["class_0: 3 clips", "class_1: 3 clips", "my_Dogs: 1 clip"]
    told = avfs("learn", folder, "add", "MY dogs", "my_clips/dog barking/2.mp4")[1]  # spelt another way
    assert "1 clip learnt as 'my_Dogs'" in told
    assert "stay learnt" not in told
    config = json.loads((folder / "seed-1" / "scorer" / "config.json").read_text())
    assert config["wordings"][-1] == "my dogs"
    told = avfs("learn", folder, "add", "class_1", "my_clips/dog barking/2.mp4")[1]
    assert "Some of them stay learnt as 'my_Dogs', too." in told
    avfs("learn", folder, "remove", "my dogs")
    assert held() == ["class_0: 3 clips", "class_1: 4 clips"]
    # No name that the run could not be read with afterwards.
    assert "a name that can be seen" in avfs.refused("learn", folder, "add", " ", CAR)
    assert "same wording as 'class_0'" in avfs.refused("learn", folder, "add", "new", CAR, "--wording", "Class 0")
    assert "a folder -CLASS/" in avfs.refused("learn", folder, "add", "--", "-class_0", CAR)
    avfs("learn", folder, "add", "dogs", "my_clips/dog barking/1.mp4", "my_clips/dog barking/2.mp4")
    scorer = folder / "seed-1" / "scorer"
    handle = os.open(scorer, os.O_RDONLY)
    assert try_lock(handle)  # as another process that learns
    for named in (folder, scorer):
        told = avfs.refused("learn", named, "remove", "class_1", status=1)
        assert "another `avfs learn` changes this run" in told
    os.close(handle)
    kept = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("avfewshot.cli.learn.write_text", full_disk)
        assert "No space left on device" in avfs.refused("learn", folder, "remove", "class_1", status=1)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == kept
    (scorer / ".learn-killed").mkdir()
    avfs("learn", folder, "remove", "class_1")
    assert not (scorer / ".learn-killed").exists()
    assert held() == ["class_0: 3 clips", "dogs: 2 clips"]
    assert avfs.json("zeroshot", "--adapter", folder, DOG)["clips"][0]["label"] == "dogs"


@pytest.fixture(scope="module")
def two(avfs, world):
    """A run of one light method on two classes, and what it says."""
    link_classes(world / "two", {"class_0": CLASSES[0], "class_1": CLASSES[1]})
    _, err = avfs("fewshot", "--data", "two", "--shots", "3", "--method", "kernel_ridge", "--name", "two")
    return avfs.folder_of("two"), err


@pytest.fixture(scope="module")
def single(avfs, world):
    """A run on one clip of each class, and what it prints."""
    for name, source in CODES.items():
        (world / "single" / name).mkdir(parents=True)
        (world / "single" / name / "0.mp4").symlink_to(world / "my_clips" / source / "0.mp4")
    out, _ = avfs("fewshot", "--data", "single", "--shots", "1", "--no-tune", "--name", "single")
    return avfs.folder_of("single"), out


def test_one_clip_a_class_is_learnt_and_saved_without_a_test_clip(avfs, single):
    folder, out = single
    assert "There was no test clip" in out
    assert results(folder)["comparison"] is None
    assert avfs.json("zeroshot", "--adapter", folder, DOG)["clips"][0]["label"] == "class_2"
    assert "at least two clips a class" in avfs.refused("zeroshot", "--adapter", folder, "--reject", DOG)


def test_classes_with_fewer_clips_than_shots_are_used_whole_and_said(avfs, world):
    for name, clips in (("class_0", 6), ("class_1", 3)):
        (world / "few" / name).mkdir(parents=True)
        for clip in range(clips):
            (world / "few" / name / f"{clip}.mp4").symlink_to(world / "my_clips" / CODES[name] / f"{clip}.mp4")
    out, err = avfs("fewshot", "--data", "few", "--shots", "3", "--method", "nearest_mean", "--name", "few")
    # A clip of each class is tested on; one more was put aside to choose by, which this method does not.
    told = "Classes with fewer than 3 training clips, used whole: class_1 (2)."
    folder = avfs.folder_of("few")
    assert told in err
    assert told in (folder / "methods.html").read_text()
    assert results(folder)["labels_used"] == {"support": 5, "validation": 0}
    # Two test clips are no percentage.
    assert "2 of 2" in out
    assert "by Wilson's score over 2 test clips" in " ".join(out.split())
    assert "<td>2 of 2</td>" in (folder / "methods.html").read_text()


def test_counter_examples_keep_their_like_out_of_a_class(avfs, world, two):
    classes = {"class_0": CLASSES[0], "class_1": CLASSES[1], "-class_0": CLASSES[2]}
    link_classes(world / "with_counter", classes)
    counter = avfs.made("fewshot", "--data", "with_counter", "--shots", "3", "--method", "kernel_ridge", name="counter")
    scores = {}
    for folder, clips in ((counter, 6), (two[0], 0)):
        scores[clips] = avfs.json("zeroshot", "--adapter", folder, DOG)["clips"][0]["scores"]["class_0"]
        used = results(folder)["seeds"][0]["methods"]["kernel_ridge"]["labels_used"]
        assert used.get("counter-examples", 0) == clips
        assert results(folder)["labels_used"] == used
        assert ("counter-examples" in (folder / "methods.html").read_text()) == bool(clips)
    assert scores[6] < 0.5 * scores[0]


def test_unknown_clips_are_rejected_at_the_stated_rate(avfs, world, two):
    folder, err = two
    assert "`unknown`" in err
    assert "false accepts" in err
    stated = results(folder)["seeds"][0]["methods"]["kernel_ridge"]["reject"]
    assert (stated["keep"], stated["clips"]) == (0.95, 6)
    assert "unknown" in (folder / "methods.html").read_text()
    clips, page = (CAR, CLOCK, DOG), ("--report", "reject.html", "--output", "reject.json")
    _, err = avfs("zeroshot", "--adapter", folder, "--reject", *page, *clips)
    document = json.loads((world / "reject.json").read_text())
    assert [clip["label"] for clip in document["clips"]] == ["class_0", "class_1", "unknown"]
    assert document["clips"][2]["score"] == pytest.approx(max(document["clips"][2]["scores"].values()), abs=1e-5)
    assert document["reject"] == stated
    assert "false accepts" in (world / "reject.html").read_text()
    assert "false rejects" in err
    assert "unknown" in avfs("zeroshot", "--adapter", folder, "--reject", DOG)[0].splitlines()[0]
    document = avfs.json("zeroshot", "--adapter", folder, DOG)
    assert document["clips"][0]["label"] in ("class_0", "class_1")
    assert "reject" not in document
    # Lines of one file agree in what was asked for.
    avfs("zeroshot", "--adapter", folder, "--output", "plain.jsonl", DOG)
    for flag in ("--reject", "--multi-label"):
        told = avfs.refused("zeroshot", "--adapter", folder, "--output", "plain.jsonl", flag, *clips)
        assert "results of another run" in told
    assert "none of dog" in avfs.refused("zeroshot", "--adapter", folder, "--reject", "--label", "dog", DOG)
    assert "Add --adapter RUN" in avfs.refused("zeroshot", "--reject", "--label", "dog", DOG)
    assert "--reject cannot be given with --task" in avfs.refused("zeroshot", "--reject", "--task", "ave")


def test_clips_carry_several_labels(avfs, world):
    """Cars that honk and dogs that bark, some of them in a third folder too, by links."""
    for name, source in (("cars", CLASSES[0]), ("dogs", CLASSES[2]), ("loud", CLASSES[0])):
        (world / "several" / name).mkdir(parents=True)
        for number in range(6):
            (world / "several" / name / f"{number}.mp4").symlink_to(world / "my_clips" / source / f"{number}.mp4")
    asked = ("--data", "several", "--shots", "3", "--multi-label", "--method", "kernel_ridge")
    folder = avfs.made("fewshot", *asked, name="several")
    assert results(folder)["comparison"]["headline"] == "hit_at_1"
    assert cells(folder)["kernel_ridge"]["macro_f1_sets"]["value"] == 1
    thresholds = json.loads((folder / "seed-1" / "scorer" / "scorer.json").read_text())["thresholds"]
    assert set(thresholds) == {"cars", "dogs", "loud"}
    asked = ("zeroshot", "--adapter", folder, CAR, DOG)
    clips = avfs.json(*asked, "--multi-label")["clips"]
    assert [sorted(clip["labels"]) for clip in clips] == [["cars", "loud"], ["dogs"]]
    out, _ = avfs(*asked, "--multi-label", "--format", "csv")
    assert [set(row["labels"].split("; ")) for row in csv.DictReader(StringIO(out))] == [{"cars", "loud"}, {"dogs"}]
    assert all("labels" not in clip for clip in avfs.json(*asked)["clips"])
    # Without a run, labels that stand out are given.
    labels = [part for name in (*CLASSES, "boat", "kettle", "bird") for part in ("--label", name)]
    [clip] = avfs.json("zeroshot", *labels, "--multi-label", DOG)["clips"]
    assert clip["labels"][0] == clip["label"] == "dog barking"
    assert len(clip["labels"]) < 6
    assert clip["warnings"] == []


@pytest.mark.parametrize("fewest", [8, 1])
def test_auto_counts_what_is_trained_where_that_has_joined(fewest, avfs, monkeypatch):
    monkeypatch.setattr("avfewshot.methods.joining.ROWS", fewest)  # unseen clips; there are three
    arguments = ("--data", "my_clips", "--shots", "1", "--epochs", "1", "--hidden", "8", "--workers", "0")
    folder = avfs.made("fewshot", *arguments, name=f"counted-{fewest}")
    told = results(folder)["seeds"][0]["methods"]
    joined = told["auto"]["tuned"]["tuned"] > 0
    assert joined == (fewest == 1)
    assert told["auto"]["labels_used"] == {"support": 3, "validation": 3}
    assert told["auto"]["trainable"] == joined * told["trained"]["trainable"]
    assert (told["auto"]["seconds"] > told["trained"]["seconds"]) == joined


def test_auto_trains_and_joins_and_the_joined_run_predicts(avfs, world):
    arguments = ("--data", "my_clips", "--shots", "2", "--epochs", "1", "--hidden", "8", "--workers", "0")
    _, err = avfs("fewshot", *arguments, "--name", "joined")
    folder = avfs.folder_of("joined")
    assert {"trained", "auto", "kernel_ridge"} <= set(cells(folder))
    assert results(folder)["labels_used"]["validation"] > 0
    assert "auto: DG-SCT" in err
    assert (folder / "report.html").is_file()
    assert (folder / "methods.html").is_file()
    assert avfs.json("zeroshot", "--adapter", folder, DOG)["clips"][0]["label"] == "dog barking"
    # The trained model may be fused by a rule of its own; the text beside the light methods keeps its.
    classifier = avfewshot.load(adapter=folder, device="cpu")
    classifier.fusion = "product"
    head = classifier.head([*CLASSES, "boat"])
    assert (head._texts.fusion, head._zero_shot._options["fusion"]) == ("weighted", "product")
    # It predicts as it was evaluated; and both ways of joining its modalities are heard by their weights.
    rows = answers(folder / "seed-1")
    clips = [f"my_clips/{row['id']}" for row in rows]
    said = avfs.json("zeroshot", "--adapter", folder, *clips)["clips"]
    assert [clip["label"] for clip in said] == [row["answers"]["auto"] for row in rows]
    classifier = avfewshot.load(adapter=folder, device="cpu")
    head, [file] = classifier.head(CLASSES), classifier.embed_files([world / clips[0]])
    scores = {}
    for fusion in ("weighted", "product"):
        head._zero_shot._options["fusion"] = fusion
        scores[fusion] = np.array(list(head._zero_shot.result(file, segments=False).scores.values()))
    for weights in ((1.0, 0.0), (0.5, 2.0)):
        head._scorer.tuned = {"light": 0.0, "tuned": weights[1], "other": weights[0]}  # it answers alone by the product
        found = np.array(list(head.result(file, segments=False).scores.values()))
        expected = scores["weighted"] ** weights[0] * scores["product"] ** weights[1]
        np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--task", "ave"), None),
        (("--data", "my_clips", "--val-shots", "0"), "no validation clip lets join"),
        (("--data", "my_clips"), None),
    ],
)
def test_where_what_is_trained_cannot_join_auto_that_is_said_before(options, told, avfs):
    out = " ".join(avfs("fewshot", *options, "--shots", "1", "--dry-run")[0].split())
    assert "auto with DG-SCT trained beside it" in out
    assert ("--no-tune leaves it out" in out) == (told is not None)
    assert told is None or told in out


@pytest.fixture(scope="module")
def seconds(avfs):
    return avfs.made("fewshot", "--task", "ave", "--shots", "2", "--no-tune", name="seconds")


def test_seconds_and_their_background_by_light_methods(avfs, seconds):
    found = cells(seconds)
    assert {"auto", "kernel_ridge", "logistic", "gda", "nearest_mean", "tip_adapter", "zero-shot"} <= set(found)
    assert all(found[name]["segment_accuracy"]["value"] is not None for name in found)
    assert "this one labels seconds" in avfs.refused("learn", seconds, "add", "boat", "my_clips")
    out, _ = avfs("compare", "--task", "ave", "--shots", "1", "--seeds", "1", "--methods", "auto")
    assert {"auto", "kernel_ridge", "gda"} <= set(out.split())
    assert "Seconds it labels by kernel_ridge" in (seconds / "methods.html").read_text()
    clips = avfs.json("zeroshot", "--adapter", seconds, "AVE/AVE", "--segments")["clips"]
    labels = {part["label"] for clip in clips for part in clip["segments"]}
    assert "background" in labels  # learnt, and kept at inference
    assert labels <= {"background", *CLASSES}
    assert all(clip["label"] in clip["scores"] for clip in clips)


def test_what_is_trained_joins_the_labels_of_seconds_too(avfs, monkeypatch):
    monkeypatch.setattr("avfewshot.methods.joining.ROWS", 1)  # there are three validation clips
    # Hearing what is trained upside down, it differs from both.
    weights = {"light": 0.0, "tuned": -1.0, "other": 0.0, "bias": 0.0, "presence": [1.0, 0.0]}
    monkeypatch.setattr("avfewshot.methods.joining._fit_seconds", lambda *given: weights)
    arguments = ("--task", "ave", "--shots", "1", "--epochs", "1", "--hidden", "8", "--workers", "0")
    folder = avfs.made("fewshot", *arguments, name="joined-seconds")
    told = results(folder)["seeds"][0]["methods"]["auto"]
    assert told["tuned"]["tuned"] > 0
    assert told["labels_used"] == {"support": 3, "validation": 3}
    assert "whether there is one: 0.00 of its log-odds and 1.00 of" in (folder / "methods.html").read_text()
    # It predicts as it was evaluated, second by second, and not as without what was trained.
    rows = answers(folder / "seed-1")
    clips = [f"AVE/AVE/{row['id']}.mp4" for row in rows]
    said = avfs.json("zeroshot", "--adapter", folder, "--segments", *clips)["clips"]
    for clip, row in zip(said, rows, strict=True):
        assert [second["label"] for second in clip["segments"]] == [
            one.replace("Background", "background") for one in row["answers"]["auto"]
        ]
    avfs("zeroshot", "--task", "ave", "--adapter", folder, "--output", "judged.json")
    judged = json.loads((avfs.folder / "judged.json").read_text())["comparison"]["cells"]
    for name, before in (("auto", "auto"), ("adapted", "trained"), ("zero-shot", "zero-shot")):
        assert judged[name]["segment_accuracy"] == cells(folder)[before]["segment_accuracy"]
    classifier = avfewshot.load(adapter=folder, device="cpu")
    head, [file] = classifier.head(classifier.own_labels), classifier.embed_files([avfs.folder / clips[0]])
    joined = [second.scores for second in head.result(file, segments=True).segments]
    head._scorer.tuned["seconds"] |= {"light": 1.0, "tuned": 0.0, "other": 0.0, "bias": 0.0, "presence": [1.0, 0.0]}
    light = [second.scores for second in head.result(file, segments=True).segments]
    expected = np.exp(np.concatenate(head._scorer.segment_logits(head._features(file))))[:, : len(CLASSES)]
    np.testing.assert_allclose(light, expected / expected.sum(1, keepdims=True), atol=1e-6)
    assert not np.allclose(joined, light, atol=1e-3)


@pytest.fixture(scope="module")
def timo(avfs):
    """A run of one method, and the shapes of the prompts that it was given."""
    seen, fit = [], TIMO.fit_evidence

    def watched(method, rows, targets, **options):
        seen.append({name: prompts.shape[:2] for name, prompts in rows.templates.items()})
        return fit(method, rows, targets, **options)

    asked = ("--data", "my_clips", "--shots", "1", "--method", "timo", "--templates", "video")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TIMO, "fit_evidence", watched)
        return avfs.made("fewshot", *asked, name="timo"), seen


def test_a_single_method(timo):
    folder, seen = timo
    templates = load_templates("video")
    wanted = {name: (len(CLASSES), len(getattr(templates, name))) for name in ("visual", "audio")}
    assert seen
    assert all(shapes == wanted for shapes in seen)  # each prompt's own vector, weighted by the clips
    assert "timo" in cells(folder)


@pytest.fixture(scope="module")
def frozen(avfs):
    """Scores of clips by the names of the codes alone."""
    labels = [part for name in CODES for part in ("--label", name)]
    clips = avfs.json("zeroshot", *labels, *(f"codes/{name}" for name in CODES))["clips"]
    return {clip["path"]: clip["scores"] for clip in clips}


@pytest.mark.parametrize(
    ("task", "method", "also"),
    [
        ("ave_cls", "coop", "--max-steps=3 --fusion=product"),
        ("ave_cls", "maple", "--max-steps=3"),
        ("ave_cls", "kernel_ridge", "--val-shots=0"),
        ("ave", "gda", "--val-shots=1"),
    ],
)
def test_a_run_is_judged_on_a_task_by_what_it_predicts_with(task, method, also, avfs):
    name = f"judged-{task}-{method}"
    folder = avfs.made("fewshot", "--task", task, "--shots", "1", "--method", method, *also.split(), name=name)
    avfs("zeroshot", "--task", task, "--adapter", folder, "--output", f"{name}.json")
    judged = json.loads((avfs.folder / f"{name}.json").read_text())
    assert judged["comparison"]["cells"][method] == cells(folder)[method]
    assert set(judged["results"]) == {method, "zero-shot", "CLIP only", "CLAP only"}
    before = json.loads((folder / "seed-1" / "result.json").read_text())["results"][method]
    assert judged["results"][method]["calibration"] == before["calibration"]  # of probabilities, not answers alone


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "clip-lora"])
def test_a_tuned_run_predicts_as_it_was_evaluated(method, avfs, world, frozen):
    few = ("--max-steps", "3")  # CLIP-LoRA's recipe has hundreds
    folder = avfs.made("fewshot", "--data", "codes", "--shots", "1", "--method", method, *few, name=f"tuned-{method}")
    about = results(folder)["seeds"][0]["methods"][method]
    assert about["labels_used"] == {"support": 3, "validation": 0}
    assert about["trainable"] > 0
    lines = answers(folder / "seed-1")
    clips = avfs.json("zeroshot", "--adapter", folder, *(f"codes/{line['id']}" for line in lines))["clips"]
    assert [clip["label"] for clip in clips] == [line["answers"][method] for line in lines]
    assert all(clip["scores"] != frozen[clip["path"]] for clip in clips)
    classifier, path = avfewshot.load(adapter=folder, device="cpu"), world / "codes" / lines[0]["id"]
    [result] = classifier.classify([path])
    assert result.scores == pytest.approx(clips[0]["scores"], abs=0.02)
    [other] = classifier.classify([path], ["dog", "car", "class 1"])
    assert list(other.scores) == ["dog", "car", "class 1"]
    if method == "coop":
        with pytest.raises(UsageError, match="too long behind the 10 context vectors"):
            classifier.classify([path], ["a dog that is barking at a clock", "car"])
    assert "learnt on frozen embeddings" in avfs.refused("zeroshot", "--adapter", folder, "--reject", "my_clips")
    if method == "coop":  # killed behind its training
        for damaged in ("[1]", "[" * 100_000):
            (folder / "seed-1" / "result.json").write_text(damaged)
            assert "Remove it" in avfs.refused("fewshot", "--resume", folder, status=1)
        (folder / "seed-1" / "result.json").unlink()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("avfewshot.tuning.fit.clip_loss", lambda *_: pytest.fail("a step is taken again"))
            avfs("fewshot", "--resume", folder)
        assert answers(folder / "seed-1") == lines
    (folder / "seed-1" / method / "tuned.safetensors").write_bytes(b"damaged")
    with pytest.raises(AvfsError, match=r"tuned\.safetensors|no tuned method"):
        avfewshot.load(adapter=folder, device="cpu")


@pytest.mark.parametrize(
    ("method", "figure", "rule"),
    [("kernel_ridge", "loo_log_loss", "left-out clips"), ("coop", "support_loss", "lowest loss on its support")],
)
def test_the_seed_that_answers_for_a_run_is_chosen_without_test_clips_and_told(method, figure, rule, avfs, world):
    asked = ("--data", "codes", "--shots", "2", "--max-steps", "3", "--method", method, "--seeds", "1,2")
    _, err = avfs("fewshot", *asked, "--name", f"seeds-{method}")
    folder = avfs.folder_of(f"seeds-{method}")
    document = results(folder)
    losses = {seed["seed"]: seed["methods"][method][figure] for seed in document["seeds"]}
    chosen = document["chosen"]["seed"]
    assert chosen == min(losses, key=losses.get)
    assert rule in document["chosen"]["why"]
    assert f"Seed {chosen} answers for the run" in err
    assert rule in (folder / "methods.html").read_text()

    def scores(path):
        [result] = avfewshot.load(adapter=path, device="cpu").classify([world / DOG])
        return result.scores

    single = {seed: scores(folder / f"seed-{seed}") for seed in (1, 2)}
    assert single[1] != single[2]
    assert scores(folder) == single[chosen]
    # What the run says is what counts: the other one, once it is named.
    (folder / "chosen.json").write_text(json.dumps({"seed": 3 - chosen}))
    assert scores(folder) == single[3 - chosen]
    (folder / "chosen.json").write_text(json.dumps({"seed": 7}))
    with pytest.raises(AvfsError, match="names a seed that is not there"):
        scores(folder)


def test_compare_writes_a_table_for_each_number_of_shots_and_goes_on(avfs, world, monkeypatch):
    arguments = ("compare", "--data", "codes", "--shots", "1,2", "--seeds", "1,2", "--name", "both")
    out, err = avfs(*arguments)
    folder = world / "runs" / "compare" / "both"
    assert all(f"written: runs/compare/both/compare.{kind}" in err for kind in ("html", "csv", "json"))
    rows = table(folder / "compare.csv")
    assert {row["shots"] for row in rows} == {"1", "2"}
    assert {"auto", "kernel_ridge", "zero-shot"} <= {row["system"] for row in rows}
    assert all(0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1 for row in rows)
    assert all(row["mu_av"] for row in rows if row["system"] in ("auto", "zero-shot"))
    assert all(row["labels_used"] and row["fit_seconds"] and row["trainable"] for row in rows)
    page = (folder / "compare.html").read_text()
    chart = page.split("</svg>")[0]
    assert chart.count("<g ") >= 3
    assert chart.count('class="interval"') == 2 * chart.count("<g ")  # at each number of shots
    # Where each system wins.
    document = json.loads((folder / "compare.json").read_text())
    for one in document["tables"]:
        top = max(row["estimate"]["value"] for row in one["systems"])
        best = {row["system"] for row in one["systems"] if row["estimate"]["value"] == top}
        title = count(one["shots"], "shot")
        assert best == {row["system"] for row in document["wins"] if title in row["best"].split(", ")}
        level = {row["system"] for row in document["wins"] if title in row["not clearly worse than the best"]}
        assert not best & level
    assert "where each wins" in out
    assert "where each wins" in page
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("*-shot-*/seed-*/result.json")}
    assert len(kept) == 4
    with monkeypatch.context() as patch:  # what is done is neither read nor embedded again
        patch.setattr("avfewshot.training.fewshot.readable_support", None)
        patch.setattr("avfewshot.training.fewshot.on_test_clips", None)
        assert avfs(*arguments)[0] == out
        # Seeds come and go; the cells of those that stay are as they were.
        avfs(*arguments, "--seeds", "1")
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    # A further method is not there yet.
    avfs(*arguments, "--methods", "auto,timo", "--seeds", "1", "--shots", "1")
    assert sum(row["system"] == "timo" for row in table(folder / "compare.csv")) == 1
    # A table has what its command asks for, though a cell of one seed holds more.
    avfs(*arguments)
    assert {row["system"] for row in table(folder / "compare.csv")} == {row["system"] for row in rows}
    assert "cannot be part of a folder's name" in avfs.refused(*arguments, "--name", "../both")


def test_what_is_tuned_is_not_tuned_again_for_a_further_method(avfs, world, monkeypatch):
    arguments = ("compare", "--data", "codes", "--shots", "1", "--seeds", "1", "--max-steps", "2", "--name", "tuned")
    _, err = avfs(*arguments, "--methods", "coop")
    assert "seed 1: coop tuned in" in err
    path = world / "runs" / "compare" / "tuned" / "compare.csv"
    [before] = [row for row in table(path) if row["system"] == "coop"]
    monkeypatch.setattr("avfewshot.tuning.fit.clip_loss", lambda *_: pytest.fail("a step is taken again"))
    avfs(*arguments, "--methods", "coop,timo")
    assert before in table(path)  # with the seconds that the training has taken
    assert "timo" in {row["system"] for row in table(path)}


def test_dgsct_is_a_row_of_that_name(avfs, world):
    avfs("compare", "--data", "my_clips", "--shots", "1", "--seeds", "1", "--max-steps", "1", "--methods", "dgsct",
         "--name", "own")  # fmt: skip
    systems = {row["system"] for row in table(world / "runs" / "compare" / "own" / "compare.csv")}
    assert "dgsct" in systems
    assert "trained" not in systems


def test_what_decides_figures_computes_its_own_cells_under_the_same_name(avfs, world):
    shutil.copytree(world / "my_clips", world / "kept")
    (world / "templates.txt").write_text("this is {}")
    arguments = ("compare", "--data", "kept", "--shots", "1", "--seeds", "1", "--methods", "kernel_ridge")
    known = set()

    def computes(number, *options):
        avfs(*arguments, "--name", "kept", *options)
        found = set((world / "runs" / "compare" / "kept").glob("1-shot-*/seed-1/result.json"))
        assert len(found) == len(known) + number, options
        assert known <= found  # for who goes back
        known.update(found)

    computes(1)
    for options in (("--lr", "0.02"), ("--templates", "templates.txt"), ("--batch-size", "3")):
        computes(1, *options)
    computes(0, "--device", "cpu")
    computes(0)
    handles = [os.open(path.parent, os.O_RDONLY) for path in known]
    assert all(map(try_lock, handles))  # as another process that trains there
    assert "another process works on it" in avfs.refused(*arguments, "--name", "kept", status=1)
    for handle in handles:
        os.close(handle)
    clips = list((world / "kept" / CLASSES[0]).glob("?.mp4"))
    for clip in clips:
        os.utime(clip)  # recorded anew
    computes(1)
    for clip in clips:
        shutil.copy(clip, clip.with_stem(f"{clip.stem}-2"))
    computes(1)


def test_finished_runs_are_compared_on_the_clips_that_they_share(avfs, world, light):
    light = light[0]
    blind = avfs.made("fewshot", "--data", "codes", "--shots", "2", "--method", "zero_shot", "--seeds", "1,2",
                      name="blind")  # fmt: skip
    out, _ = avfs("compare", light, blind, "--name", "pair")
    folder = world / "runs" / "compare" / "pair"
    document = json.loads((folder / "compare.json").read_text())
    by_name = {row["system"]: row for row in document["systems"]}
    lines = answers(blind / "seed-1")
    right = {
        run: [line["answers"][system] in line["truth"] for line in answers(run / "seed-1")]
        for run, system in ((light, "auto"), (blind, "zero_shot"))
    }
    assert document["clips"] == len(lines)
    for run, hits in right.items():
        assert by_name[run.name]["estimate"]["value"] == pytest.approx(sum(hits) / len(hits))
    assert by_name[light.name]["labels"] == 6
    assert by_name[light.name]["modality_confusion"]
    [gap] = document["differences"]
    assert (gap["system"], gap["reference"]) == (blind.name, light.name)
    means = {name: row["estimate"]["value"] for name, row in by_name.items()}
    assert gap["value"] == pytest.approx(means[blind.name] - means[light.name])
    assert gap["low"] <= gap["value"] <= gap["high"]
    differing = [line["id"] for line, *pair in zip(lines, *right.values(), strict=True) if len(set(pair)) > 1]
    assert [row["clip"] for row in document["differing"]] == differing
    assert [row["clip"] for row in table(folder / "clips.csv")] == differing
    assert differing[0] in (folder / "compare.html").read_text()
    assert "differences, paired" in out
    assert f"{light.name}: auto, {blind.name}: zero_shot" in " ".join(out.split())
    assert document["runs"][blind.name] == {"method": "zero_shot", "seeds": [1, 2]}
    assert "Means over 2 training runs" in " ".join(out.split())

    # Seeds are paired by their numbers, in whichever order they were run.
    turned = world / "turned"
    shutil.copytree(blind, turned)
    changed = results(turned)
    changed["seeds"].reverse()
    (turned / "results.json").write_text(json.dumps(changed))
    assert list(read_finished(turned).seeds) == [1, 2]

    # What is wrong, where, and what to do.
    lines = turned / "seed-2" / "answers.jsonl"
    lines.write_text(lines.read_text().replace("zero_shot", "other"))
    told = avfs.refused("compare", blind, turned, status=1)
    assert "turned/seed-2/answers.jsonl: is damaged (lacks 'zero_shot')" in told
    for damaged in ("{", "[" * 100_000):
        (turned / "results.json").write_text(damaged)
        assert "turned/results.json: is damaged" in avfs.refused("compare", blind, turned, status=1)
    (turned / "results.json").write_text('{"task": "ave", "seeds": []}')  # as `avfs train` leaves it
    assert "is not the folder of a few-shot run" in avfs.refused("compare", blind, turned)
    (turned / "results.json").unlink()
    assert "avfs fewshot --resume turned" in avfs.refused("compare", blind, "turned")
    assert "cannot be part of a folder's name" in avfs.refused("compare", blind, light, "--name", "../pair")

    assert "two runs or more" in avfs.refused("compare", blind)
    assert "two runs or more" in avfs.refused("compare", blind, blind)
    assert "--shots cannot be given with RUN" in avfs.refused("compare", blind, light, "--shots", "1")
    assert "is no finished run" in avfs.refused("compare", blind, "my_clips")


def test_seconds_are_compared_too_and_runs_on_other_clips_are_not(avfs, world, light, seconds, timo):
    blind = avfs.made("fewshot", "--task", "ave", "--shots", "1", "--method", "zero_shot", name="blind-seconds")
    avfs("compare", blind, seconds, "--name", "seconds")
    document = json.loads((world / "runs" / "compare" / "seconds" / "compare.json").read_text())
    assert document["headline"] == "segment_accuracy"
    for folder, system in ((blind, "zero_shot"), (seconds, "auto")):
        [row] = [row for row in document["systems"] if row["system"] == folder.name]
        assert row["estimate"]["value"] == pytest.approx(cells(folder)[system]["segment_accuracy"]["value"])
    assert "different figures" in avfs.refused("compare", blind, timo[0], status=1)
    told = avfs.refused("compare", light[0], timo[0], status=1)
    assert f"no test clip in common ({light[0].name}: folder, {timo[0].name}: " in told


def test_mtebs_protocol_is_a_row_by_its_own_prompt(avfs, world):
    asked = ("--shots", "1", "--seeds", "1", "--protocol", "mteb", "--methods", "kernel_ridge", "--name", "mteb")
    avfs("compare", "--task", "ave_cls", *asked)
    folder = world / "runs" / "compare" / "mteb"
    [row] = [row for row in table(folder / "compare.csv") if row["system"] == "zero-shot (mteb)"]
    assert row["metric"] == "top1"
    assert row["labels_used"] == "0"
    [cell] = folder.glob("1-shot-*/seed-1")
    paths = [world / "AVE/AVE" / f"{line['id']}.mp4" for line in answers(cell)]
    classifier = avfewshot.load("tiny", device="cpu", templates=world / "mteb.txt")
    found = classifier.classify(paths, list(CLASSES), pool="mean")
    assert [line["answers"]["zero-shot (mteb)"] for line in answers(cell)] == [result.label for result in found]
    alone = classifier.classify(paths, list(CLASSES), pool="mean", modality="audio")
    spoilt = [
        heard.label in line["truth"] and joint.label not in line["truth"]
        for line, joint, heard in zip(answers(cell), found, alone, strict=True)
    ]
    assert float(row["mu_a"]) == pytest.approx(np.mean(spoilt))
    assert row["mu_v"]
    assert "Add --task ave_cls" in avfs.refused("compare", "--task", "ave", "--protocol", "mteb")


@pytest.mark.parametrize("kind", ["lavish", "stg_cma"])
def test_other_adapters_learn_are_saved_and_predict(avfs, kind):
    folder = avfs.made("fewshot", "--data", "my_clips", "--shots", "1", "--method", kind, "--epochs", "1", name=kind)
    assert "trained" in cells(folder)
    config = json.loads(next(folder.glob("seed-1/checkpoints/**/config.json")).read_text())
    assert config["training"]["adapter"] == kind
    assert set(avfs.json("zeroshot", "--adapter", folder, DOG)["clips"][0]["scores"]) == set(CLASSES)


def test_efficiency_is_measured_without_data_beside_the_published_figures(avfs, world):
    out, _ = avfs("compare", "--efficiency", "--runs", "eff")
    rows = {row["system"]: row for row in table(world / "eff/compare/efficiency/efficiency.csv")}
    plain = next(iter(rows.values()))
    assert int(plain["trainable"]) == 0
    for name in ("dgsct", "lavish", "stg_cma", "coop", "maple", "clip-lora"):
        row = rows[name]
        assert int(row["total"]) == int(plain["total"]) + int(row["trainable"])
        assert float(row["gflops"]) >= float(plain["gflops"]) > 1
    assert float(rows["dgsct"]["gflops"]) > float(plain["gflops"])
    published = rows["DG-SCT (Swin-V2-L, HTS-AT)"]
    assert (published["trainable"], round(float(published["percent"]), 1)) == ("201160647", 43.6)
    assert "percentages" in out
    out, _ = avfs("compare", "--efficiency", "--methods", "lavish", "--name", "one")
    assert "lavish" in out
    assert "maple" not in out


@pytest.mark.parametrize(
    ("kind", "keys", "switched"),
    [
        (
            "modules",
            ("spatial", "channel", "temporal"),
            {"C": (False, True, False), "S": (True, False, False), "SC": (True, True, False),
             "T": (False, False, True), "SCT": (True, True, True)},
        ),
        ("directions", ("a2v", "v2a"), {"A2V": (True, False), "V2A": (False, True), "both": (True, True)}),
    ],
)  # fmt: skip
def test_an_ablation_trains_each_row_and_goes_on(kind, keys, switched, avfs, world, monkeypatch):
    arguments = ("compare", "--data", "my_clips", "--ablate", kind, "--shots", "1", "--seeds", "1", "--max-steps", "2",
                 "--lr", "0.01", "--gate-lr", "30", "--gamma", "0.5", "--guided-layers", "1")  # fmt: skip
    out, _ = avfs(*arguments)
    folder, rows = world / "runs" / "compare" / f"folder-{kind}", ["none", *switched]
    assert sorted(row["system"] for row in table(folder / "compare.csv")) == sorted([*rows, "zero-shot"])
    assert list(json.loads((folder / "compare.json").read_text())["ablation"]["rows"]) == rows
    for row in rows:
        [result] = (folder / "1-shot").glob(f"{row}-*/seed-*/result.json")
        assert json.loads(result.read_text())["progress"]["step"] == 2
        checkpoint = next((result.parent / "checkpoints").glob("*/config.json"))
        trained = json.loads(checkpoint.read_text())["training"]
        assert (trained["adapter"] == "none") == (row == "none")
        assert (trained["gamma"], trained["guided_layers"]) == (0.5, 1)
        assert row == "none" or tuple(trained[key] for key in keys) == switched[row]
    page = (folder / "compare.html").read_text()
    assert f"{rows[1]} − {rows[-1]}" in page
    assert f"{rows[1]} − none" in page
    monkeypatch.setattr("avfewshot.training.fewshot.FewShot.train", None)
    assert avfs(*arguments)[0] == out
    assert "--methods means nothing there" in avfs.refused(*arguments, "--methods", "timo")


def test_a_sweep_draws_a_line_for_each_factor_through_the_same_middle(avfs, world, monkeypatch):
    monkeypatch.setattr("avfewshot.cli.compare_grid.SWEEP", (0.0, 0.2))
    avfs("compare", "--data", "my_clips", "--ablate", "factors", "--shots", "1", "--seeds", "1", "--max-steps", "1")
    folder = world / "runs" / "compare" / "folder-factors"
    assert json.loads((folder / "compare.json").read_text())["ablation"]["rows"] == {
        "alpha 0": {"alpha": 0.0}, "beta 0": {"beta": 0.0}, "beta 0.2": {"beta": 0.2},
        "gamma 0": {"gamma": 0.0}, "gamma 0.2": {"gamma": 0.2}, "alpha 0.2 beta 0.05 gamma 0.05": {},
    }  # fmt: skip
    page = (folder / "compare.html").read_text()
    assert page.count('class="dot"') == 2 + 3 + 3
    assert ">0.2</text>" in page
