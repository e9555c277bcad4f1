"""Few-shot methods from the command line: `fewshot --method`, `compare`, and predicting with what was learnt."""

from __future__ import annotations

import csv
import json
import os
import shutil
from functools import partial
from io import StringIO
from pathlib import Path

import command_support
import pytest
from fewshot_worlds import CLASSES, write_ave, write_class_folders

import avfewshot
from avfewshot.errors import AvfsError, UsageError
from avfewshot.methods.gda import TIMO
from avfewshot.prompts import load_templates


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("methods")
    write_class_folders(folder / "my_clips")
    for number, name in enumerate(CLASSES):  # names that mean nothing to the text branches
        (folder / "codes").mkdir(exist_ok=True)
        (folder / "codes" / f"class_{number}").symlink_to(folder / "my_clips" / name)
    write_ave(folder / "AVE")
    (folder / "mteb.txt").write_text("a video of {}")
    (folder / "avfs.toml").write_text('backbone = "tiny"\ndevice = "cpu"\n[data]\nave = "AVE"\n')
    return folder


@pytest.fixture(scope="module")
def execute(world):
    return partial(command_support.execute, world, cache=world / "cache")


@pytest.fixture(scope="module")
def call(execute):
    def call(*arguments):
        status, out, err = execute(*arguments)
        assert status == 0, err
        return out, err

    return call


@pytest.fixture(scope="module")
def refuse(execute):
    """What a command says that is misused."""

    def refuse(*arguments):
        status, _, err = execute(*arguments)
        assert status == 2, err
        return err

    return refuse


@pytest.fixture(scope="module")
def light(call, world):
    """A run of light methods alone on class names that mean nothing."""
    out, err = call("fewshot", "--data", "codes", "--shots", "2", "--no-tune", "--name", "light")
    [folder] = (world / "runs" / "folder").glob("*-light")
    return folder, out, err


def test_light_methods_answer_without_training_and_without_validation_labels(light):
    folder, out, err = light
    document = json.loads((folder / "results.json").read_text())
    assert document["labels_used"] == {"support": 6, "validation": 0}
    table = document["comparison"]["cells"]
    assert {"zero-shot", "kernel_ridge", "logistic", "auto"} <= set(table)
    assert "trained" not in table
    assert table["auto"]["top1"]["value"] >= table["zero-shot"]["top1"]["value"]
    assert "left out" in err  # figures of the support, before test clips are read
    assert err.index("left out") < len(err)
    assert "auto" in out
    assert (folder / "methods.html").stat().st_size > 1000
    assert not list(folder.glob("seed-1/checkpoints/*"))


def test_calibration_is_told_before_and_after_on_the_same_clips(light):
    folder, out, err = light
    [seed] = json.loads((folder / "results.json").read_text())["seeds"]
    about = seed["methods"]["auto"]
    assert about["ece"]["left_out"] == {
        end: about["calibration"][f"ece_{end}"] for end in ("before", "after")
    }  # fmt: skip
    assert about["ece"]["test"]["after"] == seed["results"]["auto"]["calibration"]["error"]
    assert about["ece"]["test"]["before"] != about["ece"]["test"]["after"]
    assert "tempered" in err
    assert "tempered" in out
    assert "ECE, tempered" in (folder / "methods.html").read_text()


def test_every_table_tells_labels_time_and_parameters_and_what_the_second_modality_spoils(light):
    folder, out, _ = light
    [seed] = json.loads((folder / "results.json").read_text())["seeds"]
    for name in seed["comparison"]["systems"]:
        about = seed["methods"][name]
        assert sum(about["labels_used"].values()) == (0 if name in ("zero-shot", "CLIP only", "CLAP only") else 6)
        assert about["seconds"] >= 0
        assert about["trainable"] >= 0
    assert "mu_av" in out
    page = (folder / "methods.html").read_text()
    assert "trained parameters" in page
    assert "mu_av" in page
    # By hand, from the answers to each clip.
    lines = [json.loads(line) for line in (folder / "seed-1" / "answers.jsonl").read_text().splitlines()]
    assert len(lines) == seed["comparison"]["num_clips"]
    right = {name: [line["answers"][name] in line["truth"] for line in lines] for name in seed["comparison"]["systems"]}
    assert sum(right["auto"]) / len(lines) == seed["comparison"]["cells"]["auto"]["top1"]["value"]
    spoilt = {
        "mu_v": [v and not both for v, both in zip(right["CLIP only"], right["zero-shot"], strict=True)],
        "mu_a": [a and not both for a, both in zip(right["CLAP only"], right["zero-shot"], strict=True)],
    }
    spoilt["mu_av"] = [v and a for v, a in zip(spoilt["mu_v"], spoilt["mu_a"], strict=True)]
    found = seed["methods"]["zero-shot"]["modality_confusion"]
    assert found == {name: sum(values) / len(lines) for name, values in spoilt.items()}
    assert set(seed["methods"]["auto"]["modality_confusion"]) == set(found)


