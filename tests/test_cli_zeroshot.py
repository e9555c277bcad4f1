from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import types
from pathlib import Path

import pytest
from sample_results import clip, failure, run_info

from avfewshot.cli.app import run
from avfewshot.cli.terminal import Interrupts
from avfewshot.errors import AvfsError

LABELS = ("dog barking", "violin", "background")


class FakeClassifier:
    """Gives made-up results and remembers what it was asked."""

    def __init__(self, results, warnings=()):
        self.results = results
        self.warnings = list(warnings)
        self.loaded = None
        self.asked = None
        self.closed = False

    def load(self, backbone, **options):
        self.loaded = {"backbone": backbone, **options}
        return self

    def info(self, labels, *, fusion, pool):
        adapter = self.loaded.get("adapter")
        return run_info(
            labels.names,
            warnings=self.warnings,
            fusion=fusion or "product",  # what the adapter says, which is not the default
            pool=pool or "mean",
            backbone=self.loaded["backbone"] or "large",
            adapter=None if adapter is None else str(adapter),
        )

    def iter_classify(self, paths, labels, **options):
        self.asked = {"paths": [str(path) for path in paths], "labels": labels, **options}
        try:
            for result in self.results:
                if isinstance(result, BaseException):
                    raise result
                yield result
        finally:
            self.closed = True


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "labels.txt").write_text("\n".join(LABELS))
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(b"\0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def classify(folder, monkeypatch):
    """Put a fake in the place of the classifier, which would import torch."""

    def prepare(*results, **options):
        fake = FakeClassifier(list(results) or [clip("a.mp4"), clip("b.mp4"), clip("c.mp4")], **options)
        module = types.ModuleType("avfewshot.inference.loading")
        module.load = fake.load
        monkeypatch.setitem(sys.modules, "avfewshot.inference.loading", module)
        return fake

    return prepare


def zeroshot(*arguments):
    return run(["zeroshot", "--labels", "labels.txt", *map(str, arguments)])


def test_as_written_in_the_readme(classify, capsys, monkeypatch):
    fake = classify()
    Path("avfs.toml").write_text('backbone = "tiny"\n[zeroshot]\ntopk = 2\n')
    assert zeroshot() == 0
    given = {"backbone": "tiny", "device": "auto", "weights": "pretrained", "seed": 0, "audio_context": "second"}
    unset = dict.fromkeys(("clip_weights", "clap_weights", "roberta", "templates", "adapter"))
    assert fake.loaded == given | unset | {"precision": "auto", "cache": True}
    assert [Path(path).name for path in fake.asked["paths"]] == ["a.mp4", "b.mp4", "c.mp4"]
    assert fake.asked["labels"].names == LABELS
    assert fake.closed
    captured = capsys.readouterr()
    assert captured.out.count(" %") == 3 * 2 * 3  # clips x topk x columns
    assert "3 clips · " in captured.out
    assert captured.err == ""


def test_options_reach_the_model(classify, folder):
    fake = classify()
    weights = folder / "clip.safetensors"
    weights.write_bytes(b"x")
    (folder / "templates.txt").write_text("a clip of {}\n")
    arguments = "--backbone large --device cpu --precision bf16 --batch-size 4 --modality audio --fusion product"
    arguments += " --pool event --frame-backend pyav --seed 3 --templates templates.txt --clip-weights clip.safetensors"
    assert zeroshot(*arguments.split(), "--segments", "a.mp4") == 0
    loaded = {"backbone": "large", "device": "cpu", "precision": "bf16", "seed": 3, "templates": "templates.txt"}
    assert fake.loaded.items() >= (loaded | {"clip_weights": Path("clip.safetensors")}).items()
    asked = {"paths": ["a.mp4"], "modality": "audio", "fusion": "product", "pool": "event", "batch_size": 4}
    assert fake.asked.items() >= (asked | {"frame_backend": "pyav", "segments": True}).items()


def test_with_an_adapter_what_nobody_sets_is_left_to_it(classify, folder, monkeypatch, capsys):
    monkeypatch.setattr("avfewshot.media.thumbnails.thumbnails", lambda path, count, frame_backend: [])
    fake = classify()
    (folder / "run").mkdir()

    assert zeroshot("--adapter", "run", "--report", "page.html", "--format", "json") == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out)["adapter"] == str(fake.loaded["adapter"]) == "run"
    assert "large with run on cpu" in captured.err
    assert (fake.loaded["backbone"], fake.loaded["templates"]) == (None, None)
    assert (fake.asked["fusion"], fake.asked["pool"]) == ("product", "mean")
    shown = re.sub(r"<[^>]*>|\s+", " ", Path("page.html").read_text())
    for row in ("backbone large the adapter", "templates the adapter&#39;s the adapter", "fusion product the adapter"):
        assert row in re.sub(" +", " ", shown)


