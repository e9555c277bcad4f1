"""Files: atomic writes, locks, digests; where a user, the package and the caches have them."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from avfewshot.errors import AvfsError, DataError, UsageError
from avfewshot.text import printable


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike[str]) -> Iterator[Path]:
    """Give a temporary path beside `target`, with its suffix; on success it is synced and renamed to `target`.

    Parent folders are made. On an exception the temporary file is removed and `target` is untouched.
    """
    target = Path(target)
    with naming(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.parent / f".{short(target.stem, 100)}-{secrets.token_hex(4)}.part{target.suffix}"
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)  # its mode follows the umask
        try:
            try_lock(handle)
            yield temporary
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, target)
        finally:
            os.close(handle)
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def naming(place: str | os.PathLike[str]) -> Iterator[None]:
    """Raise any OSError of the block again with the place, if it names none: those of a full disk do not."""
    try:
        yield
    except OSError as error:
        if error.filename is None and error.errno is not None:
            raise OSError(error.errno, error.strerror, os.fspath(place)) from error  # PyAV's take no name
        raise


DISK_FULL = frozenset((errno.ENOSPC, errno.EDQUOT, errno.EFBIG))
"""Numbers of the errors that say that there is no room."""

MOST_NAME = 255  # bytes of a file's name
_MAX_JSON = 64 << 20  # a support of a million clips


def short(stem: str, most: int) -> str:
    """The beginning of a name, at most so many bytes of it, whole characters."""
    return os.fsencode(stem)[:most].decode("utf-8", "ignore") if len(os.fsencode(stem)) > most else stem


def sweep_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target`; what somebody is writing right now is locked, and stays."""
    stem = glob.escape(short(target.stem, 100))
    _sweep(target.parent.glob(f".{stem}-????????.part{glob.escape(target.suffix)}"))


def _sweep(leftovers: Iterable[Path]) -> None:
    for path in leftovers:
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if try_lock(stream.fileno()):
                path.unlink()


@contextlib.contextmanager
def alone(folder: Path, otherwise: str, *, patience: float = 0.0) -> Iterator[None]:
    """Hold a folder, so that no other process writes there meanwhile; what killed ones left below it is removed.

    An :class:`AvfsError` that says `otherwise` where one still does after `patience` seconds.
    """
    with contextlib.ExitStack() as held:
        with contextlib.suppress(OSError):  # no folder, which its reader says; Windows opens none
            handle = os.open(folder, os.O_RDONLY)
            held.callback(os.close, handle)
            until = time.monotonic() + patience
            while not try_lock(handle, otherwise=True):
                if time.monotonic() >= until:
                    raise AvfsError(f"{folder}: {otherwise}.", hint="Wait for it; then give the same command.")
                time.sleep(0.1)
        _sweep(folder.rglob(".*-????????.part*"))
        yield


def try_lock(handle: int, *, otherwise: bool = False) -> bool:
    """Lock an open file or folder until it is closed; False where another process has; `otherwise` without locks."""
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (ImportError, OSError):
        return otherwise
    return True


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        DataError: It is missing, damaged or something else.
    """
    try:
        if not path.is_file() or path.stat().st_size > _MAX_JSON:
            raise DataError(f"{path}: is damaged, it is not a file of at most {_MAX_JSON >> 20} MiB.")
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: is damaged, it is not JSON ({error}).") from None
    if not isinstance(document, dict):
        raise DataError(f"{path}: is damaged, it does not hold an object.")
    return document


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


_PACKAGE = Path(__file__).resolve().parent


def user_path(path: str | os.PathLike[str]) -> Path:
    """The path with ``~`` and ``~name`` as home folders; a :class:`UsageError` where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        name = Path(path).parts[0]
        hint = f"Write the path in full, or as ./{name} where a folder is called so."
        raise UsageError(f"{printable(os.fspath(path))}: there is no home folder {name} here.", hint=hint) from None


def resource_dir(name: str) -> Path:
    """Folder of packaged files (``"prompts"``, ``"data_splits"``): inside a wheel's package, at a checkout's top.

    A FileNotFoundError where the installation lacks it.
    """
    for candidate in (_PACKAGE / "_resources" / name, _PACKAGE.parent / name):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"The installation of avfewshot lacks its {name!r} folder; install it again.")


def cache_dir(*parts: str) -> Path:
    """Cache folder, not made: ``$AVFS_CACHE``, else ``$XDG_CACHE_HOME/avfewshot``, else ``~/.cache/avfewshot``."""
    if explicit := os.environ.get("AVFS_CACHE"):
        base = user_path(explicit)
    elif xdg := os.environ.get("XDG_CACHE_HOME"):
        base = user_path(xdg) / "avfewshot"
    else:
        base = Path.home() / ".cache" / "avfewshot"
    return base.joinpath(*parts)
