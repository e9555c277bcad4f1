"""Finding the media of a data set: one walk over its folders, then look-ups by id.

The usual layouts are known: ``ID.mp4``, ``ID_START_END.mp4`` (also with decimals), VGG-Sound's ``ID_START6.mp4``, row
numbers with any zero padding, all of them in any sub-folders, per split or per class.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avfewshot.data.aliases import name_key
from avfewshot.data.dataset import Dataset, Sample
from avfewshot.data.findings import DatasetReport
from avfewshot.errors import DataError, UsageError

_TIMED = re.compile(r"(?P<video>[A-Za-z0-9_-]{11})(?:_(?P<start>\d+(?:\.\d+)?)(?:_(?P<end>\d+(?:\.\d+)?))?)?")
_SAME_TIME = 0.05  # Seconds; names round their decimals differently.
_SKIPPED_FOLDERS = {"__MACOSX", "lost+found"}


@dataclass(frozen=True, slots=True)
class Match:
    """What was found for a sample.

    Attributes:
        path: The file, None where there is none.
        others: Further files that match as well; not empty means that the choice is arbitrary.
    """

    path: Path | None
    others: tuple[Path, ...] = ()


class MediaIndex:
    """Media files by name, by YouTube id and by row number.

    Args:
        files: Paths of media files.
    """

    def __init__(self, files: Iterable[str]) -> None:
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._videos: dict[str, list[tuple[float | None, str]]] = defaultdict(list)
        self._numbers: dict[int, list[str]] = defaultdict(list)
        self._count = 0
        for file in files:
            self._count += 1
            stem = os.path.splitext(os.path.basename(file))[0]
            self._stems[stem].append(file)
            if match := _TIMED.fullmatch(stem):
                self._videos[match["video"]].append((float(match["start"]) if match["start"] else None, file))
            if stem.isdecimal():
                self._numbers[int(stem)].append(file)

    @classmethod
    def scan(cls, folders: Sequence[str | Path]) -> MediaIndex:
        """Index all media files below some folders, symbolic links followed, hidden folders left out.

        Raises:
            UsageError: One of them is not a folder.
        """
        for folder in folders:
            if not Path(folder).is_dir():
                raise UsageError(
                    f"The media folder {folder} does not exist.", hint="Give a folder that holds the clips."
                )
        return cls(walk_media(folders))

    def __len__(self) -> int:
        return self._count

    def find(self, sample: Sample, class_names: Sequence[str] = ()) -> Match:
        """The media file of a sample.

        Names are tried from the most to the least telling: the id itself; the video with the same start; the video
        alone. Among several files of the same name, video goes before audio and a folder named by the sample's split
        or class before others.

        Args:
            sample: The sample.
            class_names: Names of the data set's classes, to recognise class folders.

        Returns:
            The match.
        """
        for candidates in self._candidates(sample):
            if candidates:
                return _choose(sorted(set(candidates)), sample, class_names)
        return Match(None)

    def _candidates(self, sample: Sample) -> Iterable[list[str]]:
        yield self._stems.get(sample.id, [])
        if sample.youtube_id is not None:
            files = self._videos.get(sample.youtube_id, [])
            if sample.start is None:
                yield [file for _, file in files]
            else:
                yield [file for start, file in files if start is not None and abs(start - sample.start) < _SAME_TIME]
                yield [file for start, file in files if start is None]
        elif sample.id.isdecimal():
            yield self._numbers.get(int(sample.id), [])


def walk_media(folders: Sequence[str | Path]) -> Iterable[str]:
    """Paths of all media files below some folders, each once, in no particular order."""
    from avfewshot.media.discover import MEDIA_SUFFIXES  # Here: the package around it may take a while to import.

    visited: set[tuple[int, int]] = set()
    pending = [os.fspath(folder) for folder in reversed(folders)]
    while pending:
        folder = pending.pop()
        try:
            status = os.stat(folder)
            if (status.st_dev, status.st_ino) in visited:  # Overlapping folders and circular links.
                continue
            visited.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name in _SKIPPED_FOLDERS:
                        continue
                    if os.path.splitext(entry.name)[1].lower() in MEDIA_SUFFIXES:
                        if not entry.is_dir():
                            yield entry.path
                    elif entry.is_dir():
                        pending.append(entry.path)
        except OSError:  # A folder that may not be read holds nothing for us; its clips are reported missing.
            continue


def _choose(files: list[str], sample: Sample, class_names: Sequence[str]) -> Match:
    if len(files) == 1:  # Nearly always, and there may be hundreds of thousands.
        return Match(Path(files[0]))
    from avfewshot.media.discover import AUDIO_SUFFIXES

    files = _prefer(files, lambda file: os.path.splitext(file)[1].lower() not in AUDIO_SUFFIXES)
    files = _prefer(files, lambda file: sample.split in {part.lower() for part in Path(file).parts[:-1]})
    wanted = {name_key(class_names[label]) for label in sample.labels if label < len(class_names)}
    files = _prefer(files, lambda file: bool(wanted & {name_key(part) for part in Path(file).parts[:-1]}))
    first, *others = sorted(files, key=lambda file: (len(Path(file).parts), file))
    return Match(Path(first), tuple(Path(other) for other in others))


def _prefer(files: list[str], good: Callable[[str], bool]) -> list[str]:
    return [file for file in files if good(file)] or files


def attach_media(dataset: Dataset, index: MediaIndex) -> Dataset:
    """The data set with ``path`` set where media were found.

    The report gets ``no-media`` (nothing found at all), ``missing-media``, ``ambiguous-media`` and ``shared-media``
    (different clips of one video that all match the same file).
    """
    report = DatasetReport(list(dataset.report.findings))
    samples: list[Sample] = []
    ambiguous: list[str] = []
    users: dict[str, list[str]] = defaultdict(list)
    for sample in dataset.samples:
        match = index.find(sample, dataset.classes)
        if match.others:
            ambiguous.append(f"{sample.id}: {match.path} or {match.others[0]}")
        if match.path is not None:
            users[str(match.path)].append(sample.id)
        samples.append(replace(sample, path=match.path))
    missing = [sample.id for sample in samples if sample.path is None]
    if missing and len(missing) == len(samples):
        message = f"None of the {len(samples)} clips is among the {len(index)} media files found."
        report.add("error", "no-media", message, missing)
    elif missing:
        message = f"{len(missing)} of {len(samples)} clips have no media file; the others are used."
        report.add("warning", "missing-media", message, missing)
    reached = {sample.split for sample in samples if sample.path is not None}
    if reached and (bare := sorted({sample.split for sample in samples} - reached)):
        report.add("warning", "splits-without-media", "Splits of which no clip has a media file.", bare)
    if ambiguous:
        message = "Clips with several matching files; the first by name is used."
        report.add("warning", "ambiguous-media", message, ambiguous)
    if shared := [
        f"{os.path.basename(path)}: {', '.join(sorted(set(ids)))}" for path, ids in users.items() if len(set(ids)) > 1
    ]:
        message = "Files that several clips of one video share: they are probably whole videos, not cut clips."
        report.add("warning", "shared-media", message, sorted(shared))
    return replace(dataset, samples=tuple(samples), report=report)


def require_media(dataset: Dataset, folders: Iterable[str | Path]) -> None:
    """Refuse a data set none of whose clips is there.

    Args:
        dataset: After :func:`attach_media`.
        folders: Where clips were looked for.

    Raises:
        DataError: It has no media.
    """
    if dataset.available():
        return
    raise DataError(
        f"{dataset.description.title}: the annotation files are there, but none of its {len(dataset.samples):,} clips "
        f"below {', '.join(map(str, folders))}.",
        hint="Name the folder of the clips with --media DIR. To try things without them: avfs data toy --root toy.",
    )
