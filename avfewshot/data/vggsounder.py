"""VGGSounder: all classes that are seen or heard in the test clips of VGG-Sound."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Literal

from avfewshot.data.aliases import ClassNames
from avfewshot.data.clip_lists import read_clip_list
from avfewshot.data.dataset import Dataset, Event, Sample
from avfewshot.data.findings import DatasetReport
from avfewshot.errors import DataError


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
    if without:
        message = "Test clips without a VGGSounder label among the classes, left out."
        report.add("info", "not-in-vggsounder", message, without)
    if not any(sample.split == "test" for sample in samples):
        raise DataError(f"{path}: knows none of the test clips of {dataset.description.title}.")
    return replace(
        dataset, samples=tuple(samples), multi_label=True, report=report, form=f"{dataset.form} + vggsounder"
    )
