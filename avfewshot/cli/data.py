"""``avfs data``: make and look after data sets."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.datacheck import check
from avfewshot.cli.dataimport import import_labels
from avfewshot.cli.dataprepare import prepare as prepare_command
from avfewshot.cli.terminal import say

app = typer.Typer(no_args_is_help=True, help="Make and look after data sets.")


@app.callback()
def data() -> None:
    """Make and look after data sets."""


app.command()(check)
app.command("prepare")(prepare_command)
app.command("import")(import_labels)


@app.command()
def toy(
    root: Annotated[Path, typer.Option(help="Folder to write to; made if needed.", show_default=False)],
    seed: Annotated[int, typer.Option(help="Each seed gives another world of the same classes.")] = 0,
    clips_per_class: Annotated[
        int, typer.Option(help="Clips of each class in each data set: two thirds train, a sixth val, a sixth test.")
    ] = 24,
    jobs: Annotated[int | None, typer.Option(help="Processes; by default one for each processor.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a toy world made with other settings.")] = False,
    only: Annotated[
        str | None, typer.Option(help="Some of ave,llp,vggsound,avs,avqa, or samples; by default the first three.")
    ] = None,
) -> None:
    """Write the toy world: small made-up clips in the layouts of AVE, LLP and VGG-Sound.

    Everything avfs does can be tried with it offline. The same seed gives the same files. It can be interrupted and
    run again: it goes on where it stopped.

    Example: avfs data toy --root toy
    """
    import shlex

    from avfewshot.reports.text import count, duration
    from avfewshot.toyworld.build import prepare

    names = None if only is None else [name.strip().lower() for name in only.split(",") if name.strip()]
    build = prepare(root, seed=seed, clips_per_class=clips_per_class, datasets=names, jobs=jobs, force=force)
    held = "".join(f"{plan.title} {len(plan.clips):,}, " for plan in build.plans)
    typer.echo(f"Toy world in {root}: {len(build.clips):,} clips ({held}{'and ' if held else ''}samples).")
    if build.damaged:
        typer.echo(f"{count(len(build.damaged), 'clip is', 'clips are')} not as written before; written anew.")
    if build.pending:
        typer.echo(
            f"To write: {count(len(build.pending), 'clip', 'clips')}, about {build.expected_bytes / 1e6:,.0f} MB, "
            f"about {duration(build.expected_seconds)} with {count(build.jobs, 'process', 'processes')}."
        )
    try:
        summary = build.run()
    except KeyboardInterrupt:
        say("Interrupted; the same command goes on from here.")
        raise
    for name in summary.edited:
        typer.echo(f"{root / name}: left as it is, since it was edited (--force writes it anew).")
    if summary.written:
        typer.echo(
            f"Wrote {count(summary.written, 'clip', 'clips')} in {duration(summary.seconds)}; "
            f"the toy world takes {summary.bytes / 1e6:,.0f} MB."
        )
    else:
        typer.echo(f"Complete already: {summary.bytes / 1e6:,.0f} MB.")
    typer.echo(f"Next: cd {shlex.quote(str(root))} && avfs zeroshot --labels labels.txt samples --segments")
