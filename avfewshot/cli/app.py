"""The program: its commands, loaded only when they are called, and what becomes of errors."""

from __future__ import annotations

import copy
import importlib
import io
import logging
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from avfewshot.cli import terminal
from avfewshot.cli.completion import add_completions
from avfewshot.errors import UsageError
from avfewshot.io import user_path

HELP = """
Classify video clips by what is seen [bold]and[/bold] heard, zero-shot from a list of labels, with CLIP and CLAP.

[bold]Examples[/bold]

  avfs data toy --root toy                     make clips to play with
  avfs zeroshot --labels labels.txt            classify what lies below this folder
  avfs zeroshot --labels labels.txt a.mp4 b/   these files and folders
  avfs fewshot --shots 16 --task llp_cls       train on 16 clips a class, evaluate on the test split
  avfs pretrain vggsound40k                    pretrain adapters, then: avfs zeroshot --task ave --adapter RUN
  avfs weights list                            which backbones there are
  avfs config                                  what is set, and where

Defaults can be set in `avfs.toml` in the current folder, or in the environment as AVFS_NAME.
"""


_COMPLETION = {"install_completion", "show_completion"}
_GENERAL = ("quiet", "verbose", "log_file", "timeout", "debug")
_PANEL = "Every command"


@dataclass(frozen=True)
class _Lazy:
    """A command whose module is imported when it is called."""

    module: str
    summary: str


COMMANDS = {
    "zeroshot": _Lazy("avfewshot.cli.zeroshot", "Classify clips, with nothing but a list of labels."),
    "fewshot": _Lazy("avfewshot.cli.fewshot", "Learn from a handful of clips a class, and evaluate."),
    "compare": _Lazy("avfewshot.cli.compare", "Few-shot methods side by side, over shots and seeds."),
    "learn": _Lazy("avfewshot.cli.learn", "Add classes and clips to a few-shot run, or take classes away."),
    "embed": _Lazy("avfewshot.cli.embed", "Embed a collection of clips into a store, again for what has changed."),
    "find": _Lazy("avfewshot.cli.find", "Search a store by words, or by a clip."),
    "suggest": _Lazy("avfewshot.cli.suggest", "Which clips of a store to label next, for a few-shot run."),
    "serve": _Lazy("avfewshot.cli.serve", "A page to look at clips, correct them and learn from it; a JSON API."),
    "pretrain": _Lazy("avfewshot.cli.pretrain", "Pretrain adapters on VGG-Sound(40K)."),
    "train": _Lazy("avfewshot.cli.train", "Train a supervised task: AVE, AVVP, AVS, AVQA."),
    "eval": _Lazy("avfewshot.cli.eval", "Evaluate a supervised run, with a modality off if you like."),
    "predict": _Lazy("avfewshot.cli.predict", "Answer about new clips with a supervised run."),
    "weights": _Lazy("avfewshot.cli.weights", "List, fetch and check the weights of backbones."),
    "data": _Lazy("avfewshot.cli.data", "Make toy clips; look after data sets."),
    "export": _Lazy("avfewshot.cli.export", "Write a classifier as ONNX graphs, for machines without torch."),
    "push": _Lazy("avfewshot.cli.push", "Put what a run learnt onto the Hugging Face hub."),
    "cache": _Lazy("avfewshot.cli.cache", "Say what is kept between runs, and empty it."),
    "doctor": _Lazy("avfewshot.cli.doctor", "Say what is installed and here, and what would go wrong."),
    "config": _Lazy("avfewshot.cli.config", "Show every setting, its value and where it came from."),
}


class LazyGroup(typer.core.TyperGroup):
    """Knows the names and summaries of the commands; imports the one that is called."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for name, lazy in COMMANDS.items():
            self.commands[name] = typer.core.TyperCommand(name, help=lazy.summary)

    def get_params(self, ctx: Any) -> list[Any]:
        """Options of `avfs` itself, switches off by default.

        typer makes them None by default and reads a None with pydantic, whose import takes longer than a help text.
        """
        parameters = super().get_params(ctx)
        for parameter in parameters:
            if parameter.name in {*_COMPLETION, "help"}:
                parameter.default = False
        return parameters

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[Any, Any, list[str]]:
        """Put the real command in the place of its stand-in; called for runs, helps and completions of a command."""
        name, command, rest = super().resolve_command(ctx, args)
        if name in COMMANDS:
            command = _load(name)
        return name, command, rest


def _load(name: str) -> Any:
    command = typer.main.get_command(importlib.import_module(COMMANDS[name].module).app)
    command.name = name
    # Installing completion is the business of `avfs` alone.
    command.params = [parameter for parameter in command.params if parameter.name not in _COMPLETION]
    add_completions(name, command)
    _complete(command)
    return command


def _complete(command: Any) -> None:
    """Let paragraphs of the help run on; people add `--quiet` and the like behind the command's name, too."""
    command.help = re.sub(r"(?<=\S)\n(?=\S)", " ", command.help or "")
    for below in getattr(command, "commands", {}).values():
        _complete(below)
    if not hasattr(command, "commands"):
        for parameter in typer.main.get_command(app).params:
            if parameter.name in _GENERAL:
                parameter: Any = copy.copy(parameter)
                parameter.expose_value, parameter.rich_help_panel = False, _PANEL
                command.params.append(parameter)


app = typer.Typer(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})


_LOG = logging.getLogger(__name__)
_called_with = ["avfs"]


def _version() -> str:
    from avfewshot.version import __version__

    return f"avfs {__version__}"


def _print_version(value: bool) -> None:
    if value:
        typer.echo(_version())
        raise typer.Exit


def _set_quiet(value: bool) -> None:
    if value:
        terminal.be_quiet()


def _set_verbose(value: int) -> None:
    if value:
        terminal.be_verbose(value)


def _set_log_file(value: str) -> None:
    if value:
        terminal.log_to(user_path(value))
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


def _set_debug(value: bool) -> None:
    if value:
        os.environ[terminal.DEBUG_VARIABLE] = "1"


@app.callback(invoke_without_command=True, help=HELP)
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", "-V", metavar="", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", metavar="", help="Only results and errors.", callback=_set_quiet)
    ] = False,
    verbose: Annotated[
        int,
        typer.Option(
            "--verbose", "-v", metavar="", help="Say what is done with what; -vv: for each file.", count=True,
            callback=_set_verbose, show_default=False,
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
            "--debug", metavar="", callback=_set_debug,
            help=f"Show tracebacks and library warnings (or set {terminal.DEBUG_VARIABLE}=1).",
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
    variables = {name: os.environ.get(name) for name in ("AVFS_TIMEOUT", terminal.DEBUG_VARIABLE)}
    try:
        # The arguments travel along for commands that record how they were called.
        status = terminal.status_of(
            lambda: program.main(list(arguments), prog_name="avfs", standalone_mode=False, obj=tuple(arguments))
        )
        _LOG.debug("exit status %d", status)
        return status
    finally:
        terminal.be_as_before()
        os.environ.update({name: value for name, value in variables.items() if value is not None})
        for name in (name for name, value in variables.items() if value is None):
            os.environ.pop(name, None)
