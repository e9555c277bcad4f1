"""One way in for every data set: its annotation files are read, and its media looked up by id.

The usual names of media are known: ``ID.mp4``, ``ID_START_END.mp4`` (also with decimals, in milliseconds or with
dashes), VGG-Sound's ``ID_START6.mp4``, row numbers with any zero padding, and what downloaders write: ``YID.mp4``,
``Title [ID].mp4``, ``Title-ID.mp4``; all of them in any sub-folders, per split or per class.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from avfewshot.data.annotations import YOUTUBE_ID, name_key
from avfewshot.data.ave import load_ave
from avfewshot.data.avsbench import avsbench_dataset
from avfewshot.data.dataset import Dataset, DatasetReport, Sample
from avfewshot.data.description import dataset_of_task, load_description
from avfewshot.data.llp import load_llp
from avfewshot.data.music_avqa import avqa_dataset
from avfewshot.data.vggsound import load_vggsound
from avfewshot.errors import DataError, UsageError
from avfewshot.media.discover import AUDIO_SUFFIXES, walk_media

_ID_LENGTH = 11
_TIMES = re.compile(r"(?P<start>\d+(?:\.\d+)?)s?(?:[_-](?P<end>\d+(?:\.\d+)?)s?)?(?![A-Za-z0-9])")
_SAME_TIME = 0.05  # Seconds; names round their decimals differently.
_KNOWN_NAMES = "ID.mp4, ID_START.mp4, ID_START_END.mp4 (seconds or milliseconds), YID.mp4, 'Title [ID].mp4'"


def outside_datasets() -> dict[str, Callable[[Path], Dataset]]:
    """What reads the data sets of other packages, by name: their entry points of the group ``avfewshot.datasets``.

    Each is given the root, and returns the data set, with or without the paths of its media.
    """

    def read(point: EntryPoint, root: Path) -> Dataset:
        try:
            reader = point.load()
        except (ImportError, AttributeError) as error:
            raise UsageError(f"The data set {point.name!r} cannot be imported: {error}.") from error
        return reader(root)

    return {point.name: partial(read, point) for point in entry_points(group="avfewshot.datasets")}


def load_dataset(
    name: str,
    root: str | Path,
    *,
    media: Sequence[str | Path] = (),
    list_file: str | Path | None = None,
    find_media: bool = True,
) -> Dataset:
    """Read a data set and find its media below `media` (default: `root`); its report says what is missing.

    `name` is a data set (``ave``), a task that uses it (``ave_cls``), or a data set of another package; `root` the
    folder of the annotation files or one above it; `list_file` a list of VGG-Sound clips to read instead.

    Raises:
        UsageError: The name is unknown, a folder does not exist, or `list_file` is given for another kind of data set.
        DataError: Annotation files are missing or cannot be read.
    """
    if (outside := outside_datasets().get(name)) is not None:
        if list_file is not None:
            raise UsageError(f"The data set {name} has split files of its own: a list cannot be given for it.")
        dataset = outside(Path(root))
        find_media = find_media and not dataset.available()  # it may know where its media are
        return attach_media(dataset, media or [root]) if find_media else dataset
    description = load_description(dataset_of_task(name), root)
    if description.reader in {"vggsound", "ovave"}:
        dataset = load_vggsound(description, root, list_file=list_file)
    elif list_file is not None:
        raise UsageError(f"{description.title} has split files of its own: a list cannot be given for it.")
    elif description.reader == "ave":
        dataset = load_ave(description, root)
    elif description.reader == "llp":
        dataset = load_llp(description, root)
    elif description.reader == "avs":
        if media:
            raise UsageError("--media: the files of AVSBench lie beside its lists.", hint="Give --root alone.")
        return avsbench_dataset(description, root, find_media=find_media)
    elif description.reader == "avqa":
        return avqa_dataset(description, root, media, find_media=find_media)
    else:
        raise UsageError(f"{description.path} describes a folder of clips.", hint="Use --data FOLDER for it.")
    return attach_media(dataset, media or [root]) if find_media else dataset


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
        """Index all media files below some folders, symbolic links followed, hidden folders left out.

        Raises:
            UsageError: One of them is not a folder.
        """
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


def require_media(dataset: Dataset, folders: Iterable[str | Path]) -> None:
    """Refuse a data set, after :func:`attach_media`, none of whose clips is there.

    Raises:
        DataError: It has no media.
    """
    if dataset.available():
        return
    names = dataset.report.find("no-media")
    raise DataError(
        f"{dataset.description.title}: the annotation files are there, but none of its {len(dataset.samples):,} clips "
        f"below {', '.join(map(str, folders))}." + (f" {names.message}" if names else ""),
        hint="Name the folder of the clips with --media DIR. To try things without them: avfs data toy --root toy.",
    )
