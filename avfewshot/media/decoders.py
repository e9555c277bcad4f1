"""Decoding processes: started when needed, watched, replaced when they die; used by one thread at a time.

The parent survives whatever a file does to such a process, whose own side is :mod:`avfewshot.media.decoder_process`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.errors import MediaError, UsageError
from avfewshot.io import naming, sweep_leftovers
from avfewshot.media.clip import Clip
from avfewshot.media.reader import MediaInfo, as_tensors, check_options
from avfewshot.media.transcode import SUFFIXES
from avfewshot.processes import THREAD_VARIABLES

_LOG = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds that a file may take, and one more for each of its seconds that was delivered. ``$AVFS_TIMEOUT``, which
``--timeout`` sets, goes before: processes that prepare shards or train decode, too, and inherit it."""

MEMORY = 1_200_000_000
"""Bytes that the decoding of a file may allocate (where the system has ``RLIMIT_AS``)."""

_WATCH_SECONDS = 0.1

this_thread = threading.local()
""".stopped: the event that ends the work of this thread, and the decoding that it waits for."""


def time_limit(seconds: float | None = None) -> float:
    """The limit that is asked for, else that of the environment, else :data:`TIMEOUT`; in seconds.

    A :class:`UsageError` unless it is more than 0.
    """
    given = os.environ.get("AVFS_TIMEOUT") if seconds is None else seconds
    try:
        limit = TIMEOUT if given is None else float(given)
        if limit > 0:
            return limit
    except ValueError:
        pass
    where = "AVFS_TIMEOUT: the" if seconds is None else "The"
    raise UsageError(f"{where} time limit of a file is a number of seconds that is more than 0, not {given}.")


class IsolatedReader:
    """A :class:`~avfewshot.media.reader.ClipReader` in another process: the same options, `info` and clips.

    Raises:
        MediaError: Also where the decoder crashed, took longer than `timeout` or ran out of its memory.
    """

    def __init__(self, path: str | Path, *, timeout: float | None = None, **options: Any) -> None:
        check_options(options.get("modality", "av"), options.get("frame_backend", "auto"))
        self._path = Path(path)
        self._timeout = self._left = time_limit(timeout)
        self._began = time.monotonic()
        try:
            self._worker: _Worker | None = _take()
        except OSError as error:
            raise MediaError(self._path, f"no process can be started to decode it: {error.strerror}") from error
        name = os.fsencode(os.path.abspath(self._path)).decode("latin-1")
        try:
            facts, _ = self._ask({"path": name, "options": options})
        except BaseException:
            self.close()
            raise
        self.frame_backend: str | None = facts.pop("backend")
        self.info = MediaInfo(self._path, **{**facts, "warnings": tuple(facts["warnings"])})

    def read(self, start: int = 0, stop: int | None = None) -> Clip:
        """See :meth:`ClipReader.read`."""
        start, stop = self.info.stretch(start, stop)
        facts, arrays = self._ask({"read": [start, stop]})
        self._left += stop - start
        facts |= {"warnings": tuple(facts["warnings"]), "frames": None, "waveform": None, **arrays}
        return as_tensors(Clip(self._path, **facts))

    def write(self, folder: Path, stem: str, *, end: float | None = None, **options: Any) -> Path:
        """Write a part of the file as one of its own; see :func:`avfewshot.media.transcode.transcode`.

        Raises:
            MediaError: The file cannot be read, or holds nothing of that time.
            OSError: The disk is full.
        """
        length = self.info.duration if end is None else min(end, self.info.duration)
        self._left += max(1.0, length)  # pictures are encoded as well
        place = {"folder": os.path.abspath(folder), "stem": stem}
        try:
            with naming(folder):
                facts, _ = self._ask({"write": {**place, "end": end, **options}})
        except (MediaError, OSError):
            for suffix in SUFFIXES:  # of a process that died
                sweep_leftovers(folder / f"{stem}{suffix}")
            raise
        return folder / facts["name"]

    def _ask(self, request: dict) -> tuple[dict, dict[str, Any]]:
        if self._worker is None:
            raise MediaError(self._path, "is closed")
        began = time.monotonic()
        try:
            facts, arrays = self._worker.ask(request, self._left)
        except _DeadError as dead:
            self._worker = None
            reason = str(dead).format(timeout=f"{self._timeout:g}")
            _LOG.info("%s: %s; its process is replaced", self._path, reason)
            raise MediaError(self._path, reason) from None
        self._left -= time.monotonic() - began
        if "error" in facts:
            if facts["full"]:
                raise OSError(facts["full"], os.strerror(facts["full"]))
            raise MediaError(self._path, facts["error"], hint=facts["hint"])
        return facts, arrays

    def close(self) -> None:
        """Close the file and give the process back."""
        if self._worker is not None:
            _LOG.debug("%s: decoded in %.2f s", self._path, time.monotonic() - self._began)
        worker, self._worker = self._worker, None
        if worker is not None:
            with contextlib.suppress(_DeadError):  # it is not used again
                worker.ask({}, self._timeout)
                _idle.append(worker)

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DeadError(Exception):
    """The process ended, or had to be ended; says why."""


