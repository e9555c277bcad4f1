"""Media files as clips: one picture and one second of sound for each second.

:func:`find_media` finds files, :class:`ClipReader` reads one, :func:`iter_clips` reads many ahead of the model.
"""

from __future__ import annotations

from avfewshot.media.clip import SAMPLE_RATE, SEGMENT_SECONDS, Clip
from avfewshot.media.discover import MEDIA_SUFFIXES, find_media
from avfewshot.media.prefetch import ClipFailure, iter_clips
from avfewshot.media.reader import FRAME_BACKENDS, MODALITIES, ClipReader, MediaInfo, read_clip

__all__ = [
    "FRAME_BACKENDS",
    "MEDIA_SUFFIXES",
    "MODALITIES",
    "SAMPLE_RATE",
    "SEGMENT_SECONDS",
    "Clip",
    "ClipFailure",
    "ClipReader",
    "MediaInfo",
    "find_media",
    "iter_clips",
    "read_clip",
]
