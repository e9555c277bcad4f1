"""Zero-shot classification of video and audio files: the Python interface, and what the command line runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from avfewshot.devices import PRECISIONS, resolve_device, resolve_precision
from avfewshot.embedder import EmbeddedFile, Embedder
from avfewshot.encoders.backbone import Backbone, build_backbone
from avfewshot.encoders.label_features import label_features
from avfewshot.encoders.text import TextBranch
from avfewshot.errors import MediaError, UsageError
from avfewshot.labels import LabelSet
from avfewshot.matching import FUSIONS, POOLS, ClipPrediction, predict_clips
from avfewshot.media.prefetch import iter_clips
from avfewshot.media.reader import MODALITIES
from avfewshot.model import AudioVisualModel
from avfewshot.prompts import Templates, load_templates
from avfewshot.results import ClipResult, Failure, RunInfo, SegmentResult

DEFAULT_FUSION = "weighted"
DEFAULT_POOL = "event"


@dataclass(frozen=True)
class Embeddings:
    """What the towers make of a file.

    Attributes:
        visual: Unit vectors float32 ``[T, D_v]`` on the CPU, one a second; None without video.
        audio: Unit vectors float32 ``[T, D_a]``; None without sound.
    """

    visual: Tensor | None
    audio: Tensor | None


def load(
    backbone: str | os.PathLike[str] = "base",
    *,
    device: str = "auto",
    weights: str = "pretrained",
    precision: str = "auto",
    seed: int = 0,
    clip_weights: str | os.PathLike[str] | None = None,
    clap_weights: str | os.PathLike[str] | None = None,
    roberta: str | os.PathLike[str] | None = None,
    templates: str | os.PathLike[str] | None = None,
) -> Classifier:
    """Load a classifier. The network is never asked: `avfs weights fetch` brings the weights.

    Args:
        backbone: Preset (``"base"``, ``"large"``, ``"tiny"``) or a YAML file.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:N"`` or ``"mps"``.
        weights: ``"pretrained"``, or ``"random"`` to try things out: meaningless results.
        precision: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``.
        seed: Of random weights.
        clip_weights: CLIP checkpoint by path, instead of the preset's.
        clap_weights: CLAP checkpoint by path, instead of the preset's.
        roberta: Folder with RoBERTa's tokenizer files, instead of those in the hub's cache.
        templates: Prompt templates: a packaged name or a file; None: those that fit the backbone.

    Returns:
        A classifier.

    Raises:
        UsageError: An argument is wrong.
        WeightsError: Weights are missing, damaged, unsafe or of another architecture.
    """
    # Everything cheap is checked before the weights are read.
    place = resolve_device(device)
    form = resolve_precision(precision, place)
    prompts = None if templates is None else load_templates(templates)
    built = build_backbone(
        backbone,
        weights=weights,
        seed=seed,
        clip_weights=clip_weights,
        clap_weights=clap_weights,
        roberta=roberta,
    )
    name = os.fspath(backbone)
    return Classifier(built, prompts or load_templates(built.templates), device=place, precision=form, name=name)


class Classifier:
    """Classifies files with any labels, by sight and sound.

    Args:
        backbone: Towers and text branches; moved to the device, in place.
        templates: Prompt templates.
        device: Where to compute.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``, for the towers; text branches and all that follows the towers
            stay in float32.
        name: How results call the backbone; its own name by default.

    Attributes:
        model: The towers as one model.
    """

    def __init__(
        self,
        backbone: Backbone,
        templates: Templates,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        name: str | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.precision = precision
        self.templates = templates
        self.name = backbone.name if name is None else name
        self.backbone = backbone.to(self.device, PRECISIONS[precision])
        self.model = AudioVisualModel(self.backbone)

    def classify(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        labels: LabelSet | Sequence[str],
        *,
        modality: str = "av",
        fusion: str = DEFAULT_FUSION,
        pool: str = DEFAULT_POOL,
        batch_size: int | str = "auto",
        workers: int = 2,
        frame_backend: str = "auto",
        segments: bool = True,
    ) -> list[ClipResult | Failure]:
        """Classify files.

        Args:
            paths: Files, or a single one. `avfewshot.media.discover.find_media` expands folders and globs.
            labels: Labels to choose from.
            modality: ``"av"``, ``"visual"`` or ``"audio"``. With ``"av"`` a file that has only one of them is
                classified by that one alone, with a warning.
            fusion: ``"weighted"``: as published, the surer modality weighs more. ``"product"``: the normalised product
                of the probabilities.
            pool: ``"event"``, which discounts seconds in which nothing happens, or ``"mean"`` over the seconds as
                published.
            batch_size: Segments (seconds of clips, from one or several files) that go through a tower at once;
                ``"auto"``: what suits the device. When a GPU runs out of memory the size is halved, and it goes on.
            workers: Threads that decode ahead.
            frame_backend: ``"auto"``, ``"decord"`` or ``"pyav"``.
            segments: Whether to say what each second holds.

        Returns:
            A :class:`ClipResult` or a :class:`Failure` for each file, in order.

        Raises:
            UsageError: An argument is wrong.
        """
        options = {"modality": modality, "fusion": fusion, "pool": pool, "batch_size": batch_size}
        options |= {"workers": workers, "frame_backend": frame_backend, "segments": segments}
        with contextlib.closing(self.iter_classify(paths, labels, **options)) as results:
            return list(results)

    def iter_classify(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        labels: LabelSet | Sequence[str],
        *,
        modality: str = "av",
        fusion: str = DEFAULT_FUSION,
        pool: str = DEFAULT_POOL,
        batch_size: int | str = "auto",
        workers: int = 2,
        frame_backend: str = "auto",
        segments: bool = True,
    ) -> Iterator[ClipResult | Failure]:
        """Classify files one after another; see :meth:`classify`.

        Results come in order, each as soon as it is known. Closing the iterator stops the decoding threads. Arguments
        are checked, and labels encoded, before this returns.
        """
        labels = _label_set(labels)
        _check("fusion", fusion, FUSIONS)
        _check("pool", pool, POOLS)
        files = self._embed_files(paths, modality, batch_size, workers, frame_backend)
        matcher = _Matcher(self, labels, modality, fusion, pool)
        return self._results(files, matcher, segments)

    def embed(self, path: str | os.PathLike[str], *, modality: str = "av", frame_backend: str = "auto") -> Embeddings:
        """Embed one file, second by second.

        Args:
            path: The file.
            modality: ``"av"``, ``"visual"`` or ``"audio"``.
            frame_backend: ``"auto"``, ``"decord"`` or ``"pyav"``.

        Raises:
            MediaError: The file cannot be read or embedded.
        """
        with contextlib.closing(self._embed_files([path], modality, "auto", 1, frame_backend)) as files:
            file = next(files)
        if isinstance(file, Failure):
            raise MediaError(file.path, file.error)
        return Embeddings(file.visual, file.audio)

    def embed_labels(self, labels: LabelSet | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features of labels in the two spaces, averaged over the templates.

        Args:
            labels: K labels.

        Returns:
            Unit vectors float32 ``[K, D_v]`` (to compare with :attr:`Embeddings.visual`) and ``[K, D_a]``, on the CPU.
        """
        wordings = _label_set(labels).wordings
        visual = label_features(self.backbone.visual_text, wordings, self.templates.visual)
        audio = label_features(self.backbone.audio_text, wordings, self.templates.audio)
        return visual.cpu(), audio.cpu()

    def unknown_words(self, labels: LabelSet | Sequence[str]) -> list[str]:
        """Words of the wordings that the backbone never met, where that is known (``tiny``), in order."""
        wordings = _label_set(labels).wordings
        branches = (self.backbone.visual_text, self.backbone.audio_text)
        return list(dict.fromkeys(word for branch in branches for word in branch.unknown_words(wordings)))

    def info(
        self, labels: LabelSet | Sequence[str], *, fusion: str = DEFAULT_FUSION, pool: str = DEFAULT_POOL
    ) -> RunInfo:
        """What a run with these labels is made of, for reports; with a warning about words that are not known."""
        labels = _label_set(labels)
        warnings = []
        if words := self.unknown_words(labels):
            warnings.append(
                f"The backbone {self.name} does not know {'this word' if len(words) == 1 else 'these words'}: "
                f"{', '.join(words)}. What it says about labels with {'it' if len(words) == 1 else 'them'} is a guess."
            )
        return RunInfo(
            backbone=self.name,
            adapter=None,
            labels=list(labels.names),
            wordings=list(labels.wordings),
            device=str(self.device),
            precision=self.precision,
            fusion=fusion,
            pool=pool,
            warnings=warnings,
        )

    def _embed_files(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        modality: str,
        batch_size: int | str,
        workers: int,
        frame_backend: str,
    ) -> Iterator[EmbeddedFile | Failure]:
        _check("modality", modality, MODALITIES)
        if batch_size != "auto" and not (isinstance(batch_size, int) and batch_size >= 1):
            raise UsageError(f"A batch size is a whole number from 1 on, or auto, not {batch_size!r}.")
        paths = [paths] if isinstance(paths, (str, os.PathLike)) else paths
        clips = iter_clips(
            [Path(path) for path in paths],
            frame_size=self.model.visual_tower.image_size,
            modality=modality,
            frame_backend=frame_backend,
            workers=workers,
        )
        embedder = Embedder(self.model, self.device, None if batch_size == "auto" else batch_size)
        return _closing_both(embedder.embed(clips), clips)

    def _results(
        self, files: Iterator[EmbeddedFile | Failure], matcher: _Matcher, segments: bool
    ) -> Iterator[ClipResult | Failure]:
        with contextlib.closing(files):
            for file in files:
                yield file if isinstance(file, Failure) else matcher.result(file, segments)


