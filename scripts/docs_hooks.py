"""Hooks of the documentation site (`make docs`): command pages from the program's own help; links that leave docs/."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from typing import Any

MARK = "<!-- commands -->"


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
