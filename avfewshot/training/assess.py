"""Judging the untrained towers, and a trained model beside them, on the test clips of a task without training."""

from __future__ import annotations

from avfewshot.evaluation.comparison import Comparison
from avfewshot.evaluation.evaluate import evaluate_systems
from avfewshot.evaluation.result import TaskResult
from avfewshot.model import AudioVisualModel
from avfewshot.scoring.bench import TaskBench

ADAPTED = "adapted"


def assess(
    bench: TaskBench, model: AudioVisualModel | None = None, *, share: float = 1.0
) -> tuple[dict[str, TaskResult], Comparison]:
    """Evaluate systems on the test clips; what has to be chosen is chosen on validation clips, for each of them.

    Args:
        bench: The task.
        model: A trained model, in evaluation mode, on the device; None: only the untrained towers.
        share: Share of its logits beside those of the untrained towers.

    Returns:
        The result of each system, and their comparison.

    Raises:
        DataError: There are no test clips.
        AvfsError: A clip cannot be read any more.
    """
    systems = bench.untrained("test")
    if model is not None:
        fitted = bench.fit(bench.joined(model, "val", share))
        systems[ADAPTED] = bench.predict(bench.joined(model, "test", share), fitted)
    return evaluate_systems(bench.decision.task, bench.targets("test"), systems)
