"""`avfs zeroshot` with a made-up classifier; and with a real one, from the files to every output."""

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
from command_support import Commands
from media_factory import tone, truncated, write_audio, write_media
from sample_results import clip, failure, run_info

from avfewshot.cli.interrupts import Interrupts
from avfewshot.errors import AvfsError

LABELS = ("dog barking", "violin", "background")
ABC = ["a.mp4", "b.mp4", "c.mp4"]


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
    for name in ABC:
        (tmp_path / name).write_bytes(b"\0")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def classify(folder, monkeypatch):
    """Put a fake in the place of the classifier, which would import torch."""

    def prepare(*results, **options):
        fake = FakeClassifier(list(results) or [clip(name) for name in ABC], **options)
        module = types.ModuleType("avfewshot.inference.loading")
        module.load = fake.load
        monkeypatch.setitem(sys.modules, "avfewshot.inference.loading", module)
        monkeypatch.setattr("avfewshot.media.thumbnails.thumbnails", lambda path, count, frame_backend: [])
        return fake

    return prepare


def zeroshot(*arguments, status=0):
    """What it says in the current folder, on stdout and stderr."""
    return Commands(Path.cwd(), shared=False)("zeroshot", "--labels", "labels.txt", *arguments, status=status)


def paths_of(text):
    return [json.loads(line)["path"] for line in text.splitlines()]


def test_as_written_in_the_readme(classify):
    fake = classify()
    Path("avfs.toml").write_text('backbone = "tiny"\n[zeroshot]\ntopk = 2\n')
    out, err = zeroshot()
    given = {"backbone": "tiny", "device": "auto", "weights": "pretrained", "seed": 0, "audio_context": "second"}
    unset = dict.fromkeys(("clip_weights", "clap_weights", "roberta", "templates", "adapter"))
    assert fake.loaded == given | unset | {"precision": "auto", "cache": True}
    assert [Path(path).name for path in fake.asked["paths"]] == ABC
    assert fake.asked["labels"].names == LABELS
    assert fake.closed
    assert out.count(" %") == 3 * 2 * 3  # clips x topk x columns
    assert "3 clips · " in out
    assert err == ""


def test_options_reach_the_model(classify, folder):
    fake = classify()
    (folder / "clip.safetensors").write_bytes(b"x")
    (folder / "templates.txt").write_text("a clip of {}\n")
    arguments = "--backbone large --device cpu --precision bf16 --batch-size 4 --modality audio --fusion product"
    arguments += " --pool event --frame-backend pyav --seed 3 --templates templates.txt --clip-weights clip.safetensors"
    zeroshot(*arguments.split(), "--segments", "a.mp4")
    loaded = {"backbone": "large", "device": "cpu", "precision": "bf16", "seed": 3, "templates": "templates.txt"}
    assert fake.loaded.items() >= (loaded | {"clip_weights": Path("clip.safetensors")}).items()
    asked = {"paths": ["a.mp4"], "modality": "audio", "fusion": "product", "pool": "event", "batch_size": 4}
    assert fake.asked.items() >= (asked | {"frame_backend": "pyav", "segments": True}).items()


def test_with_an_adapter_what_nobody_sets_is_left_to_it(classify, folder):
    fake = classify()
    (folder / "run").mkdir()
    out, err = zeroshot("--adapter", "run", "--report", "page.html", "--format", "json")
    assert json.loads(out)["adapter"] == str(fake.loaded["adapter"]) == "run"
    assert "large with run on cpu" in err
    assert (fake.loaded["backbone"], fake.loaded["templates"]) == (None, None)
    assert (fake.asked["fusion"], fake.asked["pool"]) == ("product", "mean")
    shown = re.sub(r"<[^>]*>|\s+", " ", Path("page.html").read_text())
    for row in ("backbone large the adapter", "templates the adapter&#39;s the adapter", "fusion product the adapter"):
        assert row in re.sub(" +", " ", shown)


