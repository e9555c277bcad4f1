"""What a newcomer meets first at `avfs fewshot` and `avfs zeroshot --task`: each fault named, with what to do."""

from __future__ import annotations

import json

import pytest
from dataset_files import AVE_FILES, write_files

from avfewshot.cli.app import run
from avfewshot.cli.runs import Run
from avfewshot.config import FewshotConfig, settings_of

CLIPS = "--data clips"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of clips of three classes and the annotation files of AVE without media; no file can be decoded."""
    names = [f"clips/{label}/{number}.mp4" for label in ("bell", "car", "dog") for number in range(4)]
    write_files(tmp_path, dict.fromkeys(names, "x"))
    write_files(tmp_path / "annotations", AVE_FILES)
    write_files(tmp_path / "ave", {**AVE_FILES, "AVE/aaaaaaaaaaa.mp4": "x"})
    write_files(tmp_path, {"file": "x", "run/run.json": "{}"})
    for name in ("empty", "one/dog"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "one/dog/1.mp4").write_text("x")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(folder, capsys):
    """Run a command that must fail before anything is decoded or trained; gives what it says."""

    def call(command: str, status: int, errors: int = 1) -> str:
        assert run(command.split()) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.count("error: ") == errors, captured.err
        assert not (folder / "runs").exists()
        return captured.err

    return call


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--shots 16 --task llp_cls", ["Where is LLP?", "--root DIR", "avfs data toy"]),
        ("--task ave --root nowhere", ["nowhere does not exist", "--root", "avfs data toy"]),
        ("--task folder", ["--task folder needs --data DIR"]),
        ("--task avee --root ave", ["'avee' is not one of", "ave, ave_cls, llp_cls, vggsound_cls, folder"]),
        ("--task ave_cls --data clips", ["--data is for folders of your own clips, not for ave_cls", "--root clips"]),
        ("--data file", ["is a file, not a folder", "FOLDER/dog barking/1.mp4"]),
        (f"{CLIPS} --root ave --media ave --list file", ["--root and --media and --list cannot be given with --data"]),
        (f"{CLIPS} --shots many", ["--shots: a whole number of at least 1", "'many'"]),
        (f"{CLIPS} --pool max", ["--pool: 'max' is not one of mean, event"]),
        (f"{CLIPS} --device gpu", ["--device: 'gpu' is not a device", "cuda"]),
        (f"{CLIPS} --adapter-kind dgsc", ["--adapter-kind: 'dgsc' is not one of dgsct, lavish, stg_cma, none"]),
        (f"{CLIPS} --adapter nowhere", ["--adapter", "nowhere: there is nothing at this path"]),
        (f"{CLIPS} --no-a2v --no-v2a", ["a2v and v2a are both off", "Switch one of them on"]),
        (f"{CLIPS} --adapter-kind none --projector none", ["there is nothing to train", "avfs zeroshot --task TASK"]),
        (f"{CLIPS} --seed 1 --seeds 1,2", ["--seed and --seeds exclude each other"]),
        (f"{CLIPS} --seed x", ["--seed: one whole number"]),
        (f"{CLIPS} --config none.yaml", ["none.yaml: there is no such file", "--config"]),
        (f"{CLIPS} --name ../x", ["--name '../x'", "letters, digits and dashes"]),
        (f"{CLIPS} --name ..", ["--name '..'"]),
        (f"{CLIPS} --runs file", ["--runs file", "is not a folder"]),
        (f"{CLIPS} --shotz 3", ["No such option: --shotz", "--shots"]),
    ],
)
def test_misuse_is_told_with_what_to_do(fails, arguments, parts):
    told = fails(f"fewshot {arguments}", 2)
    for part in parts:
        assert part in told


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--task ave --root empty", ["empty holds no annotation files of AVE", "--root", "avfs data toy"]),
        ("--task ave --root annotations", ["annotation files are there", "none of its 9 clips", "--media DIR"]),
        ("--task ave --root ave --media empty", ["none of its 9 clips below", "empty", "--media DIR"]),
        ("--data empty", ["holds no class folder with clips; at least two", "FOLDER/dog barking/1.mp4"]),
        ("--data one", ["only the class 'dog'; at least two"]),
        (f"{CLIPS} --adapter empty", ["empty: holds no adapter checkpoint", "Give the folder of a run"]),
    ],
)
def test_work_that_cannot_be_done_fails_before_weights_are_read(fails, monkeypatch, arguments, parts):
    def load(*_, **__):
        raise AssertionError("the weights are read")

    import avfewshot.inference.loading  # noqa: F401 - imported first by this test it would keep the stand-in

    monkeypatch.setattr("avfewshot.encoders.backbone.build_backbone", load)
    told = fails(f"fewshot {arguments} --backbone tiny --device cpu", 1)
    for part in parts:
        assert part in told


@pytest.mark.parametrize(
    "command", [f"fewshot {CLIPS}", "fewshot --task ave --root ave", "zeroshot --task ave --root ave"]
)
def test_missing_weights_are_told_before_any_clip_is_read(fails, monkeypatch, command):
    def read(*_, **__):
        raise AssertionError("a clip is read")

    monkeypatch.setattr("avfewshot.media.clip_cache.ClipCache.get", read)
    told = fails(f"{command} --backbone base --device cpu", 1)
    for part in ("The backbone 'base' lacks", "avfs weights fetch base", "--clip-weights"):
        assert part in told


def test_all_faults_of_file_and_flags_come_at_once(fails, folder):
    (folder / "settings.yaml").write_text("shotz: 4\nlr: -1\nepochs: 0\npool: mean\n")
    told = fails(f"fewshot {CLIPS} --config settings.yaml --shots 0 --fusion sum --device gpu --name a/b", 2, errors=7)
    for part in (
        "settings.yaml: shotz is unknown. Did you mean 'shots'?",
        "settings.yaml: lr: a number greater than 0",
        "settings.yaml: epochs: a whole number of at least 1",
        "--shots: a whole number",
        "--fusion: 'sum'",
        "--device: 'gpu'",
        "--name 'a/b' cannot be part of a folder's name.",
    ):
        assert part in told


def test_where_the_data_are_may_stand_in_the_settings_file(fails, folder):
    (folder / "avfs.toml").write_text('[data]\nave = "annotations"\n')
    assert "none of its 9 clips" in fails("fewshot --task ave", 1)


@pytest.fixture
def begun(folder):
    """A run that was begun on the folder of clips."""
    sources = dict.fromkeys(settings_of(FewshotConfig), "default")
    Run(FewshotConfig(data={"data": folder / "clips"}), sources, folder / "begun", "avfs fewshot").claim()
    return folder / "begun"


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ("--shots 4 --lr 1", "--lr 1 (the run: 0.0003), --shots 4 (the run: 16)"),
        ("--no-channel", "--channel false (the run: true)"),
        ("--data empty --shots 16", "--data "),
    ],
)
def test_a_run_goes_on_with_its_own_settings(fails, begun, arguments, shown):
    told = fails(f"fewshot --resume begun {arguments}", 2)
    assert f"it cannot be given with {shown}" in told
    assert "Begin a new run" in told
    assert "16 (the run: 16)" not in told


@pytest.mark.parametrize(
    ("name", "problem"),
    [("empty", "is not the folder of a run"), ("nowhere", "there is no such folder"), ("file", "is not the folder")],
)
def test_what_is_no_run_cannot_be_resumed(fails, name, problem):
    told = fails(f"fewshot --resume {name}", 2)
    assert f"--resume {name}: {problem}" in told
    assert ("run.json" in told) == (name != "nowhere")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', '{"format": 99}', '{"format": 1, "model": []}'])
def test_a_damaged_record_of_a_run_is_told(fails, folder, text):
    (folder / "run/run.json").write_text(text)
    told = fails("fewshot --resume run", 1)
    assert "run.json: " in told
    assert "Begin a new run." in told


def test_wrong_settings_in_the_record_of_a_run_are_told(fails, begun):
    record = json.loads((begun / "run.json").read_text())
    record["config"]["training"]["shots"] = 0
    (begun / "run.json").write_text(json.dumps(record))
    assert "shots: a whole number of at least 1" in fails("fewshot --resume begun", 2)


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--task ave_cls --root ave a.mp4", ["PATH cannot be given with --task"]),
        ("--task ave_cls --root ave --labels file", ["--labels cannot be given with --task", "labels of its own"]),
        ("--task ave_cls --root ave --report x.html", ["--report cannot be given with --task"]),
        ("--task ave_cls --root ave --modality audio", ["--modality cannot be given with --task"]),
        ("--task ave_cls --root ave --segments", ["--segments cannot be given with --task"]),
        ("--task ave_cls --root ave --format json", ["--format cannot be given with --task", ".json, .csv, .md"]),
        ("--task ave_cls --root ave --background sky", ["--background: 'sky' is not one of threshold, prompt, none"]),
        ("--task ave_cls --root ave --output x.txt", ["--output x.txt: its name must end in .json, .csv, .md"]),
        ("--task ave_cls --root ave --output no/x.json", ["--output: there is no folder no", "mkdir -p no"]),
        ("--task ave_cls --root nowhere", ["nowhere does not exist"]),
        ("--task ave_cls", ["Where is AVE?", "--root DIR", "avfs data toy"]),
        ("--task folder --root ave", ["There is no task 'folder'", "ave, ave_cls, llp_cls, vggsound_cls"]),
        ("--root ave", ["--root needs --task", "avfs zeroshot --task"]),
        ("--list file", ["--list needs --task"]),
    ],
)
def test_misuse_of_a_task_without_training_is_told(fails, arguments, parts):
    told = fails(f"zeroshot {arguments}", 2)
    for part in parts:
        assert part in told


def test_all_faults_of_a_task_without_training_come_at_once(fails):
    told = fails("zeroshot --task ave a.mp4 --labels file --topk 0 --fusion sum", 2, errors=6)
    for part in ("PATH", "--labels", "--topk: a whole number", "--fusion: 'sum'", "Where is AVE?"):
        assert part in told


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--root annotations", ["annotation files are there", "none of its 9 clips", "--media DIR"]),
        ("--root ave --adapter empty", ["empty: holds no adapter checkpoint", "Give the folder of a run"]),
    ],
)
def test_a_task_that_cannot_be_judged_fails_before_weights_are_read(fails, arguments, parts):
    told = fails(f"zeroshot --task ave_cls {arguments} --backbone base --device cpu", 1)
    for part in parts:
        assert part in told
