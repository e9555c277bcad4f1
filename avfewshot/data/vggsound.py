"""Lists of VGG-Sound clips as data sets: VGG-Sound, VGG-Sound(40K), OV-AVEBench and their like; VGGSounder's labels."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Literal

from avfewshot.data.annotations import Annotations, locate, make_dataset
from avfewshot.data.class_names import ClassNames
from avfewshot.data.clip_lists import ClipList, ClipRow, read_clip_list
from avfewshot.data.dataset import Dataset, DatasetReport, Event, Sample, repeated
from avfewshot.data.description import ClassEntry, Description, default_wording, load_description
from avfewshot.data.rows import read_lines
from avfewshot.errors import DataError, UsageError
from avfewshot.text import fold

CLIP_SECONDS = 10.0


def load_vggsound(description: Description, root: str | Path, *, list_file: str | Path | None = None) -> Dataset:
    """Read a list of VGG-Sound clips without their media; ``segments`` are filled where it has labels per second.

    Where the description names no classes, they come from the list, in the order of the categories file if there is one
    and alphabetically otherwise. `list_file` is read instead of the list below `root`, in any known form. A
    :class:`DataError` where a list cannot be read, or names none of the classes.
    """
    report = DatasetReport()
    annotations = _annotations(description, root, list_file)
    lists, counts = _read_lists(annotations, report)
    rows = [row for part in lists for row in part.rows]
    if all(row.split is None for row in rows):
        report.add("warning", "no-splits", "The list names no splits: all of its clips count as training clips.")
    bits: dict[str, tuple[str, tuple[int, ...] | None]] = {}  # from OV-AVEBench's JSON beside its CSV
    if lists[0].form == "ovave-csv" and (path := annotations.files.get("annotations")):
        part = read_clip_list(path, report)
        counts["annotations"] = part.total
        bits = {row.id: (row.category, row.bits) for row in part.rows}
    entries = _classes(description, rows, annotations, report)
    names = ClassNames([entry.name for entry in entries])
    samples = _samples(lists, names, len(entries), bits, description, report)
    if not samples:
        hint = f"Read it with another data set, or put a dataset.yaml beside it. First class: {rows[0].category!r}."
        raise DataError(f"{lists[0].path}: none of its classes belongs to {description.title}.", hint=hint)
    used = {label for sample in samples for label in sample.labels}
    if description.expected_classes and len(used) != description.expected_classes:
        message = f"The list has {len(used)} classes; {description.title} has {description.expected_classes}."
        report.add("warning", "class-count", message)
    absent = [name for name in description.known_classes if names.index(name) is None]
    report.note("warning", "classes-absent", f"Classes of {description.title} that the list lacks.", absent)
    if description.minimum_rows and len(samples) < description.minimum_rows:
        message = f"The list has {len(samples)} clips; fewer than {description.minimum_rows} is not all of it."
        report.add("warning", "few-rows", message)
    if not any(sample.youtube_id for sample in samples):
        message = "The ids are no YouTube ids (row numbers?): leakage into other data sets cannot be checked."
        report.add("warning", "no-youtube-ids", message, [samples[0].id])
    form = " + ".join(dict.fromkeys([*(part.form for part in lists), *(["ovave-json"] if bits else [])]))
    return make_dataset(description, annotations, samples, counts, report, form=form, classes=entries, names=names)


def _annotations(description: Description, root: str | Path, list_file: str | Path | None) -> Annotations:
    if list_file is None:
        return locate(description, root)
    list_file = Path(list_file)
    if not list_file.is_file():
        raise UsageError(f"The list {list_file} does not exist.")
    files = {"list": list_file}
    # Files that belong to the list lie beside it.
    for beside in (description, load_description("ovave")):
        for entry in beside.files:
            if entry.role in {"annotations", "categories"} and entry.role not in files:
                paths = [path for name in entry.names if (path := list_file.parent / name).is_file()]
                if paths and list_file not in paths:
                    files[entry.role] = paths[0]
    return Annotations(list_file.parent, files)


def _read_lists(annotations: Annotations, report: DatasetReport) -> tuple[list[ClipList], dict[str, int]]:
    """The list; without one the lists of single splits; without any, VGGSounder's test clips."""
    roles = [role for role in ("list", "train", "test") if role in annotations.files]
    roles = ["list"] if "list" in roles else roles
    lists, counts = [], {}
    for role in roles:
        part = read_clip_list(annotations.files[role], report, split=None if role == "list" else role)
        if part.form == "vggsounder":
            message = f"{part.path}: VGGSounder has several labels a clip and no training clips."
            raise DataError(message, hint="It is used to evaluate: put it beside the list as vggsounder.csv.")
        lists.append(part)
        counts[role] = part.total
    if not lists:
        names = ", ".join(path.name for path in annotations.files.values())
        raise DataError(f"{annotations.folder} holds {names}, but no list of clips.")
    return lists, counts


def _classes(
    description: Description, rows: list[ClipRow], annotations: Annotations, report: DatasetReport
) -> tuple[ClassEntry, ...]:
    if description.classes:
        return description.classes
    groups: dict[str, Counter[str]] = {}
    for row in rows:
        groups.setdefault(fold(row.category), Counter())[row.category] += 1
    used = sorted(group.most_common(1)[0][0] for group in groups.values())
    merged = sorted(" = ".join(sorted(group)) for group in groups.values() if len(group) > 1)
    report.note("warning", "merged-classes", "Names that differ by spelling alone; each group is one class.", merged)
    if "categories" in annotations.files:
        listed = [line.strip() for _, line in read_lines(annotations.files["categories"])]
        names = ClassNames(listed)
        strangers = [name for name in used if names.index(name) is None]
        message = f"Classes that {annotations.files['categories'].name} does not list; put behind its own."
        report.note("warning", "unknown-classes", message, strangers)
        used = list(dict.fromkeys(listed)) + strangers
    published = load_description("vggsound")
    names = ClassNames(published.class_names)
    wordings = [None if (index := names.index(name)) is None else published.classes[index].wording for name in used]
    return tuple(
        ClassEntry(name, wording or default_wording(name)) for name, wording in zip(used, wordings, strict=True)
    )


