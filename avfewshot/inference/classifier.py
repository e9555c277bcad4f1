"""Classification of video and audio files with any labels: the Python interface, and what the command line runs."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.text import label_features
from avfewshot.errors import MediaError, UsageError
from avfewshot.inference.devices import PRECISIONS, keep_float32, one_thread
from avfewshot.inference.embedding_cache import Embedded, EmbeddingCache, LookUp, embed_cached, embedding_identity
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.head import LearnedHead, LearnedRun, TunedHead, TunedRun, TunedTowers, ZeroShotHead, rejector
from avfewshot.inference.inputs import expand, is_single, names_many, read_items
from avfewshot.inference.logits import class_texts, text_warnings
from avfewshot.inference.results import ClipResult, Failure, Results, RunInfo
from avfewshot.labels import LabelSet
from avfewshot.media.clip import Clip
from avfewshot.media.reader import MODALITIES, check_options
from avfewshot.methods.base import LabelFeatures
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import EnsembleModel
from avfewshot.models.fusion import FUSIONS, POOLS
from avfewshot.prompts import Templates

DEFAULT_FUSION = "weighted"
DEFAULT_POOL = "event"


@dataclass(frozen=True)
class Embeddings:
    """What a model makes of a file: unit vectors float32 on the CPU, one a second."""

    visual: Tensor | None  # [T, D_v]; None without video
    audio: Tensor | None  # [T, D_a]; None without sound
    path: str = ""  # as it was named
    audio_windows: Tensor | None = None  # [T, D_a]: of each second's window as a whole; with audio_context="clip" alone
    ok: ClassVar[bool] = True


Inputs = Any
"""A path (of a file, a folder or a glob), a PIL image, an array or a tensor of frames, sound with its rate; or several.