@pytest.mark.parametrize("source", ["flag", "environment", "file"])
def test_with_an_adapter_what_somebody_sets_counts(classify, folder, source, monkeypatch):
    fake = classify()
    (folder / "run").mkdir()
    values = {"backbone": "tiny", "templates": "single", "fusion": "weighted", "pool": "event"}  # mostly the defaults
    arguments = []
    for name, value in values.items():
        if source == "flag":
            arguments += [f"--{name}", value]
        elif source == "environment":
            monkeypatch.setenv(f"AVFS_{name.upper()}", value)
    if source == "file":
        (folder / "avfs.toml").write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))

    assert zeroshot("--adapter", "run", *arguments) == 0

    assert (fake.loaded["backbone"], fake.loaded["templates"]) == ("tiny", "single")
    assert (fake.asked["fusion"], fake.asked["pool"]) == ("weighted", "event")


def test_json_on_stdout_is_nothing_but_json(classify, capsys):
    classify(clip("a.mp4"), failure("b.mp4"), clip("c.mp4"), warnings=["unknown words: kazoo", "unknown words: kazoo"])
    assert zeroshot("--format", "json", "--segments") == 1
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    assert [entry["path"] for entry in document["clips"]] == ["a.mp4", "c.mp4"]
    assert len(document["clips"][0]["segments"]) == 10
    assert document["failed"][0]["path"] == "b.mp4"
    assert captured.err.count("warning: unknown words: kazoo") == 1
    assert "2 clips, 1 failed" in captured.err


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "txt"])
def test_the_suffix_of_the_output_chooses_the_format(classify, form, capsys):
    classify()
    assert zeroshot("--output", f"out.{form}") == 0
    text = Path(f"out.{form}").read_text()
    if form == "json":
        assert len(json.loads(text)["clips"]) == 3
    elif form == "jsonl":
        assert [json.loads(line)["path"] for line in text.splitlines()] == ["a.mp4", "b.mp4", "c.mp4"]
    elif form == "csv":
        assert len(list(csv.DictReader(text.splitlines()))) == 3
    else:
        assert "a.mp4  10 s" in text
        assert "\x1b" not in text
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"written: out.{form}" in captured.err


@pytest.mark.parametrize(("output", "stem"), [("results", "results"), ("there/", "there/results")])
def test_all_formats_at_once(classify, folder, output, stem):
    classify()
    (folder / "there").mkdir()
    assert zeroshot("--format", "all", "--output", output) == 0
    assert len(json.loads(Path(f"{stem}.json").read_text())["clips"]) == 3
    assert all(Path(stem + suffix).stat().st_size for suffix in (".jsonl", ".csv", ".txt"))


def test_an_explicit_format_beats_the_suffix_and_special_files_are_not_replaced(classify, folder):
    classify()
    assert zeroshot("--format", "csv", "--output", "out.json") == 0
    assert Path("out.json").read_text().startswith("path,")
    link = folder / "null"
    link.symlink_to(os.devnull)
    assert zeroshot("--format", "json", "--output", link) == 0
    assert link.is_symlink()


def test_report_is_written_with_command_and_settings(classify, monkeypatch):
    monkeypatch.setattr("avfewshot.media.thumbnails.thumbnails", lambda path, count, frame_backend: [])
    fake = classify(clip("a.mp4"), failure("b.mp4"))
    assert zeroshot("--report", "page.html", "--topk", "1") == 1
    text = Path("page.html").read_text()
    assert "avfs zeroshot --labels labels.txt --report page.html --topk 1" in text
    assert "--topk" in text
    assert "1 file could not be classified" in text
    assert fake.asked["segments"] is True  # for the timeline, although --segments was not given


def test_scores_that_are_not_finite_are_a_failure(classify, capsys):
    bad = dataclasses.replace(clip("a.mp4"), score=math.nan)
    classify(bad, clip("b.mp4"))
    assert zeroshot("--format", "jsonl") == 1
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert "not finite" in first["error"]
    assert second["path"] == "b.mp4"


def test_random_weights_are_called_meaningless(classify, capsys, monkeypatch):
    monkeypatch.setattr("avfewshot.media.thumbnails.thumbnails", lambda path, count, frame_backend: [])
    fake = classify()
    assert zeroshot("--weights", "random", "--format", "json", "--report", "page.html") == 0
    assert fake.loaded["weights"] == "random"
    assert "warning: The weights are random (--weights random): the scores mean nothing." in capsys.readouterr().err
    assert "the scores mean nothing" in Path("page.html").read_text()


def test_a_single_label_is_pointed_out(classify, capsys):
    classify(clip("a.mp4", labels=["dog"]))
    Path("labels.txt").write_text("dog\n")
    assert zeroshot() == 0
    assert "only one label" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table"])
