"""Commands as a person gives them, run in this process."""

from __future__ import annotations

import os
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest

from avfewshot.cli.app import run


def execute(folder: Path, *arguments: object, columns: int = 160, cache: Path | None = None) -> tuple[int, str, str]:
    """Run `avfs` in a folder (`cache` None: that of the test); gives status, stdout and stderr."""
    out, err = StringIO(), StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("AVFS_CACHE", os.fspath(cache) if cache else os.environ["AVFS_CACHE"])
        patch.setenv("COLUMNS", str(columns))
        status = run([str(argument) for argument in arguments])
    assert "Traceback" not in err.getvalue()
    return status, out.getvalue(), err.getvalue()
