"""Evaluating the untrained towers, and a trained model beside them, on the test clips of a task without training."""

from __future__ import annotations

from collections.abc import Collection

from avfewshot.evaluation.evaluator import EvalReport, TaskBench
from avfewshot.models.audio_visual import AudioVisualModel

ADAPTED = "adapted"


def assess(
    bench: TaskBench,
    model: AudioVisualModel | None = None,
    *,
    share: float = 1.0,
    trained_labels: Collection[str] = (),
) -> EvalReport:
    """Evaluate systems on the test clips; what has to be chosen is chosen on validation clips, for each of them.

    Args:
        bench: The task.
        model: A trained model, in evaluation mode, on the device; None: only the untrained towers.
        share: Share of its logits beside those of the untrained towers.
        trained_labels: Names or wordings of the classes that it was trained on.

    Raises:
        DataError: There are no test clips.
        AvfsError: A clip cannot be read any more.
    """
    systems = bench.untrained("test")
    if model is not None:
        fitted = bench.fit(bench.joined(model, "val", share))
        systems[ADAPTED] = bench.predict(bench.joined(model, "test", share), fitted)
    return bench.report(systems, trained_labels=trained_labels if model is not None else ())