def test_labels_of_an_adapter_that_cannot_be_are_told_with_their_place(folder):
    (folder / "adapter").mkdir()
    (folder / "adapter" / "config.json").write_text('{"labels": ["", "cat"], "wordings": ["dog", "cat"]}')
    told = Commands(folder, shared=False).refused("zeroshot", "--adapter", "adapter", "--backbone", "tiny", ".")
    told = " ".join(told.split())
    assert "adapter/config.json: labels, label 1: the label is empty." in told
    assert "No label file" not in told


def test_with_an_adapter_what_somebody_sets_counts(classify, folder, monkeypatch):
    fake = classify()
    (folder / "run").mkdir()
    monkeypatch.setenv("AVFS_TEMPLATES", "single")  # mostly the defaults
    (folder / "avfs.toml").write_text('backbone = "tiny"\nfusion = "weighted"\n[zeroshot]\nlabels = "labels.txt"\n')
    Commands(folder, shared=False)("zeroshot", "--adapter", "run", "--pool", "event")
    assert fake.asked["labels"].names == LABELS
    assert (fake.loaded["backbone"], fake.loaded["templates"]) == ("tiny", "single")
    assert (fake.asked["fusion"], fake.asked["pool"]) == ("weighted", "event")


def test_json_on_stdout_is_nothing_but_json_and_scores_that_are_not_finite_are_a_failure(classify):
    infinite = dataclasses.replace(clip("c.mp4"), score=math.nan)
    classify(clip("a.mp4"), failure("b.mp4"), infinite, warnings=["unknown words: kazoo", "unknown words: kazoo"])
    out, err = zeroshot("--format", "json", "--segments", status=1)
    document = json.loads(out)
    assert [entry["path"] for entry in document["clips"]] == ["a.mp4"]
    assert len(document["clips"][0]["segments"]) == 10
    assert [entry["path"] for entry in document["failed"]] == ["b.mp4", "c.mp4"]
    assert "not finite" in document["failed"][1]["error"]
    assert err.count("warning: unknown words: kazoo") == 1
    assert "1 clip, 2 failed" in err


def test_outputs_by_suffix_by_format_and_all_at_once(classify, folder):
    classify()
    for form in ("json", "jsonl", "csv", "txt"):
        out, err = zeroshot("--output", f"out.{form}")
        assert out == ""
        assert f"written: out.{form}" in err
    assert len(json.loads(Path("out.json").read_text())["clips"]) == 3
    assert paths_of(Path("out.jsonl").read_text()) == ABC
    assert len(list(csv.DictReader(Path("out.csv").read_text().splitlines()))) == 3
    assert "a.mp4  10 s" in Path("out.txt").read_text()
    assert "\x1b" not in Path("out.txt").read_text()
    for output, stem in (("results", "results"), ("made/", "made/results"), ("made/", "made/results")):
        zeroshot("--format", "all", "--output", output)
        assert len(json.loads(Path(f"{stem}.json").read_text())["clips"]) == 3
        assert all(Path(stem + suffix).stat().st_size for suffix in (".jsonl", ".csv", ".txt"))
    zeroshot("--format", "csv", "--output", "out.json")
    assert Path("out.json").read_text().startswith("path,")
    link = folder / "null"
    link.symlink_to(os.devnull)
    zeroshot("--format", "json", "--output", link)
    assert link.is_symlink()


def test_the_report_has_command_settings_and_warnings(classify):
    fake = classify(clip("a.mp4", labels=["dog"]), failure("b.mp4"))
    Path("labels.txt").write_text("dog\n")
    asked = "--weights random --format json --report page.html --topk 1"
    _, told = zeroshot(*asked.split(), status=1)
    assert fake.loaded["weights"] == "random"
    assert fake.asked["segments"] is True  # for the timeline, although --segments was not given
    text = Path("page.html").read_text()
    assert "warning: The weights are random (--weights random): the scores mean nothing." in told
    assert "only one label" in told
    assert "the scores mean nothing" in text
    assert f"avfs zeroshot --labels labels.txt {asked}" in text
    assert "1 file could not be classified" in text


