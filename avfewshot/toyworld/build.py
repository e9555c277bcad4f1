"""The toy world on disk: what is to be written, what is there already, and the writing."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from avfewshot.errors import DataError, UsageError
from avfewshot.io import sha256_file, write_text
from avfewshot.toyworld.layouts import FEWEST_CLIPS, PLANS, DatasetPlan, PlannedClip, plan_samples
from avfewshot.toyworld.manifest import MANIFEST, Manifest, Recipe, generator_digest, read_manifest
from avfewshot.toyworld.vocabulary import COMPOSITIONS
from avfewshot.toyworld.workers import Task, write_clips

DEFAULT_CLIPS_PER_CLASS = 24
"""Gives 16 training clips a class, so that 16 shots are possible."""

# Measured on one core of a cloud server; the sizes vary little, the time with the machine.
_BYTES_PER_CLIP = 150_000
_SECONDS_PER_CLIP = 0.55

_FOLDERS = {"ave": "AVE", "llp": "LLP", "vggsound": "VGGSound"}
# Files that people are invited to change: what they changed is kept.
_EDITABLE = ("avfs.toml", "labels.txt", "README.txt")
_TOP_LEVEL = (*_FOLDERS.values(), "samples", *_EDITABLE)


@dataclass(frozen=True)
class Summary:
    """What a build did.

    Attributes:
        written: Clips written.
        kept: Clips that were there.
        edited: Files that somebody has changed and that were left alone.
        bytes: Size of all files of the toy world.
        seconds: Time that it took.
    """

    written: int
    kept: int
    edited: tuple[str, ...]
    bytes: int
    seconds: float


@dataclass(frozen=True)
class Build:
    """A toy world about to be written; see :func:`prepare`.

    Attributes:
        root: Its folder.
        recipe: What the files follow from.
        plans: The data sets.
        clips: All media files, the samples first.
        kept: SHA-256 of those that are there, by path below the root.
        damaged: Media files that are there but not as they were written.
        recorded: SHA-256 of the other files that an earlier run wrote, by path below the root.
        obsolete: Files of an earlier toy world that are to be removed.
        jobs: Processes.
        force: Whether edited files are written anew.
    """

    root: Path
    recipe: Recipe
    plans: tuple[DatasetPlan, ...]
    clips: tuple[PlannedClip, ...]
    kept: dict[str, str]
    damaged: tuple[str, ...]
    recorded: dict[str, str]
    obsolete: tuple[str, ...]
    jobs: int
    force: bool

    @property
    def pending(self) -> tuple[PlannedClip, ...]:
        """Clips to write."""
        return tuple(clip for clip in self.clips if clip.path not in self.kept)

    @property
    def expected_bytes(self) -> int:
        """About what the clips to write will take on disk."""
        return len(self.pending) * _BYTES_PER_CLIP

    @property
    def expected_seconds(self) -> float:
        """About how long writing them will take."""
        return len(self.pending) * _SECONDS_PER_CLIP / self.jobs

    def run(self, *, progress: bool = True) -> Summary:
        """Write what is missing.

        Interrupted at any moment, it leaves whole files, and the same call goes on from there to the same result.

        Args:
            progress: Show a progress bar where standard error is a terminal.

        Returns:
            What was done.

        Raises:
            UsageError: The folder cannot be written to.
            DataError: A file cannot be written.
        """
        began = time.monotonic()
        pending = self.pending
        texts = self._texts()
        files: dict[str, str | None] = {name: self.recorded.get(name) for name in texts}
        files |= {clip.path: self.kept.get(clip.path) for clip in self.clips}
        manifest = Manifest(self.recipe, tuple(plan.name for plan in self.plans), files)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            manifest.write(self.root)
        except OSError as error:
            raise UsageError(
                f"{self.root}: cannot be written to: {error.strerror}.", hint="Give another --root."
            ) from error
        tasks = [Task(clip.path, self.root / clip.path, clip.script) for clip in pending]
        hidden = None if progress and tasks else True  # None: shown on a terminal alone
        bar = tqdm(total=len(tasks), unit="clip", desc="Writing clips", disable=hidden, dynamic_ncols=True, leave=False)
        try:
            with bar, contextlib.closing(write_clips(tasks, self.jobs)) as written:
                for clip in written:
                    files[clip.name] = clip.sha256
                    bar.update()
            edited = self._write_texts(texts, files)
            manifest.write(self.root)
        except BaseException:
            with contextlib.suppress(OSError):  # a full disk, say: the record of the plan is there and will do
                manifest.write(self.root)
            raise
        return Summary(
            written=len(pending),
            kept=len(self.kept),
            edited=edited,
            bytes=sum((self.root / name).stat().st_size for name in files),
            seconds=time.monotonic() - began,
        )

    def _texts(self) -> dict[str, str]:
        """Contents of all files that are not media."""
        texts = {name: text for plan in self.plans for name, text in plan.texts.items()}
        used = {event.composition for clip in self.clips for event in clip.script.events}
        labels = [composition.name for composition in COMPOSITIONS if composition in used]
        texts["labels.txt"] = "\n".join(["# Everything that happens in this toy world.", *labels, ""])
        texts["avfs.toml"] = _SETTINGS
        texts["README.txt"] = _readme_text(self.recipe, self.plans)
        return texts

    def _write_texts(self, texts: dict[str, str], files: dict[str, str | None]) -> tuple[str, ...]:
        """Write the texts and note their digests in `files`; returns those left alone because somebody changed them."""
        edited = []
        for name, text in texts.items():
            path, digest = self.root / name, hashlib.sha256(text.encode()).hexdigest()
            present = sha256_file(path) if path.is_file() else None
            recorded = self.recorded.get(name)
            if name in _EDITABLE and not self.force and present and recorded and present not in (recorded, digest):
                edited.append(name)
                continue
            if present != digest:
                try:
                    write_text(path, text)
                except OSError as error:
                    raise DataError(f"{path}: cannot be written: {error.strerror}.") from error
            files[name] = digest
        return tuple(edited)

    def _remove_leftovers(self) -> None:
        """Remove half-written files of a run that was killed, and files of the toy world that this one replaces."""
        for folder in {(self.root / clip.path).parent for clip in self.clips}:
            for leftover in folder.glob(".*.part.mp4"):
                leftover.unlink(missing_ok=True)
        for name in self.obsolete:
            (self.root / name).unlink(missing_ok=True)
        emptied = {folder for name in self.obsolete for folder in PurePosixPath(name).parents[:-1]}
        for folder in sorted(emptied, reverse=True):  # the inner ones first
            with contextlib.suppress(OSError):  # still holds something, or is gone
                (self.root / folder).rmdir()


def prepare(
    root: str | os.PathLike[str],
    *,
    seed: int = 0,
    clips_per_class: int = DEFAULT_CLIPS_PER_CLASS,
    datasets: Sequence[str] | None = None,
    jobs: int | None = None,
    force: bool = False,
) -> Build:
    """Find out what has to be written for a toy world; nothing is written yet.

    Args:
        root: Its folder; made if needed. A toy world of the same settings that is there already is completed, also
            by further data sets.
        seed: Source of all chance; each seed gives another world of the same classes.
        clips_per_class: Clips of each class in each data set, over all splits.
        datasets: Some of ``"ave"``, ``"llp"``, ``"vggsound"``; None: all.
        jobs: Processes; None: one for each processor that may be used.
        force: Replace what another seed, number of clips or version made there.

    Returns:
        The build, to be run.

    Raises:
        UsageError: A wrong argument, or a folder that holds something else.
        DataError: The folder's own record is damaged.
    """
    root = Path(root)
    names = _checked_datasets(datasets)
    if clips_per_class < FEWEST_CLIPS:
        raise UsageError(
            f"--clips-per-class {clips_per_class}: too few.",
            hint=f"At least {FEWEST_CLIPS} are needed: one each for train, val and test.",
        )
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least one process is needed.")
    _check_root(root)
    recipe = Recipe(seed, clips_per_class, generator_digest())
    try:
        manifest = read_manifest(root)
    except DataError:
        if not force:
            raise
        manifest = None
    same = manifest is not None and manifest.recipe == recipe
    if not force and not same:
        _refuse_other_contents(root, manifest, recipe)
    if same:
        names = tuple(name for name in PLANS if name in {*names, *manifest.datasets})
    plans = tuple(PLANS[name](seed, clips_per_class) for name in names)
    clips = (*plan_samples(seed), *(clip for plan in plans for clip in plan.clips))
    before = manifest.files if manifest else {}
    kept, damaged = _existing(root, clips, before) if same else ({}, ())
    planned = {clip.path for clip in clips}
    build = Build(
        root=root,
        recipe=recipe,
        plans=plans,
        clips=clips,
        kept=kept,
        damaged=damaged,
        recorded={name: digest for name, digest in before.items() if digest and name not in planned},
        obsolete=() if same else tuple(name for name in before if name not in planned),
        jobs=jobs or _processors(),
        force=force,
    )
    _check_space(build)
    return build


def _checked_datasets(datasets: Sequence[str] | None) -> tuple[str, ...]:
    if datasets is None:
        return tuple(PLANS)
    unknown = [name for name in datasets if name not in PLANS]
    if unknown or not datasets:
        shown = ", ".join(map(repr, unknown)) or "nothing"
        raise UsageError(f"--only: {shown} is not a data set of the toy world.", hint=f"Known: {', '.join(PLANS)}.")
    return tuple(name for name in PLANS if name in datasets)


def _check_root(root: Path) -> None:
    """Refuse a folder that cannot be made or written to."""
    try:
        nearest = next(folder for folder in (root, *root.absolute().parents) if folder.exists() or folder.is_symlink())
    except OSError as error:
        raise UsageError(f"{root}: {error.strerror}.", hint="Give another --root.") from error
    if not nearest.is_dir():
        what = "is a file" if nearest.is_file() else "is not a folder"
        raise UsageError(f"{nearest}: {what}.", hint="Give a folder as --root; it is made if needed.")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UsageError(f"{nearest}: cannot be written to.", hint="Give another --root.")


def _refuse_other_contents(root: Path, manifest: Manifest | None, recipe: Recipe) -> None:
    """Refuse a folder that holds another toy world, or files of somebody's own under the names to be written."""
    if manifest is None:
        if taken := [name for name in _TOP_LEVEL if (root / name).exists()]:
            raise UsageError(
                f"{root}: holds {', '.join(taken)}, but no toy world.",
                hint="Give another --root, or --force to write over what is there.",
            )
        return
    there = manifest.recipe
    if (there.seed, there.clips_per_class) != (recipe.seed, recipe.clips_per_class):
        made = f"made with --seed {there.seed} --clips-per-class {there.clips_per_class}"
    else:
        made = "made by another version of avfewshot"
    raise UsageError(
        f"{root}: holds a toy world {made}.",
        hint="Give its settings or another --root, or --force to replace it.",
    )


