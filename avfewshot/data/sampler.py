"""k-shot supports: per class, seeded, nested over k, independent of the order of rows; and the validation clips beside.

Each clip of a class gets a rank from a keyed hash of (seed, class, id); the support of k shots are the k first by
rank. So the support of 1 lies within that of 2, that within that of 4; shuffling or extending the annotation file
changes nothing for the clips that stay; and a missing clip is replaced by the next one without touching the others.
``first-k`` takes the first k rows of the file instead, as the released DG-SCT code does.

Videos of the test split are in no support, though AVE lists eight in its training split as well.
"""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from avfewshot.data.dataset import Dataset, Sample, ranked
from avfewshot.errors import DataError, some

ALGORITHM = "nested-1"
VALIDATION_SHOTS = 4  # CoOp's: min(k, 4) validation clips a class


@dataclass(frozen=True)
class Support:
    """The clips that a model may learn from."""

    samples: tuple[Sample, ...]  # by class and rank; each sample once
    shots: int
    seed: int  # first-k does not use it
    sampler: str
    multi_label: bool  # drawn from all clips instead of those with a single label
    fingerprint: str  # of the ids, see fingerprint()
    short: dict[str, int]  # class -> clips it has, for classes with fewer than `shots`; those are used whole
    replaced: tuple[str, ...]  # ids without media; the next by rank took their places
    pinned: str | None  # the published fingerprint of this draw from the official files
    overlapping: tuple[str, ...] = ()  # ids of the draw whose videos are in the test split; the next took their places
    drawn: str = ""  # fingerprint before those were replaced: what is published; empty: the same as `fingerprint`

    @property
    def matches_pinned(self) -> bool | None:
        """Whether this is the published draw; None where none is published."""
        return None if self.pinned is None else self.pinned == (self.drawn or self.fingerprint)

    def describe(self) -> list[str]:
        """What a person should know about the draw, one sentence each."""
        apart = f", without {len(self.overlapping)} videos of the test split" if self.overlapping else ""
        lines = [
            f"Support: {len(self.samples)} clips, {self.shots} per class, sampler {self.sampler}"
            + (f", seed {self.seed}" if self.sampler == "nested" else "")
            + f", fingerprint {self.fingerprint[:16]}"
            + (f" (the published one{apart})." if self.matches_pinned else ".")
        ]
        lines += describe_short(self.short, self.shots)
        next_in_rank = "and were replaced by the next in rank."
        if self.replaced:
            lines.append(f"{len(self.replaced)} clips of the support have no media {next_in_rank}")
        if self.overlapping:
            shared = f"{len(self.overlapping)} clips show videos that are also in the test split"
            lines.append(f"{shared} ({some(self.overlapping)}) {next_in_rank}")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The support as JSON-ready values, ids included."""
        return {
            "sampler": self.sampler,
            "algorithm": ALGORITHM if self.sampler == "nested" else self.sampler,
            "shots": self.shots,
            "seed": self.seed,
            "multi_label": self.multi_label,
            "fingerprint": self.fingerprint,
            "pinned": self.pinned,
            "clips": len(self.samples),
            "short": self.short,
            "replaced": list(self.replaced),
            "overlapping": list(self.overlapping),
            "ids": sorted(sample.id for sample in self.samples),
        }


def describe_short(short: Mapping[str, int], shots: int) -> list[str]:
    """What a person should know of classes with fewer clips than `shots`, one sentence each."""
    none = [name for name, count in short.items() if count == 0]
    few = [f"{name} ({count})" for name, count in short.items() if count]
    lines = [f"Classes without any clip to draw: {some(none)}."] if none else []
    return [*lines, f"Classes with fewer than {shots} training clips, used whole: {some(few)}."] if few else lines


@dataclass(frozen=True)
class Validation:
    """The clips that may choose between models: none of them in the support, none of their videos in the test split."""

    samples: tuple[Sample, ...]  # by class and rank; each sample once
    shots: int | Literal["all"]  # clips a class
    seed: int
    split: str  # where they come from: val, or train where there is no val split
    overlapping: tuple[str, ...]  # ids left out since their videos are in the support or the test split
    short: dict[str, int]  # class -> clips it has, for classes with fewer than `shots`

    def describe(self) -> list[str]:
        """What a person should know, one sentence each."""
        each = "all there are" if self.shots == "all" else f"{self.shots} per class"
        lines = [f"Validation: {len(self.samples)} clips of the {self.split} split, {each}, seed {self.seed}."]
        if self.short:
            short = [f"{name} ({count})" for name, count in self.short.items()]
            lines.append(f"Classes with fewer validation clips: {some(short)}.")
        if self.overlapping:
            shared = f"{len(self.overlapping)} validation clips show videos of the support or the test split"
            lines.append(f"{shared} and are left out ({some(self.overlapping)}).")
        return lines

    def to_dict(self) -> dict[str, Any]:
        """The draw as JSON-ready values, ids included."""
        return {
            "shots": self.shots,
            "seed": self.seed,
            "split": self.split,
            "clips": len(self.samples),
            "fingerprint": fingerprint(sample.id for sample in self.samples),
            "short": self.short,
            "overlapping": list(self.overlapping),
            "ids": sorted(sample.id for sample in self.samples),
        }


def fingerprint(ids: Iterable[str]) -> str:
    """SHA-256 (hexadecimal) of the sorted ids joined by newlines, in UTF-8. An id that occurs twice counts twice."""
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogateescape")).hexdigest()


def draw_support(
    dataset: Dataset,
    shots: int,
    seed: int = 1,
    *,
    sampler: str = "nested",
    multi_label: bool = False,
    only_available: bool = False,
) -> Support:
    """Draw k = `shots` clips per class from the training split; a class with fewer clips is used whole.

    Clips without any second of their event (AVE has one, OV-AVEBench thousands) are not drawn by ``nested``;
    ``first-k`` draws the first rows of the file, without a seed. With `multi_label` a clip may stand for several
    classes; else only clips with a single label are drawn, as published for LLP. With `only_available` the next in rank
    replaces a clip without media.

    Raises:
        DataError: There is nothing to draw from.
    """
    tested = {_video(sample) for sample in dataset.split("test")}
    orders = _orders(dataset, sampler, multi_label, seed)
    replaced = [sample.id for order in orders for sample in order[:shots] if only_available and sample.path is None]
    chosen, short, overlapping, drawn = _draw(dataset.classes, orders, shots, tested, only_available)
    if not chosen:
        message = f"There is no training clip to draw a support from in {dataset.description.title}."
        raise DataError(message, hint="avfs data check TASK --root DIR tells what is missing.")
    key = sampler.replace("-", "_") + ("_multi_label" if multi_label and dataset.multi_label else "")
    return Support(
        samples=chosen,
        shots=shots,
        seed=seed,
        sampler=sampler,
        multi_label=multi_label,
        fingerprint=fingerprint(sample.id for sample in chosen),
        short=short,
        replaced=tuple(dict.fromkeys(replaced)),
        pinned=dataset.description.pinned_fingerprint(key, seed, shots),
        overlapping=overlapping,
        drawn=fingerprint(sample.id for sample in drawn) if overlapping else "",
    )


def draw_validation(
    dataset: Dataset,
    shots: int,
    seed: int = 1,
    *,
    count: int | Literal["all"] | None = None,
    support: Sequence[Sample] = (),
    multi_label: bool = False,
    only_available: bool = False,
) -> Validation:
    """Draw validation clips, as :func:`draw_support` does: from the val split, else from the training clips.

    `count` is of clips a class; None: min(`shots`, 4), as CoOp does; 0: none; ``"all"``: the whole val split. No video
    of the clips of `support` is drawn. The draws are nested like supports.
    """
    split = "val" if dataset.split("val") else "train"
    wanted = min(shots, VALIDATION_SHOTS) if count is None else count
    taken = {_video(sample) for sample in (*dataset.split("test"), *support)}
    if wanted == "all":
        clips = dataset.split(split)
        chosen, _, overlapping, _ = _draw(("all",), [clips], len(clips), taken, only_available)
        return Validation(chosen, wanted, seed, split, overlapping, {})
    orders = _orders(dataset, "nested", multi_label, seed, split=split, purpose="validation-1")
    chosen, short, overlapping, _ = _draw(dataset.classes, orders, wanted, taken, only_available)
    return Validation(chosen, wanted, seed, split, overlapping if split == "val" else (), short)


def with_spare_clips(dataset: Dataset, support: Support) -> Dataset:
    """The data set with validation clips moved to the training clips of classes that `support` is short of.

    As many as it lacks, so that supports stay nested; for runs that choose nothing by validation clips.
    """
    moved: set[str] = set()
    for name, count in support.short.items():
        spare = [s for s in dataset.available("val") if s.label == dataset.classes.index(name)]
        order = ranked(spare, seed=0, purpose="spare", group=name)
        moved.update(sample.id for sample in order[: support.shots - count])
    return dataset.with_samples(replace(s, split="train") if s.id in moved else s for s in dataset.samples)


def _draw(
    names: Sequence[str], orders: Sequence[Sequence[Sample]], count: int, taken: set[str], only_available: bool
) -> tuple[tuple[Sample, ...], dict[str, int], tuple[str, ...], tuple[Sample, ...]]:
    """The first clips of each order whose videos are free, the orders that have too few, and what was taken of whom."""
    chosen: dict[int, Sample] = {}
    drawn: dict[int, Sample] = {}
    short: dict[str, int] = {}
    for name, order in zip(names, orders, strict=True):
        usable = [sample for sample in order if sample.path is not None] if only_available else order
        drawn.update({id(sample): sample for sample in usable[:count]})
        free = [sample for sample in usable if _video(sample) not in taken]
        if len(free) < count:
            short[name] = len(free)
        chosen.update({id(sample): sample for sample in free[:count]})
    overlapping = dict.fromkeys(sample.id for sample in drawn.values() if _video(sample) in taken)
    return tuple(chosen.values()), short, tuple(overlapping), tuple(drawn.values())


def _video(sample: Sample) -> str:
    """What two samples of one recording have in common: the video's id, else the file that all links lead to."""
    if sample.youtube_id is not None:
        return sample.youtube_id
    return sample.id if sample.path is None else os.path.realpath(sample.path)


