"""The program: its commands, loaded only when they are called, and what becomes of errors."""

from __future__ import annotations

import copy
import functools
import io
import logging
import os
import pkgutil
import platform
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from avfewshot.cli.exit_status import status_of
from avfewshot.cli.logs import DEBUG_VARIABLE, be_verbose, end_logs, log_to
from avfewshot.cli.terminal import be_quiet
from avfewshot.errors import UsageError
from avfewshot.io import user_path

HELP = """
Classify video clips by sight [bold]and[/bold] sound, from labels or from a handful of clips, with CLIP and CLAP.

[bold]Examples[/bold]

  avfs data toy --root toy                     make clips to play with
  avfs zeroshot --labels labels.txt            classify all below this folder
  avfs zeroshot --labels labels.txt a.mp4 b/   these files and folders
  avfs fewshot --shots 4 --data my_clips       learn from my_clips/CLASS/*.mp4
  avfs zeroshot --adapter RUN clips/           predict with what was learnt
  avfs fewshot --shots 16 --task llp_cls       16 clips a class of a benchmark
  avfs pretrain vggsound40k                    pretrain the adapters
  avfs weights list                            which backbones there are
  avfs config                                  what is set, and where

Defaults can be set in `avfs.toml` in the current folder, or in the environment as AVFS_NAME.
"""

_GENERAL = ("quiet", "verbose", "log_file", "timeout", "debug")

COMMANDS = {  # by name: what is called, a function or a group, imported when it is called; and its summary
    "zeroshot": ("zeroshot:zeroshot", "Classify clips, with nothing but a list of labels."),
    "fewshot": ("fewshot:fewshot", "Learn from a handful of clips a class, and evaluate."),
    "compare": ("compare:compare", "Few-shot methods side by side, over shots and seeds."),
    "learn": ("learn:learn", "Add classes and clips to a few-shot run, or take classes away."),
    "embed": ("embed:embed", "Embed a collection of clips into a store, again for what has changed."),
    "find": ("find:find", "Search a store by words, or by a clip."),
    "suggest": ("suggest:suggest", "Which clips of a store to label next, for a few-shot run."),
    "serve": ("serve:serve", "A page to look at clips, correct them and learn from it; a JSON API."),
    "pretrain": ("pretrain:pretrain", "Pretrain adapters on VGG-Sound(40K)."),
    "train": ("train:train", "Train a supervised task: AVE, AVVP, AVS, AVQA."),
    "eval": ("eval:evaluate", "Evaluate a supervised run, with a modality off if you like."),
    "predict": ("predict:predict", "Answer about new clips with a supervised run."),
    "weights": ("weights:app", "List, fetch and check the weights of backbones."),
    "data": ("data:app", "Make toy clips; look after data sets."),
    "export": ("export:export", "Write a classifier as ONNX graphs, for machines without torch."),
    "push": ("push:push", "Put what a run learnt onto the Hugging Face hub."),
    "cache": ("cache:cache", "Say what is kept between runs, and empty it."),
    "doctor": ("doctor:doctor", "Say what is installed and here, and what would go wrong."),
    "config": ("config:config", "Show every setting, its value and where it came from."),
}


