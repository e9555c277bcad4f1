"""Few-shot methods on the clips of a task: from samples and cached embeddings to scorers and predictions."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from avfewshot.data.dataset import SPLITS, Dataset, Sample
from avfewshot.encoders.text import label_features as encode_labels
from avfewshot.errors import UsageError
from avfewshot.evaluation.evaluator import Evaluator
from avfewshot.evaluation.predictions import Fitted, clip_probabilities
from avfewshot.evaluation.targets import BackgroundRule, Predictions, Targets, decide_segments
from avfewshot.inference.logits import ClipLogits, class_texts, score_clip
from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Features, LabelFeatures, Support
from avfewshot.methods.method import Scorer
from avfewshot.models.fusion import both_ways, second_posteriors
from avfewshot.tuning.fit import answers
from avfewshot.tuning.methods import TunedMethod


def label_features(evaluator: Evaluator, *, single_prompts: bool = False) -> LabelFeatures:
    """The texts of a task as methods take them; "none of these" has none.

    `single_prompts`: with the texts of each template alone beside their mean, for methods that weight them.
    """
    singles = {}
    if single_prompts:
        for modality in MODALITIES:
            branch, templates = getattr(evaluator.backbone, f"{modality}_text"), getattr(evaluator.templates, modality)
            each = [encode_labels(branch, evaluator.dataset.wordings, (template,)) for template in templates]
            singles[f"{modality}_templates"] = torch.stack(each, 1).double().cpu().numpy()
    decision = evaluator.decision
    texts = evaluator.texts.for_methods(evaluator.backbone, fusion=decision.fusion, pool=decision.pool, **singles)
    none = evaluator.dataset.none_class
    return texts if none is None else texts.take(np.delete(np.arange(len(texts.names)), none))


def method_support(evaluator: Evaluator, clips: str | Sequence[Sample], *, counter: bool = False) -> Support:
    """Labelled clips as methods take them; seconds have labels of their own where the task labels seconds.

    `counter`: with the counter-examples of the training split (folders ``-CLASS/``) beside them.
    """
    samples, features = evaluator.features(clips)
    support = labelled_support(evaluator.dataset, samples, features, per_second=evaluator.decision.per_second)
    against = [sample for sample in evaluator.dataset.negatives if sample.split == "train"] if counter else []
    if against:
        samples, features = evaluator.features(against)
        if samples:
            not_of = without_none(evaluator.dataset, evaluator.dataset.multi_hot(samples))
            support = replace(support, counter=(features, not_of))
    return support


def labelled_support(
    dataset: Dataset, samples: Sequence[Sample], features: Features, *, per_second: bool = False
) -> Support:
    """Samples with their embeddings as methods take them; clips of ``none/`` have no label."""
    labels = dataset.multi_hot(samples) if samples else np.zeros((0, len(dataset.classes)), dtype=bool)
    labels = without_none(dataset, labels)
    segments = None
    if per_second:
        marks = np.eye(len(dataset.classes) + 1, dtype=bool)
        pairs = zip(samples, features.seconds, strict=True)
        segments = tuple(marks[dataset.segment_labels(sample, int(seconds))] for sample, seconds in pairs)
    return Support(features, labels, segments)


def without_none(dataset: Dataset, columns: np.ndarray) -> np.ndarray:
    """Columns of a data set's classes ``[N, K]`` without that of "none of these"."""
    return columns if dataset.none_class is None else np.delete(columns, dataset.none_class, axis=1)


def tuning_inputs(
    evaluator: Evaluator, pixels: bool, samples: Sequence[Sample], features: Features
) -> Iterator[tuple[Any, Any]]:
    """What a method that is tuned through the towers takes of clips: frames and waveforms one by one, or embeddings."""
    if not pixels:
        parts = (features.visual, features.audio)
        tensors = ([None if one is None else torch.from_numpy(one).float() for one in part] for part in parts)
        yield from zip(*tensors, strict=True)
        return
    evaluator.observer.begin("frames and sound of clips", len(samples))
    for path in (sample.path for sample in samples if sample.path is not None):
        clip = evaluator.read(path)
        yield clip.frames, clip.audio_segments
        evaluator.observer.advance()


def tuned_logits(evaluator: Evaluator, method: TunedMethod, split: str) -> list[ClipLogits]:
    """What a method that was tuned through the towers says of the usable clips of a split."""
    given = tuning_inputs(evaluator, method.uses_pixels, *evaluator.features(split))
    return [ClipLogits(*pair) for pair in answers(method, given)]


