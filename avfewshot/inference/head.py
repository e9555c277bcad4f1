"""From the embeddings of a file to its result: compared with label features, fused and pooled."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.logits import ClassTexts, ClipLogits, score_clip
from avfewshot.inference.results import ClipResult, SegmentResult
from avfewshot.methods.calibration import standardised_labels
from avfewshot.models.fusion import predict_events


class ZeroShotHead:
    """Compares embeddings with the K labels of a run, `names`.

    `spaces` holds texts and temperature scales of the model; or of the frozen towers and of the trained model, whose
    embeddings then stand side by side (:class:`~avfewshot.models.ensemble.EnsembleModel`), `alpha` being the share of
    the trained logits.
    """

    def __init__(
        self,
        names: Sequence[str],
        spaces: Sequence[tuple[ClassTexts, tuple[float, float]]],
        alpha: float,
        *,
        modality: str,
        fusion: str,
        pool: str,
    ) -> None:
        self._names = names
        self._spaces = spaces
        self._alpha = alpha
        self._modality = modality
        self._options = {"fusion": fusion, "pool": pool}

    def result(self, file: EmbeddedFile, *, segments: bool) -> ClipResult:
        """The result of a file; with `segments`, also what each second holds."""
        logits = self.logits(file.by_clip)
        prediction = predict_events(logits.visual, logits.audio, **self._options)
        scores = prediction.probabilities.tolist()
        best = max(range(len(scores)), key=scores.__getitem__)
        return ClipResult(
            path=file.path,
            duration=file.duration,
            label=self._names[best],
            score=scores[best],
            scores=dict(zip(self._names, scores, strict=True)),
            visual=self._by_name(prediction.visual),
            audio=self._by_name(prediction.audio),
            weights=_weights(prediction.weights.tolist()),
            segments=self._segments(file) if segments else [],
            warnings=self._warnings(file),
        )

    def labels_of(self, result: ClipResult) -> list[str]:
        """All labels that a clip carries, the surest first: the best, and those that stand out in sight and sound."""
        rows = [
            np.log(np.maximum([shares[name] for name in self._names], 1e-30))
            for shares in (result.visual, result.audio)
            if shares is not None
        ]
        chosen = dict(zip(self._names, standardised_labels(rows), strict=True))
        order = sorted(result.scores, key=result.scores.__getitem__, reverse=True)
        return [name for name in order if chosen[name] or name == result.label]

    def logits(self, file: EmbeddedFile) -> ClipLogits:
        """Logits of the seconds of a file."""
        count = len(self._spaces)
        visual = [None] * count if file.visual is None else file.visual.chunk(count, -1)
        audio = [None] * count if file.audio is None else file.audio.chunk(count, -1)
        found = [
            score_clip(v, a, texts, scales) for v, a, (texts, scales) in zip(visual, audio, self._spaces, strict=True)
        ]
        return found[0] if count == 1 else found[0].ensemble(found[1], self._alpha)

    def _segments(self, file: EmbeddedFile) -> list[SegmentResult]:
        results, logits = [], self.logits(file)
        prediction = predict_events(logits.visual, logits.audio, **self._options)
        rows = zip(prediction.segment_probabilities.tolist(), prediction.segment_weights.tolist(), strict=True)
        alone = [  # without the background text, the last one
            None if scores is None else scores[:, : len(self._names)].softmax(-1).tolist()
            for scores in (logits.visual, logits.audio)
        ]
        for index, (scores, weights) in enumerate(rows):
            visual, audio = (None if seconds is None else seconds[index] for seconds in alone)
            best = max(range(len(scores)), key=scores.__getitem__)
            end = min(index + 1.0, file.duration) if file.duration > index else index + 1.0
            shares = _weights(weights)
            results.append(
                SegmentResult(float(index), end, self._names[best], scores[best], shares, scores, visual, audio)
            )
        return results

    def _by_name(self, probabilities: Tensor | None) -> dict[str, float] | None:
        return None if probabilities is None else dict(zip(self._names, probabilities.tolist(), strict=True))

    def _warnings(self, file: EmbeddedFile) -> list[str]:
        warnings = list(file.warnings)
        if self._modality == "av" and (file.visual is None or file.audio is None):
            warnings.append(f"classified by {'sound' if file.visual is None else 'sight'} alone")
        return warnings


def _weights(shares: list[float]) -> dict[str, float]:
    return {"visual": shares[0], "audio": shares[1]}
