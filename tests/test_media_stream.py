"""Many files, decoded ahead: in order, in bounded memory, whatever single files do."""

import contextlib
import errno
import gc
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from media_factory import strike, tone, write_audio, write_media

from avfewshot.errors import MediaError, UsageError
from avfewshot.media import decoders
from avfewshot.media import stream as module
from avfewshot.media.clip import SAMPLE_RATE, Clip, Failure
from avfewshot.media.reader import read_clip
from avfewshot.media.stream import iter_clips


@pytest.fixture(autouse=True)
def time_limit():
    """What waits for ever must not hold up the other tests."""

    def late(*_):
        raise TimeoutError("the test takes more than 60 seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("prefetch")


@pytest.fixture(scope="module")
def files(folder) -> list[Path]:
    return [
        write_audio(folder / "five.wav", tone(5.0, 8000), 8000),
        write_media(folder / "three.mp4", seconds=3.0, size=(32, 32), audio=tone(3.0)),
        write_audio(folder / "one.wav", tone(1.0, 8000), 8000),
        write_media(folder / "two.mp4", seconds=2.0, size=(32, 32)),
    ]


class FakeReader:
    """Stands in for ClipReader: files named by their number of segments; counts what is alive."""

    made = 0
    alive = 0
    most = 0
    slow: float = 0.0
    lock = threading.Lock()

    def __init__(self, path, **options):
        self.path = path
        if "broken" in path.name:
            raise MediaError(path, "is broken.", hint="Mend it.")
        if "strange" in path.name:
            raise RuntimeError("something\nunforeseen")
        self.info = type("Info", (), {"num_segments": int(path.stem.split("-")[-1])})

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def read(self, start, stop):
        if "halfway" in self.path.name and start:
            raise MediaError(self.path, "ends here")
        cls = FakeReader
        time.sleep(cls.slow)
        with cls.lock:
            cls.made += 1
            cls.alive += 1
            cls.most = max(cls.most, cls.alive)
        clip = Clip(
            self.path, 0.0, start, None, torch.zeros((stop - start) * SAMPLE_RATE), (), stop == self.info.num_segments
        )
        object.__setattr__(clip, "_mark", Mark())
        return clip


class Mark:
    """Tells when the clip that holds it is gone."""

    def __del__(self):
        with FakeReader.lock:
            FakeReader.alive -= 1


def in_new_decoders(*paths, **options):
    decoders._idle.clear()
    got = list(iter_clips(paths, workers=1, **options))
    decoders._idle.clear()
    return got


@pytest.fixture(scope="module")
def huge(folder):
    """A picture that takes 190 MB decoded."""
    return write_media(folder / "huge.mkv", times=[0.0], size=(9000, 7000), codec="mjpeg", pix_fmt="yuvj420p")


@pytest.fixture
def fake(monkeypatch):
    gc.collect()
    monkeypatch.setattr(module, "IsolatedReader", FakeReader)
    for name in ("made", "alive", "most"):
        monkeypatch.setattr(FakeReader, name, 0)
    monkeypatch.setattr(FakeReader, "slow", 0.0)
    return FakeReader


def decoding_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("avfs-decode")]


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_files_and_their_chunks_come_in_order_and_whole(files, workers):
    got = list(iter_clips(files, frame_size=16, chunk_segments=2, workers=workers, prefetch=3))
    assert [(c.path.name, c.start, c.num_segments, c.last) for c in got] == [
        ("five.wav", 0, 2, False),
        ("five.wav", 2, 2, False),
        ("five.wav", 4, 1, True),
        ("three.mp4", 0, 2, False),
        ("three.mp4", 2, 1, True),
        ("one.wav", 0, 1, True),
        ("two.mp4", 0, 2, True),
    ]
    whole = read_clip(files[1], frame_size=16)
    assert torch.equal(torch.cat([c.frames for c in got[3:5]]), whole.frames)
    assert (torch.cat([c.waveform for c in got[3:5]]) - whole.waveform).abs().max() < 1e-4
    assert not decoding_threads()


def test_files_that_fail_fail_in_their_place(files, tmp_path):
    (tmp_path / "empty.mp4").touch()
    got = list(
        iter_clips([tmp_path / "missing.mp4", files[2], tmp_path / "empty.mp4", tmp_path, files[3]], frame_size=8)
    )
    assert [type(one).__name__ for one in got] == ["Failure", "Clip", "Failure", "Failure", "Clip"]
    assert [one.error for one in got if isinstance(one, Failure)] == [
        "no such file",
        "is empty (0 bytes)",
        "is a folder, not a file",
    ]
    assert got[0].path == str(tmp_path / "missing.mp4")


