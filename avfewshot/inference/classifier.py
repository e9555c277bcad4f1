"""Classification of video and audio files with any labels: the Python interface, and what the command line runs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.label_features import label_features
from avfewshot.errors import MediaError, UsageError
from avfewshot.inference.devices import PRECISIONS, keep_float32
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.head import ZeroShotHead
from avfewshot.inference.logits import class_texts
from avfewshot.inference.results import ClipResult, Failure, RunInfo
from avfewshot.labels import LabelSet
from avfewshot.media.reader import MODALITIES
from avfewshot.media.stream import iter_clips
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.ensemble import EnsembleModel
from avfewshot.models.fusion import FUSIONS, POOLS
from avfewshot.prompts import Templates

DEFAULT_FUSION = "weighted"
DEFAULT_POOL = "event"


@dataclass(frozen=True)
class Embeddings:
    """What a model makes of a file.

    Attributes:
        visual: Unit vectors float32 ``[T, D_v]`` on the CPU, one a second; None without video.
        audio: Unit vectors float32 ``[T, D_a]``; None without sound.
    """

    visual: Tensor | None
    audio: Tensor | None


class Classifier:
    """Classifies files with any labels, by sight and sound.

    Args:
        backbone: Towers and text branches; moved to the device, in place.
        templates: Prompt templates.
        device: Where to compute.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``, for the towers; text branches and all that follows the towers
            stay in float32.
        name: How results call the backbone; its own name by default.
        model: A trained model, built on the towers of `backbone`; moved to the device, in place. None: the towers
            alone, which is zero-shot classification.
        adapter: How results call what was trained.
        blend: Share of the trained model's logits in [0, 1]; the others are the zero-shot ones. For each modality,
            ``(1 - blend) * zero_shot + blend * trained``.
        window: Seconds that go through the adapters together.
        fusion: What :meth:`classify` does unless told; see there.
        pool: Likewise.

    Attributes:
        model: The trained model, or the towers as one model.

    Raises:
        ValueError: `blend` or `window` is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        templates: Templates,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        name: str | None = None,
        model: AudioVisualModel | None = None,
        adapter: str | None = None,
        blend: float = 1.0,
        window: int = 10,
        fusion: str = DEFAULT_FUSION,
        pool: str = DEFAULT_POOL,
    ) -> None:
        if not 0 <= blend <= 1:
            raise ValueError(f"The share of the trained logits lies in [0, 1], it cannot be {blend}.")
        if window < 1:
            raise ValueError(f"A window has at least one second, not {window}.")
        keep_float32()
        self.device = torch.device(device)
        self.precision = precision
        self.templates = templates
        self.name = backbone.name if name is None else name
        self.backbone = backbone.to(self.device, PRECISIONS[precision])
        plain = AudioVisualModel(self.backbone)
        self.model = plain if model is None else model.to(self.device).eval()
        self.adapter = adapter
        self.blend = 0.0 if model is None else float(blend)
        self.window = window
        self.fusion = fusion
        self.pool = pool
        # A share of all or nothing needs one model alone.
        alone = {0.0: plain, 1.0: self.model}
        self._scored = alone.get(self.blend) or EnsembleModel(plain, self.model)

    def classify(
        self,
        paths: Iterable[str | os.PathLike[str]] | str | os.PathLike[str],
        labels: LabelSet | Sequence[str],
        *,
        modality: str = "av",
        fusion: str | None = None,
        pool: str | None = None,
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
                of the probabilities. None: this classifier's own, ``"weighted"`` unless an adapter says otherwise.
            pool: ``"event"``, which discounts seconds in which nothing happens, or ``"mean"`` over the seconds as
                published. None: this classifier's own, ``"event"`` unless an adapter says otherwise.
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
        fusion: str | None = None,
        pool: str | None = None,
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
        fusion, pool = fusion or self.fusion, pool or self.pool
        _check("fusion", fusion, FUSIONS)
        _check("pool", pool, POOLS)
        files = self._embed_files(self._scored, paths, modality, batch_size, workers, frame_backend)
        head = self._head(labels, modality, fusion, pool)
        return self._results(files, head, segments)

    def embed(self, path: str | os.PathLike[str], *, modality: str = "av", frame_backend: str = "auto") -> Embeddings:
        """Embed one file, second by second: by the trained model, where there is one.

        Args:
            path: The file.
            modality: ``"av"``, ``"visual"`` or ``"audio"``.
            frame_backend: ``"auto"``, ``"decord"`` or ``"pyav"``.

        Raises:
            MediaError: The file cannot be read or embedded.
        """
        with contextlib.closing(self._embed_files(self.model, [path], modality, "auto", 1, frame_backend)) as files:
            file = next(files)
        if isinstance(file, Failure):
            raise MediaError(file.path, file.error)
        return Embeddings(file.visual, file.audio)

    def embed_labels(self, labels: LabelSet | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Features of labels in the two spaces, averaged over the templates; projected by the trained model, if any.

        Args:
            labels: K labels.

        Returns:
            Unit vectors float32 ``[K, D_v]`` (to compare with :attr:`Embeddings.visual`) and ``[K, D_a]``, on the CPU.
        """
        wordings = _label_set(labels).wordings
        visual = label_features(self.backbone.visual_text, wordings, self.templates.visual)
        audio = label_features(self.backbone.audio_text, wordings, self.templates.audio)
        with torch.no_grad():
            visual, audio = self.model.project_texts(visual, audio)
        return visual.cpu(), audio.cpu()

    def unknown_words(self, labels: LabelSet | Sequence[str]) -> list[str]:
        """Words of the wordings that the backbone never met, where that is known (``tiny``), in order."""
        wordings = _label_set(labels).wordings
        branches = (self.backbone.visual_text, self.backbone.audio_text)
        return list(dict.fromkeys(word for branch in branches for word in branch.unknown_words(wordings)))

    def info(self, labels: LabelSet | Sequence[str], *, fusion: str | None = None, pool: str | None = None) -> RunInfo:
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
            adapter=self.adapter,
            labels=list(labels.names),
            wordings=list(labels.wordings),
            device=str(self.device),
            precision=self.precision,
            fusion=fusion or self.fusion,
            pool=pool or self.pool,
            warnings=warnings,
        )

    def _embed_files(
        self,
        model: AudioVisualModel | EnsembleModel,
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
        embedder = Embedder(model, self.device, None if batch_size == "auto" else batch_size, window=self.window)
        return _closing_both(embedder.embed(clips), clips)

    def _results(
        self, files: Iterator[EmbeddedFile | Failure], head: ZeroShotHead, segments: bool
    ) -> Iterator[ClipResult | Failure]:
        with contextlib.closing(files):
            for file in files:
                yield file if isinstance(file, Failure) else head.result(file, segments=segments)

    def _head(self, labels: LabelSet, modality: str, fusion: str, pool: str) -> ZeroShotHead:
        texts = class_texts(self.backbone, labels.wordings, self.templates, modality=modality)
        spaces = []
        if self.blend < 1:
            spaces.append((texts, (self.backbone.visual_scale, self.backbone.audio_scale)))
        if self.blend > 0:
            with torch.no_grad():
                scales = self.model.temperatures.scale("visual").item(), self.model.temperatures.scale("audio").item()
                spaces.append((texts.projected(self.model).to("cpu"), scales))
        return ZeroShotHead(labels.names, spaces, self.blend, modality=modality, fusion=fusion, pool=pool)


def _label_set(labels: LabelSet | Sequence[str]) -> LabelSet:
    return labels if isinstance(labels, LabelSet) else LabelSet.from_names(labels)


def _check(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"There is no {what} {value!r}.", hint=f"Choose from: {', '.join(choices)}.")


def _closing_both(outer: Iterator, inner: Iterator) -> Iterator:
    """Iterate over `outer`; when that ends or is given up, close `inner`, whose threads would go on otherwise."""
    with contextlib.closing(inner), contextlib.closing(outer):
        yield from outer
