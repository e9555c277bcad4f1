"""Training a head, and adapters if there are any, on a whole training split; validation alone chooses the epoch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avfewshot.config import NONE, SupervisedTrainingConfig, TrainerConfig, TrainingConfig
from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import AvfsError, DataError, UsageError, did_you_mean
from avfewshot.evaluation.bootstrap import interval, over_runs, resample
from avfewshot.evaluation.observer import Observer
from avfewshot.inference.devices import keep_float32
from avfewshot.inference.logits import ClipLogits, class_texts, score_clip
from avfewshot.media.clip import MODALITIES, Clip, Failure
from avfewshot.media.stream import read_ahead
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import AdapterConfig, load_adapter
from avfewshot.prompts import Templates
from avfewshot.supervised.base import Example, Recipe, SupervisedTask, TaskData, TaskHead
from avfewshot.supervised.features import FeatureStore, clip_features, without
from avfewshot.training.distributed import single_device
from avfewshot.training.protocol import Callback, PutOff, TrainTask, undisturbed
from avfewshot.training.trainer import Trainer
from avfewshot.training.validation import ValMetrics, no_validation

REPLICATES = 1000
_ADAPTED_BATCH = 8  # clips of a batch that goes through the towers, unless told otherwise; DG-SCT's
Loaded = tuple[Example, "Clip | dict[str, Tensor]"]  # with its clip where adapters are trained, else with its features


def recipe_of(task: SupervisedTask, config: SupervisedTrainingConfig) -> tuple[str, Recipe]:
    """The head's name and how it is trained; a :class:`UsageError` where the task has no head of the name."""
    name = next(iter(task.heads)) if config.head is None else config.head
    if name not in task.heads:
        guess = did_you_mean(name, task.heads)
        raise UsageError(
            f"--head {name}: {task.name} has no such head.{guess}", hint=f"Heads: {', '.join(task.heads)}."
        )
    recipe = task.heads[name].recipe
    batch = recipe.batch_size if config.adapter == NONE else min(recipe.batch_size, _ADAPTED_BATCH)
    batch, epochs = config.batch_size or batch, config.epochs or recipe.epochs
    return name, replace(recipe, lr=config.lr or recipe.lr, batch_size=batch, epochs=epochs)


@dataclass(frozen=True)
class SeedOutcome:
    """One training."""

    seed: int
    best_epoch: int
    epochs: int  # that were trained
    validation: dict[str, float]  # metrics of the best epoch
    log: list[dict[str, float]]  # one entry an epoch