def test_failures_say_what_happened_in_one_line(fake):
    got = list(iter_clips(["broken-1", "a-1", "strange-1", "halfway-3", "b-1"], chunk_segments=1))
    assert got[0] == Failure("broken-1", "is broken. Mend it.")
    assert got[2] == Failure("strange-1", "unexpected RuntimeError: something unforeseen")
    assert (got[3].start, got[3].last) == (0, False)
    assert got[4] == Failure("halfway-3", "ends here")
    assert [one.path.name for one in got[5:]] == ["b-1"]


@pytest.mark.parametrize(("workers", "prefetch"), [(1, 1), (2, 1), (2, 2), (4, 3), (8, 4)])
def test_no_more_chunks_are_held_than_allowed(fake, workers, prefetch):
    paths = [f"{n}-{length}" for n, length in enumerate([50, 1, 30, 1, 1, 40, 2, 1] + [1] * 40)]
    got = []
    for clip in iter_clips(paths, chunk_segments=1, workers=workers, prefetch=prefetch):
        got.append((clip.path.name, clip.start))
        time.sleep(0.0005)
        del clip
    assert got == [(path, start) for path in paths for start in range(int(path.split("-")[1]))]
    # Beside the chunks held, the one handed out; and one that its worker has not let go of yet.
    assert prefetch <= fake.most <= prefetch + 1 + workers


def test_decoding_runs_ahead_of_the_caller(fake):
    clips = iter_clips([f"{n}-1" for n in range(20)], workers=2, prefetch=6)
    assert fake.made == 0  # nothing starts before the first is asked for
    next(clips)
    deadline = time.monotonic() + 30
    while fake.made < 6 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert 6 <= fake.made <= 7
    clips.close()


def test_closing_and_an_exception_in_the_callers_loop_stop_the_workers(fake):
    fake.slow = 0.01
    clips = iter_clips([f"{n}-1000" for n in range(100)], chunk_segments=1, workers=3, prefetch=4)
    next(clips)
    assert decoding_threads()
    clips.close()
    assert not decoding_threads()
    assert fake.made < 20

    def consume():
        for _ in iter_clips([f"{n}-1000" for n in range(100)], chunk_segments=1):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        consume()
    gc.collect()
    assert not decoding_threads()


def test_options_are_checked_at_once(files):
    for options, word in (
        ({"workers": -1}, "workers must be at least 0"),
        ({"timeout": 0.0}, "more than 0"),
        ({"prefetch": 0}, "prefetch must be at least 1"),
        ({"chunk_segments": 0}, "chunk_segments must be at least 1"),
        ({"modality": "smell"}, "av, visual, audio"),
        ({"frame_backend": "x"}, "auto, decord, pyav"),
    ):
        with pytest.raises(UsageError, match=word):
            iter_clips(files, **options)  # not even iterated over


# Files that kill, stop or exhaust their decoder.


def running() -> list[int]:
    """Processes that wait for a file."""
    return [worker._process.pid for worker in decoders._idle if worker._process.poll() is None]


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
def test_a_decoder_that_dies_costs_its_file_only(files, monkeypatch, number):
    strike(monkeypatch, files[1].name, number)
    got = list(iter_clips(files, frame_size=16, workers=2))
    assert [one.ok for one in got] == [True, False, True, True]
    assert got[1] == Failure(str(files[1]), f"the decoder crashed (signal {int(number)}, {number.name})")


def test_a_file_that_takes_too_long_is_given_up_and_named(files, monkeypatch):
    strike(monkeypatch, files[1].name, signal.SIGSTOP)
    got = list(iter_clips(files, frame_size=16, workers=1, timeout=6))  # in which a process has to start, too
    assert [one.ok for one in got] == [True, False, True, True]
    assert got[1].error == "took longer than 6 s to decode"


def test_a_decoder_that_is_ended_while_its_last_answer_arrives_is_not_given_to_the_next_file(files, monkeypatch):
    ask, stopped = decoders._Worker.ask, threading.Event()

    def ask_and_be_ended(worker, request, seconds):
        readline = worker._process.stdout.readline

        class Late:
            def readline(self):
                line = readline()
                if request == {}:  # the file is closed; now the watch comes by
                    stopped.set()
                    time.sleep(5 * decoders._WATCH_SECONDS)
                return line

            def __getattr__(self, name):
                return getattr(pipe, name)

        pipe, worker._process.stdout = worker._process.stdout, Late()
        try:
            return ask(worker, request, seconds)
        finally:
            worker._process.stdout = pipe

    with monkeypatch.context() as patch:
        patch.setattr(decoders._Worker, "ask", ask_and_be_ended)
        patch.setattr(decoders.this_thread, "stopped", stopped, raising=False)
        module.read_isolated(files[0])
    assert module.read_isolated(files[1]).num_segments == 3


