"""Search of embedded clips: candidates by an index, exact scores for them, seconds joined to moments and clips.

Cosines of the two modalities have different means and spreads, so a score is how many standard deviations a second lies
above the seconds of the collection; `both` is the mean of sight and sound, where a modality that a clip lacks is zero.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from avfewshot.errors import UsageError
from avfewshot.io import atomic_path
from avfewshot.media.clip import MODALITIES

if TYPE_CHECKING:
    from avfewshot.inference.classifier import Classifier

Floats = npt.NDArray[np.float32]
BY: dict[str, tuple[str, ...]] = {"sight": ("visual",), "sound": ("audio",), "both": MODALITIES}

_SAMPLE = 4096  # seconds that tell how cosines are spread
_CANDIDATES = 100  # seconds looked at for each clip that is wanted
_CHUNK = 50_000
_TRAINED = 20_000  # rows that a quantiser is trained on
_INDEXED = 100_000  # fewer rows are compared one by one


@dataclass(frozen=True)
class Moment:
    """Seconds of a clip that follow each other."""

    start: int  # seconds
    end: int
    score: float  # of the best second


@dataclass(frozen=True)
class Hit:
    """A clip that was found."""

    path: str
    duration: float  # seconds
    score: float  # of its best second, in standard deviations above the collection
    second: int  # which that is
    cosines: dict[str, float] = field(repr=False)  # of that second, by modality
    moments: list[Moment] = field(default_factory=list)  # seconds at least half as far above, in order


@dataclass(frozen=True)
class Rows:
    """A clip, and where its seconds lie."""

    path: str
    duration: float  # seconds
    seconds: int  # T
    visual: int | None  # its first row of T; None without video
    audio: int | None


class Search:
    """Answers queries; keeps what they share: where the rows of clips are, and how their cosines are spread.

    Args:
        clips: Whose seconds are looked at.
        vectors: Rows of each modality ``[N, D]``; there may be others than those of `clips` among them.
        indexes: Of faiss by modality; the rows of the others are all compared.
    """

    def __init__(
        self,
        clips: Sequence[Rows],
        vectors: Mapping[str, Floats],
        indexes: Mapping[str, Any] | None = None,
    ) -> None:
        self._clips, self._vectors, self._indexes = clips, vectors, indexes or {}
        self._starts: dict[str, npt.NDArray[np.int64]] = {}  # -1: the clip has no such rows
        self._order: dict[str, npt.NDArray[np.int64]] = {}  # clips that have, by row
        for name in MODALITIES:
            starts = [getattr(clip, name) for clip in self._clips]
            self._starts[name] = np.array([-1 if start is None else start for start in starts], dtype=np.int64)
            order = np.argsort(self._starts[name], kind="stable")
            self._order[name] = order[self._starts[name][order] >= 0]
        self._seconds = np.array([clip.seconds for clip in self._clips], dtype=np.int64)
        self._samples = self._sampled()

    @classmethod
    def of(cls, clips: Sequence[tuple[str, Floats | None, Floats | None]]) -> Search:
        """Over (name, sight, sound) of clips in memory, float32, which are copied once."""
        rows: list[Rows] = []
        parts: dict[str, list[Floats]] = {name: [] for name in MODALITIES}
        ends: dict[str, int] = dict.fromkeys(MODALITIES, 0)
        for path, *pair in clips:
            there = {name: part for name, part in zip(MODALITIES, pair, strict=True) if part is not None}
            starts = (ends[name] if name in there else None for name in MODALITIES)
            seconds = max(map(len, there.values()))
            rows.append(Rows(path, float(seconds), seconds, *starts))
            for name, part in there.items():
                parts[name].append(part)
                ends[name] += len(part)
        empty = np.zeros((0, 0), dtype=np.float32)
        return cls(rows, {name: np.concatenate(some) if some else empty for name, some in parts.items()})

    def __len__(self) -> int:
        return len(self._clips)

    def _sampled(self) -> dict[str, Floats]:
        """Some seconds of each modality, evenly spread."""
        made = {}
        for name in MODALITIES:
            order = self._order[name]
            rows = np.repeat(self._starts[name][order], self._seconds[order])
            before = np.cumsum(self._seconds[order]) - self._seconds[order]
            offsets = np.arange(len(rows)) - np.repeat(before, self._seconds[order])
            picked = np.unique(np.linspace(0, len(rows) - 1, _SAMPLE).astype(np.int64)) if len(rows) else []
            made[name] = np.asarray(self._vectors[name][(rows + offsets)[picked]])
        return made

    def find(
        self, query: Mapping[str, Floats], top: int = 20, *, by: str = "both", without: Rows | None = None
    ) -> list[Hit]:
        """The clips whose best second is nearest to a query, a unit vector ``[D]`` by modality; `by` is one of `BY`.

        Raises:
            FloatingPointError: Rows of a modality, which it names, are no unit vectors.
        """
        query = {name: query[name].astype(np.float32) for name in BY[by] if name in query and len(self._order[name])}
        if not query or top < 1:
            return []
        spread = {name: _cosines(name, self._samples[name], vector) for name, vector in query.items()}
        scales = {name: (float(values.mean()), max(float(values.std()), 1e-6)) for name, values in spread.items()}
        count, total = _CANDIDATES * top, max(len(self._vectors[name]) for name in query)
        while True:
            clips, seconds = self._candidates(query, count)
            scores = self._scores(query, scales, clips, seconds)[0]
            order = np.argsort(-scores, kind="stable")
            _, first = np.unique(clips[order], return_index=True)  # the best second of each clip
            best = order[np.sort(first)]
            best = [row for row in best if self._clips[int(clips[row])] is not without][:top]
            if len(best) == top or count >= total:  # long clips may have taken all candidates
                break
            count *= 8
        return [self._hit(query, scales, int(clips[row])) for row in best]

    def _candidates(self, query: dict[str, Floats], count: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Clips and seconds that one of the modalities finds near."""
        pairs = []
        for name, vector in query.items():
            order, count_here = self._order[name], min(count, len(self._vectors[name]))
            if name in self._indexes:
                rows = self._indexes[name].search(vector[None], count_here)[1][0]
            else:
                rows = self._nearest(name, vector, count_here)
            rows = rows[rows >= 0]
            place = np.searchsorted(self._starts[name][order], rows, side="right") - 1
            clips = order[np.maximum(place, 0)]
            seconds = rows - self._starts[name][clips]
            alive = (place >= 0) & (seconds < self._seconds[clips])  # the others are of clips that have gone
            pairs.append(np.stack([clips[alive], seconds[alive]]))
        candidates = np.unique(np.concatenate(pairs, 1), axis=1)
        return candidates[0], candidates[1]

    def _nearest(self, name: str, query: Floats, count: int) -> npt.NDArray[np.int64]:
        vectors = self._vectors[name]
        parts = (vectors[start : start + _CHUNK] for start in range(0, len(vectors), _CHUNK))
        scores = np.concatenate([_cosines(name, part, query) for part in parts])
        return np.argpartition(-scores, count - 1)[:count]

    def _scores(
        self,
        query: dict[str, Floats],
        scales: dict[str, tuple[float, float]],
        clips: npt.NDArray[np.int64],
        seconds: npt.NDArray[np.int64],
    ) -> tuple[npt.NDArray[np.float64], dict[str, npt.NDArray[np.float64]]]:
        """Exact scores of seconds ``[n]``, and their cosines by modality, NaN where there is none."""
        scores, cosines = np.zeros(len(clips)), {}
        for name, vector in query.items():
            cosines[name] = np.full(len(clips), np.nan)
            there = self._starts[name][clips] >= 0
            rows = self._starts[name][clips[there]] + seconds[there]
            cosines[name][there] = _cosines(name, self._vectors[name][rows], vector)
            mean, deviation = scales[name]
            scores += np.nan_to_num((cosines[name] - mean) / deviation) / len(query)
        return scores, cosines

    def _hit(self, query: dict[str, Floats], scales: dict[str, tuple[float, float]], number: int) -> Hit:
        clip = self._clips[number]
        seconds = np.arange(clip.seconds)
        scores, cosines = self._scores(query, scales, np.full(clip.seconds, number), seconds)
        best = int(scores.argmax())
        good = scores >= max(scores[best] / 2, 0)
        good[best] = True
        edges = np.flatnonzero(np.diff(np.concatenate([[0], good, [0]])))
        moments = [
            Moment(int(start), int(end), round(float(scores[start:end].max()), 4))
            for start, end in edges.reshape(-1, 2).tolist()
        ]
        there = {name: round(float(values[best]), 4) for name, values in cosines.items() if not np.isnan(values[best])}
        return Hit(clip.path, clip.duration, round(float(scores[best]), 4), best, there, moments)


