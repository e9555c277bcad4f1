"""`avfs data import`: what people labelled elsewhere, cut into a folder of classes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.options import argument, option
from avfewshot.cli.terminal import say
from avfewshot.errors import AvfsError, UsageError
from avfewshot.text import printable


def import_labels(
    files: Annotated[
        list[Path], argument("FILE...", "JSON exports of Label Studio, labels.json of FiftyOne, or .eaf of ELAN.")
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
    """Cut what people labelled into a folder of classes, for `--task folder`.

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
    stretches = [stretch for file in files for stretch in read_stretches(file, frame_rate)]
    target, counts, failed = ClassFolders(clips, root), [0, 0], 0
    for stretch in dict.fromkeys(stretches):
        try:
            counts[target.add(stretch)] += 1
        except (AvfsError, OSError) as error:  # noqa: PERF203
            say(printable(str(error)))
            failed += 1
    typer.echo(f"{root}: {counts[True]:,} cut, {counts[False]:,} there already, {failed:,} failed.")
    if failed:
        raise typer.Exit(1)
