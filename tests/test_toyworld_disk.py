"""The toy world on disk: files, layouts, and what happens when its writing is interrupted."""

import csv
import errno
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pytest

from avfewshot.config import read_config
from avfewshot.data.load import load_dataset
from avfewshot.errors import DataError, UsageError
from avfewshot.io import write_text
from avfewshot.labels import parse_labels
from avfewshot.toyworld import build as build_module
from avfewshot.toyworld import events
from avfewshot.toyworld.build import MANIFEST, prepare
from avfewshot.toyworld.plan import PlannedClip
from avfewshot.toyworld.render import FPS, HEIGHT, WIDTH, render_frames, render_waveform, write_clip
from avfewshot.toyworld.script import ClipScript, Event
from avfewshot.toyworld.vocabulary import AVE_CLASSES, Composition

YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
SMALL = {
    "AVE_CLASSES": ("dog barking", "car honking"),
    "LLP_CLASSES": ("dog barking", "bell ringing"),
    "VGGSOUND_CLASSES": ("kettle whistling", "train honking"),
    "_SAMPLES": ("fire crackling",),
    "_SECONDS": 1,
}


@pytest.fixture
def small(monkeypatch):
    """A world of a few clips of one second."""
    for name, value in SMALL.items():
        monkeypatch.setattr(events, name, value)


@pytest.fixture
def unrendered(small, monkeypatch):
    """A small world whose media files hold the text of their script: for tests of what is kept, not of how it looks."""
    monkeypatch.setattr(build_module, "write_clip", lambda script, path: write_text(path, repr(script)))


def tree(root: Path) -> dict[str, str]:
    """Digest of each file below a folder."""
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def make(root: Path, **settings) -> build_module.Summary:
    return prepare(root, **{"clips_per_class": 3, "jobs": 1, **settings}).run(progress=False)


def whole_script(name: str, seconds: int = 10) -> ClipScript:
    return ClipScript(seconds, (Event(Composition.from_name(name), (0, seconds), (0, seconds)),), 5)


# -- clips -------------------------------------------------------------------------------------------------------------


