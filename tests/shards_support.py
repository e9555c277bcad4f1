"""A small data set of real clips, decoded in a blink, for the tests of prepared shards."""

import json
import os
import shutil
from functools import cache
from pathlib import Path

from media_factory import tone, write_audio, write_media

from avfewshot.data.dataset import Dataset, Event, Sample
from avfewshot.data.description import ClassEntry, Description
from avfewshot.data.shards.plan import Plan, plan_shards
from avfewshot.data.shards.prepare import prepare
from avfewshot.data.shards.reader import ShardSet

SIDE = 32
CLASSES = ("dog, barking", "rain", "violin/fiddle")
SPLIT_SIZES = {"train": 13, "val": 3}


@cache
def media_folder() -> Path:
    """Three files of two seconds: seen and heard, only seen, only heard."""
    folder = Path(os.environ["HOME"]) / "shards-media"
    folder.mkdir()
    write_media(folder / "both.mp4", fps=5, size=(64, 48), audio=tone(2.0, frequency=300))
    write_media(folder / "seen.mp4", fps=5, size=(64, 48))
    write_audio(folder / "heard.wav", tone(2.0, frequency=500))
    return folder


def make_dataset(broken: tuple[str, ...] = (), root: Path = Path("nowhere")) -> Dataset:
    """Sixteen samples whose ids hold slashes and dots; two share an id, as in AVE; `broken` ids have no file."""
    files = [media_folder() / name for name in ("both.mp4", "seen.mp4", "heard.wav")]
    samples = []
    for split, size in SPLIT_SIZES.items():
        for row in range(size):
            name = "../same.id" if split == "train" and row < 2 else f"{split}/a.b/{row}.mp4"
            samples.append(
                Sample(
                    id=name,
                    labels=(row % 3,) if row % 4 else (0, 2),
                    split=split,
                    row=row,
                    segments=(row % 3, 3),
                    events=(Event(row % 3, 0.0, 1.0, "audio"),),
                    youtube_id="-bbbbbbbbbb",
                    start=20.0,
                    end=22.0,
                    path=media_folder() / "none.mp4" if name in broken else files[row % 3],
                )
            )
    entries = tuple(ClassEntry(name, f"the sound of {name}") for name in CLASSES)
    description = Description("small set", "a small set", "ave", ("small",), entries, (), segments=2)
    return Dataset(description, root, CLASSES, description.wordings, tuple(samples), multi_label=True)


def make_plan(dataset: Dataset | None = None, **options) -> Plan:
    """A plan with shards of four clips: four of train, one of val."""
    return plan_shards(dataset or make_dataset(), **{"frame_side": SIDE, "shard_clips": 4, **options})


@cache
def _prepared() -> Path:
    folder = Path(os.environ["HOME"]) / "shards-prepared"
    prepare(make_plan(), folder).run()
    return folder


def prepared(folder: Path) -> Path:
    """A copy of the prepared small set, to be spoilt at will."""
    shutil.copytree(_prepared(), folder)
    return folder


def train_source(**options):
    """The train split of the prepared small set."""
    return ShardSet.open(_prepared()).split("train", **{"threads": 0, **options})


def names(items) -> list[tuple[str, int]]:
    """What tells a sample from all others of the small set, in the order of a stream."""
    return [(item.id, item.labels[0]) for item in items]


def rewrite_index(folder: Path, **changes) -> None:
    """Change keys of ``index.json`` by hand, as somebody with ill intent may."""
    path = folder / "index.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
