"""What commands of `avfs data` are told alike: where a data set is, which parts of it; and that they can go on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import data_root
from avfewshot.cli.options import option
from avfewshot.cli.terminal import say
from avfewshot.errors import UsageError

Root = Annotated[Path | None, option("--root", "DIR", "Folder with the annotation files and clips.")]
Media = Annotated[list[Path] | None, option("--media", "DIR", "Folder with the clips, if elsewhere; may be repeated.")]
ListFile = Annotated[Path | None, option("--list", "FILE", "For VGG-Sound: the list to read.")]


def load_any(task: str, root: Path | None, media: list[Path], list_file: Path | None) -> Any:
    """A data set by task or name, or a folder of clips where `task` is ``folder``.

    A :class:`UsageError` where ``folder`` comes without `root`, or with one of the others.
    """
    from avfewshot.data.folder import load_folder
    from avfewshot.data.load import load_dataset

    if task != "folder":
        return load_dataset(task, data_root(task, root), media=media, list_file=list_file)
    if root is None:
        raise UsageError("A folder of clips needs --root.", hint="avfs data check folder --root my_clips")
    if media or list_file:
        raise UsageError("--media and --list are not for a folder of clips.", hint="Its clips lie in --root.")
    return load_folder(root)


def names_of(text: str | None) -> list[str] | None:
    """The words of a list by comma."""
    return None if text is None else [name.strip().lower() for name in text.split(",") if name.strip()]


@contextlib.contextmanager
def said_when_interrupted() -> Iterator[None]:
    """Say on Ctrl-C, or where the command is asked to end, that nothing is lost."""
    with Interrupts() as interrupts:
        try:
            yield
        except KeyboardInterrupt:
            say("Interrupted; the same command goes on from here.")
            raise typer.Exit(interrupts.status) from None
