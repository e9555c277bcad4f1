"""Classification of files with any labels: the Python interface, and what the command line runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.text import label_features
from avfewshot.errors import UsageError, check_choice
from avfewshot.inference.devices import one_thread
from avfewshot.inference.embedding import FileEmbedder
from avfewshot.inference.embedding_cache import Embedded
from avfewshot.inference.head import LearnedHead, TunedHead, ZeroShotHead, rejector
from avfewshot.inference.inputs import Inputs, Labels, label_set
from avfewshot.inference.logits import ClassTexts, class_texts, text_warnings
from avfewshot.inference.results import ClipResult, Failure, Results, RunInfo
from avfewshot.inference.runs import LearnedRun
from avfewshot.labels import LabelSet
from avfewshot.methods.base import LabelFeatures
from avfewshot.models.build import EnsembleModel
from avfewshot.models.fusion import FUSIONS, POOLS
from avfewshot.prompts import Templates

DEFAULT_FUSION = "weighted"
DEFAULT_POOL = "event"


class Classifier(FileEmbedder):
    """Classifies files with any labels, by sight and sound.

    Args:
        backbone: Towers and text branches; moved to the device, in place.
        templates: Prompt templates.
        name: How results call the backbone; its own name by default.
        adapter: How results call what was trained.
        fusion: What :meth:`classify` does unless told; see there.
        pool: Likewise.
        own_labels: Classes that :meth:`classify` takes where it is given no labels.
        embedding: Device, precision, what was trained, cache: see
            :class:`~avfewshot.inference.embedding.FileEmbedder`; without a trained model this is zero-shot.

    Attributes:
        own_labels: The classes of the run that was loaded; None for a classifier of any labels.
        model: The trained model, or the towers as one model.
    """

    def __init__(
        self,
        backbone: Backbone,
        templates: Templates,
        *,
        name: str | None = None,
        adapter: str | None = None,
        fusion: str = DEFAULT_FUSION,
        pool: str = DEFAULT_POOL,
        own_labels: LabelSet | None = None,
        **embedding: Any,
    ) -> None:
        super().__init__(backbone, **embedding)
        self.templates, self.name, self.adapter = templates, backbone.name if name is None else name, adapter
        self.fusion, self.pool, self.own_labels = fusion, pool, own_labels

    def classify(
        self,
        paths: Inputs,
        labels: Labels | None = None,
        *,
        modality: str = "av",
        fusion: str | None = None,
        pool: str | None = None,
        batch_size: int | str = "auto",
        workers: int = 2,
        frame_backend: str = "auto",
        segments: bool = True,
        reject: bool = False,
        multi_label: bool = False,
        progress: bool | Callable[[int, int], object] = False,
    ) -> Results:
        """Classify files, pictures or arrays.

        Args:
            paths: What to classify: see :data:`Inputs`. Inputs in memory are called ``input 1``, ``input 2``, ...
            labels: Labels to choose from; a dictionary gives the wording of each. None: those of the few-shot run that
                was loaded.
            modality: ``"av"``, ``"visual"`` or ``"audio"``. With ``"av"`` a file that has only one of them is
                classified by that one alone, with a warning.
            fusion: ``"weighted"``: as published, the surer modality weighs more. ``"product"``: the normalised product
                of the probabilities. None: this classifier's own, ``"weighted"`` unless an adapter says otherwise.
            pool: ``"event"``, which discounts seconds in which nothing happens, or ``"mean"`` over the seconds as
                published. None: this classifier's own, ``"event"`` unless an adapter says otherwise.
            batch_size: Segments (seconds of clips, from one or several files) that go through a tower at once;
                ``"auto"``: what suits the device. When a GPU runs out of memory the size is halved, and it goes on.
            workers: Processes that decode ahead; 0 decodes in this one.
            frame_backend: ``"auto"``, ``"decord"`` or ``"pyav"``.
            segments: Whether to say what each second holds.
            reject: Answer ``"unknown"`` where a clip is like nothing that a few-shot run has learnt; the threshold
                keeps 95 % of left-out clips.
            multi_label: Also give all labels that a clip carries (:attr:`ClipResult.labels`): by thresholds that a
                few-shot run has from left-out clips; else those that stand out among the labels.
            progress: Show a bar; or a function that is called after each file with how many are done, of how many.

        Returns:
            A :class:`ClipResult` or a :class:`Failure` (its ``ok`` is False) for each file, in order.

        Raises:
            UsageError: An argument is wrong.
        """
        options = {"modality": modality, "fusion": fusion, "pool": pool, "batch_size": batch_size, "workers": workers}
        options |= {"frame_backend": frame_backend, "segments": segments, "progress": progress}
        options |= {"reject": reject, "multi_label": multi_label}
        with contextlib.closing(self.iter_classify(paths, labels, **options)) as results:
            return Results(results)

    def iter_classify(
        self,
        paths: Inputs,
        labels: Labels | None = None,
        *,
        modality: str = "av",
        fusion: str | None = None,
        pool: str | None = None,
        batch_size: int | str = "auto",
        workers: int = 2,
        frame_backend: str = "auto",
        segments: bool = True,
        reject: bool = False,
        multi_label: bool = False,
        progress: bool | Callable[[int, int], object] = False,
    ) -> Generator[ClipResult | Failure, None, None]:
        """Classify files one after another; see :meth:`classify`.

        Results come in order, each as soon as it is known. Closing the iterator stops the decoding processes. Arguments
        are checked (a :class:`UsageError` where one is wrong), and labels encoded, before this returns.
        """
        asked = self.own_labels if labels is None else labels
        if asked is None:
            raise UsageError("Which labels?", hint="Give a list of labels, or load a few-shot run: load(adapter=RUN).")
        labels = label_set(asked)
        fusion, pool = fusion or self.fusion, pool or self.pool
        check_choice("fusion", fusion, FUSIONS)
        check_choice("pool", pool, POOLS)
        files, total = self._embed_inputs(self._scored, paths, modality, batch_size, workers, frame_backend)
        head = self._head(labels, modality, fusion, pool, reject=reject)
        results = self._results(files, head, segments, multi_label)
        return _counted(results, total, progress) if progress else results

    def embed_labels(self, labels: Labels) -> tuple[Tensor, Tensor]:
        """Features of K labels in the two spaces, averaged over the templates; projected by the trained model, if any.

        Returns:
            Unit vectors float32 ``[K, D_v]`` and ``[K, D_a]``, on the CPU, to compare with those of :meth:`embed`.
        """
        wordings = label_set(labels).wordings
        visual = label_features(self.backbone.visual_text, wordings, self.templates.visual)
        audio = label_features(self.backbone.audio_text, wordings, self.templates.audio)
        with torch.no_grad():
            texts = ClassTexts(visual, audio).projected(self.model, anchored=False).to("cpu")
        return texts.visual, texts.audio

    def unknown_words(self, labels: Labels) -> list[str]:
        """Words of the wordings that the backbone never met, where that is known (``tiny``), in order."""
        wordings = label_set(labels).wordings
        branches = (self.backbone.visual_text, self.backbone.audio_text)
        return list(dict.fromkeys(word for branch in branches for word in branch.unknown_words(wordings)))

    def info(
        self,
        labels: Labels,
        *,
        fusion: str | None = None,
        pool: str | None = None,
        reject: bool = False,
        multi_label: bool = False,
    ) -> RunInfo:
        """What a run with these labels is made of, with warnings about words and texts that the encoders lose."""
        labels = label_set(labels)
        warnings = text_warnings(self.backbone, labels.names, labels.wordings, self.templates)
        if self.own_labels is None and (words := self.unknown_words(labels)):
            warnings.append(
                f"The backbone {self.name} does not know {'this word' if len(words) == 1 else 'these words'}: "
                f"{', '.join(words)}. What it says about labels with {'it' if len(words) == 1 else 'them'} is a guess."
            )
        return RunInfo(
            backbone=self.name,
            adapter=self.adapter,
            labels=list(labels.names),
            wordings=list(labels.wordings),
            device=str(self.device),
            precision=self.precision,
            fusion=fusion or self.fusion,
            pool=pool or self.pool,
            warnings=warnings,
            multi_label=multi_label,
            reject=rejector(self.learned, labels.names).reject if reject else None,
        )

    def _results(
        self, files: Embedded, head: ZeroShotHead, segments: bool, multi_label: bool
    ) -> Generator[ClipResult | Failure, None, None]:
        with contextlib.closing(files):
            for file in files:
                if isinstance(file, Failure):
                    yield file
                    continue
                with one_thread():
                    result = head.result(file, segments=segments)
                yield dataclasses.replace(result, labels=head.labels_of(result)) if multi_label else result

    def _head(
        self,
        labels: LabelSet,
        modality: str,
        fusion: str,
        pool: str,
        *,
        reject: bool = False,
        learned: LearnedRun | None = None,
    ) -> ZeroShotHead:
        if self.tuned is not None and learned is None:
            if reject:
                rejector(None, labels.names)
            method = self.tuned.method(self.backbone, labels.wordings)
            return TunedHead(method, labels.names, modality=modality, fusion=fusion, pool=pool)
        texts = class_texts(self.backbone, labels.wordings, self.templates, names=labels.names, modality=modality)
        spaces = []
        both = isinstance(self._scored, EnsembleModel)
        if self.blend < 1 or both:
            spaces.append((texts, (self.backbone.visual_scale, self.backbone.audio_scale)))
        if self.blend > 0 or both:
            spaces.append(texts.space_of(self.model))
        head = ZeroShotHead(labels.names, spaces, self.blend, modality=modality, fusion=fusion, pool=pool)
        learned = learned or self.learned
        if learned is None:
            if reject:
                rejector(None, labels.names)
            return head
        if fusion == self.fusion:  # which may be a trained model's own
            fusion = learned.scorer.texts.fusion
        features = self.label_features(labels.names, labels.wordings, fusion=fusion, pool=pool)
        return LearnedHead(learned, features, head, self.dims, reject=reject)

    def label_features(
        self, names: Sequence[str], wordings: Sequence[str], *, fusion: str | None = None, pool: str | None = None
    ) -> LabelFeatures:
        """Texts of labels as few-shot methods take them, in the spaces of the frozen towers."""
        texts = class_texts(self.backbone, wordings, self.templates, names=names)
        return texts.for_methods(self.backbone, fusion=fusion or self.fusion, pool=pool or self.pool)

    def head(self, labels: Labels, *, modality: str = "av", learned: LearnedRun | None = None) -> ZeroShotHead:
        """What makes results of the embeddings of :meth:`embed_files`; by `learned` in the place of the run's own."""
        return self._head(label_set(labels), modality, self.fusion, self.pool, learned=learned)


def _counted(
    results: Generator[ClipResult | Failure, None, None], total: int, progress: bool | Callable[[int, int], object]
) -> Generator[ClipResult | Failure, None, None]:
    with contextlib.closing(results):
        if not callable(progress):
            from tqdm.auto import tqdm

            yield from tqdm(results, total=total, unit="clip")
            return
        for done, result in enumerate(results, start=1):
            progress(done, total)
            yield result
