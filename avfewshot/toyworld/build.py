"""The toy world on disk: what is missing or not as it was written is written, by digest.

``toy-world.json`` in its folder records the settings it was made with and the SHA-256 of its files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath

import av.error
from tqdm import tqdm

from avfewshot.errors import AvfsError, DataError, UsageError, did_you_mean
from avfewshot.io import sha256_file, write_text
from avfewshot.processes import begin_worker, worker_env
from avfewshot.toyworld.events import plan_ave, plan_llp, plan_samples, plan_vggsound
from avfewshot.toyworld.plan import FEWEST_CLIPS, DatasetPlan, PlannedClip
from avfewshot.toyworld.render import write_clip, write_part
from avfewshot.toyworld.scenes import plan_avqa, plan_avs
from avfewshot.toyworld.vocabulary import COMPOSITIONS

PLANS: dict[str, Callable[[int, int], DatasetPlan]] = {"ave": plan_ave, "llp": plan_llp, "vggsound": plan_vggsound}
"""Data sets of the toy world by name."""

ALL_PLANS = {**PLANS, "avs": plan_avs, "avqa": plan_avqa}
"""The same with those of scenes, which are written only if they are named."""

DEFAULT_CLIPS_PER_CLASS = 24  # gives 16 training clips a class, so that 16 shots are possible
GENERATOR = "3acdb426618632143c1f9043a882341dcce415e6e88939765662f8d16698ee18"
"""Names the world's contents: changed whenever a clip or an annotation file comes out otherwise."""
MANIFEST = "toy-world.json"
_FORMAT = 1

# Measured on one core of a cloud server; the sizes vary little, the time with the machine.
_BYTES_PER_CLIP = {".mp4": 150_000, ".wav": 160_000, ".png": 8_000}
_SECONDS_PER_CLIP = {".mp4": 0.55, ".wav": 0.08, ".png": 0.03}
_FOLDERS = {"ave": "AVE", "llp": "LLP", "vggsound": "VGGSound", "avs": "AVSBench", "avqa": "MUSIC-AVQA"}
_EDITABLE = ("avfs.toml", "labels.txt", "README.txt")  # people are invited to change these: what they changed is kept
_TOP_LEVEL = (*_FOLDERS.values(), "samples", *_EDITABLE)


@dataclass
class Manifest:
    """State of a toy world on disk."""

    seed: int
    clips_per_class: int
    generator: str
    datasets: tuple[str, ...]
    files: dict[str, str | None] = field(default_factory=dict)  # SHA-256 by path below the root; None: planned

    @property
    def recipe(self) -> tuple[int, int, str]:
        """What the files follow from."""
        return self.seed, self.clips_per_class, self.generator

    def write(self, root: Path) -> None:
        """Write it to `root` atomically."""
        document = {"format": _FORMAT, "made_by": "avfs data toy", **asdict(self)}
        document |= {"complete": all(self.files.values()), "files": dict(sorted(self.files.items()))}
        write_text(root / MANIFEST, json.dumps(document, indent=1) + "\n")

    @classmethod
    def read(cls, root: Path) -> Manifest | None:
        """The manifest in `root`, or None if there is none.

        Raises:
            DataError: It is damaged, or names a file outside of `root`.
        """
        path = root / MANIFEST
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != _FORMAT:
                raise ValueError(f"format {document['format']!r} is unknown")
            files = dict(document["files"])
            for name, digest in files.items():  # files are removed by this list: it must not reach outside
                place = PurePosixPath(name)
                if place.is_absolute() or not place.parts or ".." in place.parts or any(c in name for c in "\\:\0"):
                    raise ValueError(f"{name!r} is outside of the folder")
                if not (digest is None or isinstance(digest, str)):
                    raise ValueError(f"the digest of {name!r} is {digest!r}")
            seed, clips, generator = (document[key] for key in ("seed", "clips_per_class", "generator"))
            return cls(int(seed), int(clips), str(generator), tuple(map(str, document["datasets"])), files)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            message = f"{path}: damaged ({type(error).__name__}: {error})."
            raise DataError(message, hint="Remove the folder, or give another --root.") from error


@dataclass(frozen=True)
class Summary:
    """What a build did."""

    written: int  # clips
    kept: int  # clips that were there
    edited: tuple[str, ...]  # files that somebody has changed and that were left alone
    bytes: int  # of all files of the toy world
    seconds: float


