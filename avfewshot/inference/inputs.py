"""What can be classified, files, folders, globs, pictures, arrays of frames and sound, and as what: labels."""

from __future__ import annotations

import contextlib
import glob
import math
import os
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avfewshot.errors import UsageError
from avfewshot.labels import LabelSet
from avfewshot.media import remote
from avfewshot.media.clip import SAMPLE_RATE, Clip, Failure
from avfewshot.media.container import RATES
from avfewshot.media.discover import find_media, home
from avfewshot.media.picture import fit
from avfewshot.media.resample import margin, to_model_rate
from avfewshot.media.stream import iter_clips

Inputs = Any
"""A path (of a file, a folder or a glob), a PIL image, an array or a tensor of frames, sound with its rate; or several.

Frames are uint8 ``[T, H, W, 3]`` or ``[T, 3, H, W]``, RGB, one a second. Sound is ``(waveform, rate)``, floats in
[-1, 1] or integers, ``[samples]`` or ``[channels, samples]``.
Both together are ``dict(frames=..., waveform=..., rate=...)``.
"""

Labels = LabelSet | Sequence[str] | Mapping[str, str]
"""Names, or a dictionary with the wording of each name."""


FORMS = (
    "Give paths (of files, folders or globs), PIL images, arrays of frames (uint8 [T, H, W, 3], one a second), "
    "(waveform, rate), or dict(frames=..., waveform=..., rate=...)."
)


def is_single(inputs: Any) -> bool:
    """Whether `inputs` stands for one input (which a folder or a glob is, too) and not for several."""
    return (
        isinstance(inputs, (str, os.PathLike, Clip, np.ndarray, torch.Tensor, Mapping))
        or _is_image(inputs)
        or (isinstance(inputs, tuple) and len(inputs) == 2 and _is_array(inputs[0]) and _is_number(inputs[1]))
    )


def names_many(inputs: Any) -> bool:
    """Whether it is a path, but a folder's or a glob."""
    if not isinstance(inputs, (str, os.PathLike)):
        return False
    text = home(inputs)
    if remote.is_remote(text):
        return remote.names_many(text)
    return os.path.isdir(text) or (glob.has_magic(text) and not os.path.lexists(text))


def expand(inputs: Any, *, frame_size: int, modality: str) -> list[Path | str | Clip]:
    """Everything that `inputs` names: files as paths, addresses as texts, what is in memory as clips.

    A :class:`UsageError` where something is none of these, or holds nothing of `modality`.
    """
    if is_single(inputs):
        inputs = [inputs]
    elif isinstance(inputs, (bytes, type(None))) or not isinstance(inputs, Iterable):
        raise UsageError(f"{type(inputs).__name__} cannot be classified.", hint=FORMS)
    items: list[Path | str | Clip] = []
    for number, item in enumerate(inputs, start=1):
        if isinstance(item, (str, os.PathLike)):
            many = names_many(item) or remote.is_remote(item)
            items += find_media([os.fspath(item)]) if many else [Path(home(item))]
        elif isinstance(item, Clip):
            items.append(item)
        else:
            items.append(_clip(item, f"input {number}", frame_size, modality))
    return items


def read_items(
    items: Iterable[Path | str | Clip], watch: Callable[[Clip], object] | None = None, **options: Any
) -> Generator[Clip | Failure, None, None]:
    """The clips of items in order: files through :func:`~avfewshot.media.stream.iter_clips` with `options`.

    `watch` is called with each clip before it is given.
    """
    for in_memory, group in groupby(items, key=lambda item: isinstance(item, Clip)):
        part: Any = list(group)
        clips: Any = (clip for clip in part) if in_memory else iter_clips(part, **options)
        with contextlib.closing(clips):
            for clip in clips:
                if watch is not None and isinstance(clip, Clip):
                    watch(clip)
                yield clip


