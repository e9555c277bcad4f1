"""Picks pictures out of a video with decord, for files of which it is known to give the same pictures as PyAV.

decord 0.6 carries an FFmpeg of 2018. Compared picture by picture with PyAV it is identical in 8-bit mp4, mov, Matroska
and WebM files of even height, rotated ones included. It differs where it

* miscounts pictures that are stored behind a keyframe but shown before it (open groups: HEVC by default, MPEG-4),
* replaces pictures that it cannot seek to by others, silently (MPEG-TS),
* orders pictures by timestamps that are wrong (AVI with B-frames),
* takes a mirrored picture for one that is turned,
* places the chroma samples of 4:2:0 pictures elsewhere when it has to interpolate them (odd heights, more than 8 bits).

Such files are left to PyAV. Opening a file makes decord read all of it, in order to index it: of no account for a clip,
but the whole of an hour-long file, of which one minute may be wanted.
"""

from __future__ import annotations

import bisect
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.errors import UsageError
from avfewshot.media.frames_pyav import PyavFrames
from avfewshot.media.probe import Probe, Track

_FORMATS = frozenset({"mov", "matroska"})
_PIXELS = frozenset({"yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gray"})
_BATCH = 8  # pictures of full size held at a time


class DecordUnfitError(Exception):
    """decord cannot read this file, or not with certainty the same pictures as PyAV; the message says why."""


def check_decord() -> None:
    """Raise :class:`~avfewshot.errors.UsageError` if decord is not installed (it has wheels for x86-64 only)."""
    _load()


class DecordFrames:
    """Pictures of one video track, asked for by time, with the interface of ``PyavFrames``.

    Args:
        probe: What the file holds.

    Raises:
        DecordUnfitError: The file is one of those left to PyAV.
        UsageError: decord is not installed.
    """

    def __init__(self, probe: Probe) -> None:
        decord = _load()
        track, stamps = _suitable(probe)
        try:
            self._reader: Any = decord.VideoReader(os.path.abspath(probe.path), num_threads=1, fault_tol=1e-9)
            starts = self._reader.get_frame_timestamp(np.arange(len(self._reader)))[:, 0]
        except Exception as error:  # decord raises many kinds
            raise DecordUnfitError("decord cannot open it") from error
        # decord numbers pictures by their order in time; its own timestamps, in single precision, must agree.
        mine = np.array([float((stamp - stamps[0]) * track.time_base) for stamp in stamps])
        if len(starts) != len(mine) or np.abs(starts - starts[0] - mine).max() > 1e-3:
            raise DecordUnfitError("decord sees another timeline in it")
        self._stamps = stamps
        self._compare_first(probe.path, track)

    def close(self) -> None:
        """Close the file."""
        self._reader = None

    def at(self, limits: Iterable[int]) -> Iterator[np.ndarray]:
        """Pick pictures, see :meth:`avfewshot.media.frames_pyav.PyavFrames.at`.

        Raises:
            DecordUnfitError: A picture could not be decoded.
        """
        numbers = iter([max(0, bisect.bisect_right(self._stamps, limit) - 1) for limit in limits])
        last: int | None = None
        image: Any = None
        while batch := list(itertools.islice(numbers, _BATCH)):
            new = sorted(set(batch) - {last})
            images: dict[Any, Any] = dict(zip(new, self._decode(new), strict=True)) if new else {}
            images.setdefault(last, image)
            for number in batch:
                yield images[number]
            last, image = batch[-1], images[batch[-1]]

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            pictures: Any = self._reader.get_batch(numbers)
            # A program that set decord's bridge to torch gets tensors.
            return pictures.asnumpy() if hasattr(pictures, "asnumpy") else np.asarray(pictures)
        except Exception as error:
            raise DecordUnfitError("decord cannot decode a part of it") from error

    def _compare_first(self, path: Path, track: Track) -> None:
        """Decode one picture by both: proof against mirroring and against whatever else was not foreseen."""
        reference = PyavFrames(path, track)
        try:
            expected = next(reference.at(self._stamps[:1]))
        finally:
            reference.close()
        if expected is None or not np.array_equal(expected, self._decode([0])[0]):
            raise DecordUnfitError("decord shows another picture")


def _suitable(probe: Probe) -> tuple[Track, tuple[int, ...]]:
    track = probe.video
    if not _FORMATS & set(probe.format.split(",")):
        raise DecordUnfitError(f"decord is not reliable for {probe.format} files")
    if track is None or track.pixels is None:
        raise DecordUnfitError("there are no pictures")
    pixels, height = track.pixels
    if pixels not in _PIXELS or height % 2:
        raise DecordUnfitError(f"decord renders {pixels} pictures of {height} lines differently")
    if not track.closed:
        raise DecordUnfitError("decord takes wrong pictures from files with open groups of pictures")
    if track.stamps is None:
        raise DecordUnfitError("the file is long or its timestamps are not simple")
    return track, track.stamps


def _load() -> Any:
    # decord has to be imported after torch: the other way round both crash.
    import torch  # noqa: F401

    # Damaged files go to PyAV (fault_tol); decord need not report them on standard error.
    os.environ.setdefault("DECORD_DUPLICATE_WARNING_THRESHOLD", "1.0")
    try:
        import decord
    except (ImportError, OSError, RuntimeError) as error:
        raise UsageError(
            f"The frame backend 'decord' cannot be used: {error}.",
            hint="Install it (pip install decord), or choose 'auto' or 'pyav'.",
        ) from error
    decord.logging.set_level(decord.logging.QUIET)
    return decord
