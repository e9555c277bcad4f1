"""Media files as clips: one picture and one second of sound for each second.

:func:`find_media` finds files, :class:`ClipReader` reads one, :func:`iter_clips` reads many ahead of the model.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from avfewshot.media.clip import SAMPLE_RATE, SEGMENT_SECONDS, Clip, Failure
    from avfewshot.media.discover import MEDIA_SUFFIXES, find_media
    from avfewshot.media.reader import FRAME_BACKENDS, MODALITIES, ClipReader, MediaInfo, read_clip
    from avfewshot.media.stream import iter_clips

__all__ = [
    "FRAME_BACKENDS",
    "MEDIA_SUFFIXES",
    "MODALITIES",
    "SAMPLE_RATE",
    "SEGMENT_SECONDS",
    "Clip",
    "ClipReader",
    "Failure",
    "MediaInfo",
    "find_media",
    "iter_clips",
    "read_clip",
]

_HOME = {
    "clip": ("SAMPLE_RATE", "SEGMENT_SECONDS", "Clip", "Failure"),
    "discover": ("MEDIA_SUFFIXES", "find_media"),
    "stream": ("iter_clips",),
    "reader": ("FRAME_BACKENDS", "MODALITIES", "ClipReader", "MediaInfo", "read_clip"),
}


def __getattr__(name: str) -> Any:
    # Imported when asked for: finding files, and saying that there are none, needs neither torch nor FFmpeg.
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"avfewshot.media.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
