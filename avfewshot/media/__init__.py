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


def __getattr__(name: str) -> Any:
    # Imported when asked for: finding files, and saying that there are none, needs neither torch nor FFmpeg.
    for module in ("clip", "discover", "reader", "stream") if name in __all__ else ():
        home = import_module(f"avfewshot.media.{module}")
        if hasattr(home, name):
            return getattr(home, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
