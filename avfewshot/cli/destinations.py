"""Where results may go, and what is there already: decided and checked before any work."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avfewshot.errors import UsageError
from avfewshot.io import MOST_NAME, try_lock, user_path

SUFFIXES = {"json": ".json", "jsonl": ".jsonl", "csv": ".csv", "table": ".txt"}
TIMELINES = {"srt": ".srt", "vtt": ".vtt", "eaf": ".eaf"}  # one file a clip
DRAWN = ("csv-segments", *TIMELINES, "labelstudio", "fiftyone")  # formats that are about seconds
FORMATS = ("table", "json", "jsonl", "csv", *DRAWN, "all")
FIFTYONE = ("data.json", "labels.json")  # what FiftyOne calls the files of a data set


@dataclass(frozen=True)
class Target:
    """A place for results."""

    form: str  # one of FORMATS but "all"
    path: Path | None  # the file, or the folder for timelines of several clips and for FiftyOne; None is stdout


def plan_targets(
    form: str, output: str | None, *, form_given: bool, clips: int = 1
) -> tuple[list[Target], list[UsageError]]:
    """Decide what is written where, and what is wrong with that, without touching anything.

    None or ``"-"`` is stdout. Where the person chose no form, the suffix of `output` does.
    """
    if output is None or output == "-":
        if form == "all":
            hint = "Add `--output FOLDER`, or choose one format."
            return [], [UsageError("--format all writes four files and needs --output.", hint=hint)]
        if form == "fiftyone":
            hint = "Name a folder: `--format fiftyone --output FOLDER`."
            return [], [UsageError("--format fiftyone writes two files and needs --output.", hint=hint)]
        return [Target(form, None)], _one_file_a_clip(form, clips)
    if not output:
        return [], [UsageError("--output is empty.", hint="Name a file, for example `--output results.json`.")]
    path = user_path(output)
    if not form_given:
        suffixes = SUFFIXES | TIMELINES
        form = next((name for name, suffix in suffixes.items() if suffix == path.suffix.lower()), form)
    if form == "all":
        if path.is_dir() or output.endswith(("/", os.sep)):
            stem = path / "results"
            faults = check_folder(path, "--output")
        else:
            stem = path
            faults = check_parent(path, "--output")
        targets = [Target(name, stem.with_name(stem.name + suffix)) for name, suffix in SUFFIXES.items()]
        for target in targets:
            assert target.path is not None
            faults += check_file(target.path, "--output") if target.path.parent.is_dir() and not faults else []
        return targets, faults
    if form == "fiftyone":
        names = FIFTYONE if path.is_dir() else ()
        faults = check_folder(path, "--output") + [f for name in names for f in check_file(path / name, "--output")]
        return [Target(form, path)], faults[:1]
    if form in TIMELINES and path.suffix.lower() != TIMELINES[form]:
        return [Target(form, path)], check_folder(path, "--output")
    return [Target(form, path)], _one_file_a_clip(form, clips) + check_file(path, "--output")


def _one_file_a_clip(form: str, clips: int) -> list[UsageError]:
    if form not in TIMELINES or clips <= 1:
        return []
    hint = f"Name a folder: `--format {form} --output FOLDER`."
    return [UsageError(f"--format {form} writes one file a clip, and there are {clips:,} files.", hint=hint)]


def check_file(path: Path, option: str) -> list[UsageError]:
    """What stands against writing a file, before anything is computed."""
    if faults := _too_long(path, option):
        return faults
    if path.is_dir():
        return [UsageError(f"{option} {path}: is a folder.", hint="Name a file in it.")]
    if path.exists() and not os.access(path, os.W_OK):
        return [UsageError(f"{option} {path}: may not be written.", hint="Choose another file.")]
    return check_parent(path, option)


def check_folder(path: Path, option: str) -> list[UsageError]:
    """What stands against writing into a folder, which is made where it lacks, with those above it."""
    if faults := _too_long(path, option):
        return faults
    there = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not there.is_dir():
        return [UsageError(f"{option} {path}: {there} is a file.", hint="Name a folder.")]
    if not os.access(there, os.W_OK | os.X_OK):
        return [UsageError(f"{option} {path}: nothing may be written in {there}.", hint="Choose another folder.")]
    return []


def _too_long(path: Path, option: str) -> list[UsageError]:
    """What systems would call an error of the disk, after all the work."""
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    hint = f"A name has at most {MOST_NAME} bytes; this one has {longest:,}."
    return [UsageError(f"{option} {path}: is too long a name.", hint=hint)] if longest > MOST_NAME else []


def check_parent(path: Path, option: str) -> list[UsageError]:
    """What stands against making a file in a folder."""
    parent = path.parent
    if not parent.exists():
        return [UsageError(f"{option}: there is no folder {parent}.", hint=f"Make it: `mkdir -p {parent}`.")]
    if not parent.is_dir():
        return [UsageError(f"{option} {path}: {parent} is not a folder.", hint="Choose another place.")]
    if not path.exists() and not os.access(parent, os.W_OK | os.X_OK):
        return [UsageError(f"{option} {path}: nothing may be written in {parent}.", hint="Choose another folder.")]
    return []


def check_overwrite(written: Iterable[tuple[str, Path]], read: Iterable[Path | str]) -> list[UsageError]:
    """Refuse to write over what is read, and to write two things into one file."""
    inputs = {os.path.realpath(path) for path in read}
    taken: dict[str, str] = {}
    faults = []
    for option, path in written:
        place = os.path.realpath(path)
        if place in inputs:
            faults.append(UsageError(f"{option} {path}: would overwrite a file that is read.", hint="Name another."))
        elif place in taken:
            faults.append(UsageError(f"{option} {path}: {taken[place]} goes there, too.", hint="Name another file."))
        taken.setdefault(place, option)
    return faults


@dataclass(frozen=True)
class Earlier:
    """What a JSON lines file holds already."""

    paths: frozenset[str]  # of clips and of failures
    failed: int

    def __len__(self) -> int:
        return len(self.paths)


def run_id(**shaping: Any) -> str:
    """A fingerprint of what shapes results (labels, model, method): lines of one file must agree in it."""
    return hashlib.sha256(json.dumps(shaping, sort_keys=True, default=str).encode()).hexdigest()[:12]


def earlier_results(path: Path, run: str) -> Earlier:
    """Files that an earlier run of the same settings has written into a JSON lines file, without half a last line.

    A :class:`UsageError` where another process is writing it, or where it holds other results or something else.
    """
    if not path.is_file():
        return Earlier(frozenset(), 0)
    paths, failed, whole = set(), 0, 0
    hint = "Name another file, or add --overwrite to begin anew."
    with open(path, "r+b") as stream:
        claim(path, stream.fileno())
        for number, line in enumerate(stream, start=1):
            if not line.endswith(b"\n") and (
                line[: len(_BEGINNING)] == _BEGINNING[: len(line)] or not line.strip(b"\0")
            ):
                stream.truncate(whole)
                break
            whole += len(line)
            try:
                record = json.loads(line)
                name, found = str(record["path"]), record.get("run")
            except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
                message = f"--output {path}, line {number}: is not a result of `avfs zeroshot`."
                raise UsageError(message, hint=hint) from None
            if found != run:
                other = "results of another run: other labels, another model or other settings."
                raise UsageError(f"--output {path} holds {other}", hint=hint)
            paths.add(name)
            failed += "error" in record
    return Earlier(frozenset(paths), failed)


_BEGINNING = b'{"path": "'
"""How every line begins: what is left of one by a kill or a full disk is told from a file of somebody else."""


def claim(path: Path, handle: int) -> None:
    """Claim a file until `handle` is closed; a :class:`UsageError` where another process is writing it."""
    if not try_lock(handle, otherwise=True):
        raise UsageError(f"--output {path}: another process is writing it.", hint="Wait for it, or name another.")
