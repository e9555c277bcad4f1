"""The documentation: its site builds without a warning, its commands and options exist, its notebook runs."""

import ast
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path
from pkgutil import resolve_name

import pytest
from command_support import execute

from avfewshot import errors
from avfewshot.cli.app import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@cache
def helped(*command: str) -> str:
    return execute(ROOT, *command, "--help", columns=200)[1]


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


@cache
def code() -> str:
    """All that is written for machines here."""
    folders = ("avfewshot", "benchmarks", "scripts", "tests", "data_splits")
    files = [path for folder in folders for kind in ("py", "yaml") for path in (ROOT / folder).rglob(f"*.{kind}")]
    return "\n".join(path.read_text(encoding="utf-8") for path in files)


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_scripts_and_their_options_exist(page):
    calls = re.findall(r"python ((?:benchmarks|scripts)/\w+\.py)([^`\n#]*)", page.read_text(encoding="utf-8"))
    for script, arguments in calls:
        known = (ROOT / script).read_text(encoding="utf-8")
        for option in re.findall(r"--[\w-]+", arguments):
            assert f'"{option}"' in known, (script, option)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_of_the_package_exist(page):
    text = re.sub(r"entry-points\S+", "", page.read_text(encoding="utf-8"))  # groups of entry points are no modules
    names = re.findall(r"(avfewshot(?:\.\w+)+)", text)
    for module, found in re.findall(r"from (avfewshot[\w.]*) import ([\w, ]+)", text):
        names += [f"{module}.{name}" for name in found.split(", ")]
    for name in names:
        resolve_name(name)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_other_names_occur_in_the_code(page):
    names = set(re.findall(r"`([A-Za-z]+_\w+)`", page.read_text(encoding="utf-8")))
    assert not [name for name in names if name not in code()]


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("C*.md"), *ROOT.glob("*/README.md")], ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\(([^):\s]+)\)", page.read_text(encoding="utf-8")):
        file, _, anchor = target.partition("#")
        path = page.parent / file if file else page
        assert path.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), flags=re.M)
            assert anchor in {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}, target


def test_the_site_builds_without_a_warning(tmp_path):
    if importlib.util.find_spec("mkdocs") is None or importlib.util.find_spec("mkdocstrings") is None:
        pytest.skip("mkdocs is not installed: pip install 'avfewshot[docs]'")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    built = subprocess.run(call, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert built.returncode == 0, built.stderr[-2000:]
    page = (tmp_path / "site" / "commands" / "index.html").read_text(encoding="utf-8")
    assert all(f'id="avfs-{name}"' in page for name in COMMANDS)
    assert "--labels" in page
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    assert "waveform=..." in api
    assert not re.search(r":(class|meth|attr|data|func):", api)


def raised(node: ast.AST) -> set[str]:
    """Names of the errors that a function raises itself, not those of what is defined in it."""
    definitions = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    parts = [part for part in ast.iter_child_nodes(node) if not isinstance(part, definitions)]
    own = {
        ast.unparse(getattr(part.exc, "func", part.exc)) for part in parts if isinstance(part, ast.Raise) and part.exc
    }
    return own.union(*map(raised, parts))


def test_docstrings_name_the_errors_of_the_package_that_a_public_function_raises_itself():
    package, lacking = ROOT / "avfewshot", []
    for path in package.rglob("*.py"):
        for scope in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(scope, ast.Module | ast.ClassDef) or getattr(scope, "name", "").startswith("_"):
                continue
            for function in (one for one in scope.body if isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef)):
                made = function.name in ("__init__", "__post_init__")
                told = ast.get_docstring(function) or (ast.get_docstring(scope) if made else None) or ""
                if (function.name.startswith("_") and not made) or (path.parent.name == "cli" and "Example" in told):
                    continue  # the docstring of a command is its help, which has examples
                names = {name for name in raised(function) if hasattr(errors, name)} - set(re.findall(r"\w+", told))
                lacking += [f"{path.relative_to(package)}: {function.name}: {name}" for name in names]
    assert not lacking, "\n".join(lacking)


@pytest.mark.slow
def test_the_quickstart_notebook_runs_offline_and_says_what_is_in_the_clips(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient, which is not installed")
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("ipykernel", reason="a notebook needs a kernel: ipykernel is not installed")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3", resources=resources).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    printed = "".join(output["text"] for output in outputs if output.output_type == "stream")
    lines = [line.split() for line in printed.splitlines()]
    assert ["dog-barking.mp4", "dog", "barking"] in [line[:3] for line in lines]
    assert ["dog-barking", "P-104"] in [line[:2] for line in lines]
    assert ["train-honking", "P-207"] in [line[:2] for line in lines]
