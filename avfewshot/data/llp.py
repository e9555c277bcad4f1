"""LLP: tab-separated files, ``filename`` and ``event_labels``; for evaluation also onset and offset per modality.

A file name is an 11-character YouTube id, start and end joined by ``_``; five of them have decimals. The evaluation
files repeat rows, hold events that end before they begin, and name clips of no split; some copies are damaged. All of
that is read as far as it can be, and said.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Literal

from avfewshot.data.aliases import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, Event, Sample
from avfewshot.data.description import Description
from avfewshot.data.findings import DatasetReport
from avfewshot.data.locate import locate
from avfewshot.data.official import compare_with_official
from avfewshot.data.textfiles import read_csv, seconds, youtube_id
from avfewshot.errors import DataError

_NAME = re.compile(r"(?P<video>[A-Za-z0-9_-]{11})_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)")
_EVENT_FILES: tuple[tuple[str, Literal["audio", "visual"]], ...] = (
    ("audio_events", "audio"),
    ("visual_events", "visual"),
)


def load_llp(description: Description, root: str | Path) -> Dataset:
    """Read LLP, or a data set in its layout.

    Args:
        description: Its description.
        root: The data root.

    Returns:
        The data set, media not yet looked up. ``labels`` are those of the split files; ``events`` those of the
        evaluation files, with modality ``audio`` or ``visual``, empty for training clips.

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
        part, counts[split] = _read_split(annotations.files[split], split, names, report)
        samples += part
    events: dict[str, list[Event]] = defaultdict(list)
    for role, modality in _EVENT_FILES:
        if role in annotations.files:
            known = {sample.id for sample in samples}
            counts[role] = _read_events(annotations.files[role], modality, names, known, description, events, report)
        else:
            official = description.file(role)
            if official is not None:
                message = f"{official.names[0]} is not there: no {modality} events per second. Clip labels need none."
                report.add("info", "no-events", message)
    samples = [replace(sample, events=tuple(events.get(sample.id, ()))) for sample in samples]
    _report_samples(samples, description, report)
    if respelt := names.respelt():
        report.add("info", "respelt-classes", "Class names were matched by another spelling.", sorted(respelt))
    compare_with_official(description, annotations.files, counts, report)
    return Dataset(
        description=description,
        root=annotations.folder,
        classes=description.class_names,
        wordings=description.wordings,
        samples=tuple(samples),
        multi_label=True,
        form="LLP",
        files=annotations.files,
        report=report,
    )


def _rows(path: Path, columns: int, report: DatasetReport) -> tuple[list[tuple[int, list[str]]], int]:
    """Rows with the right number of cells, without the header, and the number of all rows."""
    rows = read_csv(path, delimiter="\t")
    if rows and rows[0][1][0].lower() == "filename":
        rows = rows[1:]
    good = [(number, row) for number, row in rows if len(row) == columns and all(row)]
    bad = [f"{path.name}:{number} {' '.join(row)[:80]}" for number, row in rows if len(row) != columns or not all(row)]
    if bad:
        report.add("warning", "malformed-rows", f"{path.name}: rows without {columns} cells, left out.", bad)
    return good, len(rows)


def _read_split(path: Path, split: str, names: ClassNames, report: DatasetReport) -> tuple[list[Sample], int]:
    rows, total = _rows(path, 2, report)
    samples: list[Sample] = []
    unknown: list[str] = []
    repeated: list[str] = []
    repeated_labels: list[str] = []
    odd_names: list[str] = []
    seen: set[str] = set()
    for position, (number, (name, text)) in enumerate(rows):
        place = f"{path.name}:{number} {name}"
        words = [word.strip() for word in text.split(",") if word.strip()]
        labels = _labels(words, names)
        unknown += [f"{place} {word}" for word in words if names.index(word) is None and _joined(words, names) is None]
        if len(set(labels)) != len(labels):
            repeated_labels.append(f"{place} {text}")
        if name in seen:
            repeated.append(place)
            continue
        if not labels:
            continue
        seen.add(name)
        match = _NAME.fullmatch(name)
        if match is None:
            odd_names.append(place)
        samples.append(
            Sample(
                id=name,
                labels=tuple(sorted(set(labels))),
                split=split,
                row=position,
                youtube_id=youtube_id(match["video"]) if match else None,
                start=float(match["start"]) if match else None,
                end=float(match["end"]) if match else None,
            )
        )
    if unknown:
        report.add("error", "unknown-classes", f"{path.name}: labels that are not in the data set, left out.", unknown)
    if repeated:
        report.add(
            "warning", "repeated-ids", f"{path.name}: clips listed more than once; the first row is used.", repeated
        )
    if repeated_labels:
        report.add("info", "repeated-labels", f"{path.name}: rows that name a label twice.", repeated_labels)
    if odd_names:
        report.add("info", "odd-names", f"{path.name}: file names that are not ID_START_END.", odd_names)
    if not samples:
        raise DataError(
            f"{path}: no row of the form filename<TAB>label,label with known labels.",
            hint="Another data set's classes go into a dataset.yaml beside it (data_splits/README.md).",
        )
    return samples, total


