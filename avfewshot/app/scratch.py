"""A temporary folder that goes with its process; those that killed processes left are swept by the next one."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from avfewshot.io import try_lock

_PREFIX = "avfs-serve-"


class Scratch:
    """The folder :attr:`path`, held by a lock that ends with this process, however it ends."""

    def __init__(self) -> None:
        self._sweep()
        made = Path(tempfile.mkdtemp(prefix="avfs-new-"))
        self._held = _hold(made)
        self.path = made.rename(made.with_name(_PREFIX + made.name.removeprefix("avfs-new-")))  # held before it is seen

    def close(self) -> None:
        """Remove it, and what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._held is not None:
            os.close(self._held)
            self._held = None

    @staticmethod
    def _sweep() -> None:
        for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
            with contextlib.suppress(OSError):  # it is held, or of somebody else
                if folder.is_symlink() or (hasattr(os, "getuid") and folder.stat().st_uid != os.getuid()):
                    continue
                if (held := _hold(folder)) is not None:
                    shutil.rmtree(folder, ignore_errors=True)
                    os.close(held)


def _hold(folder: Path) -> int | None:
    """Lock a folder; None where another process has, and where there are no locks."""
    try:
        handle = os.open(folder, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:  # Windows opens no folders
        return None
    if try_lock(handle):
        return handle
    os.close(handle)
    return None
