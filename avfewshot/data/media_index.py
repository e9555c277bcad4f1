"""Which media file is which clip of a data set.

The usual names are known: ``ID.mp4``, ``ID_START_END.mp4`` (also with decimals, in milliseconds or with dashes),
VGG-Sound's ``ID_START6.mp4``, row numbers with any zero padding, and what downloaders write: ``YID.mp4``,
``Title [ID].mp4``, ``Title-ID.mp4``; all of them in any sub-folders, per split or per class.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from avfewshot.data.class_names import name_key
from avfewshot.data.dataset import Dataset, DatasetReport, Sample
from avfewshot.data.rows import YOUTUBE_ID
from avfewshot.errors import UsageError
from avfewshot.media.discover import AUDIO_SUFFIXES, walk_media

_ID_LENGTH = 11
_TIMES = re.compile(r"(?P<start>\d+(?:\.\d+)?)s?(?:[_-](?P<end>\d+(?:\.\d+)?)s?)?(?![A-Za-z0-9])")
_SAME_TIME = 0.05  # Seconds; names round their decimals differently.
_KNOWN_NAMES = "ID.mp4, ID_START.mp4, ID_START_END.mp4 (seconds or milliseconds), YID.mp4, 'Title [ID].mp4'"


@dataclass(frozen=True, slots=True)
class Match:
    """What was found for a sample."""

    path: Path | None
    others: tuple[Path, ...] = ()  # Further files that match as well; not empty: the choice is arbitrary.
    larger_start: bool = False  # Chosen as the latest of several stretches of its video.


class MediaIndex:
    """Media files by name, by YouTube id and by row number.

    `ids` are looked for anywhere in a name, as in ``Title [ID].mp4``.
    """

    def __init__(self, folders: Sequence[str | Path], ids: Iterable[str] = ()) -> None:
        """Index all media files below folders, links followed, hidden ones left out; else a :class:`UsageError`."""
        if missing := [folder for folder in folders if not Path(folder).is_dir()]:
            message = f"The media folder {missing[0]} does not exist."
            raise UsageError(message, hint="Give a folder that holds the clips.")
        self._stems: dict[str, list[str]] = defaultdict(list)
        self._videos: dict[str, list[tuple[tuple[float, ...], str]]] = defaultdict(list)
        self._numbers: dict[int, list[str]] = defaultdict(list)
        wanted = frozenset(ids)
        files = list(walk_media(folders))
        self._count = len(files)
        self.examples = [os.path.basename(file) for file in files[:2]]
        for file in files:
            stem = os.path.splitext(os.path.basename(file))[0]
            self._stems[stem].append(file)
            if stem.isdecimal() and stem.isascii():
                self._numbers[int(stem[-18:])].append(file)
            for video, starts in _videos_in(stem, wanted):
                self._videos[video].append((starts, file))

    def __len__(self) -> int:
        return self._count

    def find(self, sample: Sample, class_names: Sequence[str] = (), *, larger_start: bool = False) -> Match:
        """The media file of a sample.

        Names are tried from the most to the least telling: the id itself; the video with the same start; the video
        alone. Among several files of the same name, video goes before audio and a folder named by the sample's split or
        class before others. With `larger_start`, of several stretches of a video that is listed without its start the
        latest is taken: what the authors of the AVEL lists say.
        """
        files = sorted(set(next(filter(None, self._candidates(sample)), [])))
        if not files:
            return Match(None)
        latest = files
        if larger_start and sample.start is None and sample.youtube_id:
            starts = {file: max(times, default=-1.0) for times, file in self._videos[sample.youtube_id]}
            last = max(starts.get(file, -1.0) for file in files)
            latest = [file for file in files if starts.get(file, -1.0) == last]
        return replace(_choose(latest, sample, class_names), larger_start=len(latest) < len(files))

    def _candidates(self, sample: Sample) -> Iterable[list[str]]:
        yield self._stems.get(sample.id, [])
        if sample.youtube_id is not None:
            files = self._videos.get(sample.youtube_id, [])
            start = sample.start
            if start is None:
                yield [file for _, file in files]
            else:
                yield [file for starts, file in files if starts and abs(starts[0] - start) < _SAME_TIME]
                yield [file for starts, file in files if any(abs(time - start) < _SAME_TIME for time in starts)]
                yield [file for starts, file in files if not starts]
        elif sample.id.isdecimal() and sample.id.isascii() and len(sample.id) <= 18:
            yield self._numbers.get(int(sample.id), [])


def _videos_in(stem: str, wanted: frozenset[str]) -> Iterator[tuple[str, tuple[float, ...]]]:
    """Videos that a file name may stand for, each with the times at which the clip may begin in it."""
    head, rest = stem[:_ID_LENGTH], stem[_ID_LENGTH:]
    if YOUTUBE_ID.fullmatch(head) and (not rest or (rest[0] in "_-" and _TIMES.fullmatch(rest[1:]))):
        yield head, _starts(rest)
        if head in wanted:
            return
    for place in range(len(stem) - _ID_LENGTH + 1):
        if (video := stem[place : place + _ID_LENGTH]) in wanted:
            before, rest = stem[:place], stem[place + _ID_LENGTH :]
            # Not a part of some longer word; AudioSet's tools put a Y before the id.
            if (not before or before == "Y" or not before[-1].isalnum()) and not rest[:1].isalnum():
                yield video, _starts(rest)


def _starts(rest: str) -> tuple[float, ...]:
    """Times that the rest of a name behind the id may mean: in seconds, and in milliseconds where that can be."""
    match = _TIMES.match(rest.lstrip(" _-])}."))
    if match is None:
        return ()
    start, end = match["start"], match["end"]
    milliseconds = float(end) - float(start) >= 500 if end else start.isdecimal() and start.endswith("000")
    return (float(start), float(start) / 1000) if milliseconds and not start.startswith("00") else (float(start),)


def _choose(files: list[str], sample: Sample, class_names: Sequence[str]) -> Match:
    if len(files) == 1:  # Nearly always, and there may be hundreds of thousands.
        return Match(Path(files[0]))
    files = _prefer(files, lambda file: os.path.splitext(file)[1].lower() not in AUDIO_SUFFIXES)
    files = _prefer(files, lambda file: sample.split in {part.lower() for part in Path(file).parts[:-1]})
    wanted = {name_key(class_names[label]) for label in sample.labels if label < len(class_names)}
    files = _prefer(files, lambda file: bool(wanted & {name_key(part) for part in Path(file).parts[:-1]}))
    first, *others = sorted(files, key=lambda file: (len(Path(file).parts), file))
    target = os.path.realpath(first)
    return Match(Path(first), tuple(Path(other) for other in others if os.path.realpath(other) != target))


def _prefer(files: list[str], good: Callable[[str], bool]) -> list[str]:
    return [file for file in files if good(file)] or files


def attach_media(dataset: Dataset, folders: Sequence[str | Path]) -> Dataset:
    """The data set with ``path`` set where media were found below some folders.

    The report gets ``no-media`` (nothing found at all), ``missing-media``, ``splits-without-media``,
    ``ambiguous-media``, ``larger-start`` and ``shared-media`` (different clips of one video that match the same file).
    """
    index = MediaIndex(folders, {sample.youtube_id for sample in dataset.samples if sample.youtube_id})
    report = DatasetReport(list(dataset.report.findings))
    samples: list[Sample] = []
    ambiguous: list[str] = []
    later: list[str] = []
    users: dict[str, list[str]] = defaultdict(list)
    for sample in dataset.samples:
        match = index.find(sample, dataset.classes, larger_start=dataset.form.startswith("avel"))
        if match.others:
            ambiguous.append(f"{sample.id}: {match.path} or {match.others[0]}")
        if match.larger_start and match.path is not None:
            later.append(f"{sample.id}: {match.path.name}")
        if match.path is not None:
            users[str(match.path)].append(sample.id)
        samples.append(replace(sample, path=match.path))
    missing = [sample.id for sample in samples if sample.path is None]
    if missing and len(missing) == len(samples):
        message = f"None of the {len(samples)} clips is among the {len(index)} media files found."
        if index.examples:
            message += (
                f" Names met: {', '.join(index.examples)}; looked for: {missing[0]}. Known forms: {_KNOWN_NAMES}."
            )
        report.add("error", "no-media", message, missing)
    elif missing:
        message = f"{len(missing)} of {len(samples)} clips have no media file; the others are used."
        report.add("warning", "missing-media", message, missing)
    reached = {sample.split for sample in samples if sample.path is not None}
    if reached and (bare := sorted({sample.split for sample in samples} - reached)):
        report.add("warning", "splits-without-media", "Splits of which no clip has a media file.", bare)
    message = "Clips with several matching files; the first by name is used."
    report.note("warning", "ambiguous-media", message, ambiguous)
    message = "Videos with several clips, where the list names no start: the larger start is used, as its authors say."
    report.note("info", "larger-start", message, later)
    if shared := [
        f"{os.path.basename(path)}: {', '.join(sorted(set(ids)))}" for path, ids in users.items() if len(set(ids)) > 1
    ]:
        message = "Files that several clips of one video share: they are probably whole videos, not cut clips."
        report.add("warning", "shared-media", message, sorted(shared))
    return replace(dataset, samples=tuple(samples), report=report)
