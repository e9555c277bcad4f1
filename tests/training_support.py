"""A small training on stand-in towers, for tests of the loop: made-up clips, no files, no decoding."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from standin_towers import StandInTower

from avfewshot.config import TrainingConfig
from avfewshot.errors import MediaError
from avfewshot.evaluation.predictions import Decision
from avfewshot.evaluation.targets import Targets
from avfewshot.inference.logits import ClassTexts, score_clip
from avfewshot.media.clip import SAMPLE_RATE, Clip
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.training.fabric import single_device
from avfewshot.training.journal import Journal
from avfewshot.training.loop import Labelled, Training
from avfewshot.training.objective import Objective
from avfewshot.training.selection import judge, judge_zero_shot
from avfewshot.training.store import CheckpointStore

CLASSES = 3
SETTINGS = {"task": "ave_cls", "batch_size": 2, "epochs": 3, "patience": 0, "hidden": 4, "workers": 0, "blend": 1.0}
SETTINGS |= {"precision": "fp32", "lr": 3e-3, "window": 4}


@dataclass
class Backbone:
    """What a training needs of a backbone."""

    visual: StandInTower
    audio: StandInTower
    visual_scale: float = 10.0
    audio_scale: float = 10.0
    name: str = "stand-in"
    identity: dict[str, str] = field(default_factory=lambda: {"clip": "c" * 64, "clap": "a" * 64})


def backbone() -> Backbone:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        visual = StandInTower([(5, 12)] * 2, 3 * 8 * 8, 6)
        audio = StandInTower([(16, 4), (4, 8)], SAMPLE_RATE, 7)
    return Backbone(visual, audio)


def texts() -> ClassTexts:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randn(CLASSES + 1, width, generator=generator) for width in (6, 7)]
    return ClassTexts(*(torch.nn.functional.normalize(row, dim=-1) for row in rows))


def read(path: Path) -> Clip:
    """A clip that is a function of its name: ``CLASS-NUMBER[-SECONDS][-mute|-blind]``."""
    parts = path.stem.split("-")
    if "broken" in parts:
        raise MediaError(path, "it is broken.")
    label, number = int(parts[0]), int(parts[1])
    seconds = int(parts[2]) if len(parts) > 2 and parts[2].isdigit() else 3
    generator = torch.Generator().manual_seed(1000 * label + number)
    frames = torch.randint(0, 120, (seconds, 3, 8, 8), dtype=torch.uint8, generator=generator)
    frames[:, label % 3] += 100
    wave = 0.1 * torch.randn(seconds * SAMPLE_RATE, generator=generator) * (1 + label)
    return Clip(path, float(seconds), 0, None if "blind" in parts else frames, None if "mute" in parts else wave)


def names(prefix: str = "", count: int = 2) -> list[Path]:
    return [Path(f"{label}-{number}{prefix}.mp4") for label in range(CLASSES) for number in range(count)]


def labelled(paths: list[Path]) -> list[Labelled]:
    eye = torch.eye(CLASSES, dtype=torch.bool)
    return [Labelled(path.stem, path, eye[int(path.stem[0])]) for path in paths]


def make_training(folder: Path, *, seed: int = 1, paths: list[Path] | None = None, **changes) -> Training:
    """A training whose validation clips are others of the same kind."""
    config = TrainingConfig(**{**SETTINGS, **changes})
    base = backbone()
    given = texts()
    decision = Decision(config.task, config.fusion, config.pool)
    held = [Path(f"{label}-{9 + number}.mp4") for label in range(CLASSES) for number in range(2)]
    labels = torch.eye(CLASSES, dtype=torch.bool)[[int(path.stem[0]) for path in held]].numpy()
    targets = Targets(tuple(path.stem for path in held), tuple("abc"), labels)
    clips = [read(path) for path in held]

    def logits(model):
        with torch.inference_mode():
            model.eval()
            projected = given.projected(model)
            scales = model.temperatures.scale("visual").item(), model.temperatures.scale("audio").item()
            result = []
            for clip in clips:
                visual, audio = model(clip.frames[None], clip.audio_segments[None])
                result.append(score_clip(visual[0], audio[0], projected, scales))
            return result

    model = build_model(base, config, seed=seed)
    zero = logits(model)

    def describe(verdict):
        return AdapterConfig(
            task=config.task, labels=tuple("abc"), wordings=tuple("abc"), templates="tiny", backbone=base.name,
            identity=base.identity, training=config.to_dict(), seed=seed, decision={"blend": verdict.blend},
        )  # fmt: skip

    return Training(
        single_device(torch.device("cpu"), "fp32"),
        model,
        config,
        seed=seed,
        clips=labelled(names() if paths is None else paths),
        read=read,
        objective=Objective(config, given, per_second=False),
        judge=lambda trained, epoch: judge(decision, zero, logits(trained), targets, config.blend),
        start=judge_zero_shot(decision, zero, targets),
        store=CheckpointStore(folder / "checkpoints"),
        describe=describe,
        journal=Journal(folder / "metrics.jsonl"),
    )


def resumed(folder: Path, **changes) -> Training:
    """The same training, gone on with from its last checkpoint."""
    training = make_training(folder, **changes)
    found = CheckpointStore(folder / "checkpoints").load_last(backbone())
    assert found is not None
    assert training.resume(found) == []
    return training