def test_a_clip_is_h264_and_aac_and_holds_what_was_rendered(tmp_path):
    script = whole_script("dog barking")
    write_clip(script, tmp_path / "new folder" / "-a:b.mp4")
    with av.open(str(tmp_path / "new folder" / "-a:b.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (sound.codec_context.name, sound.rate, sound.codec_context.channels) == ("aac", 48000, 1)
        assert (video.width, video.height, float(video.average_rate)) == (WIDTH, HEIGHT, FPS)
        assert container.duration == 10 * av.time_base
        pictures = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        container.seek(0)
        heard = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])[:480_000]
    drawn = list(render_frames(script, fps=FPS, width=WIDTH, height=HEIGHT))
    assert len(pictures) == len(drawn) == 10 * FPS
    # Blocks of 8 x 8, since the codec drops the camera's noise: close to the frame itself, far from another clip's.
    blocks = [np.asarray(p, float).reshape(HEIGHT // 8, 8, WIDTH // 8, 8, 3).mean((1, 3)) for p in (*pictures, *drawn)]
    assert np.mean([np.abs(a - b).mean() for a, b in zip(blocks[: len(drawn)], blocks[len(drawn) :], strict=True)]) < 4
    meant = render_waveform(script)
    assert np.corrcoef(heard, meant)[0, 1] > 0.9
    assert np.corrcoef(heard[1024:], meant[:-1024])[0, 1] < 0.5  # no encoder delay is left in


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="MALLOC_PERTURB_ is a variable of glibc")
def test_bytes_do_not_depend_on_what_is_in_memory(tmp_path):
    program = (
        "import sys, numpy as np\n"
        "from avfewshot.toyworld.script import ave_script\n"
        "from avfewshot.toyworld.vocabulary import Composition\n"
        "from avfewshot.toyworld.render import write_clip\n"
        "script = ave_script(Composition.from_name('car wailing'), np.random.default_rng(3), 4)\n"
        "write_clip(script, sys.argv[1])\n"
    )
    files = []
    for filler in ("0", "85", "170"):
        files.append(tmp_path / f"{filler}.mp4")
        subprocess.run(
            [sys.executable, "-c", program, str(files[-1])], check=True, env={**os.environ, "MALLOC_PERTURB_": filler}
        )
    assert len({path.read_bytes() for path in files}) == 1


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def broken(script, **size):
        yield np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("avfewshot.toyworld.render.render_frames", broken)
    clip = PlannedClip("x.mp4", whole_script("dog barking", 2))
    with pytest.raises(DataError, match=r"x\.mp4: cannot be written: No space left on device"):
        list(build_module._write_clips(tmp_path, [clip], 1))
    assert list(tmp_path.iterdir()) == []


# -- layouts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clips", "expected"), [(3, (1, 1, 1)), (5, (3, 1, 1)), (12, (8, 2, 2)), (24, (16, 4, 4))])
def test_each_class_is_split_into_two_thirds_a_sixth_and_a_sixth(clips, expected):
    texts = events.plan_ave(0, clips).texts
    for split, number in zip(("train", "val", "test"), expected, strict=True):
        lines = texts[f"AVE/{split}Set.txt"].splitlines()
        assert Counter(line.split("&")[0] for line in lines) == dict.fromkeys(AVE_CLASSES, number)


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    """The annotation files of a whole world with empty clips, and its plans."""
    root = tmp_path_factory.mktemp("planned")
    plans = {name: make_plan(0, 24) for name, make_plan in build_module.PLANS.items()}
    for plan in plans.values():
        for path in (*plan.texts, *(clip.path for clip in plan.clips)):
            (root / path).parent.mkdir(parents=True, exist_ok=True)
            (root / path).write_text(plan.texts.get(path, ""), encoding="utf-8")
    return root, plans


TASKS = {"ave": "ave", "ave_cls": "ave", "llp_cls": "llp", "vggsound40k": "vggsound", "vggsound_cls": "vggsound"}


@pytest.mark.parametrize("task", TASKS)
def test_the_readers_of_the_real_data_sets_read_what_happens_in_each_clip(planned, task):
    root, plans = planned
    plan, dataset = plans[TASKS[task]], load_dataset(task, root)
    assert dataset.description.path.is_relative_to(root)  # its own, in the place of the packaged one
    assert dataset.wordings == plan.classes
    assert [finding for finding in dataset.report.findings if finding.severity != "info"] == []
    scripts = {root / clip.path: clip.script for clip in plan.clips}
    assert len(dataset.samples) == len({sample.id for sample in dataset.samples}) == len(scripts)
    assert all(YOUTUBE_ID.fullmatch(sample.youtube_id) for sample in dataset.samples)
    assert any(sample.youtube_id.startswith("-") for sample in dataset.samples)  # as some real ones do
    for sample in dataset.samples:
        events, expected = scripts[sample.path].events, set()
        labels = [plan.classes.index(event.composition.name) for event in events]
        assert sample.labels == tuple(sorted(labels))
        for label, event in zip(labels, events, strict=True):
            if dataset.multi_label:
                spans = {"visual": event.look, "audio": event.sound} if sample.split != "train" else {}
            else:
                spans = {"av": (max(event.look[0], event.sound[0]), min(event.look[1], event.sound[1]))}
            expected |= {(label, *span, modality) for modality, span in spans.items() if span}
        assert {(event.label, event.onset, event.offset, event.modality) for event in sample.events} == expected
    several = [len(sample.labels) for sample in dataset.samples]
    assert set(several) == ({1, 2, 3} if dataset.multi_label else {1})
    singles = Counter(sample.label for sample in dataset.split("train") if len(sample.labels) == 1)
    assert singles == dict.fromkeys(range(len(plan.classes)), 16)  # enough for sixteen shots
    assert len({sample.label for sample in dataset.split("train")[:9]}) > 1 or not dataset.multi_label  # not in order


def test_the_official_list_of_vggsound_names_the_same_clips(planned):
    root, plans = planned
    official = list(csv.reader((root / "VGGSound" / "vggsound.csv").read_text().splitlines()))
    listed = list(csv.DictReader((root / "VGGSound" / "vggsound-avel40k_labels.csv").read_text().splitlines()))
    paths = {f"VGGSound/video/{v}_{int(s):06d}.mp4" for v, s, _, _ in official}
    assert {clip.path for clip in plans["vggsound"].clips} == paths
    assert Counter(row[3] for row in official) == {"train": 24 * 20, "test": 24 * 4}
    for (video, _, label, split), row in zip(official, listed, strict=True):
        assert (row["video_id"], row["category"], row["split"] == "test") == (video, label, split == "test")


def test_an_ave_event_with_a_gap_gives_two_lines():
    composition = Composition.from_name("dog barking")
    script = ClipScript(10, (Event(composition, (0, 3), (0, 10)), Event(composition, (6, 10), (0, 10))), 1)
    row = events._Row("x" * 11, 0, "dog barking", "train", script)
    assert [line.split("&")[3:] for line in events._ave_lines(row)] == [["0", "3"], ["6", "10"]]


def test_llp_events_of_a_clip_differ_in_looks_and_in_sound():
    for clip in events.plan_llp(1, 24).clips:
        for part in ("object", "sound"):
            values = [getattr(event.composition, part) for event in clip.script.events]
            assert len(set(values)) == len(values)


def test_seeds_give_other_ids_and_other_clips():
    first, second = events.plan_vggsound(0, 3), events.plan_vggsound(1, 3)
    assert not {clip.path for clip in first.clips} & {clip.path for clip in second.clips}
    assert not {clip.script.seed for clip in first.clips} & {clip.script.seed for clip in second.clips}
    assert events.plan_vggsound(0, 3) == first


# -- building ----------------------------------------------------------------------------------------------------------


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path, small):
    one, two = make(tmp_path / "one", jobs=1), make(tmp_path / "two", jobs=2)
    assert tree(tmp_path / "one") == tree(tmp_path / "two")
    assert one.written == two.written > 3 * 2 * 3
    files = [path for path in (tmp_path / "one").rglob("*.*") if path.name != MANIFEST]
    assert one.bytes == sum(path.stat().st_size for path in files)