def test_the_environment_sets_the_time_limit_of_all_that_decode(files, monkeypatch):
    strike(monkeypatch, files[1].name, signal.SIGSTOP)
    monkeypatch.setenv("AVFS_TIMEOUT", "1")
    with pytest.raises(MediaError, match="took longer than 1 s"):
        module.read_isolated(files[1])
    monkeypatch.setenv("AVFS_TIMEOUT", "soon")
    with pytest.raises(UsageError, match=r"AVFS_TIMEOUT: the time limit .* more than 0, not soon"):
        iter_clips(files)


def test_closing_ends_a_decoder_that_hangs(files, monkeypatch):
    strike(monkeypatch, files[1].name, signal.SIGSTOP)
    clips = iter_clips(files, frame_size=16, workers=2)
    next(clips)
    began = time.monotonic()
    clips.close()
    assert time.monotonic() - began < 10


def test_memory_beyond_the_bound_costs_the_file_only(huge, files, monkeypatch):
    monkeypatch.setattr(decoders, "MEMORY", 40_000_000)
    got = in_new_decoders(huge, files[0], frame_size=16)
    assert [one.ok for one in got] == [False, True]
    assert got[0].error == "needs more memory to decode than the 0.04 GB that one file may use"


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_AS")
@pytest.mark.parametrize(
    ("megabytes", "reason"),
    [
        (30, r"the decoder ended \(exit status \d+\): it cannot start, perhaps for want of memory"),
        (500, r"needs more memory to decode than the 0\.\d+ GB that one file may use"),
        (None, "no process can be started to decode it: Cannot allocate memory"),
    ],
)
def test_a_decoder_under_a_tight_limit_costs_its_file_and_names_the_limit(huge, monkeypatch, megabytes, reason):
    start = subprocess.Popen

    def limited(command, **options):
        if megabytes is None:
            raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        return start(["sh", "-c", f'ulimit -v {megabytes}000; exec "$@"', "sh", *command], **options)

    monkeypatch.setattr(decoders.subprocess, "Popen", limited)
    (got,) = in_new_decoders(huge, frame_size=16)
    assert re.fullmatch(reason, got.error)


def test_a_minute_of_sound_at_the_highest_rate_fits_into_the_bound(folder, monkeypatch):
    path = folder / "fast.wav"
    wave = np.zeros((1, 60 * 192_000), np.float32)
    wave[:, ::1000] = 0.5
    write_audio(path, wave, 192_000)
    path.write_bytes(
        path.read_bytes().replace(struct.pack("<II", 192_000, 384_000), struct.pack("<II", 768_000, 1_536_000))
    )
    monkeypatch.setattr(decoders, "MEMORY", 300_000_000)
    got = in_new_decoders(path)
    assert [one.num_segments for one in got if one.ok] == [15], got


def test_decoders_are_reused_and_end_with_their_parent(files):
    list(iter_clips(files * 3, frame_size=16, workers=1))
    before = running()
    list(iter_clips(files, frame_size=16, workers=1))
    assert before
    assert running() == before
    code = (
        "import os, sys; from avfewshot.media.stream import iter_clips\n"
        "list(iter_clips(sys.argv[1:], frame_size=16, workers=1)); from avfewshot.media import decoders\n"
        "print(decoders._idle[0]._process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    ended = subprocess.run([sys.executable, "-c", code, *map(str, files)], capture_output=True, text=True)
    (pid,) = map(int, ended.stdout.split())
    deadline = time.monotonic() + 20
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < deadline:
            os.kill(pid, 0)
            time.sleep(0.05)
        pytest.fail("the decoder outlives its parent")


def test_decord_has_its_libraries_beside_the_memory_of_a_file(files):
    pytest.importorskip("decord")
    clip = next(iter_clips([files[1]], frame_size=16, frame_backend="decord"))
    assert torch.equal(clip.frames, read_clip(files[1], frame_size=16).frames)


def test_a_script_without_a_main_guard_can_decode(files, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom avfewshot.media.stream import iter_clips\nprint(len(list(iter_clips(sys.argv[1:]))))\n"
    )
    done = subprocess.run([sys.executable, script, *map(str, files)], capture_output=True, text=True)
    assert done.stdout.split() == ["4"], done.stderr