@pytest.mark.parametrize("form", ["json", "jsonl", "csv", "table"])
def test_results_so_far_survive_an_interruption(classify, form):
    classify(clip("a.mp4"), failure("b.mp4"), KeyboardInterrupt())
    assert "stopped after 2 of 3: 1 clip, 1 failed" in zeroshot("--format", form, "--output", "out", status=130)[1]
    text = Path("out").read_text()
    if form == "json":
        document = json.loads(text)
        assert (len(document["clips"]), len(document["failed"])) == (1, 1)
    elif form == "jsonl":
        assert paths_of(text) == ["a.mp4", "b.mp4"]
    elif form == "csv":
        assert [row["path"] for row in csv.DictReader(text.splitlines())] == ["a.mp4", "b.mp4"]
    else:
        assert "stopped after 2 of 3: " in text


def test_errors_keep_what_is_done_and_what_was_there(classify, monkeypatch):
    fake = classify(clip("a.mp4"), AvfsError("the device is gone", hint="plug it in"))
    assert "error: the device is gone\n  plug it in\n" in zeroshot("--output", "out.json", status=1)[1]
    assert len(json.loads(Path("out.json").read_text())["clips"]) == 1
    assert fake.closed

    def broken(self, result):
        raise OSError(28, "No space left on device")

    classify()
    with monkeypatch.context() as patch:  # an output that fails does not take the others along
        patch.setattr("avfewshot.reports.writers.CsvWriter.add", broken)
        assert "No space left on device" in zeroshot("--format", "all", "--output", "out", status=1)[1]
    assert not Path("out.csv").exists()
    assert "clips" in json.loads(Path("out.json").read_text())
    assert not [path for path in Path().iterdir() if ".part" in path.name]

    def fail(*args, **options):
        raise AvfsError("no weights", hint="fetch them")

    fake, before = classify(), Path("out.json").read_text()
    sys.modules["avfewshot.inference.loading"].load = fail
    assert zeroshot("--output", "out.json", status=1)[1] == "error: no weights\n  fetch them\n"
    assert Path("out.json").read_text() == before
    assert fake.asked is None


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ("--templates no-such", ["no-such"]),
        ("--output .", ["is a folder"]),
        ("--format all --output nowhere/out", ["there is no folder nowhere"]),
        ("--output a.mp4 --format json", ["would overwrite a file that is read"]),
        ("--output x.html --report x.html", ["Name another file"]),
        ("--report page.txt", ["must end in .html", "`--report page.html`"]),
        ("--report nowhere/page.html", ["there is no folder nowhere"]),
        ("--clip-weights none.pt", ["--clip-weights none.pt: there is nothing at this path"]),
        ("--clap-weights a.mp4 --weights random", ["exclude each other"]),
        ("--adapter no-run --weights random", ["--adapter no-run: there is nothing at this path"]),
        (f"--report {'r' * 251}.html", ["--report", "is too long a name", "at most 255 bytes; this one has 256"]),
        (f"--output {'€' * 90}.json", ["--output", "this one has 275"]),
        (f"--overlay {'o' * 256}", ["--overlay", "is too long a name"]),
        ("--overlay labels.txt/o", ["--overlay labels.txt/o: ", "labels.txt is a file"]),
    ],
)
def test_misuse_is_told_before_any_work(classify, arguments, parts):
    fake = classify()
    out, err = zeroshot(*arguments.split(), status=2)
    assert fake.loaded is None
    assert out == ""
    assert err.count("error: ") == 1
    assert [part for part in parts if part not in err] == []


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


def test_a_jsonl_file_is_gone_on_with_unless_its_settings_are_others(classify, folder):
    (folder / "other.txt").write_text("dog barking\nrain\n")
    lines = folder / "r.jsonl"
    classify(clip("a.mp4"), failure("b.mp4"), KeyboardInterrupt())
    zeroshot("--output", "r.jsonl", status=130)
    assert paths_of(lines.read_text()) == ["a.mp4", "b.mp4"]
    fake = classify(clip("c.mp4"))
    _, err = zeroshot("--output", "r.jsonl", status=1)  # b.mp4 failed before
    assert "r.jsonl holds 2 files already, 1 are left (--overwrite begins anew)" in err
    assert fake.asked["paths"] == ["c.mp4"]
    assert paths_of(lines.read_text()) == ABC
    before = lines.read_bytes()
    fake = classify()
    zeroshot("--output", "r.jsonl", status=1)  # nothing is left
    for change in (["--modality", "audio"], ["--backbone", "large"], ["--labels", "other.txt"]):
        assert "holds results of another run" in zeroshot("--output", "r.jsonl", *change, status=2)[1]
    assert fake.loaded is None
    assert lines.read_bytes() == before
    zeroshot("--output", "r.jsonl", "--overwrite")
    assert len(fake.asked["paths"]) == 3
    assert paths_of(lines.read_text()) == ABC


