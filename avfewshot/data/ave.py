"""AVE: lines ``class&id&quality&start&end``, one audio-visual event per clip, seconds 0 to 10.

Class names contain commas, ids may begin with ``-``, one event is empty, 45 clips are listed under two classes, some
copies of the file have a header and some no final newline. All of that is read, and said.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from avfewshot.data.annotations import OTHER_CLASSES, locate, make_dataset, note_dashes
from avfewshot.data.class_names import ClassNames
from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Event, Sample, repeated
from avfewshot.data.description import Description
from avfewshot.data.rows import clip_id, other_form, read_lines, seconds, youtube_id
from avfewshot.errors import DataError


class _Row(NamedTuple):
    line: int
    name: str
    id: str
    start: float
    end: float


def load_ave(description: Description, root: str | Path) -> Dataset:
    """Read AVE, or a data set in its layout, without media; ``segments`` hold the class in the seconds of its event."""
    annotations = locate(description, root)
    report = DatasetReport()
    names = ClassNames(description.class_names)
    samples: list[Sample] = []
    counts: dict[str, int] = {}
    for role, path in annotations.files.items():
        if role in SPLITS:
            rows, counts[role] = _read_rows(path, report)
            samples += _samples(rows, role, path, description, names, report)
    if path := annotations.files.get("annotations"):
        rows, counts["annotations"] = _read_rows(path, report)
        listed = {(row.id, names.index(row.name)) for row in rows}
        used = {(sample.id, sample.label) for sample in samples}
        message = f"Clips of the splits that {path.name} does not list."
        report.note("warning", "not-in-annotations", message, sorted(name for name, _ in used - listed))
        message = f"Clips of {path.name} that are in no split; not used."
        report.note("warning", "in-no-split", message, sorted(name for name, _ in listed - used))
    message = "Clips whose event has no length: all background, and never drawn into a support."
    report.note("info", "empty-event", message, [sample.id for sample in samples if not sample.events])
    ids = [sample.id for sample in samples]
    message = "Clips listed under more than one class or in more than one split; each is a sample of its own."
    report.note("info", "repeated-ids", message, repeated(ids))
    note_dashes(ids, report)
    return make_dataset(description, annotations, samples, counts, report, form="AVE", names=names)


def _read_rows(path: Path, report: DatasetReport) -> tuple[list[_Row], int]:
    """The rows that can be read, and the number of all of them."""
    rows: list[_Row] = []
    malformed: list[str] = []
    for number, line in read_lines(path):
        # From the right: a class name may hold anything, and an id has no `&`.
        parts = [part.strip() for part in line.rsplit("&", 4)]
        start, end = (seconds(parts[3]), seconds(parts[4])) if len(parts) == 5 else (None, None)
        if start is not None and end is not None and parts[1]:
            rows.append(_Row(number, parts[0], clip_id(parts[1]), start, end))
        elif number > 1 or len(parts) != 5 or any(character.isdigit() for character in parts[3] + parts[4]):
            malformed.append(f"{path.name}:{number} {line[:80]}")
        # else the header of some copies: Category&VideoID&Quality&StartTime&EndTime
    message = f"{path.name}: rows that are not class&id&quality&start&end, left out."
    report.note("warning", "malformed-rows", message, malformed)
    if not rows:
        raise DataError(f"{path}: no row of the form class&id&quality&start&end.", hint=other_form(path))
    return rows, len(rows) + len(malformed)


def _samples(
    rows: list[_Row], split: str, path: Path, description: Description, names: ClassNames, report: DatasetReport
) -> list[Sample]:
    """One sample per clip and class; rows of one clip and class are stretches of its event."""
    stretches: dict[tuple[str, int], tuple[int, list[tuple[float, float]]]] = {}
    total = float(description.segments)
    with report.collect(f"{path.name}: ") as remark:
        for position, row in enumerate(rows):
            label = names.index(row.name)
            place = f"{path.name}:{row.line} {row.id}"
            if label is None:
                message = "rows of classes that are not in the data set, left out."
                remark("error", "unknown-classes", message, f"{place} {row.name}")
                continue
            _, spans = stretches.setdefault((row.id, label), (position, []))
            span = (min(row.start, total), min(row.end, total))
            if span in spans:
                remark("warning", "repeated-rows", "rows repeated word for word, read once.", place)
                continue
            if row.end > total or row.start > row.end:
                message = f"events outside of 0 to {total:g} seconds or ending early, cut."
                remark("warning", "event-bounds", message, f"{place} {row.start:g}-{row.end:g}")
            spans.append(span)
    if not stretches:
        raise DataError(f"{path}: none of its classes belongs to {description.title}.", hint=OTHER_CLASSES)
    background = len(description.classes)
    return [
        Sample(
            id=name,
            labels=(label,),
            split=split,
            row=position,
            segments=tuple(
                label if any(onset <= second < offset for onset, offset in spans) else background
                for second in range(description.segments)
            ),
            events=tuple(Event(label, onset, offset) for onset, offset in sorted(spans) if onset < offset),
            youtube_id=youtube_id(name),
        )
        for (name, label), (position, spans) in stretches.items()
    ]