def method_predictions(
    evaluator: Evaluator,
    scorer: Scorer,
    features: Features,
    support: Support | None,
    *,
    texts: LabelFeatures | None = None,
    tuned: Sequence[Sequence[np.ndarray]] | None = None,
) -> Predictions:
    """What a method that was fitted on `support` says about N clips.

    `support` is None for a scorer that has been saved, and so has its thresholds; `texts` are other labels than it was
    fitted with, where clips are labelled. `tuned` is as :func:`tuned_posteriors` gives it; where seconds are labelled,
    as :func:`tuned_seconds` does.
    """
    none = evaluator.dataset.none_class
    if evaluator.decision.per_second:
        classes = len(scorer.texts.names)
        probabilities = np.zeros((len(features), evaluator.decision.seconds, classes + 1))
        probabilities[..., classes] = 1
        for row, logits in enumerate(scorer.segment_logits(features, tuned=tuned)):
            known = np.exp(logits[: evaluator.decision.seconds])
            probabilities[row, : len(known)] = known / known.sum(-1, keepdims=True)
        return Predictions(probabilities, background=BackgroundRule("prompt"))
    scores = scorer.scores(features, texts, tuned=None if tuned is None else [np.stack(one) for one in tuned])
    probabilities = np.exp(scores.fused)
    if none is not None:
        column = 0.0 if scores.none is None else np.exp(scores.none)
        probabilities = np.insert(probabilities, none, column, axis=1)
    threshold = None
    if evaluator.dataset.multi_label:
        if support is not None:
            scorer.decide_labels(support)
        if known := scorer.thresholds:
            other = float(np.mean(list(known.values())))
            threshold = np.array([known.get(name, other) for name in evaluator.dataset.classes])
    return Predictions(probabilities / probabilities.sum(-1, keepdims=True), label_threshold=threshold)


def tuned_posteriors(evaluator: Evaluator, logits: Sequence[ClipLogits], fitted: Fitted) -> list[Any]:
    """Log-posteriors ``[N, K]`` of a tuned part by its fusion and by the other one, for :meth:`Scorer.scores`."""
    ways, classes = both_ways(fitted.fusion or evaluator.decision.fusion), evaluator.dataset.num_classes
    said = [clip_probabilities(logits, classes, fusion=one, pool=evaluator.decision.pool) for one in ways]
    return [without_none(evaluator.dataset, np.log(np.maximum(one, 1e-12))) for one in said]


def tuned_seconds(evaluator: Evaluator, logits: Sequence[ClipLogits], fitted: Fitted) -> list[list[np.ndarray]]:
    """The same of the seconds of N clips, ``[T_i, K + 1]`` each, for :meth:`Scorer.segment_logits`."""
    ways = both_ways(fitted.fusion or evaluator.decision.fusion)
    return [[second_posteriors(one.visual, one.audio, fusion=way).numpy() for one in logits] for way in ways]


def alone(
    evaluator: Evaluator,
    scorer: Scorer,
    features: Features,
    support: Support,
    modality: str,
    *,
    tuned: Sequence[Sequence[np.ndarray]] | None = None,
) -> Predictions:
    """What a fitted method says by one modality alone; a clip that lacks it gets a uniform answer."""
    rows = [row for row, clip in enumerate(getattr(features, modality)) if clip is not None]
    seconds = (evaluator.decision.seconds,) if evaluator.decision.per_second else ()
    classes = evaluator.dataset.num_classes + len(seconds)
    probabilities = np.full((len(features), *seconds, classes), 1 / classes)
    if rows:
        absent = {"visual" if modality == "audio" else "audio": (None,) * len(rows)}
        part = replace(features.take(rows), **absent)
        said = method_predictions(
            evaluator, scorer, part, support, tuned=tuned and [[one[row] for row in rows] for one in tuned]
        )
        probabilities[rows] = said.probabilities
    return Predictions(probabilities, background=BackgroundRule("prompt") if seconds else None)


def answers_of(predictions: Predictions, targets: Targets) -> np.ndarray:
    """The answer for each clip ``[N]``, or for each second ``[N, T]`` (K: background)."""
    scores = predictions.probabilities
    if scores.ndim == 2:
        return scores.argmax(1)
    return decide_segments(predictions, targets.num_classes)


