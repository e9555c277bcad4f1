"""What vectors of a modality are compared in: centred on the support's mean, whitened by the scatter *within* clips.

The whitening is ``(S + beta s I)^-1/2`` with S the scatter of seconds: what changes while a clip goes on says little
about its class, and needs no label to be known. With s = tr(S^2) / tr(S), the eigenvalue of a typical direction, few
clips, whose scatter lies in few directions, are whitened less, and one grid of beta serves every backbone.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from avfewshot.media.clip import MODALITIES
from avfewshot.methods.base import Floats, unit
from avfewshot.methods.rows import Head, Rows

Arrays = dict[str, npt.NDArray[Any]]


def centre_of(vectors: Floats) -> Floats:
    """The mean ``[D]`` of the rows ``[n, D]`` that are there; zero of a single one."""
    present = vectors[vectors.any(-1)]
    return present.mean(0) if len(present) > 1 else np.zeros(vectors.shape[1])


class Metric(NamedTuple):
    """Centre and whiten the vectors of a modality: unit vectors again, zero (the centre) where missing."""

    centre: Floats  # [D]
    whitening: Floats | None  # [D, D]

    @classmethod
    def fit(cls, vectors: Floats, within: tuple[Floats, Floats] | None, beta: float) -> Metric:
        """From the support's vectors ``[n, D]``; eigenvalues ``[D]`` and -vectors of the scatter within its clips."""
        centre = centre_of(vectors)
        if within is None:
            return cls(centre, None)
        values, directions = np.maximum(within[0], 0), within[1]
        typical = (values**2).sum() / values.sum()
        return cls(centre, (directions * (values + beta * typical) ** -0.5) @ directions.T)

    def __call__(self, vectors: Floats) -> Floats:
        """Vectors in this metric."""
        moved = np.where(vectors.any(-1, keepdims=True), vectors - self.centre, 0.0)
        return unit(moved if self.whitening is None else moved @ self.whitening)


def keep_metric(arrays: Arrays, name: str, metric: Metric) -> None:
    """Put a metric among the arrays of a head, for :func:`metric_of`."""
    arrays[f"centre.{name}"] = metric.centre
    if metric.whitening is not None:
        arrays[f"whitening.{name}"] = metric.whitening


def metric_of(head: Head, name: str) -> Metric:
    """A metric that was kept with a head."""
    return Metric(head.arrays[f"centre.{name}"], head.arrays.get(f"whitening.{name}"))


def text_experts(rows: Rows, arrays: Arrays) -> dict[str, Floats]:
    """What the text says, in five ways: logits ``[n, C]``, given the arrays of a head.

    As the project's zero-shot prediction has it, by each modality alone, and by cosines of embeddings and texts that
    are centred each on their own mean. Embeddings of one camera share an offset from those that the text branch was
    trained on; the support shows it without labels.
    """
    experts = dict(rows.text)
    for modality, scale in zip(MODALITIES, rows.scales, strict=True):
        labels = rows.labels[modality] - rows.labels[modality].mean(0)
        vectors = rows.vectors["mean", modality]
        moved = np.where(vectors.any(-1, keepdims=True), vectors - arrays[f"text centre.{modality}"], 0.0)
        experts[f"centred {modality}"] = scale * moved @ labels.T
    return experts