def test_what_is_there_is_kept_and_what_is_damaged_or_gone_is_written_again(tmp_path, unrendered):
    make(tmp_path)
    before = tree(tmp_path)
    clips = sorted(tmp_path.rglob("*.mp4"))
    clips[0].unlink()
    clips[1].write_bytes(clips[1].read_bytes()[:-100])
    ages = {clip: clip.stat().st_mtime_ns for clip in clips[2:]}
    build = prepare(tmp_path, clips_per_class=3, jobs=1)
    assert {clip.path for clip in build.pending} == {clip.relative_to(tmp_path).as_posix() for clip in clips[:2]}
    assert build.damaged == (clips[1].relative_to(tmp_path).as_posix(),)
    summary = build.run(progress=False)
    assert (summary.written, summary.kept) == (2, len(clips) - 2)
    assert tree(tmp_path) == before
    assert {clip: clip.stat().st_mtime_ns for clip in clips[2:]} == ages
    assert make(tmp_path).written == 0


def test_data_sets_can_be_added_one_by_one(tmp_path, unrendered):
    make(tmp_path / "all")
    make(tmp_path / "parts", datasets=["llp"])
    assert not (tmp_path / "parts" / "AVE").exists()
    assert parse_labels(tmp_path / "parts" / "labels.txt").names == ("bell ringing", "dog barking", "fire crackling")
    added = make(tmp_path / "parts", datasets=["vggsound", "ave"])
    assert added.kept == 1 + len(list((tmp_path / "parts" / "LLP").rglob("*.mp4")))
    assert tree(tmp_path / "parts") == tree(tmp_path / "all")


