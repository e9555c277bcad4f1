"""Decoded clips on disk, so that the second epoch reads no video.

What is given never depends on whether it came from the cache. A ten-second clip takes 0.3 to 0.8 MB with pictures of
64 x 64 and 0.7 to 1.3 MB with 224 x 224, and comes back in a tenth to a third of the time that decoding takes with the
former, in a sixth to a half with the latter.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

from avfewshot.cache import DiskCache, file_key
from avfewshot.io import cache_dir
from avfewshot.media.clip import Clip
from avfewshot.media.clip_bytes import DamagedError, decode_clip, encode_clip, rounded
from avfewshot.media.stream import read_isolated

VERSION = 2
"""Raised when clips are decoded or stored in another way; entries of other versions are not used any more."""

DEFAULT_MAX_BYTES = 20_000_000_000


class ClipCache(DiskCache):
    """Reads whole clips, each from its file the first time and from the cache from then on.

    An entry belongs to a path, the file's size and time of modification, and to how it is read; a file that changes is
    decoded anew. Threads may share a cache. All entries together take at most `max_bytes`; 0 keeps none. A training set
    that is larger is mostly decoded anew in each epoch: better give it room, or a bound of 0.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None, max_bytes: int = DEFAULT_MAX_BYTES) -> None:
        super().__init__(cache_dir("clips") if folder is None else folder, ".clip.zip", max_bytes)

    def __reduce__(self) -> tuple[type[ClipCache], tuple[Path, int]]:
        # Worker processes start with a cache of their own on the same folder.
        return ClipCache, (self.folder, self.max_bytes)

    def get(
        self,
        path: str | os.PathLike[str],
        *,
        frame_size: int | None = 224,
        modality: str = "av",
        frame_backend: str = "auto",
    ) -> Clip:
        """Read a whole clip, its waveform rounded to 16 bits; options and errors are those of ``ClipReader``.

        A file that cannot be read is not remembered.
        """
        path = Path(path)
        options = {"frame_size": frame_size, "modality": modality, "frame_backend": frame_backend}
        about = {"version": VERSION, **options}
        key = file_key(path, about) if self.max_bytes else None
        content = None if key is None else super().get(key)
        if content is not None and key is not None:
            try:
                return decode_clip(content, key, path)
            except DamagedError:
                self.damaged(key)
        elif key is None:
            self.count("misses")
        clip = read_isolated(path, **options)
        if clip.waveform is not None:
            clip = replace(clip, waveform=rounded(clip.waveform))
        if key is not None:
            if file_key(path, about) == key:
                self.put(key, encode_clip(clip, key))
            else:  # it changed while it was read
                self.count("unstored")
        return clip
