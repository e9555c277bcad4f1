"""Samples, data sets and findings about them: what every reader returns, whatever its annotation files."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from avfewshot.data.description import Description

SPLITS: tuple[Literal["train", "val", "test"], ...] = ("train", "val", "test")
MAX_EXAMPLES = 5

Severity = Literal["info", "warning", "error"]  # known and harmless; worth a look; the data cannot be used so


@dataclass(frozen=True)
class Finding:
    """Something that a reader or a check noticed: nothing is dropped or mended in silence."""

    severity: Severity
    code: str  # stable identifier, such as ``empty-event``; docs/data.md lists them
    message: str  # one sentence for people; it says what was done about it
    count: int = 1  # how often
    examples: tuple[str, ...] = ()  # the first few places or ids

    def to_dict(self) -> dict[str, Any]:
        """The finding as JSON-ready values."""
        return asdict(self) | {"examples": list(self.examples)}


@dataclass
class DatasetReport:
    """All findings about one data set, in the order in which they were made."""

    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: Severity, code: str, message: str, examples: Iterable[str] = (), *, count: int = 0) -> None:
        """Add a :class:`Finding`; the first few `examples` are kept, and `count` is their number by default."""
        places = tuple(examples)
        self.findings.append(Finding(severity, code, message, count or max(1, len(places)), places[:MAX_EXAMPLES]))

    def note(self, severity: Severity, code: str, message: str, examples: Iterable[str]) -> None:
        """Add a finding if there are examples."""
        if examples := tuple(examples):
            self.add(severity, code, message, examples)

    @contextmanager
    def collect(self, prefix: str = "") -> Iterator[Callable[[Severity, str, str, str], None]]:
        """Gather examples one by one: gives ``remark(severity, code, message, example)``; one finding for each kind."""
        kinds: dict[tuple[Severity, str, str], list[str]] = {}
        yield lambda severity, code, message, example: kinds.setdefault((severity, code, message), []).append(example)
        for (severity, code, message), examples in kinds.items():
            self.add(severity, code, f"{prefix}{message}", examples)

    def find(self, code: str) -> Finding | None:
        """The first finding with this code, or None."""
        return next((finding for finding in self.findings if finding.code == code), None)

    def describe(self) -> list[str]:
        """What a person should know before using the data, a sentence each: every finding but the harmless ones."""
        lines = []
        for finding in self.findings:
            if finding.severity != "info":
                places = ", ".join(finding.examples[:3])
                many = f" ({finding.count:,})" if finding.count > 1 else ""
                lines.append(finding.message + many + (f" E.g. {places}." if places else ""))
        return lines


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happens in a clip."""

    label: int  # index of the class
    onset: float  # start in seconds from the beginning of the clip
    offset: float  # end in seconds, greater than `onset`
    modality: Literal["av", "audio", "visual"] = "av"  # ``av`` seen and heard, ``audio`` heard, ``visual`` seen


@dataclass(frozen=True, slots=True)
class Sample:
    """One annotated clip."""

    id: str  # the clip's name in its annotation file. AVE lists some clips under two classes: two samples, one id.
    labels: tuple[int, ...]  # indices of its classes, ascending
    split: str  # ``train``, ``val`` or ``test``
    row: int = 0  # position in its annotation file, from 0
    # class index per second, ``len(classes)`` where nothing happens; None where the data set has no such labels
    segments: tuple[int, ...] | None = None
    events: tuple[Event, ...] = ()  # events with onset and offset, where the data set has them
    youtube_id: str | None = None  # the 11 characters of the video on YouTube, if known
    start: float | None = None  # where the clip begins in that video, in seconds, if known
    end: float | None = None  # where it ends
    path: Path | None = None  # its media file, if found

    @property
    def label(self) -> int:
        """The class of a clip with one label; of several, the lowest index (as LLP's published top-1 has it)."""
        return self.labels[0]

    def has_event(self, num_classes: int) -> bool:
        """Whether any second carries a class; True where the data set has no labels per second."""
        return self.segments is None or any(label < num_classes for label in self.segments)


