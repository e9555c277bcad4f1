"""`avfs data`: make toy clips; check data sets, prepare shards of them, import labels."""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.data_check import check
from avfewshot.cli.data_options import names_of, said_when_interrupted
from avfewshot.cli.data_prepare import prepare
from avfewshot.cli.destinations import check_folder
from avfewshot.cli.options import argument, option
from avfewshot.cli.terminal import progress_bar, say
from avfewshot.errors import AvfsError, UsageError, raise_faults
from avfewshot.io import DISK_FULL
from avfewshot.reports.text import count, duration
from avfewshot.text import printable


@said_when_interrupted()
def import_labels(
    files: Annotated[
        list[Path], argument("FILE", "JSON exports of Label Studio, labels.json of FiftyOne, or .eaf of ELAN.")
    ],
    clips: Annotated[Path, option("--clips", "DIR", "Folder of the labelled clips.")],
    root: Annotated[Path, option("--root", "DIR", "Gets CLASS/*.mp4; made if needed.")],
    frame_rate: Annotated[
        float | None,
        option(
            "--frame-rate",
            "NUMBER",
            "Pictures a second, where a file counts pictures: frameRate of Label Studio's <Video>, 24 unless set.",
            min=1,
            max=1000,
        ),
    ] = None,
) -> None:
    """Cut what people labelled into a folder of classes, for `avfs fewshot --data DIR`.

    Of Label Studio the annotations are read, and the predictions of tasks that have none. What is there
    already is not cut again. Clips that are missing or cannot be read are named and the others go on; exit
    status 1 if there are any.

    Examples: avfs data import export.json --clips clips --root mine
              avfs data import exported/labels.json --clips exported/data --root mine
              avfs data import timelines/*.eaf --clips clips --root mine
    """
    from avfewshot.data.importing import ClassFolders, read_stretches

    if not clips.is_dir():
        raise UsageError(f"--clips {clips}: there is no such folder.", hint="Name the folder of the labelled clips.")
    raise_faults(check_folder(root, "--root"))
    stretches = dict.fromkeys(stretch for file in files for stretch in read_stretches(file, frame_rate))
    target, counts, failed = ClassFolders(clips, root), [0, 0], 0
    with progress_bar(len(stretches), "clip", "cutting") as bar:
        for stretch in stretches:
            try:
                counts[target.add(stretch)] += 1
            except (AvfsError, OSError) as error:
                if any(os.strerror(number) in str(error) for number in DISK_FULL):  # a text, from another process
                    hint = "Make room there: the same command goes on from here."
                    raise AvfsError(f"{root}: {os.strerror(errno.ENOSPC)}.", hint=hint) from error
                say(printable(str(error)))
                failed += 1
            bar.update()
    typer.echo(f"{root}: {counts[True]:,} cut, {counts[False]:,} there already, {failed:,} failed.")
    if failed:
        raise typer.Exit(1)


@said_when_interrupted()
def toy(
    root: Annotated[Path, option("--root", "DIR", "Folder to write to; made if needed.")],
    seed: Annotated[
        int, typer.Option(metavar="INTEGER", help="Each seed gives another world of the same classes.")
    ] = 0,
    clips_per_class: Annotated[
        int,
        typer.Option(
            metavar="INTEGER", help="Clips of each class in each data set: two thirds train, a sixth val, a sixth test."
        ),
    ] = 24,
    jobs: Annotated[int | None, option("--jobs", "INTEGER", "Processes; by default one for each processor.")] = None,
    force: Annotated[bool, option("--force", "", "Replace a toy world made with other settings.")] = False,
    only: Annotated[
        str | None,
        option("--only", "NAMES", "Some of ave,llp,vggsound,avs,avqa, or samples; by default the first three."),
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
    summary = build.run()
    for name in summary.edited:
        typer.echo(f"{root / name}: left as it is, since it was edited (--force writes it anew).")
    done = f"Wrote {count(summary.written, 'clip')} in {duration(summary.seconds)}; the toy world takes"
    typer.echo(f"{done if summary.written else 'Complete already:'} {summary.bytes / 1e6:,.0f} MB.")
    typer.echo(f"Next: cd {shlex.quote(str(root))} && avfs zeroshot --labels labels.txt samples --segments")


app = typer.Typer(no_args_is_help=True, add_completion=False, help="Make and look after data sets.")
for name, command in (("check", check), ("prepare", prepare), ("import", import_labels), ("toy", toy)):
    app.command(name)(command)
