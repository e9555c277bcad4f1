"""Decoding processes, from their parent's side: started when needed, watched, replaced when they die.

See :mod:`avfewshot.media.worker` for the other side. A process is used by one thread at a time.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.errors import MediaError, UsageError
from avfewshot.io import THREAD_VARIABLES, sweep_leftovers
from avfewshot.media.clip import Clip
from avfewshot.media.ordered import this_thread
from avfewshot.media.reader import MediaInfo, as_tensors, check_options
from avfewshot.media.transcode import SUFFIXES

_LOG = logging.getLogger(__name__)

TIMEOUT = 60.0
"""Seconds that a file may take, and one more for each of its seconds that was delivered. ``$AVFS_TIMEOUT``, which
``--timeout`` sets, goes before: processes that prepare shards or train decode, too, and inherit it."""

MEMORY = 1_200_000_000
"""Bytes that the decoding of a file may allocate (where the system has ``RLIMIT_AS``)."""

_WATCH_SECONDS = 0.1


def time_limit(seconds: float | None = None) -> float:
    """The limit that is asked for, else that of the environment, else :data:`TIMEOUT`; must be more than 0."""
    given = os.environ.get("AVFS_TIMEOUT") if seconds is None else seconds
    try:
        limit = TIMEOUT if given is None else float(given)
        if limit > 0:
            return limit
    except ValueError:
        pass
    raise UsageError(f"The time limit of a file is a number of seconds that is more than 0, not {given}.")


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
            self._worker = _pool().take()
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
        total = self.info.num_segments
        stop = total if stop is None else stop
        if not 0 <= start < stop <= total:
            raise ValueError(f"{self._path} has the segments [0, {total}), not [{start}, {stop}).")
        facts, arrays = self._ask({"read": [start, stop]})
        self._left += stop - start
        clip = Clip(  # of arrays, see :func:`as_tensors`
            self._path, facts["duration"], facts["start"], arrays.get("frames"), arrays.get("waveform"),
            tuple(facts["warnings"]), facts["last"],
        )  # fmt: skip
        return as_tensors(clip)

    def write(self, folder: Path, stem: str, *, end: float | None = None, **options: Any) -> Path:
        """Write a part of the file as one of its own; see :func:`avfewshot.media.transcode.transcode`."""
        length = self.info.duration if end is None else min(end, self.info.duration)
        self._left += max(1.0, length)  # pictures are encoded as well
        place = {"folder": os.path.abspath(folder), "stem": stem}
        try:
            facts, _ = self._ask({"write": {**place, "end": end, **options}})
        except MediaError:
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
            raise MediaError(self._path, facts["error"], hint=facts["hint"])
        return facts, arrays

    def close(self) -> None:
        """Close the file and give the process back."""
        if self._worker is not None:
            _LOG.debug("%s: decoded in %.2f s", self._path, time.monotonic() - self._began)
        worker, self._worker = self._worker, None
        if worker is None:
            return
        try:
            worker.ask({}, self._timeout)
        except _DeadError:
            return
        _pool().give(worker)

    def __enter__(self) -> IsolatedReader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _DeadError(Exception):
    """The process ended, or had to be ended; says why."""


class _Worker:
    """One decoding process; used by one thread at a time."""

    def __init__(self) -> None:
        code = "import sys, json; sys.path[:] = json.loads(sys.argv[1]); from avfewshot.media import worker; "
        root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        paths = json.dumps([root, *(p for p in sys.path if p and p != root)])  # not '': clips may lie beside an av.py
        self._process: Any = subprocess.Popen(
            [sys.executable, "-c", f"{code}worker.serve({MEMORY})", paths],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env={**os.environ, **dict.fromkeys(THREAD_VARIABLES, "1")},
            start_new_session=True,  # a terminal's Ctrl-C is for the parent, which ends its workers
        )  # fmt: skip
        self.deadline: float | None = None
        self.stopped: threading.Event | None = None
        self._why: str | None = None
        self._answered = False
        self._watching = threading.Lock()  # the end of an answer and the watch of it exclude each other

    @property
    def condemned(self) -> bool:
        """Whether it was ended, if only while its last answer was on the way."""
        return self._why is not None

    def ask(self, request: dict, seconds: float) -> tuple[dict, dict[str, Any]]:
        """Send a request and wait for the answer and its arrays; raise :class:`_DeadError` where none comes."""
        self.stopped, self.deadline = getattr(this_thread, "stopped", None), time.monotonic() + seconds
        try:
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
            return facts, arrays
        except (OSError, EOFError, ValueError):
            self.end()
            raise _DeadError(self._why or _died(self._process.returncode, self._answered)) from None
        except BaseException:  # Ctrl-C in the middle of an answer: the process cannot be used any more
            self.end()
            raise
        finally:
            with self._watching:
                self.deadline = None

    def watch(self) -> None:
        """End the process where it takes too long or is not needed any more; the thread that waits then goes on."""
        with self._watching:
            if self.deadline is None:
                return
            if self.stopped is not None and self.stopped.is_set():
                self._why = "was given up"
            elif time.monotonic() > self.deadline:
                self._why = "took longer than {timeout} s to decode"
            else:
                return
            self._process.kill()

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


class _Pool:
    """Idle decoding processes, and a thread that watches the busy ones."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._all: set[_Worker] = set()
        threading.Thread(target=self._watch, name="avfs-watch", daemon=True).start()
        atexit.register(self._end)

    def take(self) -> _Worker:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        worker = _Worker()
        with self._lock:
            self._all = {w for w in self._all if w._process.returncode is None} | {worker}
        return worker

    def give(self, worker: _Worker) -> None:
        if worker.condemned:  # the next file would pay for the last one
            worker.end()
            return
        with self._lock:
            self._idle.append(worker)

    def _watch(self) -> None:
        while True:
            time.sleep(_WATCH_SECONDS)
            with self._lock:
                workers = list(self._all)
            for worker in workers:
                worker.watch()

    def _end(self) -> None:
        if os.getpid() == self.pid:
            for worker in list(self._all):
                worker.end()


_pools: list[_Pool] = []
_pools_lock = threading.Lock()


def _pool() -> _Pool:
    with _pools_lock:
        if (
            not _pools or _pools[0].pid != os.getpid()
        ):  # a forked process has the pool of its parent, which is not its own
            _pools[:] = [_Pool()]
        return _pools[0]
