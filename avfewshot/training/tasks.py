"""What few-shot training and pretraining learn, as the trainer takes it: labelled clips, and their loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.config import AUTO, TrainerConfig, TrainingConfig
from avfewshot.data.clip_source import ClipSource, LabelledClip
from avfewshot.encoders.backbone import Backbone
from avfewshot.errors import AvfsError
from avfewshot.inference.logits import ClassTexts
from avfewshot.media.clip import MODALITIES, Failure
from avfewshot.models import fusion
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.checkpoint import AdapterConfig
from avfewshot.models.losses import CombinedLoss
from avfewshot.training.data import window_start
from avfewshot.training.distributed import gather_batch
from avfewshot.training.gradcache import Embeddings, joined
from avfewshot.training.objective import ClipEmbeddings, Forward, Objective, TrainingClip, embed_batch, matched_loss
from avfewshot.training.protocol import TrainTask
from avfewshot.training.validation import Validator, ValMetrics

_VALIDATIONS = 2  # of a few-shot training at least


class ClipTask(TrainTask):
    """Labelled clips, with logits of the untrained towers beside those of the model."""

    def __init__(
        self,
        model: AudioVisualModel,
        config: TrainerConfig,
        *,
        source: ClipSource,
        validator: Validator,
        describe: Callable[[ValMetrics], AdapterConfig],
        seed: int,
    ) -> None:
        self.model, self.config, self.source, self.seed = model, config, source, seed
        self.validator, self.describe = validator, describe

    def cut(self, item: LabelledClip, labels: Tensor, epoch: int) -> TrainingClip:
        """The stretch of a clip that is trained on in an epoch, `labels` as :class:`TrainingClip` has them."""
        window = self.config.window
        start = window_start(item.clip.num_segments, window, seed=self.seed, epoch=epoch, key=item.id)
        return TrainingClip.of(item.clip, labels, start, window, item.row)

    def baseline(self, model: AudioVisualModel) -> ValMetrics:
        """Metrics of the untrained towers."""
        return self.validator.baseline()

    def validate(self, model: AudioVisualModel, epoch: int) -> ValMetrics:
        """See :class:`~avfewshot.training.validation.Validator`."""
        return self.validator(model, epoch)

    def metadata(self, metrics: ValMetrics) -> AdapterConfig:
        """As :func:`adapter_config` gives it."""
        return self.describe(metrics)


class FewShotTask(ClipTask):
    """The clips of a support, each of which has to be readable; on one rank."""

    save_every_epoch = False

    def __init__(
        self,
        model: AudioVisualModel,
        config: TrainingConfig,
        *,
        labels: Sequence[Tensor],
        objective: Objective,
        pretrained: bool = False,
        **common: Any,
    ) -> None:
        super().__init__(model, config, **common)
        self.labels, self.objective, self.pretrained = labels, objective, pretrained
        # Classification losses are means over samples; contrastive ones need the whole batch.
        self.gradcache = config.objective == "contrastive"
        self.validate_every = validation_interval(config, len(labels), len(self.validator.zero_shot))

    def sample(self, item: LabelledClip | Failure, epoch: int) -> TrainingClip:
        """The stretch of a clip that is trained on in an epoch; an :class:`AvfsError` where it could not be read."""
        if isinstance(item, Failure):
            raise AvfsError(
                f"{item.path}: could be read when the training was set up, and cannot be read any more: {item.error}",
                hint="Put the file back and go on with --resume.",
            )
        assert item.row is not None
        return self.cut(item, self.labels[item.row], epoch)

    def weight(self, samples: Sequence[TrainingClip]) -> float:
        """Clips, or their seconds where these are labelled."""
        return sum(clip.num_segments for clip in samples) if self.objective.per_second else len(samples)

    def embed(self, forward: Forward, samples: Sequence[TrainingClip]) -> Embeddings:
        """Embeddings of all seconds of the clips, ``[sum T, D]`` each; zeros for clips that lack the modality."""
        clips, lengths = embed_batch(forward, samples, self._device), [sample.num_segments for sample in samples]
        return tuple(joined([getattr(clip, name) for clip in clips], lengths) for name in MODALITIES)

    def loss(self, embeddings: Embeddings, samples: Sequence[TrainingClip]) -> CombinedLoss:
        """See :class:`~avfewshot.training.tasks.Objective`."""
        lengths = [clip.num_segments for clip in samples]
        visual, audio = ([None] * len(samples) if part is None else part.split(lengths) for part in embeddings)
        clips = [
            ClipEmbeddings(v if clip.frames is not None else None, a if clip.audio is not None else None, clip.row)
            for clip, v, a in zip(samples, visual, audio, strict=True)
        ]
        return self.objective(self.model, clips, [clip.labels.to(self._device) for clip in samples])

    def baseline(self, model: AudioVisualModel) -> ValMetrics:
        """Metrics of the untrained towers, or of the pretrained model where that is better."""
        zero_shot = self.validator.baseline()
        if not self.pretrained:
            return zero_shot
        begun = self.validator(model, 0)
        return begun if begun.better_than(zero_shot) else zero_shot

    @property
    def _device(self) -> torch.device:
        return self.model.temperatures.visual.device


def validation_interval(config: TrainingConfig, clips: int, validation_clips: int) -> int:
    """Epochs between validations; `auto`: no fewer clips are trained on than a validation has.

    There are two validations at least.
    """
    if config.validate_every != AUTO:
        return int(config.validate_every)
    return max(1, min(-(-validation_clips // max(1, clips)), -(-int(config.epochs) // _VALIDATIONS)))


class PretrainTask(ClipTask):
    """A list of clips, those that can be read; large contrastive batches, over all ranks.

    Each clip is one sample: the mean of its seconds' embeddings (with ``pool: event`` weighted by how likely something
    happens in them, the weights without gradient), scaled to length one.
    """

    gradcache = True

    def __init__(
        self,
        model: AudioVisualModel,
        config: TrainerConfig,
        *,
        texts: ClassTexts,
        device: torch.device,
        skip: Callable[[str], bool] = lambda name: False,
        on_failure: Callable[[Failure], None] = lambda failure: None,
        **common: Any,
    ) -> None:
        super().__init__(model, config, **common)
        self.skip, self.on_failure = skip, on_failure
        self.texts, self.device = texts.to(device), device
        self.validate_every = 1 if config.validate_every == AUTO else int(config.validate_every)
        self._labels = torch.eye(texts.num_classes, dtype=torch.bool)

    def sample(self, item: LabelledClip | Failure, epoch: int) -> TrainingClip | None:
        """The stretch of a clip that is trained on in an epoch."""
        if isinstance(item, Failure):
            self.on_failure(item)
            return None
        return None if self.skip(item.id) else self.cut(item, self._labels[list(item.labels)].any(0), epoch)

    def batches(self, samples: list[TrainingClip], batch_size: int) -> list[list[TrainingClip]]:
        """One batch; a rank that has no clip left takes part with one without a label, which counts for nothing."""
        if samples:
            return [samples]
        size: Any = self.model.visual_tower.image_size
        frames = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        return [[TrainingClip(frames, None, torch.zeros(self.texts.num_classes, dtype=torch.bool))]]

    def embed(self, forward: Forward, samples: Sequence[TrainingClip]) -> Embeddings:
        """One unit vector a clip and modality, ``[n, D]``; zeros where a clip lacks the modality."""
        embeddings = embed_batch(forward, samples, self.device)
        with torch.no_grad():
            texts = self.texts.projected(self.model)
        parts = []
        for name in MODALITIES:
            words, scale = getattr(texts, name), self.model.temperatures.scale(name).detach()
            seconds = (getattr(clip, name) for clip in embeddings)
            rows = [None if clip is None else self._pooled(clip, words, scale)[None] for clip in seconds]
            parts.append(joined(rows, [1] * len(rows)))
        return tuple(parts)

    def _pooled(self, seconds: Tensor, words: Tensor, scale: Tensor) -> Tensor:
        if self.config.pool == "mean":
            return F.normalize(seconds.mean(0), dim=-1)
        logits = fusion.logits(seconds.detach(), words, scale)
        weights = fusion.event_weights(logits[:, :-1], logits[:, -1])
        return F.normalize((weights[:, None].to(seconds.dtype) * seconds).sum(0), dim=-1)

    def loss(self, embeddings: Embeddings, samples: Sequence[TrainingClip]) -> CombinedLoss:
        """The loss of the embedded clips of all ranks; a clip without a label does not count."""
        labels = torch.stack([clip.labels for clip in samples]).to(self.device)
        known = labels.any(1)
        given = ([clip.frames is not None for clip in samples], [clip.audio is not None for clip in samples])
        seen, heard = (torch.tensor(part, device=self.device) & known for part in given)
        visual, audio = embeddings
        batch = gather_batch(visual, audio, labels, (seen, heard))
        texts = self.texts.projected(self.model)
        visual, audio = self.model.logits(batch.visual, batch.audio, texts.visual[:-1], texts.audio[:-1])
        return matched_loss(self.config, self.model, visual, audio, batch.labels, present=batch.present)


def adapter_config(
    config: Any,
    backbone: Backbone,
    *,
    labels: Sequence[str],
    wordings: Sequence[str],
    templates: str,
    seed: int,
    support: Mapping[str, Any],
    metrics: ValMetrics,
) -> AdapterConfig:
    """What a checkpoint of a few-shot training or a pretraining says of itself."""
    return AdapterConfig(
        task=config.task,
        labels=tuple(labels),
        wordings=tuple(wordings),
        templates=templates,
        backbone=backbone.name,
        identity=dict(backbone.identity),
        training=config.to_dict(),
        seed=seed,
        support=dict(support),
        decision={
            "blend": metrics.blend,
            "pool": config.pool,
            "window": config.window,
            **asdict(metrics.fitted),
            "fusion": metrics.fitted.fusion or config.plain_fusion,
        },
        metrics={"validation": {"figure": metrics.figure, "loss": metrics.loss}},
    )