def _cosines(name: str, rows: Floats, query: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        made = rows @ query
    if not (np.abs(made) <= 2).all():  # NaN too
        raise FloatingPointError(name)
    return made


def open_index(path: Path, vectors: Floats) -> Any | None:
    """An index of faiss of all `vectors`, brought up to date; None for few of them, or without faiss."""
    try:
        import faiss
    except ImportError:
        return None
    if len(vectors) < _INDEXED:
        return None
    index, indexed = None, 0
    with contextlib.suppress(Exception):  # missing or damaged: it is made again
        index = faiss.read_index(str(path))
        indexed = index.ntotal if index.d == vectors.shape[1] and index.ntotal <= len(vectors) else 0
    # Trained anew, too, where what it was trained on is a small part by now.
    if index is None or not indexed or len(vectors) > 4 * indexed:
        width, indexed = vectors.shape[1], 0
        index = faiss.index_factory(width, f"PQ{width // 2}x4fs", faiss.METRIC_INNER_PRODUCT)
        index.train(np.ascontiguousarray(vectors[:: max(1, len(vectors) // _TRAINED)]))
    if indexed < len(vectors):
        for start in range(indexed, len(vectors), 100_000):
            index.add(np.ascontiguousarray(vectors[start : start + 100_000]))
        with contextlib.suppress(OSError), atomic_path(path) as temporary:  # a folder that is only to be read
            faiss.write_index(index, str(temporary))
    return index


def word_query(classifier: Classifier, text: str) -> dict[str, Floats]:
    """A text by modality, in the spaces of the frozen towers."""
    from avfewshot.encoders.text import label_features

    backbone, templates = classifier.backbone, classifier.templates
    branches = ((backbone.visual_text, templates.visual), (backbone.audio_text, templates.audio))
    features = (label_features(branch, [text], prompts)[0].cpu().numpy() for branch, prompts in branches)
    return dict(zip(MODALITIES, features, strict=True))


def parse_like(text: str) -> tuple[str, int | None, int | None]:
    """``clip.mp4`` or ``clip.mp4:12-15``: the file, and its first second and the one behind its last.

    Raises:
        UsageError: The seconds are none.
    """
    match = None if os.path.exists(text) else re.fullmatch(r"(.+):(\d+(?:\.\d+)?)-(\d+(?:\.\d+)?)", text)
    if match is None:
        return text, None, None
    start, end = float(match[2]), float(match[3])
    if end <= start:
        raise UsageError(f"--like {text}: ends before it begins.", hint="Write clip.mp4:12-15.")
    return match[1], math.floor(start), math.ceil(end)