class SupervisedModel(nn.Module):
    """Towers, frozen but for adapters if there are any, and a head."""

    def __init__(self, towers: AudioVisualModel, head: TaskHead, *, adapted: bool) -> None:
        super().__init__()
        self.towers, self.head, self.adapted = towers if adapted else towers.requires_grad_(False), head, adapted

    def trainable_state(self) -> dict[str, Tensor]:
        """What is trained, by name."""
        state = {f"head.{name}": tensor.detach().cpu() for name, tensor in self.head.state_dict().items()}
        towers = self.towers.trainable_state() if self.adapted else {}
        return state | {f"towers.{name}": tensor for name, tensor in towers.items()}

    def load_trainable_state(self, state: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`trainable_state` gave; a :class:`DataError` where it does not fit."""
        head, towers = (
            {name.removeprefix(part): tensor for name, tensor in state.items() if name.startswith(part)}
            for part in ("head.", "towers.")
        )
        try:
            self.head.load_state_dict(head)
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise DataError(f"The trained head does not fit: {' '.join(lines[1:3] or lines).strip()}") from None
        if self.adapted:
            self.towers.load_trainable_state(towers)


class SupervisedRun:
    """A task with its data, on a backbone; trains, evaluates and predicts.

    A :class:`UsageError` where adapters are to be trained in fp16, or the task has no such head.
    """

    def __init__(
        self,
        task: SupervisedTask,
        data: TaskData,
        config: SupervisedTrainingConfig,
        backbone: Backbone,
        templates: tuple[str, Templates],
        device: torch.device,
        *,
        frame_backend: str = "auto",
        observer: Observer | None = None,
    ) -> None:
        keep_float32()
        self.task, self.config, self.backbone, self.device = task, config, backbone, device
        self.templates_name, self.templates = templates
        self.head_name, self.recipe = recipe_of(task, config)
        self.adapted = config.adapter != NONE
        if self.adapted and config.precision == "fp16":
            raise UsageError("Adapters are not trained in fp16 here.", hint="Use --precision bf16 or fp32.")
        self.kinds = task.heads[self.head_name].needs
        self._frame_backend, self.observer = frame_backend, observer or Observer()
        self.store = self.feature_store(self.kinds)
        self.data, self._usable = data, {}

    def feature_store(self, kinds: Collection[str]) -> FeatureStore:
        """Features of other kinds of the same clips."""
        towers = self.backbone, self.device
        return FeatureStore(self.task, kinds, *towers, self.config, self._frame_backend, self.observer)

    def examples(self, split: str) -> list[Example]:
        """The examples of a split that can be used; a :class:`DataError` where there are none, but for ``val``."""
        if split not in self._usable:
            listed = self.data.splits[split]
            self._usable[split] = self.store.usable(listed, f"features of {split} clips")
            if not self._usable[split] and split != "val":
                raise DataError(
                    f"{self.task.title}: no {split} clip can be used.",
                    hint=f"{len(listed)} are here; look at --root and --media.",
                )
        return self._usable[split]

    def build(self, seed: int) -> SupervisedModel:
        """A fresh model, on the device."""
        towers = build_model(self.backbone, self.config, seed=seed, device=self.device) if self.adapted else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = self.task.heads[self.head_name].build(self.store.widths, self.data.about)
        return SupervisedModel(towers or AudioVisualModel(self.backbone), head, adapted=self.adapted).to(self.device)

    def load(self, examples: Sequence[Example]) -> Generator[Loaded, None, None]:
        """Examples with what a batch is made of; an :class:`AvfsError` where a clip cannot be read any more."""
        if not self.adapted:
            yield from ((example, self.store.get(example.path)) for example in examples)
            return
        clips = read_ahead([example.path for example in examples], self.store.read, workers=self.config.workers)
        for example, clip in zip(examples, clips, strict=True):
            if isinstance(clip, Failure):
                raise AvfsError(
                    f"{clip.path}: could be read before and cannot be read any more: {clip.error}",
                    hint="Put the file back and go on with --resume.",
                )
            yield example, clip

    def features(self, model: SupervisedModel, batch: Iterable[Loaded], modality: str) -> dict[str, Tensor]:
        """Features ``[B, T, ...]`` of a batch, on the device; with adapters by the towers, with gradient."""
        rows = [
            clip_features(model.towers, self.kinds, loaded, self.task.seconds, modality, self.device)
            if isinstance(loaded, Clip)
            else loaded
            for _, loaded in batch
        ]
        return without({name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}, modality)

    def predict(self, model: SupervisedModel, examples: Sequence[Example], modality: str | None = None) -> list[Any]:
        """Predictions for examples, in order; `modality` other than in training switches one off."""
        model.eval()
        predictions: list[Any] = []
        with torch.inference_mode(), closing(self.load(examples)) as loaded:
            while batch := list(islice(loaded, self.recipe.batch_size)):
                features = self.features(model, batch, modality or self.config.modality)
                predictions += model.head.predict(features, [example for example, _ in batch])
        return predictions

    def answer(self, model: SupervisedModel, clip: Clip, example: Example) -> Any:
        """The prediction for a clip of T seconds that need not be in the data set."""
        modality = self.config.modality
        with torch.inference_mode():
            features = clip_features(model.towers, self.kinds, clip, self.task.seconds, modality, self.device)
            return model.head.predict(self.features(model, [(example, features)], modality), [example])[0]

    def fit(self, seed: int, folder: Path, callbacks: Sequence[Callback], put_off: PutOff = undisturbed) -> SeedOutcome:
        """Train, or go on with what lies in the folder, which gets ``checkpoints/`` and ``metrics.jsonl``.

        Raises:
            KeyboardInterrupt: It was interrupted; the state is saved.
            AvfsError: A clip cannot be read any more, the loss is not finite, or what is in the folder is damaged.
        """
        model, recipe = self.build(seed), self.recipe
        sizes = {name: getattr(recipe, name) for name in ("lr", "batch_size", "epochs", "clip_norm")}
        config = TrainingConfig(**sizes, patience=self.config.patience)
        fabric = single_device(self.device, "fp32")  # towers may compute in another format; the head does not
        trainer = Trainer(fabric, model, config, HeadTask(self, model, seed), callbacks, folder=folder, seed=seed)
        torch.manual_seed(seed)  # of dropout
        with put_off() as trainer.stopping:
            progress = trainer.fit(resume=trainer.checkpoints.load_last(self.backbone))
        entries = list(trainer.log.entries())
        log = []
        for done in (entry for entry in entries if entry["kind"] == "epoch" and entry["epoch"]):
            steps = (entry["loss"] for entry in entries if (entry["kind"], entry["epoch"]) == ("step", done["epoch"]))
            log.append({"epoch": done["epoch"], "loss": fmean(steps), **done.get("details", {})})
        return SeedOutcome(seed, progress.best_epoch, progress.epoch, dict(progress.best.details), log)

    def best_model(self, folder: Path) -> SupervisedModel:
        """The model that validation chose in the folder of a seed, in evaluation mode."""
        checkpoint = load_adapter(folder, self.backbone)
        model = self.build(checkpoint.config.seed)
        model.load_trainable_state(checkpoint.tensors)
        return model.eval()

    def zero_shot(self, split: str) -> list[ClipLogits]:
        """What the frozen towers say by second of the examples of a split."""
        both = {"visual", "audio"}
        store = self.store if both <= self.store.kinds else self.feature_store(both)
        examples = self.examples(split)
        store.usable(examples, f"embeddings of {split} clips")
        about = self.data.about
        texts = class_texts(self.backbone, about["wordings"], self.templates, names=about["classes"])
        scales = self.backbone.visual_scale, self.backbone.audio_scale
        result = []
        for example in examples:
            features = store.get(example.path)
            units = (nn.functional.normalize(features[name], dim=-1) for name in MODALITIES)
            # A silent or blind clip has zeros, which say nothing of any class.
            known = [unit if unit.any() else None for unit in units]
            result.append(score_clip(known[0], known[1], texts, scales))
        return result

    def reference_lines(self) -> dict[str, list[Any]]:
        """Predictions for the usable test clips that need no training."""
        usable = TaskData({split: self.examples(split) for split in ("train", "val", "test")}, self.data.about)
        return self.task.reference_lines(usable, None if self.backbone.wordless else self.zero_shot)

    def estimates(self, runs: Sequence[Sequence[Any]], examples: Sequence[Example]) -> dict[str, dict[str, Any]]:
        """Metrics in percent over the predictions of one or several trainings: mean, low, high.

        Intervals of 95 % are over seeds and clips; there is none where a metric is no mean over clips.
        """
        about, task = self.data.about, self.task
        whole = [task.metrics(said, examples, about) for said in runs]
        single = [
            [task.metrics([one], [example], about) for one, example in zip(said, examples, strict=True)]
            for said in runs
        ]
        groups = np.unique([str(example.path) for example in examples], return_inverse=True)[1].reshape(-1)
        counts = resample(groups, REPLICATES, 0)
        result = {}
        for name in whole[0]:
            low = high = None
            if all(name in one for clips in single for one in clips):
                scores = np.array([[one[name] for one in clips] for clips in single])
                if np.allclose(scores.mean(1), [metrics[name] for metrics in whole], atol=1e-6):
                    bounds = interval(over_runs(scores @ counts / counts.sum(0), 0))
                    low, high = (None, None) if bounds is None else (max(0.0, bounds[0]), min(100.0, bounds[1]))
            result[name] = {"mean": fmean(metrics[name] for metrics in whole), "low": low, "high": high}
        return result


class HeadTask(TrainTask):
    """The training of a head, and of adapters if there are any, as a task of the trainer; its own source of clips."""

    save_every_epoch = False

    def __init__(self, run: SupervisedRun, model: SupervisedModel, seed: int) -> None:
        self.run, self.model, self.seed, self.source = run, model, seed, self
        self.train, self.val = run.examples("train"), run.examples("val")

    def count(self, rank: int, world: int) -> int:
        """Clips of an epoch."""
        return len(self.train)

    def stream(self, *, seed: int | None, epoch: int = 0, start: int = 0, **_: int) -> Iterator[Loaded]:
        """The clips of an epoch, in an order that is a function of seed and epoch."""
        draw = torch.Generator().manual_seed(((seed or 0) << 20) + epoch)
        order = torch.randperm(len(self.train), generator=draw).tolist()
        return self.run.load([self.train[index] for index in order[start:]])

    def lr_lambda(self, config: TrainerConfig, steps_per_epoch: int) -> Callable[[int], float]:
        """The rate falls behind the epochs that the head's recipe names."""
        recipe = self.run.recipe
        return lambda step: recipe.factor ** sum(step >= epoch * steps_per_epoch for epoch in recipe.milestones)

    def loss(self, embeddings: Any, samples: Sequence[Loaded]) -> Tensor:
        """The mean loss of a batch."""
        features = self.run.features(self.model, samples, self.run.config.modality)
        return self.model.head.loss(features, [example for example, _ in samples])

    def baseline(self, model: SupervisedModel) -> ValMetrics:
        """Any epoch is better than an untrained head."""
        return ValMetrics(-1.0, 0.0)

    def validate(self, model: SupervisedModel, epoch: int) -> ValMetrics:
        """The task's metrics of the validation clips; without such clips each epoch is better than the one before."""
        if not self.val:
            return no_validation(epoch, 1.0)
        metrics = self.run.task.metrics(self.run.predict(model, self.val), self.val, self.run.data.about)
        return ValMetrics(metrics[self.run.task.headline] / 100, 0.0, details=metrics)

    def metadata(self, metrics: ValMetrics) -> AdapterConfig:
        """What a checkpoint says of itself."""
        run, about = self.run, self.run.data.about
        classes = tuple(about.get("classes", ()))
        return AdapterConfig(
            task=run.task.name,
            labels=classes,
            wordings=tuple(about.get("wordings", classes)),
            templates=run.templates_name,
            backbone=run.backbone.name,
            identity=run.backbone.identity,
            training={**run.config.to_dict(), "head": run.head_name},
            seed=self.seed,
            support={"train": len(self.train), "val": len(self.val)},
            decision={"about": about},
            metrics={"validation": dict(metrics.details)},
        )
