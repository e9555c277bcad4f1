"""`avfs compare`: few-shot methods side by side, over shots and seeds; or finished runs, clip by clip."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from avfewshot.cli.fewshot import clips_root, with_own_folder
from avfewshot.cli.options import argument, backbone_faults, with_options
from avfewshot.cli.runs import command_line, folder_faults, session
from avfewshot.cli.terminal import say
from avfewshot.config import resolve
from avfewshot.errors import UsageError, raise_faults
from avfewshot.io import user_path


@with_options("compare")
def compare(
    context: typer.Context,
    finished: Annotated[list[str] | None, argument("RUN", "Finished few-shot runs, instead of a task.")] = None,
    **flags: Any,
) -> None:
    """Compare few-shot methods on one task, over shots and seeds: one table for each number of shots, a chart over
    them.

    Light methods work on frozen embeddings, which are computed once and kept: after that a cell takes seconds. Those
    that are trained through the towers take minutes and are named with --methods: the adapters dgsct, lavish and
    stg_cma, and coop, cocoop, maple and clip-lora.

    [bold]Examples[/bold]

      avfs compare --task llp_cls --shots 1,2,4,8,16
      avfs compare --data my_clips --shots 1,2,4 --methods auto,lp_plus_plus,coop
      avfs compare --task ave_cls --shots 16 --methods auto,dgsct --name fig4     again, it goes on where it stopped
      avfs compare --task ave_cls --shots 1 --protocol mteb                       with the public zero-shot protocol
      avfs compare --task ave_cls --shots 1,4 --audio-context second,clip         is sound in one pass as good here?
      avfs compare --task ave_cls --shots 16 --ablate modules                     DG-SCT without S, C, T (Table 5)
      avfs compare --efficiency --backbone base                                   parameters and GFLOPs, without data
      avfs compare runs/folder/RUN runs/folder/OTHER                              finished runs, paired on their test clips

    [bold]Exit status:[/bold] 0 all done, 1 failed, 2 misuse, 130 interrupted.
    """  # noqa: D205, E501
    command = command_line(context)
    if finished:
        from avfewshot.cli.compare_finished import compare_finished_runs

        compare_finished_runs([user_path(run) for run in finished], flags, command)
        return
    settings = resolve("compare", with_own_folder(flags))
    faults = [*settings.faults, *folder_faults(settings)]
    if settings["efficiency"]:
        raise_faults([*faults, *backbone_faults(settings)])
        from avfewshot.cli.compare_efficiency import compare_efficiency

        compare_efficiency(settings.config)
        return
    root = clips_root(settings.config, named=settings.sources["task"] != "default", faults=faults)
    faults += backbone_faults(settings)
    if settings["ablate"]:
        for option in ("methods", "protocol", "audio-context"):
            if settings.sources[option.replace("-", "_")] != "default":
                what = f"--ablate trains DG-SCT alone: --{option} means nothing there."
                faults.append(UsageError(what, hint="Leave one of them out."))
    if settings["protocol"] and settings["task"] != "ave_cls":
        faults.append(UsageError("--protocol mteb is AVE by clip.", hint="Add --task ave_cls."))
    raise_faults(faults)
    config = settings.config.replace(data=settings.config.data.replace(root=root))
    name = config.name or (f"{config.task}-{config.ablate}" if config.ablate else config.task)
    folder = Path(config.runs) / "compare" / name
    with session(lambda: "Interrupted. The same command goes on where it stopped.") as (display, interrupts):
        from avfewshot.cli.compare_grid import compare_methods, write_tables
        from avfewshot.reports.methods import print_methods

        tables = compare_methods(config, folder, display, interrupts)
    print_methods(tables, write_tables(config, folder, tables, command))
    for name in ("compare.html", "compare.csv", "compare.json"):
        say(f"written: {folder / name}")
