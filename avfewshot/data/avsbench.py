"""AVSBench-object (Zhou et al., ECCV 2022): five seconds of video, and masks of what sounds at the end of each second.

S4 (``Single-source``) has one source in a clip, and masks for the first second alone in training; MS3
(``Multi-sources``) has several, and masks everywhere. Frames and masks are PNG files, sound is a WAV file. The pickled
spectrograms that come with them are never opened: sound is read from the WAV file.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from avfewshot.data.annotations import locate, make_dataset, note_dashes
from avfewshot.data.dataset import SPLITS, Dataset, DatasetReport, Sample, repeated
from avfewshot.data.description import ClassEntry, Description, default_wording, load_description
from avfewshot.data.rows import other_form, read_csv
from avfewshot.errors import DataError, UsageError

SUBSETS = {"s4": ("avs", "v1s"), "ms3": ("avs_ms3", "v1m")}
"""The data set's name of each subset, and its label in the joint list of AVSBench-semantic."""
SECONDS = 5


@dataclass(frozen=True)
class MaskedClip:
    """Five seconds, and where their masks lie."""

    name: str
    split: str
    category: str  # in MS3 what sounds, joined by "_", as far as the list says
    frames: tuple[Path, ...]  # the last picture of each second
    masks: tuple[Path | None, ...]  # None where a second has none
    audio: Path

    @property
    def youtube_id(self) -> str:
        """The video that it was cut from; MS3 numbers the clips of a video."""
        return self.name[:11]


@dataclass(frozen=True)
class Avsbench:
    """A subset of AVSBench: the clips whose files are here."""

    subset: str
    clips: dict[str, list[MaskedClip]]  # by split
    report: DatasetReport

    def leaked(self, split: str) -> set[str]:
        """Names of the clips of a split whose video is in training as well; MS3 has 38 such test clips of 64."""
        train = {clip.youtube_id for clip in self.clips["train"]}
        return {clip.name for clip in self.clips[split] if clip.youtube_id in train}


@dataclass(frozen=True)
class ListedClip:
    """A row of a list."""

    name: str
    category: str
    split: str
    spelt: str  # the category before it was mended


def read_list(path: Path, subset: str) -> tuple[list[ListedClip], DatasetReport]:
    """Read ``s4_meta_data.csv``, ``ms3_meta_data.csv``, or the rows of a subset in the joint ``metadata.csv``.

    What is odd is mended and reported: misspelt categories, repeated ids, videos in more than one split. A file without
    a column ``split`` or without rows is a :class:`DataError`, as is a row that is no clip of AVSBench.
    """
    table = read_csv(path)
    columns = table[0][1] if table else []
    label = SUBSETS[subset][1]
    lines = [(number, dict(zip(columns, cells, strict=False))) for number, cells in table[1:]]
    lines = [(number, row) for number, row in lines if row.get("label", label) == label]
    rows = [row for _, row in lines]
    if "split" not in columns or not rows:
        message = f"{path}: no list of AVSBench clips: a column split and rows are needed."
        raise DataError(message, hint=other_form(path))
    category = next((name for name in ("category", "a_obj") if name in columns), "category")
    spelt = {row.get(category, "") for row in rows}
    clips: dict[str, ListedClip] = {}
    misspelt, splits = [], {}
    for number, row in lines:
        name, split, own = row[columns[0]], row.get("split", ""), row.get(category, "")
        if split not in SPLITS or not name or not _is_plain(name):
            message = f"{path}, line {number}: {name[:80]!r} in split {split[:80]!r} is no clip of AVSBench."
            raise DataError(message, hint="Correct the row, or take the official file.")
        if not _is_plain(own):  # a folder's name in S4
            message = f"{path}, line {number}: {own[:80]!r} of {name!r} is no category of AVSBench."
            raise DataError(message, hint="Correct the row, or take the official file.")
        mended = own.replace(" ", "") if own.replace(" ", "") in spelt else own
        if mended != own:
            misspelt.append(f"{name} {own!r}")
        splits.setdefault(name[:11], set()).add(split)
        clips.setdefault(name, ListedClip(name, mended, split, own))
    names = [row[columns[0]] for row in rows]
    report = DatasetReport()
    message = "Categories with a blank in a known one; read as that one."
    report.note("warning", "misspelt-category", message, misspelt)
    report.note("error", "repeated-ids", "Ids that are listed more than once; the first row counts.", repeated(names))
    message = "Videos with clips in more than one split: test figures on them are too high; clean clips stand beside."
    report.note("warning", "leaked-videos", message, sorted(video for video, own in splits.items() if len(own) > 1))
    note_dashes(names, report)
    return list(clips.values()), report


def _is_plain(name: str) -> bool:
    """Whether a list's word names a file or a folder where it lies, and nowhere else; the empty one does."""
    return Path(name).name == name and not name.startswith(".") and len(os.fsencode(name)) < 200


