"""What shells complete the values of arguments and options with, where their declaration does not say it itself."""

from __future__ import annotations

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


def _presets() -> list[str]:
    from avfewshot.encoders.presets import preset_names

    return preset_names()


def _templates() -> list[str]:
    from avfewshot.prompts import template_names

    return template_names()


def _runs() -> list[str]:
    """Run folders below the folder of runs; nothing is read but names."""
    from avfewshot.config import resolve

    folder = resolve("fewshot")["runs"]
    return [str(path.parent) for path in sorted(Path(folder).glob("*/*/run.json"), reverse=True)]


def _tables() -> list[str]:
    from avfewshot.config import COMMANDS

    return list(COMMANDS)


def _caches() -> list[str]:
    from avfewshot.cli.cache import KINDS

    return list(KINDS)


def _tasks() -> tuple[str, ...]:
    from avfewshot.supervised.base import task_names

    return task_names()


def _heads() -> list[str]:
    from avfewshot.supervised.base import load_task, task_names

    return list(dict.fromkeys(head for task in task_names() for head in load_task(task).heads))


def _subsets() -> list[str]:
    from avfewshot.data.avsbench import SUBSETS

    return list(SUBSETS)


def _toy_parts() -> tuple[str, ...]:
    from avfewshot.toyworld.build import ALL_PLANS

    return (*ALL_PLANS, "samples")


def _pretraining_lists() -> tuple[str, ...]:
    from avfewshot.cli.pretrain import DATASETS

    return DATASETS


def _data_sets() -> list[str]:
    from avfewshot.config import TASKS
    from avfewshot.data.description import description_names

    return list(dict.fromkeys((*TASKS, *description_names())))


_BY_METAVAR: dict[str, Callable[[], Iterable[str]]] = {
    "RUN": _runs,
    "BACKBONE": _presets,
    "TABLE": _tables,
    "KIND": _caches,
    "TASK": _tasks,
    "DEVICE": lambda: ("auto", "cpu", "cuda", "cuda:0", "mps"),
}
_BY_PARAMETER: dict[tuple[str, str], Callable[[], Iterable[str]]] = {
    ("", "adapter"): _runs,
    ("", "templates"): _templates,
    ("pretrain", "dataset"): _pretraining_lists,
    ("train", "head"): _heads,
    ("train", "subset"): _subsets,
    ("suggest", "run"): _runs,
    ("data check", "task"): _data_sets,
    ("data check", "format_"): lambda: ("table", "json"),
    ("data prepare", "task"): _data_sets,
    ("data prepare", "splits"): lambda: ("train", "val", "test"),
    ("data toy", "only"): _toy_parts,
}
