"""Run folders: claimed by one run, locked while it is in use, with a record that --resume reads."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from avfewshot.cli.interrupts import Interrupts
from avfewshot.cli.logs import library_messages
from avfewshot.cli.terminal import say
from avfewshot.config import COMMANDS, SHAPING, Resolved, absolute, settings_of
from avfewshot.errors import AvfsError, DataError, UsageError, raise_faults
from avfewshot.io import alone, user_path, write_text

if TYPE_CHECKING:
    from avfewshot.cli.progress import Display
    from avfewshot.encoders.backbone import Backbone

RUN_FILE = "run.json"
FORMAT = 2
_TITLES = {"fewshot": "few-shot run", "pretrain": "pretraining", "train": "supervised training"}
_UNFIT = '/\\:*?"<>|'
_LONGEST_NAME = 100

Resume = Annotated[
    str | None, typer.Option("--resume", metavar="RUN", help="Go on with an interrupted run.", show_default=False)
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", metavar="", help="Print what would be done and what it would take, and stop.")
]


@contextlib.contextmanager
def session(how_to_resume: Callable[[], str | None] = lambda: None) -> Iterator[tuple[Display, Interrupts]]:
    """A display and signals around the work of a command; interrupted, it says how to go on, and the command ends."""
    with library_messages(), Interrupts() as interrupts:
        from avfewshot.cli.progress import Display

        try:
            with Display() as display:
                yield display, interrupts
        except KeyboardInterrupt:
            say(how_to_resume() or "Interrupted.")
            raise typer.Exit(interrupts.status) from None


def command_line(context: typer.Context) -> str:
    """The command as it was typed."""
    return shlex.join(["avfs", *(context.obj or ())])


@dataclass
class Run:
    """What a training is asked for, and its folder."""

    config: Any  # a FewshotConfig or PretrainConfig
    sources: dict[str, str]  # of its values, by key
    folder: Path  # need not exist before it is claimed
    command: str
    resumed: bool = False
    _lock: contextlib.ExitStack | None = field(default=None, repr=False)

    def claim(self) -> None:
        """Make the folder its own with the record in it; or lock the folder of a run that goes on.

        An :class:`AvfsError` where another process works on it.
        """
        if not self.resumed:
            wanted, number = self.folder, 1
            while True:
                try:
                    self.folder.mkdir(parents=True)
                    break
                except FileExistsError:
                    number += 1
                    self.folder = wanted.with_name(f"{wanted.name}-{number}")
            document = {"format": FORMAT, "kind": self.config.table, "command": self.command}
            document |= {"config": self.config.to_dict(), "sources": self.sources}
            write_text(self.folder / RUN_FILE, json.dumps(document, indent=2))
        self._lock = contextlib.ExitStack()  # held until the process ends, however it ends
        self._lock.enter_context(alone(self.folder, "another process works on this run"))

    def check_kept(self) -> None:
        """Raise an :class:`AvfsError` where its folder was taken away from the run that had claimed it."""
        if self._lock is not None and not (self.folder / RUN_FILE).is_file():
            message = f"{self.folder}: was removed or moved while the run wrote there; what is there now is not whole."
            raise AvfsError(message, hint="Give the command again that began it.")

    def rows(self, backbone: Backbone | None = None, training: Any = None) -> list[tuple[str, str, str]]:
        """(name, value, source) of every setting, as text.

        `backbone` and `training` are what is used in fact, where a checkpoint that was begun with has decided some.
        """
        decided = {} if training is None else {name: getattr(training, name) for name in SHAPING}
        if backbone is not None:
            decided["backbone"] = backbone.name
        rows = []
        for key, single in settings_of(type(self.config)).items():
            shown, source = single.show(Resolved(self.config)[key]), self.sources[key]
            if single.section in ("training", "model") and single.name in decided:
                used = single.show(decided[single.name])
                shown, source = used, source if used == shown else "the checkpoint begun with"
            rows.append((single.name, shown, source))
        return rows

    def trackers(self, folder: Path) -> list[Any]:
        """What sends the metrics of the training in `folder` to the tracker that was asked for, if any."""
        name = self.config.run.tracker
        raise_faults(tracker_faults(name))
        if name is None:
            return []
        from avfewshot.training.trackers import Tracker

        part = folder.relative_to(self.folder).as_posix()
        return [Tracker(name, self.folder, "run" if part == "." else part, self.config.to_dict())]

    def how_to_resume(self) -> str | None:
        """What to say when it was interrupted; None where there is nothing to go on with."""
        if not (self.folder / RUN_FILE).is_file():
            return None
        return f"Interrupted. To go on: avfs {self.config.table} --resume {shlex.quote(str(self.folder))}"


def new_run(settings: Resolved, group: str, label: str, command: str) -> Run:
    """A run that begins: its folder will be ``RUNS/GROUP/TIME-NAME``, NAME being `label` where the person gave none.

    Paths of the settings become absolute, so that the run can go on from another folder.
    """
    runs, name = settings.config.run.runs, settings.config.run.name
    folder = runs / group / f"{datetime.now(timezone.utc).strftime('%Y%m%d-%H%M%S')}-{name or label}"
    return Run(absolute(settings.config), settings.sources, folder, command)


def tracker_faults(name: str | None) -> list[UsageError]:
    """That the package of a tracker is not installed."""
    if name is None or importlib.util.find_spec(name) is not None:
        return []
    return [UsageError(f"--tracker {name}: it is not installed.", hint=f"pip install 'avfewshot[{name}]'")]


def run_faults(settings: Resolved) -> list[UsageError]:
    """What stands against making the run folder and tracking it: told now, not when the weights are loaded."""
    return [*tracker_faults(settings["tracker"]), *folder_faults(settings)]


def folder_faults(settings: Resolved) -> list[UsageError]:
    """What stands against a folder called --name below --runs."""
    runs, name, faults = settings["runs"], settings["name"], []
    if name is not None:
        unfit = not name or name.startswith(".") or any(letter in _UNFIT or not letter.isprintable() for letter in name)
        if unfit or len(name) > _LONGEST_NAME:
            shown = name if len(name) <= _LONGEST_NAME else f"{name[:20]}..."
            hint = f"Use letters, digits and dashes, {_LONGEST_NAME} at most."
            faults.append(UsageError(f"--name {shown!r} cannot be part of a folder's name.", hint=hint))
    nearest = next(folder for folder in (runs, *runs.absolute().parents) if folder.exists())
    if not (nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)):
        what = "nothing may be written there" if nearest.is_dir() else f"{nearest} is not a folder"
        hint = "Give another folder with --runs DIR."
        faults.append(UsageError(f"{settings.named('runs')} {runs}: {what}.", hint=hint))
    return faults


def resumed_run(
    table: str, named: str, flags: Mapping[str, Any], *, may_change: tuple[str, ...], option: str = "--resume"
) -> Run:
    """A run that goes on with the settings that it was begun with, but for the keys of `may_change`.

    What is given in `flags` must be as in the run; `option` is what its folder was `named` with, for messages.

    Raises:
        UsageError: There is no such run, or `flags` hold what cannot be read or differs; several faults at once.
        DataError: Its record is damaged, or that of another command or version.
    """
    model = COMMANDS[table]
    folder = user_path(named)
    path = folder / RUN_FILE
    if not path.is_file():
        what, hint = "is not the folder of a run", f"It holds no {RUN_FILE}."
        if not folder.exists():
            what, hint = "there is no such folder", "Runs lie in runs/TASK/TIME-NAME."
        raise UsageError(f"{option} {folder}: {what}.", hint=hint)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        stored = record["format"], record["kind"]
        if stored != (FORMAT, table):
            other = stored[1] if stored[0] == FORMAT and stored[1] in _TITLES else None
            hint = "Begin a new run." if other is None else f"It was begun by `avfs {other}`."
            raise DataError(f"{path}: is not the record of a {_TITLES[table]} of this version.", hint=hint)
        config = model.from_dict(record["config"], where=str(path))
        # Settings that were added since have their defaults, in the configuration too.
        sources = {key: str(record["sources"].get(key, "default")) for key in settings_of(model)}
        command = str(record["command"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: is damaged ({error}).", hint="Begin a new run.") from None
    run = Run(config, sources, folder, command, resumed=True)
    before, faults, contrary = Resolved(config), [], []
    for key, single in settings_of(model).items():
        raw = flags.get(key)
        if raw is None or raw == []:
            continue
        try:
            value = absolute(single.parse(raw, from_text=True))
        except ValueError as error:
            faults.append(UsageError(f"{single.flag}: {error}"))
            continue
        if key in may_change:
            group = str(single.section)
            run.config = run.config.replace(**{group: getattr(run.config, group).replace(**{single.name: value})})
        elif value != before[key]:
            contrary.append(f"{single.flag} {single.show(value)} (the run: {single.show(before[key])})")
    if contrary:
        what = f"{option} goes on with the settings that the run was begun with; it cannot be given with"
        faults.append(UsageError(f"{what} {', '.join(contrary)}.", hint="Begin a new run for other settings."))
    raise_faults(faults)
    return run
