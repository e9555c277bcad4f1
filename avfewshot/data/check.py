"""Everything that can be said about a data set before training on it: what is missing, broken, doubled or leaking."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from avfewshot.data.avsbench import frames_of, masks_of
from avfewshot.data.dataset import MAX_EXAMPLES, Dataset, DatasetReport
from avfewshot.data.leaks import EVALUATION_SPLITS, Overlap, shared_videos
from avfewshot.data.sampler import support_table
from avfewshot.errors import MediaError
from avfewshot.io import sha256_file

FORMAT_VERSION = 1
SILENCE = 1e-4  # Peak amplitude, 80 dB below full scale: what a lossy codec makes of digital silence stays below it.
_FRAME_SIZE = 32  # Frames are decoded only to see that they can be.
_PROBLEMS = {
    "broken": "Files that cannot be decoded; training leaves them out and says so.",
    "short": "Files shorter than the {} seconds that are annotated.",
    "no-video": "Files without a video track.",
    "no-audio": "Files without an audio track.",
    "silent": "Files whose audio is digital silence.",
}


@dataclass(frozen=True)
class Probe:
    """What was found in one media file."""

    path: Path
    problems: tuple[str, ...]  # ``broken``, ``short``, ``no-video``, ``no-audio``, ``silent``; empty for a good file
    detail: str = ""  # the reader's words on a broken file


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
        return all(finding.severity != "error" for finding in self.report.findings)

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
        dataset, probes = self.dataset, self.probes
        overlaps = [
            {"first": o.first, "second": o.second, "count": o.count, "examples": list(o.ids[:MAX_EXAMPLES])}
            for o in self.overlaps
        ]
        opened: dict[str, Any] = {}
        if probes is not None:
            opened = {"files": len(probes), "good": sum(not probe.problems for probe in probes)}
            for problem in _PROBLEMS:
                paths = [str(probe.path) for probe in probes if problem in probe.problems]
                opened[problem] = {"count": len(paths), "examples": paths[:MAX_EXAMPLES]}
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
            "overlaps": overlaps,
            "probe": opened or None,
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
        from avfewshot.media.stream import ordered_map

        look = _probe_avsbench if dataset.description.reader == "avs" else probe_file
        expected = None if dataset.description.reader == "folder" else dataset.num_segments
        found = []
        for one in ordered_map(partial(look, expected_segments=expected), paths, workers=workers):
            found.append(one)
            if progress is not None:
                progress(1)
        probes = tuple(found)
        for problem, message in _PROBLEMS.items():
            hit = [one for one in probes if problem in one.problems]
            places = [f"{one.path}: {one.detail}" if one.detail else str(one.path) for one in hit]
            report.note("warning", f"media-{problem}", message.format(dataset.num_segments), places)
    return CheckResult(
        dataset=dataset,
        overlaps=tuple(overlaps),
        compared_with=tuple(other.name for other in others),
        probes=probes,
        supports=_check_supports(dataset, report),
        report=report,
    )


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
    by_size: dict[int, list[Path]] = defaultdict(list)
    for path in paths:
        by_size[path.stat().st_size if path.exists() else 0].append(path)
    # An interrupted download leaves a file without a byte behind.
    report.note("warning", "empty-files", "Media files without a byte; fetch them again.", map(str, by_size.pop(0, ())))
    samples = defaultdict(list)
    for sample in dataset.samples:
        if sample.path is not None:
            samples[sample.path].append(sample)
    groups: dict[str, list[Path]] = defaultdict(list)
    for path in itertools.chain.from_iterable(same for same in by_size.values() if len(same) > 1):
        with contextlib.suppress(OSError):
            groups[sha256_file(path)].append(path)
    across: list[str] = []
    classes: list[str] = []
    within: list[str] = []
    for group in groups.values():
        if len(group) > 1:
            alike = [sample for path in group for sample in samples[path]]
            several = [len(set(map(key, alike))) > 1 for key in (lambda one: one.split, lambda one: one.labels)]
            for found, names in zip((*several, not any(several)), (across, classes, within), strict=True):
                if found:
                    names.append(" = ".join(sample.id for sample in alike))
    report.note("warning", "identical-across-splits", "Files with the same content in different splits.", across)
    report.note("warning", "identical-across-classes", "Files with the same content in different classes.", classes)
    report.note("info", "identical-files", "Different files with the same content.", within)


def _check_leakage(dataset: Dataset, others: Sequence[Dataset], report: DatasetReport) -> list[Overlap]:
    overlaps = list(shared_videos(dataset, dataset))
    for overlap in overlaps:
        message = f"{overlap.first} and {overlap.second} share YouTube videos."
        report.add("warning", "cross-split-leakage", message, overlap.ids)
    for other in others:
        ids: set[str] = set()
        for overlap in shared_videos(dataset, other):
            overlaps.append(overlap)
            evaluated = {side.split("/")[1] in EVALUATION_SPLITS for side in (overlap.first, overlap.second)}
            if len(evaluated) == 2:  # a leak: one side is learnt from, the other evaluated on
                ids.update(overlap.ids)
        message = f"Videos that one of {dataset.name} and {other.name} trains on and the other is evaluated on."
        report.note("info", "cross-dataset-leakage", message, sorted(ids))
    return overlaps


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


def probe_file(path: Path, expected_segments: int | None) -> Probe:
    """Open a file and decode `expected_segments` seconds of it; None: any length will do, and ten are decoded."""
    from avfewshot.media.stream import IsolatedReader

    problems: list[str] = []
    try:
        with IsolatedReader(path, frame_size=_FRAME_SIZE) as reader:
            info = reader.info
            clip = reader.read(0, min(info.num_segments, expected_segments or 10))
    except MediaError as error:
        return Probe(path, ("broken",), error.reason)
    if expected_segments is not None and info.num_segments < expected_segments:
        problems.append("short")
    if not info.has_video:
        problems.append("no-video")
    if not info.has_audio or clip.waveform is None:
        problems.append("no-audio")
    elif float(clip.waveform.abs().max()) < SILENCE:
        problems.append("silent")
    return Probe(path, tuple(problems))


def _probe_avsbench(audio: Path, expected_segments: int | None) -> Probe:
    """Read all pictures, masks and sound of a clip."""
    from avfewshot.data.stills import read_mask, read_picture

    try:
        for mask in filter(Path.is_file, masks_of(audio)):
            read_mask(mask, _FRAME_SIZE)
        for frame in frames_of(audio):
            read_picture(frame)
    except MediaError as error:
        return Probe(audio, ("broken",), str(error))
    heard = probe_file(audio, expected_segments)
    return replace(heard, problems=tuple(problem for problem in heard.problems if problem != "no-video"))