class LazyGroup(typer.core.TyperGroup):
    """Knows the names and summaries of the commands; imports the one that is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, (_, summary) in COMMANDS.items():
            self.commands[name] = typer.core.TyperCommand(name, help=summary)

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of `avfs` itself, switches off by default.

        typer makes them None by default and reads a None with pydantic, whose import takes longer than a help text.
        """
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if parameter.name in {"install_completion", "show_completion", "help"}:
                parameter.default, parameter.metavar = False, ""
        return parameters

    def invoke(self, ctx: Any) -> Any:
        """Call the command that is named; an interrupt goes past typer, which would make status 130 of any signal."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise typer.Abort from None

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Put the real command in the place of its stand-in; called for runs, helps and completions of a command."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = _load(name)
        return name, command, rest


def _load(name: str) -> Any:
    called = pkgutil.resolve_name(f"avfewshot.cli.{COMMANDS[name][0]}")
    if not isinstance(called, typer.Typer):
        single = typer.Typer(add_completion=False)
        single.command()(called)
        called = single
    command = typer.main.get_command(called)
    _complete(name, command)
    return command


def _complete(name: str, command: Any) -> None:
    """Let help texts run on, shells complete values, switches none, `--quiet` stand behind `data check`, too."""
    command.name = name.split()[-1]
    command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", command.help or "")
    command.get_help_option(typer.Context(command, **_SETTINGS)).metavar = ""  # else typer shows the type of a switch
    below = getattr(command, "commands", {})
    for key, single in below.items():
        _complete(f"{name} {key}", single)
    for parameter in command.params:
        if parameter._custom_shell_complete is None and (values := _values(name, parameter)) is not None:
            parameter._custom_shell_complete = functools.partial(_beginning, values)
    for parameter in () if below else typer.main.get_command(app).params:
        if parameter.name in _GENERAL:
            parameter: Any = copy.copy(parameter)
            parameter.expose_value, parameter.rich_help_panel = False, "Every command"
            command.params.append(parameter)


def _beginning(values: Callable[[], Iterable[str]], context: Any, parameter: Any, incomplete: str) -> list[str]:
    return [value for value in values() if value.startswith(incomplete)]


def _values(command: str, parameter: Any) -> Callable[[], Iterable[str]] | None:
    """Gives the values that a parameter can have; None where they are not known."""
    metavar = (parameter.metavar or "").strip("[].,")
    known = _BY_PARAMETER.get((command, parameter.name)) or _BY_PARAMETER.get(("", parameter.name))
    words = [word for word in metavar.split("|") if re.fullmatch("[a-z][a-z0-9_-]*", word)]
    return known or _BY_METAVAR.get(metavar) or ((lambda: words) if words else None)


def _runs() -> list[str]:
    """Run folders below the folder of runs; nothing is read but names."""
    from avfewshot.config import resolve

    folder = resolve("fewshot")["runs"]
    return [str(path.parent) for path in sorted(Path(folder).glob("*/*/run.json"), reverse=True)]


def _heads() -> list[str]:
    from avfewshot.supervised.base import load_task, task_names

    return list(dict.fromkeys(head for task in task_names() for head in load_task(task).heads))


def _data_sets() -> list[str]:
    from avfewshot.config import TASKS
    from avfewshot.data.description import description_names

    return list(dict.fromkeys((*TASKS, *description_names())))


def _of(name: str) -> Callable[[], Iterable[str]]:
    """The words that a name of a module holds, or gives when it is called; imported when they are wanted."""

    def words() -> Any:
        found = pkgutil.resolve_name(f"avfewshot.{name}")
        return found() if callable(found) else list(found)

    return words


_SETTINGS: Any = {"help_option_names": ["-h", "--help"]}
_BY_METAVAR: dict[str, Callable[[], Iterable[str]]] = {
    "RUN": _runs,
    "BACKBONE": _of("encoders.presets:preset_names"),
    "TABLE": _of("config:COMMANDS"),
    "KIND": _of("cli.cache:KINDS"),
    "TASK": _of("supervised.base:task_names"),
}
_BY_PARAMETER: dict[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("", "adapter"): _runs,
    ("", "backbone"): _of("encoders.presets:preset_names"),
    ("", "device"): lambda: ("auto", "cpu", "cuda", "cuda:0", "mps"),
    ("", "method"): _of("config:method_choices"),
    ("", "methods"): _of("config:method_choices"),
    ("", "templates"): _of("prompts:template_names"),
    ("pretrain", "dataset"): _of("cli.pretrain:DATASETS"),
    ("train", "head"): _heads,
    ("train", "subset"): _of("data.avsbench:SUBSETS"),
    ("suggest", "run"): _runs,
    ("data check", "task"): _data_sets,
    ("data prepare", "task"): _data_sets,
    ("data prepare", "splits"): lambda: ("train", "val", "test"),
    ("data toy", "only"): lambda: (*_of("toyworld.build:ALL_PLANS")(), "samples"),
}

app = typer.Typer(cls=LazyGroup, context_settings=_SETTINGS)

_LOG = logging.getLogger(__name__)
_called_with = ["avfs"]


def _version() -> str:
    from avfewshot.version import __version__

    return f"avfs {__version__}"


def _print_version(value: bool) -> None:
    if value:
        typer.echo(_version())
        raise typer.Exit


def _set_log_file(value: str) -> None:
    if value:
        log_to(user_path(value))
        _LOG.info("%s, Python %s, %s", _version(), platform.python_version(), platform.platform())
        _LOG.info("in %s: %s", os.getcwd(), shlex.join(_called_with))


def _set_timeout(value: str) -> None:
    if value:
        try:
            usable = 0 < float(value) < float("inf")
        except ValueError:
            usable = False
        if not usable:
            raise UsageError(f"--timeout: a number of seconds that is more than 0 is needed, not {value!r}.")
        os.environ["AVFS_TIMEOUT"] = value  # decoding processes and those of training inherit it


@app.callback(invoke_without_command=True, help=HELP)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", metavar="", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
    quiet: Annotated[
        bool,
        typer.Option(
            "--quiet", "-q", metavar="", help="Only results and errors.", callback=lambda on: on and be_quiet()
        ),
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", metavar="", help="Say what is done with what; -vv: for each file.", count=True,
            callback=lambda level: level and be_verbose(level), show_default=False,
        ),
    ] = 0,
    log_file: Annotated[
        str,
        typer.Option(
            metavar="FILE", help="Append all that is told, details and tracebacks to a file.", callback=_set_log_file,
            show_default=False, is_eager=True,
        ),
    ] = "",
    timeout: Annotated[
        str,
        typer.Option(
            metavar="SECONDS", help="Time limit to decode a media file (default: 60, or AVFS_TIMEOUT).",
            callback=_set_timeout, show_default=False,
        ),
    ] = "",
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", metavar="", callback=lambda on: on and os.environ.update({DEBUG_VARIABLE: "1"}),
            help=f"Show tracebacks and library warnings (or set {DEBUG_VARIABLE}=1).",
        ),
    ] = False,
) -> None:  # fmt: skip
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def run(arguments: Sequence[str]) -> int:
    """Run the program with these arguments, without its own name; gives the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a character that the terminal does not know must not end the run
            stream.reconfigure(errors="backslashreplace")
    program = typer.main.get_command(app)
    _called_with[1:] = arguments
    before = dict(os.environ)  # --timeout and --debug set variables, which other processes inherit
    try:
        # The arguments travel along for commands that record how they were called.
        status = status_of(
            lambda: program.main(list(arguments), prog_name="avfs", standalone_mode=False, obj=tuple(arguments))
        )
        _LOG.debug("exit status %d", status)
        return status
    finally:
        be_quiet(False)
        end_logs()
        for name in ("AVFS_TIMEOUT", DEBUG_VARIABLE):
            os.environ.pop(name, None)
            os.environ.update({name: before[name]} if name in before else {})