def test_timelines_of_several_clips_go_into_a_folder(classify, folder):
    (folder / "out").mkdir()
    fake = classify()
    zeroshot("--format", "srt", "--output", "out")
    assert fake.asked["segments"]
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["a.srt", "b.srt", "c.srt"]
    zeroshot("--format", "srt", status=2)


REAL = ("red ball", "bell ringing", "background")


@pytest.fixture(scope="module")
def avfs(tmp_path_factory):
    """Labels, settings, a video with sound, a silent one, a sound, and a damaged file."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "labels.txt").write_text("\n".join(REAL))
    (folder / "avfs.toml").write_text('backbone = "tiny"\nweights = "random"\ndevice = "cpu"\nprecision = "fp32"\n')
    write_media(folder / "both.mp4", seconds=3.0, audio=tone(3.0))
    write_media(folder / "silent.mp4", seconds=2.0)
    write_audio(folder / "sound.wav", tone(2.0))
    truncated(folder / "both.mp4", folder / "torn.mp4", 0.3)
    return Commands(folder)


def test_every_output_says_the_same_of_every_clip(avfs):
    out = avfs.folder.parent / "out"
    out.mkdir()
    arguments = ("--segments", "--format", "all", "--output", f"{out}/", "--report", out / "page.html")
    printed, said = avfs("zeroshot", "--labels", "labels.txt", *arguments, status=1)  # torn.mp4
    assert printed == ""
    assert said.count("the scores mean nothing") == 1
    assert "3 clips, 1 failed" in said
    assert f"written: {out / 'results.json'}" in said

    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (document["version"], document["backbone"], document["labels"]) == (1, "tiny", list(REAL))
    by_name = {Path(one["path"]).name: one for one in document["clips"]}
    assert list(by_name) == ["both.mp4", "silent.mp4", "sound.wav"]
    assert [Path(one["path"]).name for one in document["failed"]] == ["torn.mp4"]
    assert by_name["silent.mp4"]["audio"] is None
    assert by_name["silent.mp4"]["weights"] == {"visual": 1.0, "audio": 0.0}
    assert by_name["silent.mp4"]["warnings"]
    assert by_name["sound.wav"]["visual"] is None
    assert [len(one["segments"]) for one in by_name.values()] == [3, 2, 2]
    for one in by_name.values():
        for shares in filter(None, (one["scores"], one["visual"], one["audio"], one["weights"])):
            assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-6)
        assert one["score"] == max(one["scores"].values())

    clips = document["clips"]
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [{**line, "run": None} for line in lines if "error" not in line] == [{**one, "run": None} for one in clips]
    assert len({line["run"] for line in lines}) == 1
    rows = [row for row in csv.DictReader((out / "results.csv").read_text().splitlines()) if not row["error"]]
    found = [(row["path"], row["label"], float(row["score"])) for row in rows]
    assert found == [(one["path"], one["label"], one["score"]) for one in clips]
    assert all(one["path"] in (out / "results.txt").read_text() for one in clips)
    page = (out / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 + 2
    assert "classified by sound alone" in page
    assert "torn.mp4" in page
    assert not re.search(r"https?://", page)
    assert not [path for path in out.iterdir() if ".part" in path.name]

    [again] = avfs.json("zeroshot", "--labels", "labels.txt", "--segments", "both.mp4")["clips"]
    assert again["path"] == "both.mp4"
    assert again["scores"] == pytest.approx(clips[0]["scores"], abs=1e-5)
    assert [part["label"] for part in again["segments"]] == [part["label"] for part in clips[0]["segments"]]
