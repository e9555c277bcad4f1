"""The whole program on real files: decoding, the tiny architecture with random weights, every output."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from media_factory import tone, truncated, write_audio, write_media

from avfewshot.cli.app import run

LABELS = ("red ball", "bell ringing", "background")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Labels, settings, a video with sound, a silent one, a sound, and a damaged file."""
    folder = tmp_path_factory.mktemp("clips")
    (folder / "labels.txt").write_text("\n".join(LABELS))
    (folder / "avfs.toml").write_text('backbone = "tiny"\nweights = "random"\ndevice = "cpu"\nprecision = "fp32"\n')
    write_media(folder / "both.mp4", seconds=3.0, audio=tone(3.0))
    write_media(folder / "silent.mp4", seconds=2.0)
    write_audio(folder / "sound.wav", tone(2.0))
    truncated(folder / "both.mp4", folder / "torn.mp4", 0.3)
    return folder


def avfs(folder, *arguments):
    command = [sys.executable, "-m", "avfewshot", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=250, env=os.environ, check=False)


@pytest.fixture(scope="module")
def done(folder):
    """One run that writes everything."""
    out = folder.parent / "out"
    out.mkdir()
    arguments = ["--segments", "--format", "all", "--output", f"{out}/", "--report", out / "page.html"]
    return avfs(folder, "zeroshot", "--labels", "labels.txt", *arguments), out


def test_status_and_messages(done):
    process, out = done
    assert process.returncode == 1, process.stderr  # torn.mp4
    assert process.stdout == ""
    assert "Traceback" not in process.stderr
    assert process.stderr.count("the scores mean nothing") == 1
    assert "3 clips, 1 failed" in process.stderr
    assert f"written: {out / 'results.json'}" in process.stderr


def test_json(done):
    _, out = done
    document = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert (document["version"], document["backbone"], document["labels"]) == (1, "tiny", list(LABELS))
    clips = {Path(clip["path"]).name: clip for clip in document["clips"]}
    assert list(clips) == ["both.mp4", "silent.mp4", "sound.wav"]
    assert [Path(failure["path"]).name for failure in document["failed"]] == ["torn.mp4"]
    assert clips["silent.mp4"]["audio"] is None
    assert clips["silent.mp4"]["weights"] == {"visual": 1.0, "audio": 0.0}
    assert clips["silent.mp4"]["warnings"]
    assert clips["sound.wav"]["visual"] is None
    assert [len(clip["segments"]) for clip in clips.values()] == [3, 2, 2]
    for clip in clips.values():
        for shares in (clip["scores"], clip["visual"], clip["audio"], clip["weights"]):
            if shares is not None:
                assert math.fsum(shares.values()) == pytest.approx(1.0, abs=1e-6)
        assert clip["score"] == max(clip["scores"].values())


def test_every_format_says_the_same(done):
    _, out = done
    clips = json.loads((out / "results.json").read_text())["clips"]
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [{**line, "run": None} for line in lines if "error" not in line] == [{**clip, "run": None} for clip in clips]
    assert len({line["run"] for line in lines}) == 1
    rows = [row for row in csv.DictReader((out / "results.csv").read_text().splitlines()) if not row["error"]]
    assert [(row["path"], row["label"], float(row["score"])) for row in rows] == [
        (clip["path"], clip["label"], clip["score"]) for clip in clips
    ]
    table = (out / "results.txt").read_text()
    assert all(clip["path"] in table for clip in clips)


def test_the_page_has_pictures_of_the_videos(done):
    _, out = done
    page = (out / "page.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3 + 2
    assert "classified by sound alone" in page
    assert "torn.mp4" in page
    assert not re.search(r"https?://", page)
    assert not [path for path in out.iterdir() if ".part" in path.name]


def test_the_same_command_gives_the_same_results_on_stdout(done, folder, monkeypatch, capsys):
    _, out = done
    monkeypatch.chdir(folder)
    assert run(["zeroshot", "--labels", "labels.txt", "--segments", "--format", "json", "both.mp4"]) == 0
    captured = capsys.readouterr()
    [again] = json.loads(captured.out)["clips"]
    before = json.loads((out / "results.json").read_text())["clips"][0]
    assert again["path"] == "both.mp4"
    assert again["scores"] == pytest.approx(before["scores"], abs=1e-5)
    assert [segment["label"] for segment in again["segments"]] == [segment["label"] for segment in before["segments"]]
    assert "the scores mean nothing" in captured.err