def _samples(
    lists: Iterable[ClipList],
    names: ClassNames,
    background: int,
    bits: dict[str, tuple[str, tuple[int, ...] | None]],
    description: Description,
    report: DatasetReport,
) -> list[Sample]:
    samples: list[Sample] = []
    read: set[tuple[str, int, str | None]] = set()
    with report.collect() as remark:
        for part in lists:
            for position, row in enumerate(part.rows):
                place = f"{part.path.name}:{row.line}"
                if (label := names.index(row.category)) is None:
                    message = "Rows of classes that are not in the data set, left out."
                    remark("error", "unknown-classes", message, f"{place} {row.category}")
                    continue
                if (key := (row.id, label, row.split)) in read:
                    message = "Clips listed more than once under one class, read once."
                    remark("warning", "repeated-rows", message, f"{place} {row.id}")
                    continue
                read.add(key)
                category, marks = bits.get(row.id, (None, None))
                marks = marks if row.bits is None else row.bits
                if marks is not None and len(marks) != description.segments:
                    message = f"Segment labels that are not {description.segments} long; ignored."
                    remark("warning", "malformed-segments", message, f"{row.id} {len(marks)}")
                    marks = None
                if category is not None and names.index(category) != label:
                    message = "Clips with another class in the JSON than in the list; the list counts."
                    remark("warning", "labels-differ-from-events", message, row.id)
                sample = Sample(row.id, (label,), row.split or "train", position, youtube_id=row.youtube_id)
                if marks is not None:
                    seconds = tuple(label if mark else background for mark in marks)
                    events = tuple(Event(label, onset, offset) for onset, offset in _runs(marks))
                    sample = replace(sample, segments=seconds, events=events)
                if row.start is not None:
                    sample = replace(sample, start=row.start, end=row.start + CLIP_SECONDS)
                samples.append(sample)
    message = "Clips listed under more than one class or split; each is a sample."
    report.note("info", "repeated-ids", message, repeated(sample.id for sample in samples))
    without = [sample.id for sample in samples if sample.segments is not None and not sample.events]
    message = "Clips without a second in which the event is both seen and heard; never drawn into a support."
    report.note("info", "empty-event", message, without)
    return samples


def _runs(marks: tuple[int, ...]) -> list[tuple[float, float]]:
    """Stretches of ones as (onset, offset) in seconds."""
    runs: list[tuple[float, float]] = []
    for second, mark in enumerate(marks):
        if mark and runs and runs[-1][1] == second:
            runs[-1] = (runs[-1][0], second + 1.0)
        elif mark:
            runs.append((float(second), second + 1.0))
    return runs


def with_vggsounder(dataset: Dataset, path: str | Path) -> Dataset:
    """The data set with the labels of ``vggsounder.csv`` on its test clips, several a clip.

    VGGSounder (Zverev et al., 2025) gives the test clips of VGG-Sound all classes that are seen or heard. Test clips
    keep those among the classes of `dataset`, with events over the whole clip that say in which modality; test clips
    that it does not know, or knows by other classes only, are left out and counted (``not-in-vggsounder``). Other
    splits stay.

    Raises:
        DataError: The file is not VGGSounder's, or knows none of the test clips.
    """
    report = DatasetReport(list(dataset.report.findings))
    part = read_clip_list(path, report, split="test")
    if part.form != "vggsounder":
        raise DataError(f"{path}: no VGGSounder file (its header has video_id, label and modality).")
    names = ClassNames(dataset.classes)
    events: dict[str, set[Event]] = {}
    end = float(dataset.num_segments)
    modalities: dict[str, Literal["audio", "visual"]] = {"A": "audio", "V": "visual"}
    for row in part.rows:
        if (label := names.index(row.category)) is not None:
            event = Event(label, 0.0, end, modalities.get(row.modality, "av"))
            for key in {row.id, row.youtube_id or row.id}:
                events.setdefault(key, set()).add(event)
    # A list without starts can be matched by video alone, and only where VGGSounder has one clip of that video.
    clips = Counter(video for _, video in {(row.id, row.youtube_id) for row in part.rows})
    samples: list[Sample] = []
    without: list[str] = []
    for sample in dataset.samples:
        if sample.split != "test":
            samples.append(sample)
            continue
        own_events = events.get(sample.id) if sample.start is not None or clips[sample.youtube_id] == 1 else None
        if not own_events:
            without.append(sample.id)
            continue
        ordered = tuple(sorted(own_events, key=lambda event: (event.label, event.modality)))
        labels = tuple(sorted({event.label for event in ordered}))
        samples.append(replace(sample, labels=labels, events=ordered, segments=None))
    message = "Test clips without a VGGSounder label among the classes, left out."
    report.note("info", "not-in-vggsounder", message, without)
    if not any(sample.split == "test" for sample in samples):
        raise DataError(f"{path}: knows none of the test clips of {dataset.description.title}.")
    return replace(
        dataset, samples=tuple(samples), multi_label=True, report=report, form=f"{dataset.form} + vggsounder"
    )
