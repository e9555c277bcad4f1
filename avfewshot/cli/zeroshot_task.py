"""`avfs zeroshot --task`: evaluate on the test clips of a data set, without training."""

from __future__ import annotations

import json

from rich.console import Console

from avfewshot.cli.loading import left_to_adapter, load_backbone, open_store
from avfewshot.cli.progress import Display
from avfewshot.cli.terminal import say
from avfewshot.config import Resolved
from avfewshot.data.load import load_dataset, require_media
from avfewshot.data.vggsound import with_vggsounder
from avfewshot.encoders.presets import load_preset
from avfewshot.errors import DataError
from avfewshot.evaluation.evaluator import ADAPTED, EvalReport, Evaluator
from avfewshot.evaluation.few_shot import run_predictions, tuned_logits
from avfewshot.evaluation.predictions import PredictionConfig
from avfewshot.evaluation.references import distinct
from avfewshot.inference.devices import resolve_device, resolve_precision
from avfewshot.inference.loading import decision_of, recalled
from avfewshot.inference.runs import LearnedRun, TunedRun, find_learned, find_tuned
from avfewshot.io import user_path, write_text
from avfewshot.models.build import load_model
from avfewshot.models.checkpoint import AdapterCheckpoint, load_adapter
from avfewshot.prompts import load_templates
from avfewshot.reports.comparison import comparison_csv, comparison_markdown, comparison_table


def evaluate(settings: Resolved, display: Display) -> tuple[Evaluator, EvalReport]:
    """Judge the untrained towers, and what a run learnt beside them."""
    asked, task = settings.config.model, settings.config.task
    display.begin("reading annotations, looking for clips", 0)
    dataset = load_dataset(task.task, task.root, media=task.media, list_file=task.list_file)
    require_media(dataset, task.media or (task.root,))
    if task.vggsounder is not None:
        dataset = with_vggsounder(dataset, task.vggsounder)
    device = resolve_device(asked.device)
    precision = resolve_precision(asked.precision, device)
    preset, fusion, pool = asked.backbone, asked.fusion, asked.pool
    templates = None if asked.templates is None else load_templates(asked.templates)
    window, context, share, trained_fusion = 10, asked.audio_context, 1.0, ""
    learned, tuned, checkpoint = (None,) * 3 if asked.adapter is None else _what_was_learnt(asked.adapter)
    origin = learned or tuned or checkpoint
    if origin is not None:
        if checkpoint is None and learned is not None:
            context = learned.audio_context
        elif context == "clip":
            display.say(f"{asked.adapter} was trained on single seconds of sound; --audio-context stays second.")
            context = "second"
        decision = decision_of(checkpoint or origin)
        window, share = decision.window, decision.blend
        # What nobody sets is as it was trained.
        templates = templates or recalled(origin, "templates", load_templates)
        if left_to_adapter(settings, "backbone"):
            preset = recalled(origin, "backbone", load_preset)
        if left_to_adapter(settings, "fusion"):  # the untrained towers are fused as ever
            trained_fusion = decision.fusion
        pool = decision.pool if left_to_adapter(settings, "pool") else pool
    display.begin("loading the backbone", 0)
    backbone = load_backbone(asked, preset, seed=asked.seed)
    model = None if checkpoint is None else load_model(checkpoint, backbone)[0].to(device)
    evaluator = Evaluator(
        dataset,
        PredictionConfig(task.task, fusion, pool, task.background or "threshold", dataset.num_segments),
        backbone,
        templates or load_templates(backbone.templates),
        device,
        precision,
        frame_backend=asked.frame_backend,
        window=window,
        batch_size=None if asked.batch_size == "auto" else asked.batch_size,
        observer=display,
        look_up=None if (store := open_store(settings["store"])) is None else store.cache,
        audio_context=context,
    )
    systems, adapted, labels = evaluator.untrained("test"), None, ()
    if origin is not None:
        origin.config.check_backbone(backbone, where=origin.path)
        labels = (*origin.config.labels, *origin.config.wordings)
    if model is not None:
        logits, fitted = adapted = evaluator.adapted(model, share, trained_fusion)
        systems[ADAPTED] = evaluator.predict(logits, fitted)
    if learned is not None:
        name = learned.config.training["method"]
        systems[name] = run_predictions(evaluator, name, learned.scorer, adapted)
    if tuned is not None:
        method = tuned.method(backbone, dataset.wordings)
        validation, test = (tuned_logits(evaluator, method, split) for split in ("val", "test"))
        systems[method.name] = evaluator.predict(test, evaluator.fit(validation, trained_fusion))
    return evaluator, evaluator.report(systems, trained_labels=labels)


def _what_was_learnt(run: str) -> tuple[LearnedRun | None, TunedRun | None, AdapterCheckpoint | None]:
    """A fitted method, or a tuned one; and trained adapters: beside the former those of the same seed."""
    learned = find_learned(run)
    if learned is None and (tuned := find_tuned(run)) is not None:
        return None, tuned, None
    try:
        return learned, None, load_adapter(run if learned is None else learned.path.parent)
    except DataError:
        if learned is None or learned.is_tuned:
            raise
        return learned, None, None


def print_report(settings: Resolved, evaluator: Evaluator, report: EvalReport) -> None:
    """Print the comparison, and write it where that is asked for."""
    results, comparison = report.results, report.comparison
    console = Console(highlight=False)
    console.print(comparison_table(comparison))
    for name, part in report.parts.items():
        console.print(f"{part.num_clips:,} clips of {name}:")
        console.print(comparison_table(part))
    last = list(results.values())[-1]
    for reference in distinct((*last.baselines, *last.ceilings)):
        values = ", ".join(f"{metric} {100 * value:.1f} %" for metric, value in reference.values.items())
        console.print(f"{reference.title}: {values}", markup=False, soft_wrap=True)
    for split, listed, used, left in evaluator.usage.counts(evaluator.dataset):
        if left:
            say(f"{split}: {used:,} of {listed:,} clips used, {left:,} cannot be.")
    if settings["output"] is None:
        return
    path = user_path(settings["output"])
    if path.suffix.lower() == ".json":
        document = {
            "task": settings["task"],
            "comparison": comparison.model_dump(mode="json"),
            "parts": {name: part.model_dump(mode="json") for name, part in report.parts.items()},
            "results": {name: result.model_dump(mode="json") for name, result in results.items()},
            "unusable": [list(entry) for entry in evaluator.usage.left],
        }
        write_text(path, json.dumps(document, indent=1))
    else:
        write_text(path, (comparison_csv if path.suffix.lower() == ".csv" else comparison_markdown)(comparison))
    say(f"written: {path}")
