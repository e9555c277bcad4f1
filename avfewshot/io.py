"""Files, processes, text of strangers: atomic writes, digests, YAML, what is safe to print, caches, workers."""

from __future__ import annotations

import contextlib
import csv
import glob
import hashlib
import io
import multiprocessing
import os
import secrets
import signal
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from avfewshot.errors import UsageError


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
    """Say of errors where they were, if they do not: those of a full disk name no file."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = os.fspath(place)
        raise


MOST_NAME = 255  # bytes of a file's name


def short(stem: str, most: int) -> str:
    """The beginning of a name, at most so many bytes of it, whole characters."""
    return os.fsencode(stem)[:most].decode("utf-8", "ignore") if len(os.fsencode(stem)) > most else stem


def sweep_leftovers(target: Path) -> None:
    """Remove what killed processes left beside `target`; what somebody is writing right now is locked, and stays."""
    stem = glob.escape(short(target.stem, 100))
    for path in target.parent.glob(f".{stem}-????????.part{glob.escape(target.suffix)}"):
        with contextlib.suppress(OSError), open(path, "rb") as stream:
            if try_lock(stream.fileno()):
                path.unlink()


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


_JOINERS = "\u200c\u200d"  # parts of ordinary words in Persian and in the scripts of India


def is_hidden(letter: str) -> bool:
    """Whether a character acts instead of being seen: control, escape, bidi, line separators, undecodable bytes."""
    category = unicodedata.category(letter)
    return (category[0] == "C" or category in ("Zl", "Zp")) and letter not in _JOINERS


def printable(text: str) -> str:
    r"""`text` with every character that acts instead of being seen written out, as ``\x1b``.

    File names and labels come from others; printed raw they could change a terminal's colours, title or layout.
    """
    if text.isprintable():
        return text
    return "".join(letter.encode("unicode_escape").decode("ascii") if is_hidden(letter) else letter for letter in text)


def csv_cell(value: Any) -> Any:
    """A value for a CSV file: text is printable, and an apostrophe keeps a spreadsheet from taking it for a formula."""
    if not isinstance(value, str):
        return value
    return f"'{printable(value)}" if value.startswith(_FORMULA) else printable(value)


def csv_text(rows: Iterable[Iterable[Any]]) -> str:
    """Rows, the names of the columns first, as the text of a CSV file; None is an empty cell."""
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([csv_cell(value) for value in row] for row in rows)
    return stream.getvalue()


_FORMULA = ("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠")


def write_text(target: str | os.PathLike[str], text: str) -> None:
    """Write `text` as UTF-8 to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_text(text, encoding="utf-8", newline="")


def write_bytes(target: str | os.PathLike[str], data: bytes) -> None:
    """Write `data` to `target` atomically."""
    with atomic_path(target) as temporary:
        temporary.write_bytes(data)


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def load_yaml(path: str | os.PathLike[str], *, max_bytes: int = 1 << 20) -> Any:
    """Read a YAML file that may have been written by anybody: plain data alone, bounded size, depth and aliases.

    Raises:
        UsageError: It cannot be read, is not UTF-8 or not YAML, or is too large, too deep, or has aliases that stand
            for too much or for themselves.
    """
    import yaml

    path = Path(path)
    if not path.is_file():  # a pipe or a device would be read without end
        kind = "is a folder" if path.is_dir() else "is not a file" if path.exists() else "there is no such file"
        raise UsageError(f"{path}: {kind}.")
    try:
        with open(path, "rb") as stream:
            raw = stream.read(max_bytes + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 (byte {error.start}).", hint="Save it as UTF-8.") from None
    if len(raw) > max_bytes:
        raise UsageError(f"{path}: is too large for a file of settings (more than {max_bytes >> 10:,} KiB).")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        if reason := _yaml_excess(yaml.parse(text, Loader=loader)):
            raise UsageError(f"{path}: {reason}.", hint="Write every value once, plainly and without aliases.")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date such as 2026-99-99
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        reason = " ".join(str(getattr(error, "problem", None) or error).split())
        raise UsageError(f"{path}: is not valid YAML{line}: {reason}.") from None


def _yaml_excess(events: Iterable[Any]) -> str | None:
    """What is wrong with a stream of YAML events: depth, keys given twice, amount (an alias counts what it means)."""
    sizes: dict[str, int] = {}
    stack: list[dict[str, Any]] = []
    for event in events:
        kind = type(event).__name__
        if kind in ("MappingStartEvent", "SequenceStartEvent"):
            stack.append({"anchor": event.anchor, "size": 1, "children": 0, "keys": set(), "map": kind[0] == "M"})
            if len(stack) > _YAML_DEPTH:
                return f"is nested more than {_YAML_DEPTH} deep"
            continue
        if kind in ("MappingEndEvent", "SequenceEndEvent"):
            done = stack.pop()
            anchor, size = done["anchor"], done["size"]
        elif kind == "ScalarEvent":
            anchor, size = event.anchor, 1
        elif kind == "AliasEvent":
            if any(outer["anchor"] == event.anchor for outer in stack):
                return f"the alias *{event.anchor} stands for itself"
            anchor, size = None, sizes.get(event.anchor, 1)
        else:
            continue
        if anchor is not None:
            sizes[anchor] = size
        if stack:
            outer = stack[-1]
            if outer["map"] and outer["children"] % 2 == 0 and kind == "ScalarEvent":
                if event.value in outer["keys"]:
                    return f"given twice: {event.value}"
                outer["keys"].add(event.value)
            outer["children"] += 1
            outer["size"] += size
            if outer["size"] > _YAML_NODES:
                return f"holds more than {_YAML_NODES:,} values"
    return None


_YAML_DEPTH, _YAML_NODES = 50, 100_000

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
    """Folder of packaged files (``"prompts"``, ``"data_splits"``): inside a wheel's package, at a checkout's top."""
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


THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


@contextlib.contextmanager
def worker_env() -> Iterator[None]:
    """What processes inherit that are started meanwhile.

    A terminal sends the interrupt to all processes; it is the parent that ends the others. One that is still importing
    its modules would print a traceback, so the signal has to be off before it starts.
    """
    before = {name: os.environ.get(name) for name in THREAD_VARIABLES}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
    in_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN) if in_main_thread else None
    try:
        yield
    finally:
        if in_main_thread:
            signal.signal(signal.SIGINT, handler)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def begin_worker() -> None:
    """Called first in a worker process, which ends with its parent instead of waiting for work for ever."""

    def end_with_parent() -> None:
        if parent := multiprocessing.parent_process():
            parent.join()
        os._exit(1)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=end_with_parent, daemon=True).start()
