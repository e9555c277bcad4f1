"""Where the clips of a pretraining come from: videos or shards, without those that would leak into evaluation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from avfewshot.data.check import find_other_datasets
from avfewshot.data.clip_source import ClipSource, RawSource, read_start
from avfewshot.data.leakage import EVALUATION_SPLITS, without_leaks, youtube_ids
from avfewshot.data.load import load_dataset
from avfewshot.data.media_index import require_media
from avfewshot.data.sampler import fingerprint
from avfewshot.data.shards.reader import ShardSet
from avfewshot.errors import DataError
from avfewshot.media.clip_cache import ClipCache
from avfewshot.training.leaks import LeakFilter

_BYTES_PER_CLIP = 1_000_000
"""A decoded clip in the cache takes about this much; a list that does not fit is decoded anew in each epoch."""
_KEPT = "Videos of evaluation splits are kept (--keep-leaks): figures on those data sets are too good."


@dataclass(frozen=True)
class Supply:
    """Where clips come from.

    Attributes:
        train: Clips to train on.
        val: Clips to judge on, or None.
        skip: Whether a clip is to be left out, by its id.
        about: What a checkpoint says of the list: list, fingerprint, clips.
        notes: What a person should know.
    """

    train: ClipSource
    val: ClipSource | None
    skip: Callable[[str], bool]
    about: dict[str, Any]
    notes: tuple[str, ...]


def supply_from_shards(
    folder: str | Path, name: str, *, frame_size: int, workers: int, against: Iterable[str | Path], keep_leaks: bool
) -> Supply:
    """Clips of prepared shards.

    Args:
        folder: As `avfs data prepare` wrote it.
        name: Name of the data set.
        frame_size: Side of the pictures that the backbone needs.
        workers: Threads that decode ahead.
        against: Folders of data sets that will be evaluated on; shards hold no list that could be compared with more.
        keep_leaks: Whether to keep videos of their evaluation splits.

    Raises:
        AvfsError: Shards are missing, damaged or made for another backbone.
    """
    shards = ShardSet.open(folder)
    shards.check_frame_side(frame_size)
    train = shards.split("train", threads=workers)
    val = shards.split("val", threads=workers) if shards.splits.get("val") else None
    others = [] if keep_leaks else find_other_datasets(name, against)
    leaks = LeakFilter({video for other in others for video in youtube_ids(other, EVALUATION_SPLITS)})
    left = sum(leaks(clip) for clip in train.ids)
    if keep_leaks:
        note = _KEPT
    elif others:
        note = f"Leakage into evaluation: {left:,} clips left out."
    else:
        note = "Leakage into evaluation is not checked: name the folders of AVE and LLP with --against DIR."
    about = {"list": shards.index.title, "fingerprint": fingerprint(train.ids), "clips": len(train) - left}
    return Supply(train, val, leaks, about, (note,))


def supply_from_videos(
    name: str,
    root: str | Path,
    *,
    media: Sequence[str | Path] = (),
    list_file: str | Path | None = None,
    frame_size: int,
    frame_backend: str,
    workers: int,
    cache_size: int,
    against: Iterable[str | Path],
    keep_leaks: bool,
) -> Supply:
    """Clips decoded from their videos, and kept on disk where all of them fit.

    Args:
        name: Name of the data set.
        root: Folder of its list.
        media: Folders of its videos; empty: `root`.
        list_file: The list, where it is not found by its name.
        frame_size: Side of the pictures that the backbone needs.
        frame_backend: What decodes frames.
        workers: Threads that decode ahead.
        cache_size: Bound on decoded clips kept on disk, in bytes.
        against: Folders of data sets that will be evaluated on, beside `root` and the folder above it.
        keep_leaks: Whether to keep videos of their evaluation splits.

    Raises:
        AvfsError: The list cannot be read, or no clip to train on is there.
    """
    dataset = load_dataset(name, root, media=media, list_file=list_file)
    require_media(dataset, media or [root])
    notes = [f"{dataset.description.title}: {dataset.form}, {len(dataset.samples):,} clips."]
    notes += [finding.message for finding in dataset.report.findings if finding.severity != "info"]
    if keep_leaks:
        notes.append(_KEPT)
    else:
        others = find_other_datasets(dataset, [*against, root, Path(root).parent])
        removal = without_leaks(dataset, others)
        names = ", ".join(other.description.title for other in others) or "no other data set found (--against DIR)"
        where = ", ".join(f"{count:,} in {split}" for split, count in removal.by_source.items())
        notes.append(
            f"Leakage into evaluation ({names}): {len(removal.removed):,} clips left out{f' ({where})' * bool(where)}."
        )
        dataset = removal.dataset
    usable, val = dataset.available("train"), dataset.available("val")
    if not usable:
        raise DataError(f"{dataset.description.title} has no training clip with media.")
    total = dataset.split_sizes["train"]
    if len(usable) < total:
        notes.append(f"{len(usable):,} of {total:,} training clips have media.")
    read = partial(read_start, frame_size=frame_size, frame_backend=frame_backend)
    if cache_size >= _BYTES_PER_CLIP * (len(usable) + len(val)):
        read = partial(ClipCache(max_bytes=cache_size).get, frame_size=frame_size, frame_backend=frame_backend)
    about = {
        "list": dataset.form,
        "fingerprint": fingerprint(sample.id for sample in usable),
        "clips": len(usable),
    }
    return Supply(
        RawSource(dataset, usable, read, threads=workers),
        RawSource(dataset, val, read, threads=workers) if val else None,
        lambda clip: False,
        about,
        tuple(notes),
    )
