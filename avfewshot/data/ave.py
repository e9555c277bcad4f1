"""AVE: lines ``class&id&quality&start&end``, one audio-visual event per clip, seconds 0 to 10.

Class names contain commas, ids may begin with ``-``, one event is empty, 45 clips are listed under two classes, some
copies of the file have a header and some no final newline. All of that is read, and said.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.aliases import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, Event, Sample
from avfewshot.data.description import Description
from avfewshot.data.findings import DatasetReport
from avfewshot.data.locate import locate
from avfewshot.data.official import compare_with_official
from avfewshot.data.textfiles import read_lines, seconds, youtube_id
from avfewshot.errors import DataError


@dataclass(frozen=True)
class _Row:
    line: int
    name: str
    id: str
    quality: str
    start: float
    end: float


def load_ave(description: Description, root: str | Path) -> Dataset:
    """Read AVE, or a data set in its layout.

    Args:
        description: Its description.
        root: The data root.

    Returns:
        The data set, media not yet looked up. ``segments`` of a sample holds its class for the seconds of the event.

    Raises:
        UsageError: The root is not a folder.
        DataError: Annotation files are missing, or no row of a split can be read.
    """
    annotations = locate(description, root)
    report = DatasetReport()
    names = ClassNames(description.class_names)
    samples: list[Sample] = []
    counts: dict[str, int] = {}
    for split in SPLITS:
        rows, dropped = _read_rows(annotations.files[split], report)
        counts[split] = len(rows) + dropped
        samples += _samples(rows, split, annotations.files[split], description, names, report)
    if "annotations" in annotations.files:
        rows, dropped = _read_rows(annotations.files["annotations"], report)
        counts["annotations"] = len(rows) + dropped
        _cross_check(rows, samples, annotations.files["annotations"], names, report)
    _report_samples(samples, report)
    if respelt := names.respelt():
        report.add("info", "respelt-classes", "Class names were matched by another spelling.", sorted(respelt))
    compare_with_official(description, annotations.files, counts, report)
    return Dataset(
        description=description,
        root=annotations.folder,
        classes=description.class_names,
        wordings=description.wordings,
        samples=tuple(samples),
        form="AVE",
        files=annotations.files,
        report=report,
    )


def _read_rows(path: Path, report: DatasetReport) -> tuple[list[_Row], int]:
    """All rows that can be read, and the number of those that cannot."""
    rows: list[_Row] = []
    malformed: list[str] = []
    for number, line in read_lines(path):
        # From the right: a class name may hold anything, and an id has no `&`.
        parts = [part.strip() for part in line.rsplit("&", 4)]
        start, end = (seconds(parts[3]), seconds(parts[4])) if len(parts) == 5 else (None, None)
        if start is None or end is None:
            if number == 1 and len(parts) == 5 and not any(character.isdigit() for character in parts[3] + parts[4]):
                continue  # The header of some copies: Category&VideoID&Quality&StartTime&EndTime.
            malformed.append(f"{path.name}:{number} {line.strip()[:80]}")
            continue
        rows.append(_Row(number, parts[0], parts[1], parts[2], start, end))
    if malformed:
        report.add(
            "warning",
            "malformed-rows",
            f"{path.name}: rows that are not class&id&quality&start&end, left out.",
            malformed,
        )
    if not rows:
        raise DataError(f"{path}: no row of the form class&id&quality&start&end.")
    return rows, len(malformed)


def _samples(
    rows: list[_Row], split: str, path: Path, description: Description, names: ClassNames, report: DatasetReport
) -> list[Sample]:
    """One sample per clip and class; rows of one clip and class are stretches of its event."""
    stretches: dict[tuple[str, int], list[tuple[float, float]]] = {}
    positions: dict[tuple[str, int], int] = {}
    unknown: list[str] = []
    repeated: list[str] = []
    beyond: list[str] = []
    total = float(description.segments)
    for position, row in enumerate(rows):
        label = names.index(row.name)
        place = f"{path.name}:{row.line} {row.id}"
        if label is None:
            unknown.append(f"{place} {row.name}")
            continue
        key = (row.id, label)
        positions.setdefault(key, position)
        spans = stretches.setdefault(key, [])
        span = (min(row.start, total), min(row.end, total))
        if span in spans:
            repeated.append(place)
            continue
        if row.end > total or row.start > row.end:
            beyond.append(f"{place} {row.start:g}-{row.end:g}")
        spans.append(span)
    for severity, code, message, places in (
        ("error", "unknown-classes", "rows of classes that are not in the data set, left out", unknown),
        ("warning", "repeated-rows", "rows repeated word for word, read once", repeated),
        ("warning", "event-bounds", f"events outside of 0 to {total:g} seconds or ending early, cut", beyond),
    ):
        if places:
            report.add(severity, code, f"{path.name}: {message}.", places)
    if not stretches:
        raise DataError(
            f"{path}: none of its classes belongs to {description.title}.",
            hint="Another data set's classes go into a dataset.yaml beside it (data_splits/README.md).",
        )
    return [
        _sample(name, label, split, positions[name, label], sorted(spans), description)
        for (name, label), spans in stretches.items()
    ]


def _sample(
    name: str, label: int, split: str, row: int, spans: list[tuple[float, float]], description: Description
) -> Sample:
    background = len(description.classes)
    seconds_of_event = [any(onset <= t < offset for onset, offset in spans) for t in range(description.segments)]
    return Sample(
        id=name,
        labels=(label,),
        split=split,
        row=row,
        segments=tuple(label if happens else background for happens in seconds_of_event),
        events=tuple(Event(label, onset, offset) for onset, offset in spans if onset < offset),
        youtube_id=youtube_id(name),
    )


def _report_samples(samples: list[Sample], report: DatasetReport) -> None:
    empty = [sample.id for sample in samples if not sample.events]
    if empty:
        message = "Clips whose event has no length: all background, and never drawn into a support."
        report.add("info", "empty-event", message, empty)
    by_id = defaultdict(list)
    for sample in samples:
        by_id[sample.id].append(sample)
    if twice := sorted(name for name, group in by_id.items() if len(group) > 1):
        message = "Clips listed under more than one class or in more than one split; each is a sample of its own."
        report.add("info", "repeated-ids", message, twice)
    if dashed := sorted(name for name in by_id if name.startswith("-")):
        message = "Ids begin with a dash; write ./ before such a file name on a command line."
        report.add("info", "dashed-ids", message, dashed)


def _cross_check(rows: list[_Row], samples: list[Sample], path: Path, names: ClassNames, report: DatasetReport) -> None:
    listed = {(row.id, names.index(row.name)) for row in rows}
    used = {(sample.id, sample.label) for sample in samples}
    if absent := sorted(name for name, _ in used - listed):
        report.add("warning", "not-in-annotations", f"Clips of the splits that {path.name} does not list.", absent)
    if unused := sorted(name for name, _ in listed - used):
        report.add("warning", "in-no-split", f"Clips of {path.name} that are in no split; not used.", unused)
