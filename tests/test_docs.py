"""The documentation: its site builds without a warning, and its commands and options exist."""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from avfewshot.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def helped(*command: str) -> str:
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    call = [sys.executable, "-m", "avfewshot", *command, "--help"]
    return subprocess.run(call, capture_output=True, text=True, check=True, env=environment).stdout


def commands(page: Path) -> list[list[str]]:
    """The calls of `avfs` in code blocks and in single code spans, as words."""
    text = page.read_text(encoding="utf-8")
    lines = re.findall(r"^(?: {4,}|\$ )(?:\$ )?(avfs .+)$", text, flags=re.M) + re.findall(r"`(avfs [^`]+)`", text)
    found = []
    for line in lines:
        line = line.split(" #")[0].split("   ")[0].split("&&")[0]
        try:
            found.append(shlex.split(line.replace("\\|", "|")))
        except ValueError:  # prose with an apostrophe
            continue
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_and_options_exist(page):
    for words in commands(page):
        name = words[1].split("|")[0] if len(words) > 1 else ""
        if name.startswith("-") or not name.islower():
            continue
        assert name in COMMANDS, shlex.join(words)
        options = {word.split("=")[0].split("|")[0].rstrip(",.;:)") for word in words if word.startswith("--")}
        # Groups as `weights` and `data` have their options on the second word.
        second = words[2] if len(words) > 2 and f"│ {words[2]} " in helped(name) else None
        known = helped(name) + (helped(name, second) if second and "Commands" in helped(name) else "")
        for option in options - {"--help", "--debug"}:
            root = re.sub(r"^--no-", "--", option)
            assert re.search(rf"{re.escape(root)}\b|{re.escape(option)}\b|--no-{root[2:]}\b", known), (
                f"{page.name}: {shlex.join(words)}: there is no {option}"
            )


def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install 'avfewshot[docs]'")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(
        call, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert built.returncode == 0, built.stderr[-2000:]
    page = (tmp_path / "site" / "commands" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="avfs-{name}"' in page for name in COMMANDS)
    assert "--labels" in page