@dataclass(frozen=True)
class Build:
    """A toy world about to be written; :func:`prepare` makes it."""

    root: Path
    manifest: Manifest  # with a digest for every file that is there
    plans: tuple[DatasetPlan, ...]
    clips: tuple[PlannedClip, ...]  # all media files, the samples first
    pending: tuple[PlannedClip, ...]  # those to write
    damaged: tuple[str, ...]  # those that are there but not as they were written
    obsolete: tuple[str, ...]  # files of an earlier toy world, to be removed
    jobs: int
    force: bool

    @property
    def expected_bytes(self) -> int:
        """About what the clips to write will take on disk."""
        return sum(_BYTES_PER_CLIP[PurePosixPath(clip.path).suffix] for clip in self.pending)

    @property
    def expected_seconds(self) -> float:
        """About how long writing them will take."""
        return sum(_SECONDS_PER_CLIP[PurePosixPath(clip.path).suffix] for clip in self.pending) / self.jobs

    def run(self, *, progress: bool = True) -> Summary:
        """Write what is missing, with a progress bar where standard error is a terminal.

        Interrupted at any moment, it leaves whole files, and the same call goes on from there to the same result.

        Raises:
            UsageError: The folder cannot be written to.
            DataError: A file cannot be written.
        """
        began = time.monotonic()
        files = self.manifest.files
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            for folder in {(self.root / clip.path).parent for clip in self.clips}:  # of a run that was killed
                for leftover in folder.glob(".*.part.*"):
                    leftover.unlink(missing_ok=True)
            for name in self.obsolete:
                (self.root / name).unlink(missing_ok=True)
            emptied = {folder for name in self.obsolete for folder in PurePosixPath(name).parents[:-1]}
            for folder in sorted(emptied, reverse=True):  # the inner ones first
                with contextlib.suppress(OSError):  # still holds something, or is gone
                    (self.root / folder).rmdir()
            self.manifest.write(self.root)
        except OSError as error:
            message = f"{self.root}: cannot be written to: {error.strerror}."
            raise UsageError(message, hint="Give another --root.") from error
        total = len(self.pending)
        hidden = None if progress and self.pending else True  # None: shown on a terminal alone
        bar = tqdm(total=total, unit="clip", desc="Writing clips", disable=hidden, dynamic_ncols=True, leave=False)
        try:
            with bar, contextlib.closing(_write_clips(self.root, self.pending, self.jobs)) as written:
                for name, digest in written:
                    files[name] = digest
                    bar.update()
            edited = self._write_texts()
        finally:
            with contextlib.suppress(OSError):  # a full disk, say: the record of the plan is there and will do
                self.manifest.write(self.root)
        return Summary(
            written=total,
            kept=len(self.clips) - total,
            edited=edited,
            bytes=sum((self.root / name).stat().st_size for name in files),
            seconds=time.monotonic() - began,
        )

    def _write_texts(self) -> tuple[str, ...]:
        """Write all files that are not media; returns those left alone because somebody changed them."""
        texts = {name: text for plan in self.plans for name, text in plan.texts.items()}
        used = {event.composition for clip in self.clips for event in clip.script.events}
        labels = [composition.name for composition in COMPOSITIONS if composition in used]
        texts["labels.txt"] = "\n".join(["# Everything that happens in this toy world.", *labels, ""])
        texts["avfs.toml"] = _SETTINGS
        texts["README.txt"] = _readme_text(self.manifest, self.plans)
        edited = []
        for name, text in texts.items():
            path, digest = self.root / name, hashlib.sha256(text.encode()).hexdigest()
            present = sha256_file(path) if path.is_file() else None
            recorded = self.manifest.files.get(name)
            if name in _EDITABLE and not self.force and present and recorded and present not in (recorded, digest):
                edited.append(name)
                continue
            if present != digest:
                try:
                    write_text(path, text)
                except OSError as error:
                    raise DataError(f"{path}: cannot be written: {error.strerror}.") from error
            self.manifest.files[name] = digest
        return tuple(edited)


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

    A toy world of the same settings that is there already is completed, also by further data sets; with `force` one of
    another seed, number of clips or version is replaced. Each seed gives another world of the same classes, with
    `clips_per_class` clips over all splits. `datasets` are some of :data:`ALL_PLANS`, or `samples` for these alone;
    None: those of :data:`PLANS`. `jobs` are processes; None: one for each processor that
    may be used.

    Raises:
        UsageError: A wrong argument, or a folder that holds something else.
        DataError: The folder's own record is damaged.
    """
    root = Path(root)
    unknown = [name for name in datasets or () if name not in (*ALL_PLANS, "samples")]
    if unknown or (datasets is not None and not datasets):
        shown = ", ".join(map(repr, unknown)) or "nothing"
        guess = did_you_mean(unknown[0], (*ALL_PLANS, "samples")) if unknown else ""
        message = f"--only: {shown} is not a data set of the toy world.{guess}"
        raise UsageError(message, hint=f"Known: {', '.join(ALL_PLANS)}, samples.")
    if clips_per_class < FEWEST_CLIPS:
        message = f"--clips-per-class {clips_per_class}: too few."
        raise UsageError(message, hint=f"At least {FEWEST_CLIPS} are needed: one each for train, val and test.")
    if jobs is not None and jobs < 1:
        raise UsageError(f"--jobs {jobs}: at least one process is needed.")
    _check_root(root)
    try:
        before = Manifest.read(root)
    except DataError:
        if not force:
            raise
        before = None
    wanted = (seed, clips_per_class, GENERATOR)
    same = before is not None and before.recipe == wanted
    if not force and not same:
        _refuse_other_contents(root, before, wanted)
    recorded = before.files if before else {}
    there = before.datasets if before and same else ()
    names = tuple(name for name in ALL_PLANS if name in {*(PLANS if datasets is None else datasets), *there})
    plans = tuple(ALL_PLANS[name](seed, clips_per_class) for name in names)
    clips = (*plan_samples(seed), *(clip for plan in plans for clip in plan.clips))
    texts = {name for plan in plans for name in plan.texts} | set(_EDITABLE)
    files: dict[str, str | None] = {name: recorded.get(name) for name in texts}
    damaged = []
    for clip in clips:
        path, files[clip.path] = root / clip.path, None
        if same and clip.path in recorded and path.is_file():
            digest = sha256_file(path)
            # Without a digest the run that wrote it was killed before it took note; files appear whole or not at all.
            if digest == recorded[clip.path] or (recorded[clip.path] is None and path.stat().st_size > 0):
                files[clip.path] = digest
            else:
                damaged.append(clip.path)
    return Build(
        root=root,
        manifest=Manifest(*wanted, names, files),
        plans=plans,
        clips=clips,
        pending=tuple(clip for clip in clips if files[clip.path] is None),
        damaged=tuple(damaged),
        obsolete=() if same else tuple(name for name in recorded if name not in files),
        jobs=jobs or (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1),
        force=force,
    )


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


def _refuse_other_contents(root: Path, before: Manifest | None, wanted: tuple[int, int, str]) -> None:
    """Refuse a folder that holds another toy world, or files of somebody's own under the names to be written."""
    if before is None:
        if taken := [name for name in _TOP_LEVEL if (root / name).exists()]:
            message = f"{root}: holds {', '.join(taken)}, but no toy world."
            raise UsageError(message, hint="Give another --root, or --force to write over what is there.")
        return
    made = f"made with --seed {before.seed} --clips-per-class {before.clips_per_class}"
    if before.recipe[:2] == wanted[:2]:
        made = "made by another version of avfewshot"
    message = f"{root}: holds a toy world {made}."
    raise UsageError(message, hint="Give its settings or another --root, or --force to replace it.")