def test_its_settings_and_labels_can_be_used(tmp_path, unrendered):
    make(tmp_path)
    assert read_config(tmp_path) == {"": {"backbone": "tiny"}, "data": {"root": Path(".")}}
    happening = {"dog barking", "car honking", "bell ringing", "kettle whistling", "train honking", "fire crackling"}
    assert set(parse_labels(tmp_path / "labels.txt").names) == happening
    assert (tmp_path / "samples" / "fire-crackling.mp4").is_file()


def test_edited_settings_stay_unless_forced(tmp_path, unrendered):
    make(tmp_path, datasets=["ave"])
    written = (tmp_path / "avfs.toml").read_text()
    (tmp_path / "avfs.toml").write_text('backbone = "base"\n')
    for _ in range(2):
        assert make(tmp_path, datasets=["ave"]).edited == ("avfs.toml",)
        assert (tmp_path / "avfs.toml").read_text() == 'backbone = "base"\n'
    assert make(tmp_path, datasets=["ave"], force=True).edited == ()
    assert (tmp_path / "avfs.toml").read_text() == written


def test_a_world_of_other_settings_is_refused_and_replaced_by_force(tmp_path, unrendered, monkeypatch):
    make(tmp_path / "world", datasets=["ave", "llp"])
    mine = tmp_path / "world" / "AVE" / "AVE" / "mine.mp4"
    mine.write_bytes(b"my own")
    before = tree(tmp_path / "world")
    with pytest.raises(UsageError, match="made with --seed 0 --clips-per-class 3"):
        prepare(tmp_path / "world", seed=1, clips_per_class=3)
    assert tree(tmp_path / "world") == before
    make(tmp_path / "world", seed=1, datasets=["ave"], force=True)
    make(tmp_path / "fresh", seed=1, datasets=["ave"])
    assert mine.read_bytes() == b"my own"
    mine.unlink()
    assert tree(tmp_path / "world") == tree(tmp_path / "fresh")
    assert not (tmp_path / "world" / "LLP").exists()
    monkeypatch.setattr(build_module, "GENERATOR", "another")
    with pytest.raises(UsageError, match="another version"):
        prepare(tmp_path / "world", seed=1, clips_per_class=3)
    assert len(prepare(tmp_path / "world", seed=1, clips_per_class=3, datasets=["ave"], force=True).pending) == 7


def test_somebody_elses_files_are_refused(tmp_path, unrendered):
    (tmp_path / "labels.txt").write_text("mine\n")
    with pytest.raises(UsageError, match=r"holds labels\.txt, but no toy world"):
        prepare(tmp_path, clips_per_class=3)
    assert tree(tmp_path) == {"labels.txt": hashlib.sha256(b"mine\n").hexdigest()}


@pytest.mark.parametrize("name", ["../outside.txt", "/etc/outside.txt", "a/../../outside.txt", "a\\..\\outside.txt"])
def test_a_manifest_cannot_reach_outside_of_its_folder(tmp_path, unrendered, name):
    root = tmp_path / "world"
    make(root, datasets=["ave"])
    (tmp_path / "outside.txt").write_text("precious")
    document = json.loads((root / MANIFEST).read_text())
    document["files"][name] = "0" * 64
    document["seed"] = 9
    (root / MANIFEST).write_text(json.dumps(document))
    with pytest.raises(DataError, match="outside of the folder"):
        prepare(root, clips_per_class=3)
    make(root, datasets=["ave"], force=True)
    assert (tmp_path / "outside.txt").read_text() == "precious"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 2}', '{"format": 1, "seed": "x"}'])