Frames are uint8 ``[T, H, W, 3]`` or ``[T, 3, H, W]``, RGB, one a second. Sound is ``(waveform, rate)``, floats in
[-1, 1] or integers, ``[samples]`` or ``[channels, samples]``.
Both together are ``dict(frames=..., waveform=..., rate=...)``.
"""

Labels = LabelSet | Sequence[str] | Mapping[str, str]
"""Names, or a dictionary with the wording of each name."""


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
        cache: Keep what the frozen towers make of files on disk: the next run over them needs no decoding. With a
            trained model in play, nothing is kept.
        learned: A fitted few-shot method, which then gives the answers; `model` is its tuned part, if it has one.
        tuned: A method that was tuned through the towers (CoOp, CoCoOp, MaPLe, CLIP-LoRA), which then gives the
            answers; :meth:`embed` stays with the frozen towers.
        own_labels: Classes that :meth:`classify` takes where it is given no labels.
        audio_context: How the frozen towers hear, see :class:`~avfewshot.inference.features.Embedder`; models that were
            trained through the towers hear each second alone.

    Attributes:
        own_labels: The classes of the run that was loaded; None for a classifier of any labels.
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
        cache: bool = False,
        learned: LearnedRun | None = None,
        tuned: TunedRun | None = None,
        own_labels: LabelSet | None = None,
        audio_context: str = "second",
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
        self._plain = plain = AudioVisualModel(self.backbone)
        self.model = plain if model is None else model.to(self.device).eval()
        self.adapter = adapter
        self.blend = 0.0 if model is None else float(blend)
        self.window = window
        self.fusion = fusion
        self.pool = pool
        self.audio_context = audio_context
        self._cache = None
        if cache and self.blend == 0:
            about = {"used by": "classifier", "backbone": backbone.name}
            self._cache = EmbeddingCache(about | self.embedding_identity)
        # A share of all or nothing needs one model alone.
        alone = {0.0: plain, 1.0: self.model}
        self.learned = learned
        self._scored = alone.get(self.blend) or EnsembleModel(plain, self.model)
        if learned is not None and model is not None:
            self._scored = EnsembleModel(plain, self.model)  # the method reads the frozen towers' embeddings
        self.own_labels = own_labels
        self.tuned, self._method = tuned, None
        if tuned is not None:
            self._method = tuned.method(self.backbone)
            if self._method.uses_pixels:
                self._scored, self._cache = TunedTowers(self._method), None

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
        are checked, and labels encoded, before this returns.
        """
        asked = self.own_labels if labels is None else labels
        if asked is None:
            raise UsageError("Which labels?", hint="Give a list of labels, or load a few-shot run: load(adapter=RUN).")
        labels = _label_set(asked)
        fusion, pool = fusion or self.fusion, pool or self.pool
        _check("fusion", fusion, FUSIONS)
        _check("pool", pool, POOLS)
        files, total = self._embed_inputs(self._scored, paths, modality, batch_size, workers, frame_backend)
        head = self._head(labels, modality, fusion, pool, reject=reject)
        results = self._results(files, head, segments, multi_label)
        return _counted(results, total, progress) if progress else results

    def embed(
        self,
        paths: Inputs,
        *,
        modality: str = "av",
        batch_size: int | str = "auto",
        workers: int = 1,
        frame_backend: str = "auto",
    ) -> Embeddings | list[Embeddings | Failure]:
        """Embed second by second: by the trained model, where there is one. Arguments are as for :meth:`classify`.

        Returns:
            The embeddings of one file, picture or array; a list for several, for a folder and for a glob.

        Raises:
            MediaError: The only file cannot be read or embedded; among several, a :class:`Failure` stands for it.
            UsageError: An argument is wrong.
        """
        files, _ = self._embed_inputs(self.model, paths, modality, batch_size, workers, frame_backend)
        with contextlib.closing(files):
            found = [
                f if isinstance(f, Failure) else Embeddings(f.visual, f.audio, f.path, f.audio_windows) for f in files
            ]
        if not is_single(paths) or names_many(paths):
            return found
        if isinstance(found[0], Failure):
            raise MediaError(found[0].path, found[0].error)
        return found[0]

    def embed_labels(self, labels: Labels) -> tuple[Tensor, Tensor]:
        """Features of K labels in the two spaces, averaged over the templates; projected by the trained model, if any.

        Returns:
            Unit vectors float32 ``[K, D_v]`` (to compare with :attr:`Embeddings.visual`) and ``[K, D_a]``, on the CPU.
        """
        wordings = _label_set(labels).wordings
        visual = label_features(self.backbone.visual_text, wordings, self.templates.visual)
        audio = label_features(self.backbone.audio_text, wordings, self.templates.audio)
        with torch.no_grad():
            visual, audio = self.model.project_texts(visual, audio)
        assert visual is not None
        assert audio is not None
        return visual.cpu(), audio.cpu()

    def unknown_words(self, labels: Labels) -> list[str]:
        """Words of the wordings that the backbone never met, where that is known (``tiny``), in order."""
        wordings = _label_set(labels).wordings
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
        labels = _label_set(labels)
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

    def _embed_inputs(
        self,
        model: AudioVisualModel | EnsembleModel | TunedTowers,
        inputs: Inputs,
        modality: str,
        batch_size: int | str,
        workers: int,
        frame_backend: str,
        *,
        watch: Callable[[Clip], object] | None = None,
    ) -> tuple[Embedded, int]:
        """Embeddings of all that is named, and how many there will be."""
        _check("modality", modality, MODALITIES)
        check_options(modality, frame_backend)
        if batch_size != "auto" and not (type(batch_size) is int and batch_size >= 1):
            raise UsageError(f"A batch size is a whole number from 1 on, or auto, not {batch_size!r}.")
        if not (type(workers) is int and workers >= 0):
            raise UsageError(f"workers must be a whole number, at least 0, not {workers!r}.")
        size = int(self.backbone.visual.image_size)
        items = expand(inputs, frame_size=size, modality=modality)
        options = {"frame_size": size, "modality": modality, "frame_backend": frame_backend, "workers": workers}

        def embed(items: Sequence[Path | str | Clip]) -> Embedded:
            clips = read_items(items, **options)
            clips = clips if watch is None else _watched(clips, watch)
            embedder = Embedder(
                model,
                self.device,
                None if batch_size == "auto" else batch_size,
                window=self.window,
                audio_context=self.audio_context if model is self._plain else "second",
            )
            with contextlib.closing(clips), contextlib.closing(embedder.embed(clips)) as files:
                yield from files

        cached = modality == "av" and frame_backend == "auto" and model is self._scored and watch is None
        return embed_cached(items, embed, self._cache if cached else None), len(items)

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
            with torch.no_grad():
                scales = self.model.temperatures.scale("visual").item(), self.model.temperatures.scale("audio").item()
                spaces.append((texts.projected(self.model).to("cpu"), scales))
        head = ZeroShotHead(labels.names, spaces, self.blend, modality=modality, fusion=fusion, pool=pool)
        learned = learned or self.learned
        if learned is None:
            if reject:
                rejector(None, labels.names)
            return head
        features = self.label_features(labels.names, labels.wordings, fusion=fusion, pool=pool)
        return LearnedHead(learned, features, head, self.dims, reject=reject)

    def label_features(
        self, names: Sequence[str], wordings: Sequence[str], *, fusion: str | None = None, pool: str | None = None
    ) -> LabelFeatures:
        """Texts of labels as few-shot methods take them, in the spaces of the frozen towers."""
        texts = class_texts(self.backbone, wordings, self.templates, names=names)
        return LabelFeatures.with_background(
            names,
            texts.visual.double().numpy(),
            texts.audio.double().numpy(),
            scales=(self.backbone.visual_scale, self.backbone.audio_scale),
            fusion=fusion or self.fusion,
            pool=pool or self.pool,
        )

    def embed_frozen(self, paths: Inputs) -> list[EmbeddedFile | Failure]:
        """What the frozen towers make of files, for few-shot methods: an entry for each."""
        with contextlib.closing(self.iter_embed(paths)) as files:
            return list(files)

    def iter_embed(
        self,
        paths: Inputs,
        *,
        batch_size: int | str = "auto",
        workers: int = 2,
        frame_backend: str = "auto",
        watch: Callable[[Clip], object] | None = None,
    ) -> Embedded:
        """What the frozen towers make of files, one after another; arguments are as for :meth:`classify`.

        `watch` is called with each decoded part of a file before it is embedded; nothing comes from the cache then.
        """
        return self._embed_inputs(self._plain, paths, "av", batch_size, workers, frame_backend, watch=watch)[0]

    @property
    def embedding_identity(self) -> dict[str, str]:
        """What the embeddings of the frozen towers depend on beside the files."""
        return embedding_identity(self.backbone, self.precision, self.audio_context)

    def look_up(self, cache: LookUp) -> bool:
        """Have embeddings of files looked up elsewhere first, such as by :meth:`avfewshot.Store.cache`.

        False where a trained model has to look at the files themselves.
        """
        if self._scored is not self._plain:
            return False
        self._cache = cache(self.embedding_identity, self._cache)
        return True

    @property
    def dims(self) -> tuple[int, int]:
        """Widths of the frozen towers' embeddings of sight and sound."""
        return self.backbone.visual.output_dim, self.backbone.audio.output_dim

    @property
    def embeds_frozen(self) -> bool:
        """Whether :meth:`embed_files` gives what the frozen towers say, first or alone: few-shot methods need it."""
        return self.tuned is None and (self.blend == 0 or isinstance(self._scored, EnsembleModel))

    def embed_files(
        self, paths: Inputs, *, modality: str = "av", batch_size: int | str = "auto", frame_backend: str = "auto"
    ) -> Embedded:
        """Embeddings of files in order, for :meth:`head`."""
        return self._embed_inputs(self._scored, paths, modality, batch_size, 2, frame_backend)[0]

    def head(self, labels: Labels, *, modality: str = "av", learned: LearnedRun | None = None) -> ZeroShotHead:
        """What makes results of the embeddings of :meth:`embed_files`; by `learned` in the place of the run's own."""
        return self._head(_label_set(labels), modality, self.fusion, self.pool, learned=learned)


