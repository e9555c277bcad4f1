"""What a newcomer meets first at `avfs fewshot` and `avfs zeroshot --task`: each fault named, with what to do."""

import json

import pytest
from dataset_files import AVE_FILES, write_files

from avfewshot.cli.app import run
from avfewshot.cli.runs import Run
from avfewshot.config import FewshotConfig, settings_of

CLIPS = "fewshot --data clips"
AVE = "zeroshot --task ave_cls --root ave"
NO_CLIPS = ["annotation files are there", "none of its 9 clips", "--media DIR"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of clips of three classes and the annotation files of AVE without media; no file can be decoded."""
    names = [f"clips/{label}/{number}.mp4" for label in ("bell", "car", "dog") for number in range(4)]
    write_files(tmp_path, dict.fromkeys(names, "x"))
    write_files(tmp_path / "annotations", AVE_FILES)
    write_files(tmp_path / "ave", {**AVE_FILES, "AVE/aaaaaaaaaaa.mp4": "x"})
    write_files(tmp_path, {"file": "x", "run/run.json": "{}", "one/dog/1.mp4": "x"})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def fails(folder, capsys):
    """Run a command that must fail before anything is decoded or trained, and look for parts of what it says."""

    def call(command: str, status: int, *parts: str, errors: int = 1) -> str:
        assert run(command.split()) == status
        captured = capsys.readouterr()
        assert captured.out == ""
        assert "Traceback" not in captured.err
        assert captured.err.count("error: ") == errors, captured.err
        assert not (folder / "runs").exists()
        assert [part for part in parts if part not in captured.err] == [], captured.err
        return captured.err

    return call


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("fewshot --task ave --root nowhere", ["nowhere does not exist", "--root", "avfs data toy"]),
        ("fewshot --task folder", ["--task folder needs --data DIR"]),
        ("fewshot --task folder --root nowhere", ["nowhere does not exist", "FOLDER/dog barking/1.mp4"]),
        ("compare --task folder --root nowhere", ["nowhere does not exist", "FOLDER/dog barking/1.mp4"]),
        (f"{CLIPS} --task ave_cls", ["--data is for folders of your own clips, not for ave_cls", "--root clips"]),
        ("fewshot --data file", ["is a file, not a folder", "FOLDER/dog barking/1.mp4"]),
        (f"{CLIPS} --root ave --media ave --list file", ["--root and --media and --list cannot be given with --data"]),
        (f"{CLIPS} --shots many", ["--shots: a whole number of at least 1", "'many'"]),
        (f"{CLIPS} --pool max", ["--pool: 'max' is not one of mean, event"]),
        (f"{CLIPS} --device gpu", ["--device: 'gpu' is not a device", "cuda"]),
        (f"{CLIPS} --adapter-kind dgsc", ["--adapter-kind: 'dgsc' is not one of dgsct, lavish, stg_cma, none"]),
        ("compare --data clips --methods gda,auto,gda", ["--methods: 'gda' is given twice"]),
        ("compare --data clips --audio-context clip,clip", ["--audio-context: 'clip' is given twice"]),
        ("compare --data clips --shots 2,2", ["--shots: different whole numbers"]),
        (f"{CLIPS} --adapter nowhere", ["--adapter", "nowhere: there is nothing at this path"]),
        (f"{CLIPS} --no-a2v --no-v2a", ["a2v and v2a are both off", "Switch one of them on"]),
        (f"{CLIPS} --adapter-kind none --projector none", ["there is nothing to train", "avfs zeroshot --task TASK"]),
        (f"{CLIPS} --seed 1 --seeds 1,2", ["--seed and --seeds exclude each other"]),
        (f"{CLIPS} --seed x", ["--seed: one whole number"]),
        (f"{CLIPS} --config none.yaml", ["none.yaml: there is no such file", "--config"]),
        (f"{CLIPS} --name ../x", ["--name '../x'", "letters, digits and dashes"]),
        (f"{CLIPS} --runs file", ["--runs file", "is not a folder"]),
        ("fewshot --resume file", ["--resume file: is not the folder", "run.json"]),
        (f"{AVE} a.mp4", ["PATH cannot be given with --task"]),
        (f"{AVE} --report x.html", ["--report cannot be given with --task"]),
        (f"{AVE} --modality audio", ["--modality cannot be given with --task"]),
        (f"{AVE} --segments", ["--segments cannot be given with --task"]),
        (f"{AVE} --format json", ["--format cannot be given with --task", ".json, .csv, .md"]),
        (f"{AVE} --background sky", ["--background: 'sky' is not one of threshold, prompt, none"]),
        (f"{AVE} --output x.txt", ["--output x.txt: its name must end in .json, .csv, .md"]),
        (f"{AVE} --output no/x.json", ["--output: there is no folder no", "mkdir -p no"]),
        ("zeroshot --task ave_cls --root nowhere", ["nowhere does not exist"]),
        ("zeroshot --task folder --root ave", ["There is no task 'folder'", "ave, ave_cls, llp_cls, vggsound_cls"]),
        ("zeroshot --root ave", ["--root needs --task", "avfs zeroshot --task"]),
        ("zeroshot --list file", ["--list needs --task"]),
    ],
)
def test_misuse_is_told_with_what_to_do(fails, command, parts):
    fails(command, 2, *parts)


@pytest.mark.parametrize(
    ("command", "parts"),
    [
        ("fewshot --task ave --root empty", ["empty holds no annotation files of AVE", "--root", "avfs data toy"]),
        ("fewshot --task ave --root annotations", NO_CLIPS),
        ("fewshot --task ave --root ave --media empty", ["none of its 9 clips below", "empty", "--media DIR"]),
        ("fewshot --data empty", ["holds no class folder with clips; at least two", "FOLDER/dog barking/1.mp4"]),
        ("fewshot --data one", ["only the class 'dog'; at least two"]),
        (f"{CLIPS} --adapter empty", ["empty: holds no adapter checkpoint", "Give the folder of a run"]),
        ("zeroshot --task ave --root annotations", NO_CLIPS),
        (f"{AVE} --adapter empty", ["empty: holds no adapter checkpoint", "Give the folder of a run"]),
    ],
)
def test_work_that_cannot_be_done_fails_before_weights_are_read(fails, monkeypatch, command, parts):
    def load(*_, **__):
        raise AssertionError("the weights are read")

    import avfewshot.inference.loading  # noqa: F401 - imported first by this test it would keep the stand-in

    monkeypatch.setattr("avfewshot.encoders.backbone.build_backbone", load)
    monkeypatch.setattr("avfewshot.inference.loading.build_backbone", load)
    fails(f"{command} --backbone tiny --device cpu", 1, *parts)


@pytest.mark.parametrize("command", [CLIPS, "fewshot --task ave --root ave", "zeroshot --task ave --root ave"])
def test_missing_weights_are_told_before_any_clip_is_read(fails, monkeypatch, command):
    def read(*_, **__):
        raise AssertionError("a clip is read")

    monkeypatch.setattr("avfewshot.media.clip_cache.ClipCache.get", read)
    parts = ("The backbone 'base' lacks", "avfs weights fetch base", "--clip-weights")
    fails(f"{command} --backbone base --device cpu", 1, *parts)


def test_all_faults_of_file_and_flags_come_at_once(fails, folder):
    (folder / "settings.yaml").write_text("shotz: 4\nlr: -1\nepochs: 0\npool: mean\n")
    parts = (
        "settings.yaml: shotz is unknown. Did you mean 'shots'?",
        "settings.yaml: lr: a number greater than 0",
        "settings.yaml: epochs: a whole number of at least 1",
        "--shots: a whole number",
        "--fusion: 'sum'",
        "--device: 'gpu'",
        "--name 'a/b' cannot be part of a folder's name.",
    )
    command = f"{CLIPS} --config settings.yaml --shots 0 --fusion sum --device gpu --name a/b"
    fails(command, 2, *parts, errors=7)
    parts = ("PATH", "--labels", "--topk: a whole number", "--fusion: 'sum'", "Where is AVE?")
    fails("zeroshot --task ave a.mp4 --labels file --topk 0 --fusion sum", 2, *parts, errors=6)


def test_where_the_data_are_may_stand_in_the_settings_file(fails, folder):
    (folder / "avfs.toml").write_text('[data]\nave = "annotations"\n')
    fails("fewshot --task ave", 1, "none of its 9 clips")


@pytest.fixture
def begun(folder):
    """A run that was begun on the folder of clips."""
    sources = dict.fromkeys(settings_of(FewshotConfig), "default")
    Run(FewshotConfig(data={"data": folder / "clips"}), sources, folder / "begun", "avfs fewshot").claim()
    return folder / "begun"


def test_a_run_goes_on_with_its_own_settings(fails, begun):
    for arguments, shown in (
        ("--shots 4 --lr 1", "--lr 1 (the run: 0.0003), --shots 4 (the run: 16)"),
        ("--no-channel", "--channel false (the run: true)"),
        ("--data empty --shots 16", "--data "),
    ):
        parts = (f"it cannot be given with {shown}", "Begin a new run")
        assert "16 (the run: 16)" not in fails(f"fewshot --resume begun {arguments}", 2, *parts)
    record = json.loads((begun / "run.json").read_text())
    record["config"]["training"]["shots"] = 0
    (begun / "run.json").write_text(json.dumps(record))
    fails("fewshot --resume begun", 2, "shots: a whole number of at least 1")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"format": 1}', '{"format": 99}', '{"format": 1, "model": []}'])
def test_a_damaged_record_of_a_run_is_told(fails, folder, text):
    (folder / "run/run.json").write_text(text)
    fails("fewshot --resume run", 1, "run.json: ", "Begin a new run.")