def test_a_run_predicts_its_own_classes_without_a_label_file(light, call, world):
    folder, _, _ = light
    out, _ = call("zeroshot", "--adapter", folder, "my_clips/dog barking/0.mp4", "--format", "json")
    [clip] = json.loads(out)["clips"]
    assert list(clip["scores"]) == ["class_0", "class_1", "class_2"]
    assert clip["label"] == "class_2"
    assert sum(clip["scores"].values()) == pytest.approx(1, abs=1e-4)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AVFS_CACHE", str(world / "cache"))
        classifier = avfewshot.load(adapter=folder, device="cpu")
        [result] = classifier.classify([world / "my_clips/dog barking/0.mp4"])
        assert classifier.own_labels.names == ("class_0", "class_1", "class_2")
        assert result.label == "class_2"
        assert result.scores["class_2"] == pytest.approx(clip["scores"]["class_2"], abs=0.02)
        [other] = classifier.classify([world / "my_clips/dog barking/0.mp4"], ["class_2", "something new"])
        assert list(other.scores) == ["class_2", "something new"]
        with pytest.raises(UsageError, match="Which labels"):
            avfewshot.load("tiny", device="cpu").classify([world / "my_clips/dog barking/0.mp4"])


def test_classes_come_and_go_in_a_run(call, world):
    call("fewshot", "--data", "codes", "--shots", "2", "--method", "kernel_ridge", "--name", "living")
    [copy] = (world / "runs" / "folder").glob("*-living")
    out, _ = call("learn", copy, "list")
    assert out.splitlines() == ["class_0: 2 clips", "class_1: 2 clips", "class_2: 2 clips"]
    call("learn", copy, "remove", "class_2")
    call("learn", copy, "add", "dogs", "my_clips/dog barking/1.mp4", "my_clips/dog barking/2.mp4")
    out, _ = call("learn", copy, "list")
    assert out.splitlines() == ["class_0: 2 clips", "class_1: 2 clips", "dogs: 2 clips"]
    out, _ = call("zeroshot", "--adapter", copy, "my_clips/dog barking/0.mp4", "--format", "json")
    assert json.loads(out)["clips"][0]["label"] == "dogs"


def special_folder(world, name, none):
    """Two classes and dogs that bark in ``none/`` or in ``-class_0/``."""
    for folder, source in (("class_0", CLASSES[0]), ("class_1", CLASSES[1]), (none, CLASSES[2])):
        (world / name).mkdir(exist_ok=True)
        (world / name / folder).symlink_to(world / "my_clips" / source)


def test_clips_of_none_are_a_class_that_stays_at_inference(call, world):
    special_folder(world, "with_none", "none")
    call("fewshot", "--data", "with_none", "--shots", "3", "--method", "kernel_ridge", "--name", "none")
    [folder] = (world / "runs" / "folder").glob("*-none")
    document = json.loads((folder / "results.json").read_text())
    classes = document["seeds"][0]["results"]["kernel_ridge"]["classes"]
    assert [(row["name"], row["recall"]) for row in classes] == [("class_0", 1), ("class_1", 1), ("none", 1)]
    out, _ = call("zeroshot", "--adapter", folder, "my_clips/dog barking/5.mp4", "--segments", "--format", "json")
    [clip] = json.loads(out)["clips"]
    assert clip["label"] == "none"
    assert list(clip["scores"]) == ["class_0", "class_1", "none"]
    assert sum(clip["scores"].values()) == pytest.approx(1, abs=1e-4)
    assert {part["label"] for part in clip["segments"]} == {"none"}
    out, _ = call("zeroshot", "--adapter", folder, "--label", "class_0", "--label", "class_1",
                    "my_clips/dog barking/5.mp4", "--format", "json")  # fmt: skip
    assert "none of the labels fits" in json.loads(out)["clips"][0]["warnings"][0]
    out, _ = call("learn", folder, "list")
    assert out.splitlines() == ["class_0: 3 clips", "class_1: 3 clips", "none: 3 clips"]
    call("learn", folder, "add", "none", "my_clips/dog barking/5.mp4")
    out, _ = call("learn", folder, "list")
    assert out.splitlines()[-1] == "none: 4 clips"
    call("learn", folder, "remove", "none")
    out, _ = call("learn", folder, "list")
    assert out.splitlines() == ["class_0: 3 clips", "class_1: 3 clips"]