def _write_clips(root: Path, clips: Sequence[PlannedClip], jobs: int) -> Generator[tuple[str, str]]:
    """Write clips; gives path and digest of each as it is done. Closed, it ends clips at hand and drops the rest."""
    if jobs == 1 or len(clips) < 2:
        yield from (_write(root, clip) for clip in clips)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(jobs, len(clips)), mp_context=context, initializer=begin_worker)
    try:
        with worker_env():
            futures = [pool.submit(_write, root, clip) for clip in clips]
        for future in as_completed(futures):
            yield future.result()
    except BrokenProcessPool as error:
        message = "A process that writes clips died; perhaps the memory ran out."
        raise AvfsError(message, hint="Run it again with fewer --jobs.") from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _write(root: Path, clip: PlannedClip) -> tuple[str, str]:
    path = root / clip.path
    try:
        if path.suffix == ".mp4":
            write_clip(clip.script, path)
        else:
            write_part(clip.script, path, clip.picture)
        return clip.path, sha256_file(path)
    except (OSError, av.error.FFmpegError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        hint = "Remedy it and run the same command again: it goes on where it stopped."
        raise DataError(f"{path}: cannot be written: {reason}.", hint=hint) from error


_SETTINGS = """\
# Settings of avfs for commands that are run in this folder; flags and AVFS_* variables come first.

# The toy world is all that this small packaged backbone knows.
backbone = "tiny"

[data]
root = "."
"""


def _readme_text(manifest: Manifest, plans: Sequence[DatasetPlan]) -> str:
    counts = "\n".join(
        f"  {_FOLDERS[plan.name] + '/':<10} {len(plan.clips):,} files of {len(plan.classes)} classes "
        f"in the layout of {plan.title}"
        for plan in plans
    )
    names = [plan.name for plan in plans]
    only = "" if names == list(PLANS) else f" --only {','.join(names) or 'samples'}"
    return f"""\
A toy world for avfewshot: drawn objects and synthesised sounds. Nothing here is real, and nothing was recorded.

Made by: avfs data toy --seed {manifest.seed} --clips-per-class {manifest.clips_per_class}{only}

  samples/   a few clips with plain names, for a first trial
{counts}
  labels.txt names of all classes, for avfs zeroshot --labels labels.txt
  avfs.toml  settings for commands that are run in this folder
  {MANIFEST} what avfs data toy goes by when it is run again

Try, in this folder:

  avfs zeroshot --labels labels.txt samples --segments

The annotation files have the form of the published ones; the ids are made up. Free for any use.
"""
