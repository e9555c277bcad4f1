"""Small pictures of a clip, as ``data:`` addresses for a page without any other file."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

from avfewshot.errors import AvfsError

if TYPE_CHECKING:
    import numpy as np

SIZE = 128
QUALITY = 78


@dataclass(frozen=True)
class Thumbnail:
    """A frame of a clip."""

    second: int  # index of the segment it shows
    source: str  # data:image/jpeg;base64,...


def thumbnails(path: str, count: int, *, frame_backend: str = "auto") -> list[Thumbnail]:
    """At most `count` evenly spaced frames of a file; none without video, or where it can no longer be read."""
    from avfewshot.media.decoders import IsolatedReader, time_limit
    from avfewshot.media.remote import fetch, is_remote

    pictures = []
    try:
        file = fetch(path, timeout=time_limit()) if is_remote(path) else path
        with IsolatedReader(file, frame_size=SIZE, modality="visual", frame_backend=frame_backend) as reader:
            if not reader.info.has_video:
                return []
            for second in spread(reader.info.num_segments, count):
                frames = reader.read(second, second + 1).frames
                if frames is not None:
                    pictures.append(Thumbnail(second, jpeg_source(frames[0].permute(1, 2, 0).numpy())))
    except AvfsError:
        return pictures  # the scores are already there; a page without pictures is better than none
    return pictures


def spread(total: int, count: int) -> list[int]:
    """Indices of the middles of `count` equal parts of ``range(total)``; all of them when there are no more."""
    if total <= count:
        return list(range(total))
    return [int((part + 0.5) * total / count) for part in range(count)]


def jpeg(picture: np.ndarray, side: int | None = None) -> bytes:
    """A picture, uint8 ``[H, W, 3]``, RGB, as a JPEG file; with a bound on its longer side."""
    from PIL import Image

    image, buffer = Image.fromarray(picture), io.BytesIO()
    if side is not None:
        image.thumbnail((side, side))
    image.save(buffer, format="JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def grey_source(values: np.ndarray) -> str:
    """A map ``[H, W]``, such as a spectrogram, as a grey JPEG: the middle 98 % of its values from black to white."""
    import numpy as np

    low, high = np.quantile(values, (0.01, 0.99))
    shades = np.clip((values - low) / max(high - low, 1e-6), 0, 1)
    return jpeg_source(np.repeat((255 * shades).astype(np.uint8)[..., None], 3, axis=-1))


def jpeg_source(picture: np.ndarray | bytes) -> str:
    """A picture, uint8 ``[H, W, 3]``, RGB, or a JPEG file as ``data:image/jpeg;base64,...``."""
    content = picture if isinstance(picture, bytes) else jpeg(picture)
    return "data:image/jpeg;base64," + base64.b64encode(content).decode("ascii")
