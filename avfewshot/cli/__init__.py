"""The command line: `avfs`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run `avfs` with the arguments of the process and leave with its exit status."""
    try:
        from avfewshot.cli.app import run
        from avfewshot.cli.terminal import hold_streams

        hold_streams()
        status = run(sys.argv[1:])
    except KeyboardInterrupt:  # while it is being imported
        status = 130
    sys.exit(status)
