"""Training a head, and adapters if there are any, on a whole training split; validation alone chooses the epoch.

Everything random is a function of seed and epoch (the order) or stored (dropout's generator, the optimizer), so that a
training that was stopped anywhere goes on as if it had not been.
"""

from __future__ import annotations

import json
import math
import pickle
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avfewshot.config import NONE, SupervisedTrainingConfig
from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import AvfsError, DataError, UsageError
from avfewshot.evaluation.bootstrap import interval, over_runs, resample
from avfewshot.evaluation.observer import Observer
from avfewshot.inference.devices import keep_float32
from avfewshot.inference.logits import ClipLogits, class_texts, score_clip
from avfewshot.io import atomic_path, write_text
from avfewshot.media.clip import Clip, Failure
from avfewshot.media.stream import read_ahead
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import build_model
from avfewshot.models.checkpoint import AdapterConfig, load_adapter, numbered, publishing, write_adapter_files
from avfewshot.prompts import Templates
from avfewshot.supervised.base import Example, Recipe, SupervisedTask, TaskData
from avfewshot.supervised.features import FeatureStore, clip_features, without

REPLICATES = 1000
_SAVE_SECONDS = 60.0
_ADAPTED_BATCH = 8  # clips of a batch that goes through the towers, unless told otherwise; DG-SCT's
_TOWERS, _HEAD = "towers.", "head."


def recipe_of(task: SupervisedTask, config: SupervisedTrainingConfig) -> tuple[str, Recipe]:
    """The head's name and how it is trained.

    Raises:
        UsageError: The task has no such head.
    """
    name = next(iter(task.heads)) if config.head is None else config.head
    if name not in task.heads:
        raise UsageError(f"--head {name}: {task.name} has no such head.", hint=f"Heads: {', '.join(task.heads)}.")
    recipe = task.heads[name]
    batch = recipe.batch_size if config.adapter == NONE else min(recipe.batch_size, _ADAPTED_BATCH)
    return name, Recipe(
        config.lr or recipe.lr,
        config.batch_size or batch,
        config.epochs or recipe.epochs,
        recipe.milestones,
        recipe.factor,
        recipe.clip_norm,
    )


@dataclass(frozen=True)
class SeedOutcome:
    """One training."""

    seed: int
    best_epoch: int
    epochs: int  # that were trained
    validation: dict[str, float]  # metrics of the best epoch
    log: list[dict[str, float]]  # one entry an epoch


@dataclass(frozen=True)
class Estimate:
    """A metric over seeds, in percent."""

    mean: float
    low: float | None  # 95 % interval over seeds and clips; None where the metric is no mean over clips
    high: float | None


@dataclass
class _State:
    """Where a training stands, between two steps."""

    epoch: int = 0  # epochs finished and validated
    step: int = 0  # steps done of the next one
    loss: float = 0.0  # sum over these
    best: dict[str, float] = field(default_factory=dict)
    best_epoch: int = 0
    finished: bool = False
    log: list[dict[str, float]] = field(default_factory=list)


