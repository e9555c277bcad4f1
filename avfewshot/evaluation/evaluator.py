"""A task with everything to judge systems on it: clips, label features, what the untrained model says."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from avfewshot.data.dataset import Dataset, Sample
from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import AvfsError, DataError
from avfewshot.evaluation.evaluate import evaluate_systems
from avfewshot.evaluation.observer import Observer
from avfewshot.evaluation.predictions import Fitted, PredictionConfig
from avfewshot.evaluation.results import Comparison, TaskResult
from avfewshot.evaluation.targets import Predictions, Targets
from avfewshot.evaluation.usage import Usage
from avfewshot.inference.devices import PRECISIONS, keep_float32
from avfewshot.inference.embedding_cache import Embedded, EmbeddingCache, LookUp, embed_cached, embedding_identity
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.logits import ClipLogits, class_texts, score_clip
from avfewshot.inference.results import Failure
from avfewshot.media.clip_cache import DEFAULT_MAX_BYTES, ClipCache
from avfewshot.media.stream import Reader, read_ahead
from avfewshot.methods.base import Features
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.prompts import Templates

ZERO_SHOT, CLIP_ONLY, CLAP_ONLY = "zero-shot", "CLIP only", "CLAP only"
UNTRAINED = (CLIP_ONLY, CLAP_ONLY, ZERO_SHOT)
"""Systems that need no training, in the order of a table."""

ADAPTED = "adapted"
"""A trained model beside them."""

_MODALITIES = {CLIP_ONLY: "visual", CLAP_ONLY: "audio", ZERO_SHOT: None}
TRAINED_CLASSES, OTHER_CLASSES = "classes that were trained on", "other classes"


@dataclass(frozen=True, eq=False)
class Scored:
    """N samples of a split whose clips could be read, with what the frozen towers make of them."""

    samples: tuple[Sample, ...]
    embeddings: tuple[EmbeddedFile, ...]
    logits: tuple[ClipLogits, ...]  # zero-shot


@dataclass(frozen=True, eq=False)
class EvalReport:
    """Systems on the test clips of a task."""

    results: dict[str, TaskResult]
    comparison: Comparison
    parts: dict[str, Comparison] = field(default_factory=dict)
    """The comparison on clips all of whose classes were trained on, and on clips none of whose were: only where there
    are both kinds. All classes of the task are candidates in any case."""


@dataclass(eq=False)
class Evaluator:
    """Evaluates models on one task; what the frozen towers say is computed once, and kept on disk.

    Labels of test clips come in by :meth:`report` alone: whatever is chosen is chosen before, on other clips.
    """

    dataset: Dataset  # with media
    decision: PredictionConfig  # how logits become predictions
    backbone: Backbone  # moved to the device in place
    templates: Templates
    device: torch.device
    precision: str  # what the towers compute in, which the kept embeddings belong to
    frame_backend: str = "auto"  # what decodes frames, which the kept embeddings belong to
    cache_size: int = DEFAULT_MAX_BYTES  # of the decoded clips that are kept
    window: int = 10  # seconds that go through adapters together
    batch_size: int | None = None  # seconds that go through the towers at once; None: what suits the device
    workers: int = 2  # that decode ahead
    observer: Observer = field(default_factory=Observer)
    look_up: LookUp | None = None  # where embeddings of the frozen towers are looked up first
    audio_context: str = "second"  # how the frozen towers hear, see Embedder

    def __post_init__(self) -> None:
        self.usage = Usage()
        clips, size = ClipCache(max_bytes=self.cache_size), self.backbone.visual.image_size
        self.read: Reader = partial(clips.get, frame_size=size, frame_backend=self.frame_backend)
        keep_float32()
        self.backbone.to(self.device, PRECISIONS[self.precision])
        self.texts = class_texts(self.backbone, self.dataset.wordings, self.templates, names=self.dataset.classes)
        self.zero_shot = AudioVisualModel(self.backbone).to(self.device).eval()
        identity = embedding_identity(self.backbone, self.precision, self.audio_context)
        self._cache = EmbeddingCache({**identity, "frame backend": self.frame_backend})
        if self.look_up is not None and self.frame_backend == "auto":
            dims = self.backbone.visual.output_dim, self.backbone.audio.output_dim
            self._cache = self.look_up(identity, dims, self._cache)
        self._scored: dict[str, Scored] = {}

    def scored(self, split: str) -> Scored:
        """Usable samples of a split, with what the frozen towers say; a :class:`DataError` if ``test`` has none."""
        if split not in self._scored:
            found = self._usable(self.dataset.split(split), f"embedding {split} clips")
            if not found and split == "test":
                raise DataError(
                    f"No test clip of {self.dataset.description.title} can be used: there is nothing to evaluate on.",
                    hint=f"`avfs data check {self.decision.task} --root DIR --probe` tells what is wrong.",
                )
            self.usage.used[split] = [sample.id for sample, _ in found]
            scales = self.backbone.visual_scale, self.backbone.audio_scale
            self._scored[split] = Scored(
                tuple(sample for sample, _ in found),
                tuple(file for _, file in found),
                tuple(score_clip(file.visual, file.audio, self.texts, scales) for _, file in found),
            )
        return self._scored[split]

    def features(self, clips: str | Sequence[Sample]) -> tuple[tuple[Sample, ...], Features]:
        """Samples (of a split, or those given) that can be used, with embeddings of the frozen towers."""
        if isinstance(clips, str):
            scored = self.scored(clips)
            found = list(zip(scored.samples, scored.embeddings, strict=True))
        else:
            found = self._usable(clips, "embedding clips")
        if not found:
            return (), Features((), (), ())
        return tuple(sample for sample, _ in found), Features.of((s.id, f.visual, f.audio) for s, f in found)

    def validation_targets(self) -> Targets | None:
        """What is true of the usable validation clips; without any None, or a :class:`DataError` if they are needed."""
        samples = self.scored("val").samples
        if samples:
            return Targets.from_samples(self.dataset, samples)
        if self.decision.per_second and self.decision.background == "threshold":
            raise DataError(
                f"{self.dataset.description.title} has no usable val clip, so nothing tells which seconds are "
                "background.",
                hint="Use --background prompt.",
            )
        return None

    def fit(self, logits: Sequence[ClipLogits], fusion: str = "") -> Fitted:
        """What validation chooses for a system, given its logits of the validation clips; and its own `fusion`."""
        targets, fusion = self.validation_targets(), fusion or self.decision.fusion
        return replace(self.decision, fusion=fusion).fit(logits, targets) if targets else Fitted(fusion=fusion)

    def predict(self, logits: Sequence[ClipLogits], fitted: Fitted) -> Predictions:
        """What a system says, given its logits."""
        return self.decision.predict(logits, self.texts.num_classes, fitted)

    def untrained(self, split: str = "test") -> dict[str, Predictions]:
        """What each of :data:`UNTRAINED` says about a split, with rules fitted on validation clips."""
        validation, judged = self.scored("val").logits, self.scored(split).logits
        systems = {}
        for name, modality in _MODALITIES.items():
            val, test = (
                clips if modality is None else [c.only(modality) for c in clips] for clips in (validation, judged)
            )
            systems[name] = self.predict(test, self.fit(val))
        return systems

    def report(self, systems: Mapping[str, Predictions], *, trained_labels: Collection[str] = ()) -> EvalReport:
        """Compare what systems say about the test clips with the truth; on trained and on other classes apart, too."""
        task, targets = self.decision.task, Targets.from_samples(self.dataset, self.scored("test").samples)
        trained = {label.casefold() for label in trained_labels}
        names = zip(self.dataset.classes, self.dataset.wordings, strict=True)
        known = np.array([name.casefold() in trained or wording.casefold() in trained for name, wording in names])
        inside, outside = (targets.labels & known).any(1), (targets.labels & ~known).any(1)
        parts = {}
        for name, rows in ((TRAINED_CLASSES, inside & ~outside), (OTHER_CLASSES, outside & ~inside)):
            if trained and rows.any() and not rows.all():
                picked = {system: said.rows(rows) for system, said in systems.items()}
                parts[name] = evaluate_systems(task, targets.rows(rows), picked)[1]
        return EvalReport(*evaluate_systems(task, targets, systems), parts)

    def joined(self, model: AudioVisualModel, split: str, share: float) -> list[ClipLogits]:
        """Logits of a trained model with this share, joined with the untrained one; with 0 the model is not run."""
        clips = self.scored(split).logits
        if share == 0:
            return list(clips)
        trained = self.trained_logits(model, split)
        return [before.ensemble(after, share) for before, after in zip(clips, trained, strict=True)]

    def adapted(self, model: AudioVisualModel, share: float = 1.0, fusion: str = "") -> tuple[list[ClipLogits], Fitted]:
        """A trained model's logits of the test clips, as of :meth:`joined`, and what validation clips choose for it."""
        return self.joined(model, "test", share), self.fit(self.joined(model, "val", share), fusion)

    def trained_logits(self, model: AudioVisualModel, split: str) -> list[ClipLogits]:
        """Logits of a trained model on the usable clips of a split, as of :meth:`logits_of`."""
        paths = [sample.path for sample in self.scored(split).samples if sample.path is not None]
        self.observer.begin(f"evaluating on {split} clips", len(set(paths)))
        return self.logits_of(model, paths)

    def logits_of(self, model: AudioVisualModel, paths: Sequence[Path]) -> list[ClipLogits]:
        """Logits of a trained model on clips; an :class:`AvfsError` where one cannot be read any more."""
        embedded = self._embed(model, paths, cache=None)
        space = self.texts.space_of(model)
        result = []
        for path in paths:
            file = embedded[path]
            if not isinstance(file, EmbeddedFile):
                raise AvfsError(f"{file.path}: could be read before and cannot be read any more: {file.error}")
            result.append(score_clip(file.visual, file.audio, *space))
        return result

    def _usable(self, samples: Sequence[Sample], title: str) -> list[tuple[Sample, EmbeddedFile]]:
        paths = [sample.path for sample in samples if sample.path is not None]
        self.observer.begin(title, len(set(paths)))
        found = self.usage.sort(samples, self._embed(self.zero_shot, paths, cache=self._cache))
        return [(sample, file if self.decision.per_second else file.by_clip) for sample, file in found]

    def _embed(
        self, model: AudioVisualModel, paths: Sequence[Path], *, cache: EmbeddingCache | None
    ) -> dict[Path, EmbeddedFile | Failure]:
        """An entry for each file, once; `cache` is for frozen towers."""

        def embed(paths: Sequence[Path]) -> Embedded:
            context = self.audio_context if model is self.zero_shot else "second"
            embedder = Embedder(model, self.device, self.batch_size, window=self.window, audio_context=context)
            return embedder.embed(read_ahead(paths, self.read, workers=self.workers))

        found, paths = {}, list(dict.fromkeys(paths))
        dtype = PRECISIONS[self.precision]
        with torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32):
            for path, file in zip(paths, embed_cached(paths, embed, cache), strict=True):
                found[path] = file
                self.observer.advance()
        return found
