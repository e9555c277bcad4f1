"""Judging the untrained towers, and a trained model beside them, on the test clips of a task without training."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from avfewshot.evaluation.evaluate import evaluate_systems
from avfewshot.evaluation.evaluator import TaskBench
from avfewshot.evaluation.results import Comparison, TaskResult
from avfewshot.evaluation.targets import Predictions, Targets
from avfewshot.models.audio_visual import AudioVisualModel

ADAPTED = "adapted"
TRAINED_CLASSES, OTHER_CLASSES = "classes that were trained on", "other classes"


@dataclass(frozen=True, eq=False)
class Assessment:
    """Systems on the test clips of a task.

    Attributes:
        results: Of each system on all clips.
        comparison: Of them.
        parts: The same comparison on clips all of whose classes were trained on, and on clips none of whose were; only
            where there are both kinds. All classes of the task are candidates in any case.
    """

    results: dict[str, TaskResult]
    comparison: Comparison
    parts: dict[str, Comparison]


def assess(
    bench: TaskBench,
    model: AudioVisualModel | None = None,
    *,
    share: float = 1.0,
    trained_labels: Collection[str] = (),
) -> Assessment:
    """Evaluate systems on the test clips; what has to be chosen is chosen on validation clips, for each of them.

    Args:
        bench: The task.
        model: A trained model, in evaluation mode, on the device; None: only the untrained towers.
        share: Share of its logits beside those of the untrained towers.
        trained_labels: Names or wordings of the classes that it was trained on.

    Returns:
        The assessment.

    Raises:
        DataError: There are no test clips.
        AvfsError: A clip cannot be read any more.
    """
    systems = bench.untrained("test")
    if model is not None:
        fitted = bench.fit(bench.joined(model, "val", share))
        systems[ADAPTED] = bench.predict(bench.joined(model, "test", share), fitted)
    task, targets = bench.decision.task, bench.targets("test")
    known = _known(bench, trained_labels)
    inside = (targets.labels & known).any(1)
    outside = (targets.labels & ~known).any(1)
    parts = {}
    if model is not None:
        for name, rows in ((TRAINED_CLASSES, inside & ~outside), (OTHER_CLASSES, outside & ~inside)):
            if rows.any() and not rows.all():
                parts[name] = evaluate_systems(task, _rows(targets, rows), _picked(systems, rows))[1]
    return Assessment(*evaluate_systems(task, targets, systems), parts)


def _known(bench: TaskBench, trained_labels: Collection[str]) -> npt.NDArray[np.bool_]:
    """Bool ``[K]``: which classes of the task were trained on, by name or wording."""
    trained = {label.casefold() for label in trained_labels}
    names = zip(bench.dataset.classes, bench.dataset.wordings, strict=True)
    return np.array([name.casefold() in trained or wording.casefold() in trained for name, wording in names])


def _rows(targets: Targets, rows: npt.NDArray[np.bool_]) -> Targets:
    return replace(
        targets,
        ids=tuple(np.array(targets.ids, dtype=object)[rows]),
        labels=targets.labels[rows],
        segments=None if targets.segments is None else targets.segments[rows],
    )


def _picked(systems: Mapping[str, Predictions], rows: npt.NDArray[np.bool_]) -> dict[str, Predictions]:
    return {
        name: replace(
            said,
            probabilities=said.probabilities[rows],
            salience=None if said.salience is None else said.salience[rows],
        )
        for name, said in systems.items()
    }
