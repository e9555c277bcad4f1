"""`avfs fewshot`: train adapters between frozen towers on a handful of clips a class, and evaluate them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from avfewshot.cli.loading import data_root
from avfewshot.cli.options import backbone_faults, option, with_options
from avfewshot.cli.runs import DryRun, Resume, Run, command_line, new_run, resumed_run, run_faults, session
from avfewshot.config import CompareConfig, FewshotConfig, resolve
from avfewshot.errors import UsageError, collect, raise_faults


@with_options("fewshot")
def fewshot(
    context: typer.Context,
    resume: Resume = None,
    dry_run: DryRun = False,
    seed: Annotated[str | None, option("--seed", "INTEGER", "The same as --seeds, for one seed.")] = None,
    **flags: Any,
) -> None:
    """Learn from a handful of clips of each class, evaluate once on test clips.

    At once: kernel ridge and other light methods on frozen embeddings, chosen by leaving out clips of the support. Then
    DG-SCT adapters are trained and join them (--no-tune leaves that out). The run folder holds settings, what was
    learnt, metrics and reports; CLIP only, CLAP only and zero-shot stand beside, on the same clips.

    [bold]Examples[/bold]

      avfs fewshot --shots 16 --task llp_cls
      avfs fewshot --shots 4 --data my_clips             folders of clips, one for each class
      avfs fewshot --shots 4 --data my_clips --no-tune   the light methods alone: seconds
      avfs fewshot --shots 8 --task ave --seeds 1,2,3    mean and 95 % interval over seeds
      avfs fewshot --shots 16 --task llp_cls --dry-run   what it would take
      avfs fewshot --resume runs/llp_cls/20260101-120000-16-shot

    Tasks: ave (seconds of AVE clips, with background), ave_cls, llp_cls, vggsound_cls (clips), folder (your own).

    [bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
    """
    if seed is not None and flags["seeds"] is not None:
        raise UsageError("--seed and --seeds exclude each other.", hint="Leave one out.")
    if seed is not None and not seed.isdecimal():
        raise UsageError(f"--seed: one whole number of at least 0 is needed, not {seed!r}.")
    flags["seeds"] = flags["seeds"] if seed is None else seed
    if resume is not None:
        run = resumed_run("fewshot", resume, flags, may_change=("device", "tracker"))
    else:
        run = _requested(flags, command_line(context))
    with session() if dry_run else session(run.how_to_resume) as (display, interrupts):
        from avfewshot.cli.fewshot_run import execute, load, print_plan

        trainer, plan = load(run, display, interrupts, claim=not dry_run)
        (print_plan if dry_run else execute)(run, trainer, plan, display)
        run.check_kept()


def _requested(flags: dict[str, Any], command: str) -> Run:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    settings = resolve("fewshot", with_own_folder(flags))
    faults = settings.faults
    root = clips_root(settings.config, named=settings.sources["task"] != "default", faults=faults)
    faults += [*backbone_faults(settings), *run_faults(settings)]
    raise_faults(faults)
    config: FewshotConfig = settings.config
    settings.config = config.replace(data=config.data.replace(root=root))
    return new_run(settings, config.training.task, f"{config.training.shots}-shot", command)


def with_own_folder(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Flags that say of a folder of one's own both the task and where it is, if they say one (or call it --root)."""
    data, root, task = (flags[name] for name in ("data", "root", "task"))
    if task == "folder" and root and not data:
        return {**flags, "data": root, "root": None}
    return {**flags, "task": "folder" if data and not task else task}


def clips_root(config: FewshotConfig | CompareConfig, *, named: bool, faults: list[UsageError]) -> Path | None:
    """Where the clips of the task are; None for a folder of one's own."""
    data, task = config.data, config.task if isinstance(config, CompareConfig) else config.training.task
    if task != "folder":
        if data.data is not None:
            hint = f"Use --root {data.data} instead."
            faults.append(UsageError(f"--data is for folders of your own clips, not for {task}.", hint=hint))
            return None
        return collect(faults, lambda: data_root(task, data.root))
    if data.data is None:
        if not any(str(fault).startswith("--task") for fault in faults):
            what = "--task folder needs --data DIR." if named else "Which task? There is neither --task nor --data."
            hint = "--task ave, ave_cls, llp_cls or vggsound_cls; or --data DIR with a folder of clips a class."
            faults.append(UsageError(what, hint=hint))
        return None
    given = (("--root", data.root), ("--media", data.media), ("--list", data.list_file))
    if extra := [flag for flag, value in given if value]:
        faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --data.", hint="Leave them out."))
    return None
