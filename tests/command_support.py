"""Commands as a person gives them, run in this process."""

import json
import os
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, TextIOWrapper
from pathlib import Path
from typing import Any

import pytest

from avfewshot.cli.app import run

EXACT = ("--device", "cpu", "--precision", "fp32")
TINY = ("--backbone", "tiny", *EXACT)


def execute(folder: Path, *arguments: object, columns: int = 160, cache: Path | None = None) -> tuple[int, str, str]:
    """Run `avfs` in a folder (`cache` None: that of the test); gives status, stdout and stderr."""
    out, err = (TextIOWrapper(BytesIO(), encoding="utf-8", write_through=True) for _ in range(2))  # as of a process
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("AVFS_CACHE", os.fspath(cache) if cache else os.environ["AVFS_CACHE"])
        patch.setenv("COLUMNS", str(columns))
        status = run([str(argument) for argument in arguments])
    said, told = (stream.buffer.getvalue().decode() for stream in (out, err))
    assert "Traceback" not in told
    return status, said, told


class Commands:
    """Commands in one folder with a cache that they share there, or with that of the test."""

    def __init__(self, folder: Path, *, shared: bool = True) -> None:
        self.folder = folder
        self.cache = folder / "cache" if shared else None

    def __call__(self, *arguments: object, status: int = 0) -> tuple[str, str]:
        """The stdout and stderr of a command that must end with a status."""
        given, out, err = execute(self.folder, *arguments, cache=self.cache)
        assert given == status, err
        return out, err

    def refused(self, *arguments: object, status: int = 2) -> str:
        """What a command says that must fail."""
        return self(*arguments, status=status)[1]

    def json(self, *arguments: object, status: int = 0) -> Any:
        """The document that a command prints."""
        return json.loads(self(*arguments, "--format", "json", status=status)[0])

    def made(self, *arguments: object, name: str) -> Path:
        """The run folder that a command makes under a name."""
        self(*arguments, "--name", name)
        return self.folder_of(name)

    def trained(self, task: str, root: Path, *options: object, name: str = "r") -> tuple[Path, dict[str, Any]]:
        """The run folder of `avfs train`, and its results."""
        folder = self.made("train", task, "--root", root, *options, name=name)
        return folder, json.loads((folder / "results.json").read_text())

    def folder_of(self, name: str) -> Path:
        """The folder of the run of a name."""
        [folder] = self.folder.glob(f"runs/*/*-{name}")
        return folder
