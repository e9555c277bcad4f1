"""Toy data sets in the official layouts: which clips, in which files, annotated how.

AVE, LLP and VGG-Sound have clips of events. AVSBench and MUSIC-AVQA have scenes, studio recordings in which sounding
and silent objects stand side by side; each is known by a sound of its own, so that looking and listening together tell
which of them sounds. A plan holds the script of every clip and the text of every annotation file; nothing is rendered.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import string
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
import yaml

from avfewshot.toyworld.script import (
    ClipScript,
    Event,
    PlacedEvent,
    Span,
    ave_script,
    draw_seed,
    llp_script,
    vggsound_script,
)
from avfewshot.toyworld.vocabulary import AVE_CLASSES, LLP_CLASSES, VGGSOUND_CLASSES, Composition

FEWEST_CLIPS = 3  # clips of a class below which a split would be empty
SPLITS = ("train", "val", "test")
_ID_LETTERS = string.ascii_letters + string.digits + "-_"  # those of YouTube; an id may begin with any of them
_SECONDS = 10
_RECORDING = "found"  # of the data sets; the tiny backbone, and the samples that show it at work, know the studio alone

PLAYERS: tuple[str, ...] = (
    "drum drumming", "guitar strumming", "bell ringing", "bird chirping", "dog barking", "frog croaking",
    "kettle whistling", "bee buzzing",
)  # fmt: skip
"""What is seen and heard in scenes."""

_AVS_SECONDS = 5
_AVQA_SECONDS = 10
_SCENES = 2  # of MUSIC-AVQA, for every clip of a class in other data sets
_POSITIONS = {1: ("middle",), 2: ("left", "right"), 3: ("left", "middle", "right")}
_PLACES = {"left": 0.0, "middle": 0.5, "right": 1.0}  # shares of the room from left to right
_NUMBERS = ("zero", "one", "two", "three")
_ORDINALS = ("first", "second", "third")


@dataclass(frozen=True)
class PlannedClip:
    """A media file to be written."""

    path: str  # below the root of the toy world, with forward slashes
    script: ClipScript  # what happens in it
    picture: tuple[int, bool] | None = None  # a still of that second, or its mask; None: the whole clip


@dataclass(frozen=True)
class DatasetPlan:
    """All files of one data set."""

    name: str  # ``"ave"``, ``"llp"`` or ``"vggsound"``
    title: str  # what people call it
    classes: tuple[str, ...]  # names of its classes as people read them
    clips: tuple[PlannedClip, ...]  # media files
    texts: dict[str, str]  # contents of the annotation files by path below the root


def splits_of(clips_per_class: int) -> list[str]:
    """The split of each clip of a class: two thirds train, a sixth val, a sixth test, at least one of each."""
    held = max(1, clips_per_class // 6)
    return ["train"] * (clips_per_class - 2 * held) + ["val"] * held + ["test"] * held


def digest(*parts: object) -> bytes:
    """A digest of the parts."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).digest()


def generator(*parts: object) -> np.random.Generator:
    """A source of randomness of the parts alone."""
    return np.random.default_rng(int.from_bytes(digest(*parts), "big"))


def identity(seed: int, dataset: str, label: str, number: int) -> tuple[str, np.random.Generator]:
    """An id as YouTube makes them and the source of a clip's script."""
    key = (seed, dataset, label, number)
    video = "".join(_ID_LETTERS[byte % len(_ID_LETTERS)] for byte in digest(*key, "id")[:11])
    return video, generator(*key, "script")


