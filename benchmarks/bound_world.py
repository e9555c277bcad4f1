"""Write a small world whose classes neither sense tells, alone or added up: what Table 5 is to be shown on.

Six classes in three pairs. In a pair the same things are seen as often, and the same things heard as often, in either
class; only how the two belong together tells:

- `own voice`, `other voice`: a dog or a cat, barking or meowing, by itself or with the other's voice;
- `left one`, `right one`: a bell and a drum side by side, either on the left, one of which sounds;
- `seen first`, `heard first`: a frog is seen and not heard, then heard and not seen; or the other way round. The
  seconds of a clip are the same in both classes, but for their order.

    python benchmarks/bound_world.py bound
    avfs compare --data bound --shots 16 --ablate modules --backbone tiny

The same `--seed` gives the same clips. They are studio recordings, in `train/`, `val/` and `test/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from avfewshot.toyworld.plan import generator
from avfewshot.toyworld.render import write_clip
from avfewshot.toyworld.script import ClipScript, Event, PlacedEvent
from avfewshot.toyworld.vocabulary import Composition

VOICES = {"dog": "barking", "cat": "meowing"}
PLAYERS = Composition("bell", "ringing"), Composition("drum", "drumming")
FROG = Composition("frog", "croaking")
Events = tuple[Event, ...]


def voice(number: int, end: float, *, own: bool) -> Events:
    """An animal and a voice; `number` says which animal."""
    animal = list(VOICES)[number % 2]
    sound = VOICES[animal] if own else next(voice for voice in VOICES.values() if voice != VOICES[animal])
    return (Event(Composition(animal, sound), (0.0, end), (0.0, end)),)


def beside(number: int, end: float, *, left: bool) -> Events:
    """Two players, of which the one on that side sounds; `number` says who stands on the left."""
    pair = PLAYERS if number % 2 else PLAYERS[::-1]
    sounds = ((0.0, end), None) if left else (None, (0.0, end))
    return tuple(PlacedEvent(pair[n], (0.0, end), sounds[n], float(n)) for n in (0, 1))


def order(number: int, end: float, *, seen: bool) -> Events:
    """Sight, then sound, or the other way round; `number` says for how long the first."""
    first = float(1 + number % (int(end) - 1))
    before, after = (0.0, first), (first, end)
    return (Event(FROG, before, after) if seen else Event(FROG, after, before),)


CLASSES: dict[str, Callable[[int, float], Events]] = {
    "own voice": lambda number, end: voice(number, end, own=True),
    "other voice": lambda number, end: voice(number, end, own=False),
    "left one": lambda number, end: beside(number, end, left=True),
    "right one": lambda number, end: beside(number, end, left=False),
    "seen first": lambda number, end: order(number, end, seen=True),
    "heard first": lambda number, end: order(number, end, seen=False),
}


def main() -> None:
    """Write what is not there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write; what is there already stays")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=3, help="of a clip")
    parser.add_argument("--only", default=",".join(CLASSES), help="classes, by comma")
    parser.add_argument("--train", type=int, default=16, help="clips of each class")
    parser.add_argument("--val", type=int, default=4)
    parser.add_argument("--test", type=int, default=32)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    with ProcessPoolExecutor(options.jobs) as pool:
        written = []
        for split in ("train", "val", "test"):
            for name in options.only.split(","):
                folder = options.folder / split / name
                folder.mkdir(parents=True, exist_ok=True)
                for number in range(getattr(options, split)):
                    seed = int(generator(options.seed, "bound", split, name, number).integers(1 << 62))
                    path = folder / f"{name.replace(' ', '-')}-{number:03}.mp4"
                    script = ClipScript(options.seconds, CLASSES[name](number, float(options.seconds)), seed)
                    if not path.exists():
                        written.append(pool.submit(write_clip, script, path))
        for clip in written:
            clip.result()


if __name__ == "__main__":
    main()