def _watched(
    clips: Generator[Clip | Failure, None, None], watch: Callable[[Clip], object]
) -> Generator[Clip | Failure, None, None]:
    with contextlib.closing(clips):
        for clip in clips:
            if isinstance(clip, Clip):
                watch(clip)
            yield clip


def _label_set(labels: Labels) -> LabelSet:
    if isinstance(labels, LabelSet):
        return labels
    if isinstance(labels, Mapping):
        return LabelSet.from_wordings(labels)
    if not isinstance(labels, (str, Iterable)) or isinstance(labels, bytes):
        raise UsageError(f"Labels must be a list of texts, not {labels!r}.", hint="Write [label, ...].")
    return LabelSet.from_names(labels if isinstance(labels, str) else list(labels))


def _check(what: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise UsageError(f"There is no {what} {value!r}.", hint=f"Choose from: {', '.join(choices)}.")


def _counted(
    results: Generator[ClipResult | Failure, None, None], total: int, progress: bool | Callable[[int, int], object]
) -> Generator[ClipResult | Failure, None, None]:
    with contextlib.closing(results), contextlib.ExitStack() as stack:
        bar = None
        if not callable(progress):
            from tqdm.auto import tqdm

            bar = stack.enter_context(tqdm(total=total, unit="clip"))
        for done, result in enumerate(results, start=1):
            if bar is not None:
                bar.update()
            elif callable(progress):
                progress(done, total)
            yield result
