"""k-shot supports: per class, seeded, nested over k, independent of the order of rows.

Each clip of a class gets a rank from a keyed hash of (seed, class, id); the support of k shots are the k first by
rank. So the support of 1 lies within that of 2, that within that of 4; shuffling or extending the annotation file
changes nothing for the clips that stay; and a missing clip is replaced by the next one without touching the others.
``first-k`` takes the first k rows of the file instead, as the released DG-SCT code does.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.ranking import ranked
from avfewshot.errors import DataError, UsageError

ALGORITHM = "nested-1"
SAMPLERS = ("nested", "first-k")


@dataclass(frozen=True)
class Support:
    """The clips that a model may learn from.

    Attributes:
        samples: By class and rank; each sample once.
        shots: k.
        seed: Seed of the draw (``first-k`` does not use it).
        sampler: ``nested`` or ``first-k``.
        multi_label: Drawn from all clips instead of those with a single label.
        fingerprint: SHA-256 of the sorted ids, see :func:`fingerprint`.
        short: Class name -> clips it has, for classes with fewer than k; those are used whole.
        replaced: Ids that belong to the support but have no media; the next by rank took their places.
        pinned: The published fingerprint of this draw from the official files, or None where none is published.
    """

    samples: tuple[Sample, ...]
    shots: int
    seed: int
    sampler: str
    multi_label: bool
    fingerprint: str
    short: dict[str, int]
    replaced: tuple[str, ...]
    pinned: str | None

    @property
    def matches_pinned(self) -> bool | None:
        """Whether this is the published support; None where none is published."""
        return None if self.pinned is None else self.pinned == self.fingerprint

    def describe(self) -> list[str]:
        """What a person should know about the draw, one sentence each."""
        lines = [
            f"Support: {len(self.samples)} clips, {self.shots} per class, sampler {self.sampler}"
            + (f", seed {self.seed}" if self.sampler == "nested" else "")
            + f", fingerprint {self.fingerprint[:16]}"
            + (" (the published one)." if self.matches_pinned else ".")
        ]
        none = [name for name, count in self.short.items() if count == 0]
        few = [f"{name} ({count})" for name, count in self.short.items() if count]
        if none:
            lines.append(f"Classes without any clip to draw: {_some(none)}.")
        if few:
            lines.append(f"Classes with fewer than {self.shots} clips, used whole: {_some(few)}.")
        if self.replaced:
            lines.append(
                f"{len(self.replaced)} clips of the support have no media and were replaced by the next in rank."
            )
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
            "ids": sorted(sample.id for sample in self.samples),
        }


def _some(items: Sequence[str], limit: int = 8) -> str:
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


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
    """Draw k clips per class from the training split.

    Clips without any second of their event (AVE has one, OV-AVEBench thousands) are not drawn by ``nested``.

    Args:
        dataset: The data set.
        shots: k, at least 1; a class with fewer clips is used whole.
        seed: Seed of the draw.
        sampler: ``nested``, or ``first-k`` (the first rows of the file, no seed).
        multi_label: For data sets with several labels a clip: draw from all clips that carry a class, so that a clip
            may stand for several; by default only clips with a single label are drawn, as published for LLP.
        only_available: Draw only clips whose media were found; the next in rank replaces a missing one.

    Returns:
        The support.

    Raises:
        UsageError: `shots` is less than 1, or the sampler is unknown.
        DataError: There is nothing to draw from.
    """
    if shots < 1:
        raise UsageError(
            f"A support needs at least 1 shot per class, not {shots}.", hint="Without any: avfs zeroshot --task TASK."
        )
    if sampler not in SAMPLERS:
        raise UsageError(f"There is no sampler {sampler!r}.", hint=f"Samplers: {', '.join(SAMPLERS)}.")
    orders = _orders(dataset, sampler, multi_label, seed)
    chosen: dict[int, Sample] = {}
    short: dict[str, int] = {}
    replaced: list[str] = []
    for label, name in enumerate(dataset.classes):
        order = orders[label]
        usable = [sample for sample in order if sample.path is not None] if only_available else order
        picked = usable[:shots]
        if len(picked) < shots:
            short[name] = len(picked)
        replaced += [sample.id for sample in order[:shots] if only_available and sample.path is None]
        chosen.update({id(sample): sample for sample in picked})
    if not chosen:
        raise DataError(
            f"There is no training clip to draw a support from in {dataset.description.title}.",
            hint="avfs data check TASK --root DIR tells what is missing.",
        )
    samples = tuple(chosen.values())
    return Support(
        samples=samples,
        shots=shots,
        seed=seed,
        sampler=sampler,
        multi_label=multi_label,
        fingerprint=fingerprint(sample.id for sample in samples),
        short=short,
        replaced=tuple(dict.fromkeys(replaced)),
        pinned=_pinned(dataset, sampler, multi_label, seed, shots),
    )


def _pools(dataset: Dataset, sampler: str, multi_label: bool) -> dict[int, list[Sample]]:
    """Training clips by class, in file order."""
    pools: dict[int, list[Sample]] = defaultdict(list)
    for sample in sorted(dataset.split("train"), key=lambda sample: sample.row):
        if len(sample.labels) > 1 and not multi_label:
            continue
        if sampler == "nested" and not sample.has_event(dataset.num_classes):
            continue
        for label in sample.labels:
            pools[label].append(sample)
    return pools


def _orders(dataset: Dataset, sampler: str, multi_label: bool, seed: int) -> list[Sequence[Sample]]:
    """Per class, the clips that may be drawn, in the order in which they are drawn."""
    pools = _pools(dataset, sampler, multi_label)
    if sampler == "first-k":
        return [pools[label] for label in range(dataset.num_classes)]
    return [
        ranked(pools[label], lambda sample: sample.id, seed=seed, purpose=ALGORITHM, group=name)
        for label, name in enumerate(dataset.classes)
    ]


def _pinned(dataset: Dataset, sampler: str, multi_label: bool, seed: int, shots: int) -> str | None:
    if sampler == "first-k":
        key = "first_k_multi_label" if multi_label and dataset.multi_label else "first_k"
    else:
        key = "nested_multi_label" if multi_label and dataset.multi_label else "nested"
    return dataset.description.pinned_fingerprint(key, seed, shots)


def support_table(
    dataset: Dataset, seeds: Iterable[int] = (1, 2, 3), shots: Iterable[int] = (1, 2, 4, 8, 16)
) -> dict[str, Any]:
    """Fingerprints of many draws, in the form in which descriptions pin them.

    Args:
        dataset: The data set, with its full official lists.
        seeds: Seeds of the ``nested`` draws.
        shots: Values of k.

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