def test_counter_examples_keep_their_like_out_of_a_class(call, world):
    special_folder(world, "with_counter", "-class_0")
    scores = {}
    for name, data in (("counter", "with_counter"), ("plain", "plain")):
        if data == "plain":
            (world / data).mkdir()
            for folder in ("class_0", "class_1"):
                (world / data / folder).symlink_to(world / "with_counter" / folder)
        call("fewshot", "--data", data, "--shots", "3", "--method", "kernel_ridge", "--name", name)
        [folder] = (world / "runs" / "folder").glob(f"*-{name}")
        out, _ = call("zeroshot", "--adapter", folder, "my_clips/dog barking/5.mp4", "--format", "json")
        scores[name] = json.loads(out)["clips"][0]["scores"]["class_0"]
        used = json.loads((folder / "results.json").read_text())["seeds"][0]["methods"]["kernel_ridge"]["labels_used"]
        assert used.get("counter-examples", 0) == (6 if name == "counter" else 0)
        assert json.loads((folder / "results.json").read_text())["labels_used"] == used
        assert ("counter-examples" in (folder / "methods.html").read_text()) == (name == "counter")
    assert scores["counter"] < 0.5 * scores["plain"]


def test_unknown_clips_are_rejected_at_the_stated_rate(call, refuse, world):
    special_folder(world, "two", "-nothing")
    (world / "two" / "-nothing").unlink()
    _, err = call("fewshot", "--data", "two", "--shots", "4", "--no-tune", "--name", "reject")
    [folder] = (world / "runs" / "folder").glob("*-reject")
    assert "`unknown`" in err
    assert "false accepts" in err
    stated = json.loads((folder / "results.json").read_text())["seeds"][0]["methods"]["auto"]["reject"]
    assert stated["keep"] == 0.95
    assert stated["clips"] == 8
    assert "unknown" in (folder / "methods.html").read_text()
    clips = ["my_clips/dog barking/5.mp4", "my_clips/car honking/5.mp4", "my_clips/clock ticking/5.mp4"]
    page = ["--report", "reject.html", "--output", "reject.json"]
    _, err = call("zeroshot", "--adapter", folder, "--reject", *page, *clips)
    document = json.loads((world / "reject.json").read_text())
    assert [clip["label"] for clip in document["clips"]] == ["class_0", "class_1", "unknown"]  # in order of their paths
    assert document["clips"][2]["score"] == pytest.approx(max(document["clips"][2]["scores"].values()), abs=1e-5)
    assert document["reject"] == stated
    assert "false accepts" in (world / "reject.html").read_text()
    assert "false rejects" in err
    out, _ = call("zeroshot", "--adapter", folder, "--reject", clips[0])
    assert "unknown" in out.splitlines()[0]
    out, _ = call("zeroshot", "--adapter", folder, clips[0], "--format", "json")
    assert json.loads(out)["clips"][0]["label"] in ("class_0", "class_1")
    assert "reject" not in json.loads(out)
    # Lines of one file agree in what was asked for.
    call("zeroshot", "--adapter", folder, "--output", "plain.jsonl", clips[0])
    for flag in ("--reject", "--multi-label"):
        told = refuse("zeroshot", "--adapter", folder, "--output", "plain.jsonl", flag, *clips)
        assert "results of another run" in told
    assert "none of dog" in refuse("zeroshot", "--adapter", folder, "--reject", "--label", "dog", clips[0])
    assert "Add --adapter RUN" in refuse("zeroshot", "--reject", "--label", "dog", clips[0])
    assert "--reject cannot be given with --task" in refuse("zeroshot", "--reject", "--task", "ave")
    call("fewshot", "--data", "two", "--shots", "1", "--no-tune", "--name", "one")
    [folder] = (world / "runs" / "folder").glob("*-one")
    assert "at least two clips a class" in refuse("zeroshot", "--adapter", folder, "--reject", clips[0])


