"""Toy data sets of clips in which something happens, AVE, LLP and VGG-Sound, in their official layouts; samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from types import MappingProxyType

import numpy as np
import yaml

from avfewshot.toyworld.plan import (
    SPLITS,
    DatasetPlan,
    PlannedClip,
    clips_of,
    csv_lines,
    generator,
    identity,
    splits_of,
)
from avfewshot.toyworld.script import ClipScript, Event, ave_script, draw_seed, llp_script, vggsound_script
from avfewshot.toyworld.vocabulary import AVE_CLASSES, LLP_CLASSES, VGGSOUND_CLASSES, Composition

_SECONDS = 10
_RECORDING = "found"  # of the data sets; the tiny backbone, and the samples that show it at work, know the studio alone


@dataclass(frozen=True)
class _Row:
    """A clip with what its annotation needs."""

    video: str
    start: int
    label: str
    split: str
    script: ClipScript


def plan_ave(seed: int, clips_per_class: int) -> DatasetPlan:
    """Plan the toy AVE: one audio-visual event a clip, annotated with the seconds in which it is seen and heard.

    Videos ``AVE/AVE/ID.mp4``, as in the official archive; ``Annotations.txt`` and the split files in AVE.
    """
    rows = [
        _Row(video, 0, label, split, ave_script(Composition.from_name(label), rng, _SECONDS))
        for label, split, video, rng in clips_of(seed, "ave", AVE_CLASSES, clips_per_class)
    ]
    files = {"annotations": "Annotations.txt", **{split: f"{split}Set.txt" for split in SPLITS}}
    texts = {
        name: _lines(line for row in rows if role in ("annotations", row.split) for line in _ave_lines(row))
        for role, name in files.items()
    }
    return _dataset(
        "ave", "AVE", "AVE", AVE_CLASSES, rows, texts, files=files, header=0, tasks=["ave", "ave_cls"],
        video=lambda row: f"AVE/{row.video}", extra={"background": {"name": "Background", "wording": "background"}},
    )  # fmt: skip


def plan_llp(seed: int, clips_per_class: int) -> DatasetPlan:
    """Plan the toy LLP: clips with one to three events, each seen, heard, or both.

    The training split has as many clips with a single label as `clips_per_class` gives it, for k-shot supports, and a
    quarter as many with several labels on top. In the other splits every second clip has several labels.

    Videos ``LLP/LLP_dataset/video/ID_START_END.mp4``; the five ``AVVP_*.csv`` files in LLP.
    """
    rows = []
    splits = splits_of(clips_per_class)
    extra = -(-splits.count("train") // 4)
    for index, label in enumerate(LLP_CLASSES):
        for number, split in enumerate([*splits, *["train"] * extra]):
            # Alternate by class as well, so that even single clips per class give both kinds.
            several = number >= len(splits) or (split != "train" and (number + index) % 2 == 1)
            video, rng = identity(seed, "llp", label, number)
            events = [Composition.from_name(label)]
            if several:
                events += _others(events[0], rng)
            start = 10 * int(rng.integers(0, 30))
            rows.append(_Row(video, start, label, split, llp_script(events, rng, _SECONDS)))
    # The official files are in no order; neither are these, so that their first rows are of many classes.
    rows = [rows[index] for index in generator(seed, "llp", "order").permutation(len(rows))]
    files = {"train": "AVVP_train.csv", "val": "AVVP_val_pd.csv", "test": "AVVP_test_pd.csv"}
    texts = {}
    for split, name in files.items():
        labels = (
            (_llp_name(row), ",".join(_llp_label(event.composition.name) for event in row.script.events))
            for row in rows
            if row.split == split
        )
        texts[name] = _lines(map("\t".join, [("filename", "event_labels"), *labels]))
    files |= {"audio_events": "AVVP_eval_audio.csv", "visual_events": "AVVP_eval_visual.csv"}
    texts[files["audio_events"]] = _llp_spans(rows, lambda event: event.sound)
    texts[files["visual_events"]] = _llp_spans(rows, lambda event: event.look)
    return _dataset(
        "llp", "LLP", "LLP", LLP_CLASSES, rows, texts, files=files, header=1, tasks=["llp_cls"], label=_llp_label,
        video=lambda row: f"LLP_dataset/video/{_llp_name(row)}", extra={"multi_label": True},
    )  # fmt: skip


def plan_vggsound(seed: int, clips_per_class: int) -> DatasetPlan:
    """Plan the toy VGG-Sound: one class a clip.

    Two lists name the same clips: ``vggsound.csv`` as published (``id,start,label,split`` with the splits train and
    test), and ``vggsound-avel40k_labels.csv`` (``category,video_id,split,label`` with ten 0/1 that tell in which
    seconds the event is both seen and heard).

    Videos ``VGGSound/video/ID_START.mp4``, START in six digits; the lists in VGGSound.
    """
    rows = []
    for label, split, video, rng in clips_of(seed, "vggsound", VGGSOUND_CLASSES, clips_per_class):
        start = int(rng.integers(0, 300))
        rows.append(_Row(video, start, label, split, vggsound_script(Composition.from_name(label), rng, _SECONDS)))
    rows.sort(key=lambda row: row.video)
    official = [(row.video, row.start, row.label, "test" if row.split == "test" else "train") for row in rows]
    per_second = [(row.label, row.video, row.split, str(_active_seconds(row.script))) for row in rows]
    listed = "vggsound-avel40k_labels.csv"
    texts = {
        "vggsound.csv": csv_lines(official),
        listed: csv_lines([("category", "video_id", "split", "label"), *per_second]),
    }
    return _dataset(
        "vggsound", "VGGSound", "VGG-Sound", VGGSOUND_CLASSES, rows, texts, files={"list": listed}, header=1,
        tasks=["vggsound40k", "vggsound_cls"], video=lambda row: f"video/{row.video}_{row.start:06d}",
        described=("vggsound40k", "VGG-Sound(40K)"),
    )  # fmt: skip


def plan_samples(seed: int) -> tuple[PlannedClip, ...]:
    """Plan a few clips with plain names, for a first trial: ``samples/dog-barking.mp4`` and the like.

    Their compositions look or sound alike in part; ``train-honking`` is one that the tiny backbone was never told of.
    """
    clips = []
    for name in _SAMPLES:
        parts = [Composition.from_name(part) for part in name.split(" then ")]
        # One after another, so that there is no second that shows nothing.
        ends = [float(round(i * _SECONDS / len(parts))) for i in range(len(parts) + 1)]
        events = tuple(Event(part, span, span) for part, span in zip(parts, pairwise(ends), strict=True))
        _, rng = identity(seed, "samples", name, 0)
        script = ClipScript(_SECONDS, events, draw_seed(rng))
        clips.append(PlannedClip(f"samples/{name.replace(' ', '-')}.mp4", script))
    return tuple(clips)


_SAMPLES = (
    "dog barking", "dog howling", "car honking", "boat honking", "kettle whistling", "train honking",
    "cat meowing then bell ringing", "bird chirping then fire crackling",
)  # fmt: skip


def _others(first: Composition, rng: np.random.Generator) -> list[Composition]:
    """One or, less often, two further classes of the toy LLP, all different in looks and in sound."""
    chosen = [first]
    for index in rng.permutation(len(LLP_CLASSES)):
        other = Composition.from_name(LLP_CLASSES[index])
        if all(other.object != earlier.object and other.sound != earlier.sound for earlier in chosen):
            chosen.append(other)
    return chosen[1 : 2 + (rng.random() < 0.25)]


def _whole_seconds(span: tuple[float, float]) -> range:
    """The seconds of which a span covers the larger part."""
    return range(round(span[0]), round(span[1]))


def _active_seconds(script: ClipScript) -> list[int]:
    """For each second 1 where an event is both seen and heard, else 0."""
    active = [0] * round(script.seconds)
    for event in script.events:
        if event.look and event.sound:
            for second in set(_whole_seconds(event.look)) & set(_whole_seconds(event.sound)):
                active[second] = 1
    return active


def _ave_lines(row: _Row) -> Iterable[str]:
    """A line for each unbroken stretch in which the event is seen and heard."""
    active = [0, *_active_seconds(row.script), 0]
    onsets = [second for second in range(len(active) - 1) if (active[second], active[second + 1]) == (0, 1)]
    offsets = [second for second in range(len(active) - 1) if (active[second], active[second + 1]) == (1, 0)]
    for onset, offset in zip(onsets, offsets, strict=True):
        yield f"{row.label}&{row.video}&good&{onset}&{offset}"


def _llp_label(name: str) -> str:
    return name.replace(" ", "_")


def _llp_name(row: _Row) -> str:
    return f"{row.video}_{row.start}_{row.start + _SECONDS}"


def _llp_spans(rows: Iterable[_Row], span_of: Callable[[Event], tuple[float, float] | None]) -> str:
    """When each event of the evaluation splits is seen, or heard."""
    lines = ["filename\tonset\toffset\tevent_labels"]
    for row in rows:
        for event in row.script.events if row.split != "train" else ():
            if span := span_of(event):
                seconds = _whole_seconds(span)
                label = _llp_label(event.composition.name)
                lines.append(f"{_llp_name(row)}\t{seconds.start}\t{seconds.stop}\t{label}")
    return _lines(lines)


def _lines(lines: Iterable[str]) -> str:
    return "".join(f"{line}\n" for line in lines)


def _dataset(
    name: str,
    folder: str,
    title: str,
    classes: tuple[str, ...],
    rows: Sequence[_Row],
    texts: dict[str, str],
    *,
    files: dict[str, str],
    header: int,
    tasks: list[str],
    video: Callable[[_Row], str],
    label: Callable[[str], str] = str,
    described: tuple[str, str] | None = None,
    extra: Mapping[str, object] = MappingProxyType({}),
) -> DatasetPlan:
    """A plan with a ``dataset.yaml``; `files` gives the file of each role, which has so many lines of header."""
    own_name, own_title = described or (name, title)
    document = {
        "format": 1,
        "name": own_name,
        "title": f"toy {own_title}",
        "reader": name,
        "tasks": tasks,
        "how_to_get": "avfs data toy --root DIR",
        "folders": [folder],
        **extra,
        "classes": [{"name": label(words), "wording": words} for words in classes],
        "files": [
            {"role": role, "names": [file], "rows": texts[file].count("\n") - header} for role, file in files.items()
        ],
        "splits": {split: sum(row.split == split for row in rows) for split in SPLITS},
    }
    description = yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)
    return DatasetPlan(
        name=name,
        title=title,
        classes=classes,
        # The same events, recorded with other equipment than what the tiny backbone learnt from.
        clips=tuple(
            PlannedClip(f"{folder}/{video(row)}.mp4", replace(row.script, recording=_RECORDING)) for row in rows
        ),
        texts={f"{folder}/{file}": text for file, text in (texts | {"dataset.yaml": description}).items()},
    )
