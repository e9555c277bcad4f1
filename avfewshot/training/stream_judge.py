"""Validation on a stream of clips, for data that has no files of its own, such as shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from avfewshot.data.clip_source import ClipSource, LabelledClip
from avfewshot.errors import AvfsError
from avfewshot.evaluation.observer import Observer
from avfewshot.evaluation.predictions import Decision
from avfewshot.evaluation.targets import Targets
from avfewshot.inference.features import EmbeddedFile, Embedder
from avfewshot.inference.logits import ClassTexts, ClipLogits, score_clip
from avfewshot.media.clip import Clip
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.training.selection import Verdict, judge, judge_zero_shot


class StreamJudge:
    """Judges models on the first clips of a seeded order of a source.

    Args:
        source: Validation clips, with one label each.
        decision: How logits become answers.
        zero_shot: The untrained model.
        texts: Features of the classes and of the background, on the CPU.
        scales: The untrained model's temperature scales.
        limit: Clips at most.
        share: Share of the trained logits, or ``"auto"``.
        device: Where the models are.
        window: Seconds that go through adapters together.
        autocast: Gives the context that computes in the run's precision.
        observer: Is told what happens.
    """

    def __init__(
        self,
        source: ClipSource,
        decision: Decision,
        zero_shot: AudioVisualModel,
        texts: ClassTexts,
        scales: tuple[float, float],
        *,
        limit: int,
        share: float | str,
        device: torch.device,
        window: int,
        autocast: Callable[[], AbstractContextManager[Any]],
        observer: Observer,
    ) -> None:
        self._source, self._decision, self._texts, self._share = source, decision, texts, share
        self._limit, self._device, self._window = min(limit, len(source)), device, window
        self._autocast, self._observer = autocast, observer
        self._labels: list[tuple[str, tuple[int, ...]]] = []
        self._zero = self._logits(zero_shot, texts, scales)
        rows = np.zeros((len(self._labels), texts.num_classes), dtype=bool)
        for row, (_, labels) in enumerate(self._labels):
            rows[row, list(labels)] = True
        self._targets = (
            Targets(
                tuple(name for name, _ in self._labels), source.classes, rows, multi_label=bool((rows.sum(1) > 1).any())
            )
            if self._labels
            else None
        )

    @property
    def num_clips(self) -> int:
        """Clips that are judged on."""
        return len(self._labels)

    def start(self) -> Verdict | None:
        """The verdict on the untrained model; None without any validation clip."""
        return None if self._targets is None else judge_zero_shot(self._decision, self._zero, self._targets)

    def __call__(self, model: AudioVisualModel, epoch: int) -> Verdict:
        """The verdict on a trained model, in evaluation mode; after how many epochs does not matter.

        Raises:
            ValueError: There are no validation clips.
        """
        if self._targets is None:
            raise ValueError("There are no validation clips.")
        with torch.inference_mode():
            projected = self._texts.projected(model).to("cpu")
            scales = model.temperatures.scale("visual").item(), model.temperatures.scale("audio").item()
        return judge(self._decision, self._zero, self._logits(model, projected, scales), self._targets, self._share)

    def _logits(self, model: AudioVisualModel, texts: ClassTexts, scales: tuple[float, float]) -> list[ClipLogits]:
        """Logits of all clips that can be read and embedded, which are the same ones for every model."""
        self._observer.begin("validation clips", self._limit)
        names: list[tuple[str, tuple[int, ...]]] = []
        files = []
        with self._autocast():
            for file in Embedder(model, self._device, window=self._window).embed(self._clips(names)):
                self._observer.advance()
                files.append(file)
        found = [
            (name, score_clip(file.visual, file.audio, texts, scales))
            for name, file in zip(names, files, strict=True)
            if isinstance(file, EmbeddedFile)
        ]
        if not self._labels:
            self._labels = [entry for entry, _ in found]
        if [entry for entry, _ in found] != self._labels:
            raise AvfsError(
                "Validation clips could be read when the training began, and cannot be read any more.",
                hint="Put the files back and go on with --resume.",
            )
        return [logits for _, logits in found]

    def _clips(self, names: list[tuple[str, tuple[int, ...]]]) -> Iterator[Clip]:
        for item in islice(self._source.stream(seed=0), self._limit):
            if isinstance(item, LabelledClip):
                names.append((item.id, item.labels))
                # Prepared clips may be the beginnings of files: here each is whole.
                yield Clip(
                    Path(item.id), item.clip.duration, 0, item.clip.frames, item.clip.waveform, item.clip.warnings
                )