class SupervisedRun:
    """A task with its data, on a backbone; trains, evaluates and predicts.

    Args:
        task: The task.
        data: What was read; examples whose clips cannot be read are left out.
        config: The settings.
        backbone: Moved to the device in place.
        templates: Prompt templates of the zero-shot line, with their name.
        device: Where to compute.
        frame_backend: What decodes frames.
        observer: Is told what goes on.
        put_off: Gives a context in which signals wait, so that none comes in the middle of a step.
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
        put_off: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        keep_float32()
        self.task, self.config, self.backbone, self.device = task, config, backbone, device
        self.templates_name, self.templates = templates
        self.head_name, self.recipe = recipe_of(task, config)
        self.adapted = config.adapter != NONE
        if self.adapted and config.precision == "fp16":
            raise UsageError("Adapters are not trained in fp16 here.", hint="Use --precision bf16 or fp32.")
        self.observer, self.put_off = observer or Observer(), put_off
        self.kinds = task.needs(self.head_name)
        self.store = FeatureStore(
            task,
            self.kinds,
            backbone,
            device,
            config.precision,
            frame_backend=frame_backend,
            max_bytes=config.cache_size,
            workers=config.workers,
            observer=self.observer,
        )
        self.data, self._usable = data, {}

    def examples(self, split: str) -> list[Example]:
        """The examples of a split that can be used.

        Raises:
            DataError: There are none, and the split is needed.
        """
        if split not in self._usable:
            given = self.data.splits[split]
            self._usable[split] = self.store.usable(given, f"features of {split} clips")
            if not self._usable[split] and split != "val":
                raise DataError(
                    f"{self.task.title}: no {split} clip can be used.",
                    hint=f"{len(given)} are here; look at --root and --media.",
                )
        return self._usable[split]

    # ------------------------------------------------------------------------------------------------ model

    def build(self, seed: int) -> nn.ModuleDict:
        """Fresh ``towers`` (frozen, with adapters if there are any) and ``head``."""
        towers = build_model(self.backbone, self.config, seed=seed, device=self.device) if self.adapted else None
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            head = self.task.build_head(self.head_name, self.store.widths, self.data.about)
        return nn.ModuleDict({"towers": towers or AudioVisualModel(self.backbone), "head": head}).to(self.device)

    def parameters(self, model: nn.ModuleDict) -> list[nn.Parameter]:
        """Those that are trained."""
        towers = [p for p in model["towers"].parameters() if p.requires_grad] if self.adapted else []
        return [*towers, *model["head"].parameters()]

    def tensors(self, model: nn.ModuleDict) -> dict[str, Tensor]:
        """What is trained, by name."""
        state = {_HEAD + name: tensor.detach().cpu() for name, tensor in model["head"].state_dict().items()}
        if self.adapted:
            towers: Any = model["towers"]
            state |= {_TOWERS + name: tensor for name, tensor in towers.trainable_state().items()}
        return state

    def load_tensors(self, model: nn.ModuleDict, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`tensors` gave.

        Raises:
            DataError: They do not fit.
        """
        parts = [
            {name.removeprefix(kind): t for name, t in tensors.items() if name.startswith(kind)}
            for kind in (_HEAD, _TOWERS)
        ]
        try:
            model["head"].load_state_dict(parts[0])
        except RuntimeError as error:
            lines = str(error).splitlines()
            raise DataError(f"The trained head does not fit: {' '.join(lines[1:3] or lines).strip()}") from None
        if self.adapted:
            towers: Any = model["towers"]
            towers.load_trainable_state(parts[1])

    def batches(
        self, model: nn.ModuleDict, examples: Sequence[Example], modality: str, order: Sequence[int], size: int
    ) -> Iterator[tuple[dict[str, Tensor], list[Example]]]:
        """Features of examples, a batch at a time, on the device."""
        chosen = [examples[index] for index in order]
        clips: Iterator[Clip | Failure] = iter(())
        if self.adapted:
            clips = read_ahead([example.path for example in chosen], self.store.read, workers=self.config.workers)
        for start in range(0, len(chosen), size):
            batch = chosen[start : start + size]
            rows = [self._features(model, example, clips, modality) for example in batch]
            stacked = {name: torch.stack([row[name] for row in rows]).to(self.device) for name in rows[0]}
            yield without(stacked, modality), batch

    def _features(
        self, model: Any, example: Example, clips: Iterator[Clip | Failure], modality: str
    ) -> dict[str, Tensor]:
        if not self.adapted:
            return self.store.get(example.path)
        clip = next(clips)
        if isinstance(clip, Failure):
            raise AvfsError(
                f"{clip.path}: could be read before and cannot be read any more: {clip.error}",
                hint="Put the file back and go on with --resume.",
            )
        return clip_features(model["towers"], self.kinds, clip, self.task.seconds, modality, self.device)

    def predict(self, model: nn.ModuleDict, examples: Sequence[Example], modality: str | None = None) -> list[Any]:
        """Predictions for examples, in order; `modality` other than in training switches one off."""
        model.eval()
        predictions: list[Any] = []
        order = range(len(examples))
        with torch.inference_mode():
            for features, batch in self.batches(
                model, examples, modality or self.config.modality, order, self.recipe.batch_size
            ):
                predictions += self.task.predict(model["head"], features, batch)
        return predictions

    def answer(self, model: nn.ModuleDict, features: Mapping[str, Tensor], example: Example) -> Any:
        """The prediction for one clip by its features ``[T, ...]``."""
        with torch.inference_mode():
            batch = {name: values[None].to(self.device) for name, values in features.items()}
            return self.task.predict(model["head"], without(batch, self.config.modality), [example])[0]

    # ------------------------------------------------------------------------------------------------ training

    def fit(self, seed: int, folder: Path) -> SeedOutcome:
        """Train, or go on with what lies in the folder, which gets ``best-<epoch>/`` and ``metrics.jsonl``.

        Raises:
            KeyboardInterrupt: It was interrupted; the state is saved.
            AvfsError: A clip cannot be read any more, the loss is not finite, or what is in the folder is damaged.
        """
        train, val = self.examples("train"), self.examples("val")
        model, state = self.build(seed), _State()
        optimizer = torch.optim.Adam(self.parameters(model), lr=self.recipe.lr)
        torch.manual_seed(seed)
        saved = folder / "state.pt"
        if saved.is_file():
            state = self._restore(saved, model, optimizer)
        began = time.monotonic()
        try:
            while not state.finished:
                self._epoch(seed, model, optimizer, state, train)
                with self.put_off():
                    self._validate(seed, model, state, val, folder)
                    if state.finished or time.monotonic() - began > _SAVE_SECONDS:
                        self._save(saved, model, optimizer, state)
                        began = time.monotonic()
        except KeyboardInterrupt:
            self._save(saved, model, optimizer, state)
            raise
        return SeedOutcome(seed, state.best_epoch, state.epoch, state.best, state.log)

    def _epoch(
        self, seed: int, model: nn.ModuleDict, optimizer: torch.optim.Optimizer, state: _State, train: list[Example]
    ) -> None:
        size, count = self.recipe.batch_size, len(train)
        self.observer.begin(f"seed {seed}, epoch {state.epoch + 1}/{self.recipe.epochs}", count - state.step * size)
        order = torch.randperm(count, generator=torch.Generator().manual_seed((seed << 20) + state.epoch)).tolist()
        rate = self.recipe.lr * self.recipe.factor ** sum(state.epoch >= at for at in self.recipe.milestones)
        for group in optimizer.param_groups:
            group["lr"] = rate
        model.train()
        for features, batch in self.batches(model, train, self.config.modality, order[state.step * size :], size):
            with self.put_off():
                loss = self.task.loss(model["head"], features, batch)
                if not math.isfinite(value := loss.item()):
                    raise AvfsError("The loss is not a finite number any more.", hint="Use a smaller --lr, or fp32.")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if self.recipe.clip_norm:
                    nn.utils.clip_grad_norm_(self.parameters(model), self.recipe.clip_norm)
                optimizer.step()
                state.step, state.loss = state.step + 1, state.loss + value
            for _ in batch:
                self.observer.advance()

    def _validate(self, seed: int, model: nn.ModuleDict, state: _State, val: list[Example], folder: Path) -> None:
        """Judge an epoch; without validation clips the last one is the best."""
        metrics = self.task.metrics(self.predict(model, val), val, self.data.about) if val else {}
        headline = metrics.get(self.task.headline, 0.0)
        best = not val or not state.best or headline > state.best[self.task.headline]
        state.log.append({"epoch": state.epoch + 1, "loss": state.loss / max(1, state.step), **metrics})
        state.epoch, state.step, state.loss = state.epoch + 1, 0, 0.0
        if best:
            state.best, state.best_epoch = metrics, state.epoch
            self._write_best(seed, model, state, folder)
        waited = self.config.patience and state.epoch - state.best_epoch >= self.config.patience
        state.finished = state.epoch >= self.recipe.epochs or bool(waited and val)
        write_text(folder / "metrics.jsonl", "".join(json.dumps(entry) + "\n" for entry in state.log))

    def _write_best(self, seed: int, model: nn.ModuleDict, state: _State, folder: Path) -> None:
        target = folder / f"best-{state.epoch}"
        shutil.rmtree(target, ignore_errors=True)  # of a process that was killed behind this point
        with publishing(target) as unfinished:
            write_adapter_files(unfinished, self.tensors(model), self.describe(seed, state.best))
        for older in numbered(folder, "best"):
            if older != target:
                shutil.rmtree(older, ignore_errors=True)

    def describe(self, seed: int, metrics: Mapping[str, float]) -> AdapterConfig:
        """What a checkpoint says of itself."""
        about = self.data.about
        classes = tuple(about.get("classes", ()))
        return AdapterConfig(
            task=self.task.name,
            labels=classes,
            wordings=tuple(about.get("wordings", classes)),
            templates=self.templates_name,
            backbone=self.backbone.name,
            identity=self.backbone.identity,
            training={**self.config.to_dict(), "head": self.head_name},
            seed=seed,
            support={"train": len(self.examples("train")), "val": len(self.examples("val"))},
            decision={"about": about},
            metrics={"validation": dict(metrics)},
        )

    def _save(self, path: Path, model: nn.ModuleDict, optimizer: torch.optim.Optimizer, state: _State) -> None:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
        document = {
            "tensors": self.tensors(model),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
            "cuda": cuda,
            "state": vars(state),
        }
        with atomic_path(path) as temporary:
            torch.save(document, temporary)

    def _restore(self, path: Path, model: nn.ModuleDict, optimizer: torch.optim.Optimizer) -> _State:
        try:
            document = torch.load(path, map_location="cpu", weights_only=True)
            state = _State(**document["state"])
            self.load_tensors(model, document["tensors"])
            optimizer.load_state_dict(document["optimizer"])
            torch.set_rng_state(document["rng"])
            if document["cuda"] and torch.cuda.is_available():
                torch.cuda.set_rng_state_all(document["cuda"])
        except (OSError, RuntimeError, ValueError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            raise DataError(
                f"{path}: is damaged or of another training ({reason}).",
                hint="Remove it: this seed is then trained anew.",
            ) from None
        return state

    # ------------------------------------------------------------------------------------------------ figures

    def best_model(self, folder: Path) -> nn.ModuleDict:
        """The model that validation chose in the folder of a seed, in evaluation mode.

        Raises:
            AvfsError: There is none, it is damaged, or it belongs to another backbone.
        """
        checkpoint = load_adapter(folder, self.backbone)
        model = self.build(checkpoint.config.seed)
        self.load_tensors(model, checkpoint.tensors)
        return model.eval()

    def zero_shot(self, split: str) -> list[ClipLogits]:
        """What the frozen towers say by second of the examples of a split."""
        store = self.store
        if not {"visual", "audio"} <= store.kinds:
            store = FeatureStore(
                self.task,
                {"visual", "audio"},
                self.backbone,
                self.device,
                self.config.precision,
                frame_backend=store.frame_backend,
                max_bytes=self.config.cache_size,
                workers=self.config.workers,
                observer=self.observer,
            )
        examples = self.examples(split)
        store.usable(examples, f"embeddings of {split} clips")
        about = self.data.about
        texts = class_texts(self.backbone, about["wordings"], self.templates, names=about["classes"])
        scales = self.backbone.visual_scale, self.backbone.audio_scale
        result = []
        for example in examples:
            features = store.get(example.path)
            units = (nn.functional.normalize(features[name], dim=-1) for name in ("visual", "audio"))
            # A silent or blind clip has zeros, which say nothing of any class.
            given = [unit if unit.any() else None for unit in units]
            result.append(score_clip(given[0], given[1], texts, scales))
        return result

    def reference_lines(self) -> dict[str, list[Any]]:
        """Predictions for the usable test clips that need no training."""
        usable = TaskData({split: self.examples(split) for split in ("train", "val", "test")}, self.data.about)
        return self.task.reference_lines(usable, self.zero_shot)

    def estimates(self, runs: Sequence[Sequence[Any]], examples: Sequence[Example]) -> dict[str, Estimate]:
        """Metrics over the predictions of one or several trainings, with intervals over seeds and clips."""
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
            mean = float(np.mean([metrics[name] for metrics in whole]))
            bounds = None
            if all(name in one for clips in single for one in clips):
                scores = np.array([[one[name] for one in clips] for clips in single])
                if np.allclose(scores.mean(1), [metrics[name] for metrics in whole], atol=1e-6):
                    bounds = interval(over_runs(scores @ counts / counts.sum(0), 0))
            low, high = (None, None) if bounds is None else (max(0.0, bounds[0]), min(100.0, bounds[1]))
            result[name] = Estimate(mean, low, high)
        return result