def test_clips_carry_several_labels(call, world):
    """Cars that honk and dogs that bark, some of them in a third folder too, by links."""
    for name, source in (("cars", CLASSES[0]), ("dogs", CLASSES[2]), ("loud", CLASSES[0])):
        (world / "several" / name).mkdir(parents=True)
        for number in range(6):
            (world / "several" / name / f"{number}.mp4").symlink_to(world / "my_clips" / source / f"{number}.mp4")
    call("fewshot", "--data", "several", "--shots", "3", "--multi-label", "--no-tune", "--name", "several")
    [folder] = (world / "runs" / "folder").glob("*-several")
    document = json.loads((folder / "results.json").read_text())
    assert document["comparison"]["headline"] == "hit_at_1"
    assert document["comparison"]["cells"]["auto"]["macro_f1_sets"]["value"] == 1
    thresholds = json.loads((folder / "seed-1" / "scorer" / "scorer.json").read_text())["thresholds"]
    assert set(thresholds) == {"cars", "dogs", "loud"}
    clips = ["my_clips/car honking/5.mp4", "my_clips/dog barking/5.mp4"]
    out, _ = call("zeroshot", "--adapter", folder, "--multi-label", *clips, "--format", "json")
    assert [sorted(clip["labels"]) for clip in json.loads(out)["clips"]] == [["cars", "loud"], ["dogs"]]
    out, _ = call("zeroshot", "--adapter", folder, "--multi-label", *clips, "--format", "csv")
    assert [set(row["labels"].split("; ")) for row in csv.DictReader(StringIO(out))] == [{"cars", "loud"}, {"dogs"}]
    out, _ = call("zeroshot", "--adapter", folder, *clips, "--format", "json")
    assert all("labels" not in clip for clip in json.loads(out)["clips"])


def test_without_a_run_labels_that_stand_out_are_given(call):
    labels = [part for name in (*CLASSES, "boat", "kettle", "bird") for part in ("--label", name)]
    out, _ = call("zeroshot", *labels, "--multi-label", "my_clips/dog barking/5.mp4", "--format", "jsonl")
    clip = json.loads(out)
    assert clip["labels"][0] == clip["label"] == "dog barking"
    assert len(clip["labels"]) < 6
    assert clip["warnings"] == []


def test_auto_trains_and_joins_and_the_joined_run_predicts(call, world):
    arguments = ["--data", "my_clips", "--shots", "2", "--epochs", "1", "--hidden", "8", "--workers", "0"]
    _, err = call("fewshot", *arguments, "--name", "joined")
    [folder] = (world / "runs" / "folder").glob("*-joined")
    document = json.loads((folder / "results.json").read_text())
    assert {"trained", "auto", "kernel_ridge"} <= set(document["comparison"]["cells"])
    assert document["labels_used"]["validation"] > 0
    assert "auto: DG-SCT" in err
    assert (folder / "report.html").is_file()
    assert (folder / "methods.html").is_file()
    out, _ = call("zeroshot", "--adapter", folder, "my_clips/dog barking/0.mp4", "--format", "json")
    assert json.loads(out)["clips"][0]["label"] == "dog barking"


def test_seconds_and_their_background_by_light_methods(call, world):
    call("fewshot", "--task", "ave", "--shots", "2", "--no-tune", "--name", "seconds")
    [folder] = (world / "runs" / "ave").glob("*-seconds")
    cells = json.loads((folder / "results.json").read_text())["comparison"]["cells"]
    assert {"auto", "zero-shot"} <= set(cells)
    assert cells["auto"]["segment_accuracy"]["value"] is not None
    out, _ = call("zeroshot", "--adapter", folder, "AVE/AVE", "--segments", "--format", "json")
    clips = json.loads(out)["clips"]
    found = {part["label"] for clip in clips for part in clip["segments"]}
    assert "background" in found  # learnt, and kept at inference
    assert found <= {"background", *CLASSES}
    assert all(clip["label"] in clip["scores"] for clip in clips)


def test_one_clip_a_class_is_learnt_and_saved_without_a_test_clip(call, world):
    for number, name in enumerate(CLASSES):
        (world / "single" / f"class_{number}").mkdir(parents=True)
        (world / "single" / f"class_{number}" / "0.mp4").symlink_to(world / "my_clips" / name / "0.mp4")
    out, _ = call("fewshot", "--data", "single", "--shots", "1", "--no-tune", "--name", "single")
    assert "There was no test clip" in out
    [folder] = (world / "runs" / "folder").glob("*-single")
    assert json.loads((folder / "results.json").read_text())["comparison"] is None
    out, _ = call("zeroshot", "--adapter", folder, "my_clips/dog barking/1.mp4", "--format", "json")
    assert json.loads(out)["clips"][0]["label"] == "class_2"


def test_a_single_method(call, world, monkeypatch):
    seen, fit = [], TIMO.fit_evidence

    def watched(method, rows, targets, **options):
        seen.append({name: prompts.shape[:2] for name, prompts in rows.templates.items()})
        return fit(method, rows, targets, **options)

    monkeypatch.setattr(TIMO, "fit_evidence", watched)
    call("fewshot", "--data", "my_clips", "--shots", "1", "--method", "timo", "--name", "timo", "--templates", "video")
    templates = load_templates("video")
    wanted = {name: (len(CLASSES), len(getattr(templates, name))) for name in ("visual", "audio")}
    assert seen
    assert all(shapes == wanted for shapes in seen)  # each prompt's own vector, weighted by the clips
    [folder] = (world / "runs" / "folder").glob("*-timo")
    assert "timo" in json.loads((folder / "results.json").read_text())["comparison"]["cells"]


