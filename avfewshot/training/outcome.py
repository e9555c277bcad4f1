"""The systems of a few-shot run on the test clips, once, when all is chosen."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avfewshot.config import AUTO
from avfewshot.evaluation.evaluator import CLAP_ONLY, CLIP_ONLY, ZERO_SHOT
from avfewshot.evaluation.few_shot import (
    alone,
    answers_of,
    method_predictions,
    modality_confusion,
    mteb_zero_shot,
    right_answers,
    tuned_logits,
    tuned_posteriors,
    tuned_seconds,
)
from avfewshot.evaluation.measures import calibration
from avfewshot.evaluation.predictions import Fitted
from avfewshot.evaluation.references import BACKGROUND
from avfewshot.evaluation.results import Comparison, TaskResult
from avfewshot.evaluation.targets import Predictions, Targets
from avfewshot.inference.logits import ClipLogits
from avfewshot.io import write_text
from avfewshot.media.clip import MODALITIES
from avfewshot.methods.method import Scorer
from avfewshot.models.audio_visual import AudioVisualModel
from avfewshot.training.fewshot_setting import FewShotSetting
from avfewshot.training.protocol import Progress
from avfewshot.tuning.methods import TunedMethod

TRAINED = "trained"
MTEB = "zero-shot (mteb)"


def on_test_clips(
    run: FewShotSetting,
    trained: Mapping[str, tuple[AudioVisualModel, Progress]],
    scorers: Mapping[str, Scorer],
    prompted: Mapping[str, tuple[TunedMethod, Any]],
    answers_file: Path,
) -> tuple[dict[str, TaskResult], Comparison, dict[str, dict[str, Any]]]:
    """Evaluate what was trained, the light methods and the untrained systems on the test clips.

    Gives the result of each system; their comparison; and of each system calibration before and after its
    temperature (``ece``) and what the second modality spoils (``modality_confusion``), where there are both.
    """
    evaluator = run.evaluator
    systems, uncalibrated = evaluator.untrained("test"), {}
    tuned: list[Any] = [None] * 3  # of the trained model: by both senses, sight, sound
    by_modality: dict[str, tuple[Predictions, ...]] = {ZERO_SHOT: (systems[CLIP_ONLY], systems[CLAP_ONLY])}

    def by_logits(name: str, logits: Sequence[ClipLogits], fitted: Fitted) -> None:
        systems[name] = evaluator.predict(logits, fitted)
        parts = ([clip.only(modality) for clip in logits] for modality in MODALITIES)
        by_modality[name] = tuple(evaluator.predict(part, fitted) for part in parts)

    if run.protocol == "mteb":
        systems[MTEB], *parts = mteb_zero_shot(evaluator)
        by_modality[MTEB] = tuple(parts)
    for name, (model, progress) in trained.items():
        logits, fitted = evaluator.joined(model, "test", progress.best.blend), progress.best.fitted
        by_logits(name, logits, fitted)
        if name == TRAINED and AUTO in scorers:
            parts = (logits, *([clip.only(modality) for clip in logits] for modality in MODALITIES))
            said = tuned_seconds if evaluator.decision.per_second else tuned_posteriors
            tuned = [said(evaluator, part, fitted) for part in parts]
    calibrated = "calibration_seconds" if evaluator.decision.per_second else "calibration"
    if scorers:
        _, features = evaluator.features("test")
        for name, scorer in scorers.items():
            said = tuned if name == AUTO else [None] * 3
            systems[name] = method_predictions(evaluator, scorer, features, run.clips, tuned=said[0])
            by_modality[name] = tuple(
                alone(evaluator, scorer, features, run.clips, modality, tuned=part)
                for modality, part in zip(MODALITIES, said[1:], strict=True)
            )
            if scorer.diagnostics.get(calibrated):
                before = scorer.uncalibrated()
                uncalibrated[name] = method_predictions(evaluator, before, features, run.clips, tuned=said[0])
    for name, (method, _) in prompted.items():
        validation, judged = (tuned_logits(evaluator, method, split) for split in ("val", "test"))
        by_logits(name, judged, evaluator.fit(validation))
    report = evaluator.report(systems)
    targets = Targets.from_samples(run.dataset, evaluator.scored("test").samples)
    answered = {name: answers_of(said, targets) for name, said in systems.items()}
    right = {name: right_answers(one, targets) for name, one in answered.items()}
    more: dict[str, dict[str, Any]] = {name: {} for name in systems}
    for name, parts in by_modality.items():
        parts = [right_answers(answers_of(part, targets), targets) for part in parts]
        more[name]["modality_confusion"] = modality_confusion(right[name], *parts)
    for name, before in uncalibrated.items():
        raw, pairs = before.probabilities, right_answers(answers_of(before, targets), targets)
        left_out = scorers[name].diagnostics[calibrated]
        more[name]["ece"] = {
            "left_out": {"before": left_out["ece_before"], "after": left_out["ece_after"]},
            "test": {
                "before": calibration(raw.max(-1).ravel(), pairs.ravel()).error,
                "after": report.results[name].calibration.error,
            },
        }
    write_text(answers_file, _answer_lines(evaluator.decision.per_second, targets, answered))
    return report.results, report.comparison, more


def _answer_lines(per_second: bool, targets: Targets, answered: Mapping[str, np.ndarray]) -> str:
    names = np.array([*targets.classes, BACKGROUND], dtype=object)
    lines = []
    for row, clip in enumerate(targets.ids):
        truth = targets.segments[row] if per_second and targets.segments is not None else None
        labels = names[np.flatnonzero(targets.labels[row]) if truth is None else truth]
        by_system = {name: names[one[row]] for name, one in answered.items()}
        if truth is not None:
            by_system = {name: seconds.tolist() for name, seconds in by_system.items()}
        lines.append(json.dumps({"id": clip, "truth": labels.tolist(), "answers": by_system}) + "\n")
    return "".join(lines)
