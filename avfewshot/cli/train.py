"""`avfs train`: train a head, and adapters if wanted, for a supervised task; evaluate it beside its reference lines."""

from __future__ import annotations

import shlex
from typing import Any

import typer

from avfewshot.cli.loading import configured_root
from avfewshot.cli.options import backbone_faults, with_options
from avfewshot.cli.runs import DryRun, Resume, Run, command_line, new_run, resumed_run, run_faults, session
from avfewshot.cli.terminal import say
from avfewshot.config import SupervisedConfig, resolve
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults


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
        from avfewshot.cli.supervised_run import execute, load_run, plan

        trainer = load_run(run.config, display)
        for line in (*trainer.data.notes, *plan(trainer), f"run folder: {run.folder}"):
            display.say(line)
        if dry_run:
            display.say("Nothing was trained: this was a dry run.")
            return
        run.claim()
        execute(run, trainer, display, interrupts)
        run.check_kept()
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