def _clip(item: Any, name: str, frame_size: int, modality: str) -> Clip:
    """One input that is in memory as a clip."""
    if isinstance(item, Mapping):
        if strangers := set(item) - {"frames", "waveform", "rate"}:
            raise UsageError(f"{name}: {', '.join(map(str, strangers))} means nothing.", hint=FORMS)
        frames, waveform, rate = (item.get(key) for key in ("frames", "waveform", "rate"))
    elif _is_image(item):
        frames, waveform, rate = np.asarray(item.convert("RGB")), None, None
    elif isinstance(item, tuple) and len(item) == 2:
        frames, (waveform, rate) = None, item
    elif _is_array(item):
        frames, waveform, rate = item, None, None
    else:
        raise UsageError(f"{name}: {type(item).__name__} cannot be classified.", hint=FORMS)
    pictures = None if frames is None or modality == "audio" else _pictures(frames, name, frame_size)
    sound = None if waveform is None or modality == "visual" else _mono(waveform, rate, name)
    if pictures is None and sound is None:
        raise UsageError(f"{name}: there is nothing in it for modality {modality!r}.", hint=FORMS)
    seconds = 0.0 if sound is None else len(sound) / SAMPLE_RATE
    count = len(pictures) if pictures is not None else max(1, math.floor(seconds + 0.5))
    if sound is not None:
        sound = np.pad(sound, (0, max(0, count * SAMPLE_RATE - len(sound))))[: count * SAMPLE_RATE]
    return Clip(
        Path(name),
        float(count) if pictures is not None else seconds,
        0,
        None if pictures is None else torch.from_numpy(pictures),
        None if sound is None else torch.from_numpy(sound.astype(np.float32)),
        () if pictures is not None and sound is not None else ("no audio track",) if sound is None else (),
    )


def _pictures(frames: Any, name: str, size: int) -> np.ndarray:
    """uint8 ``[T, 3, size, size]`` of a picture or of several, channels first or last."""
    if isinstance(frames, (list, tuple)) and frames and all(_is_image(frame) for frame in frames):
        return np.stack([fit(np.asarray(frame.convert("RGB")), size) for frame in frames])
    values = _array(frames, f"{name}: frames")
    if values.dtype != np.uint8:
        raise UsageError(f"{name}: frames are uint8, 0 to 255, not {values.dtype}.", hint=FORMS)
    if values.ndim == 3:
        values = values[None]
    if values.ndim == 4 and values.shape[-1] != 3 and values.shape[1] == 3:
        values = values.transpose(0, 2, 3, 1)
    if values.ndim != 4 or values.shape[-1] != 3 or not values.size:
        raise UsageError(f"{name}: frames are [T, H, W, 3] or [T, 3, H, W], not {list(values.shape)}.", hint=FORMS)
    return np.stack([fit(picture, size) for picture in values])


def _mono(waveform: Any, rate: Any, name: str) -> np.ndarray:
    """Float32 ``[n]`` at 48 kHz of sound ``[samples]`` or ``[channels, samples]``, floats in [-1, 1] or integers."""
    if not _is_number(rate) or int(rate) != rate or int(rate) not in RATES:
        hint = f"A whole number from {RATES[0]} to {RATES[-1]}, in Hz."
        raise UsageError(f"{name}: the rate of the waveform cannot be {rate!r}.", hint=hint)
    values = _array(waveform, f"{name}: the waveform")
    if values.ndim == 2 and values.shape[0] <= 64:
        values = values.mean(0) if values.dtype.kind == "f" else (values / _full_scale(values)).mean(0)
    if values.ndim != 1 or not values.size or values.dtype.kind not in "fiu":
        shape = list(values.shape)
        raise UsageError(f"{name}: a waveform is [samples] or [channels, samples], not {shape} of {values.dtype}.")
    samples = values.astype(np.float32) / _full_scale(values)
    if not np.isfinite(samples).all():
        raise UsageError(f"{name}: the waveform holds numbers that are not finite.")
    rate = int(rate)
    count = math.ceil(len(samples) * SAMPLE_RATE / rate)
    edge = margin(rate)
    behind = max(edge, math.ceil(count * rate / SAMPLE_RATE) - len(samples) + edge)
    return np.clip(to_model_rate(np.pad(samples, (edge, behind)), rate, count), -1, 1)


def _array(values: Any, what: str) -> np.ndarray:
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        return (values.float() if values.dtype in (torch.bfloat16, torch.float16) else values).numpy()
    try:
        return np.asarray(values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{what} cannot be made an array: {error}", hint=FORMS) from None


def _full_scale(values: np.ndarray) -> float:
    return 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max) + 1


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_image(value: Any) -> bool:
    return callable(getattr(value, "convert", None)) and hasattr(value, "getbands")  # PIL's Image, without its import


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool) and math.isfinite(value)


def label_set(labels: Labels) -> LabelSet:
    """Labels of any form, checked; else there is a :class:`UsageError`."""
    if isinstance(labels, LabelSet):
        return labels
    if isinstance(labels, Mapping):
        return LabelSet.from_wordings(labels)
    if not isinstance(labels, (str, Iterable)) or isinstance(labels, bytes):
        raise UsageError(f"Labels must be a list of texts, not {labels!r}.", hint="Write [label, ...].")
    return LabelSet.from_names(labels if isinstance(labels, str) else list(labels))
