"""Small toy data sets for tests of few-shot runs: rendered once, as `avfs data toy` renders them, but few and short."""

import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import yaml

from avfewshot.toyworld.render import write_clip
from avfewshot.toyworld.script import ClipScript, Event, ave_script
from avfewshot.toyworld.vocabulary import Composition

SECONDS = 3
CLASSES = ("car honking", "clock ticking", "dog barking")
AVE_SPLITS = {"train": 2, "val": 1, "test": 2}


def everywhere_script(composition: Composition, rng: np.random.Generator, seconds: int) -> ClipScript:
    """A clip that is filled by one event from its beginning to its end."""
    span = (0.0, float(seconds))
    return ClipScript(seconds, (Event(composition, span, span),), int(rng.integers(1 << 62)))


@cache
def _class_clip(label: int, number: int) -> Path:
    """A clip of a class, rendered once for all tests."""
    path = Path(os.environ["HOME"]) / f"class-{label}-{number}.mp4"
    script = everywhere_script(Composition.from_name(CLASSES[label]), np.random.default_rng([label, number]), SECONDS)
    write_clip(script, path)
    return path


def write_class_folders(root: Path, clips: int = 6) -> Path:
    """``CLASS/NUMBER.mp4``, each clip filled by its event."""
    for label, name in enumerate(CLASSES):
        (root / name).mkdir(parents=True)
        for number in range(clips):
            shutil.copyfile(_class_clip(label, number), root / name / f"{number}.mp4")
    return root


@cache
def _ave_clip(label: int, number: int) -> tuple[Path, float, float]:
    """A clip of the small AVE, rendered once for all tests, with the span of its event."""
    path = Path(os.environ["HOME"]) / f"ave-{label}-{number}.mp4"
    script = ave_script(Composition.from_name(CLASSES[label]), np.random.default_rng([7, label, number]), SECONDS)
    write_clip(script, path)
    [event] = script.events
    spans = [span for span in (event.look, event.sound) if span]
    return path, max(on for on, _ in spans), min(off for _, off in spans)


def write_ave(root: Path) -> Path:
    """AVE's layout with three classes and short clips, and a ``dataset.yaml`` that says so."""
    lines: dict[str, list[str]] = {split: [] for split in AVE_SPLITS}
    (root / "AVE").mkdir(parents=True)
    for label, name in enumerate(CLASSES):
        splits = [split for split, count in AVE_SPLITS.items() for _ in range(count)]
        for number, split in enumerate(splits):
            video = f"toy{label}{number:07d}"
            clip, onset, offset = _ave_clip(label, number)
            shutil.copyfile(clip, root / "AVE" / f"{video}.mp4")
            lines[split].append(f"{name}&{video}&good&{onset:.0f}&{offset:.0f}\n")
    texts = {f"{split}Set.txt": "".join(rows) for split, rows in lines.items()}
    texts["Annotations.txt"] = "".join(texts.values())
    for name, text in texts.items():
        (root / name).write_text(text, encoding="utf-8")
    description = {
        "format": 1,
        "name": "ave",
        "title": "small AVE",
        "reader": "ave",
        "tasks": ["ave", "ave_cls"],
        "segments": SECONDS,
        "background": {"name": "Background", "wording": "background"},
        "classes": [{"name": name, "wording": name} for name in CLASSES],
        "files": [{"role": split, "names": [f"{split}Set.txt"]} for split in AVE_SPLITS],
        "splits": {split: count * len(CLASSES) for split, count in AVE_SPLITS.items()},
    }
    (root / "dataset.yaml").write_text(yaml.safe_dump(description, sort_keys=False), encoding="utf-8")
    return root
