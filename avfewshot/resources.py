"""Where packaged files (prompts, data splits) and caches live."""

from __future__ import annotations

import os
from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(name: str) -> Path:
    """Folder of packaged files.

    In a wheel they lie inside the package; in a checkout at the top level of the repository.

    Args:
        name: ``"prompts"`` or ``"data_splits"``.

    Returns:
        An existing folder.

    Raises:
        FileNotFoundError: The installation lacks the folder.
    """
    for candidate in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"The installation of avfewshot lacks its {name!r} folder; install it again.")


def cache_dir(*parts: str) -> Path:
    """Folder for caches: ``$AVFS_CACHE``, else ``$XDG_CACHE_HOME/avfewshot``, else ``~/.cache/avfewshot``.

    The folder is not created.

    Args:
        *parts: Sub-folders to append.

    Returns:
        The path.
    """
    if explicit := os.environ.get("AVFS_CACHE"):
        base = Path(explicit).expanduser()
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        base = Path(xdg).expanduser() / "avfewshot"
    else:
        base = Path.home() / ".cache" / "avfewshot"
    return base.joinpath(*parts)