def right_answers(answers: np.ndarray, targets: Targets) -> np.ndarray:
    """Which answers are right, of the same shape: a clip's if the clip carries it."""
    return answers == targets.segments if answers.ndim == 2 else targets.labels[np.arange(len(answers)), answers]


def modality_confusion(joint: np.ndarray, visual: np.ndarray, audio: np.ndarray) -> dict[str, float]:
    """VGGSounder's modality confusion (Zverev et al., ICCV 2025): what a second modality spoils.

    From which answers are right by both modalities and by each alone: the shares that sight alone, sound alone, each of
    them alone gets right and both together get wrong.
    """
    lost = {"mu_v": visual & ~joint, "mu_a": audio & ~joint, "mu_av": visual & audio & ~joint}
    return {name: float(values.mean()) for name, values in lost.items()}


def mteb_zero_shot(evaluator: Evaluator) -> list[Predictions]:
    """Zero-shot as mteb evaluates AVE: "a video of {name}", one prompt and nothing else, whole clips, top-1.

    By both modalities, by sight alone, by sound alone.
    """
    prompt = ("a video of {}",)
    templates = replace(evaluator.templates, visual=prompt, audio=prompt)
    names = [name.replace("_", " ") for name in evaluator.dataset.classes]
    texts = class_texts(evaluator.backbone, names, templates)
    scales = evaluator.backbone.visual_scale, evaluator.backbone.audio_scale
    clips = [score_clip(file.visual, file.audio, texts, scales) for file in evaluator.scored("test").embeddings]
    alone = ([clip.only(one) for clip in clips] for one in MODALITIES)
    decision = replace(evaluator.decision, pool="mean")
    return [decision.predict(part, texts.num_classes, Fitted()) for part in (clips, *alone)]


def with_several_labels(dataset: Dataset) -> Dataset:
    """A folder whose clips carry all classes in whose folders they lie by links; test before val before train."""
    groups: dict[str, list[Sample]] = {}
    for sample in dataset.samples:
        groups.setdefault(os.path.realpath(sample.path or sample.id), []).append(sample)
    merged = []
    for group in groups.values():
        split = max((sample.split for sample in group), key=SPLITS.index)
        labels = {label for sample in group for label in sample.labels}
        if len(labels) > 1:
            labels.discard(-1 if dataset.none_class is None else dataset.none_class)
        merged.append(replace(group[0], labels=tuple(sorted(labels)), split=split))
    several = any(len(sample.labels) > 1 for sample in merged)
    return replace(dataset, samples=tuple(merged), multi_label=True) if several else dataset


def with_validation(dataset: Dataset, chosen: Sequence[Sample]) -> Dataset:
    """The same data set with these clips as its val split; those of other splits that are among them are moved."""
    taken = {id(sample) for sample in chosen}
    kept = [sample for sample in dataset.samples if sample.split != "val" and id(sample) not in taken]
    return dataset.with_samples([*kept, *(replace(sample, split="val") for sample in chosen)])


def run_predictions(
    evaluator: Evaluator, name: str, scorer: Scorer, adapted: tuple[Sequence[ClipLogits], Fitted] | None = None
) -> Predictions:
    """What a finished few-shot run predicts with says about the test clips of any task.

    Labels of the task that the run knows, whatever their case, are scored by what it learnt, the others by the text.
    `name` is the run's method, `adapted` what its trained adapters say, as of :meth:`Evaluator.adapted`.

    Raises:
        UsageError: Seconds are labelled, and not those that the run learnt.
    """
    texts: LabelFeatures | None = label_features(evaluator)
    known = {label.casefold(): label for label in scorer.texts.names}
    names = tuple(known.get(label.casefold(), label) for label in texts.names)
    texts = None if names == scorer.texts.names else replace(texts, names=names)
    per_second, tuned = evaluator.decision.per_second, None
    if per_second and (texts is not None or scorer.second is None):
        what = f"{evaluator.dataset.description.title} labels seconds, and this run of {name} has learnt other labels."
        raise UsageError(what, hint="Judge it on a task that labels clips, such as ave_cls.")
    if adapted is not None:
        tuned = tuned_seconds(evaluator, *adapted) if per_second else tuned_posteriors(evaluator, *adapted)
    return method_predictions(evaluator, scorer, evaluator.features("test")[1], None, texts=texts, tuned=tuned)
