"""From the embeddings of a file to its result: compared with label features, fused and pooled."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from avfewshot.inference.features import EmbeddedFile
from avfewshot.inference.results import ClipResult, SegmentResult
from avfewshot.models.fusion import ClipPrediction, predict_clips


class Matcher:
    """Compares embeddings with the labels of a run.

    Args:
        names: K labels.
        texts: By modality (``"visual"``, ``"audio"``) float64 ``[K, D]``: label features times temperature scale, such
            that their products with embeddings are logits.
        background: The same for the background text, ``[D]``; only for ``pool="event"``.
        modality: What was asked for: ``"av"``, ``"visual"`` or ``"audio"``.
        fusion: See :func:`avfewshot.models.fusion.fuse`.
        pool: See :func:`avfewshot.models.fusion.predict_clips`.
    """

    def __init__(
        self,
        names: Sequence[str],
        texts: Mapping[str, Tensor],
        background: Mapping[str, Tensor],
        *,
        modality: str,
        fusion: str,
        pool: str,
    ) -> None:
        self._names = names
        self._texts = texts
        self._background = background
        self._modality = modality
        self._options = {"fusion": fusion, "pool": pool}

    def result(self, file: EmbeddedFile, *, segments: bool) -> ClipResult:
        """The result of one file.

        Args:
            file: Its embeddings, of the widths D of the texts.
            segments: Whether to say what each second holds.
        """
        prediction = self._predict(file)
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
            segments=self._segments(file, prediction) if segments else [],
            warnings=self._warnings(file),
        )

    def _predict(self, file: EmbeddedFile) -> ClipPrediction:
        logits, backgrounds = {}, {}
        for name in ("visual", "audio"):
            embeddings = getattr(file, name)
            if embeddings is not None:
                logits[name] = embeddings.double() @ self._texts[name].T
                if name in self._background:
                    backgrounds[name] = embeddings.double() @ self._background[name]
        return predict_clips(
            logits.get("visual"),
            logits.get("audio"),
            visual_background=backgrounds.get("visual"),
            audio_background=backgrounds.get("audio"),
            **self._options,
        )

    def _segments(self, file: EmbeddedFile, prediction: ClipPrediction) -> list[SegmentResult]:
        results = []
        rows = zip(prediction.segment_probabilities.tolist(), prediction.segment_weights.tolist(), strict=True)
        for index, (scores, weights) in enumerate(rows):
            best = max(range(len(scores)), key=scores.__getitem__)
            end = min(index + 1.0, file.duration) if file.duration > index else index + 1.0
            results.append(SegmentResult(float(index), end, self._names[best], scores[best], _weights(weights), scores))
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
