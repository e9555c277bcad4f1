"""Clips with their labels in a seeded order, wherever they come from: raw videos here, prepared shards in `shards`.

A training asks a :class:`ClipSource` for the stream of its rank. The streams of all ranks hold every clip exactly once
an epoch, for any number of ranks; a stream can be entered anywhere, so that an interrupted epoch goes on with the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from avfewshot.data.dataset import Dataset, Sample, rank_key
from avfewshot.errors import explain
from avfewshot.media.clip import Failure
from avfewshot.media.stream import IsolatedReader, ordered_map

if TYPE_CHECKING:
    from avfewshot.media.clip import Clip

DEFAULT_THREADS = 2
T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, eq=False)
class LabelledClip:
    """A decoded clip."""

    id: str  # its name in the annotation file
    labels: tuple[int, ...]  # indices of its classes, ascending
    clip: Clip
    segments: tuple[int, ...] | None = None  # class index per second, the number of classes where nothing happens
    row: int | None = None  # its place among the samples of a RawSource


class Source(Protocol[T_co]):
    """Where a training has its items from."""

    def count(self, rank: int, world: int) -> int:
        """Length of the stream of a rank, the same in every epoch, rank 0 has the most: see :func:`share`."""
        ...

    def stream(
        self, *, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[T_co]:
        """The items of rank `rank` of `world` in the order of an epoch, a function of seed and epoch alone.

        `seed` None keeps the order of the files; the first `start` items of this stream are left out without being
        decoded.
        """
        ...


class ClipSource(Source["LabelledClip | Failure"], Protocol):
    """Clips of one split."""

    classes: tuple[str, ...]  # names; labels are indices into them
    wordings: tuple[str, ...]  # of each class for prompts

    def __len__(self) -> int:
        """Number of clips, those that cannot be read included."""
        ...


def share(total: int, rank: int, world: int) -> int:
    """How many of `total` clips a rank gets; two ranks differ by one at most, the first ones have more.

    A training that needs equal numbers of steps uses ``total // world`` clips of each rank.
    """
    return total // world + (rank < total % world)


def read_start(path: str | Path, *, seconds: int = 10, **options: Any) -> Clip:
    """Read the first seconds of a media file; the clip's ``last`` says whether this is all of it.

    Options and errors are those of :class:`~avfewshot.media.reader.ClipReader`.
    """
    with IsolatedReader(path, **options) as reader:
        return reader.read(0, min(reader.info.num_segments, seconds))


class RawSource:
    """Clips decoded from their media files each time, ahead by `threads` threads; those without a file are left out.

    `read` reads a file: :func:`read_start` with 224 pixels and ten seconds unless told.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Sequence[Sample],
        read: Callable[[Path], Clip] = read_start,
        *,
        threads: int = DEFAULT_THREADS,
    ) -> None:
        self.samples = tuple(sample for sample in samples if sample.path is not None)
        self.classes, self.wordings = dataset.classes, dataset.wordings
        self._read, self._threads = read, threads

    def __len__(self) -> int:
        return len(self.samples)

    def count(self, rank: int, world: int) -> int:
        """See :meth:`ClipSource.count`."""
        return share(len(self), rank, world)

    def stream(
        self, *, seed: int | None, epoch: int = 0, rank: int = 0, world: int = 1, start: int = 0
    ) -> Iterator[LabelledClip | Failure]:
        """See :meth:`ClipSource.stream`."""
        order = list(range(len(self))) if seed is None else self.order(seed, epoch)
        return ordered_map(self._decode, order[rank::world][start:], workers=self._threads)

    def order(self, seed: int, epoch: int) -> list[int]:
        """Rows of :attr:`samples` in the order of an epoch."""
        keys = [rank_key(seed, "epoch", str(epoch), f"{sample.id}\x1f{sample.row}") for sample in self.samples]
        return sorted(range(len(self)), key=keys.__getitem__)

    def _decode(self, row: int) -> LabelledClip | Failure:
        sample = self.samples[row]
        try:
            assert sample.path is not None
            clip = self._read(sample.path)
        except Exception as error:  # whatever it is, it is this file's failure
            return Failure(str(sample.path), explain(error), sample.id)
        return LabelledClip(sample.id, sample.labels, clip, sample.segments, row)