def load_avsbench(root: str | Path, subset: str) -> Avsbench:
    """Read a subset of AVSBench (``"s4"`` or ``"ms3"``), or a data set in its layout.

    `root` holds ``Single-source/s4_meta_data.csv`` and ``Single-source/s4_data/``, or the same of ``Multi-sources``.

    Raises:
        UsageError: The root is not a folder, or an unknown subset.
        DataError: There is no list, or no clip of a split is here.
    """
    if subset not in SUBSETS:
        raise UsageError(f"AVSBench has no subset {subset!r}.", hint=f"Valid: {', '.join(SUBSETS)}.")
    path = locate(load_description(SUBSETS[subset][0], root), root).files["list"]
    rows, report = read_list(path, subset)
    clips: dict[str, list[MaskedClip]] = {split: [] for split in SPLITS}
    for row, clip in zip(rows, _find(path, rows, subset, report), strict=True):
        if clip is not None:
            clips[row.split].append(clip)
    if empty := [split for split, part in clips.items() if not part]:
        missing = report.find("missing-media")
        example = f" E.g. {missing.examples[0]} is missing." if missing else ""
        message = f"{path.parent}: no clip of {', '.join(empty)} is complete.{example}"
        raise DataError(message, hint=f"Unpack {subset}_data.")
    return Avsbench(subset, clips, report)


def avsbench_dataset(description: Description, root: str | Path, *, find_media: bool = True) -> Dataset:
    """The same for ``avfs data check``: every listed clip, the complete ones with the path of their sound.

    Classes are those of the list, in MS3 everything that sounds; none where the list does not say.
    """
    subset = next(name for name, (dataset, _) in SUBSETS.items() if dataset == description.name)
    annotations = locate(description, root)
    path = annotations.files["list"]
    rows, report = read_list(path, subset)
    sounding = [set(row.category.split("_")) if subset == "ms3" else {row.category} for row in rows]
    names = sorted(set().union(*sounding) - {""})
    if names and len(names) != (description.expected_classes or len(names)):
        message = f"The list has {len(names)} categories; {description.title} has {description.expected_classes}."
        report.add("warning", "class-count", message)
    found = _find(path, rows, subset, report) if find_media else [None] * len(rows)
    if find_media and not any(found):
        report.add("error", "no-media", f"None of the {len(rows)} clips is complete below {path.parent}.")
    samples = [
        Sample(
            id=row.name,
            labels=tuple(sorted(names.index(name) for name in labels if name)),
            split=row.split,
            row=number,
            youtube_id=row.name[:11],
            path=None if clip is None else clip.audio,
        )
        for number, (row, labels, clip) in enumerate(zip(rows, sounding, found, strict=True))
    ]
    classes = [ClassEntry(name, default_wording(name)) for name in names]
    counts = {"list": len(rows)}
    return make_dataset(
        description, annotations, samples, counts, report, form=subset, classes=classes, multi_label=subset == "ms3"
    )


def _find(path: Path, rows: Sequence[ListedClip], subset: str, report: DatasetReport) -> list[MaskedClip | None]:
    """The clip of each row beside the list, None where a frame, the sound or the first mask is not there."""
    clips: list[MaskedClip | None] = []
    missing, unmasked = [], []
    for row in rows:
        # A misspelt category may be misspelt on disk, too.
        categories = dict.fromkeys((row.category, row.spelt)) if subset == "s4" else ("",)
        found, absent = None, None
        for category in categories:
            audio = path.parent / f"{subset}_data" / "audio_wav" / row.split / category / f"{row.name}.wav"
            frames, masks = frames_of(audio), masks_of(audio)
            lacking = [file for file in (*frames, audio, masks[0]) if not file.is_file()]
            if not lacking:
                present = tuple(mask if mask.is_file() else None for mask in masks)
                found = MaskedClip(row.name, row.split, row.category, frames, present, audio)
                break
            absent = absent or lacking[0]
        clips.append(found)
        if found is None:
            missing.append(f"{row.name}: {absent}")
        elif None in found.masks and (subset == "ms3" or row.split != "train"):
            unmasked.append(row.name)
    report.note("warning", "missing-media", "Clips of which a frame, the sound or the first mask is not here.", missing)
    report.note("warning", "missing-masks", "Clips that lack masks; seconds without one are not scored.", unmasked)
    return clips


def masks_of(audio: Path) -> tuple[Path, ...]:
    """Where the masks of the clip lie whose sound is that file; training clips of S4 have the first alone."""
    base, inner = _split(audio)
    return tuple(base / "gt_masks" / inner / f"{audio.stem}_{second}.png" for second in range(1, SECONDS + 1))


def frames_of(audio: Path) -> tuple[Path, ...]:
    """The pictures of the clip whose sound is that file, in either subset."""
    base, inner = _split(audio)
    single = len(inner.parts) > 2  # SPLIT/CATEGORY/NAME in S4, SPLIT/NAME in MS3, whose pictures are not split
    folder, stem = (inner, audio.stem) if single else (Path(audio.stem), f"{audio.stem}.mp4")
    return tuple(base / "visual_frames" / folder / f"{stem}_{second}.png" for second in range(1, SECONDS + 1))


def _split(audio: Path) -> tuple[Path, Path]:
    """The folder that holds ``audio_wav/``, and the rest of the path without its suffix."""
    base = next(parent for parent in audio.parents if parent.name == "audio_wav")
    return base.parent, audio.relative_to(base).with_suffix("")