def _orders(
    dataset: Dataset, sampler: str, multi_label: bool, seed: int, *, split: str = "train", purpose: str = ALGORITHM
) -> list[Sequence[Sample]]:
    """Per class, the clips of a split that may be drawn, in the order in which they are drawn."""
    pools: dict[int, list[Sample]] = defaultdict(list)  # in file order
    for sample in sorted(dataset.split(split), key=lambda sample: sample.row):
        if len(sample.labels) > 1 and not multi_label:
            continue
        if sampler == "nested" and not sample.has_event(dataset.num_classes):
            continue
        for label in sample.labels:
            pools[label].append(sample)
    if sampler == "first-k":
        return [pools[label] for label in range(dataset.num_classes)]
    return [ranked(pools[label], seed=seed, purpose=purpose, group=name) for label, name in enumerate(dataset.classes)]


def support_table(
    dataset: Dataset, seeds: Iterable[int] = (1, 2, 3), shots: Iterable[int] = (1, 2, 4, 8, 16)
) -> dict[str, Any]:
    """Fingerprints of many draws from the full official lists, test videos kept, in the form that descriptions pin.

    Returns:
        ``{"algorithm": ..., "nested": {seed: {k: digest}}, "nested_multi_label": {...}, "first_k": {k: digest}}``; the
        third only for data sets with several labels a clip.
    """
    shots = tuple(shots)

    def row(sampler: str, multi_label: bool, seed: int) -> dict[int, str]:
        # The order is the same for every k: the supports are its beginnings.
        orders = _orders(dataset, sampler, multi_label, seed)
        supports = {k: {id(sample): sample for order in orders for sample in order[:k]} for k in shots}
        return {k: fingerprint(sample.id for sample in chosen.values()) for k, chosen in supports.items()}

    seeds = tuple(seeds)
    table: dict[str, Any] = {"algorithm": ALGORITHM, "nested": {seed: row("nested", False, seed) for seed in seeds}}
    if dataset.multi_label:
        table["nested_multi_label"] = {seed: row("nested", True, seed) for seed in seeds}
    table["first_k"] = row("first-k", False, 0)
    return table