@dataclass(frozen=True)
class Dataset:
    """A data set: its classes, its samples in file order, and what was noticed on reading."""

    description: Description  # where it comes from and what it should contain
    root: Path  # the folder that the annotation files were read from
    classes: tuple[str, ...]  # class names; a label is an index into them
    wordings: tuple[str, ...]  # wording of each class for prompts
    samples: tuple[Sample, ...]  # all samples, by split and then in file order
    multi_label: bool = False  # clips carry several labels
    form: str = ""  # which form of annotation file was read, for people
    files: dict[str, Path] = field(default_factory=dict)  # annotation files read, by role
    report: DatasetReport = field(default_factory=DatasetReport)  # findings of the reader
    none_class: int | None = None  # label of the class "none of these" (a folder ``none/``), or None
    drawn_splits: tuple[str, ...] = ()  # splits that nobody gave: their clips were drawn from the training clips
    # clips that are *not* of their label (folders ``-CLASS/``); in no split's `samples`
    negatives: tuple[Sample, ...] = ()

    @property
    def name(self) -> str:
        """Name of the data set."""
        return self.description.name

    @property
    def num_classes(self) -> int:
        """Number of classes, background not counted."""
        return len(self.classes)

    @property
    def background(self) -> int:
        """The label of a second in which nothing happens: one past the last class."""
        return len(self.classes)

    @property
    def num_segments(self) -> int:
        """Seconds in an annotated clip."""
        return self.description.segments

    @property
    def split_sizes(self) -> dict[str, int]:
        """Samples per split, in the order train, val, test."""
        counts = Counter(sample.split for sample in self.samples)
        return {split: counts[split] for split in SPLITS if split in counts}

    def split(self, name: str) -> tuple[Sample, ...]:
        """The samples of a split, in file order."""
        return tuple(sample for sample in self.samples if sample.split == name)

    def with_samples(self, samples: Iterable[Sample]) -> Dataset:
        """The same data set with other samples."""
        return replace(self, samples=tuple(samples))

    def available(self, split: str | None = None) -> tuple[Sample, ...]:
        """Samples (of a split) whose media file was found."""
        return tuple(s for s in self.samples if s.path is not None and split in (None, s.split))

    def missing(self, split: str | None = None) -> tuple[Sample, ...]:
        """Samples (of a split) whose media file was not found."""
        return tuple(s for s in self.samples if s.path is None and split in (None, s.split))

    def multi_hot(self, samples: Sequence[Sample]) -> npt.NDArray[np.bool_]:
        """Labels of `samples` as a boolean matrix ``[N, K]``."""
        matrix = np.zeros((len(samples), self.num_classes), dtype=bool)
        for row, sample in enumerate(samples):
            matrix[row, list(sample.labels)] = True
        return matrix

    def segment_labels(self, sample: Sample, num_segments: int | None = None) -> npt.NDArray[np.int64]:
        """Class per second of one sample, int64 ``[T]``, :attr:`background` where nothing happens.

        T is `num_segments`, by default that of the data set; a ValueError where there are no such labels.
        """
        if sample.segments is None:
            raise ValueError(f"{self.name} has no labels per second for {sample.id}.")
        length = self.num_segments if num_segments is None else num_segments
        labels = np.full(length, self.background, dtype=np.int64)
        annotated = sample.segments[:length]
        labels[: len(annotated)] = annotated
        return labels

    def event_matrix(
        self, sample: Sample, modality: Literal["audio", "visual", "av"], num_segments: int | None = None
    ) -> npt.NDArray[np.bool_]:
        """Which class happens in which second, bool ``[T, K]``, for data sets with events.

        A second counts for an event if the event covers any part of it. `modality` is ``audio`` for what is heard,
        ``visual`` for what is seen (an ``av`` event is both), ``av`` for what is both seen and heard in the same
        second. T is `num_segments`, by default that of the data set.
        """
        length = self.num_segments if num_segments is None else num_segments
        heard, seen = np.zeros((2, length, self.num_classes), dtype=bool)
        for event in sample.events:
            seconds = slice(math.floor(event.onset), math.ceil(event.offset))
            if event.modality != "visual":
                heard[seconds, event.label] = True
            if event.modality != "audio":
                seen[seconds, event.label] = True
        return {"audio": heard, "visual": seen, "av": heard & seen}[modality]


def repeated(names: Iterable[str]) -> list[str]:
    """Names that occur more than once, sorted."""
    return sorted(name for name, count in Counter(names).items() if count > 1)


def rank_key(seed: int, purpose: str, group: str, name: str) -> bytes:
    """The sort key of an item: BLAKE2b digest, 16 bytes, of the four parts joined by the ASCII unit separator.

    Seeded orders by a keyed hash stay as they are when items are added, removed or shuffled. Different purposes give
    independent orders; `group` is what is drawn from, such as a class name.
    """
    text = "\x1f".join((str(seed), purpose, group, name))
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=16).digest()


def ranked(samples: Iterable[Sample], *, seed: int, purpose: str, group: str) -> list[Sample]:
    """Samples in the seeded order of their ids; equal ids stay in order."""
    return sorted(samples, key=lambda sample: (rank_key(seed, purpose, group, sample.id), sample.id))