class _Matcher:
    """Compares embeddings with the labels of a run."""

    def __init__(self, classifier: Classifier, labels: LabelSet, modality: str, fusion: str, pool: str) -> None:
        backbone, templates = classifier.backbone, classifier.templates
        self.names = labels.names
        self.modality = modality
        self.options = {"fusion": fusion, "pool": pool}
        # Features of a modality that is not asked for are not computed.
        self.texts: dict[str, Tensor] = {}
        self.background: dict[str, Tensor] = {}
        if modality != "audio":
            self._add("visual", backbone.visual_text, backbone.visual_scale, labels, templates)
        if modality != "visual":
            self._add("audio", backbone.audio_text, backbone.audio_scale, labels, templates)

    def _add(self, name: str, branch: TextBranch, scale: float, labels: LabelSet, templates: Templates) -> None:
        features = label_features(branch, labels.wordings, getattr(templates, name))
        # Float64 from here on: these are small matrices, and what is written down should sum to 1.
        self.texts[name] = scale * features.cpu().double()
        if self.options["pool"] == "event":
            self.background[name] = scale * background_feature(branch, getattr(templates, f"background_{name}"))

    def result(self, file: EmbeddedFile, segments: bool) -> ClipResult:
        prediction = self._predict(file)
        scores = prediction.probabilities.tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        return ClipResult(
            path=file.path,
            duration=file.duration,
            label=self.names[best],
            score=scores[best],
            scores=dict(zip(self.names, scores, strict=True)),
            visual=self._by_name(prediction.visual),
            audio=self._by_name(prediction.audio),
            weights=_weights(prediction.weights.tolist()),
            segments=self._segments(file, prediction) if segments else [],
            warnings=self._warnings(file),
        )

    def _predict(self, file: EmbeddedFile) -> ClipPrediction:
        logits, backgrounds = {}, {}
        for name in ("visual", "audio"):
            embeddings = getattr(file, name)
            if embeddings is not None:
                logits[name] = embeddings.double() @ self.texts[name].T
                if name in self.background:
                    backgrounds[name] = embeddings.double() @ self.background[name]
        return predict_clips(
            logits.get("visual"),
            logits.get("audio"),
            visual_background=backgrounds.get("visual"),
            audio_background=backgrounds.get("audio"),
            **self.options,
        )

    def _segments(self, file: EmbeddedFile, prediction: ClipPrediction) -> list[SegmentResult]:
        results = []
        rows = zip(prediction.segment_probabilities.tolist(), prediction.segment_weights.tolist(), strict=True)
        for index, (scores, weights) in enumerate(rows):
            best = max(range(len(scores)), key=scores.__getitem__)
            end = min(index + 1.0, file.duration) if file.duration > index else index + 1.0
            results.append(SegmentResult(float(index), end, self.names[best], scores[best], _weights(weights), scores))
        return results

    def _by_name(self, probabilities: Tensor | None) -> dict[str, float] | None:
        return None if probabilities is None else dict(zip(self.names, probabilities.tolist(), strict=True))

    def _warnings(self, file: EmbeddedFile) -> list[str]:
        warnings = list(file.warnings)
        if self.modality == "av" and (file.visual is None or file.audio is None):
            warnings.append(f"classified by {'sound' if file.visual is None else 'sight'} alone")
        return warnings


def background_feature(branch: TextBranch, texts: Sequence[str]) -> Tensor:
    """The mean of the unit vectors of texts that say that nothing happens, scaled to length one.

    Args:
        branch: A text branch.
        texts: At least one.

    Returns:
        Float64 ``[D]`` on the CPU.
    """
    features = label_features(branch, texts, ("{}",))
    return F.normalize(features.cpu().double().mean(0), dim=-1)


def _weights(shares: list[float]) -> dict[str, float]:
    return {"visual": shares[0], "audio": shares[1]}


def _label_set(labels: LabelSet | Sequence[str]) -> LabelSet:
    return labels if isinstance(labels, LabelSet) else LabelSet.from_names(labels)


def _check(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"There is no {what} {value!r}.", hint=f"Choose from: {', '.join(choices)}.")


def _closing_both(outer: Iterator, inner: Iterator) -> Iterator:
    """Iterate over `outer`; when that ends or is given up, close `inner`, whose threads would go on otherwise."""
    with contextlib.closing(inner), contextlib.closing(outer):
        yield from outer
