"""What a few-shot run learnt, put to work: results by its fitted method, on embeddings of the frozen towers."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avfewshot.errors import DataError
from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.head import ZeroShotHead
from avfewshot.inference.results import ClipResult, SegmentResult
from avfewshot.methods.base import Features, LabelFeatures, log_softmax
from avfewshot.methods.method import CONFIG_NAME as SCORER_NAME
from avfewshot.methods.method import Scorer
from avfewshot.models.checkpoint import CONFIG_NAME, AdapterCheckpoint, AdapterConfig, numbered, read_json


@dataclass(frozen=True, eq=False)
class LearnedRun(AdapterCheckpoint):
    """A fitted method and what it belongs to."""

    scorer: Scorer

    @property
    def is_tuned(self) -> bool:
        """Whether adapters of the same seed speak beside it."""
        return bool(self.scorer.tuned and self.scorer.tuned["tuned"])


def find_learned(path: str | os.PathLike[str]) -> LearnedRun | None:
    """What a few-shot run learnt beside adapters, or None where it holds no fitted method.

    Of several seeds that with the lowest log-loss on clips left out is taken.

    Raises:
        DataError: It is damaged.
    """
    path = Path(path)
    folders = [path, path / "scorer", *(seed / "scorer" for seed in numbered(path, "seed"))]
    found = [folder for folder in folders if (folder / SCORER_NAME).is_file()]
    if not found:
        return None
    runs = []
    for folder in found:
        config = AdapterConfig.from_dict(read_json(folder / CONFIG_NAME), where=folder / CONFIG_NAME)
        runs.append(LearnedRun(folder, {}, config, Scorer.load(folder)))
        if len(config.labels) != len(runs[-1].scorer.texts.names):
            raise DataError(f"{folder}: its files do not belong together.", hint="Copy the whole folder again.")

    def loss(run: LearnedRun) -> float:
        value = run.scorer.diagnostics.get("loo_log_loss")
        return float("inf") if value is None else value

    return min(runs, key=loss)


class LearnedHead(ZeroShotHead):
    """Scores files by a fitted method; labels that it was not fitted on are left to the text.

    Args:
        scorer: The method.
        texts: The labels of a run.
        zero_shot: What gives weights of the modalities, and the trained logits where the method has a tuned part.
        dims: Widths of the frozen embeddings of sight and sound, which stand first.
    """

    def __init__(self, scorer: Scorer, texts: LabelFeatures, zero_shot: ZeroShotHead, dims: tuple[int, int]) -> None:
        self.__dict__.update(vars(zero_shot))
        self._scorer, self._texts, self._zero_shot, self._dims = scorer, texts, zero_shot, dims
        self._own = tuple(texts.names) == tuple(scorer.texts.names)

    def result(self, file: EmbeddedFile, *, segments: bool) -> ClipResult:
        """See :meth:`ZeroShotHead.result`."""
        base = self._zero_shot.result(file, segments=segments)
        visual = None if file.visual is None else file.visual[:, : self._dims[0]].double().numpy()
        audio = None if file.audio is None else file.audio[:, : self._dims[1]].double().numpy()
        if visual is not None and audio is not None:
            seconds = min(len(visual), len(audio))
            visual, audio = visual[:seconds], audio[:seconds]
        features = Features.of([(file.path, visual, audio)])
        tuned = np.log(np.maximum([list(base.scores.values())], 1e-12))
        found = self._scorer.scores(features, None if self._own else self._texts, tuned=tuned)
        names = list(base.scores)
        scores = np.exp(log_softmax(found.fused[0])).tolist()
        best = int(np.argmax(scores))
        warnings = list(base.warnings)
        if found.none is not None and np.exp(found.none[0]) > 0.5:
            warnings.append(f"none of the labels fits: {100 * np.exp(found.none[0]):.0f} %")
        return ClipResult(
            path=base.path,
            duration=base.duration,
            label=names[best],
            score=scores[best],
            scores=dict(zip(names, scores, strict=True)),
            visual=base.visual,
            audio=base.audio,
            weights=base.weights,
            segments=self._timeline(features, base.segments) if segments else [],
            warnings=warnings,
        )

    def _timeline(self, features: Features, base: Sequence[SegmentResult]) -> list[SegmentResult]:
        rows = self._scorer.segment_logits(features)[0] if self._own else None
        if rows is None:
            return list(base)
        segments, names = [], self._texts.names
        for row, segment in zip(rows, base, strict=False):
            scores = np.exp(log_softmax(row[: len(names)])).tolist()
            best = int(np.argmax(scores))
            segments.append(
                SegmentResult(segment.start, segment.end, names[best], scores[best], segment.weights, scores)
            )
        return segments