def test_results_so_far_survive_an_interruption(classify, form, capsys):
    classify(clip("a.mp4"), failure("b.mp4"), KeyboardInterrupt())
    assert zeroshot("--format", form, "--output", "out") == 130
    text = Path("out").read_text()
    if form == "json":
        document = json.loads(text)
        assert (len(document["clips"]), len(document["failed"])) == (1, 1)
    elif form == "jsonl":
        assert [json.loads(line)["path"] for line in text.splitlines()] == ["a.mp4", "b.mp4"]
    elif form == "csv":
        assert [row["path"] for row in csv.DictReader(text.splitlines())] == ["a.mp4", "b.mp4"]
    else:
        assert "stopped after 2 of 3: " in text
    assert "stopped after 2 of 3: 1 clip, 1 failed" in capsys.readouterr().err


def test_results_so_far_survive_an_error(classify, capsys):
    fake = classify(clip("a.mp4"), AvfsError("the device is gone", hint="plug it in"))
    assert zeroshot("--output", "out.json") == 1
    assert len(json.loads(Path("out.json").read_text())["clips"]) == 1
    assert "error: the device is gone\n  plug it in\n" in capsys.readouterr().err
    assert fake.closed


def test_a_model_that_cannot_be_loaded_leaves_old_results_alone(classify, monkeypatch, capsys):
    fake = classify()
    Path("out.json").write_text("old")

    def fail(*args, **options):
        raise AvfsError("no weights", hint="fetch them")

    sys.modules["avfewshot.inference.loading"].load = fail
    assert zeroshot("--output", "out.json") == 1
    assert Path("out.json").read_text() == "old"
    assert fake.asked is None
    assert capsys.readouterr().err == "error: no weights\n  fetch them\n"


def test_an_output_that_fails_does_not_take_the_others_along(classify, monkeypatch, capsys):
    classify()

    def broken(self, result):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("avfewshot.reports.writers.CsvWriter.add", broken)
    assert zeroshot("--format", "all", "--output", "out") == 1
    assert not Path("out.csv").exists()
    assert "clips" in json.loads(Path("out.json").read_text())
    assert "No space left on device" in capsys.readouterr().err
    assert not [path for path in Path().iterdir() if ".part" in path.name]


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--templates", "no-such"], ["no-such"]),
        (["--output", "."], ["is a folder"]),
        (["--format", "all", "--output", "nowhere/out"], ["there is no folder nowhere"]),
        (["--output", "a.mp4", "--format", "json"], ["would overwrite a file that is read"]),
        (["--output", "x.html", "--report", "x.html"], ["Name another file"]),
        (["--report", "page.txt"], ["must end in .html", "`--report page.html`"]),
        (["--report", "nowhere/page.html"], ["there is no folder nowhere"]),
        (["--clip-weights", "none.pt"], ["--clip-weights none.pt: there is nothing at this path"]),
        (["--clap-weights", "a.mp4", "--weights", "random"], ["exclude each other"]),
        (["--adapter", "no-run", "--weights", "random"], ["--adapter no-run: there is nothing at this path"]),
        (["--report", "r" * 251 + ".html"], ["--report", "is too long a name", "at most 255 bytes; this one has 256"]),
        (["--output", "€" * 90 + ".json"], ["--output", "this one has 275"]),
        (["--overlay", "o" * 256], ["--overlay", "is too long a name"]),
        (["--overlay", "labels.txt/o"], ["--overlay labels.txt/o: ", "labels.txt is a file"]),
        (["empty"], ["empty"]),
    ],
)
def test_misuse_is_told_before_any_work(classify, folder, arguments, parts, capsys):
    fake = classify()
    (folder / "empty").mkdir()
    assert zeroshot(*arguments) == 2
    assert fake.loaded is None
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("error: ") == 1
    assert "Traceback" not in captured.err
    for part in parts:
        assert part in captured.err


def test_labels_are_needed_and_may_come_from_the_settings(classify, folder, capsys):
    classify()
    assert run(["zeroshot"]) == 2
    assert "--labels labels.txt" in capsys.readouterr().err
    (folder / "avfs.toml").write_text('[zeroshot]\nlabels = "labels.txt"\n')
    assert run(["zeroshot"]) == 0


