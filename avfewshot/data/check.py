"""Everything that can be said about a data set before training on it."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.data.avsbench import probe_clip
from avfewshot.data.dataset import Dataset
from avfewshot.data.description import description_names
from avfewshot.data.findings import MAX_EXAMPLES, DatasetReport
from avfewshot.data.leakage import EVALUATION_SPLITS, Overlap, cross_dataset_overlaps, cross_split_overlaps
from avfewshot.data.load import load_dataset
from avfewshot.data.probe import PROBLEMS, Probe, empty_files, identical_files, probe_file, probe_files
from avfewshot.data.sampler import support_table
from avfewshot.errors import AvfsError

FORMAT_VERSION = 1


@dataclass(frozen=True)
class CheckResult:
    """What a check found."""

    dataset: Dataset
    overlaps: tuple[Overlap, ...]  # shared YouTube videos between splits and with other data sets
    compared_with: tuple[str, ...]  # names of the other data sets
    probes: tuple[Probe, ...] | None  # what opening the media told; None where they were not opened
    supports: str | None  # match, differ, or None where none are published or the training split is not official
    report: DatasetReport  # the reader's findings and those of the check

    @property
    def usable(self) -> bool:
        """Whether nothing stands in the way of using the data set."""
        return self.report.worst != "error"

    @property
    def splits(self) -> dict[str, dict[str, int | None]]:
        """Of each split the samples listed, found (with media), missing (without), and expected (None: unknown)."""
        table: dict[str, dict[str, int | None]] = {}
        for split, listed in self.dataset.split_sizes.items():
            available, expected = len(self.dataset.available(split)), self.dataset.description.splits.get(split)
            table[split] = {"listed": listed, "found": available, "missing": listed - available, "expected": expected}
        return table

    @property
    def classes(self) -> list[dict[str, Any]]:
        """Of each class its name and wording, the samples of each split that carry it, and those with media."""
        counts: dict[int, Counter[str]] = defaultdict(Counter)
        for sample in self.dataset.samples:
            for label in sample.labels:
                counts[label][sample.split] += 1
                counts[label]["found"] += sample.path is not None
        keys = [*self.dataset.split_sizes, "found"]
        named = enumerate(zip(self.dataset.classes, self.dataset.wordings, strict=True))
        return [
            {"name": name, "wording": wording} | {key: counts[label][key] for key in keys}
            for label, (name, wording) in named
        ]

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON-ready values; docs/data.md describes them."""
        dataset = self.dataset
        return {
            "version": FORMAT_VERSION,
            "dataset": dataset.name,
            "title": dataset.description.title,
            "description": None if dataset.description.path is None else str(dataset.description.path),
            "root": str(dataset.root),
            "form": dataset.form,
            "usable": self.usable,
            "files": {role: str(path) for role, path in dataset.files.items()},
            "splits": self.splits,
            "classes": self.classes,
            "compared_with": list(self.compared_with),
            "overlaps": [overlap.to_dict() for overlap in self.overlaps],
            "probe": None if self.probes is None else _probe_dict(self.probes),
            "supports": self.supports,
            "findings": [finding.to_dict() for finding in self.report.findings],
        }


def check_dataset(
    dataset: Dataset,
    *,
    others: Sequence[Dataset] = (),
    probe: bool = False,
    workers: int = 2,
    progress: Callable[[int], object] | None = None,
) -> CheckResult:
    """Check a data set whose media have been looked up; nothing is raised for bad data.

    YouTube videos shared with `others` are looked for; with `probe` every media file found is opened by `workers`
    threads, and `progress` is called with 1 for each.
    """
    report = DatasetReport(list(dataset.report.findings))
    paths = sorted({sample.path for sample in dataset.samples if sample.path is not None})
    _check_counts(dataset, report)
    _check_files(dataset, paths, report)
    overlaps = _check_leakage(dataset, others, report)
    probes = None
    if probe:
        expected = None if dataset.description.reader == "folder" else dataset.num_segments
        look = probe_clip if dataset.description.reader == "avs" else probe_file
        probes = tuple(probe_files(paths, expected, probe=look, workers=workers, progress=progress))
        _check_probes(dataset, probes, report)
    return CheckResult(
        dataset=dataset,
        overlaps=tuple(overlaps),
        compared_with=tuple(other.name for other in others),
        probes=probes,
        supports=_check_supports(dataset, report),
        report=report,
    )