@pytest.mark.parametrize("method", ["coop", "cocoop", "maple", "clip-lora"])
def test_a_tuned_run_predicts_as_it_was_evaluated(method, call, refuse, world):
    few = ("--max-steps", "3")  # CLIP-LoRA's recipe has hundreds
    call("fewshot", "--data", "codes", "--shots", "1", "--method", method, *few, "--name", f"tuned-{method}")
    [folder] = (world / "runs" / "folder").glob(f"*-tuned-{method}")
    about = json.loads((folder / "results.json").read_text())["seeds"][0]["methods"][method]
    assert about["labels_used"] == {"support": 3, "validation": 0}
    assert about["trainable"] > 0
    lines = [json.loads(line) for line in (folder / "seed-1" / "answers.jsonl").read_text().splitlines()]
    out, _ = call("zeroshot", "--adapter", folder, *(f"codes/{line['id']}" for line in lines), "--format", "json")
    clips = json.loads(out)["clips"]
    assert [clip["label"] for clip in clips] == [line["answers"][method] for line in lines]
    frozen, _ = call("zeroshot", "--label", "class_0", "--label", "class_1", "--label", "class_2",
                     *(f"codes/{line['id']}" for line in lines), "--format", "json")  # fmt: skip
    assert [clip["scores"] for clip in json.loads(frozen)["clips"]] != [clip["scores"] for clip in clips]
    classifier = avfewshot.load(adapter=folder, device="cpu")
    [result] = classifier.classify([world / "codes" / lines[0]["id"]])
    assert result.scores == pytest.approx(clips[0]["scores"], abs=0.02)
    [other] = classifier.classify([world / "codes" / lines[0]["id"]], ["dog", "car", "class 1"])
    assert list(other.scores) == ["dog", "car", "class 1"]
    if method == "coop":
        with pytest.raises(UsageError, match="too long behind the 10 context vectors"):
            classifier.classify([world / "codes" / lines[0]["id"]], ["a dog that is barking at a clock", "car"])
    assert "learnt on frozen embeddings" in refuse("zeroshot", "--adapter", folder, "--reject", "my_clips")
    (folder / "seed-1" / method / "tuned.safetensors").write_bytes(b"damaged")
    with pytest.raises(AvfsError, match=r"tuned\.safetensors|no tuned method"):
        avfewshot.load(adapter=folder, device="cpu")


@pytest.mark.parametrize(
    ("method", "figure", "rule"),
    [("kernel_ridge", "loo_log_loss", "left-out clips"), ("coop", "support_loss", "lowest loss on its support")],
)
def test_the_seed_that_answers_for_a_run_is_chosen_without_test_clips_and_told(method, figure, rule, call, world):
    name = f"seeds-{method}"
    few = ("--shots", "2", "--max-steps", "3")
    _, err = call("fewshot", "--data", "codes", *few, "--method", method, "--seeds", "1,2", "--name", name)
    [folder] = (world / "runs" / "folder").glob(f"*-{name}")
    document = json.loads((folder / "results.json").read_text())
    losses = {seed["seed"]: seed["methods"][method][figure] for seed in document["seeds"]}
    assert document["chosen"]["seed"] == min(losses, key=losses.get)
    assert rule in document["chosen"]["why"]
    assert f"Seed {document['chosen']['seed']} answers for the run" in err
    assert rule in (folder / "methods.html").read_text()

    def scores(path):
        [result] = avfewshot.load(adapter=path, device="cpu").classify([world / "my_clips/dog barking/5.mp4"])
        return result.scores

    single = {seed: scores(folder / f"seed-{seed}") for seed in (1, 2)}
    assert single[1] != single[2]
    assert scores(folder) == single[document["chosen"]["seed"]]
    # What the run says is what counts: the other one, once it is named.
    other = 3 - document["chosen"]["seed"]
    (folder / "chosen.json").write_text(json.dumps({"seed": other}))
    assert scores(folder) == single[other]
    (folder / "chosen.json").write_text(json.dumps({"seed": 7}))
    with pytest.raises(AvfsError, match="names a seed that is not there"):
        scores(folder)