def test_misuse_does_not_import_torch(folder):
    code = (
        "import sys; from avfewshot.cli.app import run\n"
        "status = run(['zeroshot', '--labels', 'labels.txt', '--topk', '0', '--backbone', 'tinny', 'nothing-*.mp4'])\n"
        "sys.exit(f'{status} {\"torch\" in sys.modules}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert done.stderr.splitlines()[-1] == "2 False"


def test_a_signal_waits_while_a_result_is_written():
    done = []

    def work(interrupts, signals):
        with interrupts, interrupts.put_off():
            for number in signals:
                signal.raise_signal(number)
            done.append("written")

    before = signal.getsignal(signal.SIGINT)
    interrupts = Interrupts()
    with pytest.raises(KeyboardInterrupt):
        work(interrupts, [signal.SIGTERM])
    assert done == ["written"]
    assert interrupts.status == 143
    with pytest.raises(KeyboardInterrupt):
        work(Interrupts(), [signal.SIGINT, signal.SIGINT])  # whoever asks twice is not kept waiting
    assert done == ["written"]
    assert signal.getsignal(signal.SIGINT) is before


STREAMING = """
import sys, time, types
sys.path.insert(0, {tests!r})
from sample_results import clip
from test_cli_zeroshot import FakeClassifier

class Slow(FakeClassifier):
    def iter_classify(self, paths, labels, **options):
        for number in range(1000):
            yield clip(f"{{number}}.mp4", labels=labels.names)
            time.sleep(0.05)

fake = types.ModuleType("avfewshot.inference.loading")
fake.load = Slow([]).load
sys.modules["avfewshot.inference.loading"] = fake
import avfewshot.media.thumbnails
avfewshot.media.thumbnails.thumbnails = lambda path, count, frame_backend: []  # would import torch
from avfewshot.cli import main
main()
"""


def streaming(*arguments, **options):
    code = STREAMING.format(tests=str(Path(__file__).parent))
    files = [f"{number}.mp4" for number in range(1000)]
    command = [sys.executable, "-u", "-c", code, "zeroshot", "--labels", "labels.txt", *arguments, *files]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_what_was_streamed(folder, number, status):
    process = streaming("--format", "jsonl", "--report", "page.html")
    lines = [process.stdout.readline() for _ in range(3)]  # they come while it works
    process.send_signal(number)
    rest, message = process.communicate(timeout=60)
    assert process.returncode == status
    assert [json.loads(line)["path"] for line in [*lines, *rest.splitlines()]][:3] == ["0.mp4", "1.mp4", "2.mp4"]
    assert "stopped after" in message
    assert "Traceback" not in message
    assert "stopped after" in Path("page.html").read_text()


@pytest.mark.parametrize("form", ["jsonl", "table"])
def test_a_reader_that_leaves_ends_the_work_quietly(folder, form):
    process = streaming("--format", form, "--output", "-")
    process.stdout.readline()
    process.stdout.close()
    message = process.stderr.read()
    assert process.wait(timeout=60) == 141
    assert message == ""


def paths_of(path="r.jsonl"):
    return [json.loads(line)["path"] for line in Path(path).read_text().splitlines()]


def test_a_jsonl_file_is_gone_on_with(classify, folder, capsys):
    classify(clip("a.mp4"), failure("b.mp4"), KeyboardInterrupt())
    assert zeroshot("--output", "r.jsonl") == 130
    assert paths_of() == ["a.mp4", "b.mp4"]
    fake = classify(clip("c.mp4"))
    assert zeroshot("--output", "r.jsonl") == 1  # b.mp4 failed before
    assert fake.asked["paths"] == ["c.mp4"]
    assert paths_of() == ["a.mp4", "b.mp4", "c.mp4"]
    assert "r.jsonl holds 2 files already, 1 are left (--overwrite begins anew)" in capsys.readouterr().err
    fake = classify()
    assert zeroshot("--output", "r.jsonl") == 1
    assert fake.loaded is None
    assert paths_of() == ["a.mp4", "b.mp4", "c.mp4"]


def test_overwrite_begins_anew(classify, folder):
    classify()
    assert zeroshot("--output", "r.jsonl") == 0
    fake = classify()
    assert zeroshot("--output", "r.jsonl", "--overwrite") == 0
    assert len(fake.asked["paths"]) == 3
    assert paths_of() == ["a.mp4", "b.mp4", "c.mp4"]


@pytest.mark.parametrize("change", [["--modality", "audio"], ["--backbone", "large"], ["--labels", "other.txt"]])
def test_results_of_other_settings_are_not_mixed(classify, folder, change, capsys):
    (folder / "other.txt").write_text("dog barking\nrain\n")
    classify()
    assert zeroshot("--output", "r.jsonl") == 0
    before = Path("r.jsonl").read_bytes()
    fake = classify()
    assert zeroshot("--output", "r.jsonl", *change) == 2
    assert "holds results of another run" in capsys.readouterr().err
    assert fake.loaded is None
    assert Path("r.jsonl").read_bytes() == before


@pytest.mark.parametrize("form", ["srt", "vtt", "eaf"])
def test_timelines_of_several_clips_go_into_a_folder(classify, folder, form):
    (folder / "out").mkdir()
    fake = classify()
    assert zeroshot("--format", form, "--output", "out") == 0
    assert fake.asked["segments"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == [f"{name}.{form}" for name in "abc"]
    assert zeroshot("--format", form) == 2
