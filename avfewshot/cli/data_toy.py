"""`avfs data toy`: a small made-up world to try everything with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.data_options import names_of, said_when_interrupted
from avfewshot.cli.options import option
from avfewshot.reports.text import count, duration


def toy(
    root: Annotated[Path, option("--root", None, "Folder to write to; made if needed.")],
    seed: Annotated[int, typer.Option(help="Each seed gives another world of the same classes.")] = 0,
    clips_per_class: Annotated[
        int, typer.Option(help="Clips of each class in each data set: two thirds train, a sixth val, a sixth test.")
    ] = 24,
    jobs: Annotated[int | None, option("--jobs", None, "Processes; by default one for each processor.")] = None,
    force: Annotated[bool, option("--force", None, "Replace a toy world made with other settings.")] = False,
    only: Annotated[
        str | None, option("--only", None, "Some of ave,llp,vggsound,avs,avqa, or samples; by default the first three.")
    ] = None,
) -> None:
    """Write the toy world: small made-up clips in the layouts of AVE, LLP and VGG-Sound.

    Everything avfs does can be tried with it offline. The same seed gives the same files. It can be interrupted and
    run again: it goes on where it stopped.

    Example: avfs data toy --root toy
    """
    from avfewshot.toyworld.build import prepare

    build = prepare(root, seed=seed, clips_per_class=clips_per_class, datasets=names_of(only), jobs=jobs, force=force)
    held = "".join(f"{plan.title} {len(plan.clips):,}, " for plan in build.plans)
    typer.echo(f"Toy world in {root}: {len(build.clips):,} clips ({held}{'and ' if held else ''}samples).")
    if build.damaged:
        typer.echo(f"{count(len(build.damaged), 'clip is', 'clips are')} not as written before; written anew.")
    if build.pending:
        typer.echo(
            f"To write: {count(len(build.pending), 'clip')}, about {build.expected_bytes / 1e6:,.0f} MB, "
            f"about {duration(build.expected_seconds)} with {count(build.jobs, 'process', 'processes')}."
        )
    with said_when_interrupted():
        summary = build.run()
    for name in summary.edited:
        typer.echo(f"{root / name}: left as it is, since it was edited (--force writes it anew).")
    done = f"Wrote {count(summary.written, 'clip')} in {duration(summary.seconds)}; the toy world takes"
    typer.echo(f"{done if summary.written else 'Complete already:'} {summary.bytes / 1e6:,.0f} MB.")
    typer.echo(f"Next: cd {shlex.quote(str(root))} && avfs zeroshot --labels labels.txt samples --segments")