def _existing(
    root: Path, clips: Iterable[PlannedClip], recorded: dict[str, str | None]
) -> tuple[dict[str, str], tuple[str, ...]]:
    """Digests of the clips that need no writing, and the paths of those that were changed since."""
    kept, damaged = {}, []
    for clip in clips:
        path = root / clip.path
        if clip.path not in recorded or not path.is_file():
            continue
        digest = sha256_file(path)
        # Without a digest the run that wrote the file was killed before it took note; files appear whole or not at all.
        if digest == recorded[clip.path] or (recorded[clip.path] is None and path.stat().st_size > 0):
            kept[clip.path] = digest
        else:
            damaged.append(clip.path)
    return kept, tuple(damaged)


def _check_space(build: Build) -> None:
    nearest = next(folder for folder in (build.root, *build.root.absolute().parents) if folder.exists())
    free = shutil.disk_usage(nearest).free
    if build.expected_bytes > free:
        raise UsageError(
            f"{build.root}: about {build.expected_bytes / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free.",
            hint="Give another --root, a smaller --clips-per-class, or --only one data set.",
        )


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


_SETTINGS = """\
# Settings of avfs for commands that are run in this folder; flags and AVFS_* variables come first.

# The toy world is all that this small packaged backbone knows.
backbone = "tiny"

[data]
root = "."
"""


def _readme_text(recipe: Recipe, plans: Sequence[DatasetPlan]) -> str:
    counts = "\n".join(
        f"  {_FOLDERS[plan.name] + '/':<10} {len(plan.clips):,} clips of {len(plan.classes)} classes "
        f"in the layout of {plan.title}"
        for plan in plans
    )
    only = "" if len(plans) == len(PLANS) else f" --only {','.join(plan.name for plan in plans)}"
    return f"""\
A toy world for avfewshot: drawn objects and synthesised sounds. Nothing here is real, and nothing was recorded.

Made by: avfs data toy --seed {recipe.seed} --clips-per-class {recipe.clips_per_class}{only}

  samples/   a few clips with plain names, for a first trial
{counts}
  labels.txt names of all classes, for avfs zeroshot --labels labels.txt
  avfs.toml  settings for commands that are run in this folder
  {MANIFEST} what avfs data toy goes by when it is run again

Try, in this folder:

  avfs zeroshot --labels labels.txt samples --segments

The annotation files have the form of the published ones; the ids are made up. Free for any use.
"""