def _labels(words: list[str], names: ClassNames) -> list[int]:
    if (whole := _joined(words, names)) is not None:
        return [whole]
    return [label for word in words if (label := names.index(word)) is not None]


def _joined(words: list[str], names: ClassNames) -> int | None:
    """The class that the whole cell names, where a class name itself holds a comma and the parts are no classes."""
    if len(words) > 1 and not any(names.index(word) is not None for word in words[1:]):
        return names.whole(", ".join(words))
    return None


def _read_events(
    path: Path,
    modality: Literal["audio", "visual"],
    names: ClassNames,
    known: set[str],
    description: Description,
    events: dict[str, list[Event]],
    report: DatasetReport,
) -> int:
    rows, total = _rows(path, 4, report)
    bad_numbers, empty, repeated, malformed, strangers, unknown = ([] for _ in range(6))
    seen: set[tuple[str, ...]] = set()
    for number, row in rows:
        name, first, last, word = row
        place = f"{path.name}:{number} {' '.join(row)}"
        if name not in known:
            strangers.append(name)
            if _NAME.fullmatch(name) is None:
                malformed.append(place)
        onset, offset, label = seconds(first), seconds(last), names.index(word)
        if tuple(row) in seen:
            repeated.append(place)
        elif onset is None or offset is None:
            bad_numbers.append(place)
        elif onset >= offset:
            empty.append(place)
        elif label is None:
            unknown.append(place)
        elif name in known:
            events[name].append(Event(label, onset, min(offset, float(description.segments)), modality))
        seen.add(tuple(row))
    for severity, code, message, places in (
        ("info", "repeated-rows", "rows repeated word for word, read once", repeated),
        ("info", "empty-event", "events that end when or before they begin, left out", empty),
        ("warning", "malformed-rows", "onset or offset is not a number, left out", bad_numbers),
        ("error", "unknown-classes", "labels that are not in the data set, left out", unknown),
        (
            "info",
            "malformed-names",
            "file names that are not ID_START_END and belong to no clip, left out",
            malformed,
        ),
        ("info", "in-no-split", "events of clips that are in no split, left out", sorted(set(strangers))),
    ):
        if places:
            report.add(severity, code, f"{path.name}: {message}.", places)
    return total


def _report_samples(samples: list[Sample], description: Description, report: DatasetReport) -> None:
    decimals = [sample.id for sample in samples if "." in sample.id]
    if decimals:
        report.add("info", "decimal-names", "File names whose start and end have decimals.", decimals)
    splits = defaultdict(set)
    for sample in samples:
        splits[sample.id].add(sample.split)
    if shared := sorted(name for name, of in splits.items() if len(of) > 1):
        report.add("warning", "cross-split-ids", "Clips that are in more than one split.", shared)
    differing = [
        sample.id
        for sample in samples
        if sample.events and {event.label for event in sample.events} != set(sample.labels)
    ]
    if differing:
        message = "Clips whose labels differ from those of their events; the labels of the split file count."
        report.add("info", "labels-differ-from-events", message, differing)
    singles = Counter(sample.label for sample in samples if sample.split == "train" and len(sample.labels) == 1)
    if lacking := [name for index, name in enumerate(description.class_names) if not singles[index]]:
        message = "Classes without any training clip of that label alone: absent from single-label supports."
        report.add("info", "no-single-label-clips", message, lacking)
