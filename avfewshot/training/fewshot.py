"""A few-shot run: support, training, selection on validation clips, one evaluation on test clips; for each seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from avfewshot.datasets.dataset import Dataset, Sample
from avfewshot.datasets.sampler import Support
from avfewshot.embedder import EmbeddedFile
from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import AvfsError, DataError
from avfewshot.evaluation.comparison import Comparison
from avfewshot.evaluation.evaluate import evaluate_systems
from avfewshot.evaluation.result import TaskResult
from avfewshot.evaluation.targets import Predictions, Targets
from avfewshot.evaluation.tasks import find_task
from avfewshot.fileio import write_text
from avfewshot.model import AudioVisualModel
from avfewshot.prompts import Templates
from avfewshot.scoring.embedding import Embedded, embed_clips
from avfewshot.scoring.embedding_cache import EmbeddingCache
from avfewshot.scoring.logits import ClipLogits, blend, score_clip
from avfewshot.scoring.predictions import Decision, Fitted
from avfewshot.scoring.reading import Reader
from avfewshot.scoring.texts import class_texts
from avfewshot.training.build import build_model
from avfewshot.training.checkpoint import AdapterConfig
from avfewshot.training.clip_cache import ClipCache
from avfewshot.training.config import AUTO, TrainingConfig
from avfewshot.training.fabric import single_device
from avfewshot.training.journal import Journal
from avfewshot.training.loop import Progress, Training, Watcher
from avfewshot.training.objective import Objective
from avfewshot.training.selection import Verdict, judge, judge_zero_shot
from avfewshot.training.store import CheckpointStore
from avfewshot.training.supply import Usage, labelled, readable_support, usable

TRAINED, ZERO_SHOT, CLIP_ONLY, CLAP_ONLY = "trained", "zero-shot", "CLIP only", "CLAP only"
SYSTEMS = (CLIP_ONLY, CLAP_ONLY, ZERO_SHOT, TRAINED)
"""What is evaluated on the same test clips, in the order of a table."""

_BLIND_SHARE = 0.5


@dataclass(frozen=True, eq=False)
class Scored:
    """Samples of a split with the logits of the untrained model.

    Attributes:
        samples: N samples whose clips could be read.
        logits: Of each of them.
    """

    samples: tuple[Sample, ...]
    logits: tuple[ClipLogits, ...]


@dataclass(frozen=True, eq=False)
class SeedResult:
    """What one seed gave.

    Attributes:
        seed: The seed.
        support: What was trained on, as :meth:`~avfewshot.datasets.sampler.Support.to_dict` gives it.
        progress: How the training ended.
        results: Of each of :data:`SYSTEMS` on the test clips.
        comparison: Of these.
        folder: Where checkpoints and metrics of this seed lie.
    """

    seed: int
    support: dict[str, Any]
    progress: Progress
    results: dict[str, TaskResult]
    comparison: Comparison
    folder: Path

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "seed": self.seed,
            "support": self.support,
            "progress": self.progress.to_dict(),
            "results": {name: result.to_dict() for name, result in self.results.items()},
            "comparison": self.comparison.to_dict(),
        }


class Observer:
    """Is told what a run does; this one does nothing."""

    def begin(self, what: str, total: int) -> None:
        """Something begins that takes `total` clips."""

    def advance(self) -> None:
        """One clip of it is done."""

    def say(self, message: str) -> None:
        """Something that a person should know."""

    def watcher(self, seed: int, epochs: int) -> Watcher:
        """Who watches the training of a seed."""
        return Watcher()


@dataclass(eq=False)
class FewShot:
    """A few-shot run on a data set.

    Args:
        dataset: With media.
        config: The settings; its precision is resolved.
        backbone: Moved to the device in place; its text branches are not needed after construction.
        templates: Prompt templates.
        templates_name: What they are called.
        device: Where to compute.
        folder: The run folder; checkpoints of seed 1 go to ``seed-1`` in it.
        frame_backend: What decodes frames.
        observer: Is told what happens.
        put_off: Gives a context in which signals wait.
    """

    dataset: Dataset
    config: TrainingConfig
    backbone: Backbone
    templates: Templates
    templates_name: str
    device: torch.device
    folder: Path
    frame_backend: str = "auto"
    observer: Observer = field(default_factory=Observer)
    put_off: Callable[[], AbstractContextManager[Any]] = nullcontext

    def __post_init__(self) -> None:
        self.usage = Usage()
        self.per_second = find_task(self.config.task).per_second
        self.decision = Decision(
            self.config.task, self.config.fusion, self.config.pool, self.config.background, self.dataset.num_segments
        )
        self.fabric = single_device(self.device, self.config.precision)
        self.backbone.to(self.device, torch.float32)
        self.texts = class_texts(self.backbone, self.dataset.wordings, self.templates)
        self.zero_shot = AudioVisualModel(self.backbone).to(self.device).eval()
        self._clips = ClipCache(max_bytes=self.config.cache_size)
        self._embeddings = EmbeddingCache(
            {
                **{f"file {role}": digest for role, digest in self.backbone.identity.items()},
                "precision": self.config.precision,
                "frame backend": self.frame_backend,
                "frame size": str(self.zero_shot.visual_tower.image_size),
            }
        )
        self._scored: dict[str, Scored] = {}

    @property
    def read(self) -> Reader:
        """Decodes a clip, or takes it from the cache."""
        size = self.zero_shot.visual_tower.image_size
        return lambda path: self._clips.get(path, frame_size=size, frame_backend=self.frame_backend)

    def run(self, seed: int) -> SeedResult:
        """Train and evaluate with one seed; goes on where it was interrupted, and is not repeated when it was done.

        Args:
            seed: Of the support, the initial weights and the order.

        Returns:
            The result.

        Raises:
            AvfsError: There is nothing to train on, or to evaluate on, or it cannot be trained.
            KeyboardInterrupt: It was interrupted, and can be resumed.
        """
        folder = self.folder / f"seed-{seed}"
        support = self.support(seed)
        known = _read_result(folder, support)
        if known is not None:
            return known
        model, progress = self.train(seed, support)
        # Test clips come in here and not before: nothing that is chosen can depend on them.
        results, comparison = self.test(model, progress.best)
        result = SeedResult(seed, support.to_dict(), progress, results, comparison, folder)
        write_text(folder / "result.json", json.dumps(result.to_dict()))
        return result

    def support(self, seed: int) -> Support:
        """Draw the support of a seed and read its clips."""
        self.observer.begin(f"seed {seed}: reading the support", 0)
        support = readable_support(
            self.dataset, self.config, seed, self.read, self.usage, progress=lambda _: self.observer.advance()
        )
        for line in support.describe():
            self.observer.say(line)
        used = self.usage.used.setdefault("train", [])
        used += [sample.id for sample in support.samples if sample.id not in set(used)]
        return support

    def train(self, seed: int, support: Support) -> tuple[AudioVisualModel, Progress]:
        """Train with one seed.

        Args:
            seed: The seed.
            support: What to train on.

        Returns:
            The best model, in evaluation mode, and how the training went.
        """
        folder = self.folder / f"seed-{seed}"
        store = CheckpointStore(folder / "checkpoints")
        validation = self.scored("val")
        targets = self._targets(validation)
        start = (
            judge_zero_shot(self.decision, validation.logits, targets) if targets else Verdict(0.0, 0.0, 0.0, Fitted())
        )
        model = build_model(self.backbone, self.config, seed=seed).to(self.device)
        objective = Objective(self.config, self.texts.to(self.device), per_second=self.per_second)
        training = Training(
            self.fabric,
            model,
            self.config,
            seed=seed,
            clips=labelled(self.dataset, support.samples, per_second=self.per_second),
            read=self.read,
            objective=objective,
            judge=lambda trained, epoch: self._verdict(trained, epoch, validation, targets),
            start=start,
            store=store,
            describe=lambda verdict: self._describe(seed, support, verdict),
            journal=Journal(folder / "metrics.jsonl"),
            watcher=self.observer.watcher(seed, self.config.epochs),
            put_off=self.put_off,
        )
        found = store.load_last(self.backbone)
        if found is not None:
            for warning in (*found.skipped, *training.resume(found)):
                self.observer.say(f"Not resumed bit for bit: {warning}")
        progress = training.run()
        model.load_trainable_state(store.load_best(self.backbone).tensors)
        return model.eval(), progress

    def test(self, model: AudioVisualModel, verdict: Verdict) -> tuple[dict[str, TaskResult], Comparison]:
        """Evaluate a trained model and the untrained systems on the test clips.

        Args:
            model: In evaluation mode.
            verdict: What validation chose for it.

        Returns:
            The result of each of :data:`SYSTEMS`, and their comparison.
        """
        systems = self.predictions(model, verdict)
        return evaluate_systems(self.config.task, self._targets(self.scored("test")), systems)

    def predictions(self, model: AudioVisualModel, verdict: Verdict, split: str = "test") -> dict[str, Predictions]:
        """What each of :data:`SYSTEMS` says about a split, each with rules that were fitted on validation clips."""
        validation, judged = self.scored("val"), self.scored(split)
        targets = self._targets(validation)
        classes = self.texts.num_classes

        def say(logits: Sequence[ClipLogits], fitted: Fitted) -> Predictions:
            return self.decision.predict(logits, classes, fitted)

        systems = {}
        for name, modality in ((CLIP_ONLY, "visual"), (CLAP_ONLY, "audio"), (ZERO_SHOT, None)):
            seen = [clip if modality is None else clip.only(modality) for clip in validation.logits]
            fitted = self.decision.fit(seen, targets) if targets else Fitted()
            systems[name] = say([clip if modality is None else clip.only(modality) for clip in judged.logits], fitted)
        systems[TRAINED] = say(self.joined(model, judged, verdict.blend), verdict.fitted)
        return systems

    def joined(self, model: AudioVisualModel, clips: Scored, share: float) -> list[ClipLogits]:
        """Logits of a trained model, joined with those of the untrained one."""
        if share == 0:
            return list(clips.logits)
        trained = self.trained_logits(model, clips)
        return [blend(before, after, share) for before, after in zip(clips.logits, trained, strict=True)]

    def trained_logits(self, model: AudioVisualModel, clips: Scored) -> list[ClipLogits]:
        """Logits of a trained model."""
        self.observer.begin("evaluating", len(clips.samples))
        embedded = self._embed(model, [sample.path for sample in clips.samples], cache=None)
        with torch.inference_mode():
            projected = self.texts.projected(model).to("cpu")
            scales = model.temperatures.scale("visual").item(), model.temperatures.scale("audio").item()
        result = []
        for sample in clips.samples:
            file = embedded[sample.path]
            if not isinstance(file, EmbeddedFile):
                raise AvfsError(f"{file.path}: could be read before and cannot be read any more: {file.error}")
            result.append(score_clip(file.visual, file.audio, projected, scales))
        return result

    def scored(self, split: str) -> Scored:
        """The usable samples of a split with the untrained model's logits; computed once.

        Raises:
            DataError: The split ``test`` has no clip that can be used.
        """
        if split not in self._scored:
            samples = self.dataset.split(split)
            paths = [sample.path for sample in samples if sample.path is not None]
            self.observer.begin(f"embedding the clips of {split}", len(set(paths)))
            embedded = self._embed(self.zero_shot, paths, cache=self._embeddings)
            found = usable(samples, embedded, self.usage)
            if not found and split == "test":
                raise DataError(
                    f"No test clip of {self.dataset.description.title} can be used: there is nothing to evaluate on.",
                    hint=f"`avfs data check {self.config.task} --root DIR --probe` tells what is wrong.",
                )
            self.usage.used[split] = [sample.id for sample, _ in found]
            scales = self.backbone.visual_scale, self.backbone.audio_scale
            self._scored[split] = Scored(
                tuple(sample for sample, _ in found),
                tuple(score_clip(file.visual, file.audio, self.texts, scales) for _, file in found),
            )
        return self._scored[split]

    def _embed(self, model: AudioVisualModel, paths: Sequence[Path], *, cache: EmbeddingCache | None) -> Embedded:
        with self.fabric.autocast():
            return embed_clips(
                model,
                paths,
                self.read,
                device=self.device,
                window=self.config.window,
                workers=self.config.workers,
                cache=cache,
                progress=self.observer.advance,
            )

    def _verdict(self, model: AudioVisualModel, epoch: int, validation: Scored, targets: Targets | None) -> Verdict:
        share = self.config.blend
        if targets is None:
            # Nothing tells whether this epoch is better than the last one: the last one counts.
            return Verdict(0.0, -float(epoch), _BLIND_SHARE if share == AUTO else float(share), Fitted())
        return judge(self.decision, validation.logits, self.trained_logits(model, validation), targets, share)

    def _targets(self, clips: Scored) -> Targets | None:
        if not clips.samples:
            if self.per_second:
                raise DataError("Without validation clips nothing tells which seconds are background.")
            return None
        return Targets.from_samples(self.dataset, clips.samples)

    def _describe(self, seed: int, support: Support, verdict: Verdict) -> AdapterConfig:
        return AdapterConfig(
            task=self.config.task,
            labels=self.dataset.classes,
            wordings=self.dataset.wordings,
            templates=self.templates_name,
            backbone=self.backbone.name,
            identity=dict(self.backbone.identity),
            training=self.config.to_dict(),
            seed=seed,
            support=support.to_dict(),
            decision={
                "blend": verdict.blend,
                "pool": self.config.pool,
                "fusion": self.config.fusion,
                "window": self.config.window,
                **asdict(verdict.fitted),
            },
            metrics={"validation": {"figure": verdict.figure, "loss": verdict.loss}},
        )


def _read_result(folder: Path, support: Support) -> SeedResult | None:
    """What an earlier run with this seed gave, if it came to its end."""
    path = folder / "result.json"
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["support"]["fingerprint"] != support.fingerprint:
            return None
        return SeedResult(
            values["seed"],
            values["support"],
            Progress.from_dict(values["progress"]),
            {name: TaskResult.from_dict(record) for name, record in values["results"].items()},
            Comparison.from_dict(values["comparison"]),
            folder,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path}: is damaged ({error}).", hint="Remove it: the evaluation is then done again."
        ) from None
