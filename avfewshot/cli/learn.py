"""`avfs learn`: classes of a few-shot run come and go, in milliseconds once their clips are embedded."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from avfewshot.cli.loading import find_run
from avfewshot.cli.logs import library_messages
from avfewshot.cli.options import argument, option
from avfewshot.cli.terminal import say
from avfewshot.config import not_one_of
from avfewshot.errors import AvfsError, UsageError
from avfewshot.io import try_lock, user_path, write_text
from avfewshot.reports.text import count

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

    What is learnt is written into the run: `avfs zeroshot --adapter RUN` answers with it at once.
    """  # noqa: D205
    folder = user_path(run)
    hint = "avfs learn --help has examples."
    if action not in _ACTIONS:
        raise UsageError(not_one_of(action, _ACTIONS), hint=hint)
    if (action == "list") != (name is None) or (action == "add") != bool(clips):
        raise UsageError(f"avfs learn RUN {action}: takes {_ACTIONS[action]}.", hint=hint)
    if run.startswith("hf:/") and action != "list":
        raise UsageError(f"{run}: a commit of the hub stays as it is.", hint="Teach a run of your own, then avfs push.")
    if action == "list":
        found = find_run(folder)
        targets = found.scorer.clip.arrays.get("targets")  # kernel ridge keeps its clips
        counts = iter([] if targets is None else (targets > 0).sum(0).tolist())
        for label, learnt in zip(found.scorer.texts.names, found.scorer.trained, strict=True):
            known = "learnt" if targets is None else count(next(counts), "clip")
            typer.echo(f"{label}: {known}" if learnt else f"{label}: by its name alone")
        if found.none is not None:
            typer.echo(f"{found.none}: {'learnt' if targets is None else count(next(counts), 'clip')}")
        return
    assert name is not None
    with _alone(folder):
        _change(folder, action, name, clips or [], wording, device)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold a run, so that what another process learns at the same time is not lost."""
    with ExitStack() as held:
        with suppress(OSError):  # no folder, which its reader says; Windows opens none
            handle = os.open(run, os.O_RDONLY)
            held.callback(os.close, handle)
            if not try_lock(handle, otherwise=True):
                hint = "Wait for it; then give the same command."
                raise AvfsError(f"{run}: another `avfs learn` changes this run.", hint=hint)
        yield


def _change(folder: Path, action: str, name: str, clips: list[str], wording: str | None, device: str) -> None:
    from avfewshot.methods.living import LivingRidge
    from avfewshot.models.checkpoint import CONFIG_NAME, FORMAT

    found = find_run(folder)
    if action == "remove":
        LivingRidge(found.scorer).remove(None if name == found.none else name)
        kept = [row for row, label in enumerate(found.config.labels) if label != name]
        labels = tuple(found.config.labels[row] for row in kept)
        config = replace(found.config, labels=labels, wordings=tuple(found.config.wordings[row] for row in kept))
    else:
        with library_messages():
            config = _add(found, folder, name, wording, clips, device)
    found.scorer.save(found.path)
    write_text(found.path / CONFIG_NAME, json.dumps({"format": FORMAT, **asdict(config)}, indent=2))
    say(f"{found.path}: {len(config.labels)} classes.")


def _add(found, folder: Path, name: str, wording: str | None, clips: list[str], device: str):
    import numpy as np

    from avfewshot.inference.loading import load
    from avfewshot.inference.results import Failure
    from avfewshot.methods.base import Features, LabelFeatures
    from avfewshot.methods.living import LivingRidge

    labels, wordings = list(found.config.labels), list(found.config.wordings)
    if name not in labels:
        labels.append(name)
        wordings.append(wording or name)
    classifier = load(adapter=str(folder), device=device, cache=True)
    files = list(classifier.iter_embed(clips))
    for file in files:
        if isinstance(file, Failure):
            say(f"left out: {file.path}: {file.error}")
    usable = [file for file in files if not isinstance(file, Failure)]
    if not usable:
        raise UsageError(f"None of {', '.join(clips)} can be learnt from.", hint="Give clips that can be read.")
    none = found.none or ("none" if name == "none" and name not in found.config.labels else None)
    shown = [row for row, label in enumerate(labels) if label != none]  # "none of these" has no text
    texts: LabelFeatures = classifier.label_features(labels, wordings).take(shown)
    marks = np.zeros((len(usable), len(labels)), dtype=bool)
    marks[:, labels.index(name)] = True
    marks = marks[:, shown]
    features = Features.of((file.path, file.visual, file.by_clip.audio) for file in usable)
    LivingRidge(found.scorer).add(features, marks, texts)
    say(f"{count(len(usable), 'clip')} learnt as {name!r}.")
    return replace(found.config, labels=tuple(labels), wordings=tuple(wordings))
