"""A small pretraining on stand-in towers, for tests of its loop: an in-memory source of made-up clips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from training_support import CLASSES, SETTINGS, backbone, read, texts

from avfewshot.config import TrainingConfig
from avfewshot.data.clip_source import LabelledClip, check_place, share
from avfewshot.errors import MediaError, explain
from avfewshot.evaluation.observer import Observer
from avfewshot.evaluation.predictions import Decision
from avfewshot.media.clip import Failure
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.training.fabric import single_device
from avfewshot.training.journal import Journal
from avfewshot.training.order import epoch_order
from avfewshot.training.pretrain import Pretraining
from avfewshot.training.store import CheckpointStore
from avfewshot.training.stream_judge import StreamJudge

PRETRAIN = {**SETTINGS, "task": "vggsound_cls", "objective": "contrastive", "batch_size": 4, "pool": "mean"}


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
        check_place(rank, world, start)
        order = range(len(self)) if seed is None else epoch_order(len(self), seed=seed, epoch=epoch)
        for index in list(order)[rank::world][start:]:
            path = self.paths[index]
            self.given.append((epoch, path.stem))
            try:
                clip = read(path)
            except MediaError as error:
                yield Failure(str(path), explain(error), path.stem)
            else:
                yield LabelledClip(path.stem, (int(path.stem[0]),), clip)


def clips(count: int = 10) -> list[Path]:
    """Names of clips of all classes, by turns."""
    return [Path(f"{number % CLASSES}-{number}.mp4") for number in range(count)]


def stream_judge(source: MemorySource, config: TrainingConfig, *, limit: int = 6) -> StreamJudge:
    """A judge on the first clips of a source; the untrained model is that of the towers alone."""
    base = backbone()
    return StreamJudge(
        source,
        Decision(config.task, config.fusion, config.pool),
        AudioVisualModel(base).eval(),
        texts(),
        (base.visual_scale, base.audio_scale),
        limit=limit,
        share=config.blend,
        device=torch.device("cpu"),
        window=config.window,
        autocast=nullcontext,
        observer=Observer(),
    )


def make_pretraining(
    folder: Path,
    *,
    paths: list[Path] | None = None,
    seed: int = 1,
    fabric: Any = None,
    ranks: int | None = None,
    options: dict[str, Callable] | None = None,
    **changes: Any,
) -> Pretraining:
    """A pretraining whose validation clips are others of the same kind.

    Args:
        folder: Of its checkpoints and its journal.
        paths: What it trains on.
        seed: Of weights and order.
        fabric: Launched; one CPU unless told.
        ranks: What checkpoints say of the number of ranks; the truth unless told.
        options: ``skip``, ``watcher`` or ``stopping``.
        changes: Of the settings.
    """
    config = TrainingConfig(**{**PRETRAIN, **changes})
    fabric = fabric or single_device(torch.device("cpu"), "fp32")
    base = backbone()
    judge = stream_judge(MemorySource([Path(f"{label}-{90 + n}.mp4") for n in range(2) for label in range(3)]), config)

    def describe(verdict):
        return AdapterConfig(
            task=config.task, labels=tuple("abc"), wordings=tuple("abc"), templates="tiny", backbone=base.name,
            identity=base.identity, training=config.to_dict(), seed=seed, decision={"blend": verdict.blend},
            support={"ranks": ranks or fabric.world_size},
        )  # fmt: skip

    return Pretraining(
        fabric,
        build_model(base, config, seed=seed),
        config,
        seed=seed,
        source=MemorySource(clips() if paths is None else paths),
        texts=texts(),
        judge=judge,
        start=judge.start(),
        store=CheckpointStore(folder / "checkpoints"),
        describe=describe,
        journal=Journal(folder / "metrics.jsonl"),
        **(options or {}),
    )


def resumed(folder: Path, **changes: Any) -> Pretraining:
    """The same pretraining, gone on with from its last checkpoint."""
    training = make_pretraining(folder, **changes)
    found = CheckpointStore(folder / "checkpoints").load_last(backbone())
    assert found is not None
    assert training.resume(found) == []
    return training


def tensors(training: Pretraining) -> dict[str, torch.Tensor]:
    """What is trained."""
    return training._model.trainable_state()


def journal(folder: Path) -> list[dict[str, Any]]:
    """Everything that was written down."""
    return list(Journal(folder / "metrics.jsonl").entries())


def losses(folder: Path) -> list[float]:
    """The loss of every step."""
    return [entry["loss"] for entry in journal(folder) if entry["kind"] == "step"]
