"""What shells complete the values of arguments and options with, where their declaration does not say it itself."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

_WORDS = re.compile(r"\[?[a-z][a-z0-9_]*(\|[a-z0-9_:]+)+\]?")


def add_completions(name: str, command: Any) -> None:
    """Complete the values of a command's parameters; `name` is that of the command in full: ``data check``."""
    for key, below in getattr(command, "commands", {}).items():
        add_completions(f"{name} {key}", below)
    for parameter in command.params:
        if parameter._custom_shell_complete is None and (values := _values(name, parameter)) is not None:
            parameter._custom_shell_complete = _completing(values)


def _completing(values: Callable[[], Iterable[str]]) -> Callable[[Any, Any, str], list[str]]:
    def complete(context: Any, parameter: Any, incomplete: str) -> list[str]:
        return [value for value in values() if value.startswith(incomplete)]

    return complete


def _values(command: str, parameter: Any) -> Callable[[], Iterable[str]] | None:
    """Gives the values that a parameter can have; None where they are not known."""
    if parameter.metavar is not None and _WORDS.fullmatch(parameter.metavar):
        words = parameter.metavar.strip("[]").split("|")
        return lambda: words
    known = _BY_PARAMETER.get((command, parameter.name)) or _BY_PARAMETER.get(("", parameter.name))
    return known or _BY_METAVAR.get((parameter.metavar or "").strip("[]."))


def _runs() -> list[str]:
    """Run folders below the folder of runs; nothing is read but names."""
    from avfewshot.config import resolve

    folder = resolve("fewshot")["runs"]
    return [str(path.parent) for path in sorted(Path(folder).glob("*/*/run.json"), reverse=True)]


def _heads() -> list[str]:
    from avfewshot.supervised.base import load_task, task_names

    return list(dict.fromkeys(head for task in task_names() for head in load_task(task).heads))


def _toy_parts() -> tuple[str, ...]:
    from avfewshot.toyworld.build import ALL_PLANS

    return (*ALL_PLANS, "samples")


def _data_sets() -> list[str]:
    from avfewshot.config import TASKS
    from avfewshot.data.description import description_names

    return list(dict.fromkeys((*TASKS, *description_names())))


def _of(module: str, name: str) -> Callable[[], Iterable[str]]:
    """The words that a name of a module holds, or gives when it is called; imported when they are wanted."""

    def words() -> Any:
        found = getattr(importlib.import_module(f"avfewshot.{module}"), name)
        return found() if callable(found) else list(found)

    return words


_BY_METAVAR: dict[str, Callable[[], Iterable[str]]] = {
    "RUN": _runs,
    "BACKBONE": _of("encoders.presets", "preset_names"),
    "TABLE": _of("config", "COMMANDS"),
    "KIND": _of("cli.cache", "KINDS"),
    "TASK": _of("supervised.base", "task_names"),
    "DEVICE": lambda: ("auto", "cpu", "cuda", "cuda:0", "mps"),
}
_BY_PARAMETER: dict[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("", "adapter"): _runs,
    ("", "templates"): _of("prompts", "template_names"),
    ("pretrain", "dataset"): _of("cli.pretrain", "DATASETS"),
    ("train", "head"): _heads,
    ("train", "subset"): _of("data.avsbench", "SUBSETS"),
    ("suggest", "run"): _runs,
    ("data check", "task"): _data_sets,
    ("data prepare", "task"): _data_sets,
    ("data prepare", "splits"): lambda: ("train", "val", "test"),
    ("data toy", "only"): _toy_parts,
}
