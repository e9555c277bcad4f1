"""`avfs train`: train a head, and adapters if wanted, for a supervised task; evaluate it beside its reference lines."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import typer

from avfewshot.cli.data import configured_root
from avfewshot.cli.loading import load_backbone, on_device
from avfewshot.cli.options import backbone_faults, with_options
from avfewshot.cli.runs import DryRun, Resume, Run, command_line, new_run, resumed_run, run_faults, session
from avfewshot.cli.terminal import Interrupts, say
from avfewshot.config import SupervisedConfig, resolve
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults
from avfewshot.io import write_text

if TYPE_CHECKING:
    from avfewshot.cli.progress import Display
    from avfewshot.supervised.base import SupervisedTask, TaskData
    from avfewshot.supervised.training import SeedOutcome, SupervisedRun


@with_options("train", without=("projector",))
def train(context: typer.Context, resume: Resume = None, dry_run: DryRun = False, **flags: Any) -> None:
    """Train a supervised task on its whole training split: a head on frozen features, or with adapters between the
    towers.

    Frozen features are computed once and kept. Validation chooses the epoch; test clips are read when all is chosen,
    and the task's reference lines stand beside.

    [bold]Examples[/bold]

      avfs train ave --root DATA                        which second holds which event (CMBS)
      avfs train ave --head cmbs-weak                   the same from the classes of clips alone
      avfs train avvp --root DATA --head mgn            what is heard and seen in each second (HAN, MGN)
      avfs train avvp --adapter-kind dgsct --epochs 10  adapters are trained too
      avfs train avs --subset ms3                       masks of what sounds (S4, MS3)
      avfs train avqa                                   questions about what is seen and heard
      avfs train ave --seeds 1,2,3 --dry-run            what it would take
      avfs train --resume runs/ave/20260101-120000-cmbs

    Then: avfs eval RUN, avfs predict RUN clips/

    [bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
    """  # noqa: D205
    if resume is not None:
        run = resumed_run("train", resume, flags, may_change=("device", "workers", "tracker"))
    else:
        run = _requested(flags, command_line(context))
    with session(run.how_to_resume) as (display, interrupts):
        trainer = load_run(run.config, display)
        for line in (*trainer.data.notes, *_plan(trainer), f"run folder: {run.folder}"):
            display.say(line)
        if dry_run:
            display.say("Nothing was trained: this was a dry run.")
            return
        run.claim()
        outcomes = [_fit(run, trainer, seed, display, interrupts) for seed in trainer.config.seeds]
        document = _evaluate(run, trainer, outcomes)
    from avfewshot.reports.supervised import print_results

    print_results(document)
    say(f"written: {run.folder / 'report.html'}")
    say(f"Next: avfs predict {shlex.quote(str(run.folder))} clips/")


def _requested(flags: dict[str, Any], command: str) -> Run:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    from avfewshot.supervised.base import load_task, task_names
    from avfewshot.supervised.training import recipe_of

    name, names = flags["task"], task_names()
    settings = resolve("train", {**flags, "task": name if name in names else None})
    faults = settings.faults
    config: SupervisedConfig = settings.config
    root, label = config.data.root, "run"
    if name not in names:
        what = "Which task?" if name is None else f"There is no supervised task {name!r}.{did_you_mean(name, names)}"
        faults.append(UsageError(what, hint=f"avfs train {'|'.join(names)}"))
    else:
        task = load_task(name)
        root = root or collect(faults, lambda: configured_root((task.dataset, "root"), task.title))
        if root is not None and not root.is_dir():
            hint = "Give another one with --root DIR."
            faults.append(UsageError(f"The data folder {root} does not exist.", hint=hint))
        recipe = collect(faults, lambda: recipe_of(task, config.training))
        label = recipe[0] if recipe else label
    faults += [*backbone_faults(settings), *run_faults(settings)]
    raise_faults(faults)
    settings.config = config.replace(data=config.data.replace(root=root))
    return new_run(settings, str(name), label, command)


def load_run(config: SupervisedConfig, display: Display) -> SupervisedRun:
    """Read the data set and the backbone."""
    from avfewshot.supervised.base import load_task

    task, data = load_task(str(config.task)), config.data
    display.begin("reading annotations, looking for clips", 0)
    assert data.root is not None
    read = task.read(data.root, data.media, config.training.subset)
    display.begin(f"loading {config.model.backbone}", 0)
    return run_on(config, task, read, display)


def run_on(config: SupervisedConfig, task: SupervisedTask, data: TaskData, observer: Any = None) -> SupervisedRun:
    """What trains, evaluates and predicts a task with these data, on the backbone of the settings."""
    from avfewshot.prompts import load_templates
    from avfewshot.supervised.training import SupervisedRun

    backbone, (device, training) = load_backbone(config.model), on_device(config.model, config.training)
    templates = config.model.templates or backbone.templates
    parts = (task, data, training, backbone, (templates, load_templates(templates)), device)
    return SupervisedRun(*parts, frame_backend=config.model.frame_backend, observer=observer)


def _plan(trainer: SupervisedRun) -> list[str]:
    sizes = ", ".join(f"{len(part):,} {split}" for split, part in trainer.data.splits.items())
    model = trainer.build(trainer.config.seeds[0])
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    recipe = trainer.recipe
    towers = f"{trainer.config.adapter} adapters" if trainer.adapted else f"frozen {', '.join(sorted(trainer.kinds))}"
    return [
        f"{trainer.task.title}: {sizes} clips have media.",
        f"head {trainer.head_name} on {towers}: {trainable / 1e6:.2f} M trainable parameters; up to {recipe.epochs} "
        f"epochs, batches of {recipe.batch_size}, learning rate {recipe.lr:g}; {trainer.device}, "
        f"{trainer.config.precision}.",
    ]


def _fit(run: Run, trainer: SupervisedRun, seed: int, display: Display, interrupts: Interrupts) -> SeedOutcome:
    display.validated = bool(trainer.examples("val"))
    callback = display.training(seed, trainer.recipe.epochs)
    folder = run.folder / f"seed-{seed}"
    outcome = trainer.fit(seed, folder, [callback, *run.trackers(folder)], interrupts.put_off)
    headline = outcome.validation.get(trainer.task.headline)
    validation = "no validation clips: the last epoch" if headline is None else f"validation {headline:.1f}"
    display.say(f"seed {seed}: {outcome.epochs} epochs, best {outcome.best_epoch} ({validation})")
    return outcome


def _evaluate(run: Run, trainer: SupervisedRun, outcomes: Sequence[SeedOutcome]) -> dict[str, Any]:
    """Predict the test split, write all files, give the document of ``results.json``."""
    from avfewshot.reports.supervised import write_report, write_table

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
    return document


def results_document(trainer: SupervisedRun, systems: Mapping[str, Any], split: str) -> dict[str, Any]:
    """Figures and what they are of, JSON-ready."""
    from avfewshot.version import __version__

    task = trainer.task
    about = {"version": __version__, "task": task.name, "title": task.title, "head": trainer.head_name, "split": split}
    return about | {"clips": len(trainer.examples(split)), "headline": task.headline, "systems": systems}
