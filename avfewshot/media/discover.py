"""Finds media files in what a person names: files, folders and globs."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from avfewshot.errors import DataError, UsageError
from avfewshot.media import remote

VIDEO_SUFFIXES = frozenset(
    ".mp4 .m4v .mov .mkv .webm .avi .mpg .mpeg .ts .mts .m2ts .flv .wmv .asf .3gp .3g2 .ogv .vob .f4v .mxf .gif".split()
)
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .m4a .aac .ogg .oga .opus .wma .aif .aiff .aifc .amr .ac3 .mka .caf .mp2 .au .wv .tta".split()
)
_SKIPPED_FOLDERS = {"__MACOSX", "lost+found"}
_Place = tuple[int, int]  # device and number of a folder
_MOST_NAMES = 100  # paths by which links may lead to one folder; a web of links would have no end
MEDIA_SUFFIXES = VIDEO_SUFFIXES | AUDIO_SUFFIXES
"""Suffixes, in lower case, of the files that are taken from a folder or a glob."""


def find_media(paths: Sequence[str | Path], *, recursive: bool = True) -> list[Path | str]:
    """Find the media files that `paths` name.

    From folders and globs the files with one of :data:`MEDIA_SUFFIXES` are taken, hidden ones excepted. A file that is
    named itself is kept whatever its suffix, even when it is missing: reading it then says what is wrong with it.
    Without any the current folder is looked into. Gives sorted paths, each once, relative where they were named so;
    addresses (:mod:`avfewshot.media.remote`), behind them, as texts.

    Raises:
        UsageError: A folder or a glob holds no media file, or an address cannot be understood.
    """
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    found: dict[str, Path] = {}
    addresses: set[str] = set()
    for path in paths or ["."]:
        if remote.is_remote(path):
            addresses.update(remote.expand(str(path), recursive=recursive, suffixes=MEDIA_SUFFIXES))
            continue
        for one in _expand(path, recursive):
            found.setdefault(os.path.abspath(one), one)
    return [*sorted(found.values()), *sorted(addresses)]


def home(path: str | os.PathLike[str]) -> str:
    """The path with ``~`` as a home folder; as it is where a file is called so, or there is no such user."""
    text = os.fspath(path)
    return text if os.path.lexists(text) else os.path.expanduser(text)


def _expand(path: str | Path, recursive: bool) -> list[Path]:
    def in_folder(folder: str) -> list[Path]:
        return [Path(file) for file in walk_media([folder], recursive=recursive) if _is_media(file)]

    text = home(path)
    if os.path.isdir(text):
        files = in_folder(text)
        if not files:
            below = " or below it" if recursive else ""
            raise UsageError(f"There is no media file in the folder '{path}'{below}.", hint=_known())
        return files
    # A name with brackets may be a file's own.
    if not glob.has_magic(text) or os.path.lexists(text):
        return [Path(text)]
    files = []
    for match in glob.iglob(text, recursive=True):
        if os.path.isdir(match):
            # `**` names every folder below by itself.
            files += [] if "**" in text else in_folder(match)
        elif _is_media(match):
            files.append(Path(match))
    if not files:
        raise UsageError(f"No media file matches '{path}'.", hint=_known())
    return files


def walk_media(
    folders: Sequence[str | Path], barren: dict[str, int] | None = None, *, recursive: bool = True
) -> Iterator[str]:
    """Paths of all media files below some folders, in no particular order.

    A folder that links reach under two names is read under both; only a link to a folder around itself is not followed.
    Folders given that lie within one another are read once. `barren` gets the path of every folder without a media file
    of its own, and the number of other files in it; -1 for a folder that may not be read and for a link that leads
    nowhere.

    Raises:
        DataError: Links lead to one folder by more than a hundred names.
    """
    earlier: set[_Place] = set()
    for root in folders:
        names: Counter[_Place] = Counter()
        pending: list[tuple[str, frozenset[_Place]]] = [(os.fspath(root), frozenset())]
        while pending:
            folder, around = pending.pop()
            try:
                status = os.stat(folder)
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError:  # a folder that may not be read
                if barren is not None:
                    barren[folder] = -1
                continue
            place = (status.st_dev, status.st_ino)
            if place in earlier or place in around:
                continue
            names[place] += 1
            if names[place] > _MOST_NAMES:
                raise DataError(f"{folder}: links lead to this folder by more than {_MOST_NAMES} names.")
            found = others = 0
            for entry in entries:
                if entry.name.startswith(".") or entry.name in _SKIPPED_FOLDERS:
                    continue
                if _is_folder(entry):
                    pending += [(entry.path, around | {place})] if recursive else []
                elif os.path.splitext(entry.name)[1].lower() in MEDIA_SUFFIXES:
                    found += 1
                    yield entry.path
                else:
                    others += 1
                    if barren is not None and entry.is_symlink() and not os.path.exists(entry.path):
                        barren[entry.path] = -1
            if barren is not None and not found:
                barren[folder] = others
        earlier |= set(names)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself: listed as a file, which cannot be read and is named then
        return False


def _is_media(path: str) -> bool:
    name = os.path.basename(path)
    suffix = os.path.splitext(name)[1].lower()
    if name.startswith(".") or suffix not in MEDIA_SUFFIXES:
        return False
    if suffix not in {".ts", ".mts"}:
        return True
    try:  # an MPEG transport stream, and no TypeScript source
        with open(path, "rb") as stream:
            head = stream.read(5)
    except OSError:
        return True  # the reader says what is wrong
    return head[:1] == b"\x47" or head[4:5] == b"\x47"


def _known() -> str:
    return f"Known suffixes: {' '.join(sorted(MEDIA_SUFFIXES))}."