def test_trained_adapters_of_several_seeds_answer_by_their_validation(call, world):
    arguments = ["--data", "my_clips", "--shots", "1", "--epochs", "1", "--hidden", "8", "--workers", "0"]
    _, err = call("fewshot", *arguments, "--method", "dgsct", "--seeds", "1,2", "--name", "adapters")
    [folder] = (world / "runs" / "folder").glob("*-adapters")
    chosen = json.loads((folder / "results.json").read_text())["chosen"]
    assert "validation" in chosen["why"]
    assert "answers for the run" in err
    out, _ = call("zeroshot", "--adapter", folder, "my_clips/dog barking/5.mp4", "--format", "json")
    one, _ = call("zeroshot", "--adapter", folder / f"seed-{chosen['seed']}", "my_clips/dog barking/5.mp4",
                  "--format", "json")  # fmt: skip
    assert json.loads(out)["clips"] == json.loads(one)["clips"]


def test_compare_writes_a_table_for_each_number_of_shots_and_goes_on(call, refuse, world, monkeypatch):
    arguments = ["compare", "--data", "codes", "--shots", "1,2", "--seeds", "1,2", "--name", "both"]
    out, _ = call(*arguments)
    folder = world / "runs" / "compare" / "both"
    rows = list(csv.DictReader((folder / "compare.csv").open()))
    assert {row["shots"] for row in rows} == {"1", "2"}
    assert {"auto", "kernel_ridge", "zero-shot"} <= {row["system"] for row in rows}
    assert all(0 <= float(row["low"]) <= float(row["value"]) <= float(row["high"]) <= 1 for row in rows)
    assert all(row["mu_av"] for row in rows if row["system"] in ("auto", "zero-shot"))
    assert all(row["labels_used"] and row["fit_seconds"] and row["trainable"] for row in rows)
    assert "<svg" in (folder / "compare.html").read_text()
    cells = "*-shot-*/seed-*/result.json"
    kept = {path: path.stat().st_mtime_ns for path in Path(folder).glob(cells)}
    assert len(kept) == 4
    with monkeypatch.context() as patch:  # what is done is neither read nor embedded again
        patch.setattr("avfewshot.training.fewshot.readable_support", None)
        patch.setattr("avfewshot.training.fewshot.on_test_clips", None)
        again, _ = call(*arguments)
    assert again == out
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())
    # A further method is not there yet.
    call(*arguments, "--methods", "auto,timo")
    rows = list(csv.DictReader((folder / "compare.csv").open()))
    assert sum(row["system"] == "timo" for row in rows) == 2
    # Seeds come and go; the cells of those that stay are as they were.
    with monkeypatch.context() as patch:
        patch.setattr("avfewshot.training.fewshot.on_test_clips", None)
        call(*arguments, "--seeds", "1")


@pytest.fixture(scope="module")
def compared(call, world):
    """A comparison of one cell on clips of its own."""
    write_class_folders(world / "kept")
    arguments = ("compare", "--data", "kept", "--shots", "1", "--seeds", "1", "--name", "kept")
    call(*arguments)
    return arguments, world / "runs" / "compare" / "kept"


@pytest.mark.parametrize(
    ("options", "fresh"),
    [
        (["--lr", "0.02"], True),
        (["--templates", "templates.txt"], True),
        (["--batch-size", "3"], True),
        (["--device", "cpu"], False),
        ([], False),
        ("clips more", True),
        ("clips recorded anew", True),
    ],
)
def test_what_decides_figures_computes_its_own_cells_under_the_same_name(options, fresh, compared, call, world):
    arguments, folder = compared
    (world / "templates.txt").write_text("this is {}")
    before = dict.fromkeys(folder.glob("1-shot-*/seed-1/result.json"))
    if isinstance(options, str):
        for clip in (world / "kept" / CLASSES[0]).glob("?.mp4"):
            shutil.copy(clip, clip.with_stem(f"{clip.stem}-2")) if "more" in options else os.utime(clip)
        options = []
    call(*arguments, *options)
    after = dict.fromkeys(folder.glob("1-shot-*/seed-1/result.json"))
    assert len(after) == len(before) + fresh
    # Those of before are still there for who goes back.
    assert before.keys() <= after.keys()


def test_compare_tells_where_each_system_wins(call, world):
    out, _ = call("compare", "--data", "codes", "--shots", "1,2", "--seeds", "1,2", "--name", "wins")
    document = json.loads((world / "runs" / "compare" / "wins" / "compare.json").read_text())
    for table in document["tables"]:
        top = max(row["estimate"]["value"] for row in table["systems"])
        best = {row["system"] for row in table["systems"] if row["estimate"]["value"] == top}
        title = f"{table['shots']} shots"
        assert best == {row["system"] for row in document["wins"] if title in row["best"].split(", ")}
        level = {row["system"] for row in document["wins"] if title in row["not clearly worse than the best"]}
        assert not best & level
    assert "where each wins" in out
    assert "where each wins" in (world / "runs" / "compare" / "wins" / "compare.html").read_text()