class _Worker:
    """One decoding process; used by one thread at a time."""

    def __init__(self) -> None:
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from avfewshot.media import decoder_process; "
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        paths = json.dumps([root, *(p for p in sys.path if p and p != root)])  # not '': clips may lie beside an av.py
        self._process: Any = subprocess.Popen(
            [sys.executable, "-c", f"{code}decoder_process.serve({MEMORY})", paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")},
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which ends its workers
        )  # fmt: skip
        self._answered = False
        self._why: str | None = None  # it was ended

    def ask(self, request: dict, seconds: float) -> tuple[dict, dict[str, Any]]:
        """Send a request and wait for the answer and its arrays; raise :class:`_DeadError` where none comes."""
        try:
            with self._watched(seconds):
                self._process.stdin.write(json.dumps(request).encode() + b"\n")
                self._process.stdin.flush()
                line = self._process.stdout.readline()
                if not line.endswith(b"\n"):
                    raise EOFError
                facts, self._answered = json.loads(line), True
                arrays = {}
                for name, kind, shape in facts.pop("arrays", ()):
                    arrays[name] = np.empty(shape, kind)
                    if self._process.stdout.readinto(memoryview(arrays[name]).cast("B")) != arrays[name].nbytes:
                        raise EOFError
            if self._why:  # while its answer was on the way: the next file would pay for this one
                raise EOFError
            return facts, arrays
        except (OSError, EOFError, ValueError):
            self.end()
            raise _DeadError(self._why or _died(self._process.returncode, self._answered)) from None
        except BaseException:  # Ctrl-C in the middle of an answer: the process cannot be used any more
            self.end()
            raise

    @contextlib.contextmanager
    def _watched(self, seconds: float) -> Iterator[None]:
        """End the process where it takes too long or is not needed any more; the thread that waits then goes on."""
        over, stopped, deadline = threading.Event(), getattr(this_thread, "stopped", None), time.monotonic() + seconds

        def watch() -> None:
            while not over.wait(_WATCH_SECONDS):
                if stopped is not None and stopped.is_set():
                    self._why = "was given up"
                elif time.monotonic() > deadline:
                    self._why = "took longer than {timeout} s to decode"
                else:
                    continue
                self._process.kill()
                return

        watching = threading.Thread(target=watch, name="avfs-watch", daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()

    def end(self) -> None:
        """End the process, if need be by force."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                pipe.close()


def _died(status: int, answered: bool) -> str:
    if status >= 0:
        cause = "" if answered else ": it cannot start, perhaps for want of memory"
        return f"the decoder ended (exit status {status}){cause}"
    with contextlib.suppress(ValueError):
        return f"the decoder crashed (signal {-status}, {signal.Signals(-status).name})"
    return f"the decoder crashed (signal {-status})"


_idle: list[_Worker] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # they are the parent's


def _take() -> _Worker:
    with contextlib.suppress(IndexError):
        return _idle.pop()
    return _Worker()
