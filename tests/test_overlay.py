"""`--overlay`: videos with labels burnt in, and parts of clips as files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from media_factory import tone, write_audio, write_media
from sample_results import clip, run_info

from avfewshot.errors import AvfsError, MediaError
from avfewshot.media import decoders
from avfewshot.media.reader import read_clip
from avfewshot.media.transcode import transcode
from avfewshot.reports.timelines import OverlayWriter


def packets(path):
    with av.open(str(path)) as media:
        return [bytes(packet) for packet in media.demux(audio=0) if packet.size]


@pytest.mark.parametrize("place", ["/proc/out", "file/out"])
def test_a_folder_that_cannot_be_made_is_told_before_the_first_clip(tmp_path, place):
    (tmp_path / "file").touch()
    with pytest.raises(AvfsError, match="out: cannot be written: "):
        OverlayWriter(tmp_path / place, run_info())


def test_labels_are_burnt_in_and_the_sound_is_the_same(tmp_path):
    source = write_media(tmp_path / "a.mp4", seconds=3.0, size=(161, 121), audio=tone(3.0), pix_fmt="yuv444p")
    (tmp_path / "b.mp4").write_bytes(b"no video")
    writer = OverlayWriter(tmp_path / "out", run_info())
    with pytest.warns(UserWarning, match=r"b\.mp4: no overlay"):
        writer.add(clip(str(tmp_path / "b.mp4"), seconds=3))
    writer.add(clip(str(source), seconds=3))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.mp4"]
    assert packets(tmp_path / "out" / "a.mp4") == packets(source)
    plain, drawn = (read_clip(path, frame_size=None) for path in (source, tmp_path / "out" / "a.mp4"))
    assert drawn.frames.shape == (3, 3, 120, 160)
    moved = np.abs(plain.frames[:, :, :120, :160].numpy().astype(int) - drawn.frames.numpy()).mean((0, 1, 3))
    assert moved[:10].mean() > 30  # the bars
    assert moved[-10:].mean() > 30
    assert moved[20:-20].mean() < 10  # the picture between them


def test_a_decoder_that_dies_costs_one_video(tmp_path, monkeypatch):
    ask, folder = decoders._Worker.ask, tmp_path / "out"

    def ask_and_strike(worker, request, seconds):
        if request.get("write", {}).get("stem") == "a":
            (folder / ".a-0123abcd.part.mp4").write_bytes(b"what it had written")
            os.kill(worker._process.pid, signal.SIGSEGV)
        return ask(worker, request, seconds)

    monkeypatch.setattr(decoders._Worker, "ask", ask_and_strike)
    folder.mkdir()
    writer = OverlayWriter(folder, run_info())
    with pytest.warns(UserWarning, match=r"a\.mp4: no overlay.*signal 11, SIGSEGV"):
        writer.add(clip(str(write_media(tmp_path / "a.mp4", seconds=1.0)), seconds=1))
    writer.add(clip(str(write_media(tmp_path / "b.mp4", seconds=1.0)), seconds=1))
    assert [path.name for path in folder.iterdir()] == ["b.mp4"]


FULL = """
import resource, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from sample_results import clip, run_info
from avfewshot.reports.timelines import OverlayWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as if the disk were full
try:
    OverlayWriter(Path("out"), run_info()).add(clip("a.mp4", seconds=1))
except OSError as error:
    print(error.strerror, error.filename)
"""


def test_a_full_disk_is_told_with_its_place(tmp_path):
    write_media(tmp_path / "a.mp4", seconds=1.0)
    code = FULL.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == "File too large out\n"
    assert list((tmp_path / "out").iterdir()) == []


def test_a_part_is_cut_where_it_was_asked_for(tmp_path):
    source = write_media(tmp_path / "a.mp4", seconds=4.0, audio=tone(4.0))
    part = transcode(source, tmp_path / "out", "part", start=1.0, end=3.0)
    whole, cut = read_clip(source), read_clip(part)
    assert cut.duration == pytest.approx(2.0, abs=0.05)
    assert np.abs(whole.frames[1:3].numpy().astype(int) - cut.frames.numpy()).mean() < 8
    sound = transcode(write_audio(tmp_path / "s.wav", tone(2.0)), tmp_path / "out", "sound", end=1.0)
    assert (sound.suffix, round(read_clip(sound).duration, 1)) == (".mka", 1.0)
    with pytest.raises(MediaError, match="holds nothing from 9 s on"):
        transcode(source, tmp_path / "out", "none", start=9.0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["part.mp4", "sound.mka"]


def test_the_folder_of_the_clips_is_refused(avfs, tmp_path):
    write_media(tmp_path / "a.mp4")
    asked = ("zeroshot", "a.mp4", "--backbone", "tiny", "--label", "dog", "--overlay", tmp_path)
    assert "clips lie there" in avfs.refused(*asked)