def test_finished_runs_are_compared_on_the_clips_that_they_share(call, refuse, world, light):
    call("fewshot", "--data", "codes", "--shots", "2", "--method", "zero_shot", "--seeds", "1,2", "--name", "blind")
    [blind] = (world / "runs" / "folder").glob("*-blind")
    out, _ = call("compare", light[0], blind, "--name", "pair")
    folder = world / "runs" / "compare" / "pair"
    document = json.loads((folder / "compare.json").read_text())
    by_name = {row["system"]: row for row in document["systems"]}
    answers = {
        one: [json.loads(line) for line in (one / "seed-1" / "answers.jsonl").read_text().splitlines()]
        for one in (light[0], blind)
    }
    right = {
        one: [line["answers"][system] in line["truth"] for line in answers[one]]
        for one, system in ((light[0], "auto"), (blind, "zero_shot"))
    }
    assert document["clips"] == len(right[blind])
    for folder_of, hits in right.items():
        assert by_name[folder_of.name]["estimate"]["value"] == pytest.approx(sum(hits) / len(hits))
    assert by_name[light[0].name]["labels"] == 6
    assert by_name[light[0].name]["modality_confusion"]
    [gap] = document["differences"]
    assert (gap["system"], gap["reference"]) == (blind.name, light[0].name)
    means = {name: row["estimate"]["value"] for name, row in by_name.items()}
    assert gap["value"] == pytest.approx(means[blind.name] - means[light[0].name])
    assert gap["low"] <= gap["value"] <= gap["high"]
    differing = [line["id"] for line, *pair in zip(answers[blind], *right.values(), strict=True) if len(set(pair)) > 1]
    assert [row["clip"] for row in document["differing"]] == differing
    assert [row["clip"] for row in csv.DictReader((folder / "clips.csv").open())] == differing
    assert differing[0] in (folder / "compare.html").read_text()
    assert "differences, paired" in out

    assert "two runs or more" in refuse("compare", blind)
    assert "two runs or more" in refuse("compare", blind, blind)
    assert "--shots cannot be given with RUN" in refuse("compare", blind, light[0], "--shots", "1")
    assert "is no finished run" in refuse("compare", blind, "my_clips")


def test_seconds_are_compared_too_and_runs_on_other_clips_are_not(call, execute, world, light):
    for name, data, method in (
        ("one", ["--task", "ave"], "zero_shot"),
        ("two", ["--task", "ave"], "kernel_ridge"),
        ("named", ["--data", "my_clips"], "zero_shot"),
    ):
        call("fewshot", *data, "--shots", "1", "--method", method, "--name", f"compared-{name}")
    one, two, named = (
        next((world / "runs").glob(f"*/*-compared-{name}")) for name in ("one", "two", "named")
    )  # fmt: skip
    call("compare", one, two, "--name", "seconds")
    document = json.loads((world / "runs" / "compare" / "seconds" / "compare.json").read_text())
    assert document["headline"] == "segment_accuracy"
    for folder, system in ((one, "zero_shot"), (two, "kernel_ridge")):
        cells = json.loads((folder / "results.json").read_text())["comparison"]["cells"]
        [row] = [row for row in document["systems"] if row["system"] == folder.name]
        assert row["estimate"]["value"] == pytest.approx(cells[system]["segment_accuracy"]["value"])
    for pair, told in (((one, named), "different figures"), ((light[0], named), "no test clip in common")):
        status, _, err = execute("compare", *pair)
        assert status == 1
        assert told in err


def test_mtebs_protocol_is_a_row_by_its_own_prompt(call, refuse, world):
    call("compare", "--task", "ave_cls", "--shots", "1", "--seeds", "1", "--protocol", "mteb", "--name", "mteb")
    rows = list(csv.DictReader((world / "runs" / "compare" / "mteb" / "compare.csv").open()))
    [row] = [row for row in rows if row["system"] == "zero-shot (mteb)"]
    assert row["metric"] == "top1"
    assert row["labels_used"] == "0"
    [answers] = (world / "runs/compare/mteb").glob("1-shot-*/seed-1/answers.jsonl")
    lines = answers.read_text().splitlines()
    answers = [json.loads(line)["answers"]["zero-shot (mteb)"] for line in lines]
    classifier = avfewshot.load("tiny", device="cpu", templates=world / "mteb.txt")
    paths = [world / "AVE/AVE" / f"{json.loads(line)['id']}.mp4" for line in lines]
    assert answers == [result.label for result in classifier.classify(paths, list(CLASSES), pool="mean")]
    assert "Add --task ave_cls" in refuse("compare", "--task", "ave", "--protocol", "mteb")


