"""Opening media files to see whether they can be used: broken, too short, silent, without sound or picture."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.errors import MediaError
from avfewshot.io import sha256_file

PROBLEMS = ("broken", "short", "no-video", "no-audio", "silent")
SILENCE = 1e-4  # Peak amplitude, 80 dB below full scale: what a lossy codec makes of digital silence stays below it.
_FRAME_SIZE = 32  # Frames are decoded only to see that they can be.


@dataclass(frozen=True)
class Probe:
    """What was found in one file."""

    path: Path
    problems: tuple[str, ...]  # of :data:`PROBLEMS`, empty for a good file
    duration: float = 0.0  # in seconds, 0 where it cannot be opened
    detail: str = ""  # the reader's words on a broken file


def probe_file(path: Path, expected_segments: int | None) -> Probe:
    """Open a file and decode `expected_segments` seconds of it; None: any length will do, and ten are decoded."""
    from avfewshot.media.stream import IsolatedReader

    problems: list[str] = []
    try:
        with IsolatedReader(path, frame_size=_FRAME_SIZE) as reader:
            info = reader.info
            clip = reader.read(0, min(info.num_segments, expected_segments or 10))
    except MediaError as error:
        return Probe(path, ("broken",), detail=error.reason)
    if expected_segments is not None and info.num_segments < expected_segments:
        problems.append("short")
    if not info.has_video:
        problems.append("no-video")
    if not info.has_audio or clip.waveform is None:
        problems.append("no-audio")
    elif float(clip.waveform.abs().max()) < SILENCE:
        problems.append("silent")
    return Probe(path, tuple(problems), info.duration)


def probe_files(
    paths: Iterable[Path],
    expected_segments: int | None,
    *,
    probe: Callable[[Path, int | None], Probe] = probe_file,
    workers: int = 2,
    progress: Callable[[int], object] | None = None,
) -> list[Probe]:
    """Open and decode many files, `workers` at a time; `progress` is called with 1 whenever a file is done."""
    from avfewshot.media.stream import ordered_map

    probes = []
    for found in ordered_map(lambda path: probe(path, expected_segments), paths, workers=workers):
        probes.append(found)
        if progress is not None:
            progress(1)
    return probes


def empty_files(paths: Iterable[Path]) -> list[Path]:
    """Files without a byte, which an interrupted download leaves behind, and files that vanished."""
    return [path for path in paths if _size(path) <= 0]


def identical_files(paths: Sequence[Path]) -> list[tuple[Path, ...]]:
    """Groups of different paths with the same content; only files of equal size are read."""
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in dict.fromkeys(paths):
        by_size[_size(path)].append(path)
    groups: dict[str, list[Path]] = defaultdict(list)
    for size, same_size in by_size.items():
        if size > 0 and len(same_size) > 1:
            for path in same_size:
                groups[_digest(path)].append(path)
    return [tuple(group) for group in groups.values() if len(group) > 1]


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return -1


def _digest(path: Path) -> str:
    try:
        return sha256_file(path)
    except OSError:
        return f"unreadable {path}"
