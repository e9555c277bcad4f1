"""From files, pictures and arrays to embeddings: by frozen towers, and by what was trained through them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from avfewshot.encoders.backbone import Backbone
from avfewshot.encoders.tower import Pair
from avfewshot.errors import MediaError, UsageError, check_choice
from avfewshot.inference.devices import PRECISIONS, keep_float32
from avfewshot.inference.embedding_cache import Embedded, EmbeddingCache, LookUp, embed_cached, embedding_identity
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.inputs import Inputs, expand, is_single, names_many, read_items
from avfewshot.inference.results import Failure
from avfewshot.inference.runs import LearnedRun, TunedRun
from avfewshot.media.clip import MODALITIES as SIDES
from avfewshot.media.clip import Clip
from avfewshot.media.reader import MODALITIES, check_options
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.models.build import EnsembleModel
from avfewshot.tuning.methods import TunedMethod


class TunedTowers(nn.Module):
    """A tuned method's towers as the embedder takes a model: seconds in, unit vectors out."""

    adapters = None

    def __init__(self, method: TunedMethod) -> None:
        super().__init__()
        self.method = method

    def forward(self, frames: Tensor | None = None, audio: Tensor | None = None) -> Pair:
        """Unit vectors ``[B, T, D]`` of frames ``[B, T, 3, S, S]`` and of waveforms ``[B, T, samples]``."""
        pairs = zip(SIDES, (frames, audio), strict=True)
        visual, sound = (
            None if part is None else self.method.embed(name, part.flatten(0, 1)).unflatten(0, part.shape[:2])
            for name, part in pairs
        )
        return visual, sound


class FileEmbedder:
    """Embeds what files hold, second by second.

    Args:
        backbone: Towers and text branches; moved to the device, in place.
        device: Where to compute.
        precision: ``"fp32"``, ``"bf16"`` or ``"fp16"``, for the towers; text branches and all that follows the towers
            stay in float32.
        model: A trained model, built on the towers of `backbone`; moved to the device, in place. None: the towers
            alone.
        blend: Share of the trained model's logits in [0, 1]; the others are the zero-shot ones. For each modality,
            ``(1 - blend) * zero_shot + blend * trained``.
        window: Seconds that go through the adapters together.
        cache: Keep what the frozen towers make of files on disk: the next run over them needs no decoding. With a
            trained model in play, nothing is kept.
        learned: A fitted few-shot method, which reads the frozen towers' embeddings; `model` is its tuned part, if it
            has one.
        tuned: A method that was tuned through the towers (CoOp, CoCoOp, MaPLe, CLIP-LoRA); :meth:`embed` stays with the
            frozen towers.
        audio_context: How the frozen towers hear, see :class:`~avfewshot.inference.features.Embedder`; models that were
            trained through the towers hear each second alone.

    Attributes:
        model: The trained model, or the towers as one model.

    Raises:
        ValueError: `blend` or `window` is out of range.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        device: torch.device | str = "cpu",
        precision: str = "fp32",
        model: AudioVisualModel | None = None,
        blend: float = 1.0,
        window: int = 10,
        cache: bool = False,
        learned: LearnedRun | None = None,
        tuned: TunedRun | None = None,
        audio_context: str = "second",
    ) -> None:
        if not 0 <= blend <= 1:
            raise ValueError(f"The share of the trained logits lies in [0, 1], it cannot be {blend}.")
        if window < 1:
            raise ValueError(f"A window has at least one second, not {window}.")
        keep_float32()
        self.device, self.precision = torch.device(device), precision
        self.backbone = backbone.to(self.device, PRECISIONS[precision])
        self._plain = plain = AudioVisualModel(self.backbone)
        self.model = plain if model is None else model.to(self.device).eval()
        self.blend = 0.0 if model is None else float(blend)
        self.window, self.audio_context, self.learned, self.tuned = window, audio_context, learned, tuned
        self._cache = None
        if cache and self.blend == 0:
            about = {"used by": "classifier", "backbone": backbone.name}
            self._cache = EmbeddingCache(about | self.embedding_identity)
        # A share of all or nothing needs one model alone.
        self._scored = {0.0: plain, 1.0: self.model}.get(self.blend) or EnsembleModel(plain, self.model)
        if learned is not None and model is not None:
            self._scored = EnsembleModel(plain, self.model)  # the method reads the frozen towers' embeddings
        if tuned is not None and (method := tuned.method(self.backbone)).uses_pixels:
            self._scored, self._cache = TunedTowers(method), None

    def embed(
        self,
        paths: Inputs,
        *,
        modality: str = "av",
        batch_size: int | str = "auto",
        workers: int = 1,
        frame_backend: str = "auto",
    ) -> EmbeddedFile | list[EmbeddedFile | Failure]:
        """Embed second by second: by the trained model, where there is one; arguments as for ``Classifier.classify``.

        Returns:
            The embeddings of one file, picture or array; a list for several, for a folder and for a glob.

        Raises:
            MediaError: The only file cannot be read or embedded; among several, a :class:`Failure` stands for it.
            UsageError: An argument is wrong.
        """
        files, _ = self._embed_inputs(self.model, paths, modality, batch_size, workers, frame_backend)
        with contextlib.closing(files):
            found = list(files)
        if not is_single(paths) or names_many(paths):
            return found
        if isinstance(found[0], Failure):
            raise MediaError(found[0].path, found[0].error)
        return found[0]

    def iter_embed(
        self,
        paths: Inputs,
        *,
        batch_size: int | str = "auto",
        workers: int = 2,
        frame_backend: str = "auto",
        watch: Callable[[Clip], object] | None = None,
    ) -> Embedded:
        """What the frozen towers make of files, one after another; arguments are as for ``Classifier.classify``.

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
        self._cache = cache(self.embedding_identity, self.dims, self._cache)
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
        """Embeddings of files in order, for ``Classifier.head``."""
        return self._embed_inputs(self._scored, paths, modality, batch_size, 2, frame_backend)[0]

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
        check_choice("modality", modality, MODALITIES)
        check_options(modality, frame_backend)
        if batch_size != "auto" and not (type(batch_size) is int and batch_size >= 1):
            raise UsageError(f"A batch size is a whole number from 1 on, or auto, not {batch_size!r}.")
        if not (type(workers) is int and workers >= 0):
            raise UsageError(f"workers must be a whole number, at least 0, not {workers!r}.")
        size = int(self.backbone.visual.image_size)
        items = expand(inputs, frame_size=size, modality=modality)
        options = {"frame_size": size, "modality": modality, "frame_backend": frame_backend, "workers": workers}

        def embed(items: Sequence[Path | str | Clip]) -> Embedded:
            clips = read_items(items, watch=watch, **options)
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
