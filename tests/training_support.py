"""A small few-shot training or pretraining on stand-in towers: made-up clips, no files, no decoding."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from standin_towers import StandInTower

from avfewshot.config import TrainingConfig
from avfewshot.data.clip_source import LabelledClip, share
from avfewshot.errors import MediaError, explain
from avfewshot.evaluation.observer import Observer
from avfewshot.inference.logits import ClassTexts
from avfewshot.media.clip import SAMPLE_RATE, Clip, Failure
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.training.data import epoch_order
from avfewshot.training.distributed import single_device
from avfewshot.training.metrics_log import MetricsLogger
from avfewshot.training.objective import Objective
from avfewshot.training.protocol import Callback
from avfewshot.training.tasks import FewShotTask, PretrainTask
from avfewshot.training.trainer import Trainer
from avfewshot.training.validation import Validator, stream_validator

CLASSES = 3
SETTINGS = {"task": "ave_cls", "batch_size": 2, "epochs": 3, "patience": 0, "hidden": 4, "workers": 0, "blend": 1.0}
SETTINGS |= {"precision": "fp32", "lr": 3e-3, "window": 4}
PRETRAIN = {**SETTINGS, "task": "vggsound_cls", "objective": "contrastive", "batch_size": 4, "pool": "mean"}


@dataclass
class Backbone:
    """What a training needs of a backbone."""

    visual: StandInTower
    audio: StandInTower
    visual_scale: float = 10.0
    audio_scale: float = 10.0
    recipe: str = ""
    name: str = "stand-in"
    identity: dict[str, str] = field(default_factory=lambda: {"clip": "c" * 64, "clap": "a" * 64})

    def to(self, *_: Any) -> Backbone:
        return self


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


def clips(count: int = 10) -> list[Path]:
    """Names of clips of all classes, by turns."""
    return [Path(f"{number % CLASSES}-{number}.mp4") for number in range(count)]


def names(prefix: str = "", count: int = 2) -> list[Path]:
    return [Path(f"{label}-{number}{prefix}.mp4") for label in range(CLASSES) for number in range(count)]


class MemorySource:
    """Clips made from their names; it remembers which ones it gave out, by epoch.

    The order is that of raw videos: rank r of R gets every R-th clip of one order.
    """

    classes = tuple("abc")
    wordings = tuple("abc")

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths
        self.given: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self.paths)

    def count(self, rank: int, world: int) -> int:
        return share(len(self), rank, world)

    def stream(
        self, *, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[LabelledClip | Failure]:
        order = range(len(self)) if seed is None else epoch_order(len(self), seed=seed, epoch=epoch)
        for index in list(order)[rank::world][start:]:
            path = self.paths[index]
            self.given.append((epoch, path.stem))
            try:
                clip = read(path)
            except MediaError as error:
                yield Failure(str(path), explain(error), path.stem)
            else:
                yield LabelledClip(path.stem, (int(path.stem[0]),), clip, row=index)


class StopAfter:
    """Asks a training to stop after so many of its steps."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def __call__(self) -> bool:
        self.left -= 1
        return self.left == 0


class Diary(Callback):
    """Remembers what a training told."""

    def __init__(self) -> None:
        self.losses, self.paces, self.epochs, self.metrics, self.warnings = [], [], [], [], []

    def on_epoch_start(self, epoch, steps, done):
        self.epochs.append((epoch, steps, done))

    def on_step(self, step, loss, pace):
        self.losses.append(loss)
        self.paces.append(pace)

    def on_validate(self, epoch, metrics, best):
        self.metrics.append((epoch, metrics, best))

    def on_warning(self, message):
        self.warnings.append(message)


def validator(config: TrainingConfig, source: MemorySource | None = None, *, limit: int = 6) -> Validator:
    """A validator on the first clips of a source, by default others of the same kind as those trained on."""
    source = source or MemorySource([Path(f"{label}-{90 + n}.mp4") for n in range(2) for label in range(CLASSES)])
    fabric = single_device(torch.device("cpu"), "fp32")
    return stream_validator(source, config, backbone(), texts(), fabric, limit=limit, observer=Observer())


def make_trainer(
    folder: Path,
    *,
    kind: str = "fewshot",
    paths: list[Path] | None = None,
    fabric: Any = None,
    ranks: int | None = None,
    options: dict[str, Any] | None = None,
    callbacks: Sequence[Callback] = (),
    stopping: Callable[[], bool] = lambda: False,
    **changes: Any,
) -> Trainer:
    """A few-shot training or a pretraining whose validation clips are others of the same kind.

    Checkpoints tell of the true number of ranks unless `ranks` is given; `options` are of the task, `changes` of the
    settings.
    """
    pretrain = kind == "pretrain"
    config = TrainingConfig(**{**(PRETRAIN if pretrain else SETTINGS), **changes})
    fabric = fabric or single_device(torch.device("cpu"), "fp32")
    base = backbone()
    model = build_model(base, config, seed=1)
    paths = paths or (clips() if pretrain else names())

    def describe(metrics):
        return AdapterConfig(
            task=config.task, labels=tuple("abc"), wordings=tuple("abc"), templates="tiny", backbone=base.name,
            identity=base.identity, training=config.to_dict(), seed=1, decision={"blend": metrics.blend},
            support={"ranks": ranks or fabric.world_size},
        )  # fmt: skip

    common = {"source": MemorySource(paths), "validator": validator(config), "describe": describe, "seed": 1}
    if pretrain:
        options = {"texts": texts(), "device": fabric.device, **(options or {})}
        task = PretrainTask(model, config, **options, **common)
    else:
        labels = [torch.eye(CLASSES, dtype=torch.bool)[int(path.stem[0])] for path in paths]
        objective = Objective(config, texts(), per_second=False)
        task = FewShotTask(model, config, labels=labels, objective=objective, **(options or {}), **common)
    return Trainer(fabric, model, config, task, callbacks, folder=folder, seed=1, stopping=stopping)


def resumed(folder: Path, **changes: Any) -> Trainer:
    """The same training, gone on with from its last checkpoint."""
    trainer = make_trainer(folder, **changes)
    last = trainer.checkpoints.load_last(backbone())
    assert last is not None
    assert trainer.resume(last) == []
    return trainer


def tensors(trainer: Trainer) -> dict[str, torch.Tensor]:
    """What is trained."""
    return {name: tensor.clone() for name, tensor in trainer.model.trainable_state().items()}


def log(folder: Path) -> list[dict[str, Any]]:
    """Everything that was written down."""
    return list(MetricsLogger(folder / "metrics.jsonl").entries())


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in log(folder) if entry["kind"] == "step"]


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    """Whether tensors are equal to the bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    """That tensors differ by rounding only."""
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
