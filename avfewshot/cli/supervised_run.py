"""A supervised run: load it, train each seed, evaluate it beside its reference lines."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import load_backbone, on_device
from avfewshot.cli.progress import Display
from avfewshot.cli.runs import Run
from avfewshot.config import SupervisedConfig
from avfewshot.io import write_text
from avfewshot.prompts import load_templates
from avfewshot.reports.supervised import print_results, write_report, write_table
from avfewshot.reports.text import count
from avfewshot.supervised.base import SupervisedTask, TaskData, load_task
from avfewshot.supervised.training import SeedOutcome, SupervisedRun
from avfewshot.version import __version__


def load_run(config: SupervisedConfig, display: Display) -> SupervisedRun:
    """Read the data set and the backbone."""
    task, data = load_task(str(config.task)), config.data
    display.begin("reading annotations, looking for clips", 0)
    assert data.root is not None
    read = task.read(data.root, data.media, config.training.subset)
    display.begin(f"loading {config.model.backbone}", 0)
    return run_on(config, task, read, display)


def run_on(config: SupervisedConfig, task: SupervisedTask, data: TaskData, observer: Any = None) -> SupervisedRun:
    """What trains, evaluates and predicts a task with these data, on the backbone of the settings."""
    backbone, (device, training) = load_backbone(config.model), on_device(config.model, config.training)
    templates = config.model.templates or backbone.templates
    parts = (task, data, training, backbone, (templates, load_templates(templates)), device)
    return SupervisedRun(*parts, frame_backend=config.model.frame_backend, observer=observer)


def plan(trainer: SupervisedRun) -> list[str]:
    """What a training takes, for people."""
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in trainer.data.splits.items())
    model = trainer.build(trainer.config.seeds[0])
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    recipe = trainer.recipe
    towers = f"{trainer.config.adapter} adapters" if trainer.adapted else f"frozen {', '.join(sorted(trainer.kinds))}"
    return [
        f"{trainer.task.title}: {sizes} clips have media.",
        f"head {trainer.head_name} on {towers}: {trainable / 1e6:.2f} M trainable parameters; up to "
        f"{count(recipe.epochs, 'epoch')}, batches of {recipe.batch_size}, learning rate {recipe.lr:g}; "
        f"{trainer.device}, {trainer.config.precision}.",
    ]


def _fit(run: Run, trainer: SupervisedRun, seed: int, display: Display, interrupts: Interrupts) -> SeedOutcome:
    display.validated = bool(trainer.examples("val"))
    callback = display.training(seed, trainer.recipe.epochs)
    folder = run.folder / f"seed-{seed}"
    outcome = trainer.fit(seed, folder, [callback, *run.trackers(folder)], interrupts.put_off)
    headline = outcome.validation.get(trainer.task.headline)
    validation = "no validation clips: the last epoch" if headline is None else f"validation {headline:.1f}"
    display.say(f"seed {seed}: {count(outcome.epochs, 'epoch')}, best {outcome.best_epoch} ({validation})")
    return outcome


def execute(run: Run, trainer: SupervisedRun, display: Display, interrupts: Interrupts) -> None:
    """Train each seed, predict the test split, write all files, print figures."""
    outcomes = [_fit(run, trainer, seed, display, interrupts) for seed in trainer.config.seeds]
    test = trainer.examples("test")
    runs = [trainer.predict(trainer.best_model(run.folder / f"seed-{one.seed}"), test) for one in outcomes]
    systems = {name: trainer.estimates([said], test) for name, said in trainer.reference_lines().items()}
    systems[trainer.head_name] = trainer.estimates(runs, test)
    document = results_document(trainer, systems, "test") | {
        "command": run.command,
        "seeds": [vars(outcome) for outcome in outcomes],
        "unreadable": {str(path): failure.error for path, failure in trainer.store.failures.items()},
    }
    write_text(run.folder / "results.json", json.dumps(document, indent=2))
    write_table(run.folder / "results.csv", document)
    described = [
        {"id": example.id, **trainer.task.describe(said, example, trainer.data.about)}
        for example, said in zip(test, runs[0], strict=True)
    ]
    write_text(run.folder / "predictions.jsonl", "".join(json.dumps(line) + "\n" for line in described))
    write_report(run.folder / "report.html", document, run.rows(), trainer.task.pictures(runs[0], test))
    display.show(None)
    print_results(document)


def results_document(trainer: SupervisedRun, systems: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Figures and what they are of, JSON-ready."""
    task = trainer.task
    about = {"version": __version__, "task": task.name, "title": task.title, "head": trainer.head_name, "split": split}
    return about | {"clips": len(trainer.examples(split)), "headline": task.headline, "systems": systems}
