"""Validation: how good a model is on held-out clips, and how much its logits count beside the zero-shot ones.

A handful of clips can spoil what a large pretraining knows; the released DG-SCT is below its own zero-shot figure on
LLP. So trained and zero-shot logits are added with shares that validation chooses (Wortsman et al., CVPR 2022, join
weights for the same reason), and the untrained model itself stands as the first candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from avfewshot.config import AUTO, PretrainingConfig, TrainingConfig
from avfewshot.data.clip_source import ClipSource, LabelledClip
from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import AvfsError
from avfewshot.evaluation.evaluate import evaluate
from avfewshot.evaluation.observer import Observer
from avfewshot.evaluation.predictions import Fitted, PredictionConfig, clip_probabilities, second_probabilities
from avfewshot.evaluation.targets import Targets
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.logits import ClassTexts, ClipLogits, score_clip
from avfewshot.media.clip import Clip
from avfewshot.models.audio_visual import AudioVisualModel

if TYPE_CHECKING:
    from lightning_fabric import Fabric

ALPHAS = (0.25, 0.5, 0.75, 1.0)  # shares of the trained logits that are tried on validation clips
BLIND_ALPHA = 0.5  # that of a few-shot training where no validation clip tells a better one


@dataclass(frozen=True)
class ValMetrics:
    """How good a model is on validation clips."""

    figure: float  # the task's headline metric, higher is better
    loss: float  # mean negative log-probability of the truth, which tells equal figures apart
    blend: float = 1.0  # the share of the trained logits that did best
    fitted: Fitted = field(default_factory=Fitted)  # what was chosen with it
    details: Mapping[str, float] = field(default_factory=dict)  # further metrics of a task that has several

    def better_than(self, other: ValMetrics) -> bool:
        """Whether it has the higher figure, or the same at a lower loss."""
        return (self.figure, -self.loss) > (other.figure, -other.loss)

    def to_dict(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values = asdict(self)
        return values if self.details else {name: value for name, value in values.items() if name != "details"}


def no_validation(epoch: int, alpha: float, fusion: str = "") -> ValMetrics:
    """Metrics where there are no validation clips: each epoch counts as better than the one before."""
    return ValMetrics(0.0, -float(epoch), alpha, Fitted(fusion=fusion))


@dataclass(eq=False)
class Validator:
    """Validates models on held-out clips, with logits of the untrained model beside theirs."""

    decision: PredictionConfig  # how logits become predictions
    targets: Targets | None  # what is true of the clips; None: there are none
    zero_shot: Sequence[ClipLogits]  # the untrained model's logits of them
    logits: Callable[[AudioVisualModel], Sequence[ClipLogits]]  # a trained model's, in evaluation mode
    alpha: float | str = AUTO  # share of the trained logits, or "auto": validation chooses
    blind_alpha: float = 1.0  # what "auto" stands for without validation clips

    def baseline(self) -> ValMetrics:
        """Metrics of the untrained model."""
        if self.targets is None:
            return no_validation(0, 0.0, self.decision.fusion)
        return _metrics(self.decision, self.zero_shot, self.targets, 0.0)

    def __call__(self, model: AudioVisualModel, epoch: int) -> ValMetrics:
        """Metrics of a trained model, in evaluation mode, after so many epochs, with the best share of its logits."""
        if self.targets is None:
            alpha = self.blind_alpha if self.alpha == AUTO else float(self.alpha)
            return no_validation(epoch, alpha, self.decision.fusion)
        pairs = list(zip(self.zero_shot, self.logits(model), strict=True))
        found = []
        for alpha in ALPHAS if self.alpha == AUTO else (float(self.alpha),):
            joined = [before.ensemble(after, alpha) for before, after in pairs]
            found.append(_metrics(self.decision, joined, self.targets, alpha))
        # Of equally good shares the smallest, which keeps most of what was known before.
        return max(found, key=lambda metrics: (metrics.figure, -metrics.loss))


def _metrics(decision: PredictionConfig, clips: Sequence[ClipLogits], targets: Targets, alpha: float) -> ValMetrics:
    fitted = decision.fit(clips, targets)
    predictions = decision.predict(clips, targets.num_classes, fitted)
    score = evaluate(decision.task, targets, predictions, replicates=0).score
    if decision.per_second:
        assert targets.segments is not None
        joint = second_probabilities(clips, targets.num_classes, targets.segments.shape[1], fusion=decision.fusion)
        true = np.take_along_axis(joint, targets.segments[..., None], axis=-1)
    else:
        probabilities = clip_probabilities(clips, targets.num_classes, fusion=decision.fusion, pool=decision.pool)
        true = (probabilities * targets.labels).sum(1)
    loss = float(-np.log(np.maximum(true, 1e-12)).mean())
    return ValMetrics(-math.inf if score is None else float(score), loss, alpha, fitted)


_Labels = tuple[str, tuple[int, ...]]  # id of a clip, indices of its classes


def stream_validator(
    source: ClipSource,
    config: TrainingConfig | PretrainingConfig,
    backbone: Backbone,
    texts: ClassTexts,
    fabric: Fabric,
    *,
    limit: int,
    observer: Observer,
) -> Validator:
    """A validator on the first `limit` clips of a seeded order of a source, which need not have files of their own.

    It raises an :class:`AvfsError` when a clip can no longer be read that could be when it was made.
    """
    limit = min(limit, len(source))
    known: list[_Labels] | None = None

    def clips(labels: list[_Labels]) -> Iterator[Clip]:
        for item in islice(source.stream(seed=0), limit):
            if isinstance(item, LabelledClip):
                labels.append((item.id, item.labels))
                clip = item.clip  # prepared clips may be the beginnings of files: here each is whole
                yield Clip(Path(item.id), clip.duration, 0, clip.frames, clip.waveform, clip.warnings)

    def score(
        model: AudioVisualModel, texts: ClassTexts, scales: tuple[float, float]
    ) -> tuple[list[_Labels], list[ClipLogits]]:
        """The clips that can be read and embedded, which are the same ones for every model, and their logits."""
        observer.begin("validation clips", limit)
        labels: list[_Labels] = []
        files = []
        with fabric.autocast():
            for file in Embedder(model, fabric.device, window=config.window).embed(clips(labels)):
                observer.advance()
                files.append(file)
        pairs = [pair for pair in zip(labels, files, strict=True) if isinstance(pair[1], EmbeddedFile)]
        found = [entry for entry, _ in pairs]
        if known not in (None, found):
            raise AvfsError(
                "Validation clips could be read when the training began, and cannot be read any more.",
                hint="Put the files back and go on with --resume.",
            )
        return found, [score_clip(file.visual, file.audio, texts, scales) for _, file in pairs]

    def trained_logits(model: AudioVisualModel) -> list[ClipLogits]:
        return score(model, *texts.space_of(model))[1]

    untrained = AudioVisualModel(backbone).to(fabric.device).eval()
    known, logits = score(untrained, texts, (backbone.visual_scale, backbone.audio_scale))
    rows = np.zeros((len(known), texts.num_classes), dtype=bool)
    for row, (_, labels) in enumerate(known):
        rows[row, list(labels)] = True
    names = tuple(name for name, _ in known)
    targets = Targets(names, source.classes, rows, multi_label=bool((rows.sum(1) > 1).any())) if known else None
    decision = PredictionConfig(config.task, config.plain_fusion, config.pool)
    return Validator(decision, targets, logits, trained_logits, config.blend)
