"""LLP: tab-separated files, ``filename`` and ``event_labels``; for evaluation also onset and offset per modality.

A file name is an 11-character YouTube id, start and end joined by ``_``; five of them have decimals. The evaluation
files repeat rows, hold events that end before they begin, and name clips of no split; some copies are damaged. All of
that is read as far as it can be, and said.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Literal

from avfewshot.data.annotations import OTHER_CLASSES, locate, make_dataset
from avfewshot.data.class_names import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Event, Sample, repeated
from avfewshot.data.description import Description
from avfewshot.data.rows import clip_id, other_form, read_csv, seconds, youtube_id
from avfewshot.errors import DataError

_NAME = re.compile(r"(?P<video>[A-Za-z0-9_-]{11})_(?P<start>\d+(?:\.\d+)?)_(?P<end>\d+(?:\.\d+)?)")


def load_llp(description: Description, root: str | Path) -> Dataset:
    """Read LLP, or a data set in its layout, without its media.

    ``labels`` are those of the split files; ``events`` those of the evaluation files, with modality ``audio`` or
    ``visual``, empty for training clips.
    """
    annotations = locate(description, root)
    report = DatasetReport()
    names = ClassNames(description.class_names)
    samples: list[Sample] = []
    counts: dict[str, int] = {}
    for split in SPLITS:
        if path := annotations.files.get(split):
            part, counts[split] = _read_split(path, split, names, report)
            samples += part
    events: dict[str, list[Event]] = {sample.id: [] for sample in samples}
    modalities: tuple[Literal["audio", "visual"], ...] = ("audio", "visual")
    for modality in modalities:
        role = f"{modality}_events"
        if path := annotations.files.get(role):
            counts[role] = _read_events(path, modality, names, description, events, report)
            if not any(event.modality == modality for clip in events.values() for event in clip):
                message = f"{path.name} has no event of a clip that is listed. {other_form(path)}"
                report.add("warning", "no-events", message)
        elif official := description.file(role):
            message = f"{official.names[0]} is not there: no {modality} events per second. Clip labels need none."
            report.add("info", "no-events", message)
    samples = [replace(sample, events=tuple(events[sample.id])) for sample in samples]
    decimals = [sample.id for sample in samples if "." in sample.id]
    report.note("info", "decimal-names", "File names whose start and end have decimals.", decimals)
    shared = repeated(sample.id for sample in samples)  # those of a split differ
    report.note("warning", "cross-split-ids", "Clips that are in more than one split.", shared)
    differing = [s.id for s in samples if s.events and {event.label for event in s.events} != set(s.labels)]
    message = "Clips whose labels differ from those of their events; the labels of the split file count."
    report.note("info", "labels-differ-from-events", message, differing)
    singles = {sample.label for sample in samples if sample.split == "train" and len(sample.labels) == 1}
    lacking = [name for index, name in enumerate(description.class_names) if index not in singles]
    message = "Classes without any training clip of that label alone: absent from single-label supports."
    report.note("info", "no-single-label-clips", message, lacking)
    return make_dataset(description, annotations, samples, counts, report, form="LLP", names=names, multi_label=True)


def _rows(path: Path, columns: int, report: DatasetReport) -> tuple[list[tuple[int, list[str]]], int]:
    """Rows with the right number of cells, without headers (joined files have several), and the number of all rows."""
    rows = [(number, row) for number, row in read_csv(path, delimiter="\t") if row[0].lower() != "filename"]
    good = [(number, [clip_id(row[0]), *row[1:]]) for number, row in rows if len(row) == columns and all(row)]
    bad = [f"{path.name}:{number} {' '.join(row)[:80]}" for number, row in rows if len(row) != columns or not all(row)]
    report.note("warning", "malformed-rows", f"{path.name}: rows without {columns} cells, left out.", bad)
    return good, len(rows)


def _read_split(path: Path, split: str, names: ClassNames, report: DatasetReport) -> tuple[list[Sample], int]:
    rows, total = _rows(path, 2, report)
    samples: dict[str, Sample] = {}
    with report.collect(f"{path.name}: ") as remark:
        for position, (number, (name, text)) in enumerate(rows):
            place = f"{path.name}:{number} {name}"
            words = [word.strip() for word in text.split(",") if word.strip()]
            # Where a class name itself holds a comma and the parts are no classes, the whole cell names one.
            parted = len(words) < 2 or any(names.index(word) is not None for word in words[1:])
            whole = None if parted else names.whole(", ".join(words))
            labels = [whole] if whole is not None else []
            for word in words if whole is None else ():
                if (label := names.index(word)) is None:
                    message = "labels that are not in the data set, left out."
                    remark("error", "unknown-classes", message, f"{place} {word}")
                else:
                    labels.append(label)
            if len(set(labels)) != len(labels):
                remark("info", "repeated-labels", "rows that name a label twice.", f"{place} {text}")
            if name in samples:
                remark("warning", "repeated-ids", "clips listed more than once; the first row is used.", place)
                continue
            if not labels:
                continue
            match = _NAME.fullmatch(name)
            if match is None:
                remark("info", "odd-names", "file names that are not ID_START_END.", place)
            samples[name] = Sample(
                id=name,
                labels=tuple(sorted(set(labels))),
                split=split,
                row=position,
                youtube_id=youtube_id(match["video"]) if match else None,
                start=seconds(match["start"]) if match else None,
                end=seconds(match["end"]) if match else None,
            )
    if not samples:
        hint = OTHER_CLASSES if rows else other_form(path)
        raise DataError(f"{path}: no row of the form filename<TAB>label,label with known labels.", hint=hint)
    return list(samples.values()), total


def _read_events(
    path: Path,
    modality: Literal["audio", "visual"],
    names: ClassNames,
    description: Description,
    events: dict[str, list[Event]],
    report: DatasetReport,
) -> int:
    """Add the events of an evaluation file to those of the clips; returns the number of its rows."""
    rows, total = _rows(path, 4, report)
    read: set[tuple[str, ...]] = set()
    strangers: set[str] = set()
    with report.collect(f"{path.name}: ") as remark:
        for number, row in rows:
            name, first, last, word = row
            place = f"{path.name}:{number} {' '.join(row)}"
            if name not in events:
                strangers.add(name)
                if _NAME.fullmatch(name) is None:
                    message = "file names that are not ID_START_END and belong to no clip, left out."
                    remark("info", "malformed-names", message, place)
            onset, offset, label = seconds(first), seconds(last), names.index(word)
            if tuple(row) in read:
                remark("info", "repeated-rows", "rows repeated word for word, read once.", place)
            elif onset is None or offset is None:
                remark("warning", "malformed-rows", "onset or offset is not a number, left out.", place)
            elif onset >= offset:
                remark("info", "empty-event", "events that end when or before they begin, left out.", place)
            elif label is None:
                remark("error", "unknown-classes", "labels that are not in the data set, left out.", place)
            elif name in events:
                end = float(description.segments)
                if offset > end:
                    remark("warning", "event-bounds", f"events outside of 0 to {end:g} seconds, cut.", place)
                if onset < end:
                    events[name].append(Event(label, onset, min(offset, end), modality))
            read.add(tuple(row))
        for name in sorted(strangers):
            remark("info", "in-no-split", "events of clips that are in no split, left out.", name)
    return total
