"""A decoding process: what :mod:`avfewshot.media.decoders` starts, asks and replaces.

Requests come on its standard input, one JSON object a line; answers go to what was the standard output: a line of JSON,
and behind it the bytes of the arrays that it names. No pickle: what a hostile file makes of the process must not reach
the parent. Nothing here imports torch: a process is ready in a fifth of a second.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.errors import AvfsError, MediaError, explain
from avfewshot.io import DISK_FULL
from avfewshot.media.reader import ClipReader
from avfewshot.media.transcode import Bar, transcode


def serve(memory: int) -> None:
    """Answer requests until the parent closes the pipe or dies; decoding may take `memory` bytes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a library prints must not get between the answers
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    memory = _limit_memory(memory)
    gc.freeze()  # what is imported is never looked at again: a collection takes no time
    with contextlib.ExitStack() as stack:
        reader: Any = None  # a ClipReader
        path = Path()
        for line in sys.stdin.buffer:
            request = json.loads(line)
            arrays: list[np.ndarray] = []
            try:
                if "read" not in request and "write" not in request:
                    stack.close()
                    reader = None  # it holds pictures, and PyAV's decoders refer to themselves
                    gc.collect()
                if "path" in request:
                    if request["options"].get("frame_backend") == "decord" and "decord" not in sys.modules:
                        _limit_memory(None)  # it comes with torch, whose libraries alone take more than a file may
                        with contextlib.suppress(ImportError, OSError):
                            import decord  # noqa: F401
                            import torch  # noqa: F401 - has to come before decord
                        _limit_memory(memory)
                    path = Path(os.fsdecode(request["path"].encode("latin-1")))
                    reader = ClipReader(path, **request["options"])
                    stack.callback(reader.close)
                    answer = {name: value for name, value in vars(reader.info).items() if name != "path"}
                    answer["backend"] = reader.frame_backend
                elif "read" in request:
                    clip = reader.read_arrays(*request["read"])
                    answer = {name: getattr(clip, name) for name in ("start", "last", "duration", "warnings")}
                    both = {"frames": clip.frames, "waveform": clip.waveform}
                    named = {name: np.ascontiguousarray(array) for name, array in both.items() if array is not None}
                    arrays = [*named.values()]
                    answer["arrays"] = [[name, array.dtype.str, array.shape] for name, array in named.items()]
                elif "write" in request:
                    wanted: dict[str, Any] = {"above": None, "below": (), **request["write"]}
                    bars = [None if bar is None else Bar(*bar) for bar in (wanted["above"], *wanted["below"])]
                    wanted |= {"folder": Path(wanted["folder"]), "above": bars[0], "below": bars[1:]}
                    answer = {"name": transcode(path, **wanted).name}
                else:
                    answer = {}
            except Exception as error:  # whatever it is, it is this file's failure
                full = error.errno if isinstance(error, OSError) and error.errno in DISK_FULL else None
                answer = {"error": _reason(error, memory), "hint": getattr(error, "hint", None), "full": full}
            parts: list[Any] = [json.dumps(answer).encode() + b"\n", *arrays]
            for part in parts:
                view = memoryview(part).cast("B")
                while view:
                    view = view[out.write(view) :]


def _reason(error: Exception, memory: int) -> str:
    if isinstance(error, MemoryError) or "failed to map segment" in str(error):  # of a library
        return f"needs more memory to decode than the {memory / 1e9:.2g} GB that one file may use"
    if isinstance(error, MediaError):
        return error.reason
    return error.message if isinstance(error, AvfsError) else explain(error)


def _limit_memory(memory: int | None) -> int:
    """Let allocations beyond `memory` bytes more than now fail (None: no more); gives the bytes that are left."""
    left = memory or 0
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a crash is expected here, and its dump is of no use
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        limit = hard if memory is None else now + memory
        limit = limit if hard == resource.RLIM_INFINITY else min(hard, limit)
        left = limit - now
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    return left


def _end_with_parent(parent: int) -> None:
    """A process that hangs in a decoder would not see that its pipe was closed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)
