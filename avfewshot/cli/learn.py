"""`avfs learn`: classes of a few-shot run come and go, in milliseconds once their clips are embedded."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.loading import find_run
from avfewshot.cli.logs import library_messages
from avfewshot.cli.options import argument, option
from avfewshot.cli.terminal import say
from avfewshot.config import not_one_of
from avfewshot.errors import DataError, UsageError
from avfewshot.io import alone, user_path, write_text
from avfewshot.labels import LabelSet
from avfewshot.reports.text import count
from avfewshot.text import fold

_UNFINISHED = ".learn-"
_ACTIONS = {"list": "nothing more", "add": "a class and clips", "remove": "a class and no clips"}


def learn(
    run: Annotated[str, argument("RUN", "Folder of a few-shot run.")],
    action: Annotated[str, argument("list|add|remove", "What to do.")],
    name: Annotated[str | None, argument("CLASS", "The class.")] = None,
    clips: Annotated[list[str] | None, argument("PATH", "Clips to learn, folders too.")] = None,
    wording: Annotated[str | None, option("--wording", "TEXT", "What the text branches read.")] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="Where to embed.")] = "auto",
) -> None:
    """Add a class or clips to a few-shot run, or take a class away: a block update of its kernel ridge, equal to a full
    fit.

    [bold]Examples[/bold]

      avfs learn RUN list
      avfs learn RUN add "dog barking" new_clips/        a new class, or more clips of an old one
      avfs learn RUN add none noise/                     clips that show none of the classes
      avfs learn RUN remove "dog barking"

    What is learnt is written into the run: `avfs zeroshot --adapter RUN` answers with it at once. A clip that cannot be
    read is named and left out.

    [bold]Exit status:[/bold] 0 all done, 1 some clips failed, 2 misuse.
    """  # noqa: D205
    folder = user_path(run)
    hint = "avfs learn --help has examples."
    if action not in _ACTIONS:
        raise UsageError(not_one_of(action, _ACTIONS), hint=hint)
    if (action == "list") != (name is None) or (action == "add") != bool(clips):
        raise UsageError(f"avfs learn RUN {action}: takes {_ACTIONS[action]}.", hint=hint)
    if wording and action != "add":
        raise UsageError(f"avfs learn RUN {action}: takes no --wording.", hint=hint)
    if run.startswith("hf:/") and action != "list":
        raise UsageError(f"{run}: a commit of the hub stays as it is.", hint="Teach a run of your own, then avfs push.")
    found = find_run(folder)
    if action == "list":
        targets = found.scorer.clip.arrays.get("targets")  # kernel ridge keeps its clips
        counts = iter([] if targets is None else (targets > 0).sum(0).tolist())
        for label, learnt in zip(found.scorer.texts.names, found.scorer.trained, strict=True):
            known = "learnt" if targets is None else count(next(counts), "clip")
            typer.echo(f"{label}: {known}" if learnt else f"{label}: by its name alone")
        if found.none is not None:
            typer.echo(f"{found.none}: {'learnt' if targets is None else count(next(counts), 'clip')}")
        return
    assert name is not None
    with ExitStack() as held:
        for place in {folder.resolve(), found.path.resolve()}:  # the run may be named by one of its folders
            held.enter_context(alone(place, "another `avfs learn` changes this run"))
        for left in found.path.glob(f"{_UNFINISHED}*"):  # by one that was killed
            shutil.rmtree(left)
        _change(folder, action, name, clips or [], wording, device)


def _change(folder: Path, action: str, name: str, clips: list[str], wording: str | None, device: str) -> None:
    from avfewshot.methods.living import LivingRidge
    from avfewshot.models.checkpoint import CONFIG_NAME, FORMAT

    found, failed = find_run(folder), False
    name = _label(found.config.labels, name)
    if action == "remove":
        LivingRidge(found.scorer).remove(None if name == found.none else name)
        kept = [row for row, label in enumerate(found.config.labels) if label != name]
        labels = tuple(found.config.labels[row] for row in kept)
        config = replace(found.config, labels=labels, wordings=tuple(found.config.wordings[row] for row in kept))
    else:
        with library_messages():
            config, failed = _add(found, folder, name, wording, clips, device)
    # All files first, then each in its place: neither a full disk nor a signal leaves some that do not go together.
    with Interrupts() as interrupts, TemporaryDirectory(prefix=_UNFINISHED, dir=found.path) as place:
        found.scorer.save(place)
        write_text(Path(place, CONFIG_NAME), json.dumps({"format": FORMAT, **asdict(config)}, indent=2))
        with interrupts.put_off():
            for path in list(filter(Path.is_file, Path(place).rglob("*"))):
                target = found.path / path.relative_to(place)
                target.parent.mkdir(exist_ok=True)
                path.replace(target)
    say(f"{found.path}: {len(config.labels)} classes.")
    if failed:
        raise typer.Exit(1)


def _label(labels: Sequence[str], name: str) -> str:
    """What a run calls a class: its label, be it spelt another way; or a new one, as of a folder."""
    from avfewshot.data.folder import clean_name

    return name if name in labels else next((label for label in labels if fold(label) == fold(name)), clean_name(name))


def _add(found, folder: Path, name: str, wording: str | None, clips: list[str], device: str):
    import numpy as np

    from avfewshot.data.description import default_wording
    from avfewshot.data.folder import NONE_FOLDER
    from avfewshot.inference.head import frozen_part
    from avfewshot.inference.loading import load
    from avfewshot.inference.results import Failure
    from avfewshot.methods.base import Features, LabelFeatures
    from avfewshot.methods.living import LivingRidge

    labels, wordings = list(found.config.labels), list(found.config.wordings)
    if name not in labels:
        if not name:
            raise UsageError("A class needs a name that can be seen.", hint='avfs learn RUN add "dog barking" clips/')
        if name.startswith("-"):
            what = f"{name!r}: a dash in front is for counter-examples, which are learnt when a run is made."
            raise UsageError(what, hint="Put them into a folder -CLASS/ beside the others; then avfs fewshot.")
        labels.append(name)
        wordings.append(wording or default_wording(name))
        LabelSet.from_wordings(dict(zip(labels, wordings, strict=True)))
    elif wording and wording != wordings[labels.index(name)]:
        what = f"{name!r} is learnt as {wordings[labels.index(name)]!r}, so it has no other --wording."
        raise UsageError(what, hint="Leave it out, or remove the class first.")
    classifier = load(adapter=str(folder), device=device, cache=True)
    files = list(classifier.iter_embed(clips))
    for file in files:
        if isinstance(file, Failure):
            say(f"left out: {file.path}: {file.error}")
    usable = [file for file in files if not isinstance(file, Failure)]
    if not usable:
        raise DataError(f"None of {', '.join(clips)} can be learnt from.", hint="Give clips that can be read.")
    none = found.none or (name if fold(name) == NONE_FOLDER and name not in found.config.labels else None)
    shown = [row for row, label in enumerate(labels) if label != none]  # "none of these" has no text
    texts: LabelFeatures = classifier.label_features(labels, wordings).take(shown)
    marks = np.zeros((len(usable), len(labels)), dtype=bool)
    marks[:, labels.index(name)] = True
    marks = marks[:, shown]
    features = Features.of(frozen_part(file.by_clip, classifier.dims) for file in usable)
    ridge = LivingRidge(found.scorer)
    known, asked = ridge.learnt_as(features), None if name == none else name
    new = np.array([row for row, classes in enumerate(known) if asked not in classes], dtype=int)
    if len(new) < len(usable):
        say(f"left out: {count(len(usable) - len(new), 'clip')} that {found.path} has learnt as {name!r} already.")
    if len(new):
        ridge.add(features.take(new), marks[new], texts)
    say(f"{count(len(new), 'clip')} learnt as {name!r}.")
    if ridge.outgrown:
        say("This run stays with the rule of one clip a class; `avfs fewshot` on these clips would find a better one.")
    if others := set[str | None]().union(*(known[row] for row in new)):
        shown = ", ".join(sorted(repr(none if label is None else label) for label in others))
        say(f"Some of them stay learnt as {shown}, too.")
    return replace(found.config, labels=tuple(labels), wordings=tuple(wordings)), len(usable) < len(files)
