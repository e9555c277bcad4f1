"""The command line: `avfs`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `avfs` with the arguments of the process and leave with its exit status."""
    from avfewshot.cli.app import run

    sys.exit(run(sys.argv[1:]))
