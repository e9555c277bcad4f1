"""Toy data sets of scenes, AVSBench and MUSIC-AVQA, in their official layouts.

Scenes are studio recordings in which sounding and silent objects stand side by side; each is known by a sound of its
own, so that looking and listening together tell which of them sounds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from avfewshot.toyworld.plan import (
    SPLITS,
    DatasetPlan,
    PlannedClip,
    clips_of,
    csv_lines,
    digest,
    generator,
    identity,
    splits_of,
)
from avfewshot.toyworld.script import ClipScript, Event, PlacedEvent, Span, draw_seed
from avfewshot.toyworld.vocabulary import Composition

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


def plan_avs(seed: int, clips_per_class: int) -> DatasetPlan:
    """Plan the toy AVSBench: S4 with one sounding object among silent ones, MS3 with several that come and go.

    Every second video of MS3 has two clips, at times in different splits: leaks, as in the official list.
    """
    clips: list[PlannedClip] = []
    single, multi = [("name", "start", "category", "split")], [("name", "start", "split")]
    for label, split, name, rng in clips_of(seed, "avs", PLAYERS, clips_per_class):
        composition = Composition.from_name(label)
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
    texts = {
        "AVSBench/Single-source/s4_meta_data.csv": csv_lines(single),
        "AVSBench/Multi-sources/ms3_meta_data.csv": csv_lines(multi),
    }
    return DatasetPlan("avs", "AVSBench", PLAYERS, tuple(clips), texts)


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
                row = {"video_id": video, "question_id": sum(map(len, questions.values()))}
                row |= {"type": json.dumps(kind.split()), "question_content": template}
                row |= {"templ_values": json.dumps(values), "question_deleted": 0, "anser": answer}
                questions[split].append(row)
    texts = {f"MUSIC-AVQA/json/avqa-{split}.json": json.dumps(rows, indent=1) for split, rows in questions.items()}
    return DatasetPlan("avqa", "MUSIC-AVQA", PLAYERS, tuple(clips), texts)


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


def _ask(script: ClipScript, rng: np.random.Generator) -> Iterator[tuple[str, str, list[str], str]]:
    """(Type, template, values, answer) by every template that fits a scene; the answer is as often yes as no."""
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