def test_a_damaged_manifest_is_said(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=f"{MANIFEST}: damaged"):
        prepare(tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clips_per_class": 2}, "--clips-per-class 2: too few"),
        ({"datasets": ["ave", "imagenet"]}, "'imagenet' is not a data set of the toy world. Known: ave, llp, vggsound"),
        ({"datasets": []}, "--only: nothing"),
        ({"jobs": 0}, "--jobs 0"),
        ({"root": "file"}, "file: is a file"),
        ({"root": "file/below"}, "file: is a file"),
        ({"root": "dangling"}, "dangling: is not a folder"),
        ({"root": "closed"}, "cannot be written to"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    Path("dangling").symlink_to("nowhere")
    monkeypatch.setattr(os, "access", lambda path, mode: settings["root"] != "closed")
    settings = {"root": "new", **settings}
    with pytest.raises(UsageError, match=re.escape(message)):
        prepare(**settings)
    assert not Path("new").exists()


# -- interrupts --------------------------------------------------------------------------------------------------------

INTERRUPTED = {**SMALL, "AVE_CLASSES": ("dog barking", "car honking", "cat meowing", "boat rumbling"), "_SECONDS": 3}
PROGRAM = f"""
import sys
from avfewshot.cli.app import run
from avfewshot.toyworld import events

if __name__ == "__main__":
    for name, value in {INTERRUPTED!r}.items():
        setattr(events, name, value)
    sys.exit(run(["data", "toy", "--root", sys.argv[1], "--only", "ave", "--clips-per-class", "3", "--jobs", "2"]))
"""


def make_interrupted(root: Path) -> build_module.Summary:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in INTERRUPTED.items():
            patch.setattr(events, name, value)
        return make(root, datasets=["ave"])


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The files of a run that nobody interrupted."""
    root = tmp_path_factory.mktemp("whole") / "world"
    make_interrupted(root)
    return tree(root)


def start_and_wait_for_a_clip(tmp_path: Path) -> subprocess.Popen:
    (tmp_path / "program.py").write_text(PROGRAM)
    process = subprocess.Popen(
        [sys.executable, "program.py", "world"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # Children of a job in the background ignore Ctrl-C, unless somebody changes that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 200
    while not list((tmp_path / "world").rglob("[!.]*.mp4")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    return process


@pytest.mark.skipif(os.name == "nt", reason="sends POSIX signals")
def test_after_ctrl_c_the_same_command_goes_on_to_the_same_files(tmp_path, uninterrupted):
    process = start_and_wait_for_a_clip(tmp_path)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers as well
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 130
    assert "goes on from here" in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "world").rglob(".*"))
    assert not json.loads((tmp_path / "world" / MANIFEST).read_text())["complete"]
    there = len(list((tmp_path / "world").rglob("*.mp4")))
    summary = make_interrupted(tmp_path / "world")
    assert summary.kept == there
    assert 1 <= summary.written < len(uninterrupted)
    assert tree(tmp_path / "world") == uninterrupted


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="reads /proc")
def test_after_a_kill_no_worker_stays_and_the_same_command_goes_on(tmp_path, uninterrupted):
    process = start_and_wait_for_a_clip(tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) >= 2
    process.kill()
    process.communicate(timeout=200)
    deadline = time.monotonic() + 60
    while any(is_running(child) for child in children):
        assert time.monotonic() < deadline, "workers outlive their parent"
        time.sleep(0.02)
    clip = next((tmp_path / "world").rglob("[!.]*.mp4"))
    (clip.parent / ".half.part.mp4").write_bytes(b"half")
    assert make_interrupted(tmp_path / "world").kept >= 1
    assert tree(tmp_path / "world") == uninterrupted


def is_running(process: str) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# -- command -----------------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_does_and_what_is_next(avfs, unrendered):
    toy = ("data", "toy", "--root", "my toys", "--clips-per-class", "3", "--only")
    said, _ = avfs(*toy, "AVE, llp", "--jobs", "1")
    assert "15 clips (AVE 6, LLP 8, and samples)" in said
    assert "about" in said
    assert "MB" in said
    assert said.splitlines()[-1] == ("Next: cd 'my toys' && avfs zeroshot --labels labels.txt samples --segments")
    assert "Complete already" in avfs(*toy, "ave")[0]