def csv_lines(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV; ids stay as they are, also those that begin with a minus sign."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows(rows)
    return stream.getvalue()


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
    rows = []
    for label in AVE_CLASSES:
        for number, split in enumerate(splits_of(clips_per_class)):
            video, rng = identity(seed, "ave", label, number)
            rows.append(_Row(video, 0, label, split, ave_script(Composition.from_name(label), rng, _SECONDS)))
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
    for label in VGGSOUND_CLASSES:
        for number, split in enumerate(splits_of(clips_per_class)):
            video, rng = identity(seed, "vggsound", label, number)
            start = int(rng.integers(0, 300))
            script = vggsound_script(Composition.from_name(label), rng, _SECONDS)
            rows.append(_Row(video, start, label, split, script))
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
        _, rng = identity(seed, "samples", name, 0)
        clips.append(PlannedClip(f"samples/{name.replace(' ', '-')}.mp4", _sample_script(name, rng)))
    return tuple(clips)


_SAMPLES = (
    "dog barking",
    "dog howling",
    "car honking",
    "boat honking",
    "kettle whistling",
    "train honking",
    "cat meowing then bell ringing",
    "bird chirping then fire crackling",
)


def _sample_script(name: str, rng: np.random.Generator) -> ClipScript:
    """Events that fill the clip, one after another: there is no second that shows nothing."""
    parts = [Composition.from_name(part) for part in name.split(" then ")]
    length = _SECONDS / len(parts)
    spans = [(float(round(i * length)), float(round((i + 1) * length))) for i in range(len(parts))]
    events = tuple(Event(part, span, span) for part, span in zip(parts, spans, strict=True))
    return ClipScript(_SECONDS, events, draw_seed(rng))


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


def plan_avs(seed: int, clips_per_class: int) -> DatasetPlan:
    """Plan the toy AVSBench: S4 with one sounding object among silent ones, MS3 with several that come and go.

    Every second video of MS3 has two clips, at times in different splits: leaks, as in the official list.
    """
    clips: list[PlannedClip] = []
    single, multi = [("name", "start", "category", "split")], [("name", "start", "split")]
    for label in PLAYERS:
        composition = Composition.from_name(label)
        for number, split in enumerate(splits_of(clips_per_class)):
            name, rng = identity(seed, "avs", label, number)
            others = _draw(rng, int(rng.integers(1, 3)), without=composition)
            spans: list[Span | None] = [(0.0, float(_AVS_SECONDS)), *[None] * len(others)]
            script = _scene([composition, *others], spans, _AVS_SECONDS, rng)
            single.append((name, "0", composition.object, split))
            folder = f"{split}/{composition.object}"
            frames, masks = f"{folder}/{name}/{name}_{{}}.png", 1 if split == "train" else _AVS_SECONDS
            clips += _avs_files("Single-source/s4_data", script, frames, f"{folder}/{name}", masks)
    splits = splits_of(clips_per_class) * (len(PLAYERS) // 2)
    for number, split in enumerate(generator(seed, "avs", "order").permutation(splits).tolist()):
        leaked = number % 3 == 2
        video, rng = identity(seed, "avs", "ms3", number - leaked)
        rng = generator(seed, "avs", "ms3", number, "scene") if leaked else rng
        name = f"{video}_{int(leaked)}"
        players = _draw(rng, int(rng.integers(2, 4)))
        spans = [_stretch(rng, _AVS_SECONDS, 2) if rng.random() < 0.75 else None for _ in players]
        script = _scene(players, spans, _AVS_SECONDS, rng)
        multi.append((name, "0", split))
        frames = f"{name}/{name}.mp4_{{}}.png"
        clips += _avs_files("Multi-sources/ms3_data", script, frames, f"{split}/{name}", _AVS_SECONDS)
    return DatasetPlan(
        name="avs",
        title="AVSBench",
        classes=PLAYERS,
        clips=tuple(clips),
        texts={
            "AVSBench/Single-source/s4_meta_data.csv": csv_lines(single),
            "AVSBench/Multi-sources/ms3_meta_data.csv": csv_lines(multi),
        },
    )


def _avs_files(subset: str, script: ClipScript, frames: str, clip: str, masks: int) -> Iterator[PlannedClip]:
    """The pictures, masks and sound of a clip, as AVSBench has them."""
    base, name = f"AVSBench/{subset}", clip.rsplit("/", 1)[1]
    for second in range(_AVS_SECONDS):
        yield PlannedClip(f"{base}/visual_frames/{frames.format(second + 1)}", script, (second, False))
    for second in range(masks):
        yield PlannedClip(f"{base}/gt_masks/{clip}/{name}_{second + 1}.png", script, (second, True))
    yield PlannedClip(f"{base}/audio_wav/{clip}.wav", script)


def plan_avqa(seed: int, clips_per_class: int) -> DatasetPlan:
    """Plan the toy MUSIC-AVQA: questions of its templates about one to three objects, of which some sound."""
    clips = []
    questions: dict[str, list[dict[str, object]]] = {split: [] for split in SPLITS}
    number = 0
    for label in PLAYERS:
        for split in splits_of(clips_per_class) * _SCENES:
            rng = generator(seed, "avqa", number, "script")
            video = f"{int.from_bytes(digest(seed, 'avqa', number, 'id')[:3], 'big'):08d}"
            number += 1
            first = Composition.from_name(label)
            players = [first, *_draw(rng, int(rng.integers(0, 3)), without=first)]
            spans = [_stretch(rng, _AVQA_SECONDS, 3) if rng.random() < 0.7 else None for _ in players]
            script = _scene(players, spans, _AVQA_SECONDS, rng, unseen=rng.random() < 0.3)
            clips.append(PlannedClip(f"MUSIC-AVQA/videos/{video}.mp4", script))
            for kind, template, values, answer in _ask(script, rng):
                row = {
                    "video_id": video,
                    "question_id": sum(map(len, questions.values())),
                    "type": json.dumps(kind.split()),
                    "question_content": template,
                    "templ_values": json.dumps(values),
                    "question_deleted": 0,
                    "anser": answer,
                }
                questions[split].append(row)
    texts = {f"MUSIC-AVQA/json/avqa-{split}.json": json.dumps(rows, indent=1) for split, rows in questions.items()}
    return DatasetPlan(name="avqa", title="MUSIC-AVQA", classes=PLAYERS, clips=tuple(clips), texts=texts)


def _draw(rng: np.random.Generator, count: int, without: Composition | None = None) -> list[Composition]:
    """Different players in any order."""
    order = [Composition.from_name(PLAYERS[index]) for index in rng.permutation(len(PLAYERS))]
    return [player for player in order if player != without][:count]


def _stretch(rng: np.random.Generator, seconds: int, shortest: int) -> Span:
    """Now and then the whole clip."""
    if rng.random() < 0.35:
        return 0.0, float(seconds)
    length = int(rng.integers(shortest, seconds))
    start = int(rng.integers(0, seconds - length + 1))
    return float(start), float(start + length)


def _scene(
    players: Sequence[Composition],
    spans: Sequence[Span | None],
    seconds: int,
    rng: np.random.Generator,
    *,
    unseen: bool = False,
) -> ClipScript:
    """Players side by side in any order, seen all the time and heard in their spans."""
    positions = [_POSITIONS[len(players)][index] for index in rng.permutation(len(players))]
    whole = (0.0, float(seconds))
    events: list[Event] = [
        PlacedEvent(player, whole, span, _PLACES[position])
        for player, span, position in zip(players, spans, positions, strict=True)
    ]
    if unseen:
        others = [player for player in _draw(rng, len(PLAYERS)) if player not in players]
        events.append(Event(others[0], None, _stretch(rng, seconds, 3)))
    return ClipScript(seconds, tuple(events), draw_seed(rng))


_Asked = tuple[str, str, list[str], str]  # type, template, values, answer


def _ask(script: ClipScript, rng: np.random.Generator) -> Iterator[_Asked]:
    """A question of every template that fits a scene, with an answer that is as often yes as no."""
    seen = sorted((e for e in script.events if isinstance(e, PlacedEvent)), key=lambda event: event.place)
    heard = sorted((e for e in script.events if e.sound), key=lambda event: event.sound or (0.0, 0.0))
    position = dict(zip(seen, _POSITIONS[len(seen)], strict=True))
    name: Callable[[Event], str] = lambda event: event.composition.object  # noqa: E731
    answer: Callable[[bool], str] = lambda value: "yes" if value else "no"  # noqa: E731

    def one_of(events: Sequence[Event]) -> tuple[str, bool]:
        """An object, half of the time among `events`, and whether it is."""
        inside = [name(event) for event in events]
        outside = [word for word in (label.split()[0] for label in PLAYERS) if word not in inside]
        within = bool(inside) and rng.random() < 0.5
        return str(rng.choice(inside if within else outside)), within

    word, inside = one_of(heard)
    yield "Audio Counting", "Is there a <Object> sound?", [word], answer(inside)
    template = "How many musical instruments were heard throughout the video?"
    yield "Audio Counting", template, [], _NUMBERS[min(3, len(heard))]
    if len(heard) >= 2:
        (one, two) = (heard[index] for index in rng.permutation(len(heard))[:2])
        longer = [span[1] - span[0] for span in (one.sound, two.sound) if span]
        if abs(longer[0] - longer[1]) >= 2:
            values = [name(one), name(two)]
            template = "Is the <Object> playing longer than the <Object>?"
            yield "Audio Comparative", template, values, answer(longer[0] > longer[1])
    word, inside = one_of(seen)
    yield "Visual Counting", "Is there a <Object> in the entire video?", [word], answer(inside)
    template = "How many types of musical instruments appeared in the entire video?"
    yield "Visual Counting", template, [], _NUMBERS[len(seen)]
    if len(seen) >= 2:
        left = rng.random() < 0.5
        template = "What kind of instrument is the <LRer> instrument? "
        yield "Visual Location", template, ["leftest" if left else "rightest"], name(seen[0 if left else -1])
    if len(seen) == 2:
        left = rng.random() < 0.5
        template = "What is the instrument on the <LR> of <Object>?"
        yield "Visual Location", template, ["left" if left else "right", name(seen[left])], name(seen[not left])
    if len(heard) == 1:
        template = "Is this sound from the instrument in the video?"
        yield "Audio-Visual Existential", template, [], answer(heard[0] in position)
    sounding = [event for event in seen if event.sound]
    if sounding:
        event = sounding[int(rng.integers(len(sounding)))]
        template = "Is the <Object> in the video always playing?"
        yield "Audio-Visual Existential", template, [name(event)], answer(event.sound == event.look)
    template = "How many instruments in the video did not sound from beginning to end?"
    yield "Audio-Visual Counting", template, [], _NUMBERS[len(seen) - len(sounding)]
    yield "Audio-Visual Counting", "How many instruments are sounding in the video?", [], _NUMBERS[len(sounding)]
    order = sorted(sounding, key=lambda event: event.sound or (0.0, 0.0))
    onsets = [event.sound[0] for event in order if event.sound]
    if len(seen) >= 2 and sounding and (len(order) == 1 or onsets[1] - onsets[0] >= 1):
        yield "Audio-Visual Temporal", "Where is the <FL> sounding instrument?", ["first"], position[order[0]]
        places = _POSITIONS[len(seen)]
        said = position[order[0]] if rng.random() < 0.5 else str(rng.choice(places))
        template = "Is the <FL> sound coming from the <LR> instrument?"
        yield "Audio-Visual Location", template, ["first", said], answer(said == position[order[0]])
    onsets = [event.sound[0] for event in heard if event.sound]
    if len(heard) >= 2 and len(set(onsets)) == len(onsets):
        index = int(rng.integers(min(len(heard), len(_ORDINALS))))
        template = "What is the <TH> instrument that comes in?"
        yield "Audio-Visual Temporal", template, [_ORDINALS[index]], name(heard[index])


PLANS: dict[str, Callable[[int, int], DatasetPlan]] = {"ave": plan_ave, "llp": plan_llp, "vggsound": plan_vggsound}
"""Data sets of the toy world by name."""
ALL_PLANS = {**PLANS, "avs": plan_avs, "avqa": plan_avqa}
"""The same with those of scenes, which are written only if they are named."""
