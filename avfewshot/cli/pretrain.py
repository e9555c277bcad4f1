"""`avfs pretrain`: pretrain adapters and projectors on a large list of clips."""

from __future__ import annotations

from typing import Any

import typer

from avfewshot.cli.loading import data_root
from avfewshot.cli.options import backbone_faults, with_options
from avfewshot.cli.runs import DryRun, Resume, Run, command_line, new_run, resumed_run, run_faults, session
from avfewshot.config import PretrainConfig, resolve
from avfewshot.errors import UsageError, collect, did_you_mean, raise_faults

DATASETS = ("vggsound40k", "vggsound", "ovave")


@with_options("pretrain")
def pretrain(context: typer.Context, resume: Resume = None, dry_run: DryRun = False, **flags: Any) -> None:
    """Pretrain adapters and projectors on VGG-Sound(40K), or on another list of VGG-Sound clips.

    Clips come from videos (--root) or from prepared shards (--shards, see `avfs data prepare`). Clips whose videos are
    in the evaluation splits of AVE and LLP are left out where their annotation files are found.

    [bold]Examples[/bold]

      avfs pretrain vggsound40k
      avfs pretrain vggsound40k --shards SHARDS --devices 8 --batch-size 64
      torchrun --nnodes 4 --nproc-per-node 8 -m avfewshot pretrain vggsound40k --shards SHARDS
      avfs pretrain --resume runs/pretrain/20260101-120000-vggsound40k
      avfs zeroshot --task ave --adapter runs/pretrain/20260101-120000-vggsound40k

    [bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted; --resume goes on.
    """
    if resume is not None:
        free = ("device", "devices", "nodes", "strategy", "tracker")
        run = resumed_run("pretrain", resume, flags, may_change=free)
    else:
        run = _requested(flags, command_line(context))
    with session() if dry_run else session(run.how_to_resume) as (display, interrupts):
        from avfewshot.cli.pretrain_run import execute, print_plan

        if dry_run:
            print_plan(run, display)
        else:
            execute(run, display, interrupts)
            run.check_kept()


def _requested(flags: dict[str, Any], command: str) -> Run:
    """Check everything that can be checked without reading data or weights, and tell all that is wrong at once."""
    dataset = flags["dataset"]
    settings = resolve("pretrain", {**flags, "dataset": dataset if dataset in DATASETS else None})
    faults = settings.faults
    if dataset not in DATASETS:
        what = "Which list is to be pretrained on?"
        if dataset is not None:
            what = f"There is no pretraining list {dataset!r}.{did_you_mean(dataset, DATASETS)}"
        faults.append(UsageError(what, hint=f"avfs pretrain {'|'.join(DATASETS)}; --list names a file of your own."))
    config: PretrainConfig = settings.config
    data, root = config.data, config.data.root
    faults += [
        UsageError(f"--against {folder}: there is no such folder.") for folder in data.against if not folder.is_dir()
    ]
    if data.shards is not None:
        options = (("--root", data.root), ("--media", data.media), ("--list", data.list_file))
        if extra := [flag for flag, value in options if value]:
            faults.append(UsageError(f"{' and '.join(extra)} cannot be given with --shards.", hint="Leave them out."))
    elif root is None and dataset in DATASETS:
        root = collect(faults, lambda: data_root(dataset, None))
    faults += [*backbone_faults(settings), *run_faults(settings)]
    raise_faults(faults)
    settings.config = config.replace(data=data.replace(root=root))
    return new_run(settings, "pretrain", str(dataset), command)
