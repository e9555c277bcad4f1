"""Write a small world whose classes neither sense tells, alone or added up: what Table 5 is to be shown on.

Six classes in three pairs. In a pair the same things are seen as often, and the same things heard as often, in either
class; only how the two belong together tells:

- `own voice`, `other voice`: a dog or a cat, barking or meowing, by itself or with the other's voice;
- `left one`, `right one`: a bell and a drum side by side, either on the left, one of which sounds;
- `seen first`, `heard first`: a frog is seen and not heard, then heard and not seen; or the other way round. The
  seconds of a clip are the same in both classes, but for their order.

    python benchmarks/bound_world.py bound
    avfs compare --data bound --shots 16 --ablate modules --backbone tiny

The same `--seed` gives the same clips. They are studio recordings of three seconds, in `train/`, `val/` and `test/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from avfewshot.toyworld.plans import generator
from avfewshot.toyworld.script import ClipScript, Event, PlacedEvent
from avfewshot.toyworld.vocabulary import Composition
from avfewshot.toyworld.writer import write_clip

SECONDS = 3
WHOLE = (0.0, float(SECONDS))
VOICES = {"dog": "barking", "cat": "meowing"}
PLAYERS = Composition("bell", "ringing"), Composition("drum", "drumming")
FROG = Composition("frog", "croaking")
Events = tuple[Event, ...]


def voice(number: int, *, own: bool) -> Events:
    """An animal and a voice; `number` says which animal."""
    animal = list(VOICES)[number % 2]
    sound = VOICES[animal] if own else next(voice for voice in VOICES.values() if voice != VOICES[animal])
    return (Event(Composition(animal, sound), WHOLE, WHOLE),)


def beside(number: int, *, left: bool) -> Events:
    """Two players, of which the one on that side sounds; `number` says who stands on the left."""
    pair = PLAYERS if number % 2 else PLAYERS[::-1]
    places = zip(pair, (0.0, 1.0), strict=True)
    return tuple(PlacedEvent(player, WHOLE, WHOLE if (place == 0) == left else None, place) for player, place in places)


def order(number: int, *, seen: bool) -> Events:
    """Sight, then sound, or the other way round; `number` says for how long the first."""
    first = float(1 + number % (SECONDS - 1))
    before, after = (0.0, first), (first, float(SECONDS))
    return (Event(FROG, before, after) if seen else Event(FROG, after, before),)


CLASSES: dict[str, Callable[[int], Events]] = {
    "own voice": lambda number: voice(number, own=True),
    "other voice": lambda number: voice(number, own=False),
    "left one": lambda number: beside(number, left=True),
    "right one": lambda number: beside(number, left=False),
    "seen first": lambda number: order(number, seen=True),
    "heard first": lambda number: order(number, seen=False),
}


def main() -> None:
    """Write what is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; what is there already stays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train", type=int, default=16, help="clips of each class")
    parser.add_argument("--val", type=int, default=4)
    parser.add_argument("--test", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        written = []
        for split in ("train", "val", "test"):
            for name, events in CLASSES.items():
                folder = options.folder / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(getattr(options, split)):
                    seed = int(generator(options.seed, "bound", split, name, number).integers(1 << 62))
                    path = folder / f"{name.replace(' ', '-')}-{number:03}.mp4"
                    if not path.exists():
                        written.append(pool.submit(write_clip, ClipScript(SECONDS, events(number), seed), path))
        for clip in written:
            clip.result()


if __name__ == "__main__":
    main()