@pytest.mark.parametrize("kind", ["lavish", "stg_cma"])
def test_other_adapters_learn_are_saved_and_predict(call, world, kind):
    folder = "runs/folder"
    call("fewshot", "--data", "my_clips", "--shots", "1", "--method", kind, "--epochs", "1", "--name", kind)
    [run_folder] = (world / folder).glob(f"*-{kind}")
    document = json.loads((run_folder / "results.json").read_text())
    assert "trained" in document["comparison"]["cells"]
    config = json.loads(next(run_folder.glob("seed-1/checkpoints/**/config.json")).read_text())
    assert config["training"]["adapter"] == kind

    out, _ = call("zeroshot", "--adapter", run_folder, "my_clips/dog barking/0.mp4", "--format", "json")
    [clip] = json.loads(out)["clips"]
    assert set(clip["scores"]) == set(CLASSES)


def test_efficiency_is_measured_without_data_beside_the_published_figures(call, world):
    out, _ = call("compare", "--efficiency", "--runs", "eff")
    rows = {
        row["system"]: row for row in csv.DictReader((world / "eff/compare/efficiency/efficiency.csv").open())
    }  # fmt: skip
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
    out, _ = call("compare", "--efficiency", "--methods", "lavish", "--name", "one")
    assert "lavish" in out
    assert "maple" not in out


@pytest.mark.parametrize(
    ("kind", "rows", "switched"),
    [
        ("modules", ["none", "C", "S", "SC", "T", "SCT"], {"S": (True, False, False), "SC": (True, True, False)}),
        ("directions", ["none", "A2V", "V2A", "both"], {}),
    ],
)
def test_an_ablation_trains_each_row_and_goes_on(kind, rows, switched, call, refuse, world, monkeypatch):
    arguments = ["compare", "--data", "my_clips", "--ablate", kind, "--shots", "1", "--seeds", "1", "--max-steps", "2",
                 "--lr", "0.01", "--gate-lr", "30", "--gamma", "0.5", "--guided-layers", "1"]  # fmt: skip
    out, _ = call(*arguments)
    folder = world / "runs" / "compare" / f"folder-{kind}"
    table = list(csv.DictReader((folder / "compare.csv").open()))
    assert sorted(row["system"] for row in table) == sorted([*rows, "zero-shot"])
    document = json.loads((folder / "compare.json").read_text())
    assert list(document["ablation"]["rows"]) == rows
    trained = {}
    for row in rows:
        [result] = (folder / "1-shot").glob(f"{row}-*/seed-*/result.json")
        assert json.loads(result.read_text())["progress"]["step"] == 2
        checkpoint = next((result.parent / "checkpoints").glob("*/config.json"))
        trained[row] = json.loads(checkpoint.read_text())["training"]
    assert trained["none"]["adapter"] == "none"
    assert {(values["gamma"], values["guided_layers"]) for values in trained.values()} == {(0.5, 1)}
    for row, parts in switched.items():
        assert tuple(trained[row][key] for key in ("spatial", "channel", "temporal")) == parts
    if kind == "directions":
        assert [(trained[r]["a2v"], trained[r]["v2a"]) for r in rows[1:]] == [
            (True, False),
            (False, True),
            (True, True),
        ]
    page = (folder / "compare.html").read_text()
    assert f"{rows[1]} − {rows[-1]}" in page
    assert f"{rows[1]} − none" in page
    with monkeypatch.context() as patch:
        patch.setattr("avfewshot.training.fewshot.FewShot.train", None)
        assert call(*arguments)[0] == out
    assert "--methods means nothing there" in refuse(*arguments, "--methods", "timo")


def test_a_sweep_draws_a_line_for_each_factor_through_the_same_middle(call, world, monkeypatch):
    monkeypatch.setattr("avfewshot.cli.compare.SWEEP", (0.0, 0.2))
    call("compare", "--data", "my_clips", "--ablate", "factors", "--shots", "1", "--seeds", "1", "--max-steps", "1")
    folder = world / "runs" / "compare" / "folder-factors"
    rows = json.loads((folder / "compare.json").read_text())["ablation"]["rows"]
    assert rows == {
        "alpha 0": {"alpha": 0.0}, "beta 0": {"beta": 0.0}, "beta 0.2": {"beta": 0.2},
        "gamma 0": {"gamma": 0.0}, "gamma 0.2": {"gamma": 0.2}, "alpha 0.2 beta 0.05 gamma 0.05": {},
    }  # fmt: skip
    page = (folder / "compare.html").read_text()
    assert page.count('class="dot"') == 2 + 3 + 3
    assert ">0.2</text>" in page