def find_other_datasets(dataset: Dataset | str, folders: Iterable[str | Path]) -> list[Dataset]:
    """Other data sets whose annotation files lie below some folders, sorted by name, media not looked up.

    `dataset` is the one being checked, or its name where its own files are not here. The first folder that has a data
    set wins; one that cannot be read is left out.
    """
    roots = list(dict.fromkeys(Path(os.path.realpath(folder)) for folder in folders))
    own = dataset if isinstance(dataset, str) else dataset.name
    own_files = set() if isinstance(dataset, str) else set(map(os.path.realpath, dataset.files.values()))
    others: list[Dataset] = []
    for name in description_names():
        for folder in roots:
            if name == own or not folder.is_dir():
                continue
            try:
                other = load_dataset(name, folder, find_media=False)
            except AvfsError:
                continue
            if own_files.isdisjoint(map(os.path.realpath, other.files.values())):
                others.append(other)
                break
    return others


def _check_counts(dataset: Dataset, report: DatasetReport) -> None:
    for split, expected in dataset.description.splits.items():
        listed = dataset.split_sizes.get(split, 0)
        if listed != expected:
            message = f"The {split} split has {listed} clips instead of {expected}."
            report.add("warning", "split-size", message, count=abs(expected - listed))
    used = {label for sample in dataset.samples for label in sample.labels}
    unused = [name for label, name in enumerate(dataset.classes) if label not in used]
    report.note("warning", "classes-without-clips", "Classes without any clip.", unused)
    if any(sample.path is not None for sample in dataset.samples):
        covered = {label for s in dataset.samples if s.path is not None for label in s.labels}
        bare = [dataset.classes[label] for label in sorted(used - covered)]
        report.note("warning", "classes-without-media", "Classes of whose clips none has media.", bare)


def _check_files(dataset: Dataset, paths: list[Path], report: DatasetReport) -> None:
    message = "Media files without a byte; fetch them again."
    report.note("warning", "empty-files", message, map(str, empty_files(paths)))
    splits = defaultdict(set)
    for sample in dataset.samples:
        if sample.path is not None:
            splits[sample.path].add(sample.split)
    across: list[str] = []
    within: list[str] = []
    for group in identical_files(paths):
        reached = set().union(*(splits[path] for path in group))
        (across if len(reached) > 1 else within).append(" = ".join(path.name for path in group))
    report.note("warning", "identical-across-splits", "Files with the same content in different splits.", across)
    report.note("info", "identical-files", "Different files with the same content.", within)


def _check_leakage(dataset: Dataset, others: Sequence[Dataset], report: DatasetReport) -> list[Overlap]:
    within = cross_split_overlaps(dataset)
    for overlap in within:
        message = f"{overlap.first} and {overlap.second} share YouTube videos."
        report.add("warning", "cross-split-leakage", message, overlap.ids)
    between: list[Overlap] = []
    for other in others:
        shared = cross_dataset_overlaps(dataset, other)
        between += shared
        ids: set[str] = set()
        for overlap in shared:
            evaluated = {side.split("/")[1] in EVALUATION_SPLITS for side in (overlap.first, overlap.second)}
            if len(evaluated) == 2:  # a leak: one side is learnt from, the other evaluated on
                ids.update(overlap.ids)
        message = f"Videos that one of {dataset.name} and {other.name} trains on and the other is evaluated on."
        report.note("info", "cross-dataset-leakage", message, sorted(ids))
    return within + between


def _check_probes(dataset: Dataset, probes: Sequence[Probe], report: DatasetReport) -> None:
    for problem, message in (
        ("broken", "Files that cannot be decoded; training leaves them out and says so."),
        ("short", f"Files shorter than the {dataset.num_segments} seconds that are annotated."),
        ("no-video", "Files without a video track."),
        ("no-audio", "Files without an audio track."),
        ("silent", "Files whose audio is digital silence."),
    ):
        hit = [probe for probe in probes if problem in probe.problems]
        places = [f"{probe.path}: {probe.detail}" if probe.detail else str(probe.path) for probe in hit]
        report.note("warning", f"media-{problem}", message, places)


def _check_supports(dataset: Dataset, report: DatasetReport) -> str | None:
    pinned = dict(dataset.description.supports)
    if not pinned.get("nested") or dataset.split_sizes.get("train") != dataset.description.splits.get("train"):
        return None
    shots = sorted({k for table in pinned["nested"].values() for k in table})
    if support_table(dataset, pinned["nested"], shots) == pinned:
        report.add("info", "supports-match", "The k-shot supports are the published ones.")
        return "match"
    message = "The k-shot supports are not the published ones: the training list is not the official one."
    report.add("warning", "supports-differ", message)
    return "differ"


def _probe_dict(probes: Sequence[Probe]) -> dict[str, Any]:
    return {
        "files": len(probes),
        "good": sum(not probe.problems for probe in probes),
        **{
            problem: {
                "count": sum(problem in probe.problems for probe in probes),
                "examples": [str(probe.path) for probe in probes if problem in probe.problems][:MAX_EXAMPLES],
            }
            for problem in PROBLEMS
        },
    }
