"""Hooks of the documentation site (`make docs`): helps of commands, docstrings, links out of docs/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

from griffe import Extension

MARK = "<!-- commands -->"


class PlainRoles(Extension):
    """Names in docstrings as code: the site would print Sphinx's ``:class:`` as it stands, and take it for a type."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            obj.docstring.value = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", obj.docstring.value)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in the help texts; a link that leaves docs/ becomes the file's name, since the site does not hold it."""
    if MARK in markdown:
        markdown = markdown.replace(MARK, "\n".join(_help(name) for name in ("", *_commands())))
    return re.sub(r"\[([^\]]+)\]\(\.\./([^)]+)\)", r"\1 (`\2`)", markdown)


def _commands() -> list[str]:
    from avfewshot.cli.app import COMMANDS

    return list(COMMANDS)


def _help(name: str) -> str:
    environment = {**os.environ, "COLUMNS": "100", "NO_COLOR": "1", "TERM": "dumb"}
    call = [sys.executable, "-m", "avfewshot", *name.split(), "--help"]
    text = subprocess.run(call, capture_output=True, text=True, check=True, env=environment).stdout
    title = f"avfs {name}".strip()
    return f"## {title}\n\n```text\n{text.strip()}\n```\n"
