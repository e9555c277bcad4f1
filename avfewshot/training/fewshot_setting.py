"""What the seeds of a few-shot run share: settings, data, the task and how a checkpoint is described."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from avfewshot.cache import file_key
from avfewshot.config import ADAPTER_METHODS, AUTO, TrainingConfig
from avfewshot.data.dataset import Dataset
from avfewshot.data.sampler import Support, draw_validation, with_spare_clips
from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.tower import walkable
from avfewshot.evaluation.evaluator import Evaluator
from avfewshot.evaluation.few_shot import with_validation
from avfewshot.evaluation.observer import Observer
from avfewshot.evaluation.predictions import PredictionConfig
from avfewshot.inference.embedding_cache import LookUp
from avfewshot.io import write_text
from avfewshot.methods.base import Support as MethodSupport
from avfewshot.models.checkpoint import CONFIG_NAME, FORMAT, AdapterCheckpoint, AdapterConfig
from avfewshot.prompts import Templates
from avfewshot.training.data import draw
from avfewshot.training.distributed import single_device
from avfewshot.training.protocol import Callback, PutOff, undisturbed
from avfewshot.training.tasks import adapter_config
from avfewshot.training.validation import ValMetrics, no_validation
from avfewshot.tuning.methods import TUNED

if TYPE_CHECKING:
    from lightning_fabric import Fabric

# Settings that do not decide figures, and seeds, which have folders of their own.
_NO_MATTER = {"seeds", "precision", "checkpointing", "cuda_graphs", "micro_batch", "cache_size", "workers"}
_STEPS = 500  # optimizer steps of a training, about, unless its epochs are given


class RunObserver(Observer):
    """Is told what a few-shot run does; this one does nothing."""

    def training(self, seed: int, epochs: int) -> Callback:
        """Who is told how the training of a seed goes."""
        return Callback()

    def methods(self, seed: int, diagnostics: Mapping[str, Mapping[str, Any]]) -> None:
        """The light methods of a seed are fitted; their figures are of clips of the support, each left out."""


@dataclass(eq=False)
class FewShotSetting:
    """What all seeds of a few-shot run on a data set share; :attr:`evaluator` is its task."""

    dataset: Dataset  # with media
    config: TrainingConfig  # its precision is resolved
    backbone: Backbone  # moved to the device in place; its text branches are not needed after construction
    templates: Templates
    templates_name: str
    device: torch.device
    folder: Path  # the run folder; checkpoints of seed 1 go to `seed-1` in it
    frame_backend: str = "auto"
    initial: AdapterCheckpoint | None = None  # trained tensors to begin with, of the same adapters and projectors
    observer: RunObserver = field(default_factory=RunObserver)
    put_off: PutOff = undisturbed
    also: tuple[str, ...] = ()  # further methods to stand in the table
    protocol: str | None = None  # a public one, for a row of its own
    look_up: LookUp | None = None  # where embeddings of the frozen towers are looked up first
    # Who is told how a training goes besides the observer, by the folder that it leaves its files in.
    callbacks: Callable[[Path], Sequence[Callback]] = lambda folder: ()
    evaluator: Evaluator = field(init=False)
    clips: MethodSupport = field(init=False)  # of the seed, as methods take them, where any are fitted

    def __post_init__(self) -> None:
        if self.config.method in ADAPTER_METHODS[1:]:
            self.config = self.config.replace(method="dgsct", adapter=self.config.method)
        if self.config.method == AUTO and self.config.tune and not walkable(self.backbone.visual, self.backbone.audio):
            self.config = self.config.replace(tune=False)
            self.observer.say(
                f"auto: {self.config.adapter_title} is left out: the towers of {self.backbone.name} are run whole, and "
                "it needs some that can be walked block by block. The light methods answer."
            )
        if self.config.audio_context == "clip" and (trained := self.through_towers):
            self.observer.say(
                f"{trained} hears single seconds, so this run does, in spite of --audio-context clip; methods on "
                "frozen embeddings take it (auto with --no-tune)."
            )
            self.config = self.config.replace(audio_context="second")
        self.dataset, self.validation_used = self._with_validation()
        config = self.config
        self.evaluator = Evaluator(
            self.dataset,
            PredictionConfig(
                config.task, config.plain_fusion, config.pool, config.background, self.dataset.num_segments
            ),
            self.backbone,
            self.templates,
            self.device,
            config.precision,
            frame_backend=self.frame_backend,
            cache_size=config.cache_size,
            window=config.window,
            workers=config.workers,
            observer=self.observer,
            look_up=self.look_up,
            audio_context=config.audio_context,
        )

    def _with_validation(self) -> tuple[Dataset, int]:
        """The data set with the validation clips of the run as its val split, and how many labels they cost."""
        config, dataset = self.config, self.dataset
        support = draw(dataset, config, config.seeds[0])
        if not self.trains:  # it chooses by leaving out; thresholds of the untrained systems come from the support
            if "val" in dataset.drawn_splits:
                dataset = with_spare_clips(dataset, support)
            kept = [sample for sample in dataset.samples if sample.split != "val"]
            support = draw(dataset, config, config.seeds[0])
            return dataset.with_samples([*kept, *(replace(one, split="val") for one in support.samples)]), 0
        support = support.samples
        steps = max(1, len(support) // (config.batch_size * config.accumulation))
        if config.epochs == AUTO:
            self.config = config = config.replace(epochs=max(3, min(20, -(-_STEPS // steps))))
        if config.max_steps is not None and config.max_steps < steps * int(config.epochs):
            # Epochs of equal length, each validated, and the schedule falls over them as ever.
            self.config = config = config.replace(epochs=-(-config.max_steps // steps))
        if config.val_shots == "all" and not self.dataset.split("val"):
            return self.dataset, 0
        count = None if config.val_shots == AUTO else config.val_shots
        supports = [sample for seed in config.seeds for sample in draw(self.dataset, config, seed).samples]
        chosen = draw_validation(
            self.dataset,
            config.shots,
            config.seeds[0],
            count=count,
            support=supports,
            multi_label=config.multi_label,
            only_available=True,
        ).samples
        return with_validation(self.dataset, chosen), len(chosen)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Further adapters to train, each a system of its own."""
        return tuple(name for name in self.also if name in ADAPTER_METHODS[1:])

    @property
    def trains(self) -> bool:
        """Whether any adapter is trained through the towers."""
        return bool(self.kinds) or self.trains_own

    @property
    def trains_own(self) -> bool:
        """Whether the adapter of the settings is trained."""
        return "dgsct" in (self.config.method, *self.also) or (self.config.method == AUTO and self.config.tune)

    @property
    def through_towers(self) -> str:
        """What is trained through the towers, in words; empty where nothing is."""
        tuned = [name for name in (self.config.method, *self.also) if name in TUNED]
        return ", ".join([*([self.config.adapter_title] if self.trains_own else []), *self.kinds, *tuned])

    @property
    def has_methods(self) -> bool:
        """Whether any method stands beside adapters and the untrained systems."""
        return (self.config.method, *self.also) != ("dgsct",)

    @functools.cached_property
    def fabric(self) -> Fabric:
        """Made when something is trained through the towers: its import takes seconds."""
        return single_device(self.device, self.config.precision)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of all that its figures depend on: settings, towers, prompts, clips with labels and times of change.

        Of seeds only what they choose for all: validation clips.
        """
        settings = {name: value for name, value in self.config.to_dict().items() if name not in _NO_MATTER}
        towers, data = [self.backbone.name, self.backbone.identity], self.dataset
        clips = [
            file_key(sample.path, {"sample": str(replace(sample, path=None))})
            for sample in (*data.samples, *data.negatives)
            if sample.path is not None
        ]
        texts = [asdict(self.templates), data.classes, data.wordings, data.none_class]
        return hashlib.sha256(json.dumps([settings, towers, texts, clips], sort_keys=True).encode()).hexdigest()[:12]

    def write_config(self, folder: Path, seed: int, support: Support) -> None:
        """Say beside what predicts, in the folder of a checkpoint, what it belongs to."""
        about = self.describe(seed, support, no_validation(0, 0.0))
        write_text(folder / CONFIG_NAME, json.dumps({"format": FORMAT, **asdict(about)}, indent=2))

    def describe(
        self, seed: int, support: Support, metrics: ValMetrics, config: TrainingConfig | None = None
    ) -> AdapterConfig:
        """What a checkpoint of a seed says of itself."""
        return adapter_config(
            config or self.config,
            self.backbone,
            labels=self.dataset.classes,
            wordings=self.dataset.wordings,
            templates=self.templates_name,
            seed=seed,
            support=support.to_dict(),
            metrics=metrics,
        )
